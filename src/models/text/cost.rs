//! What the text encoder takes while it runs, from shapes alone.

use crate::models::cost::{Count, Widths};
use crate::models::text::t5::T5Config;
use crate::nn::kernel::memory::taken;

/// Bytes that looking at one row of a mapped table brings into memory: the system reads pages around it too.
const ROW: u64 = 64 << 10;

/// The text encoder over prompts of `tokens`, layer by layer.
pub fn encoder(config: &T5Config, tokens: &[usize], widths: Widths) -> Count {
    let (d, inner, ff) = (config.d_model as u64, (config.heads * config.d_kv) as u64, config.d_ff as u64);
    let mut count = Count::default();
    let longest = tokens.iter().copied().max().unwrap_or(0) as u64;
    for &n in tokens {
        let n = n as u64;
        count.take(n * d * widths.activation);
        let layer = 4 * n * d * inner + 2 * n * n * inner + 3 * n * d * ff;
        count.operations += 2 * config.layers as u64 * layer;
        count.take_blocks(2 * taken(n * n * config.heads as u64 * widths.activation)); // the bias of its positions
    }
    count.take_blocks(tokens.iter().sum::<usize>() as u64 * ROW); // of the embedding
    let n = longest;
    count.take_blocks(n * (2 * d + 4 * inner) * widths.activation);
    count.take_blocks(2 * taken(n * ff * widths.activation));
    count
}
