//! What the text encoder takes while it runs, from shapes alone.

use crate::models::cost::{Count, Tokens, Widths};
use crate::models::text::t5::T5Config;
use crate::nn::kernel::memory::taken;

/// Bytes that looking at one row of a mapped table brings into memory: the system reads pages around it too.
pub const ROW: u64 = 64 << 10;

/// The text encoder over prompts of `tokens`, layer by layer.
pub fn encoder(config: &T5Config, tokens: &[usize], widths: Widths) -> Count {
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
