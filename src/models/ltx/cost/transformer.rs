//! What the transformer takes while it runs, from shapes alone.

use crate::models::cost::{Count, Tokens, Widths};
use crate::models::ltx::config::TransformerConfig;
use crate::nn::kernel::memory::taken;
use crate::nn::path::{AttentionPath, Heads, ProductPath};

/// Scores that the plain form of attention holds at a time, with their exponentials and shares: see `nn::attention`.
const PLAIN_SCORES: u64 = 3 * crate::nn::attention::SCORES as u64;

/// One pass of the transformer over `tokens` tokens and a prompt of `text`.
pub fn transformer(config: &TransformerConfig, tokens: usize, text: usize, widths: Widths) -> Count {
    let (n, m, d) = (tokens as u64, text as u64, config.width() as u64);
    let Widths { activation: a, input, product, .. } = widths;
    let x = Tokens { count: n, widths };
    let mut count = Count::default();
    let latents = taken(n * config.in_channels as u64 * 4);
    count.take_blocks(4 * latents); // state and noise, velocities of the two prompts
    count.take_blocks(2 * taken(2 * n * d)); // sines and cosines
    let (stream, read, handed) = (x.rows(d), x.read(d), x.handed(d));
    count.take_blocks(stream + read); // as it came, and what the first norm hands on
    let int8 = product.path(input) == ProductPath::Int8;
    let heads = Heads { batch: 1, head_dim: config.head_dim, bias: false, math: product.math, int8 };
    // the normed ones and one that is turned, while the other is, in f32: itself, its halves, and both together
    let placed = 3 * stream + 3 * taken(n * d * 4);
    // queries and keys turned, and the keys once more as panels; values as they are read, and as panels; the answer
    let panels = match input.attention(heads) {
        AttentionPath::Kernel => 3 * read + x.copied(d) + 2 * x.packed(d),
        AttentionPath::Int8 => 3 * x.rounded(d) + read + x.packed(d),
        // it keeps one number for each head of each token instead of scores, and reads heads where they lie
        AttentionPath::Flash => placed.max(3 * stream + taken(n * config.heads as u64 * 4)),
        AttentionPath::Candle => placed.max(PLAIN_SCORES * a + 6 * stream),
    };
    let attention = 2 * stream + handed + panels; // queries, keys, values
    // the MLP, beside the stream after the first attention and after the second: what its second layer reads, the first time
    // beside what the first one reads, then beside what is read of it and what comes out
    let wide = x.handed(4 * d);
    let (first, second) = if int8 { (x.rounded(d), x.rounded(4 * d)) } else { (0, x.copied(4 * d)) };
    let mlp = 2 * stream + wide + (read + first).max(second + stream);
    count.take_blocks(attention.max(mlp));
    let (products, attention) = (6 * n * d * d + 8 * n * d * d, 2 * n * n * d + 2 * n * m * d);
    let (layers, ends) = (config.layers as u64, n * d * (config.in_channels + config.out_channels) as u64);
    count.attention = 2 * layers * attention;
    count.operations = 2 * (layers * products + ends) + count.attention;
    count
}

/// What the transformer keeps of prompts of `tokens`, from its first step on: `Context`.
pub fn contexts(config: &TransformerConfig, tokens: &[usize], widths: Widths) -> Count {
    let (d, layers) = (config.width() as u64, config.layers as u64);
    let mut count = Count::default();
    for &m in tokens {
        let m = m as u64;
        count.take(m * d * widths.activation);
        count.take_blocks(layers * 2 * taken(m * d * widths.operand));
        count.operations += 2 * (layers * 2 * m * d * d + m * d * (config.caption_channels as u64 + d));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernel::MatmulType;
    use crate::nn::path::{Backend, Input, Product};
    use candle_core::DType;
    use serde_json::json;

    /// The most that a pass takes on a GPU, over `tokens` tokens in bf16.
    fn peak(head_dim: usize, flash: bool, tokens: usize) -> u64 {
        let heads = 31;
        let width = heads * head_dim;
        let json =
            json!({ "num_attention_heads": heads, "attention_head_dim": head_dim, "cross_attention_dim": width });
        let config = TransformerConfig::parse(&json, "a test").unwrap();
        let input = Input { backend: Backend::Cuda { own: true, flash }, dtype: DType::BF16, plain: false };
        let widths = Widths::new(input, Product::plain(MatmulType::Bf16));
        transformer(&config, tokens, 128, widths).peak
    }

    #[test]
    fn flash_attention_holds_no_scores_where_it_takes_the_heads() {
        // tokens so few that next to the scores nothing else counts
        let scores = 2 * PLAIN_SCORES;
        let (flash, plain) = (peak(64, true, 99), peak(64, false, 99));
        assert!(plain > scores && flash < scores / 8, "{flash} and {plain}");
        for head_dim in [60, 520] {
            assert_eq!(peak(head_dim, true, 999), peak(head_dim, false, 999));
        }
        // of a clip so long that its scores are the smaller part, what is turned remains
        assert!(peak(128, true, 50_000) <= peak(128, false, 50_000));
    }
}
