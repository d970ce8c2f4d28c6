//! In Arm's registers of four f32 or eight bf16, of which there are thirty-two.

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use super::super::simd;
use super::{Kernel, Micro};
use half::bf16;
use std::arch::aarch64::*;
use std::arch::asm;

/// A body for each value of a variable, one after the other: a loop that the compiler left as one would look for its registers in
/// memory.
macro_rules! unrolled {
    ($i:ident in [$($n:literal)*] $body:block) => {{ $({ let $i = $n; $body })* }};
}
pub(in super::super) use unrolled;

/// f32, with its fused multiply-add: what every 64-bit Arm has.
pub struct Neon;

impl Kernel for Neon {
    type Int8Scores = Self;
}

impl Micro for Neon {
    type Elem = f32;
    type V = simd::Neon<false>;
    const MR: usize = 8;
    const NR: usize = 8;
    const STEP: usize = 1;
    const GRAIN: usize = 32;
    const VALUES: usize = 1;
    const AHEAD: usize = 1;

    #[inline(always)]
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    unsafe fn micro(
        rows: usize,
        a: *const f32,
        stride: usize,
        panel: *const f32,
        k: usize,
        tile: *mut f32,
        row_stride: usize,
        ahead: (*const u8, usize),
        add: bool,
    ) {
        by_rows!(rows, fma(a, stride, panel, k, tile, row_stride, ahead, add), 1 2 3 4 5 6 7 8)
    }
}

/// Sixteen sums, four values of each of eight rows, and two registers of the panel. For four values of k, eight loads of rows and
/// eight of the panel stand before sixty-four multiplications.
#[target_feature(enable = "neon")]
unsafe fn fma<const ROWS: usize>(
    a: *const f32,
    stride: usize,
    panel: *const f32,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (mut ahead, pace): (*const u8, usize),
    add: bool,
) {
    let mut sums = [[vdupq_n_f32(0.0); 2]; ROWS];
    let (mut a, mut b) = (a, panel);
    for _ in 0..k / 4 {
        let rows: [float32x4_t; ROWS] = std::array::from_fn(|i| vld1q_f32(a.add(i * stride)));
        unrolled!(p in [0 1 2 3] {
            prefetch(ahead);
            ahead = ahead.wrapping_add(pace);
            let (b0, b1) = (vld1q_f32(b), vld1q_f32(b.add(4)));
            for (sums, row) in sums.iter_mut().zip(rows) {
                sums[0] = by_lane(sums[0], b0, row, p);
                sums[1] = by_lane(sums[1], b1, row, p);
            }
            b = b.add(8);
        });
        a = a.add(4);
    }
    for _ in 0..k % 4 {
        let (b0, b1) = (vld1q_f32(b), vld1q_f32(b.add(4)));
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = vld1q_dup_f32(a.add(i * stride));
            sums[0] = vfmaq_f32(sums[0], b0, x);
            sums[1] = vfmaq_f32(sums[1], b1, x);
        }
        a = a.add(1);
        b = b.add(8);
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            let c = tile.add(i * row_stride + j * 4);
            vst1q_f32(c, if add { vaddq_f32(vld1q_f32(c), *sum) } else { *sum });
        }
    }
}

/// sum + b row[lane]
#[inline(always)]
unsafe fn by_lane(sum: float32x4_t, b: float32x4_t, row: float32x4_t, lane: usize) -> float32x4_t {
    match lane {
        0 => vfmaq_laneq_f32::<0>(sum, b, row),
        1 => vfmaq_laneq_f32::<1>(sum, b, row),
        2 => vfmaq_laneq_f32::<2>(sum, b, row),
        _ => vfmaq_laneq_f32::<3>(sum, b, row),
    }
}

/// Brings memory nearer that is wanted soon; any address will do. In assembly, because Rust has no stable name for it.
#[inline(always)]
pub(in super::super) fn prefetch(at: *const u8) {
    // SAFETY: a hint that reads nothing.
    unsafe { asm!("prfm pldl2keep, [{at}]", at = in(reg) at.addr(), options(nomem, nostack, preserves_flags)) }
}

