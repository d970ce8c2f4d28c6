//! How fast the stages are on this machine, each by itself: loaded once, warmed up, run again and again.

mod load;
mod whole;

use crate::job::convention::Convention;
use crate::job::geometry::Extent;
use crate::job::sources::Sources;
use crate::models;
use crate::models::latents::{Layout, Prompt};
use crate::models::networks::{Decoder, Encoder, Transformer, statistics};
use crate::models::random;
use crate::models::sizes::{Part as SizedPart, Size};
use crate::models::text::t5::T5;
use crate::nn::kernel;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::linear::Linear;
use crate::nn::stream::Chunking;
use crate::planning::Stage;
use crate::planning::cut::group;
use crate::platform::cancel::Cancel;
use crate::platform::device::{Compute, Quantize};
use crate::platform::machine::peak_memory;
use crate::sampling::noise::Noise;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use load::{Loaded, MathInfo, text, transformer, vae};
use serde_json::{Value, json};
use std::time::Instant;
use whole::{mux, whole};

/// What can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The text encoder over one prompt
    Text,
    /// One pass of the transformer: a step without guidance
    Step,
    /// Frames to latents
    Encode,
    /// Latents to frames
    Decode,
    /// From a prompt to frames, loading included
    Run,
    /// Frames to an MP4
    Mux,
    /// One product of two matrices of 4096 x 4096
    Product,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Text => "text",
            Part::Step => "step",
            Part::Encode => "encode",
            Part::Decode => "decode",
            Part::Run => "run",
            Part::Mux => "mux",
            Part::Product => "product",
        }
    }
}

/// Where weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Weights {
    /// A model by name or path.
    Model(String),
    /// Random ones of a real size.
    Random(String),
}

/// One thing to time.
#[derive(Clone, Debug)]
pub struct Cell {
    pub part: Part,
    pub weights: Weights,
    pub text_encoder: Option<std::path::PathBuf>,
    pub vae: Option<std::path::PathBuf>,
    pub clip: Extent,
    /// Of the prompt.
    pub tokens: usize,
    /// Layers of a random transformer or text encoder, where not all are wanted.
    pub layers: Option<usize>,
    /// What large matrices are quantised to.
    pub quantize: Option<Quantize>,
    /// Of a whole run, where not the model's own.
    pub steps: Option<usize>,
    /// The most bytes that a whole run may use.
    pub memory: Option<u64>,
    pub warmup: usize,
    pub repeat: usize,
}

impl Cell {
    /// What `model` is put together from.
    pub fn sources<'a>(&'a self, model: &'a str) -> Sources<'a> {
        Sources {
            model,
            text_encoder: self.text_encoder.as_deref(),
            vae: self.vae.as_deref(),
            quantize: self.quantize,
            ..Sources::default()
        }
    }

    /// The size of a random network; a transformer or text encoder as deep as is wanted.
    fn random_size(&self, name: &str) -> Result<Size> {
        let mut size = random_size(name)?;
        if let Some(layers) = self.layers.filter(|_| size.part != SizedPart::Vae) {
            size.config["num_layers"] = json!(layers);
        }
        Ok(size)
    }
}

/// What came of it.
pub struct Row {
    pub cell: Cell,
    pub threads: usize,
    pub dtype: &'static str,
    /// What most weights are quantised to.
    pub blocks: Option<QuantType>,
    /// What the transformer denoises, or the text encoder reads.
    pub tokens: Option<usize>,
    pub seconds: Vec<f64>,
    /// Multiplications and additions of one run, where the CPU's own loops made them.
    pub operations: Option<f64>,
    /// Multiplications and additions a second that the CPU can make.
    pub peak: Option<f64>,
    /// Bytes.
    pub peak_memory: Option<u64>,
    /// Of a whole run.
    pub stages: Vec<StageRow>,
}

/// One stage of a whole run.
pub struct StageRow {
    pub stage: Stage,
    /// Bytes that were planned, and peak resident ones.
    pub planned: u64,
    pub memory: Option<u64>,
    pub seconds: f64,
}

impl StageRow {
    fn json(&self) -> Value {
        let Self { stage, planned, memory, seconds } = self;
        json!({"stage": stage.name(), "planned": planned, "memory": memory, "seconds": seconds})
    }
}

