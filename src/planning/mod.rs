//! What a run will take, from file headers alone: memory stage by stage, disk, operations; and how it is cut so that it stays
//! within the memory that it may use.
//!
//! The promise is about peak resident memory, as the system counts it: what the program holds itself, and the pages of mapped
//! files that it is looking at. Weights that are used where they lie in their file count for as long as they are in use; their
//! pages are let go with the last use. What the system keeps of files beyond that (its page cache) belongs to no program.

mod choose;
pub mod cut;
mod disk;
mod encoder;
pub mod forecast;
pub mod history;
pub mod outputs;
pub mod passes;
pub mod scenes;
pub mod settings;
mod show;
mod weights;
mod work;

pub use choose::{Budget, Choices, Chooser, smaller_clips, tiling};
pub use disk::{check_disk, least_disk};
pub use encoder::{Encoder, encoder};
pub use show::{Download, Offer, Report, Room, Time, rough_seconds};
pub use weights::{Model, Products};
pub use work::Work;

use crate::job::geometry::{Extent, Geometry};
use crate::models::cost::{Count, Widths};
use crate::models::text::t5::T5Config;
use crate::models::{UpscalerConfig, text};
use crate::nn::kernel::MatmulType;
use crate::nn::kernel::memory::{SLACK_BYTES, SLACK_SHARE};
use crate::nn::path::{Input, Product};
use crate::nn::tiles::Tiling;
use crate::platform::device::Compute;
use candle_core::DType;
use cut::VaeChunking;
use std::path::PathBuf;
use weights::Weights;

/// The program itself: code, the allocator's small blocks, threads, the writer's buffers. Measured: 38 to 46 MB.
const PROGRAM: u64 = 44 << 20;

/// What is to be made, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// As asked for, and as the model makes it.
    pub clip: Extent,
    pub legal: Extent,
    /// What each pass makes; pictures of the last one are brought to `legal`.
    pub canvases: Vec<Extent>,
    /// Every window of every pass.
    pub windows: Vec<Window>,
    /// Latent frames of every scene.
    pub scenes: Vec<usize>,
    /// Tokens of every prompt, the negative one included, as the text encoder runs over them.
    pub prompts: Vec<usize>,
    /// Frames of every still and clip that is held.
    pub held: Vec<usize>,
    /// Bytes of all their pictures.
    pub pictures: u64,
    /// Frames of the clip that footage gives: `--frames` counts those beside them.
    pub context: usize,
    /// Bytes that a picture takes while it is enlarged and written; 0 where it is not enlarged.
    pub enlarging: u64,
}

/// What the transformer denoises at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Of the passes, which: from 0 on.
    pub pass: usize,
    /// With those that only condition it.
    pub tokens: usize,
    pub steps: usize,
    /// Evaluations of the transformer in all steps together: the prompt, and what guidance sets against it.
    pub evaluations: usize,
}

impl Task {
    /// What is decoded.
    pub fn canvas(&self) -> Extent {
        self.canvases.last().copied().unwrap_or(self.legal)
    }

    /// Tokens of the longest window.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens).max().unwrap_or(0)
    }

    /// The windows of one pass.
    pub fn of_pass(&self, pass: usize) -> impl Iterator<Item = &Window> + Clone {
        self.windows.iter().filter(move |window| window.pass == pass)
    }
}

/// The stages, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Text,
    Encode,
    Denoise,
    Decode,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Text => "text",
            Stage::Encode => "encode",
            Stage::Denoise => "denoise",
            Stage::Decode => "decode",
        }
    }
}

/// What one stage takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    pub stage: Stage,
    /// Bytes of weights that are in memory at once.
    pub weights: u64,
    /// Of what its layers hand to each other, at the most at once.
    pub live: u64,
    /// Of what comes from earlier stages and goes to later ones: vectors, latents, pictures.
    pub held: u64,
    /// Multiplications and additions.
    pub operations: u64,
    /// The same by kinds.
    pub work: Vec<(Work, u64)>,
    /// Bytes of weights that are read from their files, as often as they are.
    pub read: u64,
}

