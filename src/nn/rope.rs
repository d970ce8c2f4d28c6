//! Rotary positions over three axes (time, height, width) at once.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_i_slow;

/// Cosines and sines of every token's angles.
#[derive(Clone, Debug)]
pub struct Rope {
    pub cos: Tensor, // (tokens, d / 2), f32
    pub sin: Tensor,
}

impl Rope {
    /// Builds the tables for tokens at `coords`, each axis as a share of the longest extent that the model was trained for.
    /// - `coords`: (t, y, x) a token, in [0, 1] where the clip fits the training extent. `width`: channels, even.
    /// - `theta`: ratio of the highest frequency to the lowest.
    /// - The `width % 6` channels that the three axes leave over come first and are not turned.
    /// - Source: diffusers `models/transformers/transformer_ltx.py`, `LTXVideoRotaryPosEmbed`, at 58eb52c.
    pub fn new(coords: &[[f32; 3]], width: usize, theta: f64, device: &Device) -> Result<Self> {
        let frequencies = frequencies(width / 6, theta);
        let idle = (width % 6) / 2;
        let half = width / 2;
        let mut cos = Vec::with_capacity(coords.len() * half);
        let mut sin = Vec::with_capacity(coords.len() * half);
        for coord in coords {
            cos.extend(std::iter::repeat_n(1.0, idle));
            sin.extend(std::iter::repeat_n(0.0, idle));
            for f in &frequencies {
                for c in coord {
                    let angle = f * (c * 2.0 - 1.0);
                    cos.push(angle.cos());
                    sin.push(angle.sin());
                }
            }
        }
        let shape = (coords.len(), half);
        Ok(Self { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }

    /// Turns each pair of neighbouring channels by its angle, in f32. On a CPU attention does it on its way.
    /// - `x`: (b, tokens, d).
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?.unsqueeze(1)?.contiguous()?; // (b, 1, tokens, d); angles need f32
        rope_i_slow(&wide, &self.cos, &self.sin)?.squeeze(1)?.to_dtype(x.dtype())
    }
}

/// theta^0 .. theta^1 in `n` even steps of the exponent, times pi/2, rounded as torch rounds them.
fn frequencies(n: usize, theta: f64) -> Vec<f32> {
    let step = 1.0 / (n.max(2) - 1) as f32;
    (0..n)
        .map(|j| {
            // torch fills `linspace` from both ends
            let exponent = if j < n / 2 { step * j as f32 } else { (-step).mul_add((n - 1 - j) as f32, 1.0) };
            let exponent = if n == 1 { 0.0 } else { exponent };
            theta.powf(exponent as f64) as f32 * std::f32::consts::PI / 2.0
        })
        .collect()
}