impl Row {
    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
    }

    /// Half the way from the shortest run to the longest.
    pub fn spread(&self) -> f64 {
        let (low, high) = self.seconds.iter().fold((f64::MAX, 0f64), |(a, b), &s| (a.min(s), b.max(s)));
        (high - low) / 2.0
    }

    pub fn rate(&self) -> Option<f64> {
        self.operations.map(|n| n / self.median())
    }

    pub fn json(&self) -> Value {
        let weights = match &self.cell.weights {
            Weights::Model(name) | Weights::Random(name) => name,
        };
        let giga = |x: Option<f64>| x.map(|x| (x / 1e8).round() / 10.0);
        let sized = !matches!(self.cell.part, Part::Text | Part::Product);
        json!({
            "part": self.cell.part.name(),
            "weights": (self.cell.part != Part::Product).then_some(weights),
            "random": self.cell.part != Part::Product && matches!(self.cell.weights, Weights::Random(_)),
            "layers": self.cell.layers,
            "size": sized.then(|| format!("{}x{}", self.cell.clip.width, self.cell.clip.height)),
            "frames": sized.then_some(self.cell.clip.frames),
            "tokens": self.tokens,
            "dtype": self.dtype,
            "blocks": self.blocks.map(QuantType::name),
            "threads": self.threads,
            "seconds": self.median(),
            "spread": self.spread(),
            "runs": self.seconds,
            "gflop": giga(self.operations),
            "gflops": giga(self.rate()),
            "peak_gflops": giga(self.peak),
            "share": self.rate().zip(self.peak).map(|(rate, peak)| (rate / peak * 1000.0).round() / 1000.0),
            "peak_memory": self.peak_memory,
            "stages": (!self.stages.is_empty()).then(|| self.stages.iter().map(StageRow::json).collect::<Vec<_>>()),
        })
    }
}

/// The random size of that name.
/// - Errors on an unknown one, with the choices.
pub fn random_size(name: &str) -> Result<Size> {
    let sizes = models::sizes();
    let known: Vec<&str> = sizes.iter().map(|size| size.name).collect();
    let found = sizes.iter().find(|size| size.name.eq_ignore_ascii_case(name));
    let found =
        found.with_context(|| format!("there are no random weights `{name}`\n  choices: {}", known.join(", ")))?;
    Ok(found.clone())
}

/// Parts that can be timed with these weights.
pub fn parts(weights: &Weights) -> Result<Vec<Part>> {
    Ok(match weights {
        Weights::Model(_) => {
            let mux: &[Part] = if cfg!(feature = "h264") { &[Part::Mux] } else { &[] };
            [&[Part::Text, Part::Step, Part::Encode, Part::Decode], mux, &[Part::Run]].concat()
        }
        Weights::Random(name) => match random_size(name)?.part {
            SizedPart::Transformer => vec![Part::Step],
            SizedPart::Text => vec![Part::Text],
            SizedPart::Vae => vec![Part::Encode, Part::Decode],
        },
    })
}

