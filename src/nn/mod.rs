//! Layers, one file each: what candle lacks or does slowly.
//!
//! Every operation has a plain form in candle's own differentiable operations, for GPUs and for gradients; on a CPU, where
//! nothing is being differentiated, the loops of [`kernel`] stand in for it, and on CUDA kernels of our own for what goes between
//! products; [`path`] says which it is. There activations are f32 between operations, and
//! what is only read by products of bf16 weights is handed on as bf16, in rows that may lie further apart than they are wide.
//! Pictures are channels-last everywhere.

pub mod activation;
pub mod attention;
pub mod conv3d;
#[cfg(feature = "cuda")]
mod cuda;
pub mod group_norm;
pub mod kernel;
pub mod linear;
pub mod matrix;
pub mod norm;
pub mod paired;
pub mod path;
mod read;
pub mod rope;
pub mod spread;
pub mod stream;
pub mod table;
pub mod tiles;
pub mod timestep;
pub mod vars;

use candle_core::Tensor;

/// Whether `weight` is the stand-in that a check of file headers hands out (see `weights::open`): it has a shape but no
/// storage of that size, so nothing may be computed from it.
fn is_stand_in(weight: &Tensor) -> bool {
    weight.elem_count() > 1 && weight.stride().iter().all(|&s| s == 0)
}

#[cfg(test)]
pub(crate) mod testing {
    use candle_core::{Device, Result, Tensor};

    /// Reproducible values in about [-2, 2], of any shape.
    pub fn values(shape: &[usize], seed: u64) -> Result<Tensor> {
        let n = shape.iter().product::<usize>();
        let data: Vec<f32> = crate::sampling::noise::Noise::new(seed).normal(n);
        Tensor::from_vec(data, shape, &Device::Cpu)
    }

    /// Largest difference, relative to the largest expected value.
    pub fn distance(got: &Tensor, want: &Tensor) -> Result<f32> {
        assert_eq!(got.dims(), want.dims());
        let worst = (got - want)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        let scale = want.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        Ok(worst / scale.max(1e-12))
    }
}
