//! The innermost loops of all products: a few rows of activations times one panel of weights, held in registers.
//!
//! A panel is `NR` columns wide and lies as it is read: for each group of `STEP` values of k, the `NR` columns side by side,
//! each with its `STEP` values. Activations are read where they lie, `stride` elements from row to row.

#![allow(unsafe_op_in_unsafe_fn)] // every line of these bodies is a load, a store or an intrinsic

pub use super::element::Element;
use super::simd::{self, Quad, Simd};

/// One instruction set's innermost loop over one kind of numbers.
pub trait Micro: 'static {
    /// What activations and panels are made of.
    type Elem: Copy + Default + Send + Sync + 'static;
    /// A register of f32.
    type V: Simd;
    /// Rows and columns of a tile.
    const MR: usize;
    const NR: usize;
    /// Neighbouring values of k that one instruction multiplies and adds up.
    const STEP: usize;
    /// What k is best cut into multiples of.
    const GRAIN: usize;
    /// Numbers of an element.
    const VALUES: usize;
    /// Addresses of memory that is wanted soon which a step of k takes.
    const AHEAD: usize;

    /// Runs `f`, compiled for this instruction set: what is inlined into it is vectorised at its width.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R;

    /// As `vectorised`, for results of this type.
    ///
    /// # Safety
    /// The instruction set is there, and if results are bf16, that of [`Isa::Avx512Bf16`](super::Isa) where it is this CPU's.
    #[inline(always)]
    unsafe fn vectorised_to<T: Element, R>(f: impl FnOnce() -> R) -> R {
        Self::vectorised(f)
    }

    /// tile = a b, or tile += a b where `add` says so.
    ///
    /// # Safety
    /// - The instruction set is there. `rows` is in 1..=MR and `k` a multiple of STEP.
    /// - `a` has `rows` rows of `k` elements, `stride` apart; `panel` has `k * NR` elements; `tile` has `rows` rows of
    ///   NR, `row_stride` from each other.
    /// - `ahead`: memory that is wanted soon, moved on by so many bytes each time; any address will do.
    unsafe fn micro(
        rows: usize,
        a: *const Self::Elem,
        stride: usize,
        panel: *const Self::Elem,
        k: usize,
        tile: *mut f32,
        row_stride: usize,
        ahead: (*const u8, usize),
        add: bool,
    );
}

/// Values of the largest tile.
const TILE: usize = 12 * 32;

/// A loop over numbers that stand for themselves.
pub trait Kernel: Micro<Elem: Element> {
    /// How it makes scores of attention by int8 dot products: itself, where it cannot.
    type Int8Scores: Scores<Kernel = Self>;

    /// weights = 2^(start + a b), rounded to elements, and what they come to before that is added to `sums`.
    /// - `start`: `rows` rows of NR, side by side. `weights`: `rows` rows of NR, `share` apart. `sums`: a register a row.
    ///
    /// # Safety
    /// As for `micro`, and of `start`, `weights` and `sums` all that is said above is there.
    unsafe fn weigh(
        rows: usize,
        a: *const Self::Elem,
        stride: usize,
        panel: *const Self::Elem,
        k: usize,
        start: *const f32,
        weights: *mut Self::Elem,
        share: usize,
        sums: *mut f32,
    ) {
        let mut tile = [0f32; TILE];
        std::ptr::copy_nonoverlapping(start, tile.as_mut_ptr(), rows * Self::NR);
        let here = (tile.as_ptr().cast(), 0); // a panel of keys is in the cache
        Self::micro(rows, a, stride, panel, k, tile.as_mut_ptr(), Self::NR, here, true);
        Self::vectorised(
            #[inline(always)]
            || {
                for r in 0..rows {
                    let sum = sums.add(r * Self::V::LANES);
                    let mut total = Self::V::load(sum);
                    for i in (0..Self::NR).step_by(Self::V::LANES) {
                        let x =
                            simd::exp2_for::<Self::V, Self::Elem>(Self::V::load(tile.as_ptr().add(r * Self::NR + i)));
                        total = total.add(x);
                        simd::store(x, weights.add(r * share + i));
                    }
                    total.store(sum);
                }
            },
        )
    }
}

