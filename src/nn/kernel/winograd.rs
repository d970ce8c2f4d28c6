//! Convolutions over 3 x 3 x 3 pixels with two thirds of the multiplications: F(2, 3) of Winograd, along the width.
//!
//! Two neighbouring pixels of a line are made of four products instead of six. Where d0..d3 are the pixels under both and g0..g2
//! one line of the kernel:
//!
//! ```text
//! m0 = (d0 - d2) g0    m1 = (d1 + d2) (g0 + g1 + g2) / 2    m2 = (d2 - d1) (g0 - g1 + g2) / 2    m3 = (d1 - d3) g2
//! y0 = m0 + m1 + m2    y1 = m1 - m2 - m3
//! ```
//!
//! Lines, frames and channels are added up within each m, so all of it are four products of matrices. Factors are rounded to
//! what the kernel multiplies after they are added up, which f32 hardly feels; of bf16 the result is about 4 dB farther off
//! than that of the plain sum.
//! - Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4.

use super::memory::filled;
use super::micro::{Element, Kernel};
use super::pack::Rows;
use super::product::{Piece, RowEpilogue, SUMS, Target, finish_row, fitting, in_tasks};
use super::rows::{RowNormAct, norm_act, uninit};
use super::simd::{self, Simd};
use super::{count, row_stride};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Products that a pair of pixels is made of.
pub const POINTS: usize = 4;
/// Lines of the kernel: frames times rows.
const LINES: usize = 9;
/// Pairs of a task: their sums, and one product's share of the activations, stay in the second cache.
const TASK_ROWS: usize = 192;
/// Bytes of a task's activations that are passed again for every panel.
const NEAR: usize = 640 << 10;

/// The kernel's transformed lines as panels: for each panel, point by point, (lines of the kernel, inputs) one after the other.
pub struct Panels<E> {
    data: Vec<E>,
    outputs: usize,
    inputs: usize,
}

impl<E: Element> Panels<E> {
    /// - `weight`: (outputs, inputs, 3, 3, 3).
    pub fn new<K: Kernel<Elem = E>>(weight: Rows, outputs: usize, inputs: usize) -> Self {
        assert!(weight.count() == outputs * inputs * 3 * LINES, "winograd: no {outputs} x {inputs} kernels");
        let whole = inputs.next_multiple_of(K::STEP);
        let point = LINES * whole * K::NR;
        let write = |data: &mut [MaybeUninit<E>]| {
            data.par_chunks_mut(POINTS * point).enumerate().for_each(|(panel, data)| {
                data.fill(MaybeUninit::new(E::default()));
                let first = panel * K::NR;
                let mut kernel = [0f32; 3 * LINES];
                for c in 0..inputs {
                    for column in 0..K::NR.min(outputs - first) {
                        weight.copy(((first + column) * inputs + c) * kernel.len(), &mut kernel);
                        for (line, g) in kernel.chunks(3).enumerate() {
                            let at = place::<K>(line * whole + c, column);
                            let (sides, middle) = ((g[0] + g[2]) * 0.5, g[1] * 0.5);
                            for (p, g) in [g[0], sides + middle, sides - middle, g[2]].into_iter().enumerate() {
                                data[p * point + at].write(E::from_f32(g));
                            }
                        }
                    }
                }
            })
        };
        // SAFETY: all of it is cleared first.
        let data = unsafe { filled(outputs.div_ceil(K::NR) * POINTS * point, write) };
        Self { data, outputs, inputs }
    }

    /// The kernel as near as it can be told from what is left of it: (outputs, 3, 3, 3, inputs).
    pub fn kernel<K: Kernel<Elem = E>>(&self) -> Vec<f32> {
        let whole = self.inputs.next_multiple_of(K::STEP);
        let point = LINES * whole * K::NR;
        let mut all = vec![0f32; self.outputs * 3 * LINES * self.inputs];
        for (i, to) in all.chunks_mut(3 * self.inputs).enumerate() {
            let (output, line) = (i / LINES, i % LINES);
            for c in 0..self.inputs {
                let at = output / K::NR * POINTS * point + place::<K>(line * whole + c, output % K::NR);
                let g = |p: usize| self.data[at + p * point].to_f32();
                for (tap, g) in [g(0), g(1) - g(2), g(3)].into_iter().enumerate() {
                    to[tap * self.inputs + c] = g;
                }
            }
        }
        all
    }
}

