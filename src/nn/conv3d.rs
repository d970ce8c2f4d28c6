//! 3-D convolution over channels-last frames. Time is padded by the caller (see `stream`), space with zeros here.

use super::{fast, is_stand_in, stream::FRAMES};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use rayon::prelude::*;

/// Elements of the patch matrix that one task builds: large enough that packing the kernel for the product costs little.
const PATCHES: usize = 1 << 22;

/// A convolution whose kernel lies as the products read it.
#[derive(Clone, Debug)]
pub struct Conv3d {
    weight: Tensor, // (kt, kh, kw, in, out)
    bias: Tensor,
    stride: [usize; 3],
}

impl Conv3d {
    /// - `vb` holds `weight` (out, in, k, k, k) and `bias` (out). `kernel` is odd.
    pub fn load(inputs: usize, outputs: usize, kernel: usize, stride: [usize; 3], vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((outputs, inputs, kernel, kernel, kernel), "weight")?;
        let weight = if is_stand_in(&weight) {
            weight.permute((2, 3, 4, 1, 0))?
        } else {
            weight.permute((2, 3, 4, 1, 0))?.contiguous()?.to_dtype(vb.dtype())?
        };
        Ok(Self { weight, bias: vb.get(outputs, "bias")?, stride })
    }

    /// - `x`: (b, f + kt - 1, h, w, in), padded in time. Returns (b, ceil(f / st), ceil(h / sh), ceil(w / sw), out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = if fast(x) && !self.weight.track_op() {
            x.contiguous()?.apply_op2_no_bwd(&self.weight, &Patches { stride: self.stride })?
        } else {
            self.taps(x)?
        };
        y.broadcast_add(&self.bias)
    }

    /// The plain form: one matrix product a tap, added up.
    fn taps(&self, x: &Tensor) -> Result<Tensor> {
        let (kt, kh, kw, inputs, outputs) = self.weight.dims5()?;
        let (b, frames, h, w, _) = x.dims5()?;
        let x = x.pad_with_zeros(2, kh / 2, kh / 2)?.pad_with_zeros(3, kw / 2, kw / 2)?;
        let mut sum: Option<Tensor> = None;
        let mut shape = (0, 0, 0);
        for t in 0..kt {
            for i in 0..kh {
                for j in 0..kw {
                    let tap = x.narrow(FRAMES, t, frames + 1 - kt)?.narrow(2, i, h)?.narrow(3, j, w)?;
                    let tap =
                        every(&every(&every(&tap, FRAMES, self.stride[0])?, 2, self.stride[1])?, 3, self.stride[2])?;
                    shape = (tap.dim(FRAMES)?, tap.dim(2)?, tap.dim(3)?);
                    let kernel = self.weight.get(t)?.get(i)?.get(j)?; // (in, out)
                    let y = tap.reshape(((), inputs))?.matmul(&kernel)?;
                    sum = Some(match sum {
                        Some(sum) => (sum + y)?,
                        None => y,
                    });
                }
            }
        }
        let Some(sum) = sum else { bail!("conv3d: empty kernel") };
        sum.reshape((b, shape.0, shape.1, shape.2, outputs))
    }
}

/// Every `stride`-th entry along `axis`, from the first.
fn every(x: &Tensor, axis: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let index: Vec<u32> = (0..x.dim(axis)? as u32).step_by(stride).collect();
    x.contiguous()?.index_select(&Tensor::new(index, x.device())?, axis)
}

/// The CPU form: patches of some output rows are copied side by side and multiplied with the kernel, piece by piece. The
/// pieces do not depend on the number of threads, so neither do the bytes.
struct Patches {
    stride: [usize; 3],
}

