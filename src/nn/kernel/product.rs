//! y = a wᵀ, block by block: the one driver behind dense layers and convolutions.
//!
//! A task is some rows times some columns of the result. Over pieces of k it brings one block of one panel of weights into
//! the nearest cache and runs all its rows past it; partial sums stay in a scratch of the task until all of k has been seen,
//! then bias, activation, gate and residual are applied and the result is written once. How wide tasks are depends on the number
//! of threads; pieces of k do not, nor the order in which they are added up, and so the bytes of the result are the same for any.

use super::micro::{Element, Micro};
use super::pack::Weights;
use super::simd::{self, Simd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of a task: its share of the activations, for one piece of k, stays in the second cache.
const TASK_ROWS: usize = 384;
/// Columns of a task at most.
const TASK_COLUMNS: usize = 256;
/// Tasks of its width that a strip of columns leaves at least for each thread, itself among them, where it can be narrower.
const LEFT: usize = 4;
/// Bytes of a piece of k of one panel: about the first cache, which it passes through once a tile.
const BLOCK_BYTES: usize = 32 << 10;

/// Activations as the kernels read them: every row contiguous in k, piece by piece.
pub struct Operand<'a, E> {
    pub data: &'a [E],
    /// Elements from row to row within a tile.
    pub stride: usize,
    /// Runs of rows at that stride, one after the other in the result.
    pub lines: Vec<Line>,
    /// What the sum over k is made of.
    pub pieces: Vec<Piece>,
    /// Pieces count for lines with `0 <= line.row + piece.row < height`, and are zeros for others.
    pub height: isize,
}

/// Rows that lie `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Where the first row begins.
    pub start: usize,
    pub count: usize,
    pub row: isize,
}

/// A run of k that is contiguous in every row.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where it lies, from a row's start.
    pub shift: isize,
    /// Where it lies in the weights' rows.
    pub k0: usize,
    pub k: usize,
    pub row: isize,
}

impl<'a, E> Operand<'a, E> {
    /// A plain matrix (m, k) whose rows lie `stride` apart.
    pub fn matrix(data: &'a [E], m: usize, k: usize, stride: usize) -> Self {
        assert!(m == 0 || data.len() >= (m - 1) * stride + k);
        Self {
            data,
            stride,
            lines: vec![Line { start: 0, count: m, row: 0 }],
            pieces: vec![Piece { shift: 0, k0: 0, k, row: 0 }],
            height: 1,
        }
    }
}

/// What happens to a sum before it is written, in this order.
#[derive(Clone, Copy, Default)]
pub struct RowEpilogue<'a> {
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// Added, element by element, before the activation; as wide as the result.
    pub added: Option<&'a [f32]>,
    pub gelu: bool,
    /// Multiplied: one row for all, or the row that `index` names for each row of the result.
    pub gate: Option<Gate<'a>>,
    /// Added, element by element; as wide as the result.
    pub residual: Option<&'a [f32]>,
    /// Multiplied, element by element, after the activation; as wide as the result.
    pub factor: Option<&'a [f32]>,
}

#[derive(Clone, Copy)]
pub struct Gate<'a> {
    /// (rows, n), `stride` apart.
    pub rows: &'a [f32],
    pub stride: usize,
    pub index: Option<&'a [u32]>,
}

/// Where results go; tasks write rows and columns of their own.
#[derive(Clone, Copy)]
pub(super) struct Target<T>(pub(super) *mut T);
// SAFETY: tasks write disjoint parts of what it points to.
unsafe impl<T> Sync for Target<T> {}
unsafe impl<T> Send for Target<T> {}

/// Some rows of a line, as many as a tile holds at most.
#[derive(Clone, Copy)]
struct Tile {
    start: usize,
    rows: usize,
    row: isize,
    out: usize,
}

