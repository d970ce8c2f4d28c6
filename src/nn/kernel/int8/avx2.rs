//! In AVX2's registers: tiles of three rows and sixteen columns. The same loop for AVX-VNNI, for AVX-512's form of it, and for
//! what AVX2 itself has.
//!
//! AVX2 multiplies unsigned bytes by signed ones and adds up pairs in sixteen bits, where larger sums would be cut off. Of Q4_K
//! that are at most 2 * 15 * 127, and a block's eight such sums together at most 30,480, so only the last is widened. Of Q8_0, the
//! weight's size is multiplied by the activation with the weight's sign: at most 2 * 128 * 127 = 32,512, widened each time.

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use super::super::blocks::{QuantType, six_bits};
use super::super::micro::Element;
use super::super::micro::Micro;
use super::super::pack::Weights;
use super::super::simd::ROUND;
use super::{BLOCK, Block, Bytes, GROUP, Quantised};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Columns of a tile.
const COLUMNS: usize = 16;

/// A block of a panel.
#[repr(C)]
struct Columns {
    /// Groups of four values of k, the columns side by side; of Q8_0 signed for AVX2, else unsigned.
    q: [[[u8; 4]; COLUMNS]; 8],
    scale: [f32; COLUMNS],
    offset: [f32; COLUMNS],
}

/// A kernel over `$dot`, which needs `$features`, and adds up to what `$sum` makes 32-bit sums of; `$signed`: it takes Q8_0 as
/// they are.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $dot:path, $sum:path, $signed:literal, $features:literal) => {
        $(#[$doc])*
        pub struct $name<const OFFSET: bool>;

        impl<const OFFSET: bool> $name<OFFSET> {
            #[target_feature(enable = $features)]
            unsafe fn rows<const ROWS: usize>(
                a: *const Block,
                stride: usize,
                panel: *const Block,
                k: usize,
                tile: *mut f32,
                row_stride: usize,
                (ahead, pace): (*const u8, usize),
                add: bool,
            ) {
                let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
                if add {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        *sums = [_mm256_loadu_ps(tile.add(i * row_stride)), _mm256_loadu_ps(tile.add(i * row_stride + 8))];
                    }
                }
                let mut ahead = ahead;
                for block in 0..k {
                    for _ in 0..4 {
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                        ahead = ahead.wrapping_add(pace);
                    }
                    let columns = panel.add(block * COLUMNS).cast::<Columns>();
                    let a = a.add(block);
                    let mut dots = [[_mm256_setzero_si256(); 2]; ROWS];
                    if !OFFSET && !$signed {
                        for (i, dots) in dots.iter_mut().enumerate() {
                            *dots = [_mm256_set1_epi32((*a.add(i * stride)).start); 2];
                        }
                    }
                    for s in 0..8 {
                        let q = (&raw const (*columns).q[s]).cast::<__m256i>();
                        let (q0, q1) = (_mm256_loadu_si256(q), _mm256_loadu_si256(q.add(1)));
                        for (i, dots) in dots.iter_mut().enumerate() {
                            let four = (&raw const (*a.add(i * stride)).q).cast::<i32>().add(s);
                            let four = _mm256_set1_epi32(four.read());
                            dots[0] = $dot(dots[0], q0, four);
                            dots[1] = $dot(dots[1], q1, four);
                        }
                    }
                    let scale = (&raw const (*columns).scale).cast::<f32>();
                    let offset = (&raw const (*columns).offset).cast::<f32>();
                    for (i, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                        let factor = _mm256_set1_ps((*a.add(i * stride)).scale);
                        for j in 0..2 {
                            let dot = _mm256_mul_ps(_mm256_cvtepi32_ps($sum(dots[j])), _mm256_loadu_ps(scale.add(j * 8)));
                            sums[j] = _mm256_fmadd_ps(dot, factor, sums[j]);
                        }
                        if OFFSET {
                            let total = _mm256_set1_ps((*a.add(i * stride)).total());
                            for j in 0..2 {
                                sums[j] = _mm256_fnmadd_ps(total, _mm256_loadu_ps(offset.add(j * 8)), sums[j]);
                            }
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    _mm256_storeu_ps(tile.add(i * row_stride), sums[0]);
                    _mm256_storeu_ps(tile.add(i * row_stride + 8), sums[1]);
                }
            }
        }

        impl<const OFFSET: bool> Micro for $name<OFFSET> {
            type Elem = Block;
            type V = __m256;
            const MR: usize = 3;
            const NR: usize = COLUMNS;
            const STEP: usize = 1;
            const GRAIN: usize = 2 * GROUP;
            const VALUES: usize = BLOCK;
            const AHEAD: usize = 4;

            #[inline(always)]
            unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
                #[target_feature(enable = $features)]
                unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
                    f()
                }
                run(f)
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
                    1 => Self::rows::<1>(a, stride, panel, k, tile, row_stride, ahead, add),
                    2 => Self::rows::<2>(a, stride, panel, k, tile, row_stride, ahead, add),
                    3 => Self::rows::<3>(a, stride, panel, k, tile, row_stride, ahead, add),
                    _ => unreachable!("no tile has {rows} rows"),
                }
            }
        }

        impl<const OFFSET: bool> Bytes for $name<OFFSET> {
            #[target_feature(enable = $features)]
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
                // SAFETY: K was chosen for this CPU.
                unsafe {
                    $name::<OFFSET>::vectorised(
                        #[inline(always)]
                        || panel::<$signed>(self, stride, first, n, k0, k, out),
                    )
                }
            }
        }
    };
}

