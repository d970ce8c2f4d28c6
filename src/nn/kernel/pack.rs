//! Weights as they lie in their file -> panels as the kernels read them, a block at a time and just before it is used: a
//! block is small enough to stay in the nearest cache, so no second copy of the weights is ever made.

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use super::blocks::QuantType;
use super::micro::{Element, Kernel, Micro};
use super::simd;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

/// Rows of numbers as they lie in memory: row-major, in the type they are stored in.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    /// Whole blocks a row.
    QuantType {
        kind: QuantType,
        bytes: &'a [u8],
    },
}

/// Weights (n, k), row-major in any form, which panels of a kernel's own are made from.
pub trait Weights<K: Micro>: Copy + Sync {
    /// Whether there are `n` rows of `k`.
    fn hold(self, n: usize, k: usize) -> bool;

    /// Where value `at` of row `row` lies, or would lie, among rows of `k`.
    fn address(self, row: usize, k: usize, at: usize) -> *const u8;

    /// Bytes of `k` values of a row.
    fn bytes(self, k: usize) -> usize;

    /// Where a block of a panel lies, if it lies as the kernel reads it; as for `panel`.
    fn lies(self, _stride: usize, _first: usize, _k0: usize) -> Option<*const K::Elem> {
        None
    }

    /// One block of a panel, whose columns are rows of these.
    /// - `stride`: values of a row. `first`: the panel's first row; `n`: how many there are, the rest are zeros. `k0`, `k`: the
    ///   values that are wanted.
    /// - `out`: `k`, rounded up to whole steps, times `NR`; `line`: scratch of any size.
    fn panel(
        self,
        stride: usize,
        first: usize,
        n: usize,
        k0: usize,
        k: usize,
        line: &mut Vec<K::Elem>,
        out: &mut [K::Elem],
    );
}

impl<K: Kernel> Weights<K> for Rows<'_> {
    fn hold(self, n: usize, k: usize) -> bool {
        self.count() >= n * k
    }

    fn address(self, row: usize, k: usize, at: usize) -> *const u8 {
        Rows::address(&self, row * k + at)
    }

    fn bytes(self, k: usize) -> usize {
        match self {
            Rows::F32(_) => 4 * k,
            Rows::Bf16(_) | Rows::F16(_) => 2 * k,
            Rows::QuantType { kind, .. } => k * kind.bytes() / kind.values(),
        }
    }

    fn panel(
        self,
        stride: usize,
        first: usize,
        n: usize,
        k0: usize,
        k: usize,
        line: &mut Vec<K::Elem>,
        out: &mut [K::Elem],
    ) {
        panel::<K>(self, stride, first, n, k0, k, line, out)
    }
}

impl Rows<'_> {
    /// How many numbers they are.
    pub fn count(&self) -> usize {
        match self {
            Rows::F32(x) => x.len(),
            Rows::Bf16(x) => x.len(),
            Rows::F16(x) => x.len(),
            Rows::QuantType { kind, bytes } => bytes.len() / kind.bytes() * kind.values(),
        }
    }

    /// Where value `at` lies, or would lie.
    pub fn address(&self, at: usize) -> *const u8 {
        match self {
            Rows::F32(x) => x.as_ptr().wrapping_add(at).cast(),
            Rows::Bf16(x) => x.as_ptr().wrapping_add(at).cast(),
            Rows::F16(x) => x.as_ptr().wrapping_add(at).cast(),
            Rows::QuantType { kind, bytes } => bytes.as_ptr().wrapping_add(at / kind.values() * kind.bytes()),
        }
    }

    /// Copies `out.len()` values from `at` on, in the kernel's type.
    #[inline(always)]
    pub(super) fn copy<E: Element>(&self, at: usize, out: &mut [E]) {
        match self {
            Rows::F32(x) => out.iter_mut().zip(&x[at..]).for_each(|(y, x)| *y = E::from_f32(*x)),
            Rows::Bf16(x) => out.iter_mut().zip(&x[at..]).for_each(|(y, x)| *y = E::from_bf16(*x)),
            // in runs, for which the CPU has an instruction
            Rows::F16(x) => {
                let mut wide = [0f32; 64];
                for (y, x) in out.chunks_mut(64).zip(x[at..].chunks(64)) {
                    let wide = &mut wide[..y.len()];
                    x[..y.len()].convert_to_f32_slice(wide);
                    y.iter_mut().zip(wide).for_each(|(y, x)| *y = E::from_f32(*x));
                }
            }
            Rows::QuantType { kind, bytes } => kind.read(bytes, at, out.len(), |i, run| {
                out[i..].iter_mut().zip(run).for_each(|(y, x)| *y = E::from_f32(*x));
            }),
        }
    }

    /// As `copy`, vectorised for a kernel.
    fn copy_for<K: Kernel>(&self, at: usize, out: &mut [K::Elem]) {
        let Rows::QuantType { kind, bytes } = self else { return self.copy(at, out) };
        // SAFETY: K was chosen for this CPU; a run has as many values as there are places for.
        unsafe {
            K::vectorised(
                #[inline(always)]
                || {
                    kind.read(
                        bytes,
                        at,
                        out.len(),
                        #[inline(always)]
                        |i, run| {
                            let out = out[i..][..run.len()].as_mut_ptr();
                            simd::each::<K::V>(
                                run.len(),
                                #[inline(always)]
                                |i, n| {
                                    let x: K::V = simd::load_n(run.as_ptr().add(i), n);
                                    simd::store_n(x, out.add(i), n)
                                },
                            )
                        },
                    )
                },
            )
        }
    }
}

