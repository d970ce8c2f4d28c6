//! Every loop against plain f64, for every instruction set that this CPU has, over odd sizes, distances and threads.

mod int8;
mod pairs;

use super::attend::{self, Heads};
use super::int8::scores_fit;
use super::memory::filled;
use super::micro::Scores;
use super::micro::{Element, Kernel};
use super::pack::Rows;
use super::product::{Gate, Line, Operand, Piece, RowEpilogue, product};
use super::rows::{self, Act, Angles, Norm, RowNormAct};
use super::{Isa, Job, MatmulType, dispatch_on, row_stride, simd};
use crate::sampling::noise::Noise;
use half::{bf16, f16};
use std::any::TypeId;
use std::f64::consts::LN_2;

/// Of sums of products, relative to the sum of their magnitudes: f32 keeps 24 bits, and some hundred terms are added.
const SUMS: f64 = 1e-6;
/// Of attention whose weights were rounded to bf16, relative to the largest value: half a unit in eight bits.
const HALF_WEIGHTS: f64 = 4e-3;
/// Of row loops, relative to the largest value: a few roundings.
const ROWS: f64 = 2e-6;

/// Runs `job` for each instruction set, type and number of threads.
fn everywhere<J: Job<Done = ()> + Send>(job: impl Fn(String) -> J) {
    for isa in Isa::all() {
        for math in [MatmulType::F32, MatmulType::Bf16] {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let job = job(format!("{} in {math:?} on {threads} threads", isa.name()));
                pool.install(|| dispatch_on(isa, math, job));
            }
        }
    }
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    Noise::new(seed).normal(count)
}

/// As the kernel reads them, and what those numbers are.
fn read_as<E: Element>(x: &[f32]) -> (Vec<E>, Vec<f64>) {
    let wide = |x: f32| if E::HALF { bf16::from_f32(x).to_f64() } else { x as f64 };
    (x.iter().map(|x| E::from_f32(*x)).collect(), x.iter().map(|x| wide(*x)).collect())
}

fn close(what: &str, got: f32, want: f64, limit: f64) {
    let off = (got as f64 - want).abs();
    assert!(off <= limit, "{what}: {got} for {want}, off by {off:.1e}, limit {limit:.1e}");
}

#[derive(Clone, Copy)]
enum Stored {
    F32,
    Bf16,
    F16,
}

struct Products(String);

impl Job for Products {
    type Done = ();

