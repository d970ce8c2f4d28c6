//! Weights by name, as the constructors of layers ask for them.

use super::kernel::MatmulType;
use super::matrix::{LowRank, Matrix};
use candle_core::{DType, Device, Result, Shape, Tensor};
use std::sync::Arc;

/// Where weights come from.
pub trait Source: Send + Sync {
    /// - Errors when there is no such tensor, or one of another shape.
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> Result<Tensor>;

    fn contains(&self, name: &str) -> bool;

    /// The factor of a product, (outputs, inputs); used where it lies, if it may be.
    fn matrix(&self, outputs: usize, inputs: usize, name: &str, dtype: DType, device: &Device) -> Result<Matrix> {
        Ok(Matrix::new(self.get(&Shape::from((outputs, inputs)), name, dtype, device)?))
    }

    /// What LoRAs add to the layer of that name.
    fn loras(&self, _layer: &str, _math: MatmulType, _dtype: DType, _device: &Device) -> Result<Vec<LowRank>> {
        Ok(vec![])
    }

    /// Rows of which few will be read, (rows, width): left where they lie, if they may be.
    fn table(&self, rows: usize, width: usize, name: &str, dtype: DType, device: &Device) -> Result<Matrix> {
        self.matrix(rows, width, name, dtype, device)
    }
}

/// Weights below one prefix.
#[derive(Clone)]
pub struct Vars {
    source: Arc<dyn Source>,
    prefix: String,
    dtype: DType,
    device: Device,
}

impl Vars {
    /// - `dtype`: what layers compute in, and so what vectors are kept in.
    pub fn new(source: impl Source + 'static, dtype: DType, device: Device) -> Self {
        Self { source: Arc::new(source), prefix: String::new(), dtype, device }
    }

    /// The weights below `name`.
    pub fn pp(&self, name: impl AsRef<str>) -> Self {
        Self { prefix: self.name(name.as_ref()), ..self.clone() }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn contains_tensor(&self, name: &str) -> bool {
        self.source.contains(&self.name(name))
    }

    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.source.get(&shape.into(), &self.name(name), self.dtype, &self.device)
    }

    /// The factor of a product: (outputs, inputs), used where it lies if it may be.
    pub fn matrix(&self, outputs: usize, inputs: usize, name: &str) -> Result<Matrix> {
        self.source.matrix(outputs, inputs, &self.name(name), self.dtype, &self.device)
    }

    /// What LoRAs add to the layer whose weights these are.
    /// - `math`: in what a CPU multiplies by the layer itself.
    pub fn loras(&self, math: MatmulType) -> Result<Vec<LowRank>> {
        self.source.loras(&self.prefix, math, self.dtype, &self.device)
    }

    /// Rows of which few will be read, (rows, width).
    pub fn table(&self, rows: usize, width: usize, name: &str) -> Result<Matrix> {
        self.source.table(rows, width, &self.name(name), self.dtype, &self.device)
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}
