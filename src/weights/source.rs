//! Tensors of files as layers ask for them: in place where they may be, copied where not, quantised where that was asked for.

use super::entry::{Entry, Raw, Type};
use super::open::{SMALL, Tensors};
use super::{quantize, scaled};
use crate::nn::kernel::MatmulType;
use crate::nn::matrix::LowRank;
use crate::nn::matrix::{Kind, Matrix};
use crate::nn::vars::{Source, Vars};
use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use safetensors::tensor::Dtype;

impl Tensors {
    /// Tensors for a model's constructor.
    /// - `stored`: element type that matrices are kept in; `None` keeps the file's, or `compute` where the model is small,
    ///   which saves widening them at each use and changes no number. Vectors and scalars always take `compute`; blocks
    ///   stay blocks.
    pub fn load(&self, stored: Option<DType>, compute: DType, device: &Device) -> Vars {
        let widened = stored.or((self.elements() <= SMALL).then_some(compute));
        let reader = Reader { tensors: self.clone(), stored: widened, blocks_in: blocks_in(stored) };
        Vars::new(reader, compute, device.clone())
    }

    /// In what a CPU multiplies most of them, kept as [`Tensors::load`] keeps them.
    pub fn math(&self, stored: Option<DType>) -> MatmulType {
        let bytes = |wanted: fn(Type) -> bool| {
            self.entries.values().filter(|e| wanted(scaled::read_type(e))).map(Entry::size).sum::<usize>()
        };
        let blocks = bytes(|dtype| matches!(dtype, Type::QuantType(_))) > 0 || self.quantize.is_some();
        let mostly_half = bytes(|dtype| dtype == Type::Plain(Dtype::BF16)) * 2 > self.size() && self.elements() > SMALL;
        match stored {
            Some(DType::BF16) => MatmulType::Bf16,
            stored if blocks => blocks_in(stored),
            None if mostly_half => MatmulType::Bf16,
            _ => MatmulType::F32,
        }
    }
}

/// In what a CPU multiplies by blocks, where matrices are to be kept in `stored`: in bf16, unless f32 was asked for. Rounding
/// what was read out of blocks to bf16 once more is little beside what was lost when they were made (relative error of
/// sums of 2048 products of normal values with Q8_0: 0.53 % in f32, 0.58 % in bf16; with Q4_K 7.18 % in either; with bf16 alone
/// 0.24 %).
fn blocks_in(stored: Option<DType>) -> MatmulType {
    if stored == Some(DType::F32) { MatmulType::F32 } else { MatmulType::Bf16 }
}

struct Reader {
    tensors: Tensors,
    /// What matrices are kept in; `None`: as they are stored.
    stored: Option<DType>,
    /// In what a CPU multiplies by blocks.
    blocks_in: MatmulType,
}

impl Reader {
    /// The type that a tensor is kept in.
    fn kept(&self, shape: &[usize], own: DType, dtype: DType) -> DType {
        if shape.len() < 2 { dtype } else { self.stored.unwrap_or(own) }
    }
}

impl Reader {
    /// A bias with what LoRAs add to it; any other tensor as it is.
    fn with_loras(&self, name: &str, tensor: Tensor) -> Result<Tensor> {
        let Some(layer) = name.strip_suffix(".bias") else { return Ok(tensor) };
        self.tensors.loras.iter().try_fold(tensor, |bias, lora| {
            let added = lora.bias(layer, bias.dtype(), bias.device())?;
            added.map_or(Ok(bias.clone()), |added| bias + added)
        })
    }

    /// A matrix that may be blocks.
    fn finished(&self, name: &str, matrix: Matrix, device: &Device) -> Result<Matrix> {
        let dequantised = self.tensors.rules.is_some_and(|rules| rules.dequantised(name));
        (if dequantised { matrix.dequantised() } else { matrix }).to_device(device)
    }
}

impl Source for Reader {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.tensors.entries.get(name) else {
            bail!("{}: there is no tensor `{name}`", self.tensors.what())
        };
        let raw = entry.raw();
        let Raw { dtype: stored, shape: own_shape, bytes, .. } = raw;
        if own_shape != shape.dims() {
            bail!("{}: `{name}` has shape {own_shape:?}, expected {shape:?}", self.tensors.what())
        }
        let tensor = match stored.kind() {
            None => bail!("{}: `{name}` has element type {stored}", self.tensors.what()),
            Some(Kind::Plain(_)) if raw.scales.is_some() => {
                scaled::tensor(&raw, self.kept(own_shape, DType::BF16, dtype))?.to_device(device)
            }
            Some(Kind::Plain(own)) => {
                Tensor::from_raw_buffer(bytes, own, own_shape, device)?.to_dtype(self.kept(own_shape, own, dtype))
            }
            // a table or the like: what is large is asked for as a matrix
            Some(Kind::QuantType(kind)) => {
                let mut values = vec![0f32; shape.elem_count()];
                kind.decode(bytes, 0, &mut values);
                Tensor::from_vec(values, shape.clone(), device)?.to_dtype(dtype)
            }
        };
        entry.forget();
        self.with_loras(name, tensor?)
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.entries.contains_key(name)
    }

    fn matrix(&self, outputs: usize, inputs: usize, name: &str, dtype: DType, device: &Device) -> Result<Matrix> {
        let shape = Shape::from((outputs, inputs));
        let plain = || self.get(&shape, name, dtype, device).map(Matrix::new);
        let Some(entry) = self.tensors.entries.get(name).filter(|entry| entry.shape == shape.dims()) else {
            return plain(); // which says what is wrong
        };
        if let Some(kind) = self.tensors.becomes(name, entry) {
            let bytes = quantize::blocks(kind, &entry.raw())?;
            entry.forget();
            return self.finished(name, Matrix::made(kind, bytes, outputs, inputs, self.blocks_in), device);
        }
        match entry.dtype.kind() {
            Some(Kind::Plain(own)) if !device.is_cpu() || self.kept(&entry.shape, own, dtype) != own => plain(),
            // rows that are not whole blocks cannot be read one by one
            Some(Kind::QuantType(kind)) if !inputs.is_multiple_of(kind.values()) => plain(),
            _ => match entry.in_place() {
                Some(mapped) => self.finished(name, Matrix::mapped(mapped, outputs, inputs, self.blocks_in), device),
                None => plain(),
            },
        }
    }

    fn loras(&self, layer: &str, math: MatmulType, dtype: DType, device: &Device) -> Result<Vec<LowRank>> {
        let found = self.tensors.loras.iter().map(|lora| lora.layer(layer, math, dtype, device));
        Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn table(&self, rows: usize, width: usize, name: &str, dtype: DType, device: &Device) -> Result<Matrix> {
        let entry = self.tensors.entries.get(name).filter(|entry| entry.shape == [rows, width]);
        let whole = |kind: Kind| !matches!(kind, Kind::QuantType(kind) if !width.is_multiple_of(kind.values()));
        match entry.filter(|entry| entry.dtype.kind().is_some_and(whole)).and_then(|entry| entry.in_place()) {
            Some(mapped) => Ok(Matrix::mapped(mapped, rows, width, self.blocks_in)),
            None => self.matrix(rows, width, name, dtype, device),
        }
    }
}
