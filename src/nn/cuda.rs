//! CUDA kernels of our own, for what candle does in many passes over memory: what goes between products (norms with shift, scale
//! and rotary positions; what follows a dense layer), channels into space and back, and convolutions over channels-last frames in
//! bf16. NVRTC compiles them when the first one runs.

use super::kernel::rows::Norm;
use super::rope::Rope;
use super::stream::FRAMES;
use super::table::Table;
use crate::platform::machine::is_gpu_plain;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Error, Layout, Result, Shape, Storage, Tensor, bail,
};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

/// Threads of a block.
const BLOCK: u32 = 256;
/// Blocks that [`finish`] is spread over at most; each thread goes on from there.
const BLOCKS: u32 = 132 * 16;

/// Whether the kernels take `x`: on CUDA, of their types, with no gradient wanted of it or of `others`.
pub fn takes<'a>(x: &Tensor, others: impl IntoIterator<Item = &'a Tensor>) -> bool {
    x.device().is_cuda()
        && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16)
        && x.elem_count() > 0
        && x.elem_count() <= u32::MAX as usize // they count in 32 bits
        && !x.track_op()
        && others.into_iter().all(|t| !t.track_op())
        && !is_gpu_plain()
}

/// Whether a convolution with such a weight is made by [`conv`].
pub fn is_conv(weight: &Tensor, inputs: usize, outputs: usize) -> bool {
    weight.device().is_cuda()
        && weight.dtype() == DType::BF16
        && !weight.track_op()
        && inputs.is_multiple_of(8) // 16 bytes at once
        && outputs.is_multiple_of(2)
        && !is_gpu_plain()
}

/// What happens to each row: y = act(turn(norm(x) scale + shift)), without what is left out.
#[derive(Clone, Copy, Default)]
pub struct RowOps<'a> {
    /// And what is added to the mean square.
    pub norm: Option<(Norm, f64)>,
    pub scale: Option<&'a Table>,
    pub shift: Option<&'a Table>,
    /// For each token; d is even.
    pub rope: Option<&'a Rope>,
    pub silu: bool,
}

/// What follows a dense layer's product: y = residual + factor gate gelu(x + bias + added), without what is left out.
#[derive(Clone, Default)]
pub struct Epilogue<'a> {
    /// (d)
    pub bias: Option<&'a Tensor>,
    /// As x, and so are `factor` and `residual`.
    pub added: Option<&'a Tensor>,
    pub gelu: bool,
    pub gate: Option<&'a Table>,
    pub factor: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
}

/// - `x`: (..., tokens, d).
pub fn norm_act(x: &Tensor, how: RowOps) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&how)
}

/// Parts of a clip one after the other, each pixel as [`norm_act`] makes it.
/// - `parts`: (1, frames, h, w, c) each.
pub fn window(parts: &[Tensor], how: Option<RowOps>) -> Result<Tensor> {
    let [first, others @ ..] = parts else { bail!("cuda: no frames") };
    if how.is_none() && others.is_empty() {
        return first.contiguous();
    }
    let others = others.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
    first.contiguous()?.apply_op1_no_bwd(&Window { others, how: how.unwrap_or_default() })
}

/// - `x`: (..., tokens, d), a product.
pub fn finish(x: &Tensor, how: Epilogue) -> Result<Tensor> {
    let same = |t: Option<&Tensor>| t.map(Tensor::contiguous).transpose();
    let (added, factor, residual) = (same(how.added)?, same(how.factor)?, same(how.residual)?);
    let how = Epilogue { added: added.as_ref(), factor: factor.as_ref(), residual: residual.as_ref(), ..how };
    x.contiguous()?.apply_op1_no_bwd(&how)
}

/// A convolution of odd kernel over frames that are padded in time, plus `bias`, plus `residual`; space is padded with zeros.
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

/// Each pixel's channels as a box of pixels, plus `plus` (1, f, h, w, m) spread likewise: (1, f, h, w, c n) -> (1, st f, sh h, sw w, c).
/// - `columns`: whether the columns of a box stand before its lines.
pub fn spread(x: &Tensor, stride: [usize; 3], plus: Option<&Tensor>, columns: bool) -> Result<Tensor> {
    let plus = plus.map(Tensor::contiguous).transpose()?;
    x.contiguous()?.apply_op1_no_bwd(&Spread { stride, plus, columns })
}

