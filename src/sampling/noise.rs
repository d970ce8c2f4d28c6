//! Seeded Gaussian numbers, equal bit for bit to those of torch's CPU generator, so that one seed
//! gives here the clip that it gives in the reference pipelines.
//!
//! What is unusual: fewer than 16 values are drawn one by one in f64, 16 or more in blocks of 16 in
//! f32, and the two paths share no prefix. The f32 path follows torch's vectorised logarithm and
//! sine operation by operation, fused where torch fuses, since a rounding elsewhere is another bit.
//! Reel draws in f32 always and casts: torch's own bf16 and f16 draws spend the stream in another
//! order when the count is no multiple of 16, and nothing here asks for them.

use serde::{Deserialize, Serialize};
use std::f32::consts::FRAC_1_SQRT_2;
use std::f64::consts::PI;

/// Words in the state of the Mersenne Twister, and the distance of the word that mixes in.
const WORDS: usize = 624;
const SHIFT: usize = 397;

/// Values in a block of the f32 path: eight radii, then eight angles.
const BLOCK: usize = 16;

/// torch's CPU generator: the raw stream, and the normal that an odd number of single draws left.
/// Serialisable, so that a run can be resumed in the middle of its stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    #[serde(with = "words")]
    state: [u32; WORDS],
    /// Words of `state` already used; `WORDS` or more: make new ones first.
    used: usize,
    /// The second half of the last pair of the f64 path, as bits: a JSON float may lose the last one.
    spare: Option<u64>,
}

impl Noise {
    /// The stream of `torch.Generator("cpu").manual_seed(seed)`.
    /// - `seed`: only the low 32 bits count, as in torch.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; WORDS];
        let mut word = seed as u32;
        for (i, slot) in (1..).zip(&mut state) {
            *slot = word;
            word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i);
        }
        Self { state, used: WORDS, spare: None }
    }

    /// The next `n` standard normal values, as `torch.randn(n)` in float32 draws them.
    /// - The shape of a draw does not matter: torch fills row-major.
    /// - Source: torch `aten/src/ATen/native/cpu/DistributionTemplates.h`, at 2.15.0. For `n` below
    ///   16 equal wherever the platform's f64 `sin`, `cos` and `log1p` round as glibc's do.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        if n < BLOCK {
            values.fill_with(|| self.single() as f32);
            return values;
        }
        self.uniform(&mut values);
        gauss(&mut values[..n / BLOCK * BLOCK]);
        if !n.is_multiple_of(BLOCK) {
            // torch draws the last 16 anew, over values that are already finished.
            let tail = &mut values[n - BLOCK..];
            self.uniform(tail);
            gauss(tail);
        }
        values
    }

    /// One value of the f64 path. The spare survives draws of the f32 path in between.
    fn single(&mut self) -> f64 {
        if let Some(bits) = self.spare.take() {
            return f64::from_bits(bits);
        }
        let (turn, tail) = (self.uniform53(), self.uniform53());
        let radius = (-2.0 * (-tail).ln_1p()).sqrt();
        let angle = 2.0 * PI * turn;
        self.spare = Some((radius * angle.sin()).to_bits());
        radius * angle.cos()
    }

    /// 53 random bits in [0, 1), from two words, the high one first.
    fn uniform53(&mut self) -> f64 {
        let mut word = || {
            if self.used >= WORDS {
                self.twist();
            }
            self.used += 1;
            u64::from(temper(self.state[self.used - 1]))
        };
        let bits = word() << 32 | word();
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// 24 random bits in [0, 1) a value, a word each.
    fn uniform(&mut self, mut values: &mut [f32]) {
        while !values.is_empty() {
            if self.used >= WORDS {
                self.twist();
            }
            let n = values.len().min(WORDS - self.used);
            let (now, later) = values.split_at_mut(n);
            for (value, &word) in now.iter_mut().zip(&self.state[self.used..]) {
                // Through i32, for which every CPU has a vector conversion; 24 bits fit.
                *value = (temper(word) & 0x00ff_ffff) as i32 as f32 * (1.0 / (1 << 24) as f32);
            }
            self.used += n;
            values = later;
        }
    }

    /// The next `WORDS` words. Three loops without a modulo, which the compiler can vectorise.
    fn twist(&mut self) {
        let mix = |word: u32, next: u32, far: u32| {
            let y = (word & 0x8000_0000) | (next & 0x7fff_ffff);
            far ^ (y >> 1) ^ (0x9908_b0df & (y & 1).wrapping_neg())
        };
        let s = &mut self.state;
        for i in 0..WORDS - SHIFT {
            s[i] = mix(s[i], s[i + 1], s[i + SHIFT]);
        }
        for i in WORDS - SHIFT..WORDS - 1 {
            s[i] = mix(s[i], s[i + 1], s[i + SHIFT - WORDS]);
        }
        s[WORDS - 1] = mix(s[WORDS - 1], s[0], s[SHIFT - 1]);
        self.used = 0;
    }
}

