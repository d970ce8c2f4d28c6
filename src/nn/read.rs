//! Tensors on the CPU as the slices that kernels work on.

use super::kernel::pack::Rows;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, bail};
use half::bf16;
use std::ops::Deref;

/// The values of a contiguous tensor, for as long as this lives.
pub struct Read<'a> {
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    range: (usize, usize),
}

impl<'a> Read<'a> {
    /// - Errors when the tensor is not on the CPU or not contiguous.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some(range) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
        Ok(Self { storage: Box::new(storage), range })
    }

    pub fn slice<T: WithDType>(&self) -> Result<&[T]> {
        let Storage::Cpu(storage) = &**self.storage else { bail!("expected a tensor on the CPU") };
        Ok(&storage.as_slice::<T>()?[self.range.0..self.range.1])
    }

    pub fn rows(&self) -> Result<Rows<'_>> {
        let Storage::Cpu(storage) = &**self.storage else { bail!("expected a tensor on the CPU") };
        let (start, end) = self.range;
        Ok(match storage {
            CpuStorage::F32(x) => Rows::F32(&x[start..end]),
            CpuStorage::BF16(x) => Rows::Bf16(&x[start..end]),
            CpuStorage::F16(x) => Rows::F16(&x[start..end]),
            other => bail!("expected f32, bf16 or f16, got {:?}", other.dtype()),
        })
    }
}

/// A tensor's rows (its last axis), where they lie: from the first value on, `stride` apart.
#[derive(Clone, Copy)]
pub enum Lines<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// The rows of f32 or bf16 values that `layout` describes, and the elements from row to row; `None` where they do not lie at
/// one distance.
pub fn lines<'a>(storage: &'a CpuStorage, layout: &Layout) -> Option<(Lines<'a>, usize)> {
    let stride = even_stride(layout)?;
    let start = layout.start_offset();
    Some(match storage {
        CpuStorage::F32(x) => (Lines::F32(&x[start..]), stride),
        CpuStorage::BF16(x) => (Lines::Bf16(&x[start..]), stride),
        _ => return None,
    })
}

/// Elements from row to row, where all rows lie at one distance and their values side by side.
fn even_stride(layout: &Layout) -> Option<usize> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let (&width, outer) = dims.split_last()?;
    if width > 1 && strides[outer.len()] != 1 {
        return None;
    }
    let mut axes = outer.iter().zip(strides).filter(|(dim, _)| **dim != 1).rev();
    let Some((mut count, &first)) = axes.next().map(|(dim, stride)| (*dim, stride)) else { return Some(width) };
    for (dim, stride) in axes {
        if *stride != first * count {
            return None;
        }
        count *= dim;
    }
    Some(first)
}

/// Whether the CPU's own row loops can read it.
pub fn is_lines(x: &Tensor) -> bool {
    matches!(x.dtype(), DType::F32 | DType::BF16) && even_stride(x.layout()).is_some()
}
