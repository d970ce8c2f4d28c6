//! Parses a checkpoint's configuration in either of its two forms: diffusers' `config.json` files, and the `config` object in
//! the header of Lightricks' single files. Both become the same structs.

mod vae;

use crate::models::ltx::releases::RELEASES;
use crate::weights::config::{Keys, MOST_CHANNELS, check_width, with_fix};
use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
pub use vae::{Down, DownBlock, UpBlock, VaeConfig, VaeVersion};

/// Upper limit of transformer layers; no checkpoint has more.
const MOST_LAYERS: usize = 1024;
/// Upper limit of a patch's side in pixels.
const MOST_PATCH: usize = 64;

/// Keys that diffusers writes into every configuration; ignored.
pub(super) const LABELS: [&str; 3] = ["_class_name", "_diffusers_version", "_name_or_path"];

/// Sizes of the diffusion transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub cross_attention_dim: usize,
    pub caption_channels: usize,
    pub attention_bias: bool,
    pub attention_out_bias: bool,
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Extents that rotary positions are divided by: seconds, pixels down, pixels across.
    pub max_pos: [f32; 3],
}

impl TransformerConfig {
    /// Returns the width of the residual stream.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Parses the transformer's configuration, in either form.
    /// - `what`: the file, for errors.
    /// - Defaults: diffusers `models/transformers/transformer_ltx.py`, `LTXVideoTransformer3DModel.__init__`, at 58eb52c.
    pub fn parse(json: &Value, what: &str) -> Result<Self> {
        Self::read(json, what).map_err(|error| with_fix(error, RELEASES))
    }

    fn read(json: &Value, what: &str) -> Result<Self> {
        let mut keys = Keys::new(json, what)?;
        keys.ignore(&LABELS);
        // leftovers of PixArt's code in Lightricks' files; none affects the computation
        keys.ignore(&[
            "attention_type",
            "double_self_attention",
            "dropout",
            "norm_num_groups",
            "num_embeds_ada_norm",
            "num_vector_embeds",
            "only_cross_attention",
            "project_to_2d_pos",
            "upcast_attention",
            "use_linear_projection",
            "sample_size",
            "use_tpu_flash_attention",
            "causal_temporal_positioning",
        ]);
        keys.only("patch_size", &[json!(1)])?;
        keys.only("patch_size_t", &[json!(1)])?;
        keys.only("activation_fn", &[json!("gelu-approximate")])?;
        keys.only("qk_norm", &[json!("rms_norm_across_heads"), json!("rms_norm")])?;
        keys.only("standardization_norm", &[json!("rms_norm")])?;
        keys.only("norm_elementwise_affine", &[json!(false)])?;
        keys.only("positional_embedding_type", &[json!("rope")])?;
        keys.only("timestep_scale_multiplier", &[json!(1000), json!(1000.0)])?;
        let in_channels = keys.size("in_channels", 128, MOST_CHANNELS)?;
        let config = Self {
            in_channels,
            out_channels: keys.size("out_channels", in_channels, MOST_CHANNELS)?,
            layers: keys.size("num_layers", 28, MOST_LAYERS)?,
            heads: keys.size("num_attention_heads", 32, MOST_CHANNELS)?,
            head_dim: keys.size("attention_head_dim", 64, MOST_CHANNELS)?,
            cross_attention_dim: keys.size("cross_attention_dim", 2048, MOST_CHANNELS)?,
            caption_channels: keys.size("caption_channels", 4096, MOST_CHANNELS)?,
            attention_bias: keys.or("attention_bias", true)?,
            attention_out_bias: keys.or("attention_out_bias", true)?,
            norm_eps: keys.positive("norm_eps", 1e-6)?,
            theta: keys.positive("positional_embedding_theta", 10_000.0)?,
            max_pos: keys.or("positional_embedding_max_pos", [20.0, 2048.0, 2048.0])?,
        };
        keys.finish(RELEASES)?;
        ensure!(
            config.max_pos.iter().all(|&x| x > 0.0 && x.is_finite()),
            "{what}: `positional_embedding_max_pos` is {:?}, and its values have to be above 0",
            config.max_pos
        );
        let Self { heads, head_dim, .. } = config;
        check_width(heads, head_dim).map_err(|why| {
            anyhow!("{what}: `num_attention_heads` is {heads} and `attention_head_dim` {head_dim}: {why}")
        })?;
        ensure!(
            config.cross_attention_dim == config.width(),
            "{what}: `cross_attention_dim` is {}, and has to be `num_attention_heads` times `attention_head_dim`, {heads} x {head_dim} = {}",
            config.cross_attention_dim,
            config.width()
        );
        Ok(config)
    }
}