/// y = finish(a wᵀ).
/// - `weights`: (n, k) row-major. `y`: (rows of a, n), `row_stride` from row to row; what lies between the rows is set to zero.
pub fn product<K: Micro, T: Element>(
    a: &Operand<K::Elem>,
    weights: impl Weights<K>,
    n: usize,
    finish: RowEpilogue,
    y: &mut [MaybeUninit<T>],
    row_stride: usize,
) {
    let mut tiles = vec![];
    let mut out = 0;
    for line in &a.lines {
        // no tile much smaller than the others: a line is cut evenly
        let parts = line.count.div_ceil(K::MR).max(1);
        let mut first = 0;
        for part in 0..parts {
            let rows = line.count * (part + 1) / parts - first;
            if rows > 0 {
                tiles.push(Tile { start: line.start + first * a.stride, rows, row: line.row, out: out + first });
            }
            first += rows;
        }
        out += line.count;
    }
    let weights_k = a.pieces.iter().map(|p| p.k0 + p.k).max().unwrap_or(0);
    assert!(weights.hold(n, weights_k), "product: no {n} x {weights_k} weights");
    check(a, &tiles);
    super::count(out * n * a.pieces.iter().map(|p| p.k).sum::<usize>() * K::VALUES);
    assert!(y.len() == out * row_stride && row_stride >= n, "product: {} elements for {out} rows of {n}", y.len());
    let target = Target(y.as_mut_ptr().cast::<T>());
    let pieces = fitting::<K>(&a.pieces);
    if row_stride > n {
        y.chunks_mut(row_stride).for_each(|row| row[n..].fill(MaybeUninit::new(T::default())));
    }
    in_tasks(&tiles, TASK_ROWS / K::MR, n, K::NR, |tiles, columns| {
        run::<K, T>(a, &pieces, tiles, weights, weights_k, n, columns, &finish, target, row_stride)
    });
}

/// Runs `task` over all tiles and columns, some of each at a time, on all threads: each takes the next task that none has begun.
/// - `most`: tiles of a task. `nr`: columns of a panel, which no task divides.
pub(super) fn in_tasks<T: Sync>(
    tiles: &[T],
    most: usize,
    n: usize,
    nr: usize,
    task: impl Fn(&[T], Range<usize>) + Sync,
) {
    let parts = tiles.len().div_ceil(most.max(1)).max(1); // evenly
    let part = |i: usize| &tiles[tiles.len() * i / parts..tiles.len() * (i + 1) / parts];
    let threads = rayon::current_num_threads();
    let strips = strips(n.div_ceil(nr), TASK_COLUMNS / nr, parts, threads);
    let next = AtomicUsize::new(0);
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            // neighbouring tasks share columns: their weights are still near
            let Some(strip) = strips.get(i / parts) else { break };
            task(part(i % parts), strip.start * nr..(strip.end * nr).min(n))
        }
    });
}

/// Cuts panels into strips, each worked on in `parts` tasks: ever narrower ones towards the end, so that no thread waits long for
/// another.
fn strips(panels: usize, widest: usize, parts: usize, threads: usize) -> Vec<Range<usize>> {
    let mut strips = vec![];
    let mut first = 0;
    while first < panels {
        let left = panels - first;
        let fair = if threads > 1 { left * parts / (LEFT * threads) } else { left };
        let width = fair.clamp(1, widest).min(left);
        strips.push(first..first + width);
        first += width;
    }
    strips
}

/// Pieces of k whose share of a panel fits the nearest cache.
pub(super) fn fitting<K: Micro>(pieces: &[Piece]) -> Vec<Piece> {
    let most = (BLOCK_BYTES / (K::NR * size_of::<K::Elem>())).next_multiple_of(K::STEP);
    let mut all = vec![];
    for piece in pieces {
        let parts = piece.k.div_ceil(most).max(1);
        let each = piece.k.div_ceil(parts).next_multiple_of(K::GRAIN).min(piece.k);
        let mut at = 0;
        while at < piece.k {
            let k = each.min(piece.k - at);
            all.push(Piece { shift: piece.shift + at as isize, k0: piece.k0 + at, k, row: piece.row });
            at += k;
        }
    }
    all
}

/// That no tile reads beyond the data, and that each reads something.
fn check<E>(a: &Operand<E>, tiles: &[Tile]) {
    assert!(tiles.iter().all(|tile| a.pieces.iter().any(|p| counts(tile, p, a.height))), "product: rows of nothing");
    for piece in &a.pieces {
        assert!(piece.k > 0, "product: a piece of nothing");
        for tile in tiles.iter().filter(|t| counts(t, piece, a.height)) {
            let first = tile.start as isize + piece.shift;
            let end = first + ((tile.rows - 1) * a.stride + piece.k) as isize;
            assert!(first >= 0 && end as usize <= a.data.len(), "product: rows beyond their data");
        }
    }
}

fn counts(tile: &Tile, piece: &Piece, height: isize) -> bool {
    (0..height).contains(&(tile.row + piece.row))
}

thread_local! {
    /// Partial sums of the task at work, kept for the next one: fresh memory would have to be cleared page by page.
    pub(super) static SUMS: RefCell<Vec<f32>> = const { RefCell::new(vec![]) };
}

