//! softmax(q kᵀ) v without the scores: keys come in blocks, and each row keeps its largest score so far, the sum of its
//! exponentials and the weighted sum of values, which are corrected when a larger score turns up. Memory is linear in tokens.
//!
//! Source of the method: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Rabe and Staats,
//! "Self-attention does not need O(n²) memory" (2021).

use super::micro::{Element, Kernel};
use super::pack::{self, Rows};
use super::rows::{Bend, bend};
use super::simd::{self, Simd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Keys of a block: with their values they stay in the second cache while a task's queries pass.
const BLOCK: usize = 512;
/// Queries of a task.
const QUERIES: usize = 192;
/// A score of no key.
const NEVER: f32 = -1e30;

/// What attention runs over, in the kernel's type. Heads lie side by side in a row; those of q and k are filled up with zeros
/// to whole steps.
pub struct Heads<'a, E> {
    pub heads: usize,
    pub head_dim: usize,
    /// Elements from row to row of q and k; of v.
    pub stride: usize,
    pub v_stride: usize,
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    /// Queries and keys.
    pub n: usize,
    pub m: usize,
    /// Multiplied with each score.
    pub scale: f32,
    /// (heads, n, m), added to scores.
    pub bias: Option<&'a [f32]>,
}

/// Elements from head to head of q and k.
pub fn head_stride<K: Kernel>(head_dim: usize) -> usize {
    head_dim.next_multiple_of(K::STEP)
}

/// Where rows of the result go: (n, heads * head_dim), `stride` apart.
#[derive(Clone, Copy)]
struct Target<E>(*mut E);
// SAFETY: tasks write disjoint rows and columns of what it points to.
unsafe impl<E> Sync for Target<E> {}
unsafe impl<E> Send for Target<E> {}

/// y = softmax(q kᵀ scale + bias) v, head by head.
/// - `y`: (n, heads * head_dim), `apart` from row to row, in f32 or the kernel's type; what lies between is set to zero.
pub fn attend<K: Kernel, T: Element>(x: &Heads<K::Elem>, y: &mut [MaybeUninit<T>], apart: usize) {
    let (n, m, hd) = (x.n, x.m, x.head_dim);
    let hs = head_stride::<K>(hd);
    assert!(x.stride >= x.heads * hs && apart >= x.heads * hd);
    let rows = |count: usize, width: usize, stride: usize| if count == 0 { 0 } else { (count - 1) * stride + width };
    assert!(x.q.len() >= rows(n, x.heads * hs, x.stride) && x.k.len() >= rows(m, x.heads * hs, x.stride));
    assert!(x.v.len() >= rows(m, x.heads * hd, x.v_stride) && y.len() == n * apart);
    assert!(x.bias.is_none_or(|bias| bias.len() == x.heads * n * m));
    let zero = MaybeUninit::new(T::default());
    if n == 0 || m == 0 {
        return y.fill(zero);
    }
    y.chunks_mut(apart).for_each(|row| row[x.heads * hd..].fill(zero));

    super::count(2 * x.heads * n * m * hd);

    // keys and values of each head as panels
    let blocks: Vec<(usize, usize)> = (0..m).step_by(BLOCK).map(|k0| (k0, BLOCK.min(m - k0))).collect();
    let key_panel = hs * K::NR;
    let key_size = m.div_ceil(K::NR) * key_panel;
    let columns = hd.div_ceil(K::NR);
    let value_rows = |keys: usize| keys.next_multiple_of(K::STEP);
    let value_size = columns * K::NR * blocks.iter().map(|(_, keys)| value_rows(*keys)).sum::<usize>();
    let mut keys = vec![K::Elem::default(); x.heads * key_size];
    let mut values = vec![K::Elem::default(); x.heads * value_size];
    let packing = keys.par_chunks_mut(key_size).zip(values.par_chunks_mut(value_size)).enumerate().with_max_len(1);
    packing.for_each(|(h, (keys, values))| {
        let mut line = vec![];
        for (panel, keys) in keys.chunks_mut(key_panel).enumerate() {
            // SAFETY: the kernel's elements are f32 or bf16, as `Element` says.
            let rows = unsafe { as_rows(&x.k[h * hs..]) };
            pack::panel::<K>(rows, x.stride, panel * K::NR, m, 0, hs, &mut line, keys);
        }
        let mut values = values;
        for &(k0, count) in &blocks {
            for column in 0..columns {
                let (panel, rest) = values.split_at_mut(value_rows(count) * K::NR);
                values = rest;
                let first = column * K::NR;
                let v = &x.v[k0 * x.v_stride + h * hd..];
                pack::panel_of_columns::<K::Elem, K>(v, x.v_stride, first, hd - first, count, panel);
            }
        }
    });

    let tasks = n.div_ceil(QUERIES);
    let target = Target(y.as_mut_ptr().cast::<T>());
    (0..x.heads * tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let (h, first) = (task / tasks, task % tasks * QUERIES);
        let queries = first..(first + QUERIES).min(n);
        let (keys, values) = (&keys[h * key_size..][..key_size], &values[h * value_size..][..value_size]);
        run::<K, T>(x, h, queries, keys, values, &blocks, target, apart);
    });
}

