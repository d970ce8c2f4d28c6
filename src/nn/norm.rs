//! RMS and layer norm over the last axis, with the shift, scale and activation that follow; the variance is taken in f32.

use super::kernel::memory::filled;
use super::kernel::micro::Kernel;
use super::kernel::rows::{self, Act, RowNormAct};
use super::kernel::{self, Job, MatmulType};
use super::path::{Input, RowPath};
use super::read::{Lines, is_lines, lines};
use super::table::{Table, TableRead};
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;

pub use super::kernel::rows::Norm;

/// A norm and what follows it, in this order: y = act(norm(x) scale + shift).
#[derive(Clone, Copy)]
pub struct NormAct<'a> {
    pub norm: Norm,
    /// Added to the mean square.
    pub eps: f64,
    pub scale: Option<&'a Table>,
    pub shift: Option<&'a Table>,
    pub silu: bool,
}

impl<'a> NormAct<'a> {
    pub fn new(norm: Norm, eps: f64) -> Self {
        Self { norm, eps, scale: None, shift: None, silu: false }
    }

    pub fn scale(self, scale: &'a Table) -> Self {
        Self { scale: Some(scale), ..self }
    }

    pub fn shift(self, shift: &'a Table) -> Self {
        Self { shift: Some(shift), ..self }
    }

    pub fn silu(self) -> Self {
        Self { silu: true, ..self }
    }

    /// What gradients may be wanted of.
    pub fn tables(&self) -> impl Iterator<Item = &'a Tensor> {
        [self.scale, self.shift].into_iter().flatten().map(|table| &table.rows)
    }

    /// - `x`: (..., d). `next`: in what products read the result; it may be rounded to that.
    pub fn forward(&self, x: &Tensor, next: MatmulType) -> Result<Tensor> {
        match Input::of(x, self.tables()).rows(x.elem_count()) {
            RowPath::Kernel => (),
            #[cfg(feature = "cuda")]
            RowPath::Cuda => return super::cuda::norm_act(x, self.row_ops()),
            _ => return self.plain(x),
        }
        let x = if is_lines(x) { x.clone() } else { x.contiguous()? };
        let y = x.apply_op1_no_bwd(&Forward { how: self, half: kernel::is_half(next) })?;
        y.narrow(y.rank() - 1, 0, x.dim(D::Minus1)?) // rows may have been set apart
    }

    /// As CUDA's kernels take it.
    #[cfg(feature = "cuda")]
    pub fn row_ops(&self) -> super::cuda::RowOps<'a> {
        let (norm, silu) = (Some((self.norm, self.eps)), self.silu);
        super::cuda::RowOps { norm, scale: self.scale, shift: self.shift, rope: None, silu }
    }

    /// The plain form.
    pub fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let mut wide = x.to_dtype(DType::F32)?; // squares overflow f16 and lose digits in bf16
        if self.norm == Norm::Layer {
            wide = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        }
        let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let mut y = wide.broadcast_div(&(square + self.eps)?.sqrt()?)?.to_dtype(x.dtype())?;
        let fit = |table: &Table| match table.index {
            Some(_) => table.each(),
            None => table.rows.get(0), // of any rank
        };
        if let Some(scale) = self.scale {
            y = y.broadcast_mul(&fit(scale)?)?;
        }
        if let Some(shift) = self.shift {
            y = y.broadcast_add(&fit(shift)?)?;
        }
        if self.silu { y.silu() } else { Ok(y) }
    }

    /// Its tables' values on the CPU.
    pub fn read(&self) -> Result<NormActRead<'a>> {
        let table = |table: Option<&'a Table>| table.map(Table::read).transpose();
        Ok(NormActRead {
            norm: (self.norm, self.eps as f32),
            silu: self.silu,
            scale: table(self.scale)?,
            shift: table(self.shift)?,
        })
    }
}

/// A [`NormAct`] as the row loops take it.
pub struct NormActRead<'a> {
    norm: (Norm, f32),
    silu: bool,
    scale: Option<TableRead<'a>>,
    shift: Option<TableRead<'a>>,
}

impl NormActRead<'_> {
    /// What happens to each of `rows` rows of `d`.
    pub fn rows<'b>(&'b self, d: usize, rows: usize) -> Result<impl Fn(usize) -> RowNormAct<'b> + Sync> {
        let scale = self.scale.as_ref().map(|t| t.gate(d, rows)).transpose()?;
        let shift = self.shift.as_ref().map(|t| t.gate(d, rows)).transpose()?;
        let (norm, act) = (Some(self.norm), self.silu.then_some(Act::Silu));
        Ok(move |row: usize| RowNormAct {
            norm,
            scale: scale.as_ref().map(|gate| gate.row(row)),
            shift: shift.as_ref().map(|gate| gate.row(row)),
            act,
        })
    }
}

