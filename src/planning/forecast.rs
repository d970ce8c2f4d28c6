//! Estimates a run's memory and time before it starts, and records its stage timings afterwards. The settings become a plan that
//! fits the free memory; its time comes from this machine's history of finished stages, to which the run's own are added.

mod sketch;

use crate::hub::catalogue::{self, Kind};
use crate::hub::store::Store;
use crate::job::convention::Convention;
use crate::job::geometry::{Extent, Geometry};
use crate::job::host::Host;
use crate::job::recipe::Recipe;
use crate::job::request::Request;
use crate::models::text::tokenizer::Tokenizer;
use crate::models::{Config, Family};
use crate::nn::path::{Input, ProductPath};
use crate::nn::stream::Chunking;
use crate::planning::history::{self, Run};
use crate::planning::outputs;
use crate::planning::settings::Settings;
use crate::planning::{self, Budget, Choices, Chooser, Encoder, Model, Need, Offer, Plan, Report, Requantised, Stage};
use crate::planning::{Time, Work};
use crate::platform::device::Compute;
use crate::platform::machine;
use crate::platform::progress::{Progress, human_bytes};
use crate::video::write::Target;
use anyhow::Result;
pub use sketch::{HeldSpan, Sketch, stills};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

/// Divisor for the part of free memory that a plan leaves unused: 1/20.
const MARGIN: u64 = 20;

/// Operations from which a run first measures the machine's speed, if unknown: about ten seconds of work on a small machine, so
/// that measuring is short in comparison.
const MEASURE_FROM: u64 = 1_000_000_000_000;
/// Estimated seconds from which a run logs its time.
const LOG_TIME_FROM: f64 = 10.0;
/// Estimated seconds from which a run offers a smaller clip.
const OFFER_FROM: f64 = 600.0;

/// Resource estimate before a run, timings after it.
pub struct Forecast {
    pub plan: Plan,
    pub model: Model,
    sketch: Sketch,
    compute: Compute,
    /// Why the run does not fit in memory, and what would; `None`: it fits.
    pub refusal: Option<String>,
    /// Whether the request asks for VAE tiles.
    tiled: bool,
    /// The output's path with `SEED` in place of a seed not yet drawn; `None` where the path is known.
    unnamed: Option<String>,
    /// Measurements of finished stages; `None` unless [`Forecast::watch`] was called.
    watched: Option<Mutex<Vec<Watched>>>,
}

/// Time and memory of a finished stage.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    pub stage: Stage,
    pub seconds: f64,
    /// Peak resident bytes; `None` where the system does not report them.
    pub memory: Option<u64>,
}

/// Returns the memory that a run may use.
fn budget(host: &Host, compute: &Compute) -> Budget {
    match host.memory {
        Some(bytes) => Budget::Asked(bytes),
        None if !compute.device.is_cpu() => Budget::Unknown,
        None => machine::free_memory().map_or(Budget::Unknown, |free| Budget::Free(free - free / MARGIN)),
    }
}

/// This machine's speed: timings of earlier runs, and operations a second for each kind of work.
pub struct Speeds {
    place: Option<PathBuf>,
    runs: Vec<Run>,
    /// Whether an unknown speed may be measured, which takes a moment.
    measures: bool,
}

impl Speeds {
    /// Reads the machine's history.
    pub fn of_machine(measures: bool) -> Self {
        let place = history::place();
        Self { runs: place.as_deref().map(history::read).unwrap_or_default(), place, measures }
    }

    /// Returns the CPU's operations a second for a kind of work, measured once and then kept in the history.
    /// - `None` where it is unknown and may not, or cannot, be measured.
    fn of(&mut self, work: Work) -> Option<f64> {
        let mut run = Run {
            stage: work.name(),
            model: crate::nn::kernel::cpu_path().to_string(),
            operations: 0,
            seconds: 0.0,
            threads: rayon::current_num_threads(),
            operand: 0,
            device: "cpu".to_string(),
        };
        if let Some(speed) = history::speed(&self.runs, &run) {
            return Some(speed);
        }
        if !self.measures {
            return None;
        }
        (run.operations, run.seconds) = work.measure().ok()?;
        if let Some(place) = &self.place {
            let _ = history::add(place, &run); // if this fails, the next run measures again
        }
        self.runs.push(run.clone());
        history::speed(&self.runs, &run)
    }
}

