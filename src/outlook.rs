//! What a run will take, told before it begins and remembered once it is done: the settings of a take become a plan, the plan is
//! cut to the memory that there is and timed by what this machine did before, and finished stages go into its history.

use crate::checkpoint::{Checkpoint, Sources, named_text_encoder};
use crate::condition::PREFIX;
use crate::device::{self, Compute, Quantize};
use crate::generate::shots::{Shot, shots};
use crate::generate::two_passes::{self, canvases};
use crate::generate::{DEFAULT_MODEL, ModelFacts};
use crate::geometry::{Extent, Geometry, Grid};
use crate::history::{self, Run};
use crate::inputs::{self, Held, Preparation};
use crate::models::ltx::Convention;
use crate::models::ltx::config::SchedulerConfig;
use crate::models::ltx::vae::Pace;
use crate::outputs;
use crate::passes::Pass;
use crate::plan::{
    self, Budget, Choices, Chooser, Encoder, Model, Need, Offer, Plan, Report, Requantised, Stage, Task,
};
use crate::plan::{Time, Window, Work};
use crate::platform::machine;
use crate::progress::{Mode, Progress, human_bytes};
use crate::recipe::Recipe;
use crate::request::{Request, Settings, default_size};
use crate::text::tokenizer::Tokenizer;
use crate::video::write::Target;
use crate::weights::catalogue::{self, Entry, Kind};
use crate::weights::store::Store;
use crate::windows::Direction;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

/// Of what is free, the share that is left alone: one in so many.
const MARGIN: u64 = 20;

/// Channels of the released upscalers.
const UPSCALER_WIDTH: usize = 512;

/// Operations of a run from which the machine's speed is measured before it, where that is not known: some ten seconds' worth
/// on a small machine, beside which the measuring is short.
const MUCH: u64 = 1_000_000_000_000;
/// Seconds of a run from which it says how long it takes, and from which it offers a smaller clip.
const SAID_FROM: f64 = 10.0;
const OFFER_FROM: f64 = 600.0;

const SILENT: Progress = Progress { mode: Mode::None, quiet: true, verbose: false };

/// A plan, what it was made from, and whether it fits.
pub struct Outlook {
    pub plan: Plan,
    model: Model,
    sketch: Sketch,
    compute: Compute,
    /// Why it does not fit, and what would.
    pub refusal: Option<String>,
    /// Tiles were asked for.
    tiled: bool,
    /// The name of the output, where neither it nor the seed in it was given.
    unnamed: Option<String>,
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
        None => machine::free_memory().map_or(Budget::Unknown, |free| Budget::Free(free - free / MARGIN)),
    }
}

/// What a run is planned from: what was decided, and counts of what it reads.
#[derive(Clone)]
pub struct Sketch {
    pub settings: Settings,
    pub geometry: Geometry,
    /// Which way a clip longer than a window grows.
    pub direction: Direction,
    /// Tokens of each prompt, the negative one included.
    pub prompts: Vec<usize>,
    pub held: Vec<Place>,
    /// Frames of the clip that footage gives.
    pub context: usize,
    /// What the checkpoint says of its noise levels.
    pub scheduler: SchedulerConfig,
}

/// What is held, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its first frame, and how many there are.
    pub frame: usize,
    pub count: usize,
    /// Of its pictures; `None`: not read yet.
    pub bytes: Option<usize>,
}

impl Place {
    /// First frame and number of frames, of each.
    pub fn spans(all: &[Place]) -> Vec<(usize, usize)> {
        all.iter().map(|place| (place.frame, place.count)).collect()
    }
}

