//! Sizes of the video autoencoder, by diffusers' keys or by Lightricks' lists of blocks.

use super::{LABELS, MOST_CHANNELS, MOST_LAYERS, MOST_PATCH};
use crate::models::ltx::releases::RELEASES;
use crate::weights::config::{Keys, brief, with_fix};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Beyond this no checkpoint goes: stages of an encoder or a decoder, and their multipliers.
const MOST_BLOCKS: usize = 16;

/// How one stage of the encoder shrinks its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Down {
    No,
    /// A strided convolution (0.9.0, 0.9.1), by these factors in time, height and width.
    Conv([usize; 3]),
    /// Space to depth beside a convolution (0.9.5 on).
    Fold([usize; 3]),
}

impl Down {
    /// Factors in time, height and width.
    pub fn stride(self) -> [usize; 3] {
        match self {
            Down::No => [1; 3],
            Down::Conv(stride) | Down::Fold(stride) => stride,
        }
    }
}

/// One stage of the encoder: residual blocks at `inputs` channels, then the way down to `outputs`.
#[derive(Clone, Debug, PartialEq)]
pub struct DownBlock {
    pub inputs: usize,
    pub outputs: usize,
    pub layers: usize,
    pub down: Down,
}

/// One stage of the decoder: `inputs` to `outputs` channels, perhaps twice the size, then residual blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct UpBlock {
    pub inputs: usize,
    pub outputs: usize,
    pub layers: usize,
    pub up: bool,
    /// Whether the upsampler adds its unfolded input to its answer.
    pub residual: bool,
    /// By how much the upsampler lowers the number of channels.
    pub factor: usize,
    pub noise: bool,
}

/// Sizes of the video autoencoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    pub latent_channels: usize,
    pub patch_size: usize,
    pub norm_eps: f64,
    pub scaling_factor: f64,
    pub timestep_conditioning: bool,
    pub encoder_causal: bool,
    pub decoder_causal: bool,
    pub encoder: Vec<DownBlock>,
    pub encoder_mid: usize,
    pub decoder_width: usize,
    pub decoder_mid: usize,
    pub decoder_mid_noise: bool,
    pub decoder: Vec<UpBlock>,
}

/// The three architectures, by the first version that had them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaeVersion {
    V090,
    V091,
    V095,
}

impl VaeVersion {
    pub fn name(self) -> &'static str {
        match self {
            VaeVersion::V090 => "0.9.0",
            VaeVersion::V091 => "0.9.1",
            VaeVersion::V095 => "0.9.5",
        }
    }
}

impl VaeConfig {
    /// Reads diffusers' or Lightricks' form, told apart by `_class_name`.
    pub fn parse(json: &Value, what: &str) -> Result<Self> {
        Self::read(json, what).map_err(|error| with_fix(error, RELEASES))
    }

