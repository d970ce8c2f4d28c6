//! Products of quantised weights in whole numbers: activations are quantised too, 128 values to a scale, and 32 products at a
//! time, as many as weights have a scale for, are added up exactly before they are scaled.
//!
//! Weights are s u - m with u in 0..=255 and a scale s and an offset m for each 32 of them: Q8_0 has u = q + 128 and
//! m = 128 s, which is taken off before scaling and so without rounding, or, where instructions take signed weights, u = q and
//! no m; Q4_K has u in 0..=15 and an m of its own.

use super::blocks::QuantType;
use super::memory::filled;
use super::micro::{Element, Micro};
use super::pack::Weights;
use super::product::{self, Operand, RowEpilogue};
use super::{self as kernel, Isa};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

/// Values of a row of weights that share a scale.
pub const BLOCK: usize = 32;

/// Blocks of a row of activations that share a scale, so that sums are scaled by it once and not four times: a product takes 7 %
/// less time than with a scale for each block, and what is rounded is 1.2 dB more.
pub const GROUP: usize = 4;

/// 32 values of a row of activations: q times `scale`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Block {
    q: [i8; BLOCK],
    /// Of its group.
    scale: f32,
    /// -128 times the sum of q: what a sum begins with that takes off the 128 which weights are too large by where they have to
    /// be unsigned.
    start: i32,
}

impl Block {
    /// The sum of the values, where weights have an offset of their own.
    #[inline(always)]
    fn total(&self) -> f32 {
        self.scale * (self.start as f32 / -128.0)
    }
}

/// Bytes that so many values of activations take, rounded.
pub fn size(values: u64) -> u64 {
    values.div_ceil(BLOCK as u64) * size_of::<Block>() as u64
}

/// The formats that are multiplied here.
pub const KINDS: [QuantType; 2] = [QuantType::Q8_0, QuantType::Q4K];

/// Rows of blocks.
#[derive(Clone, Copy)]
pub struct Quantised<'a> {
    /// One of [`KINDS`].
    pub kind: QuantType,
    pub bytes: &'a [u8],
    /// Whether they are [`Panels`], and not one after the other.
    pub prepacked: bool,
}

impl Quantised<'_> {
    /// Bytes of `blocks` times 32 values.
    fn size(self, blocks: usize) -> usize {
        self.kind.size(blocks * BLOCK)
    }

    /// Whether there are `n` rows of `blocks` times 32 values.
    fn hold(self, n: usize, blocks: usize) -> bool {
        (blocks * BLOCK).is_multiple_of(self.kind.values()) && self.bytes.len() >= n * self.size(blocks)
    }

    /// Where a block of a row lies, or would lie, one row after the other.
    fn address(self, row: usize, blocks: usize, at: usize) -> *const u8 {
        self.bytes.as_ptr().wrapping_add(row * self.size(blocks) + self.size(at))
    }
}

/// Instructions that multiply bytes and add up four products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dot {
    /// AVX-512's, in its own registers.
    Avx512,
    /// AVX-512's in registers of half the width: what AVX-VNNI does, on a CPU that has it otherwise.
    Avx512Half,
    /// AVX-VNNI, of CPUs without AVX-512.
    AvxVnni,
    /// AVX2's, which takes two to four instructions to it.
    Avx2,
    /// Arm's, two rows by two columns at a time (FEAT_I8MM).
    NeonMatrix,
    /// Arm's, a row at a time (FEAT_DotProd).
    NeonDot,
}

impl Dot {
    /// All that this CPU has, the fastest first.
    pub fn all() -> Vec<Dot> {
        let mut all = vec![];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if matches!(Isa::best(), Isa::Avx512Bf16 | Isa::Avx512) && has!("avx512vnni") {
                all.extend([Dot::Avx512, Dot::Avx512Half]);
            }
            if has!("avxvnni") && has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Dot::AvxVnni);
            }
            if has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Dot::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("i8mm") {
                all.push(Dot::NeonMatrix);
            }
            if has!("dotprod") {
                all.push(Dot::NeonDot);
            }
        }
        all
    }

    /// The fastest that this CPU has, if it is faster than its products of f32, into which quantised weights are widened on their
    /// way otherwise: AVX-512's are faster than AVX2's of bytes.
    pub fn best() -> Option<Dot> {
        static BEST: LazyLock<Option<Dot>> =
            LazyLock::new(|| Dot::all().into_iter().find(|dot| *dot != Dot::Avx2 || Isa::best() == Isa::Avx2));
        *BEST
    }
}

/// Whether products with rows of `k` values in these blocks can be made here.
pub fn fits(kind: QuantType, k: usize) -> bool {
    Dot::best().is_some() && divides(kind, k)
}

/// Whether attention's scores between heads of `head_dim` values can be made as int8 dot products here: by `Kernel::Int8Scores`.
pub fn scores_fit(head_dim: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return scores::fits(head_dim);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = head_dim;
        false
    }
}

fn divides(kind: QuantType, k: usize) -> bool {
    KINDS.contains(&kind) && k > 0 && k.is_multiple_of(kind.values())
}

