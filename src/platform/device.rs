//! Where and in what precision to compute.

use crate::platform::fault::{Fault, Mark};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// `--dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// On a CPU as the weights are stored: what is bf16 is multiplied in bf16, all else in f32; on a GPU bf16.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
}

/// `--quantize`: what the large matrices of transformer and text encoder become when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// Blocks of 32 values of 8 bits: half of bf16
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8,
    /// Blocks of 256 values of 4 bits: 28 % of bf16
    #[value(name = "q4_k")]
    #[serde(rename = "q4_k")]
    Q4,
}

impl Quantize {
    /// As the flag says it.
    pub fn name(self) -> &'static str {
        match self {
            Quantize::Q8 => "q8_0",
            Quantize::Q4 => "q4_k",
        }
    }
}

/// A device and its precisions.
#[derive(Clone, Debug)]
pub struct Compute {
    pub device: Device,
    /// What matrices are kept in; `None`: as they are stored.
    pub stored: Option<DType>,
    /// What activations are computed in.
    pub dtype: DType,
    /// Why `auto` is not the GPU that this build is for.
    pub remark: Option<String>,
}

/// Opens `--device`: `auto` (the GPU that this build is for, else the CPU), `cpu`, `cuda`, `cuda:N` or `metal`.
/// - Errors when it is none of these, when this build lacks it, and when the machine does.
pub fn open(name: &str, dtype: Dtype) -> Result<Compute> {
    let mut remark = None;
    let mut or_cpu = |what: &str, found: candle_core::Result<Device>| {
        found.unwrap_or_else(|e| {
            remark = Some(format!("no {what} device can be opened ({}), which leaves the CPU", first_line(&e)));
            Device::Cpu
        })
    };
    let device = match name {
        "auto" if cfg!(feature = "cuda") => or_cpu("CUDA", Device::new_cuda(0)),
        "auto" if cfg!(feature = "metal") => or_cpu("Metal", Device::new_metal(0)),
        "auto" | "cpu" => Device::Cpu,
        "metal" => gpu(name, cfg!(feature = "metal"), || Device::new_metal(0))?,
        _ => {
            let index = name
                .strip_prefix("cuda")
                .and_then(|rest| if rest.is_empty() { Some("0") } else { rest.strip_prefix(':') });
            let Some(index) = index.and_then(|i| i.parse().ok()) else {
                bail!("there is no device `{name}`\n  choices: auto, cpu, cuda, cuda:N, metal")
            };
            gpu(name, cfg!(feature = "cuda"), || Device::new_cuda(index))?
        }
    };
    let wanted = match dtype {
        Dtype::Auto if device.is_cpu() => None,
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::Auto | Dtype::Bf16 => Some(DType::BF16),
    };
    // on a CPU the type of the weights says in what they are multiplied; everything between products is f32
    let dtype = if device.is_cpu() { DType::F32 } else { wanted.unwrap_or(DType::BF16) };
    Ok(Compute { device, stored: wanted, dtype, remark })
}

/// What an error says, without the trace of calls that a driver's may carry.
pub fn first_line(e: &impl std::fmt::Display) -> String {
    e.to_string().lines().next().unwrap_or_default().to_string()
}

fn gpu(name: &str, built: bool, open: impl FnOnce() -> candle_core::Result<Device>) -> Result<Device> {
    if !built {
        let feature = name.split(':').next().unwrap_or(name);
        bail!(
            "this build of reel has no `{feature}` support\n  fix: --device cpu, or make a build with it: in reel's source, `cargo build --release --features {feature}`, {}",
            if feature == "metal" { "on a Mac" } else { "where CUDA's toolkit (`nvcc`) is" }
        )
    }
    let what = || format!("the device `{name}` cannot be opened\n  fix: --device cpu, or look at the driver");
    open().with_context(what).fault(Fault::Input) // who names a device can name another
}
