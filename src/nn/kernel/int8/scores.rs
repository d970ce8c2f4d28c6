//! Attention's scores by int8 dot products: queries and keys rounded to eight bits, each head of a row with a scale of its own.
//! Keys are rounded less their mean, since what all of them share, often much, changes no weight.
//!
//! Source of the method: Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration" (2024).

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use super::super::attend::head_stride;
use super::super::micro::Scores;
use super::super::micro::{Avx512Bf16, Micro, weigh_row};
use super::super::{Isa, memory::filled, row_stride};
use super::avx512;
use super::{BLOCK, Block, Bytes as _, Dot, GROUP};
use half::bf16;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Whether [`Bytes`] is of this CPU and such heads have one scale.
pub fn fits(head_dim: usize) -> bool {
    Isa::best() == Isa::Avx512Bf16 && Dot::best() == Some(Dot::Avx512) && head_dim <= GROUP * BLOCK
}

/// AVX-512's products of bytes; weights and values are bf16. Elements are 32 values, so a head's last one may be filled up.
pub struct Bytes;

/// A block of a panel of keys.
type Columns = avx512::Columns<[f32; 32]>;

/// Rows that are added up by themselves on the way to a mean, whatever the number of threads.
const TASK: usize = 64;

/// The mean of some rows.
/// - `x`: rows of `stride`, of which `width` count.
fn mean(x: &[bf16], stride: usize, width: usize) -> Vec<f32> {
    let add = |x: &[bf16]| {
        let mut sum = vec![0f32; width];
        x.chunks(stride).for_each(|x| {
            // SAFETY: this CPU has the kernel's instructions, as `fits` says.
            unsafe {
                Avx512Bf16::vectorised(
                    #[inline(always)]
                    || sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x.to_f32()),
                )
            }
        });
        sum
    };
    let parts: Vec<Vec<f32>> = x.par_chunks(TASK * stride).map(add).collect();
    let by = 1.0 / (x.len() / stride).max(1) as f32;
    (0..width).map(|i| parts.iter().map(|part| part[i]).sum::<f32>() * by).collect()
}

impl Scores for Bytes {
    type Kernel = Avx512Bf16;
    type Elem = Block;

    fn head(head_dim: usize) -> usize {
        head_dim.div_ceil(BLOCK)
    }

    fn rows(x: Vec<bf16>, heads: usize, head_dim: usize, stride: usize, centred: bool) -> (Vec<Block>, usize) {
        let (from, blocks) = (head_stride::<Avx512Bf16>(head_dim), Self::head(head_dim));
        let to = row_stride(heads * blocks, size_of::<Block>());
        let mean = if centred { mean(&x, stride, heads * from) } else { vec![0.0; heads * from] };
        let write = |y: &mut [MaybeUninit<Block>]| {
            y.par_chunks_mut(to).zip(x.par_chunks(stride)).with_min_len(8).for_each(|(y, x)| {
                let mut line = [0f32; GROUP * BLOCK];
                for h in 0..heads {
                    let (x, mean) = (&x[h * from..][..head_dim], &mean[h * from..]);
                    // SAFETY: this CPU has the instructions; a head has so many blocks of values in the line.
                    unsafe {
                        Avx512Bf16::vectorised(
                            #[inline(always)]
                            || line.iter_mut().zip(x).zip(mean).for_each(|((y, x), mean)| *y = x.to_f32() - mean),
                        );
                        avx512::Vnni::<false>::quantise(&line[..blocks * BLOCK], &mut y[h * blocks..][..blocks]);
                    }
                }
                y[heads * blocks..].fill(MaybeUninit::new(Block::default()));
            });
        };
        // SAFETY: every row is written.
        let y = unsafe { filled(x.len() / stride * to, write) };
        (y, to)
    }

    fn panel(k: &[Block], stride: usize, first: usize, m: usize, head: usize, _: &mut Vec<Block>, out: &mut [Block]) {
        const { assert!(Avx512Bf16::NR == 32 && size_of::<Columns>() <= 32 * size_of::<Block>()) };
        assert_eq!(out.len(), head * 32);
        let none = Block::default();
        for block in 0..head {
            let keys: [&Block; 32] = std::array::from_fn(|j| match first + j < m {
                true => &k[(first + j) * stride + block],
                false => &none,
            });
            // SAFETY: this CPU has the instructions; `out` has room for so many blocks of 32 columns.
            unsafe { avx512::columns(keys, out.as_mut_ptr().cast::<Columns>().add(block)) }
        }
    }

