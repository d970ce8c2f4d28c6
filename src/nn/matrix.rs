//! The factor of a product that belongs to the model, wherever it lies.

use super::kernel::blocks::QuantType;
use super::kernel::int8::{self, Panels, Quantised};
use super::kernel::{MatmulType, pack::Rows};
use super::path::{Input, Product, ProductPath, math};
use super::read::Read;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::borrow::Cow;
use std::sync::Arc;

/// What a matrix is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain(DType),
    /// Rows of whole blocks.
    QuantType(QuantType),
}

impl Kind {
    /// Bytes that so many values take.
    pub fn size(self, values: usize) -> usize {
        match self {
            Kind::Plain(dtype) => values * dtype.size_in_bytes(),
            Kind::QuantType(kind) => kind.size(values),
        }
    }
}

/// Numbers that lie somewhere, such as in a mapped file: little-endian and row-major.
pub trait Mapped: Send + Sync {
    fn bytes(&self) -> &[u8];
    /// f32, bf16, f16 or blocks.
    fn kind(&self) -> Kind;
}

/// Blocks that were made here.
struct Made {
    bytes: Vec<u8>,
    kind: QuantType,
}

impl Mapped for Made {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn kind(&self) -> Kind {
        Kind::QuantType(self.kind)
    }
}

#[derive(Clone)]
enum Data {
    Tensor(Tensor),
    Mapped(Arc<dyn Mapped>),
    /// Blocks, repacked into panels for int8 dot products.
    Prepacked(Arc<Panels>),
    /// Blocks on a GPU.
    Device(Arc<QTensor>),
}

/// A matrix (outputs, inputs): on a CPU used in the type it is stored in, and, from a mapped file, where it lies.
#[derive(Clone)]
pub struct Matrix {
    data: Data,
    math: MatmulType,
    int8: bool,
    pub outputs: usize,
    pub inputs: usize,
}

/// Two factors whose product is added to a layer's own: scale up(down(x)).
#[derive(Clone, Debug)]
pub struct LowRank {
    /// (rank, in)
    pub down: Matrix,
    /// (out, rank)
    pub up: Matrix,
    pub scale: f64,
}

impl Matrix {
    /// - `tensor`: (outputs, inputs).
    pub fn new(tensor: Tensor) -> Self {
        let (outputs, inputs) = tensor.dims2().unwrap_or((0, 0));
        Self { math: math(tensor.dtype()), int8: false, data: Data::Tensor(tensor), outputs, inputs }
    }

    /// - `blocks_in`: in what a CPU multiplies by blocks; numbers are multiplied in their own type.
    pub fn mapped(mapped: Arc<dyn Mapped>, outputs: usize, inputs: usize, blocks_in: MatmulType) -> Self {
        let math = match mapped.kind() {
            Kind::Plain(dtype) => math(dtype),
            Kind::QuantType(_) => blocks_in,
        };
        Self { data: Data::Mapped(mapped), math, int8: math == MatmulType::Bf16, outputs, inputs }
    }

    /// Whether gradients are wanted of it.
    pub fn track_op(&self) -> bool {
        matches!(&self.data, Data::Tensor(tensor) if tensor.track_op())
    }

    /// The same matrix, whose blocks are dequantised to be multiplied, never by int8 dot products.
    pub fn dequantised(self) -> Self {
        Self { int8: false, ..self }
    }

    /// The same matrix, multiplied in f32 on a CPU whatever it is kept in.
    pub fn in_f32(self) -> Self {
        Self { math: MatmulType::F32, int8: false, ..self }
    }

    /// Blocks that were made here, `outputs` rows of them; see [`Matrix::mapped`].
    pub fn made(kind: QuantType, bytes: Vec<u8>, outputs: usize, inputs: usize, blocks_in: MatmulType) -> Self {
        Self::mapped(Arc::new(Made { bytes, kind }), outputs, inputs, blocks_in)
    }

    /// The same matrix, repacked into the panels that products read, where there are such: once, in as much memory.
    pub fn prepack(self) -> Self {
        let panels = |weights| Panels::of(weights, self.outputs, self.inputs / int8::BLOCK);
        match self.quantised().and_then(panels) {
            Some(panels) => Self { data: Data::Prepacked(Arc::new(panels)), ..self },
            None => self,
        }
    }

    /// The same matrix as it was before, for what reads rows.
    fn unpacked(&self, panels: &Panels) -> Self {
        let bytes = panels.rows(self.inputs / int8::BLOCK);
        Self::made(panels.weights().kind, bytes, self.outputs, self.inputs, self.math)
    }