/// Bytes of weights a second that a stage gets from its files, where the system does not have them in memory: an assumption, of
/// a plain solid-state disk.
const READING: f64 = 1e9;

impl Need {
    /// Estimates the stage's seconds from the machine's speed.
    /// - `speed`: operations a second of a kind of work. `None` where that is not known.
    pub fn seconds(&self, mut speed: impl FnMut(Work) -> Option<f64>) -> Option<f64> {
        let mut seconds = self.read as f64 / READING;
        for &(work, operations) in self.work.iter().filter(|(_, operations)| *operations > 0) {
            seconds += operations as f64 / speed(work)?;
        }
        Some(seconds)
    }

    /// What its layers hand to each other, and blocks that the allocator keeps for the next.
    pub fn activations(&self) -> u64 {
        // the VAE's kernels are copied and turned, so they are blocks too; other weights lie in their files
        let blocks = match self.stage {
            Stage::Encode | Stage::Decode => self.live + self.weights,
            Stage::Text | Stage::Denoise => self.live,
        };
        self.live + blocks / SLACK_SHARE as u64 + self.live.min(SLACK_BYTES as u64)
    }

    /// Peak resident bytes.
    pub fn memory(&self) -> u64 {
        PROGRAM + self.weights + self.activations() + self.held
    }
}

/// Everything that a run takes.
#[derive(Clone, Debug)]
pub struct Plan {
    pub task: Task,
    pub needs: Vec<Need>,
    pub choices: Choices,
    pub budget: Budget,
    /// How blocks that are opened at each step are quantised, where they are.
    pub requantised: Option<Requantised>,
}

/// Blocks that are quantised as they are loaded and do not stay in memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Requantised {
    /// Once, into a file of so many bytes in that folder, which goes with the run.
    Once(u64, PathBuf),
    /// Each time they are opened: there is no room for the file.
    EachTime,
}

impl Requantised {
    pub fn of(model: &Model, choices: &Choices) -> Option<Self> {
        if choices.resident >= model.config.blocks() || !model.quantised_anew {
            return None;
        }
        let folder = model.scratch.clone().filter(|_| choices.scratch);
        Some(folder.map_or(Self::EachTime, |folder| Self::Once(model.transformer.total(), folder)))
    }
}

impl Plan {
    /// The stage that takes most.
    pub fn memory(&self) -> u64 {
        self.needs.iter().map(Need::memory).max().unwrap_or(0)
    }

    pub fn need(&self, stage: Stage) -> Option<&Need> {
        self.needs.iter().find(|need| need.stage == stage)
    }
}

/// What runs a network whose products are such.
fn widths(compute: &Compute, product: Product) -> Widths {
    Widths::new(Input::new(&compute.device, compute.dtype), product)
}

/// What each stage takes with these choices.
pub fn needs(model: &Model, task: &Task, choices: &Choices, compute: &Compute) -> Vec<Need> {
    let all = [Stage::Text, Stage::Encode, Stage::Denoise, Stage::Decode];
    all.into_iter().filter_map(|stage| need(model, task, choices, compute, stage)).collect()
}

/// What one stage takes; `None` where it does not run.
fn need(model: &Model, task: &Task, choices: &Choices, compute: &Compute, stage: Stage) -> Option<Need> {
    let mut need = match stage {
        Stage::Text => encode_text(model, task, compute),
        Stage::Encode if task.held.is_empty() => return None,
        Stage::Encode => encode(model, task, choices, compute),
        Stage::Denoise => denoise(model, task, choices, compute),
        Stage::Decode => decode(model, task, choices, compute),
    };
    if model.kept {
        need.held += kept_beside(model, choices, stage);
        if stage == Stage::Text {
            need.weights = model.text.1.total();
        }
    }
    Some(need)
}

/// Bytes of the networks that stay in memory beside that of a stage: those of the stages before it, and in a later run of all.
fn kept_beside(model: &Model, choices: &Choices, stage: Stage) -> u64 {
    let all = [
        (Stage::Text, model.text.1.total()),
        (Stage::Encode, model.encoder.total()),
        (Stage::Denoise, model.transformer.with_layers(choices.resident)),
        (Stage::Decode, model.decoder.total()),
    ];
    all.into_iter().filter(|(other, _)| *other != stage).map(|(_, bytes)| bytes).sum()
}

