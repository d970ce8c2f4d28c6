//! Four lanes in NEON's registers.

#![allow(clippy::missing_safety_doc)] // said once, at `Simd`

use super::Simd;
use half::bf16;
use std::arch::aarch64::*;
use std::arch::asm;

/// `HALF`: the CPU has instructions for bf16 (FEAT_BF16), and rounds with them.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Neon<const HALF: bool>(pub float32x4_t);

impl<const HALF: bool> Simd for Neon<HALF> {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Neon(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Neon(vld1q_f32(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        vst1q_f32(p, self.0)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        let wide = vmovl_u16(vld1_u16(p.cast()));
        Neon(vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16) {
        vst1_u16(p.cast(), if HALF { narrow_bf16(self.0) } else { narrow(self.0) })
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Neon(vaddq_f32(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Neon(vsubq_f32(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Neon(vmulq_f32(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Neon(vdivq_f32(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn madd(self, b: Self, c: Self) -> Self {
        Neon(vfmaq_f32(c.0, self.0, b.0))
    }
    #[inline(always)]
    unsafe fn nmadd(self, b: Self, c: Self) -> Self {
        Neon(vfmsq_f32(c.0, self.0, b.0))
    }
    // of a number and no number these keep the number, as x86 does of a variable and a bound
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Neon(vmaxnmq_f32(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Neon(vminnmq_f32(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn times_power(self, shifted: Self) -> Self {
        let n = vshlq_n_u32::<23>(vreinterpretq_u32_f32(shifted.0));
        Neon(vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(self.0), n)))
    }
    #[inline(always)]
    unsafe fn swapped(self) -> Self {
        Neon(vrev64q_f32(self.0))
    }
    #[inline(always)]
    unsafe fn doubled(p: *const f32) -> Self {
        let x = vld1_f32(p);
        Neon(vcombine_f32(vzip1_f32(x, x), vzip2_f32(x, x)))
    }
    #[inline(always)]
    unsafe fn even_negated(self) -> Self {
        let signs = vreinterpretq_u32_u64(vdupq_n_u64(0x8000_0000));
        Neon(vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(self.0), signs)))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        vaddvq_f32(self.0)
    }
    #[inline(always)]
    unsafe fn top(self) -> f32 {
        vmaxnmvq_f32(self.0)
    }
}

/// Rounds to the nearest bf16, to the even one of two. In assembly, because Rust 1.89 has no name for the instruction.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn narrow_bf16(x: float32x4_t) -> uint16x4_t {
    let y: uint16x4_t;
    // SAFETY: registers alone, by an instruction that this function asks for.
    unsafe {
        asm!("bfcvtn {y:v}.4h, {x:v}.4s", y = lateout(vreg) y, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags))
    };
    y
}

/// The same in whole numbers.
#[inline(always)]
unsafe fn narrow(x: float32x4_t) -> uint16x4_t {
    let bits = vreinterpretq_u32_f32(x);
    let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    // what is no number stays none, whatever its bits are
    let none = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
    vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(x, x), rounded, none))
}
