//! One CPU kernel shape for all operations that treat each row (the last axis) by itself: threaded over rows, with the
//! work cut the same way for any number of threads, so that the bytes do not depend on it.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Elements that one task handles: enough to outweigh handing it out, few enough to stay in the cache.
const TASK: usize = 1 << 14;

struct Rows<F> {
    name: &'static str,
    width: usize,
    f: F,
}

impl<F: Fn(&[f32], &mut [f32]) + Sync + Send> CustomOp1 for Rows<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(data) = storage else { bail!("{}: expected f32", self.name) };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{}: expected a contiguous tensor", self.name)
        };
        let x = &data[start..end];
        let mut y = vec![0f32; x.len()];
        let task = (TASK / self.width).max(1) * self.width;
        y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(self.width).zip(x.chunks(self.width)) {
                (self.f)(x, y)
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// Applies `f` to each row of `x`: (..., d) -> (..., d), f32 on the CPU. Rows never see each other.
pub fn map_rows(
    name: &'static str,
    x: &Tensor,
    f: impl Fn(&[f32], &mut [f32]) + Sync + Send + 'static,
) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    x.contiguous()?.apply_op1_no_bwd(&Rows { name, width, f })
}

/// e^x for f32, within 2 ulp, written without branches or calls so that the compiler can vectorise it.
/// - Source: the Cephes library, `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and subtracting it rounds to an integer
    let x = x.clamp(-87.3, 88.3);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_close() {
        /// Two units in the last place and the rounding of the argument reduction.
        const LIMIT: f64 = 4e-7;
        for i in -870..=880 {
            let x = i as f32 * 0.1;
            let want = (x as f64).exp();
            assert!(((super::exp(x) as f64 - want) / want).abs() < LIMIT, "exp({x})");
        }
    }
}
