//! The dense layer, with what may follow it.

use super::kernel::int8::{self, Activations, Quantised};
use super::kernel::memory::filled;
use super::kernel::micro::{Element, Kernel};
use super::kernel::pack::Rows;
use super::kernel::product::{self, Operand, RowEpilogue};
use super::kernel::{self, Job, MatmulType};
use super::matrix::{LowRank, Matrix};
#[cfg(feature = "cuda")]
use super::path::RowPath;
use super::path::{Input, ProductPath};
use super::read::{Lines, Read, is_lines, lines};
use super::table::Table;
use super::vars::Vars;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// y = x Wᵀ + b, with W in the type it is stored in.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
    loras: Vec<Lora>,
}

/// A low-rank product that is added to a layer's own: scale up(down(x)).
#[derive(Clone, Debug)]
pub struct Lora {
    /// (rank, in)
    pub down: Linear,
    /// (out, rank)
    pub up: Linear,
    pub scale: f64,
}

impl From<LowRank> for Lora {
    fn from(LowRank { down, up, scale }: LowRank) -> Self {
        Self { down: Linear::new(down, None), up: Linear::new(up, None), scale }
    }
}

/// What happens to a layer's result on its way out, in this order.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// GELU by the tanh formula.
    pub gelu: bool,
    /// Multiplied: a row for all tokens, or one each.
    pub gate: Option<&'a Table>,
    /// Multiplied, element by element.
    pub factor: Option<&'a Tensor>,
    /// Added, element by element.
    pub residual: Option<&'a Tensor>,
    /// The result is only multiplied by other weights of the same type, so it may be rounded to what they are multiplied in.
    pub narrow: bool,
}

impl Linear {
    /// - `weight`: (out, in). `bias`: (out).
    pub fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias, loras: vec![] }
    }

    /// - `vb` holds `weight` (outputs, inputs) and, if `bias`, `bias` (outputs); and it knows what LoRAs add.
    pub fn load(inputs: usize, outputs: usize, bias: bool, vb: Vars) -> Result<Self> {
        let bias = if bias { Some(vb.get(outputs, "bias")?) } else { None };
        let weight = vb.matrix(outputs, inputs, "weight")?;
        let loras = vb.loras(weight.math())?.into_iter().map(Lora::from).collect();
        Ok(Self { weight, bias, loras })
    }

    /// The same layer, multiplied in f32 on a CPU whatever its weights are kept in: for the few layers that cost no time and
    /// through which everything passes.
    pub fn in_f32(self) -> Self {
        Self { weight: self.weight.in_f32(), ..self }
    }

    /// The same layer, its weights repacked into the panels that products read; for layers kept in memory.
    pub fn prepack(self) -> Self {
        Self { weight: self.weight.prepack(), ..self }
    }

    /// The same layer with these added to it.
    pub fn with(self, loras: Vec<Lora>) -> Self {
        Self { loras, ..self }
    }

    /// What LoRAs add: (..., in) -> (..., out).
    fn added(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let mut sum: Option<Tensor> = None;
        for Lora { down, up, scale } in &self.loras {
            let low = (down.forward(x)? * *scale)?; // (..., rank)
            sum = Some(up.forward_then(&low, Epilogue { residual: sum.as_ref(), ..Epilogue::default() })?);
        }
        Ok(sum)
    }

    /// Whether gradients are wanted of its weights.
    pub fn track_op(&self) -> bool {
        self.weight.track_op()
    }

    /// In what a CPU computes it.
    pub fn math(&self) -> MatmulType {
        self.weight.math()
    }

    /// How it is computed from `x`.
    pub fn path(&self, x: &Tensor) -> ProductPath {
        self.weight.path(Input::of(x, &self.bias))
    }

    /// - `x`: (..., in) -> (..., out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_then(x, Epilogue::default())
    }

    /// - `x`: (..., in) -> (..., out), f32 on a CPU unless it may be narrow.
    pub fn forward_then(&self, x: &Tensor, then: Epilogue) -> Result<Tensor> {
        let tracked = [then.factor, then.residual, self.bias.as_ref(), then.gate.map(|gate| &gate.rows)];
        let input = Input::of(x, tracked.into_iter().flatten());
        if self.weight.path(input) == ProductPath::Candle {
            return self.plain(x, then);
        }
        let x = if is_lines(x) { x.clone() } else { x.contiguous()? };
        let added = self.added(&x)?;
        let rows = x.elem_count() / self.weight.inputs.max(1);
        let same = |t: Option<&Tensor>| t.map(Tensor::contiguous).transpose();
        let op = Dense {
            layer: self,
            added: same(added.as_ref())?,
            gelu: then.gelu,
            gate: then.gate,
            factor: same(then.factor)?,
            residual: same(then.residual)?,
            narrow: then.narrow,
            rows,
        };
        let y = x.apply_op1_no_bwd(&op)?;
        // rows may have been set apart
        y.narrow(y.rank() - 1, 0, self.weight.outputs)
    }

    /// The plain form.
    fn plain(&self, x: &Tensor, then: Epilogue) -> Result<Tensor> {
        // Half-precision weights are widened here and not at load: it halves the memory and rounds nothing.
        let weight = self.weight.tensor()?.to_dtype(x.dtype())?;
        let mut shape = x.dims().to_vec();
        let inputs = shape.pop().unwrap_or(1);
        shape.push(weight.dim(0)?);
        let mut y = x.reshape(((), inputs))?.matmul(&weight.t()?)?.reshape(shape)?;
        let added = self.added(x)?;
        #[cfg(feature = "cuda")]
        {
            let others = [self.bias.as_ref(), added.as_ref(), then.factor, then.residual, then.gate.map(|g| &g.rows)];
            let follows = then.gelu || others.iter().any(Option::is_some);
            if Input::of(&y, others.into_iter().flatten()).rows(y.elem_count()) == RowPath::Cuda {
                let Epilogue { gelu, gate, factor, residual, narrow: _ } = then;
                let (bias, added) = (self.bias.as_ref(), added.as_ref());
                let how = super::cuda::Epilogue { bias, added, gelu, gate, factor, residual };
                return if follows { super::cuda::finish(&y, how) } else { Ok(y) };
            }
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        if let Some(added) = added {
            y = (y + added)?;
        }
        if then.gelu {
            y = y.gelu()?;
        }
        if let Some(gate) = then.gate {
            y = y.broadcast_mul(&gate.each()?)?;
        }
        if let Some(factor) = then.factor {
            y = (y * factor)?;
        }
        match then.residual {
            Some(residual) => y + residual,
            None => Ok(y),
        }
    }
}