/// Each box of pixels as the channels of one, in means of `mean` neighbours: (1, st f, sh h, sw w, c) -> (1, f, h, w, c n / mean).
pub fn gather(x: &Tensor, stride: [usize; 3], mean: usize, columns: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Gather { stride, mean, columns })
}

struct Spread {
    stride: [usize; 3],
    plus: Option<Tensor>,
    columns: bool,
}

struct Gather {
    stride: [usize; 3],
    mean: usize,
    columns: bool,
}

/// Where a tensor's values lie on the GPU; 0 where there is none.
/// - Errors unless it is contiguous, of `dtype`, and has `count` values.
fn place(t: Option<&Tensor>, dtype: DType, count: usize) -> Result<u64> {
    let Some(t) = t else { return Ok(0) };
    if t.dtype() != dtype || t.elem_count() != count || !t.is_contiguous() {
        bail!("cuda: {:?} of {:?} where {count} of {dtype:?} are read", t.dtype(), t.dims())
    }
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("cuda: a tensor that is on another device") };
    storage_place(storage, layout)
}

fn storage_place(storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    fn of<T: DeviceRepr>(slice: &CudaSlice<T>, device: &CudaDevice, layout: &Layout) -> u64 {
        let stream = device.cuda_stream();
        let (start, _guard) = slice.device_ptr(&stream);
        start + (layout.start_offset() * size_of::<T>()) as u64
    }
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => of(slice, &storage.device, layout),
        CudaStorageSlice::BF16(slice) => of(slice, &storage.device, layout),
        CudaStorageSlice::F16(slice) => of(slice, &storage.device, layout),
        CudaStorageSlice::U32(slice) => of(slice, &storage.device, layout),
        _ => bail!("cuda: values of a type that the kernels do not take"),
    })
}

/// A table's values and its index on the GPU, for rows of `d` over `tokens`.
fn table(table: Option<&Table>, dtype: DType, d: usize, tokens: usize) -> Result<(u64, u64)> {
    let Some(table) = table else { return Ok((0, 0)) };
    let values = place(Some(&table.rows), dtype, table.rows.dim(0)? * d)?;
    Ok((values, place(table.index.as_ref(), DType::U32, tokens)?))
}

/// How many neighbours a thread can take at once: as many as 16 bytes hold, where every place and `d` allow it.
fn together(dtype: DType, d: usize, places: &[u64]) -> usize {
    let size = dtype.size_in_bytes();
    let fits = |n: &usize| d.is_multiple_of(*n) && places.iter().all(|place| place.is_multiple_of((n * size) as u64));
    [16 / size, 2].into_iter().find(fits).unwrap_or(1)
}

/// A file of kernels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum File {
    Rows,
    Boxes,
    Conv,
    /// Of instructions that no other GPU has.
    Hopper,
}

/// The compute capability of Hopper's GPUs.
const HOPPER: (i32, i32) = (9, 0);

fn capability(device: &CudaDevice) -> Result<(i32, i32)> {
    device.cuda_stream().context().compute_capability().w()
}

/// The kernel of that name.
fn load(device: &CudaDevice, file: File, name: &str) -> Result<CudaFunction> {
    /// By file and compute capability.
    type Compiled = HashMap<(File, i32, i32), Arc<str>>;
    static COMPILED: OnceLock<Mutex<Compiled>> = OnceLock::new();
    let (module, source) = match file {
        File::Rows => ("reel-rows", include_str!("cuda/rows.cu")),
        File::Boxes => ("reel-boxes", concat!(include_str!("cuda/rows.cu"), include_str!("cuda/boxes.cu"))),
        File::Conv => ("reel-conv", include_str!("cuda/conv.cu")),
        File::Hopper => ("reel-conv-hopper", include_str!("cuda/conv_hopper.cu")),
    };
    let (major, minor) = capability(device)?;
    let mut compiled = COMPILED.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    let ptx = match compiled.get(&(file, major, minor)) {
        Some(ptx) => ptx.clone(),
        None => {
            let special = if file == File::Hopper { "a" } else { "" };
            let options = vec![format!("--gpu-architecture=compute_{major}{minor}{special}")];
            let ptx = compile_ptx_with_opts(source, CompileOptions { options, ..Default::default() })
                .map_err(|e| Error::Msg(format!("cuda: the kernels of {module} do not compile: {e}")))?;
            let ptx: Arc<str> = ptx.to_src().into();
            compiled.insert((file, major, minor), ptx.clone());
            ptx
        }
    };
    Ok(device.get_or_load_custom_func(name, module, &ptx)?.into_cuda_function())
}

