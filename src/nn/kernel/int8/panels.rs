//! Rows of Q8_0 repacked once and for all as a kernel reads them, in no more memory: for weights that stay. Rows that come and
//! go are repacked block by block when they are multiplied by, which costs some hundredths of a product.

use super::super::blocks::QuantType;
use super::{BLOCK, Dot, PANEL_BYTES, PANEL_ROWS, Quantised};
use memmap2::MmapMut;
use rayon::prelude::*;

/// Panels of rows, each block after block of k. They lie in pages of their own, whole lines of memory, and are not part of what
/// layers hand to each other, which more is kept of the more there is.
pub struct Panels(MmapMut);

impl Panels {
    /// - `weights`: (n, blocks * 32), row after row. `None` where products read rows as they lie, rows do not fill panels, or
    ///   there is no memory.
    pub fn of(weights: Quantised, n: usize, blocks: usize) -> Option<Self> {
        let fits = Dot::best() == Some(Dot::Avx512) && weights.kind == QuantType::Q8_0 && !weights.prepacked;
        if !fits || n == 0 || blocks == 0 || !n.is_multiple_of(PANEL_ROWS) {
            return None;
        }
        assert!(weights.hold(n, blocks), "panels: no {n} x {blocks} blocks");
        let mut pages = MmapMut::map_anon(n / PANEL_ROWS * blocks * PANEL_BYTES).ok()?;
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage); // it is only advice
        let panels = pages.par_chunks_mut(blocks * PANEL_BYTES).enumerate();
        panels.for_each(|(i, panel)| lay(weights, i * PANEL_ROWS, blocks, panel));
        Some(Self(pages))
    }

    /// Themselves, to be multiplied by.
    pub fn weights(&self) -> Quantised<'_> {
        Quantised { kind: QuantType::Q8_0, bytes: &self.0, prepacked: true }
    }

    /// The rows, one after the other again.
    /// - `blocks`: of a row.
    pub fn rows(&self, blocks: usize) -> Vec<u8> {
        let bytes = self.weights().bytes;
        let mut rows = vec![0; bytes.len()];
        for (i, block) in rows.as_chunks_mut::<{ BLOCK + 2 }>().0.iter_mut().enumerate() {
            let (row, at) = (i / blocks, i % blocks);
            let (panel, column) =
                (&bytes[(row / PANEL_ROWS * blocks + at) * PANEL_BYTES..][..PANEL_BYTES], row % PANEL_ROWS);
            let (quants, scales) = panel.split_at(PANEL_ROWS * BLOCK);
            block[..2].copy_from_slice(&scales[2 * column..][..2]);
            for (k, q) in block[2..].iter_mut().enumerate() {
                *q = quants[k / 4 * 4 * PANEL_ROWS + column * 4 + k % 4] ^ 0x80;
            }
        }
        rows
    }
}

/// The panel that begins with row `first`.
fn lay(weights: Quantised, first: usize, blocks: usize, panel: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this CPU has the kernel, and there are 32 rows from `first` on, as `Panels::of` says.
    unsafe {
        super::avx512::panel_q8(weights, first, PANEL_ROWS, blocks, 0, blocks, panel.as_mut_ptr())
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (weights, first, blocks, panel);
        unreachable!("`Panels::of` says no")
    }
}
