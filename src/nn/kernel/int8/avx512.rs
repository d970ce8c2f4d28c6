//! In AVX-512's registers: tiles of six rows and thirty-two columns.

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use super::super::blocks::{QuantType, six_bits};
use super::super::micro::{Element, Micro};
use super::super::pack::Weights;
use super::super::simd;
use super::PANEL_BYTES;
use super::{BLOCK, Block, Bytes, GROUP, Quantised};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Four products of bytes added up in a 32-bit sum. `OFFSET`: weights have an offset of their own.
pub struct Vnni<const OFFSET: bool>;

/// A block of a panel: 32 columns.
#[repr(C)]
pub struct Columns<S> {
    /// Groups of four values of k, the columns side by side.
    pub q: [[u8; 128]; 8],
    pub scale: S,
}

/// Scales as Q8_0 has them: half-precision numbers.
type Halves = [u16; 32];

/// Scales of weights that have an offset.
#[repr(C)]
struct Shares {
    scale: [f32; 32],
    /// A 128th of the offset: blocks hold -128 times their sum.
    share: [f32; 32],
}

/// Bytes from block to block of a panel.
const fn pitch(offset: bool) -> usize {
    if offset { size_of::<Columns<Shares>>() } else { size_of::<Columns<Halves>>() }
}

const _: () = assert!(pitch(false) == PANEL_BYTES && pitch(true) <= 32 * size_of::<Block>());

impl<const OFFSET: bool> Micro for Vnni<OFFSET> {
    type Elem = Block;
    type V = __m512;
    const MR: usize = 6;
    const NR: usize = 32;
    const STEP: usize = 1;
    const GRAIN: usize = 2 * GROUP;
    const VALUES: usize = BLOCK;
    const AHEAD: usize = 4;

    #[inline(always)]
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        run(f)
    }

    #[inline(always)]
    unsafe fn vectorised_to<T: Element, R>(f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
        unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // what is rounded to bf16 is rounded by the CPU's own instruction
        if T::HALF { run(f) } else { Self::vectorised(f) }
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
            1 => dot_blocks::<1, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
            2 => dot_blocks::<2, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
            3 => dot_blocks::<3, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
            4 => dot_blocks::<4, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
            5 => dot_blocks::<5, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
            6 => dot_blocks::<6, OFFSET>(a, stride, panel, k, tile, row_stride, ahead, add),
            _ => unreachable!("no tile has {rows} rows"),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn dot_blocks<const ROWS: usize, const OFFSET: bool>(
    a: *const Block,
    stride: usize,
    panel: *const Block,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    (ahead, pace): (*const u8, usize),
    add: bool,
) {
    let mut ahead = ahead;
    for first in (0..k).step_by(GROUP) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for block in first..k.min(first + GROUP) {
            for _ in 0..4 {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(pace);
            }
            let columns = panel.cast::<u8>().add(block * pitch(OFFSET));
            let a = a.add(block);
            let mut dots: [[__m512i; 2]; ROWS] = std::array::from_fn(|i| {
                let start = if OFFSET { _mm512_setzero_si512() } else { _mm512_set1_epi32((*a.add(i * stride)).start) };
                [start, start]
            });
            for s in 0..8 {
                let q = columns.cast::<__m512i>().add(2 * s);
                let (q0, q1) = (_mm512_loadu_si512(q), _mm512_loadu_si512(q.add(1)));
                for (i, dots) in dots.iter_mut().enumerate() {
                    let four = (&raw const (*a.add(i * stride)).q).cast::<i32>().add(s);
                    let four = _mm512_set1_epi32(four.read());
                    dots[0] = _mm512_dpbusd_epi32(dots[0], q0, four);
                    dots[1] = _mm512_dpbusd_epi32(dots[1], q1, four);
                }
            }
            let scales = if OFFSET {
                let scale = (&raw const (*columns.cast::<Columns<Shares>>()).scale.scale).cast::<f32>();
                [_mm512_loadu_ps(scale), _mm512_loadu_ps(scale.add(16))]
            } else {
                let scale = (&raw const (*columns.cast::<Columns<Halves>>()).scale).cast::<__m256i>();
                [_mm512_cvtph_ps(_mm256_loadu_si256(scale)), _mm512_cvtph_ps(_mm256_loadu_si256(scale.add(1)))]
            };
            for (sums, dots) in sums.iter_mut().zip(dots) {
                for j in 0..2 {
                    sums[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[j]), scales[j], sums[j]);
                }
            }
            if OFFSET {
                let share = (&raw const (*columns.cast::<Columns<Shares>>()).scale.share).cast::<f32>();
                let shares = [_mm512_loadu_ps(share), _mm512_loadu_ps(share.add(16))];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let start = _mm512_cvtepi32_ps(_mm512_set1_epi32((*a.add(i * stride)).start));
                    for j in 0..2 {
                        sums[j] = _mm512_fmadd_ps(start, shares[j], sums[j]);
                    }
                }
            }
        }
        // the tile's sums lie in the first cache: there are no registers for them
        for (i, sums) in sums.iter().enumerate() {
            let factor = _mm512_set1_ps((*a.add(first + i * stride)).scale);
            for (j, sum) in sums.iter().enumerate() {
                let at = tile.add(i * row_stride + 16 * j);
                let before = if add || first > 0 { _mm512_loadu_ps(at) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(at, _mm512_fmadd_ps(*sum, factor, before));
            }
        }
    }
}