/// Divides each row by its root mean square, then multiplies by `weight` (d) where there is one.
/// - `x`: (..., d). `eps` is added to the mean square.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let table = weight.map(Table::one).transpose()?;
    let norm_act = NormAct { scale: table.as_ref(), ..NormAct::new(Norm::Rms, eps) };
    norm_act.forward(x, MatmulType::F32)
}

/// The CPU form.
struct Forward<'a> {
    how: &'a NormAct<'a>,
    half: bool,
}

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((Lines::F32(x), from)) = lines(storage, layout) else { bail!("norm: expected rows of f32") };
        let mut dims = layout.dims().to_vec();
        let d = dims.pop().unwrap_or(1);
        let rows: usize = dims.iter().product();
        let read = self.how.read()?;
        let how = read.rows(d, rows)?;
        let bytes = if self.half { 2 } else { 4 };
        let row_stride = kernel::row_stride(d, bytes);
        dims.push(row_stride);
        let job = Run { x, from, d, rows, row_stride, half: self.half, how };
        Ok((kernel::dispatch(MatmulType::Bf16, job), Shape::from(dims)))
    }
}

struct Run<'a, F> {
    x: &'a [f32],
    from: usize,
    d: usize,
    rows: usize,
    row_stride: usize,
    half: bool,
    how: F,
}

impl<'b, F: Fn(usize) -> RowNormAct<'b> + Sync> Job for Run<'_, F> {
    type Done = CpuStorage;

    fn run<K: Kernel>(self) -> CpuStorage {
        let Run { x, from, d, rows, row_stride, half, how } = self;
        if half {
            // SAFETY: every row is written, and what lies between.
            CpuStorage::BF16(unsafe {
                filled(rows * row_stride, |y| rows::norm_act_all::<K, bf16>(x, from, d, y, row_stride, how))
            })
        } else {
            // SAFETY: as above.
            CpuStorage::F32(unsafe {
                filled(rows * row_stride, |y| rows::norm_act_all::<K, f32>(x, from, d, y, row_stride, how))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;
    use candle_core::Var;

    /// The two forms sum in another order.
    const LIMIT: f32 = 2e-6;

    #[test]
    fn fast_forms_equal_plain_forms() -> Result<()> {
        let x = (values(&[2, 5, 37], 2)? + 0.3)?;
        let one = Table::one(&values(&[37], 3)?)?;
        let some = Table { rows: values(&[3, 37], 4)?, index: Some(Tensor::new(&[0u32, 2, 1, 1, 0], x.device())?) };
        for norm in [Norm::Rms, Norm::Layer] {
            let norm_act = NormAct::new(norm, 1e-5);
            assert!(distance(&norm_act.forward(&x, MatmulType::F32)?, &norm_act.plain(&x)?)? < LIMIT);
            let norm_act = norm_act.scale(&one).shift(&one).silu();
            assert!(distance(&norm_act.forward(&x, MatmulType::F32)?, &norm_act.plain(&x)?)? < LIMIT);
            let (x, norm_act) = (x.narrow(0, 1, 1)?, NormAct::new(norm, 1e-5).scale(&some).shift(&some));
            assert!(distance(&norm_act.forward(&x, MatmulType::F32)?, &norm_act.plain(&x)?)? < LIMIT);
        }
        Ok(())
    }

    /// Rows that are no whole number of registers, whose values lie far from zero and close together.
    #[test]
    fn a_large_mean_leaves_a_small_variance() -> Result<()> {
        const EPS: f64 = 1e-5;
        for d in [5, 32, 37] {
            let row: Vec<f32> = (0..d).map(|i| 4096.0 + 0.25 * (i % 5) as f32).collect();
            let x = Tensor::from_slice(&row, (1, d), &candle_core::Device::Cpu)?;
            let normed: Vec<f32> =
                NormAct::new(Norm::Layer, EPS).forward(&x, MatmulType::F32)?.flatten_all()?.to_vec1()?;
            let mean = row.iter().map(|&x| x as f64).sum::<f64>() / d as f64;
            let variance = row.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / d as f64;
            for (x, y) in row.iter().zip(normed) {
                let right = (*x as f64 - mean) / (variance + EPS).sqrt();
                assert!((y as f64 - right).abs() < 1e-2, "{d} values: {y} for {right}");
            }
        }
        Ok(())
    }

    #[test]
    fn plain_forms_have_gradients() -> Result<()> {
        let x = Var::from_tensor(&values(&[2, 5], 4)?)?;
        for norm in [Norm::Rms, Norm::Layer] {
            let grads = NormAct::new(norm, 1e-6).forward(&x, MatmulType::F32)?.sqr()?.sum_all()?.backward()?;
            assert!(grads.get(&x).is_some());
        }
        Ok(())
    }
}