/// Bytes that memory comes in.
const LINE: usize = 64;

/// Bytes of activations that stay in the second cache beside everything else.
const NEAR: usize = 512 << 10;

/// `count` elements that begin where a line of memory does, so that no register's worth lies in two; what they are is left over.
fn in_lines<E: Copy + Default>(room: &mut Vec<E>, count: usize) -> &mut [E] {
    room.resize(count + LINE, E::default());
    let first = room.as_ptr().align_offset(LINE).min(LINE);
    &mut room[first..first + count]
}

fn run<K: Micro, T: Element>(
    a: &Operand<K::Elem>,
    pieces: &[Piece],
    tiles: &[Tile],
    weights: impl Weights<K>,
    weights_k: usize,
    n: usize,
    columns: std::ops::Range<usize>,
    finish: &RowEpilogue,
    target: Target<T>,
    row_stride: usize,
) {
    SUMS.with_borrow_mut(|sums| {
        let size = K::MR * K::NR;
        let panels = columns.len().div_ceil(K::NR);
        sums.resize(panels * tiles.len() * size, 0.0);
        // the first piece that counts for a tile writes its sums, later ones add to them
        let begins: Vec<usize> =
            tiles.iter().map(|tile| pieces.iter().position(|p| counts(tile, p, a.height)).unwrap_or(0)).collect();
        // activations that stay near may be passed again for every panel, which reads the weights in the order they lie
        let rows: usize = tiles.iter().map(|tile| tile.rows).sum();
        let near = rows * weights_k * size_of::<K::Elem>() <= NEAR;
        let block = |i: usize| match near {
            true => (i % pieces.len(), i / pieces.len()),
            false => (i / panels, i % panels),
        };
        let (mut packed, mut line, mut odd) = (vec![], vec![], vec![]);
        for i in 0..panels * pieces.len() {
            let (p, panel) = block(i);
            let piece = &pieces[p];
            let k = piece.k.next_multiple_of(K::STEP);
            let first = columns.start + panel * K::NR;
            let packed = weights.lies(weights_k, first, piece.k0).unwrap_or_else(|| {
                let packed = in_lines(&mut packed, k * K::NR);
                weights.panel(weights_k, first, n, piece.k0, piece.k, &mut line, packed);
                packed.as_ptr()
            });
            // what comes next; after the last block, the next strip's first
            let (next, panel_then) = if i + 1 < panels * pieces.len() { block(i + 1) } else { (0, panels) };
            let (next, row_then) = (&pieces[next], columns.start + panel_then * K::NR);
            let bytes = weights.bytes(next.k);
            let sums = &mut sums[panel * tiles.len() * size..][..tiles.len() * size];
            for (t, (tile, sums)) in tiles.iter().zip(sums.chunks_mut(size)).enumerate() {
                if !counts(tile, piece, a.height) {
                    continue;
                }
                let from = (tile.start as isize + piece.shift) as usize;
                let (rows, stride) = if k == piece.k {
                    (a.data[from..].as_ptr(), a.stride)
                } else {
                    // an odd number of values: the last step is filled up with zeros
                    odd.clear();
                    odd.resize(tile.rows * k, K::Elem::default());
                    for (i, odd) in odd.chunks_mut(k).enumerate() {
                        odd[..piece.k].copy_from_slice(&a.data[from + i * a.stride..][..piece.k]);
                    }
                    (odd.as_ptr(), k)
                };
                // the next weights come nearer while these are at work
                let steps = k / K::STEP * K::AHEAD;
                let ahead = match weights.lies(weights_k, row_then, next.k0) {
                    // a share of the next block for each tile
                    Some(next) => {
                        let share = bytes * K::NR / tiles.len();
                        (next.cast::<u8>().wrapping_add(t * share), share / steps)
                    }
                    None if near => {
                        let line = (p * tiles.len() + t) * steps;
                        (weights.address(first + K::NR, weights_k, 0).wrapping_add(line * LINE), LINE)
                    }
                    // a row of it
                    None => (weights.address(row_then + t % K::NR, weights_k, next.k0), bytes / steps),
                };
                let add = p != begins[t];
                // SAFETY: the rows were checked by `check`; block and sums have their sizes; K was chosen for this CPU.
                unsafe { K::micro(tile.rows, rows, stride, packed, k, sums.as_mut_ptr(), K::NR, ahead, add) }
            }
        }
        write::<K, T>(tiles, sums, n, columns, finish, target, row_stride);
    });
}

