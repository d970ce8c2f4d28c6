//! A 3-D convolution as 2-D ones, one for each frame that the kernel spans: the form that cuDNN makes fast. Without cuDNN candle
//! writes out what each pixel of a 2-D convolution reads (im2col, nine times the pictures for 3 x 3), so there the taps of the
//! plain form are the smaller way.

use super::every;
use crate::nn::stream::FRAMES;
use candle_core::{DType, Device, Result, Tensor, bail};

/// Whether kernels of this type are kept for cuDNN. bf16 alone: f32 would be rounded to TF32 (cuDNN's `CUDNN_DEFAULT_MATH`), where
/// exactness was asked for, and f16 be added up in f16 (candle-core 0.11.1, `cuda_backend::conv2d`).
pub fn is_planes(device: &Device, dtype: DType) -> bool {
    cfg!(feature = "cudnn") && device.is_cuda() && dtype == DType::BF16
}

/// Channels with a multiple of which frames and kernels of bf16 begin at multiples of 16 bytes, where tensor cores read. All
/// released VAEs have such.
const ALIGNED: usize = 8;

/// A kernel, and how far it moves.
#[derive(Clone)]
pub struct Planes {
    kernel: Tensor, // (kt, out, in, k, k)
    stride: [usize; 3],
}

impl Planes {
    /// Whether 2-D convolutions have such a kernel and stride: the same in height and width. One over single pixels is a matrix
    /// product of channels-last pixels as they lie.
    pub fn fit(inputs: usize, [_, kh, kw]: [usize; 3], [_, sh, sw]: [usize; 3]) -> bool {
        kh == kw && kh > 1 && sh == sw && inputs.is_multiple_of(ALIGNED)
    }

    /// - `weight`: (out, in, kt, k, k).
    pub fn new(weight: &Tensor, stride: [usize; 3]) -> Result<Self> {
        Ok(Self { kernel: weight.permute((2, 0, 1, 3, 4))?.contiguous()?, stride })
    }

    /// The kernel as rows: (out, kt k k in).
    pub fn kernel(&self) -> Result<Tensor> {
        self.kernel.permute((1, 0, 3, 4, 2))?.flatten_from(1)
    }

    /// Whether `x` is what [`Planes::convolve`] takes: of the kernel's type, with no gradient wanted, and neither it nor the result
    /// beyond 2^31 values, which is where cuDNN's indices end.
    pub fn take(&self, x: &Tensor) -> Result<bool> {
        let (b, frames, h, w, inputs) = x.dims5()?;
        let values = b * frames * h * w * inputs.max(self.kernel.dim(1)?);
        Ok(x.dtype() == self.kernel.dtype() && !x.track_op() && values <= i32::MAX as usize)
    }

    /// - `x`: (b, f + kt - 1, h, w, in), padded in time. Returns (b, ceil(f / st), ceil(h / s), ceil(w / s), out).
    pub fn convolve(&self, x: &Tensor) -> Result<Tensor> {
        let (kt, outputs, _, k, _) = self.kernel.dims5()?;
        let (b, frames, ..) = x.dims5()?;
        if frames < kt {
            bail!("conv3d: {frames} frames for a kernel over {kt}")
        }
        let x = x.permute((0, 1, 4, 2, 3))?.contiguous()?; // (b, frames, in, h, w)
        let mut sum: Option<Tensor> = None;
        for t in 0..kt {
            let seen = every(&x.narrow(FRAMES, t, frames + 1 - kt)?, FRAMES, self.stride[0])?;
            let y = seen.flatten_to(1)?.conv2d(&self.kernel.get(t)?, k / 2, self.stride[1], 1, 1)?; // (b f, out, h, w)
            sum = Some(match sum {
                Some(sum) => (sum + y)?,
                None => y,
            });
        }
        let Some(sum) = sum else { bail!("conv3d: empty kernel") };
        let (_, _, h, w) = sum.dims4()?;
        sum.reshape((b, (), outputs, h, w))?.permute((0, 1, 3, 4, 2))
    }
}
