//! GELU, SiLU and softmax by themselves; most of them are fused into what goes before or after.

use super::kernel::memory::filled;
use super::kernel::micro::Kernel;
use super::kernel::rows::{self, Act, RowNormAct};
use super::kernel::{self, Job, MatmulType};
use super::path::{Input, RowPath};
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};

/// GELU by the tanh formula (`gelu_new`, `gelu-approximate`). Any shape.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    match is_own(x) {
        true => x.contiguous()?.apply_op1_no_bwd(&Each(Act::Gelu)),
        false => x.gelu(),
    }
}

/// x times sigmoid(x). Any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    match is_own(x) {
        true => x.contiguous()?.apply_op1_no_bwd(&Each(Act::Silu)),
        false => x.silu(),
    }
}

/// Whether the CPU's own loops make it; CUDA has no kernel for an activation alone.
fn is_own(x: &Tensor) -> bool {
    Input::of(x, []).rows(x.elem_count()) == RowPath::Kernel
}

/// Softmax over the last axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax(x, D::Minus1)
}

/// The CPU form.
struct Each(Act);

impl CustomOp1 for Each {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(x), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("activation: expected contiguous f32")
        };
        Ok((CpuStorage::F32(kernel::dispatch(MatmulType::F32, Run(self.0, &x[start..end]))), layout.shape().clone()))
    }
}

struct Run<'a>(Act, &'a [f32]);

impl Job for Run<'_> {
    type Done = Vec<f32>;

    fn run<K: Kernel>(self) -> Vec<f32> {
        let how = RowNormAct { act: Some(self.0), ..RowNormAct::default() };
        // SAFETY: all of it is written.
        unsafe { filled(self.1.len(), |y| rows::map_all::<K>(self.1, y, &how)) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use candle_core::Result;

    /// The two forms differ by a few roundings of f32.
    const LIMIT: f32 = 1e-6;

    #[test]
    fn fast_forms_equal_plain_forms() -> Result<()> {
        let x = (values(&[3, 7, 37], 1)? * 3.0)?;
        assert!(distance(&super::gelu_tanh(&x)?, &x.gelu()?)? < LIMIT);
        assert!(distance(&super::silu(&x)?, &x.silu()?)? < LIMIT);
        Ok(())
    }
}
