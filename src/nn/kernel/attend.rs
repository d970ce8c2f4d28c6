//! softmax(q kᵀ) v without the scores: keys come in blocks, and each row keeps the score that its exponentials are relative to,
//! their sum and the weighted sum of values. That score need not be the largest, only so near that no exponential overflows
//! and that they do not all vanish: it is zero, and the largest so far, with the sums corrected, once a block shows that zero
//! will not do. So scores turn into weights in the registers where they were summed. Memory is linear in tokens.
//!
//! Source of the method: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Rabe and Staats,
//! "Self-attention does not need O(n²) memory" (2021).

use super::micro::{Element, Kernel, Micro, Scores};
use super::pack::{self, Rows};
use super::rows::{RowNormAct, norm_act};
use super::simd::Simd;
use rayon::prelude::*;
use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Keys of a block: with their values they stay in the second cache while a task's queries pass.
const BLOCK: usize = 512;
/// Queries of a task.
const QUERIES: usize = 192;
/// A score of no key.
const NEVER: f32 = -1e30;
/// What a row's weights come to where the score that they are relative to will do: so little that they can be multiplied with
/// values, so much that none which matters beside the largest is lost (numbers end at 2^127 and 2^-126).
const FIT: std::ops::Range<f32> = 1.0 / (1u64 << 40) as f32..(1u64 << 60) as f32;

/// With the kernel's own products.
impl<K: Kernel> Scores for K {
    type Kernel = K;
    type Elem = K::Elem;

    fn head(head_dim: usize) -> usize {
        head_stride::<K>(head_dim)
    }

    fn rows(x: Vec<K::Elem>, _: usize, _: usize, stride: usize, _: bool) -> (Vec<K::Elem>, usize) {
        (x, stride)
    }

    fn panel(
        k: &[K::Elem],
        stride: usize,
        first: usize,
        m: usize,
        head: usize,
        line: &mut Vec<K::Elem>,
        out: &mut [K::Elem],
    ) {
        // SAFETY: the kernel's elements are f32 or bf16, as `Element` says.
        let rows = unsafe { as_rows(k) };
        pack::panel::<K>(rows, stride, first, m, 0, head, line, out);
    }

    unsafe fn scores(
        rows: usize,
        q: *const K::Elem,
        stride: usize,
        panel: *const K::Elem,
        head: usize,
        tile: *mut f32,
    ) {
        let here = (panel.cast(), 0);
        // SAFETY: as promised.
        unsafe { K::micro(rows, q, stride, panel, head, tile, K::NR, here, true) }
    }

    unsafe fn weigh(
        rows: usize,
        q: *const K::Elem,
        stride: usize,
        panel: *const K::Elem,
        head: usize,
        start: *const f32,
        weights: *mut K::Elem,
        share: usize,
        sums: *mut f32,
    ) {
        // SAFETY: as promised.
        unsafe { K::weigh(rows, q, stride, panel, head, start, weights, share, sums) }
    }
}

/// What attention runs over. Heads lie side by side in a row; those of q and k are filled up with zeros to whole steps. q is
/// multiplied with the scale of the scores and with log2 e, so that weights are powers of two.
pub struct Heads<'a, S: Scores> {
    pub heads: usize,
    pub head_dim: usize,
    /// Elements from row to row of q, of k and of v.
    pub q_stride: usize,
    pub k_stride: usize,
    pub v_stride: usize,
    pub q: &'a [S::Elem],
    pub k: &'a [S::Elem],
    pub v: &'a [<S::Kernel as Micro>::Elem],
    /// Queries and keys.
    pub n: usize,
    pub m: usize,
    /// (heads, n, m), added to scores, which are powers of e here.
    pub bias: Option<&'a [f32]>,
}

/// Elements from head to head of q and k, as a kernel multiplies them.
pub fn head_stride<K: Kernel>(head_dim: usize) -> usize {
    head_dim.next_multiple_of(K::STEP)
}

/// Where rows of the result go: (n, heads * head_dim), `stride` apart.
#[derive(Clone, Copy)]
struct Target<E>(*mut E);
// SAFETY: tasks write disjoint rows and columns of what it points to.
unsafe impl<E> Sync for Target<E> {}
unsafe impl<E> Send for Target<E> {}

