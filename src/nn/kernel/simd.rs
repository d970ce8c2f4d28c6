//! A register of f32, as wide as the instruction set has them. Loops over rows are written once, over any width, and compiled
//! for each instruction set by being inlined into `Kernel::vectorised`.

#![allow(unsafe_op_in_unsafe_fn)] // every line of these bodies is a load, a store or an intrinsic
#![allow(clippy::missing_safety_doc)] // said once, at `Simd`

use super::element::Element;
use half::bf16;

/// # Safety
/// Every function needs the register's instruction set; loads and stores need `LANES` (or `n`) values behind the pointer.
pub trait Simd: Copy {
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn load_bf16(p: *const bf16) -> Self;
    unsafe fn store_bf16(self, p: *mut bf16);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// self b + c
    unsafe fn madd(self, b: Self, c: Self) -> Self;
    /// c - self b
    unsafe fn nmadd(self, b: Self, c: Self) -> Self;
    unsafe fn max(self, b: Self) -> Self;
    unsafe fn min(self, b: Self) -> Self;
    /// self times 2^n, where n is an integer in -126..=127 and `shifted` = n + [`ROUND`].
    unsafe fn times_power(self, shifted: Self) -> Self;
    /// 2^x within 1e-4; below 2^-126 at most that, above 2^127 at least that.
    #[inline(always)]
    unsafe fn exp2_coarse(self) -> Self {
        let x = self.max(Self::splat(-126.0)).min(Self::splat(127.0));
        let shifted = x.add(Self::splat(ROUND));
        let r = x.sub(shifted.sub(Self::splat(ROUND)));
        let p = Self::splat(5.517_167e-2);
        let p = p.madd(r, Self::splat(2.426_111_5e-1));
        let p = p.madd(r, Self::splat(6.932_61e-1));
        let p = p.madd(r, Self::splat(9.999_281e-1));
        p.times_power(shifted)
    }
    /// Neighbours swapped: 1, 0, 3, 2, ...
    unsafe fn swapped(self) -> Self;
    /// The first half of the lanes, each twice: 0, 0, 1, 1, ...
    unsafe fn doubled(p: *const f32) -> Self;
    /// Even lanes negated.
    unsafe fn even_negated(self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn top(self) -> f32;
}

/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
pub const ROUND: f32 = 12_582_912.0;

/// Loads or stores in the element type, widening and rounding.
#[inline(always)]
pub unsafe fn load<V: Simd, E: Element>(p: *const E) -> V {
    if E::HALF { V::load_bf16(p.cast()) } else { V::load(p.cast()) }
}

#[inline(always)]
pub unsafe fn store<V: Simd, E: Element>(x: V, p: *mut E) {
    if E::HALF { x.store_bf16(p.cast()) } else { x.store(p.cast()) }
}

/// Calls `f` for each register's worth of `n` values, the last ones in a register that is filled up with zeros: `f` gets the
/// position and the number of values.
#[inline(always)]
pub unsafe fn each<V: Simd>(n: usize, mut f: impl FnMut(usize, usize)) {
    let mut i = 0;
    while i + V::LANES <= n {
        f(i, V::LANES);
        i += V::LANES;
    }
    if i < n {
        f(i, n - i);
    }
}

/// The most lanes of any instruction set.
const WIDEST: usize = 16;

/// The first `n` lanes from memory, zeros in the others.
#[inline(always)]
pub unsafe fn load_n<V: Simd, E: Element>(p: *const E, n: usize) -> V {
    if n == V::LANES {
        return load(p);
    }
    let mut part = [E::default(); WIDEST];
    std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
    load(part.as_ptr())
}

/// The first `n` lanes to memory.
#[inline(always)]
pub unsafe fn store_n<V: Simd, E: Element>(x: V, p: *mut E, n: usize) {
    if n == V::LANES {
        return store(x, p);
    }
    let mut part = [E::default(); WIDEST];
    store(x, part.as_mut_ptr());
    std::ptr::copy_nonoverlapping(part.as_ptr(), p, n);
}

/// 2^x for x in [-126, 127], within 3 ulp; below, 2^-126.
#[inline(always)]
pub unsafe fn exp2<V: Simd>(x: V) -> V {
    let x = x.max(V::splat(-126.0)).min(V::splat(127.0));
    let shifted = x.add(V::splat(ROUND));
    let r = x.sub(shifted.sub(V::splat(ROUND))); // in [-0.5, 0.5]
    // a minimax polynomial for 2^r
    let p = V::splat(1.540_353_4e-4);
    let p = p.madd(r, V::splat(1.333_355_8e-3));
    let p = p.madd(r, V::splat(9.618_129e-3));
    let p = p.madd(r, V::splat(5.550_411e-2));
    let p = p.madd(r, V::splat(2.402_265e-1));
    let p = p.madd(r, V::splat(std::f32::consts::LN_2));
    let p = p.madd(r, V::splat(1.0));
    p.times_power(shifted)
}

/// 2^x as [`exp2`], as exactly as elements of this type can tell: within 1e-4 for bf16.
#[inline(always)]
pub unsafe fn exp2_for<V: Simd, E: Element>(x: V) -> V {
    if E::HALF { x.exp2_coarse() } else { exp2(x) }
}

/// e^x within 3 ulp, for x in [-87, 88]; beyond, the value at the bound.
/// - Source: the Cephes library, `expf`.
#[inline(always)]
pub unsafe fn exp<V: Simd>(x: V) -> V {
    let x = x.max(V::splat(-87.0)).min(V::splat(88.0));
    let shifted = x.madd(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let n = shifted.sub(V::splat(ROUND));
    let r = n.nmadd(V::splat(0.693_359_4), x);
    let r = n.nmadd(V::splat(-2.121_944_4e-4), r);
    let p = V::splat(1.987_569_2e-4);
    let p = p.madd(r, V::splat(1.398_199_9e-3));
    let p = p.madd(r, V::splat(8.333_452e-3));
    let p = p.madd(r, V::splat(4.166_579_6e-2));
    let p = p.madd(r, V::splat(1.666_666_5e-1));
    let p = p.madd(r, V::splat(0.5));
    let p = p.madd(r.mul(r), r);
    p.add(V::splat(1.0)).times_power(shifted)
}

/// GELU by the tanh formula.
#[inline(always)]
pub unsafe fn gelu<V: Simd>(x: V) -> V {
    gelu_for::<V, f32>(x)
}

/// GELU as exactly as elements of this type can tell: within 1e-4 for bf16.
#[inline(always)]
pub unsafe fn gelu_for<V: Simd, E: Element>(x: V) -> V {
    // 0.5 (1 + tanh u) = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)
    const TWICE: f32 = -2.0 * 0.797_884_6;
    let u = x.mul(x).madd(V::splat(0.044_715), V::splat(1.0)).mul(x);
    let power = match E::HALF {
        true => u.mul(V::splat(TWICE * std::f32::consts::LOG2_E)).exp2_coarse(),
        false => exp(u.mul(V::splat(TWICE))),
    };
    x.div(power.add(V::splat(1.0)))
}

/// x times sigmoid(x).
#[inline(always)]
pub unsafe fn silu<V: Simd>(x: V) -> V {
    x.div(exp(V::splat(0.0).sub(x)).add(V::splat(1.0)))
}

/// Four lanes in plain code.
#[derive(Clone, Copy)]
pub struct Quad([f32; 4]);

impl Quad {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Quad(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Simd for Quad {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Quad([x; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Quad(p.cast::<[f32; 4]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        p.cast::<[f32; 4]>().write_unaligned(self.0)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        Quad(std::array::from_fn(|i| (*p.add(i)).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16) {
        p.cast::<[bf16; 4]>().write_unaligned(self.0.map(bf16::from_f32))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn madd(self, b: Self, c: Self) -> Self {
        self.mul(b).add(c)
    }
    #[inline(always)]
    unsafe fn nmadd(self, b: Self, c: Self) -> Self {
        c.sub(self.mul(b))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn times_power(self, shifted: Self) -> Self {
        self.zip(shifted, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn swapped(self) -> Self {
        let [a, b, c, d] = self.0;
        Quad([b, a, d, c])
    }
    #[inline(always)]
    unsafe fn doubled(p: *const f32) -> Self {
        let [a, b] = p.cast::<[f32; 2]>().read_unaligned();
        Quad([a, a, b, b])
    }
    #[inline(always)]
    unsafe fn even_negated(self) -> Self {
        let [a, b, c, d] = self.0;
        Quad([-a, b, -c, d])
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        (a + c) + (b + d)
    }
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use half::bf16;
    use std::arch::x86_64::*;

    impl Simd for __m512 {
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            _mm512_set1_ps(x)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            _mm512_loadu_ps(p)
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            _mm512_storeu_ps(p, self)
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        /// Only the kernel that multiplies bf16 has elements to round to, so its instruction is there.
        #[inline(always)]
        unsafe fn store_bf16(self, p: *mut bf16) {
            let half: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(self));
            _mm256_storeu_si256(p.cast(), half)
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            _mm512_add_ps(self, b)
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            _mm512_sub_ps(self, b)
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            _mm512_mul_ps(self, b)
        }
        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            _mm512_div_ps(self, b)
        }
        #[inline(always)]
        unsafe fn madd(self, b: Self, c: Self) -> Self {
            _mm512_fmadd_ps(self, b, c)
        }
        #[inline(always)]
        unsafe fn nmadd(self, b: Self, c: Self) -> Self {
            _mm512_fnmadd_ps(self, b, c)
        }
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            _mm512_max_ps(self, b)
        }
        #[inline(always)]
        unsafe fn min(self, b: Self) -> Self {
            _mm512_min_ps(self, b)
        }
        #[inline(always)]
        unsafe fn times_power(self, shifted: Self) -> Self {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), n))
        }
        // AVX-512 splits a number into its whole part and the rest
        #[inline(always)]
        unsafe fn exp2_coarse(self) -> Self {
            const DOWN: i32 = 1;
            let r = _mm512_reduce_ps::<DOWN>(self); // in [0, 1)
            let p = _mm512_set1_ps(7.802_452e-2);
            let p = p.madd(r, _mm512_set1_ps(2.260_671_6e-1));
            let p = p.madd(r, _mm512_set1_ps(6.958_335_4e-1));
            let p = p.madd(r, _mm512_set1_ps(9.999_252e-1));
            _mm512_scalef_ps(p, self)
        }
        #[inline(always)]
        unsafe fn swapped(self) -> Self {
            _mm512_permute_ps::<0b10_11_00_01>(self)
        }
        #[inline(always)]
        unsafe fn doubled(p: *const f32) -> Self {
            let index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            _mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)))
        }
        #[inline(always)]
        unsafe fn even_negated(self) -> Self {
            let signs = _mm512_set1_epi64(0x8000_0000);
            _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(self), signs))
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            _mm512_reduce_add_ps(self)
        }
        #[inline(always)]
        unsafe fn top(self) -> f32 {
            _mm512_reduce_max_ps(self)
        }
    }

    impl Simd for __m256 {
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            _mm256_set1_ps(x)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            _mm256_loadu_ps(p)
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            _mm256_storeu_ps(p, self)
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        #[inline(always)]
        unsafe fn store_bf16(self, p: *mut bf16) {
            let x: [f32; 8] = std::mem::transmute(self);
            p.cast::<[bf16; 8]>().write_unaligned(x.map(bf16::from_f32))
        }
        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            _mm256_add_ps(self, b)
        }
        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            _mm256_sub_ps(self, b)
        }
        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            _mm256_mul_ps(self, b)
        }
        #[inline(always)]
        unsafe fn div(self, b: Self) -> Self {
            _mm256_div_ps(self, b)
        }
        #[inline(always)]
        unsafe fn madd(self, b: Self, c: Self) -> Self {
            _mm256_fmadd_ps(self, b, c)
        }
        #[inline(always)]
        unsafe fn nmadd(self, b: Self, c: Self) -> Self {
            _mm256_fnmadd_ps(self, b, c)
        }
        #[inline(always)]
        unsafe fn max(self, b: Self) -> Self {
            _mm256_max_ps(self, b)
        }
        #[inline(always)]
        unsafe fn min(self, b: Self) -> Self {
            _mm256_min_ps(self, b)
        }
        #[inline(always)]
        unsafe fn times_power(self, shifted: Self) -> Self {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), n))
        }
        #[inline(always)]
        unsafe fn swapped(self) -> Self {
            _mm256_permute_ps::<0b10_11_00_01>(self)
        }
        #[inline(always)]
        unsafe fn doubled(p: *const f32) -> Self {
            let index = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
            _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), index)
        }
        #[inline(always)]
        unsafe fn even_negated(self) -> Self {
            _mm256_xor_ps(self, _mm256_castsi256_ps(_mm256_set1_epi64x(0x8000_0000)))
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            let x: [f32; 8] = std::mem::transmute(self);
            ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
        }
        #[inline(always)]
        unsafe fn top(self) -> f32 {
            let x: [f32; 8] = std::mem::transmute(self);
            x.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
        }
    }
}