    /// Its blocks, if a CPU multiplies by it by int8 dot products.
    pub fn quantised(&self) -> Option<Quantised<'_>> {
        match (&self.data, self.kind()) {
            _ if self.path(Input::CPU) != ProductPath::Int8 => None,
            (Data::Mapped(mapped), Kind::QuantType(kind)) => {
                Some(Quantised { kind, bytes: mapped.bytes(), prepacked: false })
            }
            (Data::Prepacked(panels), _) => Some(panels.weights()),
            _ => None,
        }
    }

    /// Takes blocks to a GPU, where they stay blocks; anything else stays where it is.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        let Data::Mapped(mapped) = &self.data else { return Ok(self) };
        if device.is_cpu() {
            return Ok(self);
        }
        let Kind::QuantType(kind) = mapped.kind() else { return Ok(self) };
        let storage = QStorage::from_data(Cow::Borrowed(mapped.bytes()), device, ggml(kind))?;
        let blocks = QTensor::new(storage, (self.outputs, self.inputs))?;
        Ok(Self { data: Data::Device(Arc::new(blocks)), ..self })
    }

    /// What it is kept as; on a GPU what its blocks become when they are used.
    pub fn kind(&self) -> Kind {
        match &self.data {
            Data::Tensor(tensor) => Kind::Plain(tensor.dtype()),
            Data::Mapped(mapped) => mapped.kind(),
            Data::Prepacked(panels) => Kind::QuantType(panels.weights().kind),
            Data::Device(_) => Kind::Plain(DType::F32),
        }
    }

    /// In what a CPU multiplies by it.
    pub fn math(&self) -> MatmulType {
        self.math
    }

    /// The path of a product by it.
    /// - `input`: the activations and all else that gradients may be wanted of.
    pub fn path(&self, input: Input) -> ProductPath {
        let blocks = match self.kind() {
            Kind::QuantType(kind) => Some(kind),
            Kind::Plain(_) => None,
        };
        let product = Product { math: self.math, blocks, int8: self.int8 };
        input.or_plain(self.is_plain()).product(product, self.inputs)
    }

    /// Whether no kernel reads it, or gradients are wanted of it.
    pub fn is_plain(&self) -> bool {
        let known = match self.kind() {
            Kind::Plain(dtype) => matches!(dtype, DType::F32 | DType::BF16 | DType::F16),
            Kind::QuantType(_) => true,
        };
        match &self.data {
            Data::Tensor(tensor) => !known || tensor.track_op() || !tensor.is_contiguous(),
            Data::Mapped(_) | Data::Prepacked(_) => !known,
            Data::Device(_) => true,
        }
    }

    /// As a tensor: (outputs, inputs), in the type it is stored in; blocks as f32.
    pub fn tensor(&self) -> Result<Tensor> {
        let shape = (self.outputs, self.inputs);
        match &self.data {
            Data::Tensor(tensor) => Ok(tensor.clone()),
            Data::Device(blocks) => blocks.dequantize(&blocks.device()),
            Data::Prepacked(panels) => self.unpacked(panels).tensor(),
            Data::Mapped(mapped) => match mapped.kind() {
                Kind::Plain(dtype) => Tensor::from_raw_buffer(mapped.bytes(), dtype, &[shape.0, shape.1], &Device::Cpu),
                Kind::QuantType(kind) => {
                    let mut values = vec![0f32; self.outputs * self.inputs];
                    kind.decode(mapped.bytes(), 0, &mut values);
                    Tensor::from_vec(values, shape, &Device::Cpu)
                }
            },
        }
    }

    /// The rows that `ids` name: (ids, inputs), on `device`; nothing else is read.
    pub fn pick(&self, ids: &[u32], dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.outputs) {
            bail!("there is no row {id} of {}", self.outputs)
        }
        match &self.data {
            Data::Mapped(mapped) => {
                let size = mapped.kind().size(self.inputs);
                let row = |id: &u32| &mapped.bytes()[*id as usize * size..][..size];
                let bytes = ids.iter().flat_map(row).copied().collect::<Vec<u8>>();
                let rows = match mapped.kind() {
                    Kind::Plain(dtype) => {
                        Tensor::from_raw_buffer(&bytes, dtype, &[ids.len(), self.inputs], &Device::Cpu)?
                    }
                    Kind::QuantType(kind) => {
                        Self::made(kind, bytes, ids.len(), self.inputs, MatmulType::F32).tensor()?
                    }
                };
                rows.to_dtype(dtype)?.to_device(device)
            }
            _ => {
                let all = self.tensor()?;
                all.index_select(&Tensor::new(ids, all.device())?, 0)?.to_dtype(dtype)
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
            Data::Mapped(mapped) => Ok(f(rows(mapped.bytes(), mapped.kind())?)),
            Data::Prepacked(panels) => self.unpacked(panels).rows(f),
            Data::Device(_) => bail!("the rows of a matrix that is on a GPU"),
        }
    }
}

/// Bytes as the rows that they are.
/// - Errors when they lie askew.
pub fn rows(bytes: &[u8], kind: Kind) -> Result<Rows<'_>> {
    Ok(match kind {
        Kind::Plain(DType::F32) => Rows::F32(numbers(bytes)?),
        Kind::Plain(DType::BF16) => Rows::Bf16(numbers(bytes)?),
        Kind::Plain(DType::F16) => Rows::F16(numbers(bytes)?),
        Kind::Plain(dtype) => bail!("a mapped matrix of {dtype:?}"),
        Kind::QuantType(kind) => Rows::QuantType { kind, bytes },
    })
}

/// candle's name of a block format.
pub(super) fn ggml(kind: QuantType) -> GgmlDType {
    match kind {
        QuantType::Q4_0 => GgmlDType::Q4_0,
        QuantType::Q4_1 => GgmlDType::Q4_1,
        QuantType::Q5_0 => GgmlDType::Q5_0,
        QuantType::Q5_1 => GgmlDType::Q5_1,
        QuantType::Q8_0 => GgmlDType::Q8_0,
        QuantType::Q2K => GgmlDType::Q2K,
        QuantType::Q3K => GgmlDType::Q3K,
        QuantType::Q4K => GgmlDType::Q4K,
        QuantType::Q5K => GgmlDType::Q5K,
        QuantType::Q6K => GgmlDType::Q6K,
        QuantType::Q8K => GgmlDType::Q8K,
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Matrix({} x {}, {:?})", self.outputs, self.inputs, self.kind())
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
        None => bail!("a mapped matrix that is misaligned for its element type"),
    }
}

/// Whether a matrix of this kind may be used where its bytes lie.
pub fn usable(bytes: &[u8], kind: Kind) -> bool {
    cfg!(target_endian = "little") && rows(bytes, kind).is_ok()
}
