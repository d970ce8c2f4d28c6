//! In Arm's registers: tiles of six rows and eight columns, by two kinds of instructions. Both take signed weights as they are.

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use super::super::blocks::{QuantType, half, six_bits};
use super::super::micro::neon::{prefetch, unrolled};
use super::super::micro::{Element, Micro};
use super::super::pack::{Weights, neon::interleave};
use super::super::simd::{self, Neon};
use super::{BLOCK, Block, Bytes, GROUP, Quantised};
use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;

/// Columns of a tile.
const COLUMNS: usize = 8;

/// A block of a panel.
#[repr(C)]
struct Columns {
    /// Groups of values of k, as many as one instruction adds up, the columns side by side.
    q: [i8; COLUMNS * BLOCK],
    scale: [f32; COLUMNS],
    /// Negated.
    offset: [f32; COLUMNS],
}

/// A kernel over blocks, whose tiles `$f` makes from groups of `$group` values of k with `$features`.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $f:ident, $group:literal, $features:literal) => {
        $(#[$doc])*
        pub struct $name<const OFFSET: bool>;

        impl<const OFFSET: bool> Micro for $name<OFFSET> {
            type Elem = Block;
            type V = Neon<false>;
            const MR: usize = 6;
            const NR: usize = COLUMNS;
            const STEP: usize = 1;
            const GRAIN: usize = 2 * GROUP;
            const VALUES: usize = BLOCK;
            const AHEAD: usize = 4;

            #[inline(always)]
            unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
                f()
            }

            unsafe fn micro(
                rows: usize,
                a: *const Block,
                stride: usize,
                panel: *const Block,
                k: usize,
                tile: *mut f32,
                row_stride: usize,
                ahead: (*const u8, usize),
                add: bool,
            ) {
                match rows {
                    1 => $f::<1, 1, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
                    2 => $f::<2, 1, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
                    3 => $f::<3, 2, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
                    4 => $f::<4, 2, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
                    5 => $f::<5, 3, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
                    6 => $f::<6, 3, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
                    _ => unreachable!("no tile has {rows} rows"),
                }
            }
        }

        impl<const OFFSET: bool> Bytes for $name<OFFSET> {
            unsafe fn quantise<E: Element>(x: &[E], a: &mut [MaybeUninit<Block>]) {
                quantise(x, a)
            }
        }

        impl<const OFFSET: bool> Weights<$name<OFFSET>> for Quantised<'_> {
            fn hold(self, n: usize, k: usize) -> bool {
                OFFSET == (self.kind == QuantType::Q4K) && self.hold(n, k)
            }

            fn address(self, row: usize, k: usize, at: usize) -> *const u8 {
                self.address(row, k, at)
            }

            fn bytes(self, k: usize) -> usize {
                self.size(k)
            }

            fn panel(
                self,
                stride: usize,
                first: usize,
                n: usize,
                k0: usize,
                k: usize,
                _: &mut Vec<Block>,
                out: &mut [Block],
            ) {
                // SAFETY: NEON is what every CPU of this target has.
                unsafe { panel::<$group>(self, stride, first, n, k0, k, out) }
            }
        }
    };
}

kernel!(
    /// Four products added up in a sum: FEAT_DotProd.
    Dots, dots, 4, "neon,dotprod"
);
kernel!(
    /// Two rows of eight values times two columns of eight: FEAT_I8MM.
    Matrices, matrices, 8, "neon,i8mm"
);