impl Forecast {
    /// Plans a run so that it fits the memory it may use.
    /// - Errors on a clip or tiles that cannot be made. Too little memory is not an error here: see [`Forecast::fits`].
    pub fn new(model: Model, sketch: Sketch, request: &Request, host: &Host, compute: &Compute) -> Result<Self> {
        let space = model.config.geometry().space;
        let tiling = planning::tiling(request.vae_tile, request.vae_overlap, space)?;
        let (budget, task) = (budget(host, compute), sketch.task()?);
        let chooser = Chooser {
            model: &model,
            task: &task,
            resized: &|clip| sketch.resized(clip),
            tiles: request.vae_tile,
            tiling,
            budget,
            compute,
        };
        let (choices, refusal) = match chooser.choose() {
            Ok(choices) => (choices, None),
            Err(error) => (Choices::plenty(&model, &task, tiling, compute), Some(error.to_string())),
        };
        let needs = planning::needs(&model, &task, &choices, compute);
        Ok(Self {
            plan: Plan { task, needs, choices, budget, requantised: Requantised::of(&model, &choices) },
            model,
            sketch,
            compute: compute.clone(),
            refusal,
            tiled: tiling.is_some(),
            unnamed: outputs::unnamed(request, host).map(|path| path.display().to_string()),
            watched: None,
        })
    }

    /// Checks that the run fits in memory.
    /// - Errors with what would fit.
    pub fn fits(&self) -> Result<()> {
        match &self.refusal {
            Some(refusal) => Err(anyhow::anyhow!("{refusal}")),
            None => Ok(()),
        }
    }

    /// Logs how long the run takes, and how it is split to save memory where that costs time or changes pictures.
    pub fn log(&self, progress: &Progress) {
        self.log_time(progress);
        let space = self.model.config.geometry().space;
        self.plan
            .remarks(self.model.config.blocks(), space, self.tiled)
            .iter()
            .for_each(|remark| progress.note(remark));
        for need in &self.plan.needs {
            progress.detail(&format!("{}: about {} of memory", need.stage.name(), human_bytes(need.memory())));
        }
        let Chunking { latent_frames: group, slices: parts } = self.plan.choices.decode.chunking;
        let parts = if parts > 1 { format!(", and what becomes of them in {parts} parts") } else { String::new() };
        progress.detail(&format!("the decoder takes {group} latent frames at a time{parts}"));
    }

    /// Logs how long the run takes, where that is known and not short, and a smaller clip where it is long.
    fn log_time(&self, progress: &Progress) {
        if progress.is_silent() {
            return;
        }
        let operations: u64 = self.plan.needs.iter().map(|need| need.operations).sum();
        let mut speeds = Speeds::of_machine(operations >= MEASURE_FROM);
        let time = Time::sum(&self.times(&self.plan.needs, &mut speeds));
        if let (Some(said), true) = (time.describe(), time.seconds().is_some_and(|seconds| seconds >= LOG_TIME_FROM)) {
            progress.note(&format!("time: {said}"));
        }
        if let Some(offer) = self.offer(time, &mut speeds) {
            progress.note(&offer.describe());
        }
    }

    /// Estimates each stage's time from earlier runs of the same kind, else from the machine's speed. A GPU has no measured
    /// speed, so a stage that it never ran is [`Time::Unknown`].
    pub fn times(&self, needs: &[Need], speeds: &mut Speeds) -> Vec<Time> {
        let time = |need: &Need| match history::forecast(&speeds.runs, &self.run(need, 0.0)) {
            Some(seconds) => Time::Measured(seconds),
            None if !self.compute.device.is_cpu() => Time::Unknown,
            None => need.seconds(|work| speeds.of(work)).map_or(Time::Unknown, Time::Estimated),
        };
        needs.iter().map(time).collect()
    }

