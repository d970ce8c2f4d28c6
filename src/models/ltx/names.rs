//! Tensor names: Lightricks' single files -> diffusers', which the rest of reel speaks; and, for a file whose header
//! carries no configuration, the configuration that its shapes imply.

use super::config::{Down, VaeConfig};
use crate::models::parts::PartNames;
use crate::weights::rules::{LayerNames, Rules};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Where each part's tensors lie in a single file of Lightricks, or of reel.
pub const TRANSFORMER_PREFIX: &str = "model.diffusion_model.";
pub const VAE_PREFIX: &str = "vae.";
/// What stands before a block's number.
pub const BLOCKS: &str = "transformer_blocks.";

const TRANSFORMER_NAMES: PartNames = PartNames {
    known: [TRANSFORMER_PREFIX, "diffusion_model."],
    anchors: [
        "patchify_proj.weight",
        "transformer_blocks.0.scale_shift_table",
        "transformer_blocks.0.attn1.to_q.weight",
    ],
};
const VAE_NAMES: PartNames = PartNames {
    known: [VAE_PREFIX, ""],
    anchors: ["decoder.conv_in.conv.weight", "decoder.conv_out.conv.weight", "encoder.conv_in.conv.weight"],
};

/// Where a single file's transformer is; at its root where there is none.
pub fn transformer_prefix<'a>(names: impl Iterator<Item = &'a str>) -> &'a str {
    TRANSFORMER_NAMES.prefix(names).unwrap_or_default()
}

/// Where a single file's VAE is; `None` where it has none.
pub fn vae_prefix<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    VAE_NAMES.prefix(names)
}

