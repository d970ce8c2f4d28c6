//! What a run will take, told before it begins and remembered once it is done: the settings of a take become a plan, the plan is
//! cut to the memory that there is, and finished stages go into the machine's history.

use crate::device::Compute;
use crate::generate::DEFAULT_MODEL;
use crate::generate::shots::{Shot, shots};
use crate::generate::two_passes::{self, canvases};
use crate::geometry::{Extent, Geometry, Grid};
use crate::history::{self, Run};
use crate::inputs::{self, Held, Preparation};
use crate::models::ltx::Convention;
use crate::models::ltx::vae::Pace;
use crate::passes::{Levels, Pass};
use crate::plan::{self, Budget, Choices, Encoder, Model, Plan, Report, Requantised, Stage, Task};
use crate::progress::{Mode, Progress, human_bytes};
use crate::recipe::Recipe;
use crate::request::{Request, Settings};
use crate::sampler::Schedule;
use crate::text::tokenizer::Tokenizer;
use crate::video::write::Target;
use crate::weights::catalogue::{self, Entry, Kind};
use crate::weights::store::Store;
use crate::windows::Direction;
use anyhow::Result;
use std::sync::Mutex;
use std::time::Instant;

/// Of what is free, the share that is left alone: one in so many.
const MARGIN: u64 = 20;

/// Channels of the released upscalers.
const UPSCALER_WIDTH: usize = 512;

/// A plan, what it was made from, and whether it fits.
pub struct Outlook {
    pub plan: Plan,
    model: Model,
    device: String,
    /// Why it does not fit, and what would.
    pub refusal: Option<String>,
    /// Tiles were asked for.
    tiled: bool,
    /// What each finished stage took, where that is watched: seconds and peak resident bytes.
    watched: Option<Mutex<Vec<Watched>>>,
}

/// A stage, its seconds and its peak resident bytes.
pub type Watched = (Stage, f64, Option<u64>);

/// What a run may use.
fn budget(request: &Request, compute: &Compute) -> Budget {
    match request.memory {
        Some(bytes) => Budget::Asked(bytes),
        None if !compute.device.is_cpu() => Budget::Unknown,
        None => plan::free_memory().map_or(Budget::Unknown, |free| Budget::Free(free - free / MARGIN)),
    }
}

/// What is to be made, in numbers.
/// - `canvases`: of each pass. `prompts`: tokens of each, the negative one included.
pub fn task(
    settings: &Settings,
    (legal, canvases): (Extent, &[Extent]),
    geometry: Geometry,
    shots: &[Shot],
    prompts: impl Iterator<Item = usize>,
    held: &[Place],
) -> Task {
    let steps = |pass: &Pass| match &pass.levels {
        Levels::Steps { steps, skip_initial, skip_final } => steps - skip_initial - skip_final,
        Levels::Sigmas(sigmas) => Schedule::explicit(sigmas).map_or(sigmas.len(), |schedule| schedule.steps()),
    };
    let mut windows = vec![];
    for (pass, &canvas) in settings.passes.iter().zip(canvases) {
        let Grid { height, width, .. } = geometry.grid(canvas);
        let plane = height * width;
        for shot in shots {
            // what is held at a later frame has tokens of its own beside the video's
            let here = held.iter().filter(|h| h.frame > shot.start && h.frame < shot.start + shot.frames);
            let beside: usize =
                here.map(|h| plane * (geometry.latent_frame(h.count - 1) + 1).min(crate::condition::PREFIX)).sum();
            windows.extend(shot.windows.iter().map(|window| (window.frames * plane + beside, steps(pass))));
        }
    }
    let weakened = settings.passes.iter().any(|pass| pass.guidance.needs_stg());
    Task {
        clip: settings.clip,
        legal,
        canvases: canvases.to_vec(),
        windows,
        scenes: shots.iter().map(|shot| shot.grid.frames).collect(),
        prompts: prompts.map(|tokens| settings.encoded_tokens(tokens)).collect(),
        passes: 1 + usize::from(settings.negative.is_some()) + usize::from(weakened),
        held: held.iter().map(|h| h.count).collect(),
        pictures: held.iter().map(|h| h.bytes.unwrap_or(h.count * legal.width * legal.height * 3) as u64).sum(),
    }
}

/// What is held, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its first frame, and how many there are.
    pub frame: usize,
    pub count: usize,
    /// Of its pictures; `None`: not read yet, as large as the clip.
    pub bytes: Option<usize>,
}

impl Place {
    /// First frame and number of frames, of each.
    pub fn spans(all: &[Place]) -> Vec<(usize, usize)> {
        all.iter().map(|place| (place.frame, place.count)).collect()
    }
}

/// Where what is held stands.
pub fn places(held: &[Held]) -> Vec<Place> {
    let bytes = |held: &Held| held.frames.iter().map(|frame| frame.rgb.len()).sum();
    held.iter().map(|h| Place { frame: h.frame, count: h.frames.len(), bytes: Some(bytes(h)) }).collect()
}