    fn read(json: &Value, what: &str) -> Result<Self> {
        let config = match json["_class_name"].as_str() {
            Some("AutoencoderKLLTXVideo") => Self::parse_diffusers(json, what)?,
            Some("CausalVideoAutoencoder") => Self::parse_official(json, what)?,
            other => bail!(
                "{what}: `_class_name` is `{}`, and reel knows `AutoencoderKLLTXVideo` and `CausalVideoAutoencoder`",
                brief(other.unwrap_or("missing"))
            ),
        };
        let [lists, widths] = match json["_class_name"].as_str() {
            Some("CausalVideoAutoencoder") => [
                ["`encoder_blocks` (or `blocks`)", "`decoder_blocks` (or `blocks`)"],
                ["`encoder_base_channels` with its blocks", "`decoder_base_channels` with its blocks"],
            ],
            _ => [["`block_out_channels`", "`decoder_block_out_channels`"]; 2],
        };
        for (key, blocks) in lists.into_iter().zip([config.encoder.len(), config.decoder.len()]) {
            ensure!(
                (1..=MOST_BLOCKS).contains(&blocks),
                "{what}: {key} make {blocks} blocks, and reel takes 1 to {MOST_BLOCKS}"
            );
        }
        let widest = [
            config.encoder.iter().map(|b| b.inputs.max(b.outputs)).max().unwrap_or(0),
            config.decoder.iter().map(|b| b.inputs.max(b.outputs)).fold(config.decoder_width, usize::max),
        ];
        for (key, widest) in widths.into_iter().zip(widest) {
            ensure!(
                widest <= MOST_CHANNELS,
                "{what}: {key} make {widest} channels, and reel takes at most {MOST_CHANNELS}"
            );
        }
        let [t, h, w] = config.strides();
        let ups = config.decoder.iter().filter(|b| b.up).count() as u32;
        let (time, space) = (2usize.pow(ups), config.patch_size * 2usize.pow(ups));
        ensure!(
            [t, h, w] == [time, space, space],
            "{what}: the encoder shrinks by {t}x{h}x{w} (`patch_size` and its blocks), and has to shrink as the decoder grows, by {time}x{space}x{space}"
        );
        Ok(config)
    }

    /// Pixels a latent stands for: frames, rows, columns.
    pub fn strides(&self) -> [usize; 3] {
        let start = [1, self.patch_size, self.patch_size];
        self.encoder.iter().map(|b| b.down.stride()).fold(start, |a, s| [a[0] * s[0], a[1] * s[1], a[2] * s[2]])
    }

    /// Which of the three architectures this is.
    pub fn version(&self) -> VaeVersion {
        if self.encoder.iter().any(|b| matches!(b.down, Down::Fold(_))) {
            VaeVersion::V095
        } else if self.timestep_conditioning {
            VaeVersion::V091
        } else {
            VaeVersion::V090
        }
    }

