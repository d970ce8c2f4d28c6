//! Latents -> pixels, in groups of latent frames. Every layer looks a frame ahead, so it answers late and, at the clip's end,
//! with more frames than it was given: what it gives out is handed down in parts of a group's size before it is asked again,
//! so that no layer ever has more than a group at once.

use super::blocks::{Kind, Resnet, Resnets, TimeConv, Upsampler, pixel_norm};
use crate::models::ltx::config::{UpBlock, VaeConfig};
use crate::nn::spread::{Order, spread};
use crate::nn::stream::{Chunking, FRAMES, Stream};
use crate::nn::table::Table;
use crate::nn::timestep::TimestepEmbedder;
use crate::nn::vars::Vars;
use crate::sampling::noise::Noise;
use candle_core::{DType, Device, Result, Tensor};

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

/// One layer that is fed by itself.
enum Layer<'a> {
    Conv(&'a TimeConv),
    /// With the place of its timestep's embedding.
    Resnet(&'a Resnet, usize),
    Up(&'a Upsampler),
}

/// One clip on its way through the decoder.
pub struct Decoding {
    streams: Vec<Stream>,
    /// (1, 4 c) of each run of residual blocks, where there is a timestep.
    embeddings: Vec<Option<Tensor>>,
    /// Shift and scale of the last norm.
    ada: Option<(Table, Table)>,
    noise: Noise,
    chunking: Chunking,
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

    /// Layers from latents to the last norm, each with the frames that a latent frame has become before it.
    fn layers(&self) -> Vec<(Layer<'_>, usize)> {
        let mut all = vec![(Layer::Conv(&self.conv_in), 1)];
        all.extend(self.mid.each().iter().map(|resnet| (Layer::Resnet(resnet, 0), 1)));
        let mut rate = 1;
        for (i, stage) in self.stages.iter().enumerate() {
            all.extend(stage.conv_in.iter().map(|resnet| (Layer::Resnet(resnet, i + 1), rate)));
            if let Some(upsampler) = &stage.upsampler {
                all.push((Layer::Up(upsampler), rate));
                rate *= 2;
            }
            all.extend(stage.resnets.each().iter().map(|resnet| (Layer::Resnet(resnet, i + 1), rate)));
        }
        all
    }

    /// Begins a clip.
    /// - `timestep`: in 0..=1, read only where the checkpoint's decoder takes one. `noise`: generator for what the decoder
    ///   of 0.9.1 adds between its layers.
    pub fn start(&self, timestep: f32, noise: Noise, chunking: Chunking, device: &Device) -> Result<Decoding> {
        let timestep = self.out.as_ref().map(|out| timestep * out.timestep_scale);
        let runs = std::iter::once(&self.mid).chain(self.stages.iter().map(|stage| &stage.resnets));
        let embeddings = runs.map(|resnets| resnets.embed(timestep, device)).collect::<Result<_>>()?;
        let ada = match (&self.out, timestep) {
            (Some(out), Some(t)) => {
                let rows = out.time_embedder.forward(&[t], device)?.reshape(out.table.shape())?.add(&out.table)?;
                Some((Table::one(&rows.get(0)?)?, Table::one(&(rows.get(1)? + 1.0)?)?)) // shift, scale
            }
            _ => None,
        };
        let streams = vec![Stream::new(); self.layers().len() + 1];
        Ok(Decoding { streams, embeddings, ada, noise, chunking })
    }

    /// Takes the next latent frames in and hands over the frames that they settle; any grouping gives the same frames.
    /// - `latents`: (1, f, h, w, c), denormalised. `last`: the clip ends with them.
    /// - `each`: takes (1, frames, H, W, 3) in about [-1, 1], in their order.
    pub fn push<E: From<candle_core::Error>>(
        &self,
        latents: &Tensor,
        last: bool,
        at: &mut Decoding,
        each: &mut dyn FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let x = latents.to_dtype(self.dtype)?;
        self.feed(&self.layers(), 0, Some(x), last, at, each)
    }

    /// Gives frames to layer `i`, and what it answers, in parts, to the layers after it.
    fn feed<E: From<candle_core::Error>>(
        &self,
        layers: &[(Layer, usize)],
        i: usize,
        mut x: Option<Tensor>,
        last: bool,
        at: &mut Decoding,
        each: &mut dyn FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Some((layer, _)) = layers.get(i) else {
            return self.show(x, last, at)?.map_or(Ok(()), each);
        };
        let Decoding { streams, embeddings, noise, chunking, .. } = at;
        let stream = &mut streams[i];
        stream.next_group(last);
        let y = match layer {
            Layer::Conv(conv) => conv.forward(x.as_ref(), None, None, stream)?,
            Layer::Resnet(resnet, run) => resnet.forward(x.as_ref(), embeddings[*run].as_ref(), noise, stream)?,
            Layer::Up(upsampler) => upsampler.forward(x.take(), stream)?,
        };
        drop(x);
        let rate = match layers.get(i + 1) {
            Some((_, rate)) => *rate,
            None => layers.iter().filter(|(layer, _)| matches!(layer, Layer::Up(_))).fold(1, |rate, _| 2 * rate),
        };
        let most = chunking.frames(rate);
        let Some(y) = y else {
            return if last { self.feed(layers, i + 1, None, true, at, each) } else { Ok(()) };
        };
        let count = y.dim(FRAMES)?;
        if count <= most {
            return self.feed(layers, i + 1, Some(y), last, at, each);
        }
        for first in (0..count).step_by(most) {
            let part = y.narrow(FRAMES, first, most.min(count - first))?;
            self.feed(layers, i + 1, Some(part), last && first + most >= count, at, each)?;
        }
        Ok(())
    }

    /// The last norm and convolution: pixels.
    fn show(&self, x: Option<Tensor>, last: bool, at: &mut Decoding) -> Result<Option<Tensor>> {
        let Some(stream) = at.streams.last_mut() else { return Ok(None) };
        stream.next_group(last);
        let prologue = match &at.ada {
            Some((shift, scale)) => pixel_norm().scale(scale).shift(shift).silu(),
            None => pixel_norm().silu(),
        };
        let x = self.conv_out.forward(x.as_ref(), Some(prologue), None, stream)?;
        x.map(|x| self.unpatch(&x)).transpose()
    }

    /// Runs a clip through and hands over its frames as they are settled.
    /// - `latents`: (1, f, h, w, c). `each`: takes (1, frames, H, W, 3). Returns the generator as it is afterwards.
    pub fn frames<E: From<candle_core::Error>>(
        &self,
        latents: &Tensor,
        chunking: Chunking,
        timestep: f32,
        noise: Noise,
        mut each: impl FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<Noise, E> {
        let mut at = self.start(timestep, noise, chunking, latents.device())?;
        let (frames, group) = (latents.dim(FRAMES)?, chunking.latent_frames.max(1));
        for first in (0..frames).step_by(group) {
            let count = group.min(frames - first);
            let part = latents.narrow(FRAMES, first, count)?;
            self.push(&part, first + count == frames, &mut at, &mut each)?;
        }
        Ok(at.noise)
    }

    /// Patches into pixels: (b, f, h, w, 3 p p) -> (b, f, p h, p w, 3), channel = c p p + j p + i, the column offset j slower.
    fn unpatch(&self, x: &Tensor) -> Result<Tensor> {
        let (b, f, h, w, _) = x.dims5()?;
        let p = self.patch_size;
        if let Some(y) = spread(x, [1, p, p], None, Order::Columns)? {
            return Ok(y);
        }
        x.reshape(vec![b, f, h, w, 3, p, p])? // (b, f, h, w, c, j, i)
            .permute(vec![0, 1, 2, 6, 3, 5, 4])? // (b, f, h, i, w, j, c)
            .reshape((b, f, h * p, w * p, 3))
    }

    /// A whole clip at once: (1, f, h, w, c) -> (1, frames, H, W, 3).
    pub fn decode(&self, latents: &Tensor, timestep: f32, noise: Noise) -> Result<Tensor> {
        let mut all = vec![];
        self.frames(latents, Chunking::WHOLE, timestep, noise, |pixels| {
            all.push(pixels);
            Ok::<_, candle_core::Error>(())
        })?;
        Tensor::cat(&all, FRAMES)
    }
}
