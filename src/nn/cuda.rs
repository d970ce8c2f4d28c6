//! CUDA kernels of our own, for what candle does in many passes over memory: what goes between products (norms with shift, scale
//! and rotary positions; what follows a dense layer), channels into space and back, and convolutions over channels-last frames in
//! bf16. `path` says what they take. NVRTC compiles them when the first one runs. Here is what they share: where values lie, and
//! how a kernel is loaded.

mod boxes;
mod conv;
mod rows;
#[cfg(test)]
mod tests;

use super::kernel::rows::Norm;
use super::rope::Rope;
use super::stream::FRAMES;
use super::table::Table;
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

pub use boxes::{gather, spread};
pub use conv::conv;
pub use rows::{Epilogue, RowOps, finish, norm_act, window};

/// Threads of a block.
const BLOCK: u32 = 256;
/// Blocks that [`finish`] is spread over at most; each thread goes on from there.
const BLOCKS: u32 = 132 * 16;

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
        File::Conv => ("reel-conv", concat!(include_str!("cuda/conv_shared.cu"), include_str!("cuda/conv.cu"))),
        File::Hopper => {
            ("reel-conv-hopper", concat!(include_str!("cuda/conv_shared.cu"), include_str!("cuda/conv_hopper.cu")))
        }
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

/// What a kernel of the GPU answers on the CPU.
fn not_here() -> Result<(CpuStorage, Shape)> {
    bail!("cuda: a kernel of the GPU on the CPU")
}

/// A thread for each value, as far as [`BLOCKS`] allow.
fn each_value(count: usize) -> LaunchConfig {
    let blocks = (count as u32).div_ceil(BLOCK).min(BLOCKS);
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 }
}

fn storage_type(storage: &CudaStorage) -> DType {
    match &storage.slice {
        CudaStorageSlice::BF16(_) => DType::BF16,
        CudaStorageSlice::F16(_) => DType::F16,
        _ => DType::F32,
    }
}
