//! Weights of the real sizes without a download: random numbers under the names that a constructor asks for, for timing.

use crate::nn::kernel::MatmulType;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::matrix::Matrix;
use crate::nn::vars::{Source, Vars};
use crate::sampling::noise::Noise;
use crate::weights::rules::Rules;
use candle_core::{DType, Device, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// Numbers that are repeated all over: enough that no cache holds them.
const TILE: usize = 1 << 20;
/// Their deviation: so small that values neither grow nor die from layer to layer.
const DEVIATION: f32 = 0.02;

struct Random {
    stored: DType,
    /// What the matrices that quantising means are kept in, and which those are.
    quantize: Option<(QuantType, &'static Rules)>,
    tile: Arc<Vec<f32>>,
}

/// Random weights.
/// - `stored`: what matrices are kept in, f32 or bf16; `quantize`: and those that quantising means, by a part's rules. `compute` and `device` as
///   for weights that are read from files.
pub fn weights(stored: DType, quantize: Option<(QuantType, &'static Rules)>, compute: DType, device: &Device) -> Vars {
    let tile = Noise::new(0).normal(TILE).into_iter().map(|x| x * DEVIATION).collect();
    Vars::new(Random { stored, quantize, tile: Arc::new(tile) }, compute, device.clone())
}

impl Random {
    fn fill<T: Copy + Send + Sync>(&self, count: usize, zero: T, narrow: impl Fn(f32) -> T + Sync) -> Vec<T> {
        let tile: Vec<T> = self.tile.iter().map(|x| narrow(*x)).collect();
        let mut all = vec![zero; count];
        all.par_chunks_mut(TILE).for_each(|part| part.copy_from_slice(&tile[..part.len()]));
        all
    }
}

impl Source for Random {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let count = shape.elem_count();
        let x = match shape.rank() {
            // norms are about one, and so is the deviation of latents; a decoder's timestep is in thousandths
            0 => Tensor::from_vec(vec![1000f32], (), device)?,
            1 if name.ends_with("norm.weight") || name.contains("norm_") || name.ends_with("latents_std") => {
                Tensor::from_vec(self.fill(count, 0.0, |x| 1.0 + x), shape.clone(), device)?
            }
            2.. if self.stored == DType::BF16 => {
                return Tensor::from_vec(self.fill(count, bf16::ZERO, bf16::from_f32), shape.clone(), device);
            }
            _ => Tensor::from_vec(self.fill(count, 0.0, |x| x), shape.clone(), device)?,
        };
        x.to_dtype(if shape.rank() < 2 { dtype } else { self.stored })
    }

    fn contains(&self, _: &str) -> bool {
        true
    }

    fn matrix(&self, outputs: usize, inputs: usize, name: &str, dtype: DType, device: &Device) -> Result<Matrix> {
        let blocks = self.quantize.and_then(|(kind, rules)| Some((rules.becomes(name, kind)?, rules)));
        match blocks.filter(|(kind, _)| inputs.is_multiple_of(kind.values())) {
            Some((kind, rules)) => {
                let made = blocks_of(kind, outputs, inputs, self.stored);
                (if rules.dequantised(name) { made.dequantised() } else { made }).to_device(device)
            }
            None => Ok(Matrix::new(self.get(&Shape::from((outputs, inputs)), name, dtype, device)?)),
        }
    }
}

/// Random blocks of so many values, of the same deviation.
pub fn blocks(kind: QuantType, count: usize) -> Vec<u8> {
    let tile = block_tile(kind);
    let mut all = vec![0; kind.size(count)];
    all.par_chunks_mut(tile.len()).for_each(|part| part.copy_from_slice(&tile[..part.len()]));
    all
}

/// Any bits are quants and small scales; the scale of a block says how far they reach.
fn block_tile(kind: QuantType) -> Vec<u8> {
    // where a block's scale lies, and where its minimum, which is so many times larger that the mean is zero
    let (scale_at, minimum) = match kind {
        QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 | QuantType::Q8K => (0, None),
        QuantType::Q4_1 => (0, Some((2, -7.5))),
        QuantType::Q5_1 => (0, Some((2, -15.5))),
        QuantType::Q2K => (80, Some((82, 1.5))),
        QuantType::Q3K => (108, None),
        QuantType::Q4K => (0, Some((2, 7.5))),
        QuantType::Q5K => (0, Some((2, 15.5))),
        QuantType::Q6K => (208, None),
    };
    let mut tile = vec![0u8; kind.size(TILE)];
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for bytes in tile.chunks_mut(8) {
        // Marsaglia's xorshift
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.copy_from_slice(&state.to_le_bytes()[..bytes.len()]);
    }
    let mut set = |scale: f32| {
        for block in tile.chunks_mut(kind.bytes()) {
            let half = |x: f32| f16::from_f32(x).to_le_bytes();
            match kind {
                QuantType::Q8K => block[..4].copy_from_slice(&scale.to_le_bytes()),
                _ => block[scale_at..scale_at + 2].copy_from_slice(&half(scale)),
            }
            if let Some((at, times)) = minimum {
                block[at..at + 2].copy_from_slice(&half(scale * times));
            }
        }
        let mut values = vec![0f32; 64 * kind.values()];
        kind.decode(&tile, 0, &mut values);
        (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
    };
    let deviation = set(1.0);
    set(DEVIATION / deviation);
    tile
}

/// A random matrix in blocks.
fn blocks_of(kind: QuantType, outputs: usize, inputs: usize, stored: DType) -> Matrix {
    let math = if stored == DType::F32 { MatmulType::F32 } else { MatmulType::Bf16 };
    Matrix::made(kind, blocks(kind, outputs * inputs), outputs, inputs, math)
}

/// A random matrix (outputs, inputs) by itself, such as a layer has.
pub fn matrix(outputs: usize, inputs: usize, stored: DType, quantize: Option<QuantType>) -> Result<Matrix> {
    match quantize.filter(|kind| inputs.is_multiple_of(kind.values())) {
        Some(kind) => Ok(blocks_of(kind, outputs, inputs, stored)),
        None => weights(stored, None, DType::F32, &Device::Cpu).matrix(outputs, inputs, "weight"),
    }
}
