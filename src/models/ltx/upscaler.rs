//! The network between two passes: latents -> latents of twice the size. Unusual about it:
//! - it reads and makes denormalised latents, those that the VAE speaks;
//! - it pads with zeros in time too, and looks both ways: unlike the VAE it is not causal;
//! - its norms span the whole clip, so it cannot be run over groups of frames;
//! - the enlarging convolution looks at each frame by itself, unless time is enlarged too.

use crate::models::ltx::releases::RELEASES;
use crate::nn::activation::silu;
use crate::nn::conv3d::{Conv3d, Fusion};
use crate::nn::group_norm::GroupNorm;
use crate::nn::stream::FRAMES;
use crate::nn::vars::Vars;
use crate::weights::config::{Keys, with_fix};
use candle_core::{DType, Result, Tensor};
use serde_json::{Value, json};

/// Fixed in the source.
const GROUPS: usize = 32;
const NORM_EPS: f64 = 1e-5;

/// Beyond these no upscaler goes.
const MOST_CHANNELS: usize = 16_384;
const MOST_BLOCKS: usize = 256;

/// Sizes of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct UpscalerConfig {
    pub channels: usize,
    pub width: usize,
    /// Residual blocks before and after the enlarging.
    pub blocks: usize,
    /// Whether it looks at neighbouring frames.
    pub across_time: bool,
    pub enlarges_space: bool,
    pub enlarges_time: bool,
}

impl UpscalerConfig {
    /// - Defaults: diffusers `pipelines/ltx/modeling_latent_upsampler.py`, `LTXLatentUpsamplerModel`, at 58eb52c.
    pub fn parse(json: &Value, what: &str) -> anyhow::Result<Self> {
        Self::read(json, what).map_err(|error| with_fix(error, RELEASES))
    }

    /// That of the releases, whose sizes are the defaults.
    pub fn released() -> anyhow::Result<Self> {
        Self::parse(&serde_json::json!({}), "the released upscaler")
    }

    fn read(json: &Value, what: &str) -> anyhow::Result<Self> {
        let mut keys = Keys::new(json, what)?;
        keys.only("_class_name", &[json!("LatentUpsampler"), json!("LTXLatentUpsamplerModel")])?;
        keys.ignore(&["_diffusers_version", "_name_or_path"]);
        keys.only("dims", &[json!(2), json!(3)])?;
        let config = Self {
            channels: keys.size("in_channels", 128, MOST_CHANNELS)?,
            width: keys.size("mid_channels", 512, MOST_CHANNELS)?,
            blocks: keys.size("num_blocks_per_stage", 4, MOST_BLOCKS)?,
            across_time: json["dims"] != json!(2),
            enlarges_space: keys.or("spatial_upsample", true)?,
            enlarges_time: keys.or("temporal_upsample", false)?,
        };
        keys.finish(RELEASES)?;
        anyhow::ensure!(
            config.width.is_multiple_of(GROUPS),
            "{what}: `mid_channels` is {}, and has to be a multiple of {GROUPS}",
            config.width
        );
        anyhow::ensure!(
            config.enlarges_space || config.enlarges_time,
            "{what}: `spatial_upsample` and `temporal_upsample` are false, and one of them has to be true"
        );
        anyhow::ensure!(
            config.across_time || !config.enlarges_time,
            "{what}: `temporal_upsample` is true and `dims` 2, and has to be 3 with it"
        );
        Ok(config)
    }

    /// What the tensors' shapes say, of a file that says nothing itself.
    /// - `shape`: shape of a tensor by its name.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>, what: &str) -> anyhow::Result<Self> {
        let (Some(first), Some(large)) = (shape("initial_conv.weight"), shape("upsampler.0.weight")) else {
            anyhow::bail!("{what} is no latent upscaler: it lacks `initial_conv.weight` or `upsampler.0.weight`")
        };
        anyhow::ensure!(first.len() >= 2 && !large.is_empty(), "{what}: `initial_conv.weight` has shape {first:?}");
        let blocks = (0..).take_while(|i| shape(&format!("res_blocks.{i}.conv1.weight")).is_some()).count();
        let factor = large[0] / first[0].max(1);
        let json = json!({
            "in_channels": first[1], "mid_channels": first[0], "num_blocks_per_stage": blocks,
            "dims": first.len() - 2, "spatial_upsample": factor >= 4, "temporal_upsample": factor == 2 || factor == 8,
        });
        Self::parse(&json, what)
    }

    /// Factors in time, height and width.
    pub fn factors(&self) -> [usize; 3] {
        let [time, space] = [self.enlarges_time, self.enlarges_space].map(|it| if it { 2 } else { 1 });
        [time, space, space]
    }
}

/// A convolution with zeros around it.
struct Conv(Conv3d);