/// The kernel's elements as rows to pack.
///
/// # Safety
/// `E` is f32 or bf16, which is what `HALF` says.
unsafe fn as_rows<E: Element>(x: &[E]) -> Rows<'_> {
    // SAFETY: as promised.
    unsafe {
        match E::HALF {
            true => Rows::Bf16(std::slice::from_raw_parts(x.as_ptr().cast(), x.len())),
            false => Rows::F32(std::slice::from_raw_parts(x.as_ptr().cast(), x.len())),
        }
    }
}

/// What the rows of one tile know so far.
struct State {
    top: Vec<f32>,
    sum: Vec<f32>,
    /// (columns, MR, NR)
    out: Vec<f32>,
}

fn run<K: Kernel, T: Element>(
    x: &Heads<K::Elem>,
    h: usize,
    queries: std::ops::Range<usize>,
    keys: &[K::Elem],
    values: &[K::Elem],
    blocks: &[(usize, usize)],
    target: Target<T>,
    apart: usize,
) {
    let target = { target };
    let hs = head_stride::<K>(x.head_dim);
    let columns = x.head_dim.div_ceil(K::NR);
    let size = K::MR * K::NR;
    let parts = queries.len().div_ceil(K::MR);
    let bound = |part: usize| queries.start + queries.len() * part / parts;
    let mut states: Vec<State> = (0..parts)
        .map(|_| State { top: vec![NEVER; K::MR], sum: vec![0.0; K::MR], out: vec![0.0; columns * size] })
        .collect();
    let widest = blocks.iter().map(|(_, keys)| keys.div_ceil(K::NR)).max().unwrap_or(0);
    let mut scores = vec![0f32; widest * size];
    let share = widest * K::NR + 32; // no power of two, so that the rows of a tile do not share cache sets
    let mut weights = vec![K::Elem::default(); K::MR * share];
    let mut value_block = values;
    let here = (weights.as_ptr().cast::<u8>(), 0); // the second cache holds all that is wanted soon
    for &(k0, count) in blocks {
        let panels = count.div_ceil(K::NR);
        let keys = &keys[k0 / K::NR * hs * K::NR..];
        let value_rows = count.next_multiple_of(K::STEP);
        for (part, state) in states.iter_mut().enumerate() {
            let (first, rows) = (bound(part), bound(part + 1) - bound(part));
            let width = panels * K::NR;
            for panel in 0..panels {
                let q = x.q[first * x.stride + h * hs..].as_ptr();
                let tile = scores[panel * K::NR..].as_mut_ptr();
                // SAFETY: q has `rows` rows of hs elements by `attend`'s checks; the panel is whole; K fits this CPU.
                unsafe {
                    K::micro(rows, q, x.stride, keys[panel * hs * K::NR..].as_ptr(), hs, tile, width, here, false)
                }
            }
            for (r, scores) in scores.chunks_mut(width).take(rows).enumerate() {
                if let Some(bias) = x.bias {
                    // bias is added after scaling, which comes with the exponential
                    let bias = &bias[(h * x.n + first + r) * x.m + k0..][..count];
                    scores.iter_mut().zip(bias).for_each(|(s, bias)| *s += bias / x.scale);
                }
                scores[count..].fill(NEVER);
            }
            // SAFETY: K was chosen for this CPU.
            unsafe {
                K::vectorised(
                    #[inline(always)]
                    || soften::<K>(&scores, width, rows, x.scale, &mut weights, share, state),
                )
            }
            for (column, out) in state.out.chunks_mut(size).enumerate() {
                let panel = value_block[column * value_rows * K::NR..].as_ptr();
                // SAFETY: weights has `rows` rows of value_rows elements; the panel is whole; K fits this CPU.
                unsafe {
                    K::micro(rows, weights.as_ptr(), share, panel, value_rows, out.as_mut_ptr(), K::NR, here, true)
                }
            }
        }
        value_block = &value_block[columns * value_rows * K::NR..];
    }
    let mut row = vec![0f32; columns * K::NR];
    for (part, state) in states.iter().enumerate() {
        for r in 0..bound(part + 1) - bound(part) {
            for (row, out) in row.chunks_mut(K::NR).zip(state.out.chunks(size)) {
                row.iter_mut().zip(&out[r * K::NR..]).for_each(|(y, x)| *y = x / state.sum[r]);
            }
            let at = (bound(part) + r) * apart + h * x.head_dim;
            // SAFETY: these rows and columns are this task's own and lie within the result by `attend`'s checks; K was
            // chosen for this CPU.
            unsafe {
                let y = std::slice::from_raw_parts_mut(target.0.add(at).cast::<MaybeUninit<T>>(), x.head_dim);
                K::vectorised(
                    #[inline(always)]
                    || bend::<K::V, T>(&Bend::default(), &row[..x.head_dim], y),
                )
            }
        }
    }
}