    fn run<K: Kernel>(self) {
        // fewer rows than a tile, several tasks, odd k, fewer columns than a panel, k in several pieces
        let sizes = [(1, 1, 1), (5, 7, 3), (13, 33, 37), (401, 20, 70), (29, 1100, 300), (17, 64, 32)];
        for (i, (m, k, n)) in sizes.into_iter().enumerate() {
            let stride = k + i * 3;
            let (x, xs) = read_as::<K::Elem>(&values(m * stride, 1));
            let weights = values(n * k, 2);
            for stored in [Stored::F32, Stored::Bf16, Stored::F16] {
                let half: Vec<bf16> = weights.iter().map(|w| bf16::from_f32(*w)).collect();
                let float16: Vec<f16> = weights.iter().map(|w| f16::from_f32(*w)).collect();
                let (rows, wide): (Rows, Vec<f32>) = match stored {
                    Stored::F32 => (Rows::F32(&weights), weights.clone()),
                    Stored::Bf16 => (Rows::Bf16(&half), half.iter().map(|w| w.to_f32()).collect()),
                    Stored::F16 => (Rows::F16(&float16), float16.iter().map(|w| w.to_f32()).collect()),
                };
                let (_, ws) = read_as::<K::Elem>(&wide);
                let (bias, table, whole) = (values(n, 3), values(2 * n, 4), values(m * n, 5));
                let index: Vec<u32> = (0..m as u32).map(|i| i % 2).collect();
                let gate = Gate { rows: &table, stride: n, index: Some(&index) };
                let finish = RowEpilogue {
                    bias: Some(&bias),
                    added: (i % 3 == 1).then_some(&whole),
                    gelu: i % 2 == 0,
                    gate: Some(gate),
                    factor: (i % 3 == 0).then_some(&whole),
                    residual: Some(&whole),
                };
                let row_stride = n + i;
                // SAFETY: a product writes all of its result.
                let y: Vec<f32> = unsafe {
                    filled(m * row_stride, |y| {
                        product::<K, f32>(&Operand::matrix(&x, m, k, stride), rows, n, finish, y, row_stride)
                    })
                };
                for row in 0..m {
                    for column in 0..n {
                        let terms = (0..k).map(|p| xs[row * stride + p] * ws[column * k + p]);
                        let size: f64 = terms.clone().map(f64::abs).sum::<f64>() + 1.0;
                        let added = finish.added.map_or(0.0, |added| added[row * n + column] as f64);
                        let mut want = terms.sum::<f64>() + bias[column] as f64 + added;
                        if finish.gelu {
                            want = gelu(want);
                        }
                        let scale = table[index[row] as usize * n + column] as f64;
                        let factor = finish.factor.map_or(1.0, |f| f[row * n + column] as f64);
                        want = want * scale * factor + whole[row * n + column] as f64;
                        let limit = SUMS * (size * (scale * factor).abs().max(1.0) + want.abs());
                        close(&format!("{}, {m}x{k}x{n}", self.0), y[row * row_stride + column], want, limit);
                    }
                    assert!(y[row * row_stride + n..(row + 1) * row_stride].iter().all(|&pad| pad == 0.0));
                }
            }
        }
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

#[test]
fn products() {
    everywhere(Products);
}

/// A picture of h lines of w pixels under a 3 x 3 kernel: lines, pieces, and pieces that fall out of the picture.
struct Windows(String);

impl Job for Windows {
    type Done = ();

    fn run<K: Kernel>(self) {
        let (h, w, c, n) = (5, 14, 6, 35);
        let line = (w + 2) * c;
        let mut picture = values(h * line, 6);
        for row in picture.chunks_mut(line) {
            row[..c].fill(0.0);
            row[line - c..].fill(0.0);
        }
        let (x, xs) = read_as::<K::Elem>(&picture);
        let weights = values(n * 9 * c, 7);
        let (_, ws) = read_as::<K::Elem>(&weights);
        let operand = Operand {
            data: &x,
            stride: c,
            lines: (0..h).map(|i| Line { start: i * line, count: w, row: i as isize }).collect(),
            pieces: (0..3)
                .map(|r| {
                    let row = r as isize - 1;
                    Piece { shift: row * line as isize, k0: r * 3 * c, k: 3 * c, row }
                })
                .collect(),
            height: h as isize,
        };
        // SAFETY: a product writes all of its result.
        let y: Vec<f32> = unsafe {
            filled(h * w * n, |y| product::<K, f32>(&operand, Rows::F32(&weights), n, RowEpilogue::default(), y, n))
        };
        for (at, got) in y.iter().enumerate() {
            let (i, j, column) = (at / n / w, at / n % w, at % n);
            let mut want = 0.0;
            for (r, i) in (0..3).map(|r| (r, (i + r).wrapping_sub(1))).filter(|(_, i)| *i < h) {
                for p in 0..3 * c {
                    want += xs[i * line + j * c + p] * ws[column * 9 * c + r * 3 * c + p];
                }
            }
            close(&self.0, *got, want, SUMS * 100.0);
        }
    }
}

#[test]
fn windows() {
    everywhere(Windows);
}

struct Attentions(String);

impl Job for Attentions {
    type Done = ();

    fn run<K: Kernel>(self) {
        attentions::<K, K>(&self.0);
        if TypeId::of::<K::Int8Scores>() != TypeId::of::<K>() && scores_fit(64) {
            attentions::<K, K::Int8Scores>(&format!("{}, scores by int8 dot products", self.0));
        }
    }
}

/// Each head of rows as eight bits keep it.
fn heads_rounded(x: &[f64], stride: usize, heads: usize, to: usize, head_dim: usize) -> Vec<f64> {
    let mut y = x.to_vec();
    for row in y.chunks_mut(stride) {
        for head in row.chunks_mut(to).take(heads) {
            let line: Vec<f32> = head[..head_dim].iter().map(|x| *x as f32).collect();
            head[..head_dim].copy_from_slice(&int8::rounded(&line));
        }
    }
    y
}

fn attentions<K: Kernel, S: Scores<Kernel = K>>(what: &str) {
    let whole = TypeId::of::<S>() != TypeId::of::<K>();
    // odd heads, one key, more keys than a block, more queries than a task; then keys whose scores outgrow those of the
    // first, in the same block and in the next one
    let sizes = [(1, 1, 1, 2), (7, 29, 3, 10), (5, 600, 2, 33), (210, 40, 1, 64), (5, 90, 1, 30), (14, 700, 2, 31)];
    let sizes = sizes.into_iter().chain([(19, 45, 2, 128)]); // the most that eight bits take, and a 13B has
    for (n, m, heads, head_dim) in sizes {
        let outgrown = if matches!(m, 90 | 700) { m - 50 } else { m };
        let to = attend::head_stride::<K>(head_dim);
        let (stride, v_stride, row_stride) = (heads * to + 3, heads * head_dim + 5, heads * head_dim + 1);
        let spread = |rows: usize, seed: u64| {
            let mut x = values(rows * stride, seed);
            for x in x.chunks_mut(stride) {
                (0..heads).for_each(|h| x[h * to + head_dim..(h + 1) * to].fill(0.0));
            }
            read_as::<K::Elem>(&x)
        };
        let ((q, qs), (mut k, mut ks)) = (spread(n, 8), spread(m, 9));
        for (i, k) in k.iter_mut().enumerate().skip(outgrown * stride) {
            (*k, ks[i]) = (K::Elem::from_f32(16.0 * k.to_f32()), 16.0 * ks[i]);
        }
        // what all keys share changes nothing
        let shift: Vec<f64> = (0..stride).map(|i| if whole { (i % 5) as f64 * 8.0 } else { 0.0 }).collect();
        for (i, k) in k.iter_mut().enumerate() {
            ks[i] += if i % stride % to < head_dim && i % stride < heads * to { shift[i % stride] } else { 0.0 };
            *k = K::Elem::from_f32(ks[i] as f32);
            ks[i] = k.to_f32() as f64;
        }
        let (mut qs, mut ks) = (qs, ks);
        if whole {
            let mean = |i: usize| ks.iter().skip(i).step_by(stride).sum::<f64>() / m as f64;
            let means: Vec<f64> = (0..stride).map(mean).collect();
            ks.iter_mut().enumerate().for_each(|(i, k)| *k -= means[i % stride]);
            ks = heads_rounded(&ks, stride, heads, to, head_dim);
            qs = heads_rounded(&qs, stride, heads, to, head_dim);
        }
        let (q, q_stride) = S::rows(q, heads, head_dim, stride, false);
        let (k, k_stride) = S::rows(k, heads, head_dim, stride, true);
        let (v, vs) = read_as::<K::Elem>(&values(m * v_stride, 10));
        let bias = values(heads * n * m, 11);
        let heads = Heads::<S> {
            heads,
            head_dim,
            q_stride,
            k_stride,
            v_stride,
            q: &q,
            k: &k,
            v: &v,
            n,
            m,
            bias: (n != 210 && n != 14).then_some(&bias),
        };
        // SAFETY: attention writes all of its result.
        let y: Vec<f32> = unsafe { filled(n * row_stride, |y| attend::attend::<K, S, f32>(&heads, y, row_stride)) };
        for row in 0..n {
            for h in 0..heads.heads {
                let score = |key: usize| {
                    let dot: f64 =
                        (0..head_dim).map(|c| qs[row * stride + h * to + c] * ks[key * stride + h * to + c]).sum();
                    dot * LN_2 + heads.bias.map_or(0.0, |b| b[(h * n + row) * m + key] as f64)
                };
                let scores: Vec<f64> = (0..m).map(score).collect();
                let top = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for c in 0..head_dim {
                    let terms = (0..m).map(|key| (scores[key] - top).exp() * vs[key * v_stride + h * head_dim + c]);
                    let limit = if K::Elem::HALF { HALF_WEIGHTS * 4.0 } else { SUMS * top.abs().max(10.0) * 2.0 };
                    let got = y[row * row_stride + h * head_dim + c];
                    close(&format!("{what}, {n} x {m}"), got, terms.sum::<f64>() / sum, limit);
                }
            }
        }
    }
}

#[test]
fn attention() {
    everywhere(Attentions);
}

struct RowLoops(String);

impl Job for RowLoops {
    type Done = ();

    fn run<K: Kernel>(self) {
        for (count, d) in [(1, 1), (3, 5), (7, 37), (300, 64), (2, 1000)] {
            let (from, row_stride) = (d + 3, row_stride(d, 4) + 2);
            let x: Vec<f32> = values(count * from, 12).iter().map(|x| 2.0 * x + 0.5).collect();
            let (scale, shift) = (values(d, 13), values(d, 14));
            for (norm, act) in
                [(None, Some(Act::Gelu)), (Some(Norm::Rms), Some(Act::Silu)), (Some(Norm::Layer), None), (None, None)]
            {
                let how =
                    RowNormAct { norm: norm.map(|norm| (norm, 1e-5)), scale: Some(&scale), shift: Some(&shift), act };
                // SAFETY: every row is written.
                let y: Vec<f32> = unsafe {
                    filled(count * row_stride, |y| rows::norm_act_all::<K, f32>(&x, from, d, y, row_stride, |_| how))
                };
                for row in 0..count {
                    let x: Vec<f64> = x[row * from..][..d].iter().map(|x| *x as f64).collect();
                    let mid = if norm == Some(Norm::Layer) { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
                    let square = x.iter().map(|x| (x - mid) * (x - mid)).sum::<f64>() / d as f64;
                    let factor = if norm.is_some() { (square + 1e-5).sqrt().recip() } else { 1.0 };
                    for c in 0..d {
                        let v = (x[c] - mid) * factor * scale[c] as f64 + shift[c] as f64;
                        let want = match act {
                            Some(Act::Gelu) => gelu(v),
                            Some(Act::Silu) => v / (1.0 + (-v).exp()),
                            None => v,
                        };
                        // one value alone has no deviation: what is left of it is rounding
                        let limit = ROWS * (v.abs().max(1.0)) * (1.0 + factor / 100.0);
                        close(&format!("{}, {count} x {d}", self.0), y[row * row_stride + c], want, limit);
                    }
                }
            }
        }
    }
}

#[test]
fn row_loops() {
    everywhere(RowLoops);
}

struct Turned(String);

impl Job for Turned {
    type Done = ();

    fn run<K: Kernel>(self) {
        let (count, head_dim, heads) = (9, 22, 3);
        let d = head_dim * heads;
        let to = attend::head_stride::<K>(head_dim) + 2;
        let stride = heads * to + 1;
        let (x, weight) = (values(count * d, 15), values(d, 16));
        let angles = values(count * d / 2, 17);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let turn = Some(Angles { cos: &cos, sin: &sin });
        // SAFETY: all of it is written.
        let y: Vec<K::Elem> = unsafe {
            filled(count * stride, |y| {
                rows::heads::<K>(&x, d, Some((&weight, 1e-5)), turn, 0.5, head_dim, to, stride, y)
            })
        };
        let widen = |e: K::Elem| {
            // SAFETY: f32 or bf16, as `HALF` says.
            unsafe {
                if K::Elem::HALF {
                    std::mem::transmute_copy::<_, bf16>(&e).to_f32()
                } else {
                    std::mem::transmute_copy(&e)
                }
            }
        };
        for row in 0..count {
            let x = &x[row * d..][..d];
            let square = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / d as f64;
            let normed = |c: usize| x[c] as f64 * (square + 1e-5).sqrt().recip() * weight[c] as f64;
            for c in 0..d {
                let (cos, sin) = (cos[row * d / 2 + c / 2] as f64, sin[row * d / 2 + c / 2] as f64);
                let want = match c % 2 {
                    0 => 0.5 * (normed(c) * cos - normed(c + 1) * sin),
                    _ => 0.5 * (normed(c) * cos + normed(c - 1) * sin),
                };
                let limit = if K::Elem::HALF { want.abs() / 256.0 + 1e-6 } else { ROWS * 8.0 };
                close(&self.0, widen(y[row * stride + c / head_dim * to + c % head_dim]), want, limit);
            }
        }
    }
}

#[test]
fn norms_and_positions() {
    everywhere(Turned);
}

struct Exponentials(String);

impl Job for Exponentials {
    type Done = ();

    fn run<K: Kernel>(self) {
        use simd::Simd;
        /// Three units in the last place, and the argument's rounding.
        const LIMIT: f64 = 5e-7;
        for i in -870..=880 {
            let x = i as f32 * 0.1;
            // SAFETY: K fits this CPU.
            let (e, two) = unsafe {
                K::vectorised(
                    #[inline(always)]
                    || (simd::exp(K::V::splat(x)).top(), simd::exp2(K::V::splat(x)).top()),
                )
            };
            let off = |got: f32, want: f64| ((got as f64 - want) / want).abs();
            assert!(off(e, (x as f64).exp()) < LIMIT, "{}: e^{x} = {e}", self.0);
            assert!(off(two, (x as f64).exp2()) < LIMIT, "{}: 2^{x} = {two}", self.0);
        }
        /// What two to some power is off by for bf16, which has two and a half digits.
        const COARSE: f64 = 1.1e-4;
        for i in (-400..=400).filter(|i| *i != 0) {
            let x = i as f32 * 0.013;
            let exact = if K::Elem::HALF { COARSE } else { SUMS };
            // SAFETY: as above.
            let y = unsafe {
                K::vectorised(
                    #[inline(always)]
                    || simd::gelu_for::<K::V, K::Elem>(K::V::splat(x)).top(),
                )
            };
            let want = gelu(x as f64);
            close(&format!("{}: gelu({x})", self.0), y, want, exact * want.abs() + f64::from(f32::EPSILON) * 4.0);
        }
    }
}

#[test]
fn exponentials() {
    everywhere(Exponentials);
}
