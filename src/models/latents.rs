//! Latents as all families share them: per-channel statistics, the encoder's posterior, the conditions of a window, and noise in
//! the reference's order.

use crate::job::convention::Convention;
use crate::job::geometry::{Geometry, Grid};
use crate::sampling::noise::Noise;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Mean and standard deviation of each latent channel over the training set.
pub struct LatentStatistics {
    /// (c)
    pub mean: Tensor,
    /// (c)
    pub std: Tensor,
}

impl LatentStatistics {
    /// Scales the transformer's normalised latents back for the decoder; (..., c) in and out.
    pub fn denormalise(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.broadcast_mul(&self.std)?.broadcast_add(&self.mean)
    }

    /// Normalises the encoder's latents for the transformer; (..., c) in and out.
    pub fn normalise(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.broadcast_sub(&self.mean)?.broadcast_div(&self.std)
    }
}

/// The encoder's posterior of a clip: mean and log-variance.
#[derive(Clone)]
pub struct Posterior {
    /// (1, f, h, w, c)
    pub mean: Tensor,
    /// (1, f, h, w, 1), shared by all channels, or (1, f, h, w, c).
    pub log_variance: Tensor,
}

impl Posterior {
    /// Samples latents, drawing noise channel by channel as the reference does.
    /// - Returns (1, f, h, w, c), f32, not normalised.
    pub fn sample(&self, noise: &mut Noise) -> candle_core::Result<Tensor> {
        let (b, f, h, w, c) = self.mean.dims5()?;
        let drawn = Tensor::from_vec(noise.normal(c * f * h * w), (b, c, f, h, w), &Device::Cpu)?;
        let drawn = drawn.permute((0, 2, 3, 4, 1))?.contiguous()?.to_device(self.mean.device())?;
        let deviation = (self.log_variance.to_dtype(DType::F32)? * 0.5)?.exp()?;
        self.mean.to_dtype(DType::F32)? + drawn.broadcast_mul(&deviation)?
    }
}

/// The source of a condition's clean latents.
pub enum Clean {
    /// An encoded still or clip; its latents are sampled from the posterior.
    Encoded(Posterior),
    /// Latents of an earlier window: (1, f, h, w, c), normalised, f32.
    Made(Tensor),
}

impl Clean {
    /// Returns the latents, sampled where they were encoded: (1, f, h, w, c), normalised, f32.
    pub fn latents(&self, statistics: &LatentStatistics, noise: &mut Noise) -> Result<Tensor> {
        Ok(match self {
            Clean::Encoded(posterior) => statistics.normalise(&posterior.sample(noise)?)?,
            Clean::Made(latents) => latents.clone(),
        })
    }
}

/// Clean latents that a window is conditioned on.
pub struct Condition {
    /// First pixel frame that they cover, counted in the window.
    pub frame: usize,
    /// At 1 they stay fixed; below 1 they change once sigma has fallen to 1 - strength.
    pub strength: f64,
    pub clean: Clean,
}

/// Latents that a window begins from in place of pure noise.
pub struct Start {
    /// (1, f, h, w, c), normalised, f32.
    pub latents: Tensor,
    /// Sigma of the first step.
    pub sigma: f64,
}

impl Start {
    /// Mixes the latents with noise at `sigma`.
    /// - `noise`: (1, tokens, c), as is the result.
    /// - Source: diffusers `pipelines/ltx/pipeline_ltx_condition.py`, `prepare_latents`, at 58eb52c; LTX-Video has the same.
    pub fn noised(&self, noise: &Tensor) -> Result<Tensor> {
        let clean = self.latents.reshape(noise.shape())?;
        Ok(((noise * self.sigma)? + (clean * (1.0 - self.sigma as f32) as f64)?)?)
    }
}

/// Size, frame rate and sampling settings of a window.
pub struct Layout {
    pub convention: Convention,
    pub geometry: Geometry,
    pub grid: Grid,
    pub fps: f64,
    pub channels: usize,
    pub device: Device,
    /// Scale of the noise that each step adds to tokens of strength 1.
    pub image_noise: f64,
    /// Whether each step draws fresh noise.
    pub stochastic: bool,
}

/// Which text conditions an evaluation of the transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    Positive,
    Negative,
}

/// Draws noise for `tokens` channel by channel, as the reference does: (1, tokens, channels), f32, on the CPU.
pub fn draw(noise: &mut Noise, tokens: usize, channels: usize) -> Result<Tensor> {
    let drawn = Tensor::from_vec(noise.normal(channels * tokens), (1, channels, tokens), &Device::Cpu)?;
    Ok(drawn.transpose(1, 2)?.contiguous()?)
}

/// Draws noise of the shape of `latents`, f32, in memory order, on their device.
pub fn draw_like(latents: &Tensor, noise: &mut Noise) -> Result<Tensor> {
    let drawn = Tensor::from_vec(noise.normal(latents.elem_count()), latents.shape(), &Device::Cpu)?;
    Ok(drawn.to_device(latents.device())?)
}