/// Times one cell in this process, on the threads that it has.
pub fn run(cell: &Cell, compute: &Compute) -> Result<Row> {
    let threads = rayon::current_num_threads();
    let timer = Timer { warmup: cell.warmup, repeat: cell.repeat };
    let mut tokens = None;
    let mut stages = vec![];
    let ((seconds, operations), math) = match cell.part {
        Part::Product => product(&timer, cell, compute)?,
        Part::Run => whole(&timer, cell, compute, &mut stages)?,
        Part::Mux => return mux(&timer, cell),
        Part::Text => {
            let (config, vb, math) = text(cell, compute)?;
            let t5 = T5::load(&config, vb.clone())?;
            // the layers are read anew in each run, as in the program; what random numbers cost to make is not theirs
            let layers = match cell.weights {
                Weights::Random(_) => Some(t5.layers()?),
                Weights::Model(_) => None,
            };
            let ids: Vec<u32> = (0..cell.tokens as u32).map(|i| (3 + i * 37) % config.vocab as u32).collect();
            tokens = Some(ids.len());
            let timed = timer.time(|| {
                let vectors = match &layers {
                    Some(layers) => t5.encode_with(&ids, layers)?,
                    None => t5.encode(&ids, || ())?,
                };
                settle(&vectors)
            })?;
            (timed, MathInfo { int8: false, ..math })
        }
        Part::Step => {
            let Loaded { config, vb, vae, math } = transformer(cell, compute)?;
            let geometry = config.geometry();
            let grid = geometry.grid(geometry.legal(cell.clip));
            tokens = Some(grid.tokens());
            let model = Transformer::load(&config, vb, config.blocks())?;
            let layout = Layout {
                convention: Convention::Condition,
                geometry,
                grid,
                fps: 25.0,
                channels: config.latent_channels(),
                device: compute.device.clone(),
                image_noise: 0.0,
                stochastic: false,
            };
            let text = normal(&[1, cell.tokens, config.text_channels()], 2, compute)?;
            let denoiser = model.denoiser(&config, &[text], None, &Cancel::default())?;
            let statistics = statistics(&config, vae)?;
            let window = denoiser.window(0, &layout, &[], None, &statistics, &mut Noise::new(1))?;
            let timed = timer.time(|| settle(&window.velocity(window.latents(), 900.0, Prompt::Positive, &[])?))?;
            (timed, math)
        }
        Part::Encode => {
            let Loaded { config, vb, math, .. } = vae(cell, compute)?;
            let geometry = config.geometry();
            let legal = geometry.legal(cell.clip);
            let encoder = Encoder::load(&config, vb)?;
            let pixels = normal(&[1, legal.frames, legal.height, legal.width, 3], 3, compute)?;
            let group = group(legal.width, legal.height, geometry, &compute.device);
            let read = |first, count| pixels.narrow(1, first, count);
            let encode = || encoder.moments(legal.frames, group, read, |_| Ok(()));
            let timed = timer.time(|| settle(&encoder.posterior(&encode()?)?.mean))?;
            (timed, math)
        }
        Part::Decode => {
            let Loaded { config, vb, math, .. } = vae(cell, compute)?;
            let geometry = config.geometry();
            let legal = geometry.legal(cell.clip);
            let grid = geometry.grid(legal);
            let decoder = Decoder::load(&config, vb)?;
            let latents = normal(&[1, grid.frames, grid.height, grid.width, config.latent_channels()], 4, compute)?;
            let group = group(legal.width, legal.height, geometry, &compute.device);
            let timed = timer.time(|| {
                let chunking = Chunking { latent_frames: group, slices: 1 };
                decoder.frames(&latents, chunking, 0.05, Noise::new(0), |frames| settle(&frames)).map(|_| ())
            })?;
            (timed, math)
        }
    };
    let cpu = compute.device.is_cpu();
    Ok(Row {
        cell: cell.clone(),
        threads,
        dtype: math.name(),
        blocks: math.blocks,
        tokens,
        seconds,
        operations: operations.filter(|_| cpu),
        peak: cpu.then(|| math.peak(threads)),
        peak_memory: stages.iter().filter_map(|stage| stage.memory).max().or_else(peak_memory),
        stages,
    })
}

/// Runs and clocks.
struct Timer {
    warmup: usize,
    repeat: usize,
}

impl Timer {
    /// Seconds of each run, and operations of the last.
    fn time(&self, mut run: impl FnMut() -> Result<()>) -> Result<(Vec<f64>, Option<f64>)> {
        for _ in 0..self.warmup {
            run()?;
        }
        let (mut seconds, mut operations) = (vec![], 0);
        for _ in 0..self.repeat {
            let before = kernel::operations();
            let start = Instant::now();
            run()?;
            seconds.push(start.elapsed().as_secs_f64());
            operations = kernel::operations() - before;
        }
        Ok((seconds, (operations > 0).then_some(operations as f64)))
    }
}

type Timed = ((Vec<f64>, Option<f64>), MathInfo);

/// Random activations.
fn normal(shape: &[usize], seed: u64, compute: &Compute) -> Result<Tensor> {
    let x = Tensor::from_vec(Noise::new(seed).normal(shape.iter().product()), shape, &compute.device)?;
    Ok(x.to_dtype(compute.dtype)?)
}

/// Waits until a result is there, wherever it is computed, and looks whether it is one.
fn settle(x: &Tensor) -> Result<()> {
    x.device().synchronize()?;
    let first: f32 = x.flatten_all()?.get(0)?.to_dtype(DType::F32)?.to_scalar()?;
    ensure!(first.is_finite(), "the result is no number");
    Ok(())
}

fn product(timer: &Timer, cell: &Cell, compute: &Compute) -> Result<Timed> {
    const SIDE: usize = 4096;
    let stored = compute.stored.unwrap_or(DType::BF16);
    let layer = Linear::new(random::matrix(SIDE, SIDE, stored, cell.quantize.map(Quantize::blocks))?, None).prepack();
    let x = normal(&[SIDE, SIDE], 5, compute)?;
    let info = MathInfo { math: layer.math(), blocks: cell.quantize.map(Quantize::blocks), int8: true };
    Ok((timer.time(|| settle(&layer.forward(&x)?))?, info))
}
