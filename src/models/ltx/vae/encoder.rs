//! Pixels -> latents, in groups of frames.

use super::blocks::{Downsampler, Kind, Resnet, Resnets, TimeConv, pixel_norm};
use crate::models::latents::Posterior;
use crate::models::ltx::config::{Down, DownBlock, VaeConfig};
use crate::nn::spread::{Order, gather};
use crate::nn::stream::{FRAMES, Stream};
use crate::nn::vars::Vars;
use crate::platform::cancel::Cancelled;
use crate::sampling::noise::Noise;
use candle_core::{DType, Result, Tensor};

/// Bounds of the logarithm of the variance.
/// - Source: diffusers `models/autoencoders/vae.py`, `DiagonalGaussianDistribution`, at 58eb52c.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

struct Stage {
    resnets: Resnets,
    downsampler: Option<Downsampler>,
    conv_out: Option<Resnet>,
}

impl Stage {
    fn load(block: &DownBlock, kind: Kind, vb: Vars) -> Result<Self> {
        let conv_out = !matches!(block.down, Down::Fold(_)) && block.inputs != block.outputs;
        Ok(Self {
            downsampler: Downsampler::load(
                block.inputs,
                block.outputs,
                block.down,
                kind.causal,
                vb.pp("downsamplers.0"),
            )?,
            conv_out: if conv_out {
                Some(Resnet::load(block.inputs, block.outputs, kind, vb.pp("conv_out"))?)
            } else {
                None
            },
            resnets: Resnets::load(block.inputs, block.layers, kind, vb)?,
        })
    }
}

/// The encoder.
/// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `LTXVideoEncoder3d`, at 58eb52c.
pub struct Encoder {
    conv_in: TimeConv,
    stages: Vec<Stage>,
    mid: Resnets,
    conv_out: TimeConv,
    patch_size: usize,
    channels: usize,
    /// Frames a latent frame, after the first.
    time: usize,
    dtype: DType,
}

impl Encoder {
    /// - `vb` holds `conv_in`, `down_blocks.{i}`, `mid_block` and `conv_out`.
    pub fn load(config: &VaeConfig, vb: Vars) -> Result<Self> {
        let causal = config.encoder_causal;
        let kind = Kind { causal, timestep: false, noise: false, eps: config.norm_eps };
        let blocks = config.encoder.iter().enumerate();
        let stages = blocks.map(|(i, block)| Stage::load(block, kind, vb.pp(format!("down_blocks.{i}"))));
        let (first, last) = match config.encoder.as_slice() {
            [first, .., last] => (first.inputs, last.outputs),
            [only] => (only.inputs, only.outputs),
            [] => candle_core::bail!("an encoder without blocks"),
        };
        let pixels = 3 * config.patch_size * config.patch_size;
        Ok(Self {
            conv_in: TimeConv::load(pixels, first, causal, vb.pp("conv_in"))?,
            stages: stages.collect::<Result<_>>()?,
            mid: Resnets::load(last, config.encoder_mid, kind, vb.pp("mid_block"))?,
            // means, and one log-variance for all of them
            conv_out: TimeConv::load(last, config.latent_channels + 1, causal, vb.pp("conv_out"))?,
            patch_size: config.patch_size,
            channels: config.latent_channels,
            time: config.strides()[0],
            dtype: vb.dtype(),
        })
    }

    /// A clip of 1 + k `time` frames.
    /// - `pixels`: (1, frames, H, W, 3) in [-1, 1]. `group`: latent frames to encode at a time; any number gives the same.
    ///   `after`: called with the number of frames done after each group.
    pub fn encode(&self, pixels: &Tensor, group: usize, mut after: impl FnMut(usize)) -> Result<Posterior> {
        let read = |first, count| pixels.narrow(FRAMES, first, count);
        let after = |done| {
            after(done);
            Ok(())
        };
        self.posterior(&self.moments(pixels.dim(FRAMES)?, group, read, after)?)
    }

    /// Means and log-variances, as they come: (1, f, h, w, c + 1).
    /// - `read`: (first frame, how many) -> (1, frames, H, W, 3) in [-1, 1]. `after`: called with the number of frames done after each
    ///   group; an error of it ends the work.
    pub fn moments(
        &self,
        frames: usize,
        group: usize,
        mut read: impl FnMut(usize, usize) -> Result<Tensor>,
        mut after: impl FnMut(usize) -> std::result::Result<(), Cancelled>,
    ) -> Result<Tensor> {
        let mut stream = Stream::new();
        let (mut first, mut parts) = (0, vec![]);
        while first < frames {
            let count = if first == 0 { 1 + (group - 1) * self.time } else { group * self.time };
            let count = count.min(frames - first);
            stream.next_group(first + count == frames);
            parts.extend(self.push(&read(first, count)?, &mut stream)?);
            first += count;
            after(count)?;
        }
        Tensor::cat(&parts, FRAMES)
    }

    /// Channels of [`Encoder::moments`].
    pub fn moment_channels(&self) -> usize {
        self.channels + 1
    }

    /// - `moments`: of [`Encoder::moments`].
    pub fn posterior(&self, moments: &Tensor) -> Result<Posterior> {
        let (low, high) = LOG_VARIANCE;
        Ok(Posterior {
            mean: moments.narrow(4, 0, self.channels)?.contiguous()?,
            log_variance: moments.narrow(4, self.channels, 1)?.clamp(low, high)?,
        })
    }

    fn push(&self, pixels: &Tensor, stream: &mut Stream) -> Result<Option<Tensor>> {
        let mut idle = Noise::new(0); // no layer of the encoder draws
        let x = self.patch(&pixels.to_dtype(self.dtype)?)?;
        let mut x = self.conv_in.forward(Some(&x), None, None, stream)?;
        for stage in &self.stages {
            x = stage.resnets.forward(x, None, &mut idle, stream)?;
            if let Some(downsampler) = &stage.downsampler {
                x = downsampler.forward(x.as_ref(), stream)?;
            }
            if let Some(conv_out) = &stage.conv_out {
                x = conv_out.forward(x.as_ref(), None, &mut idle, stream)?;
            }
        }
        let x = self.mid.forward(x, None, &mut idle, stream)?;
        self.conv_out.forward(x.as_ref(), Some(pixel_norm().silu()), None, stream)
    }

    /// Pixels into patches: (b, f, p h, p w, 3) -> (b, f, h, w, 3 p p), channel = c p p + j p + i, the column offset j slower.
    fn patch(&self, x: &Tensor) -> Result<Tensor> {
        let (b, f, h, w, c) = x.dims5()?;
        let p = self.patch_size;
        if let Some(y) = gather(x, [1, p, p], 1, Order::Columns)? {
            return Ok(y);
        }
        x.reshape(vec![b, f, h / p, p, w / p, p, c])? // (b, f, h, i, w, j, c)
            .permute(vec![0, 1, 2, 4, 6, 5, 3])? // (b, f, h, w, c, j, i)
            .reshape((b, f, h / p, w / p, c * p * p))
    }
}