/// One block of a panel from a matrix whose rows are the panel's columns.
/// - `x`: row-major, `stride` values from row to row. `first`: the panel's first row; `rows`: how many of the matrix there
///   are, the rest are zeros. `k0`, `k`: the columns that are wanted.
/// - `out`: `k`, rounded up to whole steps, times `NR`; `line`: scratch of any size.
pub fn panel<K: Kernel>(
    x: Rows,
    stride: usize,
    first: usize,
    rows: usize,
    k0: usize,
    k: usize,
    line: &mut Vec<K::Elem>,
    out: &mut [K::Elem],
) {
    let k_whole = k.next_multiple_of(K::STEP);
    assert_eq!(out.len(), k_whole * K::NR);
    let count = rows.saturating_sub(first).min(K::NR);
    // the rows one after the other, in the kernel's type; read in place where they already are
    let whole = count == K::NR && k == k_whole;
    let reach = first * stride + k0..(first + K::NR - 1) * stride + k0 + k;
    let in_place: Option<*const K::Elem> = match x {
        Rows::Bf16(x) if whole && K::Elem::HALF => Some(x[reach].as_ptr().cast()),
        Rows::F32(x) if whole && !K::Elem::HALF => Some(x[reach].as_ptr().cast()),
        _ => None,
    };
    let (lines, row_stride): (*const K::Elem, usize) = match in_place {
        Some(lines) => (lines, stride),
        None => {
            line.clear();
            line.resize(K::NR * k_whole, K::Elem::default());
            for (i, line) in line.chunks_mut(k_whole).take(count).enumerate() {
                x.copy_for::<K>((first + i) * stride + k0, &mut line[..k]);
            }
            (line.as_ptr(), k_whole)
        }
    };
    // SAFETY: NR lines of k_whole elements lie `row_stride` from each other, as `reach` or the scratch says; `out` was asserted.
    unsafe { interleave::<K>(lines, row_stride, k_whole, out) }
}

/// One block of a panel from a matrix whose columns are the panel's columns.
/// - `x`: row-major, `stride` values from row to row; rows `k0..k0 + k` are wanted, `columns` of them from `first` on.
pub fn panel_of_columns<E: Element, K: Kernel<Elem = E>>(
    x: &[E],
    stride: usize,
    first: usize,
    columns: usize,
    k: usize,
    out: &mut [E],
) {
    let count = columns.min(K::NR);
    for (group, out) in out.chunks_mut(K::NR * K::STEP).enumerate() {
        out.fill(E::default());
        for step in 0..K::STEP {
            let row = group * K::STEP + step;
            if row < k {
                let x = &x[row * stride + first..][..count];
                x.iter().enumerate().for_each(|(j, x)| out[j * K::STEP + step] = *x);
            }
        }
    }
}

/// `NR` lines of `k` elements, side by side in groups of `STEP`.
///
/// # Safety
/// `lines` has `NR` lines of `k` elements, `row_stride` elements from each other; `out` has room for all.
unsafe fn interleave<K: Kernel>(lines: *const K::Elem, row_stride: usize, k: usize, out: &mut [K::Elem]) {
    let group = K::STEP * size_of::<K::Elem>();
    #[cfg(target_arch = "x86_64")]
    if group == 4 && K::NR.is_multiple_of(16) && std::arch::is_x86_feature_detected!("avx512f") {
        let steps = k / K::STEP;
        let whole = steps / 16 * 16;
        let word = row_stride * size_of::<K::Elem>();
        for half in (0..K::NR).step_by(16) {
            let source = lines.add(half * row_stride).cast::<u8>();
            let target = out.as_mut_ptr().cast::<u32>().add(half);
            for step in (0..whole).step_by(16) {
                transpose_16(source.add(step * 4), word, target.add(step * K::NR), K::NR);
            }
            for step in whole..steps {
                for j in 0..16 {
                    let value = source.add(j * word + step * 4).cast::<u32>().read_unaligned();
                    target.add(step * K::NR + j).write_unaligned(value);
                }
            }
        }
        return;
    }
    #[cfg(target_arch = "aarch64")]
    {
        let (source, word) = (lines.cast::<u8>(), row_stride * size_of::<K::Elem>());
        let target = out.as_mut_ptr().cast::<u8>();
        match group {
            4 => return neon::interleave::<4>(source, word, k / K::STEP, K::NR, target),
            8 => return neon::interleave::<8>(source, word, k / K::STEP, K::NR, target),
            _ => {}
        }
    }
    let _ = group;
    for (i, out) in out.chunks_mut(K::NR * K::STEP).enumerate() {
        for j in 0..K::NR {
            for s in 0..K::STEP {
                out[j * K::STEP + s] = *lines.add(j * row_stride + i * K::STEP + s);
            }
        }
    }
}

/// Sixteen lines of sixteen 32-bit words, turned over.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_16(source: *const u8, row_stride: usize, target: *mut u32, to: usize) {
    use std::arch::x86_64::*;
    let mut r: [__m512i; 16] = std::array::from_fn(|i| _mm512_loadu_si512(source.add(i * row_stride).cast()));
    // pairs of words, pairs of pairs, then quarters of registers change places
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for i in 0..4 {
        t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
        t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[i + 4]);
        t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
        t[i + 12] = _mm512_shuffle_i32x4::<0xdd>(r[i + 8], r[i + 12]);
    }
    for i in 0..4 {
        for (line, from) in [(i, i), (i + 4, i + 4)] {
            let low = _mm512_shuffle_i32x4::<0x88>(t[from], t[from + 8]);
            let high = _mm512_shuffle_i32x4::<0xdd>(t[from], t[from + 8]);
            _mm512_storeu_si512(target.add(line * to).cast(), low);
            _mm512_storeu_si512(target.add((line + 8) * to).cast(), high);
        }
    }
}