impl Sketch {
    /// Counts what there is to make.
    /// - Errors on sizes, scenes and held frames that do not go together.
    pub fn task(&self) -> Result<Task> {
        let Self { settings, geometry, held, .. } = self;
        let legal = geometry.legal(settings.clip);
        let canvases = match settings.passes.len() {
            0 | 1 => vec![legal],
            _ => canvases(legal, *geometry, settings, &SILENT)?,
        };
        let mut shots = shots(settings, legal, *geometry)?;
        let spans = Place::spans(held);
        shots.iter_mut().try_for_each(|shot| shot.cut(settings.window, &spans, *geometry, self.direction))?;
        let mut windows = vec![];
        for (i, (pass, canvas)) in settings.passes.iter().zip(&canvases).enumerate() {
            let Grid { height, width, .. } = geometry.grid(*canvas);
            for (shot, window) in shots.iter().flat_map(|shot| shot.windows.iter().map(move |window| (shot, window))) {
                let plane = height * width;
                let (steps, evaluations) = self.evaluations(pass, window.frames * plane)?;
                let tokens = (window.frames + self.beside(shot, window)) * plane;
                windows.push(Window { pass: i, tokens, steps, evaluations });
            }
        }
        // before it is read: where pictures are resized last, a clip's may be as large as those of the last pass
        let largest = canvases.last().filter(|_| settings.recipe.resizes_last()).copied().unwrap_or(legal);
        let picture = (largest.width * largest.height).max(legal.width * legal.height) * 3;
        Ok(Task {
            clip: settings.clip,
            legal,
            windows,
            canvases,
            scenes: shots.iter().map(|shot| shot.grid.frames).collect(),
            prompts: self.prompts.iter().map(|&tokens| settings.encoded_tokens(tokens)).collect(),
            held: held.iter().map(|place| place.count).collect(),
            pictures: held.iter().map(|h| h.bytes.unwrap_or(h.count * picture) as u64).sum(),
            context: self.context,
            enlarging: settings.enlarging(),
        })
    }

    /// Steps of a pass over a video of `tokens`, and evaluations of the transformer in them.
    fn evaluations(&self, pass: &Pass, tokens: usize) -> Result<(usize, usize)> {
        let Settings { convention, recipe, .. } = self.settings;
        let schedule = pass.levels.schedule(&self.scheduler, convention, recipe, tokens)?;
        let guidance = schedule.sigmas[..schedule.steps()].iter().map(|&sigma| pass.guidance.at(sigma));
        let each = guidance.map(|at| 1 + usize::from(at.needs_negative()) + usize::from(at.needs_stg()));
        Ok((schedule.steps(), each.sum()))
    }

    /// Latent frames beside a window, of what is held there at a later frame than its first.
    fn beside(&self, shot: &Shot, window: &crate::windows::Window) -> usize {
        let first_frame = window.start * self.geometry.time;
        let fresh = window.fresh(self.direction);
        let here = self.held.iter().filter(|place| shot.holds(place.frame)).filter(|place| {
            let frame = place.frame - shot.start;
            frame > first_frame && fresh.contains(&self.geometry.latent_frame(frame))
        });
        let held: usize = here.map(|place| (self.geometry.latent_frame(place.count - 1) + 1).min(PREFIX)).sum();
        // what a window that grows back goes on from stands at its end
        held + if self.direction == Direction::Back { window.carried.min(PREFIX) } else { 0 }
    }

    /// The same with a clip of another size; `None` where that cannot be made.
    fn resized(&self, clip: Extent) -> Option<Task> {
        let before = self.settings.clip.frames;
        let held = self.held.iter().map(|place| match place.frame + place.count {
            // what the clip ends with moves with its end
            end if end >= before && place.frame > 0 => {
                Some(Place { frame: (place.frame + clip.frames).checked_sub(before)?, ..*place })
            }
            end => (end <= clip.frames).then_some(*place),
        });
        let held = held.collect::<Option<Vec<_>>>()?;
        let room = clip.frames > self.context;
        let settings = Settings { clip, ..self.settings.clone() };
        let task = room.then(|| Sketch { settings, held, ..self.clone() }.task())?.ok()?;
        (task.clip != self.settings.clip).then_some(task)
    }
}

/// Where what is held stands.
pub fn places(held: &[Held]) -> Vec<Place> {
    let bytes = |held: &Held| held.frames.iter().map(|frame| frame.rgb.len()).sum();
    held.iter().map(|h| Place { frame: h.frame, count: h.frames.len(), bytes: Some(bytes(h)) }).collect()
}

/// What is known of this machine's speed: its earlier runs, and how fast it is at each kind of work.
pub struct Speeds {
    place: Option<PathBuf>,
    runs: Vec<Run>,
    /// Whether what is not known may be measured, which takes a moment.
    measures: bool,
}

impl Speeds {
    /// Reads the machine's history.
    pub fn of_machine(measures: bool) -> Self {
        let place = history::place();
        Self { runs: place.as_deref().map(history::read).unwrap_or_default(), place, measures }
    }

