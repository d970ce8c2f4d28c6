//! Kinds of operations, and how fast this machine is at each: measured with the layers that a run takes, in a fraction of a
//! second, so that a run can be timed before any like it was made.

use crate::models::random;
use crate::nn::attention::Attention;
use crate::nn::conv3d::{Conv3d, Fusion};
use crate::nn::kernel::blocks::QuantType;
use crate::nn::kernel::{self, MatmulType};
use crate::nn::linear::Linear;
use crate::nn::path::{Input, Product, ProductPath};
use crate::platform::device::Compute;
use crate::platform::machine;
use crate::sampling::noise::Noise;
use crate::weights::open::Tensors;
use candle_core::{DType, Device, Result, Tensor};
use std::time::{Duration, Instant};

/// Reads from headers how a network multiplies by these weights.
pub fn product_of(tensors: &Tensors, compute: &Compute, int8: bool) -> Product {
    Product { math: tensors.math(compute.stored), blocks: tensors.mostly(), int8 }
}

/// Operations of one kind, which take about the same time each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Products of activations and weights.
    Product(Product),
    /// Attention with heads of so many channels.
    Attention(MatmulType, usize),
    /// The VAE's 3-D convolutions.
    Convolution(MatmulType),
}

/// How long one kind of work is measured for.
const LONGEST: Duration = Duration::from_millis(250);
/// A try that takes less says little: the next one is larger.
const SHORTEST: Duration = Duration::from_millis(25);
/// A machine that gives this process less than this share of its threads' time is busy with something else. Threads that wait for each
/// other take some of the rest.
const FREE: f64 = 0.8;
/// Channels of the layers that are measured: those of the smallest released transformer, and of a VAE's middle layers.
const WIDTH: usize = 2048;
const CHANNELS: usize = 256;

impl Work {
    /// Names the kind, as the history keeps it.
    pub fn name(self) -> String {
        let of = |math: MatmulType| match math {
            MatmulType::F32 => "f32",
            MatmulType::Bf16 => "bf16",
        };
        match self {
            Work::Product(product) if product.path(Input::CPU) == ProductPath::Int8 => {
                format!("{} product in int8", product.blocks.map_or("plain", QuantType::name))
            }
            Work::Product(Product { math, blocks: Some(kind), .. }) => {
                format!("{} product in {}", kind.name(), of(math))
            }
            Work::Product(Product { math, .. }) => format!("product in {}", of(math)),
            Work::Attention(math, head_dim) => format!("attention in {}, heads of {head_dim}", of(math)),
            Work::Convolution(math) => format!("convolution in {}", of(math)),
        }
    }

    /// Measures this work on the CPU: operations, and the seconds that they take at the best of some tries.
    pub fn measure(self) -> Result<(u64, f64)> {
        match self {
            Work::Product(product) => {
                let matrix = random::matrix(WIDTH, WIDTH, stored(product.math), product.blocks)?;
                let matrix = if product.int8 { matrix } else { matrix.dequantised() };
                let layer = Linear::new(matrix, None).prepack();
                measure(64, 1024, |rows| normal(&[rows, WIDTH]), |x| layer.forward(x))
            }
            Work::Attention(math, head_dim) => {
                let heads = (WIDTH / head_dim.max(1)).max(1);
                let how = Attention {
                    heads,
                    scale: 1.0 / (head_dim as f64).sqrt(),
                    norms: [None; 2],
                    rope: None,
                    bias: None,
                    math,
                    int8: false,
                };
                measure(128, 2048, |tokens| normal(&[1, tokens, heads * head_dim]), |x| how.forward(x, x, x))
            }
            Work::Convolution(math) => {
                let weight = normal(&[CHANNELS, CHANNELS, 3, 3, 3])?.to_dtype(stored(math))?;
                let layer = Conv3d::new(&weight, Tensor::zeros(CHANNELS, DType::F32, &Device::Cpu)?, [1; 3])?;
                let pictures = |side| normal(&[1, 4, side, side, CHANNELS]);
                measure(8, 64, pictures, |x| layer.forward(std::slice::from_ref(x), Fusion::default()))
            }
        }
    }
}

/// What weights are kept in where products are made in `math`.
fn stored(math: MatmulType) -> DType {
    match math {
        MatmulType::F32 => DType::F32,
        MatmulType::Bf16 => DType::BF16,
    }
}

/// Random activations.
fn normal(shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(Noise::new(1).normal(shape.iter().product()), shape, &Device::Cpu)
}

/// Times a layer over what `make` makes of a size, of twice the size where that took too little time to tell, until the time is up.
/// - `least`, `most`: sizes. Returns the operations of the last size, and its best seconds, less the share of the time that a busy machine
///   gave to others: what else it does today is no part of its speed.
fn measure(
    least: usize,
    most: usize,
    make: impl Fn(usize) -> Result<Tensor>,
    layer: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let mut size = least;
    let mut x = make(size)?;
    let (mut best, mut given, mut passed) = (f64::INFINITY, Some(0.0), 0.0);
    loop {
        let (before, start, worked) = (kernel::operations(), Instant::now(), machine::cpu_seconds());
        layer(&x)?;
        let (operations, took) = (kernel::operations() - before, start.elapsed());
        passed += took.as_secs_f64();
        given = given.zip(machine::cpu_seconds().zip(worked)).map(|(sum, (now, then))| sum + now - then);
        if took < SHORTEST && size < most {
            size *= 2;
            x = make(size)?;
            continue; // this one warmed the CPU up
        }
        best = best.min(took.as_secs_f64());
        if begun.elapsed() > LONGEST {
            let share = given.map_or(1.0, |given: f64| given / (passed * rayon::current_num_threads() as f64));
            return Ok((operations, best * (share / FREE).clamp(0.05, 1.0)));
        }
    }
}
