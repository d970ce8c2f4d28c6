//! Timesteps as vectors: a sinusoid and two dense layers.

use super::{activation::silu, linear::Linear, vars::Vars};
use candle_core::{DType, Device, Result, Tensor};

/// Channels of the sinusoid that the embedder reads.
/// - Source: diffusers `models/embeddings.py`, `PixArtAlphaCombinedTimestepSizeEmbeddings`, at 58eb52c.
const CHANNELS: usize = 256;
const MAX_PERIOD: f64 = 10_000.0;

/// Cosines, then sines, of each timestep at 128 falling frequencies, in f32.
/// - Returns (timesteps, 256).
/// - Source: diffusers `models/embeddings.py`, `get_timestep_embedding` (flip_sin_to_cos, no frequency shift), at 58eb52c.
pub fn sinusoid(timesteps: &[f32], device: &Device) -> Result<Tensor> {
    let half = CHANNELS / 2;
    let frequencies: Vec<f32> = (0..half).map(|k| (-(MAX_PERIOD.ln() as f32) * k as f32 / half as f32).exp()).collect();
    let mut values = Vec::with_capacity(timesteps.len() * CHANNELS);
    for &t in timesteps {
        values.extend(frequencies.iter().map(|f| (t * f).cos()));
        values.extend(frequencies.iter().map(|f| (t * f).sin()));
    }
    Tensor::from_vec(values, (timesteps.len(), CHANNELS), device)
}

/// Sinusoid -> dense -> SiLU -> dense.
#[derive(Clone, Debug)]
pub struct TimestepEmbedder {
    linear_1: Linear,
    linear_2: Linear,
    dtype: DType,
}

impl TimestepEmbedder {
    /// - `vb` holds `timestep_embedder.linear_1` and `.linear_2`.
    pub fn load(width: usize, vb: Vars) -> Result<Self> {
        let vb = vb.pp("timestep_embedder");
        Ok(Self {
            linear_1: Linear::load(CHANNELS, width, true, vb.pp("linear_1"))?.in_f32(),
            linear_2: Linear::load(width, width, true, vb.pp("linear_2"))?.in_f32(),
            dtype: vb.dtype(),
        })
    }

    /// - `timesteps`: in 0..=1000. Returns (timesteps, width).
    pub fn forward(&self, timesteps: &[f32], device: &Device) -> Result<Tensor> {
        let x = sinusoid(timesteps, device)?.to_dtype(self.dtype)?; // the sinusoid is taken in f32, then rounded
        self.linear_2.forward(&silu(&self.linear_1.forward(&x)?)?)
    }
}