/// How scores are made of queries and keys; values and their weights are the kernel's.
pub trait Scores: 'static {
    type Kernel: Kernel;
    /// What queries and keys are made of.
    type Elem: Copy + Default + Send + Sync + 'static;

    /// Elements from head to head of a row.
    fn head(head_dim: usize) -> usize;

    /// Rows of the kernel's elements as they are read here, and elements from row to row.
    /// - `x`: rows of heads, `head_stride` elements each, rows `stride` apart. `centred`: less their mean, which as keys they
    ///   may be: it changes all scores of a query by as much.
    fn rows(
        x: Vec<<Self::Kernel as Micro>::Elem>,
        heads: usize,
        head_dim: usize,
        stride: usize,
        centred: bool,
    ) -> (Vec<Self::Elem>, usize);

    /// NR keys from `first` on, side by side.
    /// - `k`: `m` rows of `head` elements, `stride` apart. `out`: `head` times NR elements.
    fn panel(
        k: &[Self::Elem],
        stride: usize,
        first: usize,
        m: usize,
        head: usize,
        line: &mut Vec<Self::Elem>,
        out: &mut [Self::Elem],
    );

    /// tile += q kᵀ.
    /// - `tile`: `rows` rows of NR, side by side.
    ///
    /// # Safety
    /// As for `Micro::micro`, of `head` elements.
    unsafe fn scores(
        rows: usize,
        q: *const Self::Elem,
        stride: usize,
        panel: *const Self::Elem,
        head: usize,
        tile: *mut f32,
    );

    /// As `Kernel::weigh`.
    ///
    /// # Safety
    /// As there, of `head` elements.
    unsafe fn weigh(
        rows: usize,
        q: *const Self::Elem,
        stride: usize,
        panel: *const Self::Elem,
        head: usize,
        start: *const f32,
        weights: *mut <Self::Kernel as Micro>::Elem,
        share: usize,
        sums: *mut f32,
    );
}

/// Calls `$f::<ROWS>` for the number of rows at run time.
macro_rules! by_rows {
    ($rows:expr, $f:ident $args:tt, $($n:literal)*) => {
        match $rows {
            $($n => $f::<$n> $args,)*
            _ => unreachable!("no tile has {} rows", $rows),
        }
    };
}

/// Portable code, which the compiler vectorises for what every CPU of the target has.
pub struct Plain;

impl Kernel for Plain {
    type Int8Scores = Self;
}

impl Micro for Plain {
    type Elem = f32;
    type V = Quad;
    const MR: usize = 4;
    const NR: usize = 8;
    const STEP: usize = 1;
    const GRAIN: usize = 32;
    const VALUES: usize = 1;
    const AHEAD: usize = 1;

    unsafe fn vectorised<R>(f: impl FnOnce() -> R) -> R {
        f()
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
        by_rows!(rows, plain(a, stride, panel, k, tile, row_stride, ahead, add), 1 2 3 4)
    }
}

unsafe fn plain<const ROWS: usize>(
    a: *const f32,
    stride: usize,
    panel: *const f32,
    k: usize,
    tile: *mut f32,
    row_stride: usize,
    _: (*const u8, usize),
    add: bool,
) {
    let mut sums = [[0f32; Plain::NR]; ROWS];
    for p in 0..k {
        let b = &*panel.add(p * Plain::NR).cast::<[f32; Plain::NR]>();
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = *a.add(i * stride + p);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b; // fused it would be a call where the CPU cannot
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            let at = tile.add(i * row_stride + j);
            *at = if add { *at + sum } else { *sum };
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(target_arch = "aarch64")]
pub use neon::{Neon, NeonBf16};

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16, weigh_row};

#[cfg(target_arch = "x86_64")]
mod x86;