/// The CPU form.
struct Dense<'a> {
    layer: &'a Linear,
    /// Before all else that follows the product.
    added: Option<Tensor>,
    gelu: bool,
    gate: Option<&'a Table>,
    factor: Option<Tensor>,
    residual: Option<Tensor>,
    narrow: bool,
    rows: usize,
}

impl CustomOp1 for Dense<'_> {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((x, stride)) = lines(storage, layout) else { bail!("dense: expected rows of f32 or bf16") };
        let Matrix { outputs, inputs, .. } = self.layer.weight;
        let mut dims = layout.dims().to_vec();
        if dims.pop() != Some(inputs) {
            bail!("dense: {:?} for {inputs} inputs", layout.dims())
        }
        let half = self.narrow && kernel::is_half(self.layer.math());
        let row_stride = if half { kernel::row_stride(outputs, 2) } else { outputs };
        let bias = self.layer.bias.as_ref().map(Read::new).transpose()?;
        let gate = self.gate.map(|gate| gate.read()).transpose()?;
        let added = self.added.as_ref().map(Read::new).transpose()?;
        let factor = self.factor.as_ref().map(Read::new).transpose()?;
        let residual = self.residual.as_ref().map(Read::new).transpose()?;
        let whole = |read: &Option<Read>| match read {
            Some(read) if read.slice::<f32>()?.len() != self.rows * outputs => bail!("dense: sizes do not match"),
            _ => Ok(()),
        };
        whole(&added)?;
        whole(&factor)?;
        whole(&residual)?;
        let finish = RowEpilogue {
            bias: bias.as_ref().map(|r| r.slice()).transpose()?,
            added: added.as_ref().map(|r| r.slice()).transpose()?,
            gelu: self.gelu,
            gate: gate.as_ref().map(|gate| gate.gate(outputs, self.rows)).transpose()?,
            factor: factor.as_ref().map(|r| r.slice()).transpose()?,
            residual: residual.as_ref().map(|r| r.slice()).transpose()?,
        };
        let math = self.layer.math();
        let y = match self.layer.weight.quantised() {
            Some(weights) => {
                Run { x, stride, rows: self.rows, inputs, weights, outputs, finish, half, row_stride }.int8_dot()
            }
            None => self.layer.weight.rows(|weights| {
                let run = Run { x, stride, rows: self.rows, inputs, weights, outputs, finish, half, row_stride };
                kernel::dispatch(math, run)
            })?,
        };
        dims.push(row_stride);
        Ok((y, Shape::from(dims)))
    }
}

