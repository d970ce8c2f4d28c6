//! Group norm over channels-last frames: each group of channels is normed over all frames and pixels of a clip.

use super::path::{Input, RowPath};
use super::read::Read;
use super::vars::Vars;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Values that one task sums. It is fixed, so that sums are the same whatever the number of threads.
const TASK: usize = 1 << 15;

/// The norm: y = (x - mean) / deviation * weight + bias.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor, // (c)
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// - `vb` holds `weight` (channels) and `bias` (channels). `groups` divides `channels`. `eps`: added to the variance.
    pub fn load(channels: usize, groups: usize, eps: f64, vb: Vars) -> Result<Self> {
        Ok(Self { weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")?, groups, eps })
    }

    /// - `x`: (b, f, h, w, c) -> the same. Statistics are taken in f32 or wider.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = Input::of(x, [&self.weight, &self.bias]).or_plain(self.weight.dtype() != DType::F32);
        match input.rows(x.elem_count()) {
            RowPath::Kernel => x.contiguous()?.apply_op1_no_bwd(&Forward(self)),
            RowPath::Cuda | RowPath::Candle => self.plain(x),
        }
    }

    /// The plain form.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let (b, f, h, w, c) = x.dims5()?;
        let wide = x.to_dtype(DType::F32)?.reshape((b, f * h * w, self.groups, c / self.groups))?;
        let wide = wide.broadcast_sub(&wide.mean_keepdim((1, 3))?)?;
        let square = wide.sqr()?.mean_keepdim((1, 3))?;
        let y = wide.broadcast_div(&(square + self.eps)?.sqrt()?)?.reshape((b, f, h, w, c))?.to_dtype(x.dtype())?;
        y.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// The CPU form.
struct Forward<'a>(&'a GroupNorm);

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(x), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("group-norm: expected contiguous f32")
        };
        let GroupNorm { weight, bias, groups, eps } = self.0;
        let dims = layout.dims();
        let c = dims[dims.len() - 1];
        let (weight, bias) = (Read::new(weight)?, Read::new(bias)?);
        let (weight, bias) = (weight.slice::<f32>()?, bias.slice::<f32>()?);
        if weight.len() != c || bias.len() != c || !c.is_multiple_of(*groups) {
            bail!("group-norm: {} weights and {groups} groups for {c} channels", weight.len())
        }
        let x = &x[start..end];
        let clip = x.len() / dims[0];
        let task = (TASK / c).max(1) * c;
        let mut y = vec![0f32; x.len()];
        for (x, y) in x.chunks(clip).zip(y.chunks_mut(clip)) {
            let (scale, shift) = affine(x, weight, bias, *groups, *eps, task);
            y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
                for (y, x) in y.chunks_mut(c).zip(x.chunks(c)) {
                    let values = x.iter().zip(&scale).zip(&shift);
                    y.iter_mut().zip(values).for_each(|(y, ((x, scale), shift))| *y = x * scale + shift);
                }
            });
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// What each channel of a clip is multiplied by, and what is added then.
fn affine(x: &[f32], weight: &[f32], bias: &[f32], groups: usize, eps: f64, task: usize) -> (Vec<f32>, Vec<f32>) {
    let c = weight.len();
    let sums = |x: &[f32]| {
        let mut sums = vec![(0f64, 0f64); c];
        for x in x.chunks(c) {
            for (sum, &x) in sums.iter_mut().zip(x) {
                let x = x as f64;
                *sum = (sum.0 + x, sum.1 + x * x);
            }
        }
        sums
    };
    let parts: Vec<Vec<(f64, f64)>> = x.par_chunks(task).map(sums).collect();
    let size = c / groups;
    let n = (x.len() / groups) as f64;
    let (mut scale, mut shift) = (Vec::with_capacity(c), Vec::with_capacity(c));
    for first in (0..c).step_by(size) {
        let group = parts.iter().flat_map(|part| &part[first..first + size]);
        let (sum, square) = group.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        let mean = sum / n;
        let factor = ((square / n - mean * mean).max(0.0) + eps).sqrt().recip();
        for i in first..first + size {
            let own = factor * weight[i] as f64;
            scale.push(own as f32);
            shift.push((bias[i] as f64 - mean * own) as f32);
        }
    }
    (scale, shift)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;

    /// The plain form sums up to 75,702 values in f32, one after the other, and the fast one in f64.
    const LIMIT: f32 = 2e-5;

    #[test]
    fn fast_form_equals_plain_form() -> Result<()> {
        for (shape, groups) in [([2, 3, 5, 7, 12], 4), ([1, 2, 1, 3, 9], 9), ([1, 11, 31, 37, 6], 1)] {
            let norm = GroupNorm { weight: values(&[shape[4]], 1)?, bias: values(&[shape[4]], 2)?, groups, eps: 1e-5 };
            let x = (values(&shape, 3)? + 3.0)?;
            assert!(distance(&norm.forward(&x)?, &norm.plain(&x)?)? < LIMIT, "{shape:?}");
        }
        Ok(())
    }
}