/// Rows that are brought nearer before they are written to.
const LATER: usize = 4;

/// Brings `count` values nearer, wherever they are.
#[inline(always)]
fn fetch<T>(at: *const T, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in (0..count * size_of::<T>()).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, and any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(i)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, count);
}

/// Sums -> the result.
fn write<K: Micro, T: Element>(
    tiles: &[Tile],
    sums: &[f32],
    n: usize,
    columns: std::ops::Range<usize>,
    finish: &RowEpilogue,
    target: Target<T>,
    row_stride: usize,
) {
    let target = { target };
    let size = K::MR * K::NR;
    for (i, tile) in tiles.iter().enumerate() {
        // SAFETY: K was chosen for this CPU, and bf16 only where it rounds to it. Rows and columns are this task's own, within
        // the target by `product`'s check.
        unsafe {
            K::vectorised_to::<T, _>(
                #[inline(always)]
                || {
                    // a row's panels one after the other: memory is met in the order that it lies in
                    for r in 0..tile.rows {
                        let later = tile.out + r + LATER;
                        fetch(target.0.wrapping_add(later * row_stride + columns.start), columns.len());
                        if let Some(residual) = finish.residual {
                            fetch(residual.as_ptr().wrapping_add(later * n + columns.start), columns.len());
                        }
                        for panel in 0..columns.len().div_ceil(K::NR) {
                            let first = columns.start + panel * K::NR;
                            let width = K::NR.min(columns.end - first);
                            let sums = &sums[(panel * tiles.len() + i) * size + r * K::NR..][..width];
                            let row = tile.out + r;
                            finish_row::<K::V, T>(finish, sums, row, first, n, target.0.add(row * row_stride + first));
                        }
                    }
                },
            )
        }
    }
}

/// One row of a panel, from sums to what is written.
///
/// # Safety
/// The registers' instruction set is there; `y` has room for the sums.
#[inline(always)]
pub(super) unsafe fn finish_row<V: Simd, T: Element>(
    finish: &RowEpilogue,
    sums: &[f32],
    row: usize,
    first: usize,
    n: usize,
    y: *mut T,
) {
    let width = sums.len();
    let bias = finish.bias.map(|x| x[first..first + width].as_ptr());
    let gate = finish.gate.map(|gate| {
        let line = gate.index.map_or(0, |index| index[row] as usize) * gate.stride;
        gate.rows[line + first..][..width].as_ptr()
    });
    let whole = |x: &[f32]| x[row * n + first..][..width].as_ptr();
    let (added, factor, residual) = (finish.added.map(whole), finish.factor.map(whole), finish.residual.map(whole));
    // SAFETY: all slices have `width` values from their pointer on.
    unsafe {
        simd::each::<V>(
            width,
            #[inline(always)]
            |i, count| {
                let mut x: V = simd::load_n(sums.as_ptr().add(i), count);
                if let Some(bias) = bias {
                    x = x.add(simd::load_n(bias.add(i), count));
                }
                if let Some(added) = added {
                    x = x.add(simd::load_n(added.add(i), count));
                }
                if finish.gelu {
                    x = simd::gelu_for::<V, T>(x);
                }
                if let Some(gate) = gate {
                    x = x.mul(simd::load_n(gate.add(i), count));
                }
                if let Some(factor) = factor {
                    x = x.mul(simd::load_n(factor.add(i), count));
                }
                if let Some(residual) = residual {
                    x = x.add(simd::load_n(residual.add(i), count));
                }
                simd::store_n(x, y.add(i), count);
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every panel once, none wider than allowed, and at the end strips that many threads share out between them.
    #[test]
    fn strips_are_all_panels_and_narrow_at_the_end() {
        for panels in 1..70 {
            for parts in 1..4 {
                for threads in 1..20 {
                    let strips = strips(panels, 8, parts, threads);
                    let each: Vec<usize> = strips.iter().cloned().flatten().collect();
                    assert_eq!(each, (0..panels).collect::<Vec<_>>());
                    assert!(strips.iter().all(|strip| (1..=8).contains(&strip.len())));
                    assert!(strips.windows(2).all(|two| two[0].len() >= two[1].len()));
                    assert!(threads == 1 || strips[strips.len() - 1].len() <= panels.div_ceil(LEFT).max(1));
                }
            }
        }
        assert_eq!(strips(64, 8, 2, 1).len(), 8); // alone there is nobody to wait for
    }
}
