//! The CPU's own loops, on plain slices: products, attention and rows, for each instruction set that a CPU may have. What the
//! rest of the program sees of them are the operations in `nn`; the choice is made here, once, when the program runs.

#![allow(clippy::too_many_arguments)] // a loop over slices is told where each begins and how far its rows are apart

pub mod attend;
pub mod blocks;
mod element;
pub mod encode;
pub mod int8;
pub mod memory;
pub mod micro;
pub mod pack;
pub mod peak;
pub mod product;
pub mod rows;
pub mod simd;
pub mod winograd;

use micro::Kernel;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// Multiplications and additions that products and attention have made since the program began.
pub fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Counts `products` multiplications with their additions.
fn count(products: usize) {
    OPERATIONS.fetch_add(2 * products as u64, Ordering::Relaxed);
}

/// In what products are computed; sums are f32 in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulType {
    F32,
    /// Both factors rounded to bf16, where the CPU multiplies that faster; else weights alone are bf16.
    Bf16,
}

/// Instruction sets that there are loops for, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with products of bf16.
    Avx512Bf16,
    Avx512,
    /// With FMA.
    Avx2,
    /// NEON with products of bf16.
    NeonBf16,
    /// What every 64-bit Arm has.
    Neon,
    /// What every CPU of the target has: SSE2, or nothing.
    Plain,
}

impl Isa {
    /// All that this CPU has, the fastest first.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            if avx512 && has!("avx512bf16") {
                all.push(Isa::Avx512Bf16);
            }
            if avx512 {
                all.push(Isa::Avx512);
            }
            if has!("avx2") && has!("fma") {
                all.push(Isa::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if std::arch::is_aarch64_feature_detected!("bf16") {
                all.push(Isa::NeonBf16);
            }
            all.push(Isa::Neon);
        }
        all.push(Isa::Plain);
        all
    }

    /// The fastest that this CPU has.
    pub fn best() -> Isa {
        static BEST: LazyLock<Isa> = LazyLock::new(|| Isa::all()[0]);
        *BEST
    }

    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512Bf16 => "AVX-512 BF16",
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2 + FMA",
            Isa::NeonBf16 => "NEON BF16",
            Isa::Neon => "NEON",
            Isa::Plain if cfg!(target_arch = "x86_64") => "SSE2",
            Isa::Plain => "plain",
        }
    }
}

/// Something to do with one kernel or another.
pub trait Job {
    type Done;
    fn run<K: Kernel>(self) -> Self::Done;
}

/// Whether products in `math` read activations as bf16 on this CPU.
pub fn is_half(math: MatmulType) -> bool {
    matches!(Isa::best(), Isa::Avx512Bf16 | Isa::NeonBf16) && math == MatmulType::Bf16
}

/// Does `job` with the kernel for `math` on this CPU.
pub fn dispatch<J: Job>(math: MatmulType, job: J) -> J::Done {
    dispatch_on(Isa::best(), math, job)
}

/// Does `job` with the kernel for `math` of an instruction set that this CPU has.
pub fn dispatch_on<J: Job>(isa: Isa, math: MatmulType, job: J) -> J::Done {
    match (isa, math) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, MatmulType::Bf16) => job.run::<micro::Avx512Bf16>(),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16 | Isa::Avx512, _) => job.run::<micro::Avx512>(),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => job.run::<micro::Avx2>(),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonBf16, MatmulType::Bf16) => job.run::<micro::NeonBf16>(),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonBf16 | Isa::Neon, _) => job.run::<micro::Neon>(),
        _ => job.run::<micro::Plain>(),
    }
}

/// Elements from row to row that keep the rows of a tile out of each other's cache sets: rows whose distance is a multiple
/// of 2 KiB would all fall into one or two of them.
pub fn row_stride(width: usize, bytes: usize) -> usize {
    if (width * bytes).is_multiple_of(2048) { width + 64 / bytes } else { width }
}

/// The widest vector instructions of this CPU that the matrix products use.
pub fn cpu_path() -> &'static str {
    Isa::best().name()
}

#[cfg(test)]
mod tests;