impl CustomOp2 for Patches {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(x), CpuStorage::F32(weight)) = (xs, ws) else { bail!("conv3d: expected f32") };
        let (Some((x0, x1)), Some((w0, w1))) = (xl.contiguous_offsets(), wl.contiguous_offsets()) else {
            bail!("conv3d: expected contiguous tensors")
        };
        let (x, weight) = (&x[x0..x1], &weight[w0..w1]);
        let (b, frames, h, w, c) = xl.shape().dims5()?;
        let (kt, kh, kw, inputs, outputs) = wl.shape().dims5()?;
        if inputs != c {
            bail!("conv3d: {c} channels for a kernel over {inputs}")
        }
        let [st, sh, sw] = self.stride;
        let (of, oh, ow) = ((frames + 1 - kt).div_ceil(st), h.div_ceil(sh), w.div_ceil(sw));
        let k = kt * kh * kw * c;
        let rows = (PATCHES / (k * ow)).max(1); // output rows a task
        let mut y = vec![0f32; b * of * oh * ow * outputs];
        y.par_chunks_mut(rows * ow * outputs).enumerate().for_each(|(task, y)| {
            let first = task * rows;
            let count = y.len() / (ow * outputs);
            let mut patches = vec![0f32; count * ow * k];
            for (row, patches) in (first..first + count).zip(patches.chunks_mut(ow * k)) {
                let (batch, frame, i) = (row / (of * oh), row / oh % of, row % oh);
                for (j, patch) in patches.chunks_mut(k).enumerate() {
                    let left = (j * sw) as isize - (kw / 2) as isize;
                    // of the kw columns, those inside the picture lie side by side in memory
                    let (from, to) = ((-left).max(0) as usize, (w as isize - left).min(kw as isize) as usize);
                    for t in 0..kt {
                        let plane = (batch * frames + frame * st + t) * h;
                        for r in 0..kh {
                            let Some(line) = (i * sh + r).checked_sub(kh / 2).filter(|&line| line < h) else {
                                continue;
                            };
                            let source = ((plane + line) * w) * c;
                            let source = (source as isize + (left + from as isize) * c as isize) as usize;
                            let target = (t * kh + r) * kw * c;
                            patch[target + from * c..target + to * c]
                                .copy_from_slice(&x[source..source + (to - from) * c]);
                        }
                    }
                }
            }
            product(count * ow, outputs, k, y, &patches, weight);
        });
        Ok((CpuStorage::F32(y), Shape::from((b, of, oh, ow, outputs))))
    }
}

/// y = a b, all row-major: (m, k) (k, n) -> (m, n), on this thread alone.
fn product(m: usize, n: usize, k: usize, y: &mut [f32], a: &[f32], b: &[f32]) {
    assert!(y.len() == m * n && a.len() == m * k && b.len() == k * n);
    // SAFETY: the three slices have the sizes that the strides reach, as asserted above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            1,
            n as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;
    use candle_core::Device;

    /// The two forms add up in another order.
    const LIMIT: f32 = 1e-5;

    #[test]
    fn fast_form_equals_plain_form() -> Result<()> {
        for (kernel, stride, shape) in [
            (3, [1, 1, 1], [2, 5, 4, 7, 6]),
            (3, [2, 2, 2], [1, 6, 5, 8, 3]),
            (1, [1, 1, 1], [1, 2, 3, 3, 5]),
            (3, [1, 1, 1], [1, 3, 1, 1, 4]),
        ] {
            let weight = values(&[kernel, kernel, kernel, shape[4], 9], 10)?;
            let conv = Conv3d { weight, bias: values(&[9], 11)?, stride };
            let x = values(&shape, 12)?;
            let plain = conv.taps(&x)?.broadcast_add(&conv.bias)?;
            assert!(distance(&conv.forward(&x)?, &plain)? < LIMIT);
        }
        Ok(())
    }

    #[test]
    fn one_pixel_through_an_identity_kernel() -> Result<()> {
        let mut kernel = vec![0f32; 27];
        kernel[13] = 1.0;
        let weight = Tensor::from_vec(kernel, (3, 3, 3, 1, 1), &Device::Cpu)?;
        let conv = Conv3d { weight, bias: Tensor::new(&[0.5f32], &Device::Cpu)?, stride: [1, 1, 1] };
        let x = values(&[1, 3, 2, 2, 1], 13)?;
        let want = (x.narrow(FRAMES, 1, 1)? + 0.5)?;
        assert_eq!(conv.forward(&x)?.flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}