kernel!(
    /// AVX-VNNI.
    Vex,
    _mm256_dpbusd_avx_epi32,
    std::convert::identity,
    false,
    "avx2,fma,f16c,avxvnni"
);
kernel!(
    /// AVX-512's form of it.
    Evex,
    _mm256_dpbusd_epi32,
    std::convert::identity,
    false,
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
);
kernel!(
    /// What every CPU with AVX2 has.
    Avx2,
    pairs::<OFFSET>,
    widened::<OFFSET>,
    true,
    "avx2,fma,f16c"
);

/// sums + q four: sums of pairs where weights have offsets, which are small, else of fours.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs<const OFFSET: bool>(sums: __m256i, q: __m256i, four: __m256i) -> __m256i {
    if OFFSET {
        return _mm256_add_epi16(sums, _mm256_maddubs_epi16(q, four));
    }
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(four, q));
    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Sums of pairs -> sums of fours.
#[inline]
#[target_feature(enable = "avx2")]
fn widened<const OFFSET: bool>(sums: __m256i) -> __m256i {
    if OFFSET { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) } else { sums }
}

/// A row of activations -> blocks.
#[inline(always)]
fn quantise<E: Element>(x: &[E], a: &mut [MaybeUninit<Block>]) {
    for (x, a) in x.chunks(GROUP * BLOCK).zip(a.chunks_mut(GROUP)) {
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let mut most = [0f32; 8]; // as a register has them
        for x in x.chunks_exact(8) {
            most.iter_mut().zip(x).for_each(|(most, x)| *most = larger(*most, x.to_f32().abs()));
        }
        // what is no number has no largest value, and must not become one
        let number = !x.iter().any(|x| x.to_f32().is_nan());
        let scale = if number { most.into_iter().fold(0.0, larger) / 127.0 } else { f32::NAN };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (x, block) in x.chunks_exact(BLOCK).zip(a) {
            let block = block.write(Block { scale, ..Block::default() });
            let mut sum = 0;
            for (q, x) in block.q.iter_mut().zip(x) {
                // adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits
                let whole = (x.to_f32() * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
                *q = whole as i8;
                sum += i32::from(*q);
            }
            block.start = -128 * sum;
        }
    }
}

/// A panel of sixteen rows; `SIGNED`: with Q8_0 as they are.
#[inline(always)]
fn panel<const SIGNED: bool>(
    weights: Quantised,
    stride: usize,
    first: usize,
    n: usize,
    k0: usize,
    k: usize,
    out: &mut [Block],
) {
    let flipped = if SIGNED { 0 } else { 0x8080_8080 };
    const { assert!(size_of::<Columns>() <= COLUMNS * size_of::<Block>()) };
    let row = weights.size(stride);
    for (block, out) in out.chunks_exact_mut(COLUMNS).take(k).enumerate() {
        // SAFETY: the sixteen blocks are larger than what is read as columns here and in the loop, and any bits are columns.
        let columns = unsafe { &mut *out.as_mut_ptr().cast::<Columns>() };
        let (values, bytes) = (weights.kind.values(), weights.kind.bytes());
        let (large, part) = ((k0 + block) * BLOCK / values, (k0 + block) % (values / BLOCK));
        for j in 0..COLUMNS {
            if first + j >= n {
                (0..8).for_each(|s| columns.q[s][j] = [0; 4]);
                (columns.scale[j], columns.offset[j]) = (0.0, 0.0);
                continue;
            }
            let x = &weights.bytes[(first + j) * row + large * bytes..][..bytes];
            match weights.kind {
                QuantType::Q8_0 => {
                    columns.scale[j] = half(x[0], x[1]);
                    for (s, q) in x[2..].as_chunks::<4>().0.iter().enumerate() {
                        columns.q[s][j] = (u32::from_ne_bytes(*q) ^ flipped).to_ne_bytes();
                    }
                }
                _ => {
                    let (scales, offsets) = six_bits(x[4..16].try_into().expect("twelve bytes"));
                    columns.scale[j] = half(x[0], x[1]) * scales[part] as f32;
                    columns.offset[j] = half(x[2], x[3]) * offsets[part] as f32;
                    let shift = part % 2 * 4;
                    for (s, q) in x[16 + part / 2 * 32..][..32].as_chunks::<4>().0.iter().enumerate() {
                        columns.q[s][j] = (u32::from_ne_bytes(*q) >> shift & 0x0f0f_0f0f).to_ne_bytes();
                    }
                }
            }
        }
    }
}

/// An f16 as an f32.
#[inline(always)]
fn half(low: u8, high: u8) -> f32 {
    // SAFETY: both kernels' instruction sets have the conversion, and this is inlined into them.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes([low, high, 0, 0])))) }
}