/// Latent frames after which nothing new happens in a decoder: its layers together look about 21 ahead.
const STEADY: usize = 48;

/// Vectors of all prompts.
fn vectors(model: &Model, task: &Task, compute: &Compute) -> u64 {
    (task.prompts.iter().sum::<usize>() * model.text.0.d_model * compute.dtype.size_in_bytes()) as u64
}

/// Latents of the whole clip, f32.
fn latents(model: &Model, task: &Task) -> u64 {
    let geometry = model.config.geometry();
    let canvas = task.canvas();
    let plane = canvas.width / geometry.space * (canvas.height / geometry.space);
    (task.scenes.iter().sum::<usize>() * plane * model.config.latent_channels() * 4) as u64
}

fn encode_text(model: &Model, task: &Task, compute: &Compute) -> Need {
    let (config, weights) = &model.text;
    let held = task.pictures + vectors(model, task, compute);
    of_text(config, weights, model.products.text, &task.prompts, held, compute)
}

/// What a text encoder takes.
/// - `prompts`: tokens of each. `held`: bytes of what comes from earlier stages and goes to later ones.
fn of_text(
    config: &T5Config,
    weights: &Weights,
    product: Product,
    prompts: &[usize],
    held: u64,
    compute: &Compute,
) -> Need {
    let Count { peak, operations, .. } = text::cost::encoder(config, prompts, widths(compute, product));
    let (work, read) = (vec![(Work::Product(product), operations)], weights.total());
    Need { stage: Stage::Text, weights: weights.with_layers(0), live: peak, held, operations, work, read }
}

fn encode(model: &Model, task: &Task, choices: &Choices, compute: &Compute) -> Need {
    let widths = widths(compute, model.products.vae);
    let VaeChunking { chunking, tiling } = choices.encode;
    let space = model.config.geometry().space;
    let mut all = Count::default();
    for (canvas, &frames) in task.canvases.iter().flat_map(|canvas| task.held.iter().map(move |held| (canvas, held))) {
        each_tile(tiling, canvas.height / space, canvas.width / space, |h, w, times| {
            let count = model.config.encoder_cost([frames, h * space, w * space], chunking.latent_frames, widths);
            all.peak = all.peak.max(count.peak);
            all.operations += times * count.operations;
        });
    }
    let held = task.pictures + vectors(model, task, compute);
    let weights = model.encoder.total();
    let work = vec![(Work::Convolution(model.products.vae.math), all.operations)];
    let (operations, read) = (all.operations, task.canvases.len() as u64 * weights);
    Need { stage: Stage::Encode, weights, live: all.peak, held, operations, work, read }
}

fn denoise(model: &Model, task: &Task, choices: &Choices, compute: &Compute) -> Need {
    let (config, weights) = (&model.config, &model.transformer);
    let product = model.products.transformer;
    let widths = widths(compute, product);
    let text = task.prompts.iter().copied().max().unwrap_or(0);
    let contexts = config.contexts_cost(&task.prompts, widths);
    let (mut peak, mut operations, mut attention) = (0, contexts.operations, 0);
    for window in &task.windows {
        let count = config.transformer_cost(window.tokens, text, widths);
        peak = peak.max(count.peak);
        operations += window.evaluations as u64 * count.operations;
        attention += window.evaluations as u64 * count.attention;
    }
    let passing: u64 = weights.layers.iter().skip(choices.resident).sum();
    let evaluations: usize = task.windows.iter().map(|window| window.evaluations).sum();
    let read = weights.total() + passing * evaluations.saturating_sub(1) as u64;
    let mut work = vec![
        (Work::Product(product), operations - attention),
        (Work::Attention(product.math, config.head_dim()), attention),
    ];
    let held = task.pictures + vectors(model, task, compute) + contexts.peak + 2 * latents(model, task);
    let mut weights = weights.with_layers(choices.resident);
    if let (Some((config, bytes)), Some(canvas)) = (&model.upscaler, task.canvases.first()) {
        // it stands between two passes, with the transformer where it was
        let space = model.config.geometry().space;
        let upscaled = upscale(config, task, canvas.height / space, canvas.width / space, compute);
        peak = peak.max(upscaled.peak);
        operations += upscaled.operations;
        work.push((Work::Convolution(MatmulType::F32), upscaled.operations));
        weights += bytes;
    }
    Need { stage: Stage::Denoise, weights, live: peak, held, operations, work, read }
}