impl TransformerConfig {
    /// Writes the configuration in diffusers' form, as [`TransformerConfig::parse`] reads it.
    pub fn to_json(&self) -> Value {
        json!({
            "in_channels": self.in_channels, "out_channels": self.out_channels, "num_layers": self.layers,
            "num_attention_heads": self.heads, "attention_head_dim": self.head_dim,
            "cross_attention_dim": self.cross_attention_dim, "caption_channels": self.caption_channels,
            "attention_bias": self.attention_bias, "attention_out_bias": self.attention_out_bias,
            "norm_eps": self.norm_eps, "positional_embedding_theta": self.theta,
            "positional_embedding_max_pos": self.max_pos, "qk_norm": "rms_norm_across_heads",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ltx::schedule::SchedulerConfig;
    use crate::models::ltx::upscaler::UpscalerConfig;
    use crate::models::text::t5::T5Config;

    /// Every error names the file, the key, its value and the values accepted.
    #[test]
    fn what_is_wrong_is_said_with_file_key_and_value() {
        type Parse = fn(&Value, &str) -> Result<()>;
        let transformer: Parse = |json, what| TransformerConfig::parse(json, what).map(drop);
        let scheduler: Parse = |json, what| SchedulerConfig::parse(json, what).map(drop);
        let vae: Parse = |json, what| VaeConfig::parse(json, what).map(drop);
        let text: Parse = |json, what| T5Config::parse(json, what).map(drop);
        let upscaler: Parse = |json, what| UpscalerConfig::parse(json, what).map(drop);
        let diffusers = |key: &str, value: Value| json!({"_class_name": "AutoencoderKLLTXVideo", key: value});
        let official = |key: &str, value: Value| {
            let mut json = json!({"_class_name": "CausalVideoAutoencoder", "blocks": [["res_x", 3]]});
            json[key] = value;
            json
        };
        let wide: Vec<Value> = (0..8).map(|_| json!(["compress_all", {"multiplier": 16}])).collect();
        let cases = [
            (transformer, json!({"cross_attention_dim": 96}), &["`cross_attention_dim` is 96", "32 x 64 = 2048"][..]),
            (transformer, json!({"num_attention_heads": 0}), &["`num_attention_heads` has the value 0", "1 to 16384"]),
            (transformer, json!({"num_layers": 4000}), &["`num_layers`", "4000", "1 to 1024"]),
            (
                transformer,
                json!({"num_attention_heads": 5, "attention_head_dim": 7, "cross_attention_dim": 35}),
                &["`num_attention_heads` is 5 and `attention_head_dim` 7", "even", "35"],
            ),
            (transformer, json!({"in_channels": "many"}), &["`in_channels` is \"many\"", "does not fit"]),
            (transformer, json!({"norm_eps": 0}), &["`norm_eps` is 0", "above 0"]),
            (transformer, json!({"qk_norm": "none"}), &["`qk_norm` is `\"none\"`", "rms_norm"]),
            (transformer, json!({"positional_embedding_max_pos": [20, 0, 1]}), &["max_pos` is [20.0, 0.0", "above 0"]),
            (transformer, json!([]), &["is not a JSON object"]),
            (scheduler, json!({"_class_name": "Euler"}), &["`_class_name` is `Euler`", "FlowMatchEuler"]),
            (
                vae,
                diffusers("decoder_inject_noise", json!([true])),
                &["`decoder_inject_noise` has 1 entries", "have 5"],
            ),
            (vae, diffusers("layers_per_block", json!([4, 3])), &["`layers_per_block` has 1 entries", "have 4"]),
            (vae, diffusers("block_out_channels", json!([])), &["`block_out_channels` make 0 blocks", "1 to 16"]),
            (vae, diffusers("upsample_factor", json!([3, 1, 1, 1])), &["`upsample_factor` has 3", "divide 256"]),
            (
                vae,
                diffusers("spatio_temporal_scaling", json!([true, true, false, false])),
                &["shrinks by 4x16x16", "`patch_size`", "8x32x32"],
            ),
            (vae, official("encoder_blocks", json!(wide)), &["block `compress_all`"]),
            (vae, official("latent_channels", json!(0)), &["`latent_channels` has the value 0", "1 to 16384"]),
            (
                text,
                json!({"relative_attention_num_buckets": 3}),
                &["`relative_attention_num_buckets` is 3", "at least 4"],
            ),
            (text, json!({"num_layers": 0}), &["`num_layers` has the value 0", "1 to 1024"]),
            (upscaler, json!({"mid_channels": 33}), &["`mid_channels` is 33", "multiple of 32"]),
        ];
        for (parse, json, words) in cases {
            let error = parse(&json, "`ck/config.json`").unwrap_err().to_string();
            assert!(error.starts_with("`ck/config.json`") && error.contains("\n  fix: "), "{json}: {error}");
            assert!(error.lines().count() <= 3, "{error}");
            words.iter().for_each(|word| assert!(error.contains(word), "{json}: no `{word}` in\n{error}"));
        }
    }
}