/// As the kernels have it in their names.
fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "float",
    }
}

/// The kernel of that name over rows, for this type and so many neighbours.
fn over_rows(device: &CudaDevice, name: &str, dtype: DType, n: usize) -> Result<CudaFunction> {
    load(device, File::Rows, &format!("{name}_{}_{n}", type_name(dtype)))
}

/// A result of `count` values, and where it lies.
fn result(device: &CudaDevice, dtype: DType, count: usize) -> Result<(CudaStorage, u64)> {
    // SAFETY: the kernels write all of it.
    let slice = unsafe {
        match dtype {
            DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(count)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc::<f16>(count)?),
            _ => CudaStorageSlice::F32(device.alloc::<f32>(count)?),
        }
    };
    let storage = CudaStorage { slice, device: device.clone() };
    let place = storage_place(&storage, &Layout::contiguous(count))?;
    Ok((storage, place))
}

/// Rows, their width, and the tokens over which indices and positions run.
fn extent(layout: &Layout) -> Result<(usize, usize, usize)> {
    if !layout.is_contiguous() {
        bail!("cuda: expected contiguous rows")
    }
    let dims = layout.dims();
    let d = *dims.last().unwrap_or(&1);
    let tokens = if dims.len() < 2 { 1 } else { dims[dims.len() - 2] };
    Ok((layout.shape().elem_count() / d.max(1), d, tokens))
}

impl CustomOp1 for RowOps<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cuda: a kernel of the GPU on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, d, tokens) = extent(layout)?;
        let (dtype, device) = (storage_type(storage), &storage.device);
        let (made, y) = result(device, dtype, rows * d)?;
        self.launch(device, dtype, (storage_place(storage, layout)?, y), rows, d, tokens)?;
        Ok((made, layout.shape().clone()))
    }
}

impl RowOps<'_> {
    /// - `places`: where the rows lie, and where the result goes. `tokens`: over which indices and positions run.
    fn launch(
        &self,
        device: &CudaDevice,
        dtype: DType,
        (x, y): (u64, u64),
        rows: usize,
        d: usize,
        tokens: usize,
    ) -> Result<()> {
        let (scale, scale_index) = table(self.scale, dtype, d, tokens)?;
        let (shift, shift_index) = table(self.shift, dtype, d, tokens)?;
        let angles = |t: Option<&Tensor>| place(t, DType::F32, tokens * (d / 2));
        let (cosines, sines) = (angles(self.rope.map(|rope| &rope.cos))?, angles(self.rope.map(|rope| &rope.sin))?);
        let n = together(dtype, d, &[x, y, scale, shift]);
        if cosines != 0 && n < 2 {
            bail!("cuda: rotary positions over {d} channels")
        }
        // a warp a row, or more where a row has more for each thread than one piece
        let threads = (d / n).next_power_of_two().clamp(8, BLOCK as usize) as u32;
        let at_once = BLOCK / threads;
        let config = LaunchConfig {
            grid_dim: ((rows as u32).div_ceil(at_once), 1, 1),
            block_dim: (threads, at_once, 1),
            shared_mem_bytes: 0,
        };
        let (norm, eps) = match self.norm {
            None => (0u32, 0.0),
            Some((Norm::Rms, eps)) => (1, eps as f32),
            Some((Norm::Layer, eps)) => (2, eps as f32),
        };
        let (rows, d, tokens) = (rows as u32, d as u32, tokens as u32);
        let silu = self.silu as u32;
        let stream = device.cuda_stream();
        let function = over_rows(device, "norm_act", dtype, n)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y).arg(&rows).arg(&d).arg(&norm).arg(&eps);
        launch.arg(&scale).arg(&scale_index).arg(&shift).arg(&shift_index);
        launch.arg(&cosines).arg(&sines).arg(&tokens).arg(&silu);
        // SAFETY: sizes and types were checked above, and all places outlive the launch: memory is freed in the stream's order.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}

/// Parts of a clip, one after the other.
struct Window<'a> {
    /// Those after the first.
    others: Vec<Tensor>,
    how: RowOps<'a>,
}