    /// Operations a second of a kind of work on the CPU, measured once and then kept in the history.
    fn of(&mut self, work: Work) -> Option<f64> {
        let mut run = Run {
            stage: work.name(),
            model: device::cpu_path().to_string(),
            operations: 0,
            seconds: 0.0,
            threads: rayon::current_num_threads(),
            operand: 0,
            device: "cpu".to_string(),
        };
        if let Some(speed) = history::speed(&self.runs, &run) {
            return Some(speed);
        }
        (run.operations, run.seconds) = work.measure().ok().filter(|_| self.measures)?;
        if let Some(place) = &self.place {
            let _ = history::add(place, &run); // it is measured again next time
        }
        self.runs.push(run.clone());
        history::speed(&self.runs, &run)
    }
}

impl Outlook {
    /// Plans a run and cuts it to the memory that there is.
    /// - Errors on what cannot be made, and on tiles that cannot be. What does not fit is no error here: see [`Outlook::fits`].
    pub fn new(model: Model, sketch: Sketch, request: &Request, compute: &Compute) -> Result<Self> {
        let [_, space, _] = model.vae.strides();
        let tiling = plan::tiling(request.vae_tile, request.vae_overlap, space)?;
        let (budget, task) = (budget(request, compute), sketch.task()?);
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
        let needs = plan::needs(&model, &task, &choices, compute);
        Ok(Self {
            plan: Plan { task, needs, choices, budget, requantised: Requantised::of(&model, &choices) },
            model,
            sketch,
            compute: compute.clone(),
            refusal,
            tiled: tiling.is_some(),
            unnamed: outputs::unnamed(request).map(|path| path.display().to_string()),
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

    /// Says how long the run takes, and how it is cut, where that costs time or changes pictures.
    pub fn say(&self, progress: &Progress) {
        self.say_time(progress);
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

    /// Says how long the run takes, where that is known and not short.
    fn say_time(&self, progress: &Progress) {
        if progress.quiet || progress.mode == Mode::None {
            return;
        }
        let operations: u64 = self.plan.needs.iter().map(|need| need.operations).sum();
        let mut speeds = Speeds::of_machine(operations >= MUCH);
        let time = Time::sum(&self.times(&self.plan.needs, &mut speeds));
        if let (Some(said), true) = (time.describe(), time.seconds().is_some_and(|seconds| seconds >= SAID_FROM)) {
            progress.note(&format!("time: {said}"));
        }
        if let Some(offer) = self.offer(time, &mut speeds) {
            progress.note(&offer.describe());
        }
    }

    /// How long each stage takes: as in earlier runs of the same kind, else by the machine's speed. What a GPU was not seen to
    /// do is not known.
    fn times(&self, needs: &[Need], speeds: &mut Speeds) -> Vec<Time> {
        let time = |need: &Need| match history::forecast(&speeds.runs, &self.run(need, 0.0)) {
            Some(seconds) => Time::Measured(seconds),
            None if !self.compute.device.is_cpu() => Time::Unknown,
            None => need.seconds(|work| speeds.of(work)).map_or(Time::Unknown, Time::Estimated),
        };
        needs.iter().map(time).collect()
    }

    /// The largest of some smaller clips that is made before long, where the run takes long; where none is, the smallest.
    fn offer(&self, whole: Time, speeds: &mut Speeds) -> Option<Offer> {
        let most = whole.seconds().filter(|&seconds| seconds > OFFER_FROM && self.refusal.is_none())?;
        let tasks = offered_clips(self.plan.task.clip, self.sketch.geometry);
        let mut offers = vec![];
        for task in tasks.into_iter().filter_map(|clip| self.sketch.resized(clip)) {
            let Choices { resident, .. } = self.plan.choices;
            let choices = Choices { resident, ..Choices::plenty(&self.model, &task, None, &self.compute) };
            let needs = plan::needs(&self.model, &task, &choices, &self.compute);
            let time = Time::sum(&self.times(&needs, speeds));
            let Some(seconds) = time.seconds() else { continue };
            let offer = Offer { flags: task.flags_from(&self.plan.task), clip: task.clip, time };
            if seconds <= OFFER_FROM {
                return Some(offer); // the largest come first
            }
            offers.push((seconds, offer));
        }
        let least = offers.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        least.filter(|(seconds, _)| *seconds < most / 2.0).map(|(_, offer)| offer)
    }

    /// A stage as the history keeps it.
    fn run(&self, need: &Need, seconds: f64) -> Run {
        let plan::Products { transformer, text, vae } = self.model.products;
        let cpu = self.compute.device.is_cpu();
        Run {
            stage: need.stage.name().to_string(),
            model: self.model.name.rsplit(['/', '\\']).next().unwrap_or_default().to_string(), // no paths
            operations: need.operations,
            seconds,
            threads: rayon::current_num_threads(),
            operand: match need.stage {
                Stage::Text => text.operand(&self.compute),
                Stage::Denoise if cpu && transformer.is_int8() => 1,
                Stage::Denoise => transformer.operand(&self.compute),
                Stage::Encode | Stage::Decode => vae.operand(&self.compute),
            },
            device: if cpu { "cpu" } else { "gpu" }.to_string(),
        }
    }

    /// From now on, measures each stage by itself instead of remembering it. The process's own peak is lost by that.
    pub fn watch(&mut self) {
        let _ = machine::forget_peak();
        self.watched = Some(Mutex::default());
    }

    /// Stages that were watched: seconds and peak resident bytes.
    pub fn watched(&self) -> Vec<Watched> {
        self.watched.as_ref().and_then(|all| all.lock().ok()).map(|all| all.clone()).unwrap_or_default()
    }

    /// Adds a finished stage to the machine's history.
    pub fn remember(&self, stage: Stage, begun: Instant, progress: &Progress) {
        let seconds = begun.elapsed().as_secs_f64();
        if let Some(Ok(mut all)) = self.watched.as_ref().map(Mutex::lock) {
            let peak = machine::peak_memory().filter(|_| machine::forget_peak().is_ok());
            return all.push((stage, seconds, peak));
        }
        let Some(need) = self.plan.need(stage).filter(|need| need.operations > 0) else { return };
        let Some(place) = history::place() else { return };
        if let Err(error) = history::add(&place, &self.run(need, seconds)) {
            progress.detail(&format!("`{}` cannot be written ({error}): no forecast from this run", place.display()));
        }
    }

    /// What `--dry-run` says beside the plan.
    /// - `clip`: what is written.
    pub fn report(&self, settings: &Settings, target: &Target, clip: Extent) -> Report {
        let mut speeds = Speeds::of_machine(true);
        let times = self.times(&self.plan.needs, &mut speeds);
        Report {
            model: self.model.name.clone(),
            fps: settings.fps,
            space: self.model.vae.strides()[1],
            layers: self.model.transformer.0.layers,
            tiled: self.tiled,
            out: Some(self.unnamed.clone().unwrap_or_else(|| target.path.display().to_string())),
            scale: settings.scale,
            output: Some(clip),
            disk: plan::least_disk(target, settings.least(clip)),
            downloads: vec![],
            offer: self.offer(Time::sum(&times), &mut speeds),
            times,
            refusal: self.refusal.clone(),
            encoder: self.model.text_encoder.clone(),
        }
    }
}

/// Clips to offer in place of one that takes long, the largest first: no longer than it, and in its shape. Pictures shrink at
/// least as much as their number, and neither so far that little is left of them.
fn offered_clips(clip: Extent, geometry: Geometry) -> Vec<Extent> {
    /// Of the longer side, and of a clip.
    const LEAST_PIXELS: usize = 384;
    const LEAST_FRAMES: usize = 25;
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
/// - `encoder`: the text encoder that is taken; `None` where one is given by path.
fn absent(request: &Request, encoder: Option<&'static Entry>) -> Result<Option<(&'static Entry, Vec<&'static Entry>)>> {
    let name = request.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let Some(entry) = catalogue::find(name).ok().filter(|entry| !entry.embedded) else { return Ok(None) };
    let parts = Store::from_env()?.parts(entry, encoder);
    let given = |kind: Kind| match kind {
        Kind::TextEncoder => request.text_encoder.is_some() && encoder.is_none(),
        Kind::Upscaler => request.upscaler.is_some() || !entry.run.in_two_passes(),
        Kind::Model | Kind::Tokenizer => false,
    };
    let parts = parts.into_iter().filter(|(part, path)| path.is_none() && !given(part.kind));
    let missing: Vec<&Entry> = parts.map(|(part, _)| part).collect();
    Ok((!missing.is_empty()).then_some((entry, missing)))
}

/// A model of the catalogue of which something is not here: what there is to plan a run with it by.
pub struct Absent {
    known: Known,
    missing: Vec<&'static Entry>,
    compute: Compute,
}

impl Absent {
    /// - `None` where the model is here, or is no name of the catalogue.
    /// - Errors are the user's to mend: flags.
    pub fn find(request: &Request) -> Result<Option<Self>> {
        let compute = device::open(request.device.as_deref().unwrap_or("auto"), request.dtype)?;
        let encoder = match request.text_encoder.as_deref().and_then(named_text_encoder) {
            Some(entry) => Some(Encoder { entry, here: false, why: Some("as asked for".to_string()) }),
            None => encoder(request, &compute)?,
        };
        let taken = encoder.as_ref().map(|encoder| encoder.entry);
        let Some((entry, missing)) = absent(request, taken)? else { return Ok(None) };
        if let Some(path) = request.text_encoder.as_deref().filter(|path| taken.is_none() && !path.exists()) {
            bail!(
                "--text-encoder: there is no file and no text encoder of the list called `{}`\n  fix: check the path, or see `reel models list`",
                path.display()
            )
        }
        request.check()?;
        Ok(Some(Self { known: Known::of(request, entry, encoder, &compute)?, missing, compute }))
    }

    /// What the model says of clips.
    pub fn facts(&self) -> ModelFacts {
        self.known.facts()
    }

    /// Plans a run.
    /// - `more`: what is held besides the request's own pictures. `written`: the clip that is written, where it is not the one
    ///   that is made.
    /// - Errors are the user's to mend: flags, files and sizes.
    pub fn plan(
        self,
        request: &Request,
        more: &[Place],
        direction: Direction,
        written: Option<Extent>,
    ) -> Result<(Plan, Report)> {
        let facts = self.facts();
        let size = inputs::size_from_stills(request, default_size(&facts.defaults), facts.geometry)?;
        let sketch = self.known.sketch(request, size, more, direction)?;
        let settings = sketch.settings.clone();
        let outlook = Outlook::new(self.known.model, sketch, request, &self.compute)?;
        let target = outputs::target(request, &settings)?;
        let mut report = outlook.report(&settings, &target, written.unwrap_or(settings.output()));
        report.downloads.extend(self.missing.iter().map(|part| (part.name.clone(), part.size())));
        Ok((outlook.plan, report))
    }
}

/// A model as the catalogue knows it.
struct Known {
    model: Model,
    entry: &'static Entry,
    convention: Convention,
}

impl Known {
    /// - `encoder`: its text encoder, where none is named. Errors on an entry whose sizes are unknown.
    fn of(request: &Request, entry: &'static Entry, encoder: Option<Encoder>, compute: &Compute) -> Result<Self> {
        let taken = encoder.as_ref().map(|encoder| encoder.entry);
        let mut model = match entry.embedded {
            true => Model::of(&Checkpoint::open(&Sources { model: &entry.name, ..Sources::default() })?, compute),
            false => Model::of_entry(entry, taken, request.quantize.map(Quantize::blocks), compute)?,
        };
        model.text_encoder = encoder.map(|encoder| encoder.told());
        model.scratch = request.quantize_scratch.clone().filter(|_| cfg!(unix) && model.quantised_anew);
        model.quantised_anew &= request.quantize_cache.is_none();
        if two_passes::is_wanted(request, &entry.run) {
            let upscaler = entry.upscaler.as_deref().and_then(catalogue::named).and_then(Entry::size);
            model.upscaler = Some((upscaler.unwrap_or(0), UPSCALER_WIDTH));
        }
        let convention = request.convention.unwrap_or_else(|| entry.run.convention(&model.vae));
        Ok(Self { model, entry, convention })
    }

    fn facts(&self) -> ModelFacts {
        let [time, space, _] = self.model.vae.strides();
        let geometry = Geometry { time, space };
        ModelFacts { geometry, defaults: self.entry.run.clone(), convention: self.convention }
    }

    /// What a request is planned from.
    /// - `size`: where the request asks for none. `more`: what is held besides the request's own.
    fn sketch(
        &self,
        request: &Request,
        size: Option<(usize, usize)>,
        more: &[Place],
        direction: Direction,
    ) -> Result<Sketch> {
        let (geometry, two) = (self.facts().geometry, self.model.upscaler.is_some());
        let (run, seed) = (&self.entry.run, request.seed.unwrap_or(0));
        let settings = Settings::decide(request, run, None, self.convention, size, two, seed)?;
        settings.passes.iter().try_for_each(|pass| pass.check(self.model.transformer.0.layers))?;
        let tokenizer = Tokenizer::builtin_t5()?; // that of nearly all; for this it is near enough
        let texts = settings.scenes.iter().map(|scene| scene.prompt.as_str()).chain(settings.negative.as_deref());
        let texts = texts.map(|text| Ok(tokenizer.encode(text, settings.max_tokens())?.ids.len()));
        let prompts = texts.collect::<Result<Vec<usize>>>()?;
        let legal = geometry.legal(settings.clip);
        let canvases = if two { canvases(legal, geometry, &settings, &SILENT)? } else { vec![legal] };
        let preparation = Preparation::of(&settings, request, legal, &canvases, true);
        let mut held = places(&inputs::held(request, &settings, (legal, &preparation), geometry, &SILENT)?);
        held.extend(more);
        let context = more.iter().map(|place| place.count).sum();
        let scheduler = match self.convention {
            Convention::Text => SchedulerConfig::token_shift(),
            Convention::Condition => SchedulerConfig::plain(),
        };
        Ok(Sketch { settings, geometry, direction, prompts, held, context, scheduler })
    }
}

/// What the catalogue's models take on this machine, with the clip that each makes by default.
pub struct Entries {
    compute: Compute,
    speeds: Speeds,
}

/// What one stage of them takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageOutlook {
    pub stage: Stage,
    /// Bytes, as a run is cut to what is free now.
    pub memory: u64,
    pub time: Time,
}

/// What one of them takes.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryOutlook {
    pub clip: Extent,
    /// Bytes at the most, with all that is used more than once kept in memory.
    pub memory: u64,
    /// Bytes at the most, where memory is short: layers are opened at each step, which takes longer.
    pub least_memory: u64,
    /// Whether that can be had here; `None` where that is not known.
    pub fits: Option<bool>,
    pub time: Time,
    pub stages: Vec<StageOutlook>,
}

impl Entries {
    /// Opens the device that runs take by default, and the machine's history. What is not known of its speed is measured once,
    /// in a second or two.
    pub fn new() -> Result<Self> {
        Ok(Self { compute: device::open("auto", Default::default())?, speeds: Speeds::of_machine(true) })
    }

    /// - `None` for what is no model, and for one whose sizes the catalogue does not know.
    pub fn of(&mut self, entry: &'static Entry) -> Option<EntryOutlook> {
        /// As long as people write them for these models.
        const PROMPT: &str = "A woman with long brown hair walks along a beach at sunset, waves roll in behind her, and the camera follows her from the side";
        if entry.kind != Kind::Model {
            return None;
        }
        let request = Request { prompt: PROMPT.to_string(), model: Some(entry.name.clone()), ..Request::default() };
        let encoder = encoder(&request, &self.compute).ok()?;
        let known = Known::of(&request, entry, encoder, &self.compute).ok()?;
        let sketch = known.sketch(&request, None, &[], Direction::Forward).ok()?;
        let outlook = Outlook::new(known.model, sketch, &request, &self.compute).ok()?;
        let Outlook { plan, model, .. } = &outlook;
        let most = |choices: &Choices| {
            let needs = plan::needs(model, &plan.task, choices, &self.compute);
            needs.iter().map(Need::memory).max().unwrap_or(0)
        };
        let times = outlook.times(&plan.needs, &mut self.speeds);
        let stages = plan.needs.iter().zip(&times).map(|(need, time)| StageOutlook {
            stage: need.stage,
            memory: need.memory(),
            time: *time,
        });
        Some(EntryOutlook {
            clip: plan.task.clip,
            memory: most(&Choices::plenty(model, &plan.task, None, &self.compute)),
            least_memory: most(&Choices::least(None)),
            fits: (plan.budget != Budget::Unknown).then_some(outlook.refusal.is_none()),
            time: Time::sum(&times),
            stages: stages.collect(),
        })
    }
}

/// What a request holds, before any of it is read: a frame each.
pub fn stills(request: &Request) -> Vec<Place> {
    let count = request.image.iter().count() + request.keyframe.len() + request.last_image.iter().count();
    vec![Place { frame: 0, count: 1, bytes: None }; count]
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
        // of a still there is no shorter one, and of a small picture no smaller one
        assert!(offered_clips(Extent { frames: 1, ..clip }, geometry).iter().all(|clip| clip.frames == 1));
        let small = Extent { width: 64, height: 64, frames: 121 };
        assert!(offered_clips(small, geometry).is_empty());
    }
}