/// What the upscaler takes over the windows of the first pass.
/// - `height`, `width`: of their latents.
fn upscale(config: &UpscalerConfig, task: &Task, height: usize, width: usize, compute: &Compute) -> Count {
    let widths = Widths::new(Input::new(&compute.device, DType::F32), Product::plain(MatmulType::F32));
    let mut all = Count::default();
    for window in task.of_pass(0) {
        let frames = (window.tokens / (height * width).max(1)).max(1);
        let count = config.cost([frames, height, width], widths);
        all.peak = all.peak.max(count.peak);
        all.operations += count.operations;
    }
    all
}

fn decode(model: &Model, task: &Task, choices: &Choices, compute: &Compute) -> Need {
    let widths = widths(compute, model.products.vae);
    let VaeChunking { chunking, tiling } = choices.decode;
    let Geometry { space, time } = model.config.geometry();
    let canvas = task.canvas();
    let (h, w) = (canvas.height / space, canvas.width / space);
    // pictures that are yet to be brought to another size are joined in f32
    let wide = if (canvas.width, canvas.height) == (task.legal.width, task.legal.height) { 1 } else { 4 };
    let (mut all, mut joined) = (Count::default(), 0);
    for &frames in &task.scenes {
        each_tile(tiling, h, w, |h, w, times| {
            let seen = frames.min(STEADY.max(2 * chunking.latent_frames));
            let count = model.config.decoder_cost([seen, h, w], chunking, widths);
            all.peak = all.peak.max(count.peak);
            all.operations += times * (count.operations as f64 * frames as f64 / seen as f64) as u64;
        });
        if let Some(tiling) = tiling.filter(|tiling| !tiling.is_whole(h, w)) {
            let frames = ((frames - 1) * time + 1) as u64;
            joined = joined.max(frames * joining(&tiling, h, w, space, wide) as u64);
        }
    }
    let held = task.pictures + vectors(model, task, compute) + 2 * latents(model, task) + joined + task.enlarging;
    let weights = model.decoder.total();
    let work = vec![(Work::Convolution(model.products.vae.math), all.operations)];
    let (operations, read) = (all.operations, task.scenes.len() as u64 * weights);
    Need { stage: Stage::Decode, weights, live: all.peak, held, operations, work, read }
}

/// Calls `each` with the height and width of every size of tile, and how many there are of it.
fn each_tile(tiling: Option<Tiling>, h: usize, w: usize, mut each: impl FnMut(usize, usize, u64)) {
    let Some(tiling) = tiling else { return each(h, w, 1) };
    let mut sizes: Vec<(usize, usize, u64)> = vec![];
    for tile in tiling.tiles(h, w).iter().flatten() {
        match sizes.iter_mut().find(|size| (size.0, size.1) == (tile.height, tile.width)) {
            Some(size) => size.2 += 1,
            None => sizes.push((tile.height, tile.width, 1)),
        }
    }
    sizes.into_iter().for_each(|(h, w, times)| each(h, w, times));
}

/// Bytes a frame that putting tiles together takes: the frame, of `wide` bytes a number, and what tiles leave to their neighbours in
/// f32.
fn joining(tiling: &Tiling, h: usize, w: usize, space: usize, wide: usize) -> usize {
    let tiles = tiling.tiles(h, w);
    let (rows, columns) = (tiles.len(), tiles.first().map_or(0, Vec::len));
    let overlap = tiling.overlap * space;
    let across = w * space + (columns - 1) * overlap;
    // below a row of tiles and beside a tile, and below and beside the one before where neither is the last
    let below = rows.saturating_sub(1).min(2) * overlap.min(h * space) * across;
    let beside = columns.saturating_sub(1).min(2) * overlap * tiling.height.min(h) * space;
    3 * (wide * h * w * space * space + 4 * (below + beside))
}