/// Where value `k` of a column lies in its panel.
fn place<K: Kernel>(k: usize, column: usize) -> usize {
    (k / K::STEP * K::NR + column) * K::STEP + k % K::STEP
}

/// How transformed frames lie: (frames, pairs of columns, points, rows between two rows of zeros, channels). So the three rows
/// under a row of the kernel are neighbours, and the pixels of a column are the rows of a product.
#[derive(Clone, Copy)]
struct Layout {
    h: usize,
    w: usize,
    /// Channels, filled up to whole steps.
    whole: usize,
    /// Elements from pixel to pixel.
    row_stride: usize,
}

impl Layout {
    fn new<K: Kernel>(h: usize, w: usize, c: usize) -> Self {
        let whole = c.next_multiple_of(K::STEP);
        Self { h, w, whole, row_stride: row_stride(whole, size_of::<K::Elem>()) }
    }

    fn pairs(&self) -> usize {
        self.w.div_ceil(2)
    }

    /// Elements of one point of a pair of columns, and of a frame.
    fn column(&self) -> usize {
        (self.h + 2) * self.row_stride
    }

    fn frame(&self) -> usize {
        self.pairs() * POINTS * self.column()
    }
}

/// Multiplications of a frame for each channel in and out.
pub fn multiplications(h: u64, w: u64) -> u64 {
    h * w.div_ceil(2) * (POINTS * LINES) as u64
}

/// Bytes of `frames` transformed frames.
pub fn bytes(frames: u64, h: u64, w: u64, c: u64, element: u64) -> u64 {
    let row_stride = row_stride(c as usize, element as usize) as u64;
    frames * w.div_ceil(2) * POINTS as u64 * (h + 2) * row_stride * element
}

/// A convolution over 3 x 3 x 3 pixels, one for each.
/// - `x`: f + 2 frames of (h, w, c). `how`: what happens to a pixel before. `y`: (f, h, w, outputs).
pub fn convolve<'b, K: Kernel>(
    x: &[&[f32]],
    [h, w]: [usize; 2],
    how: &(impl Fn(usize) -> RowNormAct<'b> + Sync),
    weights: &Panels<K::Elem>,
    finish: RowEpilogue,
    y: &mut [MaybeUninit<f32>],
) {
    let layout = Layout::new::<K>(h, w, weights.inputs);
    let frames = x.len();
    let fits = x.iter().all(|frame| frame.len() == h * w * weights.inputs);
    assert!(frames > 2 && fits, "winograd: {frames} frames that are not all of {h} x {w}");
    assert!(y.len() == (frames - 2) * h * w * weights.outputs, "winograd: {} elements for the result", y.len());
    let write = |to: &mut [MaybeUninit<K::Elem>]| transform::<K>(x, weights.inputs, layout, how, to);
    // SAFETY: every pixel of every point is written, and the rows of zeros.
    let transformed = unsafe { filled(frames * layout.frame(), write) };
    products::<K>(&transformed, frames, layout, weights, &finish, Target(y.as_mut_ptr().cast()));
}

/// Pixels -> points, line by line.
fn transform<'b, K: Kernel>(
    x: &[&[f32]],
    c: usize,
    layout: Layout,
    how: &(impl Fn(usize) -> RowNormAct<'b> + Sync),
    to: &mut [MaybeUninit<K::Elem>],
) {
    let Layout { h, w, row_stride, .. } = layout;
    assert_eq!(to.len(), x.len() * layout.frame());
    let to = Target(to.as_mut_ptr().cast::<K::Elem>());
    // the line with a zero to its left, and to its right as many as its pairs need
    let line = || vec![0f32; (2 * layout.pairs() + 2) * c];
    (0..x.len() * h).into_par_iter().with_min_len(4).for_each_init(line, |line, at| {
        let to = { to };
        let (f, i) = (at / h, at % h);
        // SAFETY: K was chosen for this CPU. A line writes its own row of every column, the first and the last the zeros beside
        // theirs; all lie within `to`, whose length is asserted.
        unsafe {
            K::vectorised(
                #[inline(always)]
                || {
                    for j in 0..w {
                        let pixel = &x[f][(i * w + j) * c..][..c];
                        norm_act::<K::V, f32>(&how(at * w + j), pixel, uninit(&mut line[(j + 1) * c..][..c]));
                    }
                    for j in 0..layout.pairs() {
                        let column = to.0.add(f * layout.frame() + j * POINTS * layout.column());
                        let pixels = &line[2 * j * c..][..4 * c];
                        let row: [_; POINTS] =
                            std::array::from_fn(|p| column.add(p * layout.column() + (i + 1) * row_stride));
                        points::<K::V, K::Elem>(pixels, c, row);
                        for (p, row) in row.into_iter().enumerate() {
                            let clear = |row: *mut K::Elem, from: usize| {
                                (from..row_stride).for_each(|at| row.add(at).write(K::Elem::default()))
                            };
                            clear(row, c);
                            if i == 0 {
                                clear(column.add(p * layout.column()), 0);
                            }
                            if i + 1 == h {
                                clear(column.add(p * layout.column() + (h + 1) * row_stride), 0);
                            }
                        }
                    }
                },
            )
        }
    });
}

