//! One tensor of a file: its type, its place, and the bytes there.

use crate::nn::kernel::blocks::QuantType;
use crate::nn::matrix::{Kind, Mapped, usable};
use crate::platform::mapped::MappedFile;
use candle_core::DType;
use safetensors::tensor::Dtype;
use std::sync::Arc;

/// Bytes of a whole file.
pub(super) enum Bytes {
    Mapped(MappedFile),
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Lets the pages of a range go that has been copied; a later look reads them from the file again.
    fn forget(&self, range: (usize, usize)) {
        if let Bytes::Mapped(map) = self {
            map.forget(range);
        }
    }
}

/// What a tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Plain(Dtype),
    QuantType(QuantType),
}

impl Type {
    /// What products and layers can use; `None` for integers and the like.
    pub fn kind(self) -> Option<Kind> {
        Some(Kind::Plain(match self {
            Type::QuantType(kind) => return Some(Kind::QuantType(kind)),
            Type::Plain(Dtype::F64) => DType::F64,
            Type::Plain(Dtype::F32) => DType::F32,
            Type::Plain(Dtype::F16) => DType::F16,
            Type::Plain(Dtype::BF16) => DType::BF16,
            Type::Plain(Dtype::F8_E4M3) => DType::F8E4M3,
            Type::Plain(_) => return None,
        }))
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Type::Plain(dtype) => write!(f, "{dtype:?}"),
            Type::QuantType(kind) => f.write_str(kind.name()),
        }
    }
}

/// A tensor as a file's header places it.
pub(super) struct Placed {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: (usize, usize),
}

#[derive(Clone)]
pub(super) struct Entry {
    pub file: Arc<Bytes>,
    pub dtype: Type,
    pub shape: Vec<usize>,
    /// What its numbers are multiplied by when they are read: one factor, or one for each row.
    pub scales: Option<Arc<[f32]>>,
    /// Bytes in the file.
    pub range: (usize, usize),
}

/// A tensor as it lies in its file: little-endian, row-major.
pub struct Raw<'a> {
    pub dtype: Type,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
    /// What its numbers have to be multiplied by: one factor, or one for each row.
    pub scales: Option<&'a [f32]>,
}

impl Entry {
    /// Whether it is part of the program.
    pub fn is_built_in(&self) -> bool {
        matches!(*self.file, Bytes::Embedded(_))
    }

    pub fn raw(&self) -> Raw<'_> {
        let bytes = &self.file[self.range.0..self.range.1];
        Raw { dtype: self.dtype, shape: &self.shape, bytes, scales: self.scales.as_deref() }
    }

    /// Bytes that it takes in the file.
    pub fn size(&self) -> usize {
        self.range.1 - self.range.0
    }

    /// Lets its pages go; a later look reads them from the file again.
    pub fn forget(&self) {
        self.file.forget(self.range);
    }

    /// Itself, to be used where it lies; `None` where it is misaligned for its element type, or has to be multiplied by scales first.
    pub fn in_place(&self) -> Option<Arc<dyn Mapped>> {
        let kind = self.dtype.kind().filter(|_| self.scales.is_none())?;
        usable(self.raw().bytes, kind).then(|| Arc::new(InPlace { entry: self.clone(), kind }) as Arc<dyn Mapped>)
    }
}

/// A tensor that is used where it lies; its pages may go when nobody uses it any more.
struct InPlace {
    entry: Entry,
    kind: Kind,
}

impl Mapped for InPlace {
    fn bytes(&self) -> &[u8] {
        self.entry.raw().bytes
    }

    fn kind(&self) -> Kind {
        self.kind
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.entry.forget();
    }
}
