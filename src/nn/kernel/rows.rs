//! What happens to rows on their way: norms, modulation, activations and rotary positions, in one pass over memory each.

use super::micro::{Element, Kernel};
use super::simd::{self, Simd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements that one task handles: enough to outweigh handing it out, few enough to stay in the cache.
const TASK: usize = 1 << 14;

/// How a row is normed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Divided by its root mean square.
    Rms,
    /// Its mean taken off, then divided by its deviation.
    Layer,
}

/// What happens to a row, in this order.
#[derive(Clone, Copy, Default)]
pub struct RowNormAct<'a> {
    /// With what is added to the mean square.
    pub norm: Option<(Norm, f32)>,
    /// Multiplied, then added: rows of the width.
    pub scale: Option<&'a [f32]>,
    pub shift: Option<&'a [f32]>,
    pub act: Option<Act>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Gelu,
    Silu,
}

/// y = norm_act(x), one row; all of y is written.
///
/// # Safety
/// The registers' instruction set is there.
#[inline(always)]
pub unsafe fn norm_act<V: Simd, E: Element>(how: &RowNormAct, x: &[f32], y: &mut [MaybeUninit<E>]) {
    let d = x.len();
    assert!(y.len() == d && how.scale.is_none_or(|s| s.len() == d) && how.shift.is_none_or(|s| s.len() == d));
    let (scale, shift) = (how.scale.map(<[f32]>::as_ptr), how.shift.map(<[f32]>::as_ptr));
    let (x, y) = (x.as_ptr(), y.as_mut_ptr().cast::<E>());
    // SAFETY: all rows have `d` values, as asserted.
    unsafe {
        let (mid, factor) = match how.norm {
            Some((norm, eps)) => {
                let mid = if norm == Norm::Layer { sum::<V>(x, d, |x| x) / d as f32 } else { 0.0 };
                let middle = V::splat(mid);
                // the zeros that fill up the last register are off by the mean, so what does not fill one is summed by itself
                let whole = if norm == Norm::Layer { d - d % V::LANES } else { d };
                let square = sum::<V>(
                    x,
                    whole,
                    #[inline(always)]
                    |x| {
                        let x = x.sub(middle);
                        x.mul(x)
                    },
                );
                let square = (whole..d).fold(square, |sum, i| sum + (*x.add(i) - mid) * (*x.add(i) - mid));
                (mid, (square / d as f32 + eps).sqrt().recip())
            }
            None => (0.0, 1.0),
        };
        let (mid, factor) = (V::splat(mid), V::splat(factor));
        simd::each::<V>(
            d,
            #[inline(always)]
            |i, n| {
                let mut v: V = simd::load_n(x.add(i), n);
                if how.norm.is_some() {
                    v = v.sub(mid).mul(factor);
                }
                if let Some(scale) = scale {
                    v = v.mul(simd::load_n(scale.add(i), n));
                }
                if let Some(shift) = shift {
                    v = v.add(simd::load_n(shift.add(i), n));
                }
                v = match how.act {
                    Some(Act::Gelu) => simd::gelu(v),
                    Some(Act::Silu) => simd::silu(v),
                    None => v,
                };
                simd::store_n(v, y.add(i), n);
            },
        );
    }
}

/// A slice to write to, whatever is in it.
pub fn uninit<T: Copy>(x: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: of one layout; what is written through it are values of T.
    unsafe { &mut *(std::ptr::from_mut(x) as *mut [MaybeUninit<T>]) }
}

/// The sum of `f` over `n` values, filled up with zeros to whole registers.
///
/// # Safety
/// `x` has `n` values and the instruction set is there.
#[inline(always)]
unsafe fn sum<V: Simd>(x: *const f32, n: usize, f: impl Fn(V) -> V) -> f32 {
    // SAFETY: as promised.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * V::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(f(V::load(x.add(i + j * V::LANES))));
            }
            i += 4 * V::LANES;
        }
        simd::each::<V>(
            n - i,
            #[inline(always)]
            |j, count| sums[0] = sums[0].add(f(simd::load_n(x.add(i + j), count))),
        );
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