impl Outlook {
    /// Plans a task and cuts it to the memory that there is.
    /// - Errors on tiles that cannot be. What does not fit is no error here: see [`Outlook::fits`].
    pub fn new(model: Model, task: Task, request: &Request, compute: &Compute) -> Result<Self> {
        let [_, space, _] = model.vae.strides();
        let tiling = plan::tiling(request.vae_tile, request.vae_overlap, space)?;
        let budget = budget(request, compute);
        let (choices, refusal) = match plan::choose(&model, &task, (request.vae_tile, tiling), budget, compute) {
            Ok(choices) => (choices, None),
            Err(error) => (Choices::plenty(&model, &task, tiling), Some(error.to_string())),
        };
        let needs = plan::needs(&model, &task, &choices, compute);
        let device = if compute.device.is_cpu() { "cpu" } else { "gpu" }.to_string();
        Ok(Self {
            plan: Plan { task, needs, choices, budget, requantised: Requantised::of(&model, &choices) },
            model,
            device,
            refusal,
            tiled: tiling.is_some(),
            watched: None,
        })
    }

    /// - Errors when the run does not fit the memory that there is.
    pub fn fits(&self) -> Result<()> {
        match &self.refusal {
            Some(refusal) => Err(anyhow::anyhow!("{refusal}")),
            None => Ok(()),
        }
    }

    /// Says how the run is cut, where that costs time or changes pictures.
    pub fn say(&self, progress: &Progress) {
        let [_, space, _] = self.model.vae.strides();
        self.plan
            .remarks(self.model.transformer.0.layers, space, self.tiled)
            .iter()
            .for_each(|remark| progress.note(remark));
        for need in &self.plan.needs {
            progress.detail(&format!("{}: about {} of memory", need.stage.name(), human_bytes(need.memory())));
        }
        let Pace { group, parts } = self.plan.choices.decode.pace;
        let parts = if parts > 1 { format!(", and what becomes of them in {parts} parts") } else { String::new() };
        progress.detail(&format!("the decoder takes {group} latent frames at a time{parts}"));
    }

    /// A stage as the history keeps it.
    fn run(&self, stage: Stage, seconds: f64) -> Run {
        let [transformer, text, vae] = self.model.operands;
        Run {
            stage: stage.name().to_string(),
            model: self.model.name.rsplit(['/', '\\']).next().unwrap_or_default().to_string(), // no paths
            operations: self.plan.need(stage).map_or(0, |need| need.operations),
            seconds,
            threads: rayon::current_num_threads(),
            operand: match stage {
                Stage::Text => text,
                Stage::Denoise if self.model.whole => 1,
                Stage::Denoise => transformer,
                Stage::Encode | Stage::Decode => vae,
            },
            device: self.device.clone(),
        }
    }

    /// From now on, measures each stage by itself instead of remembering it. The process's own peak is lost by that.
    pub fn watch(&mut self) {
        let _ = plan::forget_peak();
        self.watched = Some(Mutex::default());
    }

    /// Stages that were watched: seconds and peak resident bytes.
    pub fn watched(&self) -> Vec<Watched> {
        self.watched.as_ref().and_then(|all| all.lock().ok()).map(|all| all.clone()).unwrap_or_default()
    }

    /// Adds a finished stage to the machine's history.
    pub fn remember(&self, stage: Stage, begun: Instant, progress: &Progress) {
        let run = self.run(stage, begun.elapsed().as_secs_f64());
        if let Some(Ok(mut all)) = self.watched.as_ref().map(Mutex::lock) {
            let peak = plan::peak_memory().filter(|_| plan::forget_peak().is_ok());
            return all.push((stage, run.seconds, peak));
        }
        let Some(place) = history::place().filter(|_| run.operations > 0) else { return };
        if let Err(error) = history::add(&place, &run) {
            progress.detail(&format!("`{}` cannot be written ({error}): no forecast from this run", place.display()));
        }
    }

    /// What `--dry-run` says beside the plan.
    pub fn report(&self, settings: &Settings, target: &Target, clip: Extent) -> Report {
        let runs = history::place().map(|place| history::read(&place)).unwrap_or_default();
        let forecast = |stage| history::forecast(&runs, &self.run(stage, 0.0));
        Report {
            model: self.model.name.clone(),
            fps: settings.fps,
            steps: self.plan.task.windows.iter().map(|w| w.1).sum(),
            space: self.model.vae.strides()[1],
            layers: self.model.transformer.0.layers,
            tiled: self.tiled,
            out: Some(target.path.display().to_string()),
            disk: plan::least_disk(target, clip),
            downloads: vec![],
            seconds: self.plan.needs.iter().map(|need| forecast(need.stage)).collect(),
            refusal: self.refusal.clone(),
            encoder: self.model.text_encoder.clone(),
        }
    }
}