/// The output function of the Mersenne Twister.
#[inline(always)]
fn temper(mut word: u32) -> u32 {
    word ^= word >> 11;
    word ^= (word << 7) & 0x9d2c_5680;
    word ^= (word << 15) & 0xefc6_0000;
    word ^ (word >> 18)
}

/// Turns uniform values into normal ones in place, block by block.
/// - `values`: in [0, 1); a multiple of 16 of them.
fn gauss(values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the two features that the function is compiled for were just found.
        return unsafe { gauss_fma(values) };
    }
    gauss_blocks(values);
}

/// [`gauss_blocks`] with fused multiply-add as an instruction: as a call into libm, which x86-64's
/// baseline needs, it gives the same bits at a tenth of the speed.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn gauss_fma(values: &mut [f32]) {
    gauss_blocks(values);
}

/// Box-Muller: in each block the first eight values give radii, the last eight angles.
#[inline(always)]
fn gauss_blocks(values: &mut [f32]) {
    for block in values.chunks_exact_mut(BLOCK) {
        let (radii, angles) = block.split_at_mut(BLOCK / 2);
        for (a, b) in radii.iter_mut().zip(angles) {
            let radius = (-2.0 * ln(1.0 - *a)).sqrt();
            let (sin, cos) = sin_cos(2.0 * std::f32::consts::PI * *b);
            // torch adds the mean: a -0 becomes +0.
            *a = radius * cos + 0.0;
            *b = radius * sin + 0.0;
        }
    }
}

/// Natural logarithm of a normal positive number, rounded as torch's AVX2 kernel rounds.
/// - Source: torch `aten/src/ATen/native/cpu/avx_mathfun.h`, `log256_ps` (Cephes `logf`).
#[allow(clippy::excessive_precision)] // the source's digits
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let mantissa = f32::from_bits((bits & 0x807f_ffff) | 0x3f00_0000); // in [0.5, 1)
    let low = mantissa < FRAC_1_SQRT_2;
    let exponent = ((bits >> 23) as i32 - 126) as f32 - if low { 1.0 } else { 0.0 };
    let m = mantissa - 1.0 + if low { mantissa } else { 0.0 };
    let z = m * m;
    let mut y = 7.037_683_629_2e-2f32;
    y = y.mul_add(m, -1.151_461_031_0e-1);
    y = y.mul_add(m, 1.167_699_874_0e-1);
    y = y.mul_add(m, -1.242_014_084_6e-1);
    y = y.mul_add(m, 1.424_932_278_7e-1);
    y = y.mul_add(m, -1.666_805_766_5e-1);
    y = y.mul_add(m, 2.000_071_476_5e-1);
    y = y.mul_add(m, -2.499_999_399_3e-1);
    y = y.mul_add(m, 3.333_333_117_4e-1);
    y *= m;
    y = y.mul_add(z, exponent * -2.121_944_40e-4);
    y -= 0.5 * z;
    m + y + exponent * 0.693_359_375
}