/// bf16 by two rows of four values times two columns of four, added up in f32 (FEAT_BF16).
pub struct NeonBf16;

impl Kernel for NeonBf16 {
    type Int8Scores = Self;
}

impl Micro for NeonBf16 {
    type Elem = bf16;
    type V = simd::Neon<true>;
    const MR: usize = 6;
    const NR: usize = 16;
    const STEP: usize = 4;
    const GRAIN: usize = 32;
    const VALUES: usize = 1;
    const AHEAD: usize = 1;

    #[inline(always)]
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon,bf16")]
        unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        run(f)
    }

    unsafe fn micro(
        rows: usize,
        a: *const bf16,
        stride: usize,
        panel: *const bf16,
        k: usize,
        tile: *mut f32,
        row_stride: usize,
        ahead: (*const u8, usize),
        add: bool,
    ) {
        match rows {
            1 => fours::<1, 1>(a, stride, panel, k, tile, row_stride, ahead, add),
            2 => fours::<2, 1>(a, stride, panel, k, tile, row_stride, ahead, add),
            3 => fours::<3, 2>(a, stride, panel, k, tile, row_stride, ahead, add),
            4 => fours::<4, 2>(a, stride, panel, k, tile, row_stride, ahead, add),
            5 => fours::<5, 3>(a, stride, panel, k, tile, row_stride, ahead, add),
            6 => fours::<6, 3>(a, stride, panel, k, tile, row_stride, ahead, add),
            _ => unreachable!("no tile has {rows} rows"),
        }
    }
}

/// Pairs of rows, the last one twice where their number is odd, times eight pairs of columns. For four values of k, six loads of
/// rows and eight of the panel stand before twenty-four multiplications.
#[target_feature(enable = "neon,bf16")]
unsafe fn fours<const ROWS: usize, const PAIRS: usize>(
    a: *const bf16,
    stride: usize,
    panel: *const bf16,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (mut ahead, pace): (*const u8, usize),
    add: bool,
) {
    let mut sums = [[vdupq_n_f32(0.0); 8]; PAIRS];
    let row = |i: usize| i.min(ROWS - 1) * stride;
    let (mut a, mut b) = (a, panel);
    for _ in 0..k / 4 {
        prefetch(ahead);
        ahead = ahead.wrapping_add(pace);
        let rows: [uint64x2_t; PAIRS] = std::array::from_fn(|i| {
            let first = vld1_u64(a.add(row(2 * i)).cast());
            vld1q_lane_u64::<1>(a.add(row(2 * i + 1)).cast(), vcombine_u64(first, vdup_n_u64(0)))
        });
        unrolled!(j in [0 1 2 3 4 5 6 7] {
            let columns = vld1q_u16(b.add(j * 8).cast());
            for (sums, rows) in sums.iter_mut().zip(rows) {
                sums[j] = matrix(sums[j], vreinterpretq_u16_u64(rows), columns);
            }
        });
        a = a.add(4);
        b = b.add(64);
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, sums) in sums.as_chunks::<2>().0.iter().enumerate() {
            // two columns of two rows each -> four columns of a row
            let [x, y] = sums.map(|x| vreinterpretq_f64_f32(x));
            for (r, sum) in [vzip1q_f64(x, y), vzip2q_f64(x, y)].into_iter().enumerate() {
                if 2 * i + r < ROWS {
                    let c = tile.add((2 * i + r) * row_stride + j * 4);
                    let sum = vreinterpretq_f32_f64(sum);
                    vst1q_f32(c, if add { vaddq_f32(vld1q_f32(c), sum) } else { sum });
                }
            }
        }
    }
}

/// sums + rows columnsᵀ, all of them two by two. In assembly, because Rust 1.89 has no name for the instruction.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn matrix(mut sums: float32x4_t, rows: uint16x8_t, columns: uint16x8_t) -> float32x4_t {
    // SAFETY: registers alone, by an instruction that this function asks for.
    unsafe {
        asm!("bfmmla {s:v}.4s, {r:v}.8h, {c:v}.8h", s = inout(vreg) sums, r = in(vreg) rows, c = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags))
    };
    sums
}