impl CustomOp1 for Window<'_> {
    fn name(&self) -> &'static str {
        "window"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cuda: a kernel of the GPU on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, d, tokens) = extent(layout)?;
        let (dtype, device) = (storage_type(storage), &storage.device);
        let mut shape = layout.dims().to_vec();
        let one_frame = rows / shape[FRAMES].max(1);
        let mut parts = vec![(storage_place(storage, layout)?, rows)];
        for other in &self.others {
            let rows = one_frame * other.dim(FRAMES)?;
            parts.push((place(Some(other), dtype, rows * d)?, rows));
            shape[FRAMES] += other.dim(FRAMES)?;
        }
        let (made, mut y) = result(device, dtype, shape.iter().product())?;
        for (x, rows) in parts {
            self.how.launch(device, dtype, (x, y), rows, d, tokens)?;
            y += (rows * d * dtype.size_in_bytes()) as u64;
        }
        Ok((made, Shape::from(shape)))
    }
}

impl CustomOp1 for Epilogue<'_> {
    fn name(&self) -> &'static str {
        "finish"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cuda: a kernel of the GPU on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, d, tokens) = extent(layout)?;
        let (dtype, device) = (storage_type(storage), &storage.device);
        let x = storage_place(storage, layout)?;
        let bias = place(self.bias, dtype, d)?;
        let added = place(self.added, dtype, rows * d)?;
        let (gate, gate_index) = table(self.gate, dtype, d, tokens)?;
        let factor = place(self.factor, dtype, rows * d)?;
        let residual = place(self.residual, dtype, rows * d)?;
        let (made, y) = result(device, dtype, rows * d)?;
        let n = together(dtype, d, &[x, y, bias, added, gate, factor, residual]);
        let parts = (rows * d / n) as u32;
        let config = LaunchConfig {
            grid_dim: (parts.div_ceil(BLOCK).min(BLOCKS), 1, 1),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let (d, tokens, gelu) = (d as u32, tokens as u32, self.gelu as u32);
        let stream = device.cuda_stream();
        let function = over_rows(device, "finish", dtype, n)?;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y).arg(&parts).arg(&d).arg(&bias).arg(&added).arg(&gelu);
        launch.arg(&gate).arg(&gate_index).arg(&tokens).arg(&factor).arg(&residual);
        // SAFETY: as above.
        unsafe { launch.launch(config) }.w()?;
        Ok((made, layout.shape().clone()))
    }
}

/// A thread for each value, as far as [`BLOCKS`] allow.
fn each_value(count: usize) -> LaunchConfig {
    let blocks = (count as u32).div_ceil(BLOCK).min(BLOCKS);
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 }
}