/// Four pixels of `c` channels -> their four points.
///
/// # Safety
/// The registers' instruction set is there; each of `to` has room for `c`.
#[inline(always)]
unsafe fn points<V: Simd, E: Element>(pixels: &[f32], c: usize, to: [*mut E; POINTS]) {
    assert_eq!(pixels.len(), 4 * c);
    let from = pixels.as_ptr();
    // SAFETY: as promised and asserted.
    unsafe {
        simd::each::<V>(
            c,
            #[inline(always)]
            |i, n| {
                let d: [V; 4] = std::array::from_fn(
                    #[inline(always)]
                    |p| simd::load_n(from.add(p * c + i), n),
                );
                simd::store_n(d[0].sub(d[2]), to[0].add(i), n);
                simd::store_n(d[1].add(d[2]), to[1].add(i), n);
                simd::store_n(d[2].sub(d[1]), to[2].add(i), n);
                simd::store_n(d[1].sub(d[3]), to[3].add(i), n);
            },
        )
    }
}

/// Some pixels of a pair of columns, as many as a tile holds at most.
#[derive(Clone, Copy)]
struct Tile {
    start: usize,
    rows: usize,
    /// The first pixel of the result, on the left.
    out: usize,
    /// Whether there is one on the right.
    pair: bool,
}

fn products<K: Kernel>(
    x: &[K::Elem],
    frames: usize,
    layout: Layout,
    weights: &Panels<K::Elem>,
    finish: &RowEpilogue,
    target: Target<f32>,
) {
    let Layout { h, w, whole, row_stride } = layout;
    let mut tiles = vec![];
    for f in 0..frames - 2 {
        for j in 0..layout.pairs() {
            let parts = h.div_ceil(K::MR).max(1); // evenly, so that none is much smaller than the others
            for part in 0..parts {
                let (i, end) = (h * part / parts, h * (part + 1) / parts);
                let start = f * layout.frame() + j * POINTS * layout.column() + i * row_stride;
                tiles.push(Tile { start, rows: end - i, out: (f * h + i) * w + 2 * j, pair: 2 * j + 1 < w });
            }
        }
    }
    // the rows under one of the kernel are neighbours, unless they are kept apart
    let mut pieces = vec![];
    let runs = if row_stride == whole { 1 } else { 3 };
    for t in 0..3 {
        for r in 0..runs {
            let shift = (t * layout.frame() + r * row_stride) as isize;
            pieces.push(Piece { shift, k0: (3 * t + r) * whole, k: 3 * whole / runs, row: 0 });
        }
    }
    let pieces = fitting::<K>(&pieces);
    // the last pixel of the last column reads to the end of the last frame, and no further
    let reach = |tile: &Tile| tile.start + 2 * layout.frame() + 3 * layout.column() + (tile.rows + 2) * row_stride;
    assert!(tiles.iter().all(|tile| reach(tile) <= x.len()), "winograd: rows beyond their data");
    let n = weights.outputs;
    count((frames - 2) * multiplications(h as u64, w as u64) as usize * weights.inputs * n);
    in_tasks(&tiles, TASK_ROWS / K::MR, n, K::NR, |tiles, columns| {
        run::<K>(x, layout, &pieces, tiles, weights, columns, finish, target)
    });
}

