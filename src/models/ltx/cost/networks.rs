//! What the transformer and the text encoder take while they run, from shapes alone.

use crate::models::ltx::config::TransformerConfig;
use crate::models::ltx::cost::count::{Count, Widths};
use crate::models::text::t5::T5Config;
use crate::nn::kernel::memory::taken;
use crate::nn::kernel::{int8, row_stride};
use crate::nn::path::{AttentionPath, Heads, ProductPath};

/// Scores that the plain form of attention holds at a time, with their exponentials and shares: see `nn::attention`.
const PLAIN_SCORES: u64 = 3 * crate::nn::attention::SCORES as u64;

/// Bytes that looking at one row of a mapped table brings into memory: the system reads pages around it too.
pub const ROW: u64 = 64 << 10;

/// Tokens on their way through a network's layers.
#[derive(Clone, Copy)]
struct Tokens {
    count: u64,
    widths: Widths,
}

impl Tokens {
    /// Rows between operations.
    fn rows(self, width: u64) -> u64 {
        taken(self.count * width * self.widths.activation)
    }

    /// Rows that norms and attention hand to products, apart from each other as those read them.
    fn read(self, width: u64) -> u64 {
        let Widths { operand, input, .. } = self.widths;
        let apart = if input.is_cpu() { row_stride(width as usize, operand as usize) as u64 } else { width };
        taken(self.count * apart * operand)
    }

    /// The same, as panels that attention's own products read.
    fn packed(self, width: u64) -> u64 {
        taken(self.count * width * self.widths.operand)
    }

    /// Rows that one product hands to another: narrow ones are apart too.
    fn handed(self, width: u64) -> u64 {
        if self.widths.operand < self.widths.activation { self.read(width) } else { self.rows(width) }
    }

    /// What a product, or attention of its values, copies of rows that were handed on: those that are not apart.
    fn copied(self, width: u64) -> u64 {
        let Widths { operand, activation, input, .. } = self.widths;
        let apart = operand < activation || row_stride(width as usize, operand as usize) as u64 == width;
        if apart || !input.is_cpu() { 0 } else { self.read(width) }
    }

    /// What int8 dot products round of rows that they read.
    fn rounded(self, width: u64) -> u64 {
        taken(int8::size(self.count * width))
    }
}

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

/// The text encoder over prompts of `tokens`, layer by layer.
pub fn text(config: &T5Config, tokens: &[usize], widths: Widths) -> Count {
    let (d, inner, ff) = (config.d_model as u64, (config.heads * config.d_kv) as u64, config.d_ff as u64);
    let mut count = Count::default();
    // the bias of its positions; it is made as a table of heads, and turned
    let bias = |n: u64| taken(n * n * config.heads as u64 * widths.activation);
    for &n in tokens {
        let n = n as u64;
        count.take(n * d * widths.activation);
        let layer = 4 * n * d * inner + 2 * n * n * inner + 3 * n * d * ff;
        count.operations += 2 * config.layers as u64 * layer;
        count.take_blocks(bias(n));
    }
    count.take_blocks(tokens.iter().sum::<usize>() as u64 * ROW); // of the embedding
    let n = tokens.iter().copied().max().unwrap_or(0) as u64;
    let x = Tokens { count: n, widths };
    // all of a layer's own stays until it ends: what both norms hand on; queries, keys and values; the stream between
    let attention = x.read(d) + 2 * x.rows(inner) + x.handed(inner);
    // both turned, the keys once more as panels; values as they are read, and as panels; the answer
    let panels = 3 * x.read(inner) + x.copied(inner) + 2 * x.packed(inner);
    let mlp = x.rows(d) + x.read(d) + x.rows(ff) + x.handed(ff) + x.copied(ff) + x.rows(d);
    count.take_blocks(bias(n).max(attention + panels.max(mlp)));
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