impl CustomOp1 for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cuda: a kernel of the GPU on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, f, h, w, channels) = layout.shape().dims5()?;
        let [st, sh, sw] = self.stride;
        let (n, count) = (st * sh * sw, layout.shape().elem_count());
        let (c, m) = (channels / n, self.plus.as_ref().map_or(Ok(0), |plus| Ok::<_, Error>(plus.dim(4)? / n))?);
        if !layout.is_contiguous() || c * n != channels || self.plus.is_some() && m == 0 {
            bail!("cuda: {:?} in boxes of {n}", layout.dims())
        }
        let (dtype, device) = (storage_type(storage), &storage.device);
        let x = storage_place(storage, layout)?;
        let plus = place(self.plus.as_ref(), dtype, f * h * w * m * n)?;
        let (made, y) = result(device, dtype, count)?;
        let stream = device.cuda_stream();
        let function = load(device, File::Boxes, &format!("spread_{}", type_name(dtype)))?;
        let sizes = [m, h, w, c, st, sh, sw, usize::from(self.columns)].map(|n| n as u32);
        let total = count as u32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y).arg(&total).arg(&plus);
        sizes.iter().for_each(|size| {
            launch.arg(size);
        });
        // SAFETY: as above.
        unsafe { launch.launch(each_value(count)) }.w()?;
        Ok((made, Shape::from((1, f * st, h * sh, w * sw, c))))
    }
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("cuda: a kernel of the GPU on the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, frames, height, width, c) = layout.shape().dims5()?;
        let [st, sh, sw] = self.stride;
        let (f, h, w, outputs) = (frames / st, height / sh, width / sw, c * st * sh * sw / self.mean);
        if !layout.is_contiguous() || (f * st, h * sh, w * sw) != (frames, height, width) {
            bail!("cuda: {:?} in boxes of {st} x {sh} x {sw}", layout.dims())
        }
        let (dtype, device) = (storage_type(storage), &storage.device);
        let x = storage_place(storage, layout)?;
        let count = f * h * w * outputs;
        let (made, y) = result(device, dtype, count)?;
        let stream = device.cuda_stream();
        let function = load(device, File::Boxes, &format!("gather_{}", type_name(dtype)))?;
        let sizes = [count, self.mean, h, w, c, st, sh, sw, usize::from(self.columns)].map(|n| n as u32);
        let mut launch = stream.launch_builder(&function);
        launch.arg(&x).arg(&y);
        sizes.iter().for_each(|size| {
            launch.arg(size);
        });
        // SAFETY: as above.
        unsafe { launch.launch(each_value(count)) }.w()?;
        Ok((made, Shape::from((1, f, h, w, outputs))))
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
        bail!("cuda: a kernel of the GPU on the CPU")
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

fn storage_type(storage: &CudaStorage) -> DType {
    match &storage.slice {
        CudaStorageSlice::BF16(_) => DType::BF16,
        CudaStorageSlice::F16(_) => DType::F16,
        _ => DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv3d::{Conv3d, Fusion};
    use super::super::norm::NormAct;
    use super::super::testing::{distance, values};
    use super::*;
    use candle_core::Device;

    /// What rounding the result takes, relative to the largest value: half a bit of bf16's eight, of f16's eleven; in f32 the two
    /// forms sum in another order.
    fn limit(dtype: DType) -> f32 {
        match dtype {
            DType::BF16 => 4e-3,
            DType::F16 => 6e-4,
            _ => 2e-6,
        }
    }

    const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

    /// Values as `dtype` holds them: in f32 on the CPU, and on the GPU.
    fn both(shape: &[usize], seed: u64, dtype: DType, gpu: &Device) -> Result<(Tensor, Tensor)> {
        let rounded = values(shape, seed)?.to_dtype(dtype)?;
        Ok((rounded.to_dtype(DType::F32)?, rounded.to_device(gpu)?))
    }

    fn apart(got: &Tensor, want: &Tensor) -> Result<f32> {
        distance(&got.to_device(&Device::Cpu)?.to_dtype(DType::F32)?, want)
    }

    #[test]
    #[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
    fn norms_equal_the_plain_form() -> Result<()> {
        let gpu = Device::new_cuda(0)?;
        for dtype in TYPES {
            for d in [5, 6, 37, 48, 128, 2048, 4096] {
                let (x, x_gpu) = both(&[1, 7, d], 1, dtype, &gpu)?;
                let (scale, scale_gpu) = both(&[3, d], 2, dtype, &gpu)?;
                let (shift, shift_gpu) = both(&[1, d], 3, dtype, &gpu)?;
                let index = Tensor::new(&[0u32, 2, 1, 1, 0, 2, 2], &Device::Cpu)?;
                let index_gpu = index.to_device(&gpu)?;
                for norm in [Norm::Rms, Norm::Layer] {
                    let tables = |scale: &Tensor, index: &Tensor, shift: &Tensor| {
                        let scale = Table { rows: scale.clone(), index: Some(index.clone()) };
                        (scale, Table { rows: shift.clone(), index: None })
                    };
                    let (scale, shift) = tables(&scale, &index, &shift);
                    let want = NormAct::new(norm, 1e-6).scale(&scale).shift(&shift).silu().plain(&x)?;
                    let (scale, shift) = tables(&scale_gpu, &index_gpu, &shift_gpu);
                    let got = NormAct::new(norm, 1e-6)
                        .scale(&scale)
                        .shift(&shift)
                        .silu()
                        .forward(&x_gpu, super::super::kernel::MatmulType::F32)?;
                    let off = apart(&got, &want)?;
                    assert!(off < limit(dtype), "{dtype:?} {d} {norm:?}: {off}");
                }
            }
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
    fn positions_equal_the_plain_form() -> Result<()> {
        let gpu = Device::new_cuda(0)?;
        for dtype in TYPES {
            for d in [6, 48, 2048] {
                let coords: Vec<[f32; 3]> = (0..9).map(|i| [i as f32 / 9.0, 0.3, 1.0 - i as f32 / 10.0]).collect();
                let (rope, rope_gpu) = (Rope::new(&coords, d, 1e4, &Device::Cpu)?, Rope::new(&coords, d, 1e4, &gpu)?);
                let (x, x_gpu) = both(&[1, 9, d], 4, dtype, &gpu)?;
                let (weight, weight_gpu) = both(&[d], 5, dtype, &gpu)?;
                assert!(
                    apart(&norm_act(&x_gpu, RowOps { rope: Some(&rope_gpu), ..RowOps::default() })?, &rope.apply(&x)?)?
                        < limit(dtype)
                );
                let (one, one_gpu) = (Table::one(&weight)?, Table::one(&weight_gpu)?);
                let want = rope.apply(&NormAct::new(Norm::Rms, 1e-5).scale(&one).plain(&x)?)?;
                let how = RowOps {
                    norm: Some((Norm::Rms, 1e-5)),
                    scale: Some(&one_gpu),
                    rope: Some(&rope_gpu),
                    ..RowOps::default()
                };
                let got = norm_act(&x_gpu, how)?;
                assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {d}");
            }
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
    fn what_follows_a_product_equals_the_plain_form() -> Result<()> {
        let gpu = Device::new_cuda(0)?;
        for dtype in TYPES {
            for d in [5, 6, 48, 2048] {
                let (x, x_gpu) = both(&[1, 7, d], 6, dtype, &gpu)?;
                let (bias, bias_gpu) = both(&[d], 7, dtype, &gpu)?;
                let (gate, gate_gpu) = both(&[1, d], 8, dtype, &gpu)?;
                let (residual, residual_gpu) = both(&[1, 7, d], 9, dtype, &gpu)?;
                let want = x.broadcast_add(&bias)?.gelu()?.broadcast_mul(&gate)?.add(&residual)?;
                let gate_gpu = Table { rows: gate_gpu, index: None };
                let (bias, residual) = (Some(&bias_gpu), Some(&residual_gpu));
                let how = Epilogue { bias, gelu: true, gate: Some(&gate_gpu), residual, ..Epilogue::default() };
                let got = finish(&x_gpu, how)?;
                assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {d}");
            }
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
    fn boxes_equal_those_of_the_cpu() -> Result<()> {
        use super::super::spread::{Order, gather, spread};
        let gpu = Device::new_cuda(0)?;
        for dtype in TYPES {
            for order in [Order::Lines, Order::Columns] {
                let stride = [2, 3, 2];
                let (x, x_gpu) = both(&[1, 3, 2, 5, 4 * 12], 14, dtype, &gpu)?;
                let (plus, plus_gpu) = both(&[1, 3, 2, 5, 2 * 12], 15, dtype, &gpu)?;
                let want = spread(&x, stride, Some(&plus), order)?.expect("on the CPU");
                let got = spread(&x_gpu, stride, Some(&plus_gpu), order)?.expect("on the GPU");
                assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {order:?}");
                let (y, y_gpu) = both(want.dims(), 16, dtype, &gpu)?;
                for mean in [1, 6] {
                    let want = gather(&y, stride, mean, order)?.expect("on the CPU");
                    let got = gather(&y_gpu, stride, mean, order)?.expect("on the GPU");
                    assert!(apart(&got, &want)? < limit(dtype), "{dtype:?} {order:?} {mean}");
                }
            }
        }
        Ok(())
    }

    /// Products of bf16 values added up in f32 in another order; the result is rounded to bf16.
    const CONV: f32 = 5e-3;

    #[test]
    #[ignore = "needs a GPU: cargo test --release --features cuda --lib -- --ignored cuda"]
    fn convolutions_equal_the_plain_form() -> Result<()> {
        let gpu = Device::new_cuda(0)?;
        let sizes =
            [(8, 6, [1, 1, 1]), (64, 128, [1, 1, 1]), (72, 48, [1, 1, 1]), (128, 136, [1, 2, 2]), (16, 16, [2, 2, 2])];
        for (inputs, outputs, stride) in sizes {
            let (x, x_gpu) = both(&[1, 5, 9, 20, inputs], 10, DType::BF16, &gpu)?;
            let (weight, weight_gpu) = both(&[outputs, inputs, 3, 3, 3], 11, DType::BF16, &gpu)?;
            let (bias, bias_gpu) = both(&[outputs], 12, DType::BF16, &gpu)?;
            let want = Conv3d::new(&weight, bias, stride)?.forward(&[x], Fusion::default())?;
            let (residual, residual_gpu) = both(want.dims(), 13, DType::BF16, &gpu)?;
            let conv = Conv3d::new(&weight_gpu, bias_gpu, stride)?;
            let got = conv.forward(&[x_gpu], Fusion { residual: Some(&residual_gpu), ..Fusion::default() })?;
            let off = apart(&got, &(want + residual)?)?;
            assert!(off < CONV, "{inputs} to {outputs}: {off}");
        }
        Ok(())
    }
}
