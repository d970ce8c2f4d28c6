//! Tensors of files as layers ask for them: in place where they may be, copied where not, quantised where that was asked for;
//! and a stand-in that only checks names and shapes.

use super::open::{Raw, Tensors, Type};
use super::{quantize, scaled};
use crate::nn::kernel::MatmulType;
use crate::nn::matrix::LowRank;
use crate::nn::matrix::{Kind, Matrix};
use crate::nn::vars::Source;
use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex};

pub(super) struct Reader {
    pub tensors: Tensors,
    /// What matrices are kept in; `None`: as they are stored.
    pub stored: Option<DType>,
    /// In what a CPU multiplies by blocks.
    pub blocks_in: MatmulType,
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
        let matrix = if quantize::dequantised(name) { matrix.dequantised() } else { matrix };
        matrix.to_device(device)
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

/// With so many faults the rest need not be looked at.
const MOST_FAULTS: usize = 100;

/// What is wrong with a tensor that a model's constructor asked for.
#[derive(Clone)]
pub(super) enum Fault {
    Missing { name: String },
    Shape { name: String, own: Vec<usize>, expected: Vec<usize> },
    Unread { name: String, dtype: Type },
}

impl Fault {
    /// The name and the type of a tensor of a type that reel does not read.
    pub fn unread(&self) -> Option<(&str, Type)> {
        if let Self::Unread { name, dtype } = self { Some((name, *dtype)) } else { None }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "the tensor `{name}` is missing"),
            Self::Shape { name, own, expected } => write!(f, "`{name}` has shape {own:?}, expected {expected:?}"),
            Self::Unread { name, dtype } => write!(f, "`{name}` has element type {dtype}"),
        }
    }
}

pub(super) struct Checker {
    pub tensors: Tensors,
    /// Names of all tensors that were asked for.
    pub asked: Arc<Mutex<Vec<String>>>,
    pub faults: Arc<Mutex<Vec<Fault>>>,
}

impl Source for Checker {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let name = || name.to_string();
        let fault = match self.tensors.entries.get(&name()) {
            None => Some(Fault::Missing { name: name() }),
            Some(e) if e.shape != shape.dims() => {
                Some(Fault::Shape { name: name(), own: e.shape.clone(), expected: shape.dims().to_vec() })
            }
            Some(e) if e.dtype.kind().is_none() => Some(Fault::Unread { name: name(), dtype: e.dtype }),
            Some(_) => None,
        };
        if let Ok(mut asked) = self.asked.lock() {
            asked.push(name());
        }
        if let (Some(fault), Ok(mut faults)) = (fault, self.faults.lock()) {
            faults.push(fault);
            if faults.len() == MOST_FAULTS {
                bail!("it is another model")
            }
        }
        // a stand-in: the right shape over one element
        Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.entries.contains_key(name)
    }
}

/// Whether a tensor is made of plain numbers.
pub(super) fn plain(dtype: Type) -> bool {
    matches!(dtype.kind(), Some(Kind::Plain(_)))
}
