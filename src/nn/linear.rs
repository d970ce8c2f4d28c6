//! The dense layer.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// y = x Wᵀ + b, with W in the type it is stored in and the product in the type of x.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor, // (out, in)
    bias: Option<Tensor>,
}

impl Linear {
    /// - `weight`: (out, in). `bias`: (out).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// - `vb` holds `weight` (outputs, inputs) and, if `bias`, `bias` (outputs).
    pub fn load(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let bias = if bias { Some(vb.get(outputs, "bias")?) } else { None };
        Ok(Self::new(vb.get((outputs, inputs), "weight")?, bias))
    }

    /// - `x`: (..., in) -> (..., out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Half-precision weights are widened here and not at load: it halves the memory and rounds nothing.
        let weight = self.weight.to_dtype(x.dtype())?;
        let mut shape = x.dims().to_vec();
        let inputs = shape.pop().unwrap_or(1);
        shape.push(weight.dim(0)?);
        let y = x.reshape(((), inputs))?.matmul(&weight.t()?)?.reshape(shape)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