/// Sine and cosine of an angle in [0, 2 pi], rounded as torch's AVX2 kernel rounds.
/// - Source: torch `aten/src/ATen/native/cpu/avx_mathfun.h`, `sincos256_ps` (Cephes `sincosf`).
#[allow(clippy::excessive_precision)] // the source's digits
#[inline(always)]
fn sin_cos(angle: f32) -> (f32, f32) {
    let octant = ((angle * 1.273_239_544_735_16) as i32 + 1) & !1;
    let turns = octant as f32;
    // Pi / 4 in three parts, so that the difference keeps its bits.
    let x = turns.mul_add(-0.785_156_25, angle);
    let x = turns.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    let x = turns.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;
    let mut cos = 2.443_315_711_809_948e-5f32;
    cos = cos.mul_add(z, -1.388_731_625_493_765e-3);
    cos = cos.mul_add(z, 4.166_664_568_298_827e-2);
    cos *= z;
    cos = cos.mul_add(z, -(0.5 * z)) + 1.0;
    let mut sin = -1.951_529_589_1e-4f32;
    sin = sin.mul_add(z, 8.332_160_873_6e-3);
    sin = sin.mul_add(z, -1.666_665_461_1e-1);
    sin *= z;
    sin = sin.mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin_sign = (octant as u32 & 4) << 29;
    let cos_sign = (!(octant - 2) as u32 & 4) << 29;
    (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
}

/// Serde for the state: it has no form of its own for arrays this long.
mod words {
    use super::WORDS;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(state: &[u32; WORDS], to: S) -> Result<S::Ok, S::Error> {
        state.as_slice().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u32; WORDS], D::Error> {
        Vec::<u32>::deserialize(from)?
            .try_into()
            .map_err(|got: Vec<u32>| D::Error::invalid_length(got.len(), &"624 words"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Draws of torch 2.15.0 on a CPU with AVX-512, as hex of their bits.
    fn golden() -> Value {
        serde_json::from_str(include_str!("../../tests/goldens/noise.json")).unwrap()
    }

    fn hex(value: &Value) -> Vec<u32> {
        let text = value.as_str().unwrap().split_whitespace();
        text.map(|word| u32::from_str_radix(word, 16).unwrap()).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn raw_stream_is_mt19937() {
        let mut noise = Noise::new(0);
        noise.twist();
        let words: Vec<u32> = noise.state.iter().take(8).map(|&w| temper(w)).collect();
        assert_eq!(words, hex(&golden()["mt19937_seed0"]));
    }

    #[test]
    fn single_draws_equal_torch() {
        let golden = golden();
        let draws = golden["draws"].as_array().unwrap();
        assert_eq!(draws.len(), 21);
        for draw in draws {
            let (seed, n) = (draw["seed"].as_u64().unwrap(), draw["n"].as_u64().unwrap() as usize);
            let got = bits(&Noise::new(seed).normal(n));
            assert_eq!(got, hex(&draw["bits"]), "seed {seed}, n {n}");
        }
    }

    /// Draws one after the other: the spare of the f64 path is served across longer draws. The long
    /// ones matter: a wrong last bit in one constant shows in 1 of 5,000 values.
    #[test]
    fn sequences_equal_torch() {
        let golden = golden();
        let sequences = golden["sequences"].as_array().unwrap();
        assert_eq!(sequences.len(), 7);
        for sequence in sequences {
            let seed = sequence["seed"].as_u64().unwrap();
            let mut noise = Noise::new(seed);
            for draw in sequence["draws"].as_array().unwrap() {
                let n = draw["n"].as_u64().unwrap() as usize;
                let got = bits(&noise.normal(n));
                let at = format!("seed {seed}, n {n}");
                // Long draws are stored as their ends, and two sums over every value.
                let (first, last) = (hex(&draw["first"]), hex(&draw["last"]));
                assert_eq!(got[..first.len()], first, "{at}: first");
                assert_eq!(got[n - last.len()..], last, "{at}: last");
                let sum = got.iter().fold(0u32, |a, &b| a.wrapping_add(b));
                let mix = got.iter().fold(0u32, |a, &b| a.rotate_left(5) ^ b);
                assert_eq!([sum, mix], *hex(&draw["sum_mix"]), "{at}: all values");
            }
        }
    }

    #[test]
    fn only_low_32_bits_of_a_seed_count() {
        assert_eq!(Noise::new((5 << 32) | 42), Noise::new(42));
        assert_eq!(Noise::new(u64::MAX), Noise::new(u64::from(u32::MAX)));
        assert_ne!(Noise::new(41), Noise::new(42));
    }

    /// A uniform 0 gives a radius of 0; torch's sum with the mean leaves no negative zero.
    #[test]
    fn zero_is_positive() {
        let mut block: Vec<f32> = (0..16).map(|i| if i < 8 { 0.0 } else { i as f32 / 16.0 }).collect();
        gauss(&mut block);
        assert_eq!(bits(&block), [0; 16]);
    }

    #[test]
    fn plain_and_fused_code_agree() {
        let mut uniform = vec![0.0; 4096];
        Noise::new(9).uniform(&mut uniform);
        let (mut plain, mut fast) = (uniform.clone(), uniform);
        gauss_blocks(&mut plain);
        gauss(&mut fast);
        assert_eq!(bits(&plain), bits(&fast));
    }

    #[test]
    fn resumes_from_json() {
        for n in [0, 3, 16, 700] {
            let mut noise = Noise::new(1 << 31);
            noise.normal(n);
            let stored = serde_json::to_string(&noise).unwrap();
            let mut back: Noise = serde_json::from_str(&stored).unwrap();
            assert_eq!(back, noise);
            assert_eq!(bits(&back.normal(5)), bits(&noise.normal(5)));
            assert_eq!(bits(&back.normal(40)), bits(&noise.normal(40)));
        }
        let bad = r#"{"state": [1, 2], "used": 0, "spare": null}"#;
        let error = serde_json::from_str::<Noise>(bad).unwrap_err().to_string();
        assert!(error.contains("624 words"), "{error}");
    }
}
