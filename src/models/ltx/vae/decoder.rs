//! Latents -> pixels, in groups of latent frames.

use super::blocks::{Kind, Resnet, Resnets, TimeConv, Upsampler, pixel_norm};
use crate::models::ltx::config::{UpBlock, VaeConfig};
use crate::nn::stream::{FRAMES, Stream};
use crate::nn::table::Table;
use crate::nn::timestep::TimestepEmbedder;
use crate::nn::vars::Vars;
use crate::noise::Noise;
use candle_core::{DType, Result, Tensor};

struct Stage {
    conv_in: Option<Resnet>,
    upsampler: Option<Upsampler>,
    resnets: Resnets,
}

impl Stage {
    fn load(block: &UpBlock, kind: Kind, vb: Vars) -> Result<Self> {
        let conv_in = block.inputs != block.outputs;
        Ok(Self {
            conv_in: if conv_in {
                Some(Resnet::load(block.inputs, block.outputs, kind, vb.pp("conv_in"))?)
            } else {
                None
            },
            upsampler: if block.up {
                let width = block.outputs * block.factor;
                Some(Upsampler::load(width, block.residual, block.factor, kind.causal, vb.pp("upsamplers.0"))?)
            } else {
                None
            },
            resnets: Resnets::load(block.outputs, block.layers, kind, vb)?,
        })
    }
}

/// The last norm's shift and scale.
struct Out {
    time_embedder: TimestepEmbedder,
    table: Tensor, // (2, c)
    timestep_scale: f32,
}

/// The decoder. One pass a clip: [`Decoder::start`], then [`Decoder::push`] with each group of latent frames.
/// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `LTXVideoDecoder3d`, at 58eb52c.
pub struct Decoder {
    conv_in: TimeConv,
    mid: Resnets,
    stages: Vec<Stage>,
    out: Option<Out>,
    conv_out: TimeConv,
    patch_size: usize,
    dtype: DType,
}

/// One clip on its way through the decoder.
pub struct Decoding {
    stream: Stream,
    timestep: f32,
    noise: Noise,
}

impl Decoder {
    /// - `vb` holds `conv_in`, `mid_block`, `up_blocks.{i}`, `conv_out` and, with a timestep, the last embedder.
    pub fn load(config: &VaeConfig, vb: Vars) -> Result<Self> {
        let kind = |noise| Kind {
            causal: config.decoder_causal,
            timestep: config.timestep_conditioning,
            noise,
            eps: config.norm_eps,
        };
        let mut stages = vec![];
        for (i, block) in config.decoder.iter().enumerate() {
            stages.push(Stage::load(block, kind(block.noise), vb.pp(format!("up_blocks.{i}")))?);
        }
        let width = config.decoder.last().map_or(config.decoder_width, |b| b.outputs);
        let out = if config.timestep_conditioning {
            Some(Out {
                time_embedder: TimestepEmbedder::load(2 * width, vb.pp("time_embedder"))?,
                table: vb.get((2, width), "scale_shift_table")?.to_dtype(vb.dtype())?,
                timestep_scale: vb.get((), "timestep_scale_multiplier")?.to_dtype(DType::F32)?.to_scalar()?,
            })
        } else {
            None
        };
        let pixels = 3 * config.patch_size * config.patch_size;
        Ok(Self {
            conv_in: TimeConv::load(
                config.latent_channels,
                config.decoder_width,
                config.decoder_causal,
                vb.pp("conv_in"),
            )?,
            mid: Resnets::load(
                config.decoder_width,
                config.decoder_mid,
                kind(config.decoder_mid_noise),
                vb.pp("mid_block"),
            )?,
            stages,
            out,
            conv_out: TimeConv::load(width, pixels, config.decoder_causal, vb.pp("conv_out"))?,
            patch_size: config.patch_size,
            dtype: vb.dtype(),
        })
    }

    /// Begins a clip.
    /// - `timestep`: in 0..=1, read only where the checkpoint's decoder takes one. `noise`: generator for what the decoder
    ///   of 0.9.1 adds between its layers.
    pub fn start(&self, timestep: f32, noise: Noise) -> Decoding {
        Decoding { stream: Stream::new(), timestep, noise }
    }

    /// Takes the next latent frames in and gives out the frames that they settle; any grouping gives the same frames.
    /// - `latents`: (1, f, h, w, c), denormalised. `last`: the clip ends with them.
    /// - Returns (1, frames, H, W, 3) in about [-1, 1]; `None` when no frame is settled yet.
    pub fn push(&self, latents: &Tensor, last: bool, at: &mut Decoding) -> Result<Option<Tensor>> {
        let Decoding { stream, timestep, noise } = at;
        stream.next_group(last);
        let device = latents.device();
        let timestep = self.out.as_ref().map(|out| *timestep * out.timestep_scale);
        let x = self.conv_in.forward(Some(&latents.to_dtype(self.dtype)?), None, None, stream)?;
        let mut x = self.mid.forward(x, self.mid.embed(timestep, device)?.as_ref(), noise, stream)?;
        for stage in &self.stages {
            let temb = stage.resnets.embed(timestep, device)?;
            if let Some(conv_in) = &stage.conv_in {
                x = conv_in.forward(x.as_ref(), temb.as_ref(), noise, stream)?;
            }
            if let Some(upsampler) = &stage.upsampler {
                x = upsampler.forward(x, stream)?;
            }
            x = stage.resnets.forward(x, temb.as_ref(), noise, stream)?;
        }
        let ada = match (&self.out, timestep) {
            (Some(out), Some(t)) => {
                let rows = out.time_embedder.forward(&[t], device)?.reshape(out.table.shape())?.add(&out.table)?;
                Some((Table::one(&rows.get(0)?)?, Table::one(&(rows.get(1)? + 1.0)?)?)) // shift, scale
            }
            _ => None,
        };
        let bent = match &ada {
            Some((shift, scale)) => pixel_norm().scale(scale).shift(shift).silu(),
            None => pixel_norm().silu(),
        };
        let x = self.conv_out.forward(x.as_ref(), Some(bent), None, stream)?;
        x.map(|x| self.unpatch(&x)).transpose()
    }

    /// Patches into pixels: (b, f, h, w, 3 p p) -> (b, f, p h, p w, 3), channel = c p p + j p + i, the column offset j slower.
    fn unpatch(&self, x: &Tensor) -> Result<Tensor> {
        let (b, f, h, w, _) = x.dims5()?;
        let p = self.patch_size;
        x.reshape(vec![b, f, h, w, 3, p, p])? // (b, f, h, w, c, j, i)
            .permute(vec![0, 1, 2, 6, 3, 5, 4])? // (b, f, h, i, w, j, c)
            .reshape((b, f, h * p, w * p, 3))
    }

    /// A whole clip at once: (1, f, h, w, c) -> (1, frames, H, W, 3).
    pub fn decode(&self, latents: &Tensor, timestep: f32, noise: Noise) -> Result<Tensor> {
        let mut at = self.start(timestep, noise);
        match self.push(latents, true, &mut at)? {
            Some(frames) => Ok(frames),
            None => candle_core::bail!("{} latent frames give no picture", latents.dim(FRAMES)?),
        }
    }
}
