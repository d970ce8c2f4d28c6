//! Names of T5's tensors: llama.cpp's in GGUF files -> transformers', which reel speaks.

use crate::weights::rules::Rules;

/// The table of words.
pub const WORDS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// Which of T5's matrices become blocks. All else stays as it is: norms, and the table of words, which is not multiplied by. Kept
/// finer is what the layers add to the stream, for what is lost in it no later layer makes good. None is multiplied by int8 dot
/// products: the encoder runs once a prompt and over few words, and its activations lie far apart in size.
/// - Source: llama.cpp, which quantises the layers of T5; of `wo` transformers `models/t5/modeling_t5.py`,
///   `_keep_in_fp32_modules`, at 5.23.0.
pub static QUANTISING: Rules = Rules {
    layers: "encoder.block.",
    not: &["relative_attention_bias"],
    fine: &[".SelfAttention.o.", ".DenseReluDense.wo."],
    int8: false,
    tables: &WORDS,
};

/// (llama.cpp's, transformers') names of parts of a name.
/// - Source: leejet/stable-diffusion.cpp `src/name_conversion.cpp`, `t5_name_map`, at 97d2990; city96/ComfyUI-GGUF `loader.py`,
///   `T5_SD_MAP`, at 795e451.
const PARTS: [(&str, &str); 13] = [
    ("enc.blk.", "encoder.block."),
    ("enc.output_norm.", "encoder.final_layer_norm."),
    ("token_embd.", "shared."),
    (".attn_q.", ".layer.0.SelfAttention.q."),
    (".attn_k.", ".layer.0.SelfAttention.k."),
    (".attn_v.", ".layer.0.SelfAttention.v."),
    (".attn_o.", ".layer.0.SelfAttention.o."),
    (".attn_rel_b.", ".layer.0.SelfAttention.relative_attention_bias."),
    (".attn_norm.", ".layer.0.layer_norm."),
    (".ffn_gate.", ".layer.1.DenseReluDense.wi_0."),
    (".ffn_up.", ".layer.1.DenseReluDense.wi_1."),
    (".ffn_down.", ".layer.1.DenseReluDense.wo."),
    (".ffn_norm.", ".layer.1.layer_norm."),
];

/// transformers' name of a tensor; one that is transformers' already stays.
pub fn from_llama(name: &str) -> String {
    PARTS.iter().fold(name.to_string(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// llama.cpp's name of a tensor.
pub fn to_llama(name: &str) -> String {
    PARTS.iter().fold(name.to_string(), |name, (theirs, ours)| name.replace(ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernel::blocks::QuantType;

    /// Which matrices become what; of none are the blocks multiplied by int8 dot products.
    #[test]
    fn what_becomes_blocks() {
        let becomes = |name: &str| [QuantType::Q8_0, QuantType::Q4K].map(|kind| QUANTISING.becomes(name, kind));
        let (q8, q4) = (Some(QuantType::Q8_0), Some(QuantType::Q4K));
        let layer = |part: &str| format!("encoder.block.3.layer.{part}.weight");
        let rough = ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v", "1.DenseReluDense.wi_0"].map(layer);
        let fine = ["0.SelfAttention.o", "1.DenseReluDense.wo"].map(layer);
        for (names, want) in [(&rough[..], [q8, q4]), (&fine, [None, q8])] {
            for name in names {
                assert_eq!(becomes(name), want, "{name}");
                assert!(QUANTISING.dequantised(name), "{name}");
            }
        }
        for name in [WORDS[0], "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] {
            assert_eq!(becomes(name), [None, None], "{name}");
        }
    }

    #[test]
    fn names_go_both_ways() {
        let pairs = [
            ("token_embd.weight", "shared.weight"),
            ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
            ("enc.blk.0.attn_rel_b.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            ("enc.blk.11.attn_q.weight", "encoder.block.11.layer.0.SelfAttention.q.weight"),
            ("enc.blk.11.attn_o.weight", "encoder.block.11.layer.0.SelfAttention.o.weight"),
            ("enc.blk.3.attn_norm.weight", "encoder.block.3.layer.0.layer_norm.weight"),
            ("enc.blk.3.ffn_gate.weight", "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"),
            ("enc.blk.3.ffn_up.weight", "encoder.block.3.layer.1.DenseReluDense.wi_1.weight"),
            ("enc.blk.3.ffn_down.weight", "encoder.block.3.layer.1.DenseReluDense.wo.weight"),
            ("enc.blk.3.ffn_norm.weight", "encoder.block.3.layer.1.layer_norm.weight"),
        ];
        for (theirs, ours) in pairs {
            assert_eq!(from_llama(theirs), ours);
            assert_eq!(from_llama(ours), ours);
            assert_eq!(to_llama(ours), theirs);
        }
    }
}
