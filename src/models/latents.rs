//! Latents between the networks, whatever the family: their statistics, what an encoder makes of a clip, what a window is told to
//! hold, and noise as the reference draws it.

use crate::job::convention::Convention;
use crate::job::geometry::{Geometry, Grid};
use crate::sampling::noise::Noise;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Mean and deviation of each latent channel over the training set.
pub struct LatentStatistics {
    /// (c), both.
    pub mean: Tensor,
    pub deviation: Tensor,
}

impl LatentStatistics {
    /// What the transformer makes -> what the decoder reads. (..., c) both.
    pub fn denormalise(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.broadcast_mul(&self.deviation)?.broadcast_add(&self.mean)
    }

    /// What the encoder makes -> what the transformer reads. (..., c) both.
    pub fn normalise(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)
    }
}

/// The encoder's posterior of a clip: mean and log-variance.
#[derive(Clone)]
pub struct Posterior {
    /// (1, f, h, w, c)
    pub mean: Tensor,
    /// (1, f, h, w, 1), one for all channels, or one a channel.
    pub log_variance: Tensor,
}

impl Posterior {
    /// Latents drawn from it, as the reference draws them: channel by channel.
    /// - Returns (1, f, h, w, c), f32.
    pub fn sample(&self, noise: &mut Noise) -> candle_core::Result<Tensor> {
        let (b, f, h, w, c) = self.mean.dims5()?;
        let drawn = Tensor::from_vec(noise.normal(c * f * h * w), (b, c, f, h, w), &Device::Cpu)?;
        let drawn = drawn.permute((0, 2, 3, 4, 1))?.contiguous()?.to_device(self.mean.device())?;
        let deviation = (self.log_variance.to_dtype(DType::F32)? * 0.5)?.exp()?;
        self.mean.to_dtype(DType::F32)? + drawn.broadcast_mul(&deviation)?
    }
}

/// Where clean latents come from.
pub enum Clean {
    /// A still or a clip through the encoder; its latents are drawn.
    Encoded(Posterior),
    /// Latents that the model made before: (1, f, h, w, c), normalised, f32.
    Made(Tensor),
}

impl Clean {
    /// (1, f, h, w, c), normalised, f32.
    pub fn latents(&self, statistics: &LatentStatistics, noise: &mut Noise) -> Result<Tensor> {
        Ok(match self {
            Clean::Encoded(posterior) => statistics.normalise(&posterior.sample(noise)?)?,
            Clean::Made(latents) => latents.clone(),
        })
    }
}

/// Latents to hold.
pub struct Condition {
    /// First pixel frame that they stand for.
    pub frame: usize,
    /// 1 holds them; less lets them be changed once the noise has fallen to 1 - strength.
    pub strength: f64,
    pub clean: Clean,
}

/// Latents that a pass begins from in place of pure noise.
pub struct Start {
    /// (1, f, h, w, c), normalised, f32.
    pub latents: Tensor,
    /// Noise level of its first step.
    pub sigma: f64,
}

impl Start {
    /// - `noise`: (1, tokens, c), as is what comes back.
    /// - Source: diffusers `pipelines/ltx/pipeline_ltx_condition.py`, `prepare_latents`, at 58eb52c; LTX-Video has the same.
    pub fn noised(&self, noise: &Tensor) -> Result<Tensor> {
        let clean = self.latents.reshape(noise.shape())?;
        Ok(((noise * self.sigma)? + (clean * (1.0 - self.sigma as f32) as f64)?)?)
    }
}

/// A window of video as its tokens are laid out and sampled.
pub struct Layout {
    pub convention: Convention,
    pub geometry: Geometry,
    pub grid: Grid,
    pub fps: f64,
    pub channels: usize,
    pub device: Device,
    /// Noise that each step puts on what is held.
    pub image_noise: f64,
    /// Whether each step draws fresh noise.
    pub stochastic: bool,
}

/// Which text an evaluation of the transformer follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    Positive,
    Negative,
}

/// Noise for `tokens`, drawn channel by channel as the reference does: (1, tokens, channels), f32, on the CPU.
pub fn draw(noise: &mut Noise, tokens: usize, channels: usize) -> Result<Tensor> {
    let drawn = Tensor::from_vec(noise.normal(channels * tokens), (1, channels, tokens), &Device::Cpu)?;
    Ok(drawn.transpose(1, 2)?.contiguous()?)
}

/// Noise for every value of `latents`, drawn in the order in which they lie.
pub fn draw_like(latents: &Tensor, noise: &mut Noise) -> Result<Tensor> {
    let drawn = Tensor::from_vec(noise.normal(latents.elem_count()), latents.shape(), &Device::Cpu)?;
    Ok(drawn.to_device(latents.device())?)
}