fn run<K: Kernel>(
    x: &[K::Elem],
    layout: Layout,
    pieces: &[Piece],
    tiles: &[Tile],
    weights: &Panels<K::Elem>,
    columns: std::ops::Range<usize>,
    finish: &RowEpilogue,
    target: Target<f32>,
) {
    SUMS.with_borrow_mut(|sums| {
        let size = K::MR * K::NR;
        let set = tiles.len() * size; // sums of one point of one panel
        let panels = columns.len().div_ceil(K::NR);
        let rows: usize = tiles.iter().map(|tile| tile.rows).sum();
        // activations that stay near may be passed again for every panel, whose sums then stay nearer
        let near = rows * POINTS * 3 * layout.row_stride * size_of::<K::Elem>() <= NEAR;
        sums.resize(if near { 1 } else { panels } * POINTS * set, 0.0);
        let blocks = POINTS * pieces.len();
        // the panel, the point, the piece, and where the block of weights begins
        let block = |i: usize| {
            let (panel, i) = if near { (i / blocks, i % blocks) } else { (i % panels, i / panels) };
            let (p, piece) = (i / pieces.len(), &pieces[i % pieces.len()]);
            let column = (columns.start / K::NR + panel) * POINTS + p;
            (panel, p, piece, (column * LINES * layout.whole + piece.k0) * K::NR)
        };
        let last = panels * blocks - 1;
        for i in 0..=last {
            let (panel, p, piece, at) = block(i);
            let lines = &weights.data[at..][..piece.k * K::NR];
            // the next block of weights comes nearer while this one is at work, some of it with each tile
            let (_, _, next, after) = block((i + 1).min(last));
            let share = next.k * K::NR * size_of::<K::Elem>() / tiles.len();
            let pace = share / (piece.k / K::STEP * K::AHEAD).max(1);
            let after = weights.data[after..].as_ptr().cast::<u8>();
            let place = if near { 0 } else { panel } * POINTS;
            let of_point = &mut sums[(place + p) * set..][..set];
            for (t, (tile, sums)) in tiles.iter().zip(of_point.chunks_mut(size)).enumerate() {
                let from = tile.start + p * layout.column() + piece.shift as usize;
                let ahead = (after.wrapping_add(t * share), pace);
                let (rows, add) = (x[from..].as_ptr(), piece.k0 > 0);
                // SAFETY: the rows were checked in `products`; block and sums have their sizes; K was chosen for this CPU.
                unsafe {
                    let (lines, sums) = (lines.as_ptr(), sums.as_mut_ptr());
                    K::micro(tile.rows, rows, layout.row_stride, lines, piece.k, sums, K::NR, ahead, add)
                }
            }
            let done = if near { (i + 1) % blocks == 0 } else { i + panels > last };
            if done {
                let first = columns.start + panel * K::NR;
                let columns = first..(first + K::NR).min(columns.end);
                write::<K>(
                    tiles,
                    &sums[place * set..][..POINTS * set],
                    layout.w,
                    weights.outputs,
                    columns,
                    finish,
                    target,
                );
            }
        }
    });
}

/// Sums of all points of a panel -> the result.
fn write<K: Kernel>(
    tiles: &[Tile],
    sums: &[f32],
    w: usize,
    n: usize,
    columns: std::ops::Range<usize>,
    finish: &RowEpilogue,
    target: Target<f32>,
) {
    let target = { target };
    let (size, set) = (K::MR * K::NR, sums.len() / POINTS);
    let (first, width) = (columns.start, columns.len());
    let mut both = vec![0f32; 2 * K::NR];
    for (i, tile) in tiles.iter().enumerate() {
        for r in 0..tile.rows {
            let at = i * size + r * K::NR;
            let m: [&[f32]; POINTS] = std::array::from_fn(|p| &sums[p * set + at..][..K::NR]);
            let row = tile.out + r * w;
            // SAFETY: K was chosen for this CPU. Rows and columns are this task's own, within the target by `convolve`'s check.
            unsafe {
                K::vectorised(
                    #[inline(always)]
                    || {
                        let (left, right) = both.split_at_mut(K::NR);
                        simd::each::<K::V>(
                            K::NR,
                            #[inline(always)]
                            |i, lanes| {
                                let m: [K::V; POINTS] = std::array::from_fn(
                                    #[inline(always)]
                                    |p| simd::load_n(m[p][i..].as_ptr(), lanes),
                                );
                                simd::store_n(m[0].add(m[1]).add(m[2]), left[i..].as_mut_ptr(), lanes);
                                simd::store_n(m[1].sub(m[2]).sub(m[3]), right[i..].as_mut_ptr(), lanes);
                            },
                        );
                        for (side, sums) in [left, right].into_iter().take(1 + tile.pair as usize).enumerate() {
                            let to = target.0.add((row + side) * n + first);
                            finish_row::<K::V, f32>(finish, &sums[..width], row + side, first, n, to);
                        }
                    },
                )
            }
        }
    }
}