    /// Offers a smaller clip for a run of over [`OFFER_FROM`] seconds: the largest that stays within them, else the fastest one
    /// if it takes less than half as long.
    /// - `whole`: time of the run as requested.
    fn offer(&self, whole: Time, speeds: &mut Speeds) -> Option<Offer> {
        let most = whole.seconds().filter(|&seconds| seconds > OFFER_FROM && self.refusal.is_none())?;
        let tasks = offered_clips(self.plan.task.clip, self.sketch.config.geometry());
        let mut offers = vec![];
        for task in tasks.into_iter().filter_map(|clip| self.sketch.resized(clip)) {
            let Choices { resident, .. } = self.plan.choices;
            let choices = Choices { resident, ..Choices::plenty(&self.model, &task, None, &self.compute) };
            let needs = planning::needs(&self.model, &task, &choices, &self.compute);
            let time = Time::sum(&self.times(&needs, speeds));
            let Some(seconds) = time.seconds() else { continue };
            let offer = Offer { flags: task.flags_from(&self.plan.task), clip: task.clip, time };
            if seconds <= OFFER_FROM {
                return Some(offer); // tasks are sorted, largest first
            }
            offers.push((seconds, offer));
        }
        let least = offers.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        least.filter(|(seconds, _)| *seconds < most / 2.0).map(|(_, offer)| offer)
    }

    /// Returns a stage's record for the history.
    fn run(&self, need: &Need, seconds: f64) -> Run {
        let planning::Products { transformer, text, vae } = self.model.products;
        let input = Input::new(&self.compute.device, self.compute.dtype);
        Run {
            stage: need.stage.name().to_string(),
            model: self.model.name.rsplit(['/', '\\']).next().unwrap_or_default().to_string(), // no paths
            operations: need.operations,
            seconds,
            threads: rayon::current_num_threads(),
            operand: match need.stage {
                Stage::Text => text.operand(input),
                Stage::Denoise if transformer.path(input) == ProductPath::Int8 => 1,
                Stage::Denoise => transformer.operand(input),
                Stage::Encode | Stage::Decode => vae.operand(input),
            },
            device: if input.is_cpu() { "cpu" } else { "gpu" }.to_string(),
        }
    }

    /// Switches to recording each stage's time and peak memory in [`Forecast::watched()`] instead of the history. Resets the
    /// process's peak memory counter.
    pub fn watch(&mut self) {
        let _ = machine::forget_peak();
        self.watched = Some(Mutex::default());
    }

    /// Returns the stages recorded since [`Forecast::watch`].
    pub fn watched(&self) -> Vec<Watched> {
        self.watched.as_ref().and_then(|all| all.lock().ok()).map(|all| all.clone()).unwrap_or_default()
    }

    /// Adds a finished stage to the machine's history, or to [`Forecast::watched()`] where stages are watched.
    pub fn remember(&self, stage: Stage, begun: Instant, progress: &Progress) {
        let seconds = begun.elapsed().as_secs_f64();
        if let Some(Ok(mut all)) = self.watched.as_ref().map(Mutex::lock) {
            let memory = machine::peak_memory().filter(|_| machine::forget_peak().is_ok());
            return all.push(Watched { stage, seconds, memory });
        }
        let Some(need) = self.plan.need(stage).filter(|need| need.operations > 0) else { return };
        let Some(place) = history::place() else { return };
        if let Err(error) = history::add(&place, &self.run(need, seconds)) {
            progress.detail(&format!("`{}` cannot be written ({error}): no forecast from this run", place.display()));
        }
    }

    /// Returns what `--dry-run` prints in addition to the plan.
    /// - `clip`: size and frames of the output file.
    pub fn report(&self, settings: &Settings, target: &Target, clip: Extent) -> Report {
        let mut speeds = Speeds::of_machine(true);
        let times = self.times(&self.plan.needs, &mut speeds);
        Report {
            model: self.model.name.clone(),
            fps: settings.fps,
            space: self.model.config.geometry().space,
            layers: self.model.config.blocks(),
            tiled: self.tiled,
            out: Some(self.unnamed.clone().unwrap_or_else(|| target.path.display().to_string())),
            scale: settings.scale,
            output: Some(clip),
            disk: planning::least_disk(target, settings.least(clip)),
            downloads: vec![],
            download_room: None,
            offer: self.offer(Time::sum(&times), &mut speeds),
            times,
            refusal: self.refusal.clone(),
            encoder: self.model.text_encoder.clone(),
        }
    }
}

