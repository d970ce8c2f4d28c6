//! Convolutions over channels-last frames in bf16: `conv.cu`, and `conv_hopper.cu` where its instructions are.

use super::*;

/// Convolves frames that are padded in time with an odd kernel, and adds `bias` and `residual`; space is padded with zeros.
/// - `x`: (b, f + kt - 1, h, w, in), bf16. `weight`: (out, kt kh kw in). `residual`: as the result.
/// - Returns (b, ceil(f / st), ceil(h / sh), ceil(w / sw), out).
pub fn conv(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    kernel: [usize; 3],
    stride: [usize; 3],
) -> Result<Tensor> {
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let clip = |i: usize| {
        let residual = residual.as_ref().map(|r| r.narrow(0, i, 1)).transpose()?;
        let op = Convolution { weight, bias, residual, kernel, stride };
        x.narrow(0, i, 1)?.contiguous()?.apply_op1_no_bwd(&op)
    };
    match x.dim(0)? {
        1 => clip(0),
        n => Tensor::cat(&(0..n).map(clip).collect::<Result<Vec<_>>>()?, 0),
    }
}

struct Convolution<'a> {
    weight: &'a Tensor,
    bias: &'a Tensor,
    residual: Option<Tensor>,
    kernel: [usize; 3],
    stride: [usize; 3],
}

/// A kernel of [`conv`]: its name, the pixels of a block, and the bytes that it shares, as its file has them.
struct ConvKernel {
    file: File,
    name: &'static str,
    pixels: usize,
    shared: u32,
}

const CONV: ConvKernel = ConvKernel { file: File::Conv, name: "conv", pixels: 128, shared: 3 * 2 * 128 * 128 };
const CONV_HOPPER: ConvKernel =
    ConvKernel { file: File::Hopper, name: "conv_hopper", pixels: 256, shared: 4 * (256 + 128) * 128 + 1024 };
/// Channels of a block.
const CONV_CHANNELS: usize = 128;

impl CustomOp1 for Convolution<'_> {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_here()
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, frames, h, w, inputs) = layout.shape().dims5()?;
        let ([kt, kh, kw], [st, sh, sw]) = (self.kernel, self.stride);
        let outputs = self.weight.dim(0)?;
        if frames < kt || !layout.is_contiguous() || storage_type(storage) != DType::BF16 {
            bail!("cuda: {frames} frames for a convolution over {kt}, or not contiguous rows of bf16")
        }
        let out = [(frames + 1 - kt).div_ceil(st), h.div_ceil(sh), w.div_ceil(sw)];
        let pixels: usize = out.iter().product();
        let device = &storage.device;
        let x = storage_place(storage, layout)?;
        let weight = place(Some(self.weight), DType::BF16, outputs * kt * kh * kw * inputs)?;
        let bias = place(Some(self.bias), DType::BF16, outputs)?;
        let residual = place(self.residual.as_ref(), DType::BF16, pixels * outputs)?;
        let (made, y) = result(device, DType::BF16, pixels * outputs)?;
        if [x, weight].iter().any(|at| at % 16 != 0) || [y, bias, residual].iter().any(|at| at % 4 != 0) {
            bail!("cuda: values that do not lie at multiples of 16 bytes")
        }
        let kernel = if capability(device)? == HOPPER { CONV_HOPPER } else { CONV };
        let blocks = (pixels.div_ceil(kernel.pixels) * outputs.div_ceil(CONV_CHANNELS)) as u32;
        let shared_mem_bytes = kernel.shared;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes };
        let stream = device.cuda_stream();
        let function = load(device, kernel.file, kernel.name)?;
        function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared as i32).w()?;
        let sizes = [h, w, inputs, outputs, out[0], out[1], out[2], kt, kh, kw, st, sh, sw].map(|n| n as u32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&weight).arg(&y).arg(&bias).arg(&residual);
        sizes.iter().for_each(|size| {
            launch.arg(size);
        });
        // SAFETY: as above.
        unsafe { launch.launch(config) }.w()?;
        Ok((made, Shape::from((1, out[0], out[1], out[2], outputs))))
    }
}