/// The text encoder that a run takes where none is named: see [`plan::encoder`]. `None` where one is named, and where the model is
/// none of the catalogue's.
pub fn encoder(request: &Request, compute: &Compute) -> Result<Option<Encoder>> {
    let name = request.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let entry = catalogue::named(name).filter(|entry| entry.kind == Kind::Model && !entry.embedded);
    let Some(entry) = entry.filter(|_| request.text_encoder.is_none()) else { return Ok(None) };
    let store = Store::from_env()?;
    let old = entry.matches.as_ref().is_some_and(|known| matches!(known.vae.as_deref(), Some("0.9.0" | "0.9.1")));
    let own = if old { Convention::Text } else { Convention::Condition };
    let convention = request.convention.or(entry.run.convention).unwrap_or(own);
    let recipe = Recipe::decide(request.convention, entry.run.recipe);
    let tokenizer = Tokenizer::builtin_t5()?; // that of nearly all; for this it is near enough
    let negative = request.negative.as_deref().or(entry.run.negative.as_deref());
    let texts = request.prompt_at.iter().map(|scene| scene.prompt.as_str()).chain(negative);
    let texts = std::iter::once(request.prompt.as_str()).chain(texts);
    let tokens = |text| {
        let ids = tokenizer.encode(text, recipe.max_tokens(convention))?.ids;
        Ok(recipe.encoded_tokens(convention, ids.len()))
    };
    let prompts = texts.map(tokens).collect::<Result<Vec<usize>>>()?;
    Ok(plan::encoder(entry, &prompts, |entry| store.find(entry), budget(request, compute), compute))
}

/// The catalogue's entry that a request names, and which of its files are not here.
/// - `encoder`: the text encoder that is taken, where none is named.
fn absent(request: &Request, encoder: Option<&'static Entry>) -> Result<Option<(&'static Entry, Vec<&'static Entry>)>> {
    let name = request.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let Some(entry) = catalogue::find(name).ok().filter(|entry| !entry.embedded) else { return Ok(None) };
    let parts = Store::from_env()?.parts(entry, encoder);
    let given = |kind: Kind| match kind {
        Kind::TextEncoder => request.text_encoder.is_some(),
        Kind::Upscaler => request.upscaler.is_some() || !entry.run.in_two_passes(),
        Kind::Model | Kind::Tokenizer => false,
    };
    let parts = parts.into_iter().filter(|(part, path)| path.is_none() && !given(part.kind));
    let missing: Vec<&Entry> = parts.map(|(part, _)| part).collect();
    Ok((!missing.is_empty()).then_some((entry, missing)))
}

/// What a run with a model that is not here would take, by what the catalogue knows of it.
/// - `None` where the model is here, or is no name of the catalogue.
/// - Errors are the user's to mend: flags and sizes.
pub fn of_absent(request: &Request) -> Result<Option<(Plan, Report)>> {
    let compute = crate::device::open(request.device.as_deref().unwrap_or("auto"), request.dtype)?;
    let encoder = encoder(request, &compute)?;
    let taken = encoder.as_ref().map(|encoder| encoder.entry);
    let Some((entry, missing)) = absent(request, taken)? else { return Ok(None) };
    request.check()?;
    let mut model = Model::of_entry(entry, taken, &compute)?;
    model.text_encoder = encoder.map(|encoder| encoder.told());
    let two = two_passes::is_wanted(request, &entry.run);
    let upscaler = entry.upscaler.as_deref().and_then(catalogue::named).and_then(Entry::size);
    model.upscaler = two.then_some((upscaler.unwrap_or(0), UPSCALER_WIDTH));
    let convention = request.convention.unwrap_or_else(|| entry.run.convention(&model.vae));
    let settings = Settings::decide(request, &entry.run, None, convention, None, two, request.seed.unwrap_or(0))?;
    let [time, space, _] = model.vae.strides();
    let geometry = Geometry { time, space };
    let legal = geometry.legal(settings.clip);
    let silent = Progress { mode: Mode::None, quiet: true, verbose: false };
    let canvases = if two { canvases(legal, geometry, &settings, &silent)? } else { vec![legal] };
    let mut shots = shots(&settings, legal, geometry)?;
    shots.iter_mut().try_for_each(|shot| shot.cut(settings.window, &[], geometry, Direction::Forward))?;
    let tokenizer = Tokenizer::builtin_t5()?;
    let texts = settings.scenes.iter().map(|scene| scene.prompt.as_str()).chain(settings.negative.as_deref());
    let texts = texts.map(|text| Ok(tokenizer.encode(text, settings.max_tokens())?.ids.len()));
    let texts = texts.collect::<Result<Vec<usize>>>()?;
    let preparation = Preparation::of(&settings, request, legal, &canvases, true);
    let held = places(&inputs::held(request, &settings, (legal, &preparation), geometry, &silent)?);
    let task = task(&settings, (legal, &canvases), geometry, &shots, texts.into_iter(), &held);
    let outlook = Outlook::new(model, task, request, &compute)?;
    let target = crate::outputs::target(request, &settings)?;
    let mut report = outlook.report(&settings, &target, settings.clip);
    report.downloads.extend(missing.iter().map(|part| (part.name.clone(), part.size())));
    Ok(Some((outlook.plan, report)))
}

/// What a request holds, before any of it is read: a frame each.
pub fn stills(request: &Request) -> Vec<Place> {
    let count = request.image.iter().count() + request.keyframe.len() + request.last_image.iter().count();
    (0..count).map(|_| Place { frame: 0, count: 1, bytes: None }).collect()
}
