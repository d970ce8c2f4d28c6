//! How fast this CPU multiplies when nothing stands in its way: products in registers, without loads or stores.

use super::int8::Dot;
use super::{Isa, MatmulType};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Multiplications and additions a second, over `threads` threads of the current pool.
pub fn measure(math: MatmulType, threads: usize) -> f64 {
    fastest(threads, || spin(math, ROUNDS))
}

const ROUNDS: usize = 1 << 21;

/// Operations a second at the best of some tries.
fn fastest(threads: usize, spin: impl Fn() -> usize + Sync) -> f64 {
    const REPEATS: usize = 7;
    let once = || {
        let start = Instant::now();
        let done: usize = (0..threads).into_par_iter().with_max_len(1).map(|_| spin()).sum();
        done as f64 / start.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(|_| once()).fold(0.0, f64::max)
}

/// As [`measure`], of bytes multiplied into whole numbers, where this CPU does that.
pub fn measure_int8(threads: usize) -> Option<f64> {
    match Dot::best()? {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this CPU has the instructions.
        Dot::Avx512 | Dot::Avx512Half => Some(fastest(threads, || unsafe { x86::bytes(ROUNDS) })),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Dot::AvxVnni => Some(fastest(threads, || unsafe { x86::bytes_of_avx(ROUNDS) })),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Dot::Avx2 => Some(fastest(threads, || unsafe { x86::bytes_in_steps(ROUNDS) })),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Dot::NeonMatrix => Some(fastest(threads, || unsafe { neon::byte_matrices(ROUNDS) })),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Dot::NeonDot => Some(fastest(threads, || unsafe { neon::bytes(ROUNDS) })),
        _ => None,
    }
}

/// Multiplies `rounds` times in every register and says how many operations that were.
fn spin(math: MatmulType, rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the instruction sets were found on this CPU.
        unsafe {
            match (Isa::best(), math) {
                (Isa::Avx512Bf16, MatmulType::Bf16) => return x86::pairs(rounds),
                (Isa::Avx512Bf16 | Isa::Avx512, _) => return x86::sixteen(rounds),
                (Isa::Avx2, _) => return x86::eight(rounds),
                _ => {}
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        match (Isa::best(), math) {
            (Isa::NeonBf16, MatmulType::Bf16) => return neon::matrices(rounds),
            (Isa::NeonBf16 | Isa::Neon, _) => return neon::four(rounds),
            _ => {}
        }
    }
    let _ = math;
    const SUMS: usize = 8;
    let (a, b) = (black_box([0.5f32; 4]), black_box([0.5f32; 4]));
    let mut sums = [[0f32; 4]; SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            for i in 0..4 {
                sum[i] += a[i] * b[i];
            }
        }
        black_box(&mut sums);
    }
    black_box(sums);
    rounds * SUMS * 4 * 2
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;
    use std::arch::asm;
    use std::hint::black_box;

    const SUMS: usize = 24;

    /// Applies `$op` to every sum and a factor, `$features` allowed. In assembly, because Rust 1.89 has no names for most of
    /// these.
    macro_rules! spin {
        ($(#[$doc:meta])* $name:ident, $features:literal, $op:literal, $factor:expr, $operations:literal) => {
            $(#[$doc])*
            #[target_feature(enable = $features)]
            pub unsafe fn $name(rounds: usize) -> usize {
                let factor = black_box(vdupq_n_u32($factor));
                let mut sums = [vdupq_n_f32(0.0); SUMS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        // SAFETY: registers alone, by an instruction that this function asks for.
                        unsafe {
                            asm!($op, s = inout(vreg) *sum, x = in(vreg) factor,
                                options(pure, nomem, nostack, preserves_flags))
                        };
                    }
                }
                black_box(sums);
                rounds * SUMS * $operations
            }
        };
    }

    spin!(
        /// # Safety
        /// NEON is there.
        four, "neon", "fmla {s:v}.4s, {x:v}.4s, {x:v}.4s", 0x3f00_0000, 8
    );
    spin!(
        /// # Safety
        /// FEAT_BF16 is there.
        matrices, "neon,bf16", "bfmmla {s:v}.4s, {x:v}.8h, {x:v}.8h", 0x3f00_3f00, 32
    );
    spin!(
        /// # Safety
        /// FEAT_DotProd is there.
        bytes, "neon,dotprod", "sdot {s:v}.4s, {x:v}.16b, {x:v}.16b", 0x0101_0101, 32
    );
    spin!(
        /// # Safety
        /// FEAT_I8MM is there.
        byte_matrices, "neon,i8mm", "smmla {s:v}.4s, {x:v}.16b, {x:v}.16b", 0x0101_0101, 64
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// # Safety
    /// AVX-512 BF16 is there.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn pairs(rounds: usize) -> usize {
        const SUMS: usize = 16;
        // SAFETY: both types are 64 bytes of plain numbers.
        let one: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3f80_3f80))) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, one, one));
        }
        black_box(sums);
        rounds * SUMS * 16 * 2 * 2
    }

    /// # Safety
    /// AVX-512 VNNI is there.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn bytes(rounds: usize) -> usize {
        const SUMS: usize = 16;
        let one = _mm512_set1_epi8(black_box(1));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, one, one));
        }
        black_box(sums);
        rounds * SUMS * 16 * 4 * 2
    }

    /// # Safety
    /// AVX-VNNI is there.
    #[target_feature(enable = "avx2,avxvnni")]
    pub unsafe fn bytes_of_avx(rounds: usize) -> usize {
        const SUMS: usize = 12;
        let one = _mm256_set1_epi8(black_box(1));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm256_dpbusd_avx_epi32(*sum, one, one));
        }
        black_box(sums);
        rounds * SUMS * 8 * 4 * 2
    }

    /// # Safety
    /// AVX2 is there.
    #[target_feature(enable = "avx2")]
    pub unsafe fn bytes_in_steps(rounds: usize) -> usize {
        const SUMS: usize = 12;
        let (one, ones) = (_mm256_set1_epi8(black_box(1)), _mm256_set1_epi16(black_box(1)));
        let mut sums = [one; SUMS];
        for _ in 0..rounds {
            // a factor that changes, or the product would be taken out of the loop
            let step = |sum: &mut _| {
                let fours = _mm256_madd_epi16(_mm256_maddubs_epi16(one, *sum), ones);
                *sum = _mm256_add_epi32(*sum, fours)
            };
            sums.iter_mut().for_each(step);
        }
        black_box(sums);
        rounds * SUMS * 8 * 4 * 2
    }

    /// # Safety
    /// AVX-512 is there.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn sixteen(rounds: usize) -> usize {
        const SUMS: usize = 16;
        let half = _mm512_set1_ps(black_box(0.5));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(half, half, *sum));
        }
        black_box(sums);
        rounds * SUMS * 16 * 2
    }

    /// # Safety
    /// AVX2 and FMA are there.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn eight(rounds: usize) -> usize {
        const SUMS: usize = 12;
        let half = _mm256_set1_ps(black_box(0.5));
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(half, half, *sum));
        }
        black_box(sums);
        rounds * SUMS * 8 * 2
    }
}