#[derive(Clone, Copy)]
struct Run<'a, W> {
    x: Lines<'a>,
    stride: usize,
    rows: usize,
    inputs: usize,
    weights: W,
    outputs: usize,
    finish: RowEpilogue<'a>,
    half: bool,
    row_stride: usize,
}

impl Run<'_, Quantised<'_>> {
    /// Int8 dot products.
    fn int8_dot(self) -> CpuStorage {
        let count = self.rows * self.row_stride;
        // SAFETY: a product writes all of its result.
        unsafe {
            match self.half {
                true => CpuStorage::BF16(filled(count, |y| self.int8_rows(y))),
                false => CpuStorage::F32(filled(count, |y| self.int8_rows(y))),
            }
        }
    }

    fn int8_rows<T: Element>(self, y: &mut [MaybeUninit<T>]) {
        let Self { stride, rows, inputs: k, weights, outputs, finish, row_stride, .. } = self;
        match self.x {
            Lines::F32(x) => {
                int8::product(&Activations { x, stride, rows, k }, weights, outputs, finish, y, row_stride)
            }
            Lines::Bf16(x) => {
                int8::product(&Activations { x, stride, rows, k }, weights, outputs, finish, y, row_stride)
            }
        }
    }
}

impl Job for Run<'_, Rows<'_>> {
    type Done = CpuStorage;

    fn run<K: Kernel>(self) -> CpuStorage {
        with_operand::<K, _>(self.x, self.stride, self.rows, self.inputs, |data, stride| {
            let operand = Operand::matrix(data, self.rows, self.inputs, stride);
            let (n, row_stride) = (self.outputs, self.row_stride);
            if self.half {
                let run =
                    |y: &mut [_]| product::product::<K, bf16>(&operand, self.weights, n, self.finish, y, row_stride);
                // SAFETY: a product writes all of its result.
                CpuStorage::BF16(unsafe { filled(self.rows * row_stride, run) })
            } else {
                let run =
                    |y: &mut [_]| product::product::<K, f32>(&operand, self.weights, n, self.finish, y, row_stride);
                // SAFETY: as above.
                CpuStorage::F32(unsafe { filled(self.rows * row_stride, run) })
            }
        })
    }
}

/// Rows in the kernel's type and at a good distance: where they lie if they are so already, else copied.
pub fn with_operand<K: Kernel, R>(
    x: Lines,
    stride: usize,
    rows: usize,
    width: usize,
    f: impl FnOnce(&[K::Elem], usize) -> R,
) -> R {
    let good = rows == 1 || kernel::row_stride(stride, size_of::<K::Elem>()) == stride;
    if good && let Some(data) = in_place::<K::Elem>(x) {
        return f(data, stride);
    }
    let row_stride = kernel::row_stride(width, size_of::<K::Elem>());
    let zero = MaybeUninit::new(K::Elem::default());
    let write = |copy: &mut [MaybeUninit<K::Elem>]| {
        copy.par_chunks_mut(row_stride.max(1)).with_min_len(16).enumerate().for_each(|(i, y)| {
            let (y, rest) = y.split_at_mut(width);
            match x {
                Lines::F32(x) => narrow::<K>(&x[i * stride..][..width], y),
                Lines::Bf16(x) => y.iter_mut().zip(&x[i * stride..][..width]).for_each(|(y, x)| {
                    y.write(K::Elem::from_bf16(*x));
                }),
            }
            rest.fill(zero);
        });
    };
    // SAFETY: every row is written, and what lies between.
    let copy = unsafe { filled(rows * row_stride, write) };
    f(&copy, row_stride)
}

/// f32 -> the kernel's type.
fn narrow<K: Kernel>(x: &[f32], y: &mut [MaybeUninit<K::Elem>]) {
    // SAFETY: K was chosen for this CPU.
    unsafe {
        K::vectorised(
            #[inline(always)]
            || kernel::rows::norm_act::<K::V, K::Elem>(&Default::default(), x, y),
        )
    }
}

/// The values as they lie, if they are of the kernel's type.
fn in_place<E: Element>(x: Lines<'_>) -> Option<&[E]> {
    // SAFETY: E is f32 or bf16, which is what `HALF` says.
    unsafe {
        match x {
            Lines::F32(x) if !E::HALF => Some(std::slice::from_raw_parts(x.as_ptr().cast(), x.len())),
            Lines::Bf16(x) if E::HALF => Some(std::slice::from_raw_parts(x.as_ptr().cast(), x.len())),
            _ => None,
        }
    }
}