impl Conv {
    /// - `vb` holds `weight`, (out, in, 3, 3, 3) or, with `frames` 1, (out, in, 3, 3), and `bias`.
    fn load(inputs: usize, outputs: usize, frames: usize, vb: Vars) -> Result<Self> {
        let weight = match frames {
            1 => vb.get((outputs, inputs, 3, 3), "weight")?.unsqueeze(2)?,
            _ => vb.get((outputs, inputs, 3, 3, 3), "weight")?,
        };
        Ok(Self(Conv3d::new(&weight, vb.get(outputs, "bias")?, [1; 3])?))
    }

    /// - `x`: (b, f, h, w, in) -> (b, f, h, w, out).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let nothing = vec![x.narrow(FRAMES, 0, 1)?.zeros_like()?; self.0.frames() / 2];
        self.0.forward(&[nothing.as_slice(), std::slice::from_ref(x), &nothing].concat(), Fusion::default())
    }
}

struct ResBlock {
    conv1: Conv,
    norm1: GroupNorm,
    conv2: Conv,
    norm2: GroupNorm,
}

impl ResBlock {
    fn load(width: usize, frames: usize, vb: Vars) -> Result<Self> {
        Ok(Self {
            conv1: Conv::load(width, width, frames, vb.pp("conv1"))?,
            norm1: GroupNorm::load(width, GROUPS, NORM_EPS, vb.pp("norm1"))?,
            conv2: Conv::load(width, width, frames, vb.pp("conv2"))?,
            norm2: GroupNorm::load(width, GROUPS, NORM_EPS, vb.pp("norm2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = silu(&self.norm1.forward(&self.conv1.forward(x)?)?)?;
        silu(&(self.norm2.forward(&self.conv2.forward(&h)?)? + x)?)
    }
}

/// The upscaler.
/// - Source: LTX-Video `models/autoencoders/latent_upsampler.py`, `LatentUpsampler`, at 5260738; diffusers
///   `pipelines/ltx/modeling_latent_upsampler.py`, `LTXLatentUpsamplerModel`, at 58eb52c, has the same names.
pub struct Upscaler {
    config: UpscalerConfig,
    initial_conv: Conv,
    initial_norm: GroupNorm,
    before: Vec<ResBlock>,
    enlarge: Conv,
    after: Vec<ResBlock>,
    final_conv: Conv,
    dtype: DType,
}

impl Upscaler {
    pub fn load(config: &UpscalerConfig, vb: Vars) -> Result<Self> {
        let width = config.width;
        let frames = if config.across_time { 3 } else { 1 };
        let blocks = |name: &str| -> Result<Vec<ResBlock>> {
            (0..config.blocks).map(|i| ResBlock::load(width, frames, vb.pp(format!("{name}.{i}")))).collect()
        };
        let large = width * config.factors().iter().product::<usize>();
        Ok(Self {
            initial_conv: Conv::load(config.channels, width, frames, vb.pp("initial_conv"))?,
            initial_norm: GroupNorm::load(width, GROUPS, NORM_EPS, vb.pp("initial_norm"))?,
            before: blocks("res_blocks")?,
            enlarge: Conv::load(width, large, if config.enlarges_time { 3 } else { 1 }, vb.pp("upsampler.0"))?,
            after: blocks("post_upsample_res_blocks")?,
            final_conv: Conv::load(width, config.channels, frames, vb.pp("final_conv"))?,
            dtype: vb.dtype(),
            config: config.clone(),
        })
    }

    /// - `latents`: (b, f, h, w, c), denormalised -> (b, f', h', w', c): sides twice as long where space is enlarged, and
    ///   2 f - 1 frames where time is.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let (b, f, h, w, c) = latents.dims5()?;
        let mut x = latents.to_dtype(self.dtype)?;
        if !self.config.across_time {
            x = x.reshape((b * f, 1, h, w, c))?; // norms too are a frame's own then
        }
        x = silu(&self.initial_norm.forward(&self.initial_conv.forward(&x)?)?)?;
        for block in &self.before {
            x = block.forward(&x)?;
        }
        x = shuffle(&self.enlarge.forward(&x)?, self.config.factors())?;
        if self.config.enlarges_time {
            x = x.narrow(FRAMES, 1, x.dim(FRAMES)? - 1)?.contiguous()?; // the first latent frame stands for one frame
        }
        for block in &self.after {
            x = block.forward(&x)?;
        }
        let x = self.final_conv.forward(&x)?;
        let (_, _, h, w, c) = x.dims5()?;
        x.reshape((b, (), h, w, c))
    }
}

/// Channels into time and space: (b, f, h, w, c t s s) -> (b, t f, s h, s w, c), channel = ((c t + i) s + j) s + k.
fn shuffle(x: &Tensor, [t, s, _]: [usize; 3]) -> Result<Tensor> {
    let (b, f, h, w, c) = x.dims5()?;
    let c = c / (t * s * s);
    x.reshape(vec![b, f, h, w, c, t, s, s])? // (b, f, h, w, c, i, j, k)
        .permute(vec![0, 1, 5, 2, 6, 3, 7, 4])? // (b, f, i, h, j, w, k, c)
        .reshape((b, t * f, s * h, s * w, c))
}
