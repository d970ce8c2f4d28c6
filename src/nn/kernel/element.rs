//! Numbers as products read them.

use half::bf16;

/// f32 or bf16: what activations may be rounded to before they are multiplied.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// Whether this is bf16.
    const HALF: bool;
    fn from_f32(x: f32) -> Self;
    fn from_bf16(x: bf16) -> Self;
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const HALF: bool = false;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn from_bf16(x: bf16) -> Self {
        x.to_f32()
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const HALF: bool = true;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn from_bf16(x: bf16) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}