impl<const OFFSET: bool> Weights<Vnni<OFFSET>> for Quantised<'_> {
    fn hold(self, n: usize, k: usize) -> bool {
        OFFSET == (self.kind == QuantType::Q4K) && self.hold(n, k)
    }

    fn address(self, row: usize, k: usize, at: usize) -> *const u8 {
        self.address(row, k, at)
    }

    fn bytes(self, k: usize) -> usize {
        self.size(k)
    }

    fn lies(self, stride: usize, first: usize, k0: usize) -> Option<*const Block> {
        self.prepacked.then(|| self.address(first, stride, 0).wrapping_add(k0 * PANEL_BYTES).cast())
    }

    fn panel(self, stride: usize, first: usize, n: usize, k0: usize, k: usize, _: &mut Vec<Block>, out: &mut [Block]) {
        assert!(out.len() == k * 32 && !self.prepacked);
        let count = n.saturating_sub(first).min(32);
        // SAFETY: there are `count` rows of `stride` blocks from `first` on, of which k0..k0 + k are wanted; `out` was asserted.
        unsafe {
            match self.kind {
                QuantType::Q8_0 => panel_q8(self, first, count, stride, k0, k, out.as_mut_ptr().cast()),
                _ => panel_q4k(self, first, count, stride, k0, k, out.as_mut_ptr().cast()),
            }
        }
    }
}

impl<const OFFSET: bool> Bytes for Vnni<OFFSET> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn quantise<E: Element>(x: &[E], a: &mut [MaybeUninit<Block>]) {
        for (x, a) in x.chunks(GROUP * BLOCK).zip(a.chunks_mut(GROUP)) {
            let (mut most, mut lost) = (_mm512_setzero_ps(), 0);
            for x in x.chunks_exact(16) {
                let x: __m512 = simd::load(x.as_ptr());
                most = _mm512_max_ps(most, _mm512_abs_ps(x));
                lost |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            }
            // what is no number has no largest value, and must not become one
            let scale = if lost == 0 { _mm512_reduce_max_ps(most) / 127.0 } else { f32::NAN };
            let inverse = _mm512_set1_ps(if scale > 0.0 { 1.0 / scale } else { 0.0 });
            for (x, block) in x.chunks_exact(BLOCK).zip(a) {
                let whole = |i| _mm512_cvtps_epi32(_mm512_mul_ps(simd::load::<__m512, E>(x.as_ptr().add(i)), inverse));
                let (a, b) = (whole(0), whole(16));
                let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
                let block = block.write(Block { q: [0; BLOCK], scale, start: -128 * sum });
                _mm_storeu_si128(block.q.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(a));
                _mm_storeu_si128(block.q.as_mut_ptr().add(16).cast(), _mm512_cvtsepi32_epi8(b));
            }
        }
    }
}

/// Panels of Q8_0.
/// - `weights`: rows of `stride` blocks, of which `count` are wanted from `first` on, and of these `k` blocks from `k0` on.
///
/// # Safety
/// The instructions are there, and room for k blocks of 32 columns in `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn panel_q8(
    weights: Quantised,
    first: usize,
    count: usize,
    stride: usize,
    k0: usize,
    k: usize,
    out: *mut u8,
) {
    let zeros = [0u8; 34];
    let sign = _mm512_set1_epi8(-128);
    let row = weights.size(stride);
    let lines = weights.bytes[first * row..][..count * row].as_ptr();
    for block in 0..k {
        let columns = out.add(block * pitch(false)).cast::<Columns<Halves>>();
        let mut at = [zeros.as_ptr(); 32];
        for (j, at) in at.iter_mut().enumerate().take(count) {
            *at = lines.add(j * row + (k0 + block) * 34);
        }
        for (j, at) in at.into_iter().enumerate() {
            (*columns).scale[j] = at.cast::<u16>().read_unaligned();
        }
        for half in 0..2 {
            let mut words = [sign; 8];
            for (i, word) in words.iter_mut().enumerate() {
                *word = _mm512_xor_si512(two(at[half * 16 + i].add(2), at[half * 16 + i + 8].add(2)), sign);
            }
            spread(words, (&raw mut (*columns).q).cast::<u8>().add(half * 64));
        }
    }
}

