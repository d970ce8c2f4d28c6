//! For the registers of x86: AVX-512 with products of bf16, AVX-512, AVX2.

#![allow(unsafe_op_in_unsafe_fn)] // every line of these bodies is a load, a store or an intrinsic

use super::super::int8;
use super::super::simd::Simd;
use super::{Kernel, Micro};
use half::bf16;
use std::arch::x86_64::*;

/// Pairs of bf16 products added up in f32.
pub struct Avx512Bf16;

impl Kernel for Avx512Bf16 {
    type Int8Scores = int8::scores::Bytes;

    unsafe fn weigh(
        rows: usize,
        a: *const bf16,
        stride: usize,
        panel: *const bf16,
        k: usize,
        start: *const f32,
        weights: *mut bf16,
        share: usize,
        sums: *mut f32,
    ) {
        by_rows!(rows, weigh_pairs(a, stride, panel, k, start, weights, share, sums), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

impl Micro for Avx512Bf16 {
    type Elem = bf16;
    type V = __m512;
    const MR: usize = 12;
    const NR: usize = 32;
    const STEP: usize = 2;
    const GRAIN: usize = 32;
    const VALUES: usize = 1;
    const AHEAD: usize = 1;

    #[inline(always)]
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
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
        by_rows!(rows, dot_pairs(a, stride, panel, k, tile, row_stride, ahead, add), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn dot_pairs<const ROWS: usize>(
    a: *const bf16,
    stride: usize,
    panel: *const bf16,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (ahead, pace): (*const u8, usize),
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let mut b = panel.cast::<__m512i>();
    let mut a = a;
    let mut ahead = ahead;
    for _ in 0..k / 2 {
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
        ahead = ahead.wrapping_add(pace);
        let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b));
        let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(1)));
        for (i, sums) in sums.iter_mut().enumerate() {
            let pair: __m512bh =
                std::mem::transmute(_mm512_set1_epi32(a.add(i * stride).cast::<i32>().read_unaligned()));
            sums[0] = _mm512_dpbf16_ps(sums[0], pair, b0);
            sums[1] = _mm512_dpbf16_ps(sums[1], pair, b1);
        }
        a = a.add(2);
        b = b.add(2);
    }
    for (i, sums) in sums.iter().enumerate() {
        let c = tile.add(i * row_stride);
        let [mut x, mut y] = *sums;
        if add {
            x = _mm512_add_ps(_mm512_loadu_ps(c), x);
            y = _mm512_add_ps(_mm512_loadu_ps(c.add(16)), y);
        }
        _mm512_storeu_ps(c, x);
        _mm512_storeu_ps(c.add(16), y);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn weigh_pairs<const ROWS: usize>(
    a: *const bf16,
    stride: usize,
    panel: *const bf16,
    k: usize,
    start: *const f32,
    weights: *mut bf16,
    share: usize,
    sums: *mut f32,
) {
    let mut tile: [[__m512; 2]; ROWS] = std::array::from_fn(|i| [0, 16].map(|at| __m512::load(start.add(i * 32 + at))));
    let mut b = panel.cast::<__m512i>();
    let mut a = a;
    for _ in 0..k / 2 {
        let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b));
        let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(1)));
        for (i, tile) in tile.iter_mut().enumerate() {
            let pair: __m512bh =
                std::mem::transmute(_mm512_set1_epi32(a.add(i * stride).cast::<i32>().read_unaligned()));
            tile[0] = _mm512_dpbf16_ps(tile[0], pair, b0);
            tile[1] = _mm512_dpbf16_ps(tile[1], pair, b1);
        }
        a = a.add(2);
        b = b.add(2);
    }
    for (i, tile) in tile.iter().enumerate() {
        weigh_row(*tile, weights.add(i * share), sums.add(i * 16));
    }
}

/// A row of a tile as weights: 2^x, rounded, and their sum before that added to `sum`.
///
/// # Safety
/// The instruction set is there; `weights` has room for 32 and `sum` for 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
pub unsafe fn weigh_row([x, y]: [__m512; 2], weights: *mut bf16, sum: *mut f32) {
    let (x, y) = (x.exp2_coarse(), y.exp2_coarse());
    __m512::load(sum).add(x.add(y)).store(sum);
    let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(y, x));
    _mm512_storeu_si512(weights.cast(), both);
}

/// f32 in registers of sixteen.
pub struct Avx512;

impl Kernel for Avx512 {
    type Int8Scores = Self;
}

impl Micro for Avx512 {
    type Elem = f32;
    type V = __m512;
    const MR: usize = 12;
    const NR: usize = 32;
    const STEP: usize = 1;
    const GRAIN: usize = 32;
    const VALUES: usize = 1;
    const AHEAD: usize = 1;

    #[inline(always)]
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        run(f)
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
        by_rows!(rows, fma_16(a, stride, panel, k, tile, row_stride, ahead, add), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn fma_16<const ROWS: usize>(
    a: *const f32,
    stride: usize,
    panel: *const f32,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (ahead, pace): (*const u8, usize),
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let (mut a, mut b) = (a, panel);
    let mut ahead = ahead;
    for _ in 0..k {
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
        ahead = ahead.wrapping_add(pace);
        let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = _mm512_set1_ps(*a.add(i * stride));
            sums[0] = _mm512_fmadd_ps(x, b0, sums[0]);
            sums[1] = _mm512_fmadd_ps(x, b1, sums[1]);
        }
        a = a.add(1);
        b = b.add(32);
    }
    for (i, sums) in sums.iter().enumerate() {
        let c = tile.add(i * row_stride);
        let [mut x, mut y] = *sums;
        if add {
            x = _mm512_add_ps(_mm512_loadu_ps(c), x);
            y = _mm512_add_ps(_mm512_loadu_ps(c.add(16)), y);
        }
        _mm512_storeu_ps(c, x);
        _mm512_storeu_ps(c.add(16), y);
    }
}

/// f32 in registers of eight.
pub struct Avx2;

impl Kernel for Avx2 {
    type Int8Scores = Self;
}

impl Micro for Avx2 {
    type Elem = f32;
    type V = __m256;
    const MR: usize = 6;
    const NR: usize = 16;
    const STEP: usize = 1;
    const GRAIN: usize = 32;
    const VALUES: usize = 1;
    const AHEAD: usize = 1;

    #[inline(always)]
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        run(f)
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
        by_rows!(rows, fma_8(a, stride, panel, k, tile, row_stride, ahead, add), 1 2 3 4 5 6)
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn fma_8<const ROWS: usize>(
    a: *const f32,
    stride: usize,
    panel: *const f32,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (ahead, pace): (*const u8, usize),
    add: bool,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let (mut a, mut b) = (a, panel);
    let mut ahead = ahead;
    for _ in 0..k {
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
        ahead = ahead.wrapping_add(pace);
        let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = _mm256_set1_ps(*a.add(i * stride));
            sums[0] = _mm256_fmadd_ps(x, b0, sums[0]);
            sums[1] = _mm256_fmadd_ps(x, b1, sums[1]);
        }
        a = a.add(1);
        b = b.add(16);
    }
    for (i, sums) in sums.iter().enumerate() {
        let c = tile.add(i * row_stride);
        let [mut x, mut y] = *sums;
        if add {
            x = _mm256_add_ps(_mm256_loadu_ps(c), x);
            y = _mm256_add_ps(_mm256_loadu_ps(c.add(8)), y);
        }
        _mm256_storeu_ps(c, x);
        _mm256_storeu_ps(c.add(8), y);
    }
}