    /// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `AutoencoderKLLTXVideo.__init__` (defaults),
    ///   `LTXVideoEncoder3d`, `LTXVideoDecoder3d`, at 58eb52c.
    fn parse_diffusers(json: &Value, what: &str) -> Result<Self> {
        let mut keys = Keys::new(json, what)?;
        keys.ignore(&LABELS);
        keys.ignore(&["latents_mean", "latents_std", "spatial_compression_ratio", "temporal_compression_ratio"]);
        keys.only("in_channels", &[json!(3)])?;
        keys.only("out_channels", &[json!(3)])?;
        keys.only("patch_size_t", &[json!(1)])?;
        let widths = keys.sizes("block_out_channels", &[128, 256, 512, 512], 1, MOST_CHANNELS)?;
        let kinds: Vec<String> = keys.or("down_block_types", vec!["LTXVideoDownBlock3D".to_string(); 4])?;
        let layers = keys.sizes("layers_per_block", &[4, 3, 3, 3, 4], 0, MOST_LAYERS)?;
        let scaling: Vec<bool> = keys.or("spatio_temporal_scaling", vec![true, true, true, false])?;
        let downs: Vec<String> = keys.or("downsample_type", vec!["conv".to_string(); 4])?;
        let up_widths = keys.sizes("decoder_block_out_channels", &[128, 256, 512, 512], 1, MOST_CHANNELS)?;
        let up_layers = keys.sizes("decoder_layers_per_block", &[4, 3, 3, 3, 4], 0, MOST_LAYERS)?;
        let up_scaling: Vec<bool> = keys.or("decoder_spatio_temporal_scaling", vec![true, true, true, false])?;
        let noise: Vec<bool> = keys.or("decoder_inject_noise", vec![false; 5])?;
        let residual: Vec<bool> = keys.or("upsample_residual", vec![false; 4])?;
        let factor = keys.sizes("upsample_factor", &[1; 4], 1, MOST_CHANNELS)?;

        let folded = match kinds.last().map(String::as_str) {
            Some("LTXVideoDownBlock3D") => false,
            Some("LTXVideo095DownBlock3D") => true,
            other => bail!(
                "{what}: `down_block_types` ends in `{}`, and reel knows `LTXVideoDownBlock3D` and `LTXVideo095DownBlock3D`",
                brief(other.unwrap_or("nothing"))
            ),
        };
        ensure!(
            kinds.iter().all(|k| Some(k) == kinds.last()),
            "{what}: `down_block_types` mixes two kinds, and has to be all of one"
        );
        let stages = widths.len().saturating_sub(folded as usize);
        ensure!(
            !layers.is_empty(),
            "{what}: `layers_per_block` is empty, and has to have an entry a block and one more"
        );
        let long_enough = |n: usize, key: &str| {
            if n < stages {
                bail!("{what}: `{key}` has {n} entries for blocks, and has to have {stages}, by `block_out_channels`")
            }
            Ok(())
        };
        long_enough(layers.len().saturating_sub(1), "layers_per_block")?;
        long_enough(scaling.len(), "spatio_temporal_scaling")?;
        long_enough(kinds.len(), "down_block_types")?;
        if folded {
            long_enough(downs.len(), "downsample_type")?;
        }
        let mut encoder = vec![];
        for i in 0..stages {
            let outputs = if folded || i + 1 < stages { widths[i + 1] } else { widths[i] };
            let down = match (scaling[i], folded.then(|| downs[i].as_str())) {
                (false, _) => Down::No,
                (true, None | Some("conv")) => Down::Conv([2, 2, 2]),
                (true, Some("spatial")) => Down::Fold([1, 2, 2]),
                (true, Some("temporal")) => Down::Fold([2, 1, 1]),
                (true, Some("spatiotemporal")) => Down::Fold([2, 2, 2]),
                (true, Some(other)) => bail!(
                    "{what}: `downsample_type` has `{}`, and reel knows `conv`, `spatial`, `temporal` and `spatiotemporal`",
                    brief(other)
                ),
            };
            encoder.push(DownBlock { inputs: widths[i], outputs, layers: layers[i], down });
        }

        let stages = up_widths.len();
        ensure!(stages > 0, "{what}: `decoder_block_out_channels` is empty, and has to have an entry a block");
        let lists = [
            ("decoder_layers_per_block", up_layers.len(), stages + 1),
            ("decoder_spatio_temporal_scaling", up_scaling.len(), stages),
            ("decoder_inject_noise", noise.len(), stages + 1),
            ("upsample_residual", residual.len(), stages),
            ("upsample_factor", factor.len(), stages),
        ];
        for (key, entries, right) in lists {
            ensure!(
                entries == right,
                "{what}: `{key}` has {entries} entries, and has to have {right}: `decoder_block_out_channels` has {stages}"
            );
        }
        let decoder_width = up_widths[stages - 1];
        let mut width = decoder_width;
        let mut decoder = vec![];
        for i in (0..stages).rev() {
            ensure!(
                width.is_multiple_of(factor[i]),
                "{what}: `upsample_factor` has {}, and has to divide {width} channels",
                factor[i]
            );
            let inputs = width / factor[i];
            width = up_widths[i] / factor[i];
            decoder.push(UpBlock {
                inputs,
                outputs: width,
                layers: up_layers[i],
                up: up_scaling[i],
                residual: residual[i],
                factor: factor[i],
                noise: noise[i],
            });
        }
        let config = Self {
            latent_channels: keys.size("latent_channels", 128, MOST_CHANNELS)?,
            patch_size: keys.size("patch_size", 4, MOST_PATCH)?,
            norm_eps: keys.positive("resnet_norm_eps", 1e-6)?,
            scaling_factor: keys.positive("scaling_factor", 1.0)?,
            timestep_conditioning: keys.or("timestep_conditioning", false)?,
            encoder_causal: keys.or("encoder_causal", true)?,
            decoder_causal: keys.or("decoder_causal", false)?,
            encoder,
            encoder_mid: layers[layers.len() - 1],
            decoder_width,
            decoder_mid: up_layers[stages],
            decoder_mid_noise: noise[stages],
            decoder,
        };
        keys.finish(RELEASES)?;
        Ok(config)
    }

