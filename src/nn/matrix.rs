//! The factor of a product that belongs to the model, wherever it lies.

use super::kernel::{Math, pack::Rows};
use super::read::Read;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::Arc;

/// Numbers of a mapped file, little-endian and row-major.
pub trait Mapped: Send + Sync {
    fn bytes(&self) -> &[u8];
    /// f32, bf16 or f16.
    fn dtype(&self) -> DType;
}

#[derive(Clone)]
enum Data {
    Tensor(Tensor),
    Mapped(Arc<dyn Mapped>),
}

/// A matrix (outputs, inputs): on a CPU used in the type it is stored in, and, from a mapped file, where it lies.
#[derive(Clone)]
pub struct Matrix {
    data: Data,
    pub outputs: usize,
    pub inputs: usize,
}

impl Matrix {
    /// - `tensor`: (outputs, inputs).
    pub fn new(tensor: Tensor) -> Self {
        let (outputs, inputs) = tensor.dims2().unwrap_or((0, 0));
        Self { data: Data::Tensor(tensor), outputs, inputs }
    }

    pub fn mapped(mapped: Arc<dyn Mapped>, outputs: usize, inputs: usize) -> Self {
        Self { data: Data::Mapped(mapped), outputs, inputs }
    }

    pub fn dtype(&self) -> DType {
        match &self.data {
            Data::Tensor(tensor) => tensor.dtype(),
            Data::Mapped(mapped) => mapped.dtype(),
        }
    }

    /// In what a CPU multiplies by it.
    pub fn math(&self) -> Math {
        if self.dtype() == DType::BF16 { Math::Bf16 } else { Math::F32 }
    }

    /// Whether the CPU's own products can read it.
    pub fn is_fast(&self) -> bool {
        let known = matches!(self.dtype(), DType::F32 | DType::BF16 | DType::F16);
        match &self.data {
            Data::Tensor(tensor) => known && tensor.device().is_cpu() && !tensor.track_op() && tensor.is_contiguous(),
            Data::Mapped(_) => known,
        }
    }

    /// As a tensor: (outputs, inputs), in the type it is stored in.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.data {
            Data::Tensor(tensor) => Ok(tensor.clone()),
            Data::Mapped(mapped) => {
                Tensor::from_raw_buffer(mapped.bytes(), mapped.dtype(), &[self.outputs, self.inputs], &Device::Cpu)
            }
        }
    }

    /// Its rows, for the time of `f`.
    pub fn rows<R>(&self, f: impl FnOnce(Rows) -> R) -> Result<R> {
        match &self.data {
            Data::Tensor(tensor) => {
                let read = Read::new(tensor)?;
                Ok(f(read.rows()?))
            }
            Data::Mapped(mapped) => match mapped.dtype() {
                DType::F32 => Ok(f(Rows::F32(numbers(mapped.bytes())?))),
                DType::BF16 => Ok(f(Rows::Bf16(numbers(mapped.bytes())?))),
                DType::F16 => Ok(f(Rows::F16(numbers(mapped.bytes())?))),
                dtype => bail!("a mapped matrix of {dtype:?}"),
            },
        }
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Matrix({} x {}, {:?})", self.outputs, self.inputs, self.dtype())
    }
}

/// Types that are nothing but bits of a number.
trait Number {}
impl Number for f32 {}
impl Number for half::bf16 {}
impl Number for half::f16 {}

/// The numbers that `bytes` are, if they lie as such numbers have to.
fn aligned<T: Number>(bytes: &[u8]) -> Option<&[T]> {
    // SAFETY: every pattern of bits is a number of these types.
    let (before, numbers, after) = unsafe { bytes.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(numbers)
}

fn numbers<T: Number>(bytes: &[u8]) -> Result<&[T]> {
    match aligned(bytes) {
        Some(numbers) => Ok(numbers),
        None => bail!("a mapped matrix that lies askew"),
    }
}

/// Whether a matrix of this type may be used where its bytes lie.
pub fn usable(bytes: &[u8], dtype: DType) -> bool {
    cfg!(target_endian = "little")
        && match dtype {
            DType::F32 => aligned::<f32>(bytes).is_some(),
            DType::BF16 => aligned::<half::bf16>(bytes).is_some(),
            DType::F16 => aligned::<half::f16>(bytes).is_some(),
            _ => false,
        }
}