/// Rows of activations side by side, as Q8_0 blocks would be.
///
/// # Safety
/// `out` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn columns(rows: [&Block; 32], out: *mut Columns<[f32; 32]>) {
    let sign = _mm512_set1_epi8(-128);
    for (i, row) in rows.iter().enumerate() {
        (*out).scale[i] = row.scale;
    }
    for half in 0..2 {
        let words = std::array::from_fn(|i| {
            let (a, b) = (rows[half * 16 + i], rows[half * 16 + i + 8]);
            _mm512_xor_si512(two(a.q.as_ptr().cast(), b.q.as_ptr().cast()), sign)
        });
        spread(words, (&raw mut (*out).q).cast::<u8>().add(half * 64));
    }
}

/// # Safety
/// As [`panel_q8`], of Q4_K blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn panel_q4k(weights: Quantised, first: usize, count: usize, stride: usize, k0: usize, k: usize, out: *mut u8) {
    let zeros = [0u8; 144];
    let low = _mm512_set1_epi8(15);
    let row = weights.size(stride);
    let lines = weights.bytes[first * row..][..count * row].as_ptr();
    let mut block = 0;
    while block < k {
        let (large, part) = ((k0 + block) / 8, (k0 + block) % 8);
        let parts = (8 - part).min(k - block);
        let mut at = [zeros.as_ptr(); 32];
        for (j, at) in at.iter_mut().enumerate().take(count) {
            *at = lines.add(j * row + large * 144);
        }
        let (mut halves, mut scales, mut offsets) = ([[0u16; 32]; 2], [[0u8; 32]; 8], [[0u8; 32]; 8]);
        for (j, at) in at.into_iter().enumerate() {
            for (i, half) in halves.iter_mut().enumerate() {
                half[j] = at.cast::<u16>().add(i).read_unaligned();
            }
            let (s, o) = six_bits(&*at.add(4).cast::<[u8; 12]>());
            for i in 0..8 {
                (scales[i][j], offsets[i][j]) = (s[i], o[i]);
            }
        }
        let (mut scale, mut least) = ([0f32; 32], [0f32; 32]);
        store_f16(&halves[0], scale.as_mut_ptr());
        store_f16(&halves[1], least.as_mut_ptr());
        least.iter_mut().for_each(|x| *x /= 128.0);
        for i in 0..parts {
            let columns = out.add((block + i) * pitch(true)).cast::<Columns<Shares>>();
            times(&scale, &scales[part + i], (&raw mut (*columns).scale.scale).cast());
            times(&least, &offsets[part + i], (&raw mut (*columns).scale.share).cast());
            let (pair, high) = (16 + (part + i) / 2 * 32, (part + i) % 2 == 1);
            for half in 0..2 {
                let mut words = [low; 8];
                for (i, word) in words.iter_mut().enumerate() {
                    let x = two(at[half * 16 + i].add(pair), at[half * 16 + i + 8].add(pair));
                    *word = _mm512_and_si512(if high { _mm512_srli_epi16::<4>(x) } else { x }, low);
                }
                spread(words, (&raw mut (*columns).q).cast::<u8>().add(half * 64));
            }
        }
        block += parts;
    }
}

/// # Safety
/// 32 bytes can be read from each.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn two(a: *const u8, b: *const u8) -> __m512i {
    let a = _mm512_castsi256_si512(_mm256_loadu_si256(a.cast()));
    _mm512_inserti64x4::<1>(a, _mm256_loadu_si256(b.cast()))
}

/// # Safety
/// `out` has room for 32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_f16(x: &[u16; 32], out: *mut f32) {
    for i in [0, 16] {
        _mm512_storeu_ps(out.add(i), _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().add(i).cast())));
    }
}

/// # Safety
/// `out` has room for 32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn times(x: &[f32; 32], by: &[u8; 32], out: *mut f32) {
    for i in [0, 16] {
        let by = _mm512_cvtepu8_epi32(_mm_loadu_si128(by.as_ptr().add(i).cast()));
        _mm512_storeu_ps(out.add(i), _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr().add(i)), _mm512_cvtepi32_ps(by)));
    }
}

/// Eight words of sixteen columns -> groups of four values, 128 bytes from each other.
/// - `words`: column i in the lower half of word i, column i + 8 in the upper half.
///
/// # Safety
/// `out` has room for eight times 64 bytes, 128 apart.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn spread(words: [__m512i; 8], out: *mut u8) {
    let r = words;
    let mut t = r;
    for i in 0..4 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    let mut u = t;
    for i in 0..2 {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // lanes of each: words g and g + 4 of columns 0..4 (u[0..4]) and 4..8, in both halves
    let low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    let high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for g in 0..4 {
        _mm512_storeu_si512(out.add(g * 128).cast(), _mm512_permutex2var_epi64(u[g], low, u[g + 4]));
        _mm512_storeu_si512(out.add((g + 4) * 128).cast(), _mm512_permutex2var_epi64(u[g], high, u[g + 4]));
    }
}