    /// - Source: LTX-Video `models/autoencoders/causal_video_autoencoder.py`, `from_config`, `Encoder`, `Decoder`, at 5260738.
    fn parse_official(json: &Value, what: &str) -> Result<Self> {
        let mut keys = Keys::new(json, what)?;
        keys.ignore(&LABELS);
        keys.ignore(&["double_z"]);
        keys.only("dims", &[json!(3)])?;
        keys.only("in_channels", &[json!(3)])?;
        keys.only("out_channels", &[json!(3)])?;
        keys.only("norm_layer", &[json!("pixel_norm")])?;
        keys.only("latent_log_var", &[json!("uniform")])?;
        keys.only("use_quant_conv", &[json!(false)])?;
        keys.only("normalize_latent_channels", &[json!(false)])?;
        keys.only("spatial_padding_mode", &[json!("zeros")])?;
        let shared: Option<Vec<(String, Value)>> = keys.get("blocks")?;
        let down: Option<Vec<(String, Value)>> = keys.get("encoder_blocks")?;
        let up: Option<Vec<(String, Value)>> = keys.get("decoder_blocks")?;
        let missing = || format!("{what}: neither `blocks` nor `encoder_blocks` and `decoder_blocks`");
        let down = blocks(&down.or(shared.clone()).with_context(missing)?, what)?;
        let mut up = blocks(&up.or(shared).with_context(missing)?, what)?;
        up.reverse(); // listed in the encoder's order

        let mut width = keys.size("encoder_base_channels", 128, MOST_CHANNELS)?;
        let (mut encoder, mut encoder_mid) = (vec![], 0);
        let mut i = 0;
        while i < down.len() {
            let layers = down[i].layers(what)?;
            i += 1;
            if i == down.len() {
                encoder_mid = layers;
                break;
            }
            let mut block = DownBlock { inputs: width, outputs: width, layers, down: Down::No };
            if let Some(next) = down.get(i)
                && let Some((stride, folded)) = next.compression()
            {
                block.down = if folded { Down::Fold(stride) } else { Down::Conv(stride) };
                let by = if folded { next.multiplier.unwrap_or(2) } else { 1 };
                block.outputs = block.outputs.saturating_mul(by);
                i += 1;
            }
            if let Some(next) = down.get(i)
                && next.kind == "res_x_y"
            {
                block.outputs = block.outputs.saturating_mul(next.multiplier.unwrap_or(2));
                i += 1;
            }
            width = block.outputs;
            encoder.push(block);
        }

        let base = keys.size("decoder_base_channels", 128, MOST_CHANNELS)?;
        let decoder_width = up.iter().map(Block::shrinkage).fold(base, usize::saturating_mul);
        let first = up.first().with_context(|| format!("{what}: `decoder_blocks` is empty"))?;
        let (decoder_mid, decoder_mid_noise) = (first.layers(what)?, first.noise);
        let mut width = decoder_width;
        let mut decoder = vec![];
        let mut i = 1;
        while i < up.len() {
            let mut block = UpBlock {
                inputs: width,
                outputs: width,
                layers: 0,
                up: false,
                residual: false,
                factor: 1,
                noise: false,
            };
            if up[i].kind == "res_x_y" {
                block.outputs = width / up[i].shrinkage();
                i += 1;
            }
            if let Some(next) = up.get(i)
                && let Some((stride, _)) = next.compression()
            {
                ensure!(
                    stride == [2, 2, 2],
                    "{what}: the decoder block `{}` is not one that reel knows (`compress_all`)",
                    next.kind
                );
                (block.up, block.residual, block.factor) = (true, next.residual, next.shrinkage());
                block.inputs /= block.factor;
                block.outputs /= block.factor;
                i += 1;
            }
            let res = up
                .get(i)
                .with_context(|| format!("{what}: `decoder_blocks` has no `res_x` after the last upsampler"))?;
            (block.layers, block.noise) = (res.layers(what)?, res.noise);
            i += 1;
            width = block.outputs;
            decoder.push(block);
        }
        let config = Self {
            latent_channels: keys.size("latent_channels", 128, MOST_CHANNELS)?,
            patch_size: keys.size("patch_size", 4, MOST_PATCH)?,
            norm_eps: 1e-6, // fixed in the source
            scaling_factor: keys.positive("scaling_factor", 1.0)?,
            timestep_conditioning: keys.or("timestep_conditioning", false)?,
            encoder_causal: true, // fixed in the source
            decoder_causal: keys.or("causal_decoder", false)?,
            encoder,
            encoder_mid,
            decoder_width,
            decoder_mid,
            decoder_mid_noise,
            decoder,
        };
        keys.finish(RELEASES)?;
        Ok(config)
    }
}