/// For a block of 32 values of k, two loads of each row and sixteen of the panel stand before sixteen multiplications a row, and
/// six operations a row that scale them.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dots<const ROWS: usize, const PAIRS: usize, const OFFSET: bool>(
    a: *const Block,
    stride: usize,
    panel: *const Block,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (mut ahead, pace): (*const u8, usize),
    add: bool,
) {
    let _ = PAIRS;
    let mut sums = [[vdupq_n_f32(0.0); 2]; ROWS];
    if add {
        for (i, sums) in sums.iter_mut().enumerate() {
            *sums = [vld1q_f32(tile.add(i * row_stride)), vld1q_f32(tile.add(i * row_stride + 4))];
        }
    }
    for block in 0..k {
        for _ in 0..4 {
            prefetch(ahead);
            ahead = ahead.wrapping_add(pace);
        }
        let columns = panel.add(block * COLUMNS).cast::<Columns>();
        let a = a.add(block);
        let mut dots = [[vdupq_n_s32(0); 2]; ROWS];
        unrolled!(half in [0 1] {
            let rows: [int8x16_t; ROWS] =
                std::array::from_fn(|i| vld1q_s8((&raw const (*a.add(i * stride)).q).cast::<i8>().add(half * 16)));
            unrolled!(lane in [0 1 2 3] {
                let q = (&raw const (*columns).q).cast::<i8>().add((half * 4 + lane) * 4 * COLUMNS);
                let (q0, q1) = (vld1q_s8(q), vld1q_s8(q.add(16)));
                for (dots, row) in dots.iter_mut().zip(rows) {
                    dots[0] = dot(dots[0], q0, row, lane);
                    dots[1] = dot(dots[1], q1, row, lane);
                }
            })
        });
        for j in 0..2 {
            let scale = vld1q_f32((&raw const (*columns).scale).cast::<f32>().add(j * 4));
            for (i, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                sums[j] = vfmaq_n_f32(sums[j], vmulq_f32(vcvtq_f32_s32(dots[j]), scale), (*a.add(i * stride)).scale);
            }
            if OFFSET {
                let offset = vld1q_f32((&raw const (*columns).offset).cast::<f32>().add(j * 4));
                for (i, sums) in sums.iter_mut().enumerate() {
                    sums[j] = vfmaq_n_f32(sums[j], offset, (*a.add(i * stride)).total());
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        vst1q_f32(tile.add(i * row_stride), sums[0]);
        vst1q_f32(tile.add(i * row_stride + 4), sums[1]);
    }
}

/// sum + q row[lane], four values at a time. In assembly, because Rust 1.89 has no name for the instruction.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(sum: int32x4_t, q: int8x16_t, row: int8x16_t, lane: usize) -> int32x4_t {
    match lane {
        0 => dot_lane::<0>(sum, q, row),
        1 => dot_lane::<1>(sum, q, row),
        2 => dot_lane::<2>(sum, q, row),
        _ => dot_lane::<3>(sum, q, row),
    }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_lane<const LANE: usize>(mut sum: int32x4_t, q: int8x16_t, row: int8x16_t) -> int32x4_t {
    // SAFETY: registers alone, by an instruction that this function asks for.
    unsafe {
        asm!("sdot {s:v}.4s, {q:v}.16b, {r:v}.4b[{lane}]", s = inout(vreg) sum, q = in(vreg) q, r = in(vreg) row,
            lane = const LANE, options(pure, nomem, nostack, preserves_flags))
    };
    sum
}

/// Pairs of rows, the last one twice where their number is odd. For a block of 32 values of k, two loads of each row and sixteen
/// of the panel stand before sixteen multiplications a pair, two moves that pair each row's loads, and twelve operations a pair
/// that scale them.
#[target_feature(enable = "neon,i8mm")]
unsafe fn matrices<const ROWS: usize, const PAIRS: usize, const OFFSET: bool>(
    a: *const Block,
    stride: usize,
    panel: *const Block,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (mut ahead, pace): (*const u8, usize),
    add: bool,
) {
    let row = |i: usize| i.min(ROWS - 1);
    // two columns of one row, then of the other
    let mut sums = [[vdupq_n_f32(0.0); 4]; PAIRS];
    if add {
        for (i, sums) in sums.iter_mut().enumerate() {
            let lines = [2 * i, 2 * i + 1].map(|i| tile.add(row(i) * row_stride));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = vcombine_f32(vld1_f32(lines[0].add(2 * j)), vld1_f32(lines[1].add(2 * j)));
            }
        }
    }
    for block in 0..k {
        for _ in 0..4 {
            prefetch(ahead);
            ahead = ahead.wrapping_add(pace);
        }
        let columns = panel.add(block * COLUMNS).cast::<Columns>();
        let a = a.add(block);
        let mut dots = [[vdupq_n_s32(0); 4]; PAIRS];
        unrolled!(half in [0 1] {
            // the first eight values of both rows, and the other eight
            let rows: [[int8x16_t; 2]; PAIRS] = std::array::from_fn(|i| {
                let [x, y] = [2 * i, 2 * i + 1].map(|i| {
                    let q = (&raw const (*a.add(row(i) * stride)).q).cast::<i8>();
                    vreinterpretq_s64_s8(vld1q_s8(q.add(half * 16)))
                });
                [vreinterpretq_s8_s64(vzip1q_s64(x, y)), vreinterpretq_s8_s64(vzip2q_s64(x, y))]
            });
            unrolled!(part in [0 1] {
                unrolled!(j in [0 1 2 3] {
                    let q = (&raw const (*columns).q).cast::<i8>().add((half * 2 + part) * 8 * COLUMNS + j * 16);
                    let q = vld1q_s8(q);
                    for (dots, rows) in dots.iter_mut().zip(rows) {
                        dots[j] = matrix(dots[j], rows[part], q);
                    }
                })
            })
        });
        let both = |x: f32, y: f32| vcombine_f32(vdup_n_f32(x), vdup_n_f32(y));
        let twice = |x: *const f32| vreinterpretq_f32_f64(vld1q_dup_f64(x.cast()));
        for (i, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
            let (x, y) = (a.add(row(2 * i) * stride), a.add(row(2 * i + 1) * stride));
            let factor = both((*x).scale, (*y).scale);
            for j in 0..4 {
                let scale = twice((&raw const (*columns).scale).cast::<f32>().add(2 * j));
                sums[j] = vfmaq_f32(sums[j], vmulq_f32(vcvtq_f32_s32(dots[j]), scale), factor);
            }
            if OFFSET {
                let total = both((*x).total(), (*y).total());
                for (j, sum) in sums.iter_mut().enumerate() {
                    let offset = twice((&raw const (*columns).offset).cast::<f32>().add(2 * j));
                    *sum = vfmaq_f32(*sum, offset, total);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            vst1_f32(tile.add(2 * i * row_stride + 2 * j), vget_low_f32(*sum));
            if 2 * i + 1 < ROWS {
                vst1_f32(tile.add((2 * i + 1) * row_stride + 2 * j), vget_high_f32(*sum));
            }
        }
    }
}

/// dots + rows columnsᵀ, all of them two by two. In assembly, because Rust 1.89 has no name for the instruction.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn matrix(mut dots: int32x4_t, rows: int8x16_t, columns: int8x16_t) -> int32x4_t {
    // SAFETY: registers alone, by an instruction that this function asks for.
    unsafe {
        asm!("smmla {d:v}.4s, {r:v}.16b, {c:v}.16b", d = inout(vreg) dots, r = in(vreg) rows, c = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags))
    };
    dots
}

/// A row of activations -> blocks.
fn quantise<E: Element>(x: &[E], a: &mut [MaybeUninit<Block>]) {
    for (x, a) in x.chunks(GROUP * BLOCK).zip(a.chunks_mut(GROUP)) {
        // SAFETY: fours of a chunk's values, of which it has a multiple of 32, and a block has room for as many; NEON is what every
        // CPU of this target has.
        unsafe {
            let load = |x: &[E]| simd::load::<Neon<false>, E>(x.as_ptr()).0;
            // no number is the largest of all, here as in what it leads to
            let most = x.chunks_exact(4).fold(vdupq_n_f32(0.0), |most, x| vmaxq_f32(most, vabsq_f32(load(x))));
            let scale = vmaxvq_f32(most) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for (x, block) in x.chunks_exact(BLOCK).zip(a) {
                let whole: [int32x4_t; 8] =
                    std::array::from_fn(|i| vcvtnq_s32_f32(vmulq_n_f32(load(&x[4 * i..]), inverse)));
                let sum = vaddvq_s32(whole.iter().fold(vdupq_n_s32(0), |sum, x| vaddq_s32(sum, *x)));
                let block = block.write(Block { q: [0; BLOCK], scale, start: -128 * sum });
                for (q, x) in block.q.as_chunks_mut::<8>().0.iter_mut().zip(whole.as_chunks::<2>().0) {
                    vst1_s8(q.as_mut_ptr(), vmovn_s16(vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]))));
                }
            }
        }
    }
}