/// (Lightricks', diffusers') names of parts of a name.
/// - Source: diffusers `loaders/single_file_utils.py`, `convert_ltx_transformer_checkpoint_to_diffusers`, at 58eb52c.
const TRANSFORMER: [(&str, &str); 4] = [
    ("patchify_proj.", "proj_in."),
    ("adaln_single.", "time_embed."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
];

/// Inside a module of the VAE.
/// - Source: diffusers `loaders/single_file_utils.py`, `convert_ltx_vae_checkpoint_to_diffusers`, at 58eb52c.
const VAE: [(&str, &str); 5] = [
    ("res_blocks.", "resnets."),
    ("conv_shortcut.", "conv_shortcut.conv."),
    ("norm3.norm.", "norm3."),
    ("last_time_embedder.", "time_embedder."),
    ("last_scale_shift_table", "scale_shift_table"),
];
const STATISTICS: [(&str, &str); 2] = [("mean-of-means", "mean"), ("std-of-means", "std")];

/// What LoRAs may call the transformer's layers.
pub const LAYERS: LayerNames = LayerNames {
    family: "LTX-Video 0.9",
    to_official: transformer_to_official,
    from_official: transformer_from_official,
};

/// Which of the transformer's matrices become blocks. All else stays as it is: norms, biases, the tables of the adaptive norms,
/// and the first and last layers, which are few and through which everything passes. Kept finer are those that are small or lose
/// more than others, and in which what is lost is lost everywhere:
/// - keys and values of the prompt, which guidance sets against those of the negative prompt, and so multiplies what was lost;
/// - what cross-attention adds to the stream, ungated and of values that lie far apart in size: rounded to eight bits it cost as
///   much as the whole MLP.
/// - Source: city96/ComfyUI-GGUF `tools/lcpp.patch` (LLM_ARCH_LTXV) at 795e451.
pub static QUANTISING: Rules = Rules {
    layers: "transformer_blocks.",
    not: &[],
    fine: &[".attn2.to_k.", ".attn2.to_v.", ".attn2.to_out."],
    int8: true,
    tables: &[],
};

/// The diffusers name of a transformer tensor.
pub fn transformer_from_official(name: &str) -> String {
    TRANSFORMER.iter().fold(name.to_string(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// The official name of a transformer tensor.
pub fn transformer_to_official(name: &str) -> String {
    TRANSFORMER.iter().fold(name.to_string(), |name, (ours, theirs)| name.replace(theirs, ours))
}

/// (Lightricks', diffusers') names of the modules in the VAE's two flat block lists.
fn vae_modules(config: &VaeConfig) -> Vec<(String, String)> {
    let mut modules = vec![];
    let mut index = 0;
    let mut add = |side: &str, name: String| {
        modules.push((format!("{side}.{index}."), name));
        index += 1;
    };
    add("decoder.up_blocks", "decoder.mid_block.".to_string());
    for (i, block) in config.decoder.iter().enumerate() {
        if block.inputs != block.outputs {
            add("decoder.up_blocks", format!("decoder.up_blocks.{i}.conv_in."));
        }
        if block.up {
            add("decoder.up_blocks", format!("decoder.up_blocks.{i}.upsamplers.0."));
        }
        add("decoder.up_blocks", format!("decoder.up_blocks.{i}."));
    }
    index = 0;
    let mut add = |name: String| {
        modules.push((format!("encoder.down_blocks.{index}."), name));
        index += 1;
    };
    for (i, block) in config.encoder.iter().enumerate() {
        add(format!("encoder.down_blocks.{i}."));
        if block.down != Down::No {
            add(format!("encoder.down_blocks.{i}.downsamplers.0."));
        }
        if !matches!(block.down, Down::Fold(_)) && block.inputs != block.outputs {
            add(format!("encoder.down_blocks.{i}.conv_out."));
        }
    }
    add("encoder.mid_block.".to_string());
    modules
}

/// The diffusers name of a VAE tensor; `None` for what only Lightricks' code keeps.
pub fn vae_from_official(name: &str, config: &VaeConfig) -> Option<String> {
    if let Some(statistic) = name.strip_prefix("per_channel_statistics.") {
        return STATISTICS
            .iter()
            .find(|(official, _)| *official == statistic)
            .map(|(_, ours)| format!("latents_{ours}"));
    }
    let modules = vae_modules(config);
    let (prefix, rest) = match modules.iter().find(|(official, _)| name.starts_with(official.as_str())) {
        Some((official, ours)) => (ours.as_str(), &name[official.len()..]),
        None => ("", name),
    };
    Some(format!(
        "{prefix}{}",
        VAE.iter().fold(rest.to_string(), |name, (official, ours)| name.replace(official, ours))
    ))
}

/// The official name of a VAE tensor.
pub fn vae_to_official(name: &str, config: &VaeConfig) -> String {
    if let Some(statistic) = name.strip_prefix("latents_") {
        let official =
            STATISTICS.iter().find(|(_, ours)| *ours == statistic).map_or(statistic, |(official, _)| official);
        return format!("per_channel_statistics.{official}");
    }
    // the longest match, because `up_blocks.0.` begins `up_blocks.0.upsamplers.0.` too
    let modules = vae_modules(config);
    let module = modules.iter().filter(|(_, ours)| name.starts_with(ours.as_str())).max_by_key(|(_, ours)| ours.len());
    match module {
        Some((official, ours)) => {
            let rest = name[ours.len()..].replace("resnets.", "res_blocks.");
            let rest = rest.replace("conv_shortcut.conv.", "conv_shortcut.").replace("norm3.", "norm3.norm.");
            format!("{official}{rest}")
        }
        None => match name.strip_prefix("decoder.") {
            Some(rest) if rest.starts_with("time_embedder.") || rest == "scale_shift_table" => {
                format!("decoder.last_{rest}")
            }
            _ => name.to_string(),
        },
    }
}

/// The configuration of a single file that carries none, in Lightricks' form, from its tensors' shapes.
/// - `shape`: shape of a tensor by its name in the file, without the part's prefix.
/// - Errors when the shapes do not settle it.
pub fn transformer_config_from_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>, what: &str) -> Result<Value> {
    let of = |name: &str| shape(name).filter(|s| !s.is_empty());
    let Some(input) = of("patchify_proj.weight").or_else(|| of("proj_in.weight")).filter(|s| s.len() == 2) else {
        anyhow::bail!("{what}: there is no transformer in it (`{TRANSFORMER_PREFIX}patchify_proj.weight`)")
    };
    let width = input[0];
    let layers = (0..).take_while(|i| of(&format!("transformer_blocks.{i}.scale_shift_table")).is_some()).count();
    // both released widths have 32 heads; of no other width do the shapes tell the number of heads
    ensure!(
        width == 2048 || width == 4096,
        "{what}: its header has no `config`, and {width} channels alone do not tell the number of heads\n  \
         fix: use a file whose header carries `config`, or the checkpoint as a diffusers directory"
    );
    let caption = of("caption_projection.linear_1.weight").map_or(4096, |s| s[s.len() - 1]);
    Ok(json!({
        "in_channels": input[1], "out_channels": input[1], "num_layers": layers, "num_attention_heads": 32,
        "attention_head_dim": width / 32, "cross_attention_dim": width, "caption_channels": caption,
    }))
}

/// As [`transformer_config_from_shapes`], for the VAE.
pub fn vae_config_from_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>, what: &str) -> Result<Value> {
    let kernel = |name: String| shape(&name).filter(|s| s.len() == 5);
    let list = |side: &str| {
        let mut blocks: Vec<Value> = vec![];
        loop {
            let i = blocks.len();
            let at = format!("{side}.{i}");
            let layers =
                (0..).take_while(|j| kernel(format!("{at}.res_blocks.{j}.conv1.conv.weight")).is_some()).count();
            if layers > 0 {
                let noise = shape(&format!("{at}.res_blocks.0.per_channel_scale1")).is_some();
                blocks.push(json!(["res_x", {"num_layers": layers, "inject_noise": noise}]));
            } else if let Some(s) = kernel(format!("{at}.conv1.conv.weight")) {
                let multiplier = (s[0] / s[1].max(1)).max(s[1] / s[0].max(1));
                blocks.push(json!(["res_x_y", {"multiplier": multiplier}]));
            } else if let Some(s) = kernel(format!("{at}.conv.conv.weight")) {
                if side.starts_with("decoder") {
                    let multiplier = 8 * s[1] / s[0].max(1);
                    blocks.push(json!(["compress_all", {"multiplier": multiplier, "residual": multiplier > 1}]));
                } else {
                    let next = kernel(format!("{side}.{}.res_blocks.0.conv1.conv.weight", i + 1)).map_or(0, |s| s[1]);
                    let kind = match next / s[0].max(1) {
                        4 => "compress_space_res",
                        2 => "compress_time_res",
                        _ => "compress_all_res",
                    };
                    blocks.push(json!([kind, {"multiplier": next / s[1].max(1)}]));
                }
            } else if kernel(format!("{at}.conv.weight")).is_some() {
                blocks.push(json!(["compress_all", {}]));
            } else {
                return blocks;
            }
        }
    };
    let (Some(first), Some(last), Some(input)) = (
        kernel("encoder.conv_in.conv.weight".to_string()),
        kernel("decoder.conv_out.conv.weight".to_string()),
        kernel("decoder.conv_in.conv.weight".to_string()),
    ) else {
        anyhow::bail!("{what}: there is no video autoencoder in it (`{VAE_PREFIX}decoder.conv_in.conv.weight`)")
    };
    let mut decoder = list("decoder.up_blocks");
    decoder.reverse();
    Ok(json!({
        "_class_name": "CausalVideoAutoencoder", "dims": 3, "latent_channels": input[1],
        "encoder_blocks": list("encoder.down_blocks"), "decoder_blocks": decoder,
        "encoder_base_channels": first[0], "decoder_base_channels": last[1],
        "patch_size": ((last[0] / 3) as f64).sqrt() as usize,
        "timestep_conditioning": shape("decoder.last_scale_shift_table").is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernel::blocks::QuantType;

    /// Which matrices become what, and which of them are multiplied by int8 dot products.
    #[test]
    fn what_becomes_blocks() {
        let becomes = |name: &str| [QuantType::Q8_0, QuantType::Q4K].map(|kind| QUANTISING.becomes(name, kind));
        let (q8, q4) = (Some(QuantType::Q8_0), Some(QuantType::Q4K));
        let block = |part: &str| format!("transformer_blocks.7.{part}.weight");
        let rough = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"];
        for name in rough.into_iter().chain(["ff.net.0.proj", "ff.net.2"]).map(block) {
            assert_eq!(becomes(&name), [q8, q4], "{name}");
            assert!(!QUANTISING.dequantised(&name), "{name}");
        }
        for name in ["attn2.to_k", "attn2.to_v", "attn2.to_out.0"].map(block) {
            assert_eq!(becomes(&name), [None, q8], "{name}");
            assert!(QUANTISING.dequantised(&name), "{name}");
        }
        let ends = ["proj_in.weight", "proj_out.weight", "time_embed.linear.weight"];
        for name in
            ends.into_iter().chain(["caption_projection.linear_1.weight", "transformer_blocks.0.scale_shift_table"])
        {
            assert_eq!(becomes(name), [None, None], "{name}");
        }
    }
}
