//! Sizes of the released checkpoints.

use crate::models::sizes::{Part, Size};
use serde_json::json;

/// Names of the sizes, what they are, and their `config.json`: those of the released checkpoints.
/// - Source: diffusers `scripts/convert_ltx_to_diffusers.py`, `get_transformer_config` and `get_vae_config`, at 58eb52c.
pub fn sizes() -> Vec<Size> {
    let transformer = |layers: usize, head_dim: usize| {
        json!({
            "num_layers": layers, "num_attention_heads": 32, "attention_head_dim": head_dim, "in_channels": 128, "out_channels": 128,
            "cross_attention_dim": 32 * head_dim, "caption_channels": 4096, "qk_norm": "rms_norm_across_heads",
        })
    };
    let vae_091 = json!({
        "_class_name": "AutoencoderKLLTXVideo",
        "decoder_block_out_channels": [256, 512, 1024], "decoder_layers_per_block": [5, 6, 7, 8],
        "decoder_spatio_temporal_scaling": [true, true, true], "decoder_inject_noise": [true, true, true, false],
        "upsample_residual": [true, true, true], "upsample_factor": [2, 2, 2], "timestep_conditioning": true,
    });
    let vae_095 = json!({
        "_class_name": "AutoencoderKLLTXVideo",
        "block_out_channels": [128, 256, 512, 1024, 2048],
        "down_block_types": ["LTXVideo095DownBlock3D", "LTXVideo095DownBlock3D", "LTXVideo095DownBlock3D", "LTXVideo095DownBlock3D"],
        "decoder_block_out_channels": [256, 512, 1024], "layers_per_block": [4, 6, 6, 2, 2],
        "decoder_layers_per_block": [5, 5, 5, 5], "spatio_temporal_scaling": [true, true, true, true],
        "decoder_spatio_temporal_scaling": [true, true, true], "decoder_inject_noise": [false, false, false, false],
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "upsample_residual": [true, true, true], "upsample_factor": [2, 2, 2], "timestep_conditioning": true,
        "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
    });
    vec![
        Size { name: "2b", part: Part::Transformer, config: transformer(28, 64) },
        Size { name: "13b", part: Part::Transformer, config: transformer(48, 128) },
        Size { name: "vae-0.9.0", part: Part::Vae, config: json!({ "_class_name": "AutoencoderKLLTXVideo" }) },
        Size { name: "vae-0.9.1", part: Part::Vae, config: vae_091 },
        Size { name: "vae-0.9.5", part: Part::Vae, config: vae_095 }, // of 0.9.5 to 0.9.8
    ]
}