/// A panel of eight rows, in groups of `GROUP` values.
///
/// # Safety
/// NEON is there.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn panel<const GROUP: usize>(
    weights: Quantised,
    stride: usize,
    first: usize,
    n: usize,
    k0: usize,
    k: usize,
    out: &mut [Block],
) {
    const { assert!(size_of::<Columns>() <= COLUMNS * size_of::<Block>()) };
    let row = weights.size(stride);
    let (values, bytes) = (weights.kind.values(), weights.kind.bytes());
    let mut lines = [[0u8; BLOCK]; COLUMNS];
    for (block, out) in out.chunks_exact_mut(COLUMNS).take(k).enumerate() {
        // SAFETY: the eight blocks are larger than what is read as columns here and in the loops, and any bits are columns.
        let columns = &mut *out.as_mut_ptr().cast::<Columns>();
        let (large, part) = ((k0 + block) * BLOCK / values, (k0 + block) % (values / BLOCK));
        for (j, line) in lines.iter_mut().enumerate() {
            if first + j >= n {
                *line = [0; BLOCK];
                (columns.scale[j], columns.offset[j]) = (0.0, 0.0);
                continue;
            }
            let x = &weights.bytes[(first + j) * row + large * bytes..][..bytes];
            match weights.kind {
                QuantType::Q8_0 => {
                    columns.scale[j] = half(x, 0);
                    line.copy_from_slice(&x[2..]);
                }
                _ => {
                    let (scales, offsets) = six_bits(x[4..16].try_into().expect("twelve bytes"));
                    columns.scale[j] = half(x, 0) * scales[part] as f32;
                    columns.offset[j] = -half(x, 2) * offsets[part] as f32;
                    let shift = part % 2 * 4;
                    line.iter_mut().zip(&x[16 + part / 2 * 32..]).for_each(|(y, x)| *y = x >> shift & 15);
                }
            }
        }
        // SAFETY: eight lines of 32 bytes, as many as there are values.
        interleave::<GROUP>(lines.as_ptr().cast(), BLOCK, BLOCK / GROUP, COLUMNS, columns.q.as_mut_ptr().cast());
    }
}