    unsafe fn scores(rows: usize, q: *const Block, stride: usize, panel: *const Block, head: usize, tile: *mut f32) {
        let none = (std::ptr::null_mut(), 0, std::ptr::null_mut());
        Self::meet::<false>(rows, q, stride, panel, head, tile, none)
    }

    unsafe fn weigh(
        rows: usize,
        q: *const Block,
        stride: usize,
        panel: *const Block,
        head: usize,
        start: *const f32,
        weights: *mut bf16,
        share: usize,
        sums: *mut f32,
    ) {
        Self::meet::<true>(rows, q, stride, panel, head, start.cast_mut(), (weights, share, sums))
    }
}

impl Bytes {
    /// start + q kᵀ: written where `start` is, or, where `WEIGH` says so, as weights.
    unsafe fn meet<const WEIGH: bool>(
        rows: usize,
        q: *const Block,
        stride: usize,
        panel: *const Block,
        head: usize,
        start: *mut f32,
        weighed: (*mut bf16, usize, *mut f32),
    ) {
        let f = match rows {
            1 => meet::<1, WEIGH>,
            2 => meet::<2, WEIGH>,
            3 => meet::<3, WEIGH>,
            4 => meet::<4, WEIGH>,
            5 => meet::<5, WEIGH>,
            6 => meet::<6, WEIGH>,
            7 => meet::<7, WEIGH>,
            8 => meet::<8, WEIGH>,
            9 => meet::<9, WEIGH>,
            10 => meet::<10, WEIGH>,
            11 => meet::<11, WEIGH>,
            12 => meet::<12, WEIGH>,
            _ => unreachable!("no tile has {rows} rows"),
        };
        f(q, stride, panel, head, start, weighed)
    }
}

/// As [`Bytes::meet`], of so many rows.
/// - `weights`: rows `share` apart; `sums`: a register a row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni,avx512bf16")]
unsafe fn meet<const ROWS: usize, const WEIGH: bool>(
    q: *const Block,
    stride: usize,
    panel: *const Block,
    head: usize,
    start: *mut f32,
    (weights, share, sums): (*mut bf16, usize, *mut f32),
) {
    let columns = panel.cast::<Columns>();
    let mut dots = [[_mm512_setzero_si512(); 2]; ROWS];
    for (i, dots) in dots.iter_mut().enumerate() {
        let start: i32 = (0..head).map(|block| (*q.add(i * stride + block)).start).sum();
        *dots = [_mm512_set1_epi32(start); 2];
    }
    for block in 0..head {
        for s in 0..8 {
            let b = (&raw const (*columns.add(block)).q[s]).cast::<__m512i>();
            let (b0, b1) = (_mm512_loadu_si512(b), _mm512_loadu_si512(b.add(1)));
            for (i, dots) in dots.iter_mut().enumerate() {
                let four = (&raw const (*q.add(i * stride + block)).q).cast::<i32>().add(s);
                let four = _mm512_set1_epi32(four.read());
                dots[0] = _mm512_dpbusd_epi32(dots[0], b0, four);
                dots[1] = _mm512_dpbusd_epi32(dots[1], b1, four);
            }
        }
    }
    let scale = (&raw const (*columns).scale).cast::<f32>();
    let scales = [_mm512_loadu_ps(scale), _mm512_loadu_ps(scale.add(16))];
    for (i, dots) in dots.iter().enumerate() {
        let (start, by) = (start.add(i * 32), _mm512_set1_ps((*q.add(i * stride)).scale));
        let x = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[0]), scales[0]);
        let y = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[1]), scales[1]);
        let x = _mm512_fmadd_ps(x, by, _mm512_loadu_ps(start));
        let y = _mm512_fmadd_ps(y, by, _mm512_loadu_ps(start.add(16)));
        if WEIGH {
            weigh_row([x, y], weights.add(i * share), sums.add(i * 16));
        } else {
            _mm512_storeu_ps(start, x);
            _mm512_storeu_ps(start.add(16), y);
        }
    }
}