/// Rows of activations, of f32 or bf16.
pub struct Activations<'a, E> {
    pub x: &'a [E],
    /// Elements from row to row.
    pub stride: usize,
    pub rows: usize,
    pub k: usize,
}

/// y = finish(x wᵀ), x rounded to eight bits in blocks.
/// - `weights`: (n, k), and they [`fits`]. `y`: (rows, n), `row_stride` from row to row; what lies between is set to zero.
pub fn product<E: Element, T: Element>(
    x: &Activations<E>,
    weights: Quantised,
    n: usize,
    finish: RowEpilogue,
    y: &mut [MaybeUninit<T>],
    row_stride: usize,
) {
    let Some(dot) = Dot::best() else { unreachable!("`fits` says no") };
    product_on(dot, x, weights, n, finish, y, row_stride)
}

/// As [`product()`], with instructions that this CPU has.
pub fn product_on<E: Element, T: Element>(
    dot: Dot,
    x: &Activations<E>,
    weights: Quantised,
    n: usize,
    finish: RowEpilogue,
    y: &mut [MaybeUninit<T>],
    row_stride: usize,
) {
    assert!(divides(weights.kind, x.k), "int8: rows of {} values in {:?}", x.k, weights.kind);
    assert!(!weights.prepacked || dot == Dot::Avx512, "int8: panels for {dot:?}");
    #[cfg(target_arch = "x86_64")]
    match (dot, weights.kind) {
        (Dot::Avx512, QuantType::Q8_0) => run::<avx512::Vnni<false>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::Avx512, QuantType::Q4K) => run::<avx512::Vnni<true>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::Avx512Half, QuantType::Q8_0) => run::<avx2::Evex<false>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::Avx512Half, QuantType::Q4K) => run::<avx2::Evex<true>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::AvxVnni, QuantType::Q8_0) => run::<avx2::Vex<false>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::AvxVnni, QuantType::Q4K) => run::<avx2::Vex<true>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::Avx2, QuantType::Q8_0) => run::<avx2::Avx2<false>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::Avx2, QuantType::Q4K) => run::<avx2::Avx2<true>, E, T>(x, weights, n, finish, y, row_stride),
        (dot, kind) => unreachable!("{dot:?} is not of this CPU, or {kind:?} of `KINDS`"),
    }
    #[cfg(target_arch = "aarch64")]
    match (dot, weights.kind) {
        (Dot::NeonMatrix, QuantType::Q8_0) => run::<neon::Matrices<false>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::NeonMatrix, QuantType::Q4K) => run::<neon::Matrices<true>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::NeonDot, QuantType::Q8_0) => run::<neon::Dots<false>, E, T>(x, weights, n, finish, y, row_stride),
        (Dot::NeonDot, QuantType::Q4K) => run::<neon::Dots<true>, E, T>(x, weights, n, finish, y, row_stride),
        (dot, kind) => unreachable!("{dot:?} is not of this CPU, or {kind:?} of `KINDS`"),
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = (dot, n, finish, y, row_stride);
        unreachable!("`fits` says no")
    }
}

fn run<'a, K: Bytes, E: Element, T: Element>(
    x: &Activations<E>,
    weights: Quantised<'a>,
    n: usize,
    finish: RowEpilogue,
    y: &mut [MaybeUninit<T>],
    row_stride: usize,
) where
    Quantised<'a>: Weights<K>,
{
    let blocks = x.k / BLOCK;
    let stride = kernel::row_stride(blocks, size_of::<Block>());
    let write = |a: &mut [MaybeUninit<Block>]| {
        a.par_chunks_mut(stride).with_min_len(8).enumerate().for_each(|(i, a)| {
            let (a, rest) = a.split_at_mut(blocks);
            rest.fill(MaybeUninit::new(Block::default()));
            let x = &x.x[i * x.stride..][..x.k];
            // SAFETY: K was chosen for this CPU; both are whole blocks, as many.
            unsafe { K::quantise(x, a) }
        });
    };
    // SAFETY: every row is written, and what lies between.
    let a = unsafe { filled(x.rows * stride, write) };
    product::product::<K, T>(&Operand::matrix(&a, x.rows, blocks, stride), weights, n, finish, y, row_stride);
}

/// A kernel over blocks.
trait Bytes: Micro<Elem = Block> {
    /// Rounds a row to blocks; all of `a` is written.
    ///
    /// # Safety
    /// The instruction set is there, and there are 32 values for each block.
    unsafe fn quantise<E: Element>(x: &[E], a: &mut [MaybeUninit<Block>]);
}

/// Rows of a panel.
const PANEL_ROWS: usize = 32;
/// Bytes of a block of a panel: for each group of four values of k, those of all rows, 128 larger than they are; then the rows'
/// scales, in f16.
const PANEL_BYTES: usize = PANEL_ROWS * (BLOCK + size_of::<u16>());

pub use panels::Panels;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
#[cfg(target_arch = "x86_64")]
pub mod scores;