/// One entry of Lightricks' block lists.
struct Block {
    kind: String,
    layers: Option<usize>,
    multiplier: Option<usize>,
    residual: bool,
    noise: bool,
}

fn blocks(list: &[(String, Value)], what: &str) -> Result<Vec<Block>> {
    const LONGEST_KIND: usize = 40;
    let parse = |(kind, value): &(String, Value)| {
        ensure!(kind.len() <= LONGEST_KIND, "{what}: there is a block `{}`, which reel does not know", brief(kind));
        let mut block = Block { kind: kind.clone(), layers: None, multiplier: None, residual: false, noise: false };
        if let Some(layers) = value.as_u64() {
            block.layers = Some(layers as usize);
            return Ok(block);
        }
        let mut keys = Keys::new(value, &format!("{what}: block `{kind}`"))?;
        block.layers = keys.get("num_layers")?;
        block.multiplier = keys.get("multiplier")?;
        block.residual = keys.or("residual", false)?;
        block.noise = keys.or("inject_noise", false)?;
        keys.finish(RELEASES)?;
        let multiplier = block.multiplier.unwrap_or(1);
        ensure!(
            (1..=MOST_BLOCKS).contains(&multiplier),
            "{what}: block `{kind}` has the multiplier {multiplier}, and reel takes 1 to {MOST_BLOCKS}"
        );
        Ok(block)
    };
    list.iter().map(parse).collect()
}

impl Block {
    fn layers(&self, what: &str) -> Result<usize> {
        ensure!(self.kind == "res_x", "{what}: block `{}` stands where reel knows only `res_x`", self.kind);
        let layers = self.layers.with_context(|| format!("{what}: block `res_x` without `num_layers`"))?;
        ensure!(
            layers <= MOST_LAYERS,
            "{what}: block `res_x` has {layers} layers, and reel takes at most {MOST_LAYERS}"
        );
        Ok(layers)
    }

    /// Factors in time, height and width, and whether it folds space into channels; `None` for residual blocks.
    fn compression(&self) -> Option<([usize; 3], bool)> {
        let (name, folded) = match self.kind.strip_suffix("_res") {
            Some(name) => (name, true),
            None => (self.kind.as_str(), false),
        };
        let stride = match name {
            "compress_all" => [2, 2, 2],
            "compress_space" => [1, 2, 2],
            "compress_time" => [2, 1, 1],
            _ => return None,
        };
        Some((stride, folded))
    }

    /// By how much this block of the decoder lowers the number of channels.
    fn shrinkage(&self) -> usize {
        match self.kind.as_str() {
            "res_x_y" => self.multiplier.unwrap_or(2),
            _ if self.compression().is_some() => self.multiplier.unwrap_or(1),
            _ => 1,
        }
    }
}