/// Lists smaller clips of about the same aspect ratio, largest first. The picture's area shrinks at least as much as the
/// frame count, and neither falls below a useful minimum.
fn offered_clips(clip: Extent, geometry: Geometry) -> Vec<Extent> {
    /// Least pixels along the longer side.
    const LEAST_PIXELS: usize = 384;
    /// Least frames, unless the clip itself has fewer.
    const LEAST_FRAMES: usize = 25;
    /// Sides are tried in steps of 1/12 of the clip's.
    const PARTS: usize = 12;
    let mut all = vec![];
    for part in (3..=PARTS).rev() {
        let side =
            |side: usize| ((side * part) as f64 / (PARTS * geometry.space) as f64).round() as usize * geometry.space;
        let (width, height) = match part {
            PARTS => (clip.width, clip.height),
            _ => (side(clip.width), side(clip.height)),
        };
        if width.max(height) < LEAST_PIXELS || width.min(height) == 0 {
            continue;
        }
        let area = (width * height) as f64 / (clip.width * clip.height) as f64;
        for share in [1.0, 0.8, 0.6, 0.4, 0.2] {
            let frames = (clip.frames as f64 * share / geometry.time as f64).round() as usize * geometry.time + 1;
            let frames = if share == 1.0 { clip.frames } else { frames };
            if frames >= LEAST_FRAMES.min(clip.frames) && share >= area {
                all.push(Extent { width, height, frames });
            }
        }
    }
    all.sort_by_key(|clip| std::cmp::Reverse(clip.width * clip.height * clip.frames));
    all
}

/// Chooses the text encoder of a run whose request names none, by [`planning::encoder`].
/// - `None` where the request names one, or where the model is embedded or not in the catalogue.
pub fn encoder(request: &Request, host: &Host, compute: &Compute) -> Result<Option<Encoder>> {
    let name = request.model.as_deref().unwrap_or(crate::embedded::NAME);
    let entry = catalogue::named(name).filter(|entry| entry.kind == Kind::Model && !entry.embedded);
    let Some(entry) = entry.filter(|_| request.text_encoder.is_none()) else { return Ok(None) };
    let store = Store::from_env()?;
    let family = Family::of_entry(entry)?;
    // a model whose sizes are unknown is taken for a newer release: close enough for an estimate
    let own = Config::of_entry(entry).map_or(Convention::Condition, |config| config.convention());
    let convention = request.convention.or(entry.run.convention).unwrap_or(own);
    let recipe = Recipe::decide(request.convention, entry.run.recipe);
    let tokenizer = Tokenizer::builtin_t5()?; // the tokenizer of nearly all models: close enough for an estimate
    let negative = request.negative.as_deref().or(entry.run.negative.as_deref());
    let texts = request.prompt_at.iter().map(|scene| scene.prompt.as_str()).chain(negative);
    let texts = std::iter::once(request.prompt.as_str()).chain(texts);
    let tokens = |text| {
        let ids = tokenizer.encode(text, family.max_tokens(recipe, convention))?.ids;
        Ok(family.encoded_tokens(recipe, convention, ids.len()))
    };
    let prompts = texts.map(tokens).collect::<Result<Vec<usize>>>()?;
    Ok(planning::encoder(entry, &prompts, |entry| store.find(entry), budget(host, compute), compute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_clips_keep_the_shape() {
        let geometry = Geometry { time: 8, space: 32 };
        let clip = Extent { width: 1216, height: 704, frames: 121 };
        let size = |clip: &Extent| clip.width * clip.height * clip.frames;
        let offered = offered_clips(clip, geometry);
        assert!(offered.len() > 20 && offered.is_sorted_by(|a, b| size(a) >= size(b)), "{offered:?}");
        for other in &offered {
            assert_eq!(*other, geometry.legal(*other));
            let aspect = |clip: &Extent| clip.width as f64 / clip.height as f64;
            assert!((aspect(other) / aspect(&clip) - 1.0).abs() < 0.15, "{other:?}");
            assert!(other.width >= 384 && (25..=121).contains(&other.frames), "{other:?}");
        }
        // a still cannot get shorter, and a small picture cannot get smaller
        assert!(offered_clips(Extent { frames: 1, ..clip }, geometry).iter().all(|clip| clip.frames == 1));
        let small = Extent { width: 64, height: 64, frames: 121 };
        assert!(offered_clips(small, geometry).is_empty());
    }
}