/// y = softmax(q kᵀ + bias) v, head by head.
/// - `y`: (n, heads * head_dim), `row_stride` from row to row, in f32 or the kernel's type; what lies between is set to zero.
pub fn attend<K: Kernel, S: Scores<Kernel = K>, T: Element>(x: &Heads<S>, y: &mut [MaybeUninit<T>], row_stride: usize) {
    let (n, m, hd) = (x.n, x.m, x.head_dim);
    let hs = S::head(hd);
    assert!(x.q_stride >= x.heads * hs && x.k_stride >= x.heads * hs && row_stride >= x.heads * hd);
    let rows = |count: usize, width: usize, stride: usize| if count == 0 { 0 } else { (count - 1) * stride + width };
    assert!(x.q.len() >= rows(n, x.heads * hs, x.q_stride) && x.k.len() >= rows(m, x.heads * hs, x.k_stride));
    assert!(x.v.len() >= rows(m, x.heads * hd, x.v_stride) && y.len() == n * row_stride);
    assert!(x.bias.is_none_or(|bias| bias.len() == x.heads * n * m));
    let zero = MaybeUninit::new(T::default());
    if n == 0 || m == 0 {
        return y.fill(zero);
    }
    y.chunks_mut(row_stride).for_each(|row| row[x.heads * hd..].fill(zero));

    super::count(2 * x.heads * n * m * hd);

    // keys and values of each head as panels
    let blocks: Vec<(usize, usize)> = (0..m).step_by(BLOCK).map(|k0| (k0, BLOCK.min(m - k0))).collect();
    let key_panel = hs * K::NR;
    let key_size = m.div_ceil(K::NR) * key_panel;
    let columns = hd.div_ceil(K::NR);
    let value_rows = |keys: usize| keys.next_multiple_of(K::STEP);
    let value_size = columns * K::NR * blocks.iter().map(|(_, keys)| value_rows(*keys)).sum::<usize>();
    let mut keys = vec![S::Elem::default(); x.heads * key_size];
    let mut values = vec![K::Elem::default(); x.heads * value_size];
    let packing = keys.par_chunks_mut(key_size).zip(values.par_chunks_mut(value_size)).enumerate().with_max_len(1);
    packing.for_each(|(h, (keys, values))| {
        let mut line = vec![];
        for (panel, keys) in keys.chunks_mut(key_panel).enumerate() {
            S::panel(&x.k[h * hs..], x.k_stride, panel * K::NR, m, hs, &mut line, keys);
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
        run::<K, S, T>(x, h, queries, keys, values, &blocks, target, row_stride);
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
struct State<K> {
    /// What each row's exponents are relative to.
    top: Vec<f32>,
    /// (MR, LANES)
    sums: Vec<f32>,
    /// (columns, MR, NR)
    out: Vec<f32>,
    kernel: PhantomData<K>,
}

impl<K: Kernel> State<K> {
    fn sum(&self, row: usize) -> f32 {
        let lanes = &self.sums[row * K::V::LANES..][..K::V::LANES];
        // SAFETY: that is one register; K fits this CPU.
        unsafe {
            K::vectorised(
                #[inline(always)]
                || K::V::load(lanes.as_ptr()).sum(),
            )
        }
    }
}

/// One head's queries of a tile before a block of keys.
struct ScoreBlock<'a, S: Scores> {
    x: &'a Heads<'a, S>,
    head: usize,
    /// First query, and how many.
    first: usize,
    rows: usize,
    /// First key of the block, and how many.
    key: usize,
    count: usize,
    /// The block's panels.
    keys: &'a [S::Elem],
}

impl<K: Kernel, S: Scores<Kernel = K>> ScoreBlock<'_, S> {
    fn panels(&self) -> usize {
        self.count.div_ceil(K::NR)
    }

    /// The queries and one panel, as products read them: pointer, elements from row to row, panel, values of k.
    fn factors(&self, panel: usize) -> (*const S::Elem, usize, *const S::Elem, usize) {
        let hs = S::head(self.x.head_dim);
        let q = self.x.q[self.first * self.x.q_stride + self.head * hs..].as_ptr();
        (q, self.x.q_stride, self.keys[panel * hs * K::NR..][..hs * K::NR].as_ptr(), hs)
    }

    /// What is added to the scores of a panel: its bias less `top`, and for keys that are not there, `NEVER`.
    fn start(&self, panel: usize, top: impl Fn(usize) -> f32, start: &mut [f32]) {
        let here = K::NR.min(self.count - panel * K::NR);
        for (r, start) in start.chunks_mut(K::NR).take(self.rows).enumerate() {
            start[..here].fill(-top(r));
            start[here..].fill(NEVER);
            if let Some(bias) = self.x.bias {
                let row = (self.head * self.x.n + self.first + r) * self.x.m + self.key + panel * K::NR;
                start.iter_mut().zip(&bias[row..][..here]).for_each(|(x, bias)| *x += bias * LOG2_E);
            }
        }
    }

    /// Makes the largest score of the block what each row is relative to, if it is larger than that.
    fn raise(&self, state: &mut State<K>, tile: &mut [f32]) {
        let old = state.top.clone();
        for panel in 0..self.panels() {
            self.start(panel, |_| 0.0, tile);
            let (q, stride, keys, hs) = self.factors(panel);
            // SAFETY: q has `rows` rows of hs elements by `attend`'s checks; the panel is whole; the tile has MR rows of NR,
            // whole registers of them; K fits this CPU.
            unsafe {
                S::scores(self.rows, q, stride, keys, hs, tile.as_mut_ptr());
                K::vectorised(
                    #[inline(always)]
                    || {
                        for (top, row) in state.top.iter_mut().zip(tile.chunks(K::NR)).take(self.rows) {
                            let mut most = K::V::splat(*top);
                            for part in row.chunks_exact(K::V::LANES) {
                                most = most.max(K::V::load(part.as_ptr()));
                            }
                            *top = most.top();
                        }
                    },
                )
            }
        }
        for (r, (old, new)) in old.into_iter().zip(&state.top).enumerate().filter(|(_, (old, new))| old < new) {
            let by = (old - new).exp2();
            state.sums[r * K::V::LANES..][..K::V::LANES].iter_mut().for_each(|x| *x *= by);
            for out in state.out.chunks_exact_mut(K::MR * K::NR) {
                out[r * K::NR..][..K::NR].iter_mut().for_each(|x| *x *= by);
            }
        }
    }

    /// The weights of the block's keys, rows `share` apart; their sums are added to what was.
    fn weigh(&self, state: &mut State<K>, tile: &mut [f32], weights: &mut [K::Elem], share: usize) {
        assert!(weights.len() >= (self.rows - 1) * share + self.panels() * K::NR && tile.len() == K::MR * K::NR);
        for panel in 0..self.panels() {
            // one for all the panels that are whole
            if panel == 0 || self.x.bias.is_some() || (panel + 1) * K::NR > self.count {
                self.start(panel, |r| state.top[r], tile);
            }
            let (q, stride, keys, hs) = self.factors(panel);
            let (weights, sums) = (weights[panel * K::NR..].as_mut_ptr(), state.sums.as_mut_ptr());
            // SAFETY: q has `rows` rows of hs elements by `attend`'s checks; the panel is whole; weights has that many rows
            // and the tile MR rows of NR, as asserted, and sums a register for each of MR; K fits this CPU.
            unsafe { S::weigh(self.rows, q, stride, keys, hs, tile.as_ptr(), weights, share, sums) }
        }
    }
}

fn run<K: Kernel, S: Scores<Kernel = K>, T: Element>(
    x: &Heads<S>,
    h: usize,
    queries: std::ops::Range<usize>,
    keys: &[S::Elem],
    values: &[K::Elem],
    blocks: &[(usize, usize)],
    target: Target<T>,
    row_stride: usize,
) {
    let target = { target };
    let hs = S::head(x.head_dim);
    let columns = x.head_dim.div_ceil(K::NR);
    let size = K::MR * K::NR;
    let parts = queries.len().div_ceil(K::MR);
    let bound = |part: usize| queries.start + queries.len() * part / parts;
    let new = || State::<K> {
        top: vec![0.0; K::MR],
        sums: vec![0.0; K::MR * K::V::LANES],
        out: vec![0.0; columns * size],
        kernel: PhantomData,
    };
    let mut states: Vec<_> = (0..parts).map(|_| new()).collect();
    let widest = blocks.iter().map(|(_, keys)| keys.next_multiple_of(K::NR)).max().unwrap_or(0);
    let share = widest + 32; // no power of two, so that the rows of a tile do not share cache sets
    let mut weights = vec![K::Elem::default(); K::MR * share];
    let mut before = vec![0f32; K::MR * K::V::LANES];
    let mut tile = vec![0f32; size];
    let mut value_block = values;
    let here = (weights.as_ptr().cast::<u8>(), 0); // the second cache holds all that is wanted soon
    for &(key, count) in blocks {
        let value_rows = count.next_multiple_of(K::STEP);
        for (part, state) in states.iter_mut().enumerate() {
            let (first, rows) = (bound(part), bound(part + 1) - bound(part));
            let keys = &keys[key / K::NR * hs * K::NR..];
            let meeting = ScoreBlock::<S> { x, head: h, first, rows, key, count, keys };
            before.copy_from_slice(&state.sums);
            meeting.weigh(state, &mut tile, &mut weights, share);
            if !(0..rows).all(|r| FIT.contains(&state.sum(r))) {
                state.sums.copy_from_slice(&before);
                if key == 0 {
                    state.top.fill(NEVER);
                }
                meeting.raise(state, &mut tile);
                meeting.weigh(state, &mut tile, &mut weights, share);
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
            let sum = state.sum(r);
            for (row, out) in row.chunks_mut(K::NR).zip(state.out.chunks(size)) {
                row.iter_mut().zip(&out[r * K::NR..]).for_each(|(y, x)| *y = x / sum);
            }
            let at = (bound(part) + r) * row_stride + h * x.head_dim;
            // SAFETY: these rows and columns are this task's own and lie within the result by `attend`'s checks; K was
            // chosen for this CPU.
            unsafe {
                let y = std::slice::from_raw_parts_mut(target.0.add(at).cast::<MaybeUninit<T>>(), x.head_dim);
                K::vectorised(
                    #[inline(always)]
                    || norm_act::<K::V, T>(&RowNormAct::default(), &row[..x.head_dim], y),
                )
            }
        }
    }
}