/// Scores -> their exponentials, relative to each row's largest so far, in the kernel's type; sums and results so far are
/// corrected to match.
/// - `scores`: `rows` rows of `width`, one after the other. `weights`: rows `share` apart.
///
/// # Safety
/// K fits this CPU; the width is a multiple of its panels'.
#[inline(always)]
unsafe fn soften<K: Kernel>(
    scores: &[f32],
    width: usize,
    rows: usize,
    scale: f32,
    weights: &mut [K::Elem],
    share: usize,
    state: &mut State,
) {
    assert!(scores.len() >= rows * width && weights.len() >= (rows - 1) * share + width);
    assert!(width.is_multiple_of(K::NR) && K::NR.is_multiple_of(2 * K::V::LANES));
    let lanes = K::V::LANES;
    let factor = scale * std::f32::consts::LOG2_E;
    // SAFETY: positions stay below the lengths asserted above, in whole registers.
    unsafe {
        for r in 0..rows {
            let row = scores[r * width..].as_ptr();
            let (mut a, mut b) = (K::V::load(row), K::V::load(row.add(lanes)));
            for i in (0..width).step_by(2 * lanes) {
                a = a.max(K::V::load(row.add(i)));
                b = b.max(K::V::load(row.add(i + lanes)));
            }
            let most = a.max(b).top();
            let top = if most > state.top[r] { most } else { state.top[r] };
            let target = weights[r * share..].as_mut_ptr();
            let (by, shift) = (K::V::splat(factor), K::V::splat(-top * factor));
            let (mut a, mut b) = (K::V::splat(0.0), K::V::splat(0.0));
            for i in (0..width).step_by(2 * lanes) {
                let x = simd::exp2_for::<K::V, K::Elem>(K::V::load(row.add(i)).madd(by, shift));
                let y = simd::exp2_for::<K::V, K::Elem>(K::V::load(row.add(i + lanes)).madd(by, shift));
                (a, b) = (a.add(x), b.add(y));
                simd::store(x, target.add(i));
                simd::store(y, target.add(i + lanes));
            }
            let old = simd::exp2(K::V::splat((state.top[r] - top) * factor)).top();
            state.sum[r] = state.sum[r] * old + a.add(b).sum();
            if old != 1.0 {
                for out in state.out.chunks_exact_mut(K::MR * K::NR) {
                    out[r * K::NR..][..K::NR].iter_mut().for_each(|x| *x *= old);
                }
            }
            state.top[r] = top;
        }
    }
}