/// Neighbouring channels turned by their angles, in place.
/// - `x`: (d). `cos`, `sin`: (d / 2).
///
/// # Safety
/// The registers' instruction set is there.
#[inline(always)]
unsafe fn turn<V: Simd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let d = x.len();
    assert!(cos.len() == d / 2 && sin.len() == d / 2);
    let whole = d / V::LANES * V::LANES;
    for i in (0..whole).step_by(V::LANES) {
        // SAFETY: `i` and half of it stay below the lengths, by a whole register.
        unsafe {
            let v = V::load(x[i..].as_ptr());
            let (cos, sin) = (V::doubled(cos[i / 2..].as_ptr()), V::doubled(sin[i / 2..].as_ptr()));
            v.mul(cos).add(v.swapped().mul(sin).even_negated()).store(x[i..].as_mut_ptr());
        }
    }
    for i in (whole..d).step_by(2) {
        let (a, b, cos, sin) = (x[i], x[i + 1], cos[i / 2], sin[i / 2]);
        (x[i], x[i + 1]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

/// Cosines and sines of each row: (rows, d / 2).
#[derive(Clone, Copy)]
pub struct Angles<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// Rows as attention reads them: normed over all heads, turned, multiplied, and with heads `to` elements apart, between zeros.
/// - `x`: (rows, d). `by`: multiplied with each value. `y`: (rows, stride), all of which is written.
pub fn heads<K: Kernel>(
    x: &[f32],
    d: usize,
    norm: Option<(&[f32], f32)>,
    angles: Option<Angles>,
    by: f32,
    head_dim: usize,
    to: usize,
    stride: usize,
    y: &mut [MaybeUninit<K::Elem>],
) {
    let how = RowNormAct {
        norm: norm.map(|(_, eps)| (Norm::Rms, eps)),
        scale: norm.map(|(w, _)| w),
        ..RowNormAct::default()
    };
    let task = (TASK / d.max(1)).max(1);
    y.par_chunks_mut(task * stride).zip(x.par_chunks(task * d)).enumerate().for_each(|(i, (y, x))| {
        let mut row = vec![0f32; d];
        let zero = MaybeUninit::new(K::Elem::default());
        for (j, (y, x)) in y.chunks_mut(stride).zip(x.chunks(d)).enumerate() {
            let at = i * task + j;
            // SAFETY: K was chosen for this CPU.
            unsafe {
                K::vectorised(
                    #[inline(always)]
                    || {
                        norm_act::<K::V, f32>(&how, x, uninit(&mut row));
                        if let Some(Angles { cos, sin }) = angles {
                            turn::<K::V>(&mut row, &cos[at * (d / 2)..][..d / 2], &sin[at * (d / 2)..][..d / 2]);
                        }
                        row.iter_mut().for_each(|x| *x *= by);
                        for (h, row) in row.chunks(head_dim).enumerate() {
                            let (y, rest) = y[h * to..][..to].split_at_mut(head_dim);
                            norm_act::<K::V, K::Elem>(&RowNormAct::default(), row, y);
                            rest.fill(zero);
                        }
                        y[d / head_dim * to..].fill(zero);
                    },
                )
            }
        }
    });
}

/// y = norm_act(x), row by row.
/// - `x`: rows of `d`, `from` elements apart. `y`: rows of `row_stride`, at least `d`; what is beyond is set to zero. `how`: what
///   happens to a row.
pub fn norm_act_all<'a, K: Kernel, E: Element>(
    x: &[f32],
    from: usize,
    d: usize,
    y: &mut [MaybeUninit<E>],
    row_stride: usize,
    how: impl Fn(usize) -> RowNormAct<'a> + Sync,
) {
    let task = (TASK / d.max(1)).max(1);
    y.par_chunks_mut(task * row_stride).enumerate().for_each(|(i, y)| {
        for (j, y) in y.chunks_mut(row_stride).enumerate() {
            let at = i * task + j;
            let how = how(at);
            // SAFETY: K was chosen for this CPU.
            unsafe {
                K::vectorised(
                    #[inline(always)]
                    || norm_act::<K::V, E>(&how, &x[at * from..][..d], &mut y[..d]),
                )
            }
            y[d..].fill(MaybeUninit::new(E::default()));
        }
    });
}

/// y = norm_act(x), where rows do not matter; all of y is written.
pub fn map_all<K: Kernel>(x: &[f32], y: &mut [MaybeUninit<f32>], how: &RowNormAct) {
    assert_eq!(x.len(), y.len());
    y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| {
        // SAFETY: K was chosen for this CPU.
        unsafe {
            K::vectorised(
                #[inline(always)]
                || norm_act::<K::V, f32>(how, x, y),
            )
        }
    });
}
