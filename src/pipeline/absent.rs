//! Plans of runs with a model of the catalogue that is not here, or not all of it.

use crate::embedded;
use crate::hub::catalogue::{self, Entry, Kind};
use crate::hub::store::{State, Store};
use crate::job::convention::Convention;
use crate::job::geometry::Extent;
use crate::job::host::Host;
use crate::job::request::Request;
use crate::job::sources::Sources;
use crate::job::windows::Direction;
use crate::models::UpscalerConfig;
use crate::models::bundle::{Checkpoint, named_text_encoder};
use crate::models::text::tokenizer::Tokenizer;
use crate::pipeline::inputs::{self, Preparation};
use crate::pipeline::session::ModelFacts;
use crate::planning::forecast::{Forecast, encoder};
use crate::planning::forecast::{HeldSpan, Sketch};
use crate::planning::outputs;
use crate::planning::passes;
use crate::planning::settings::{Given, Settings, default_size};
use crate::planning::{Download, Encoder, Model, Plan, Report, Room};
use crate::platform::device::{self, Compute, Quantize};
use crate::platform::machine;
use crate::platform::progress::Progress;
use anyhow::{Result, bail};

/// The catalogue's entry that a request names, and which of its files are not here.
/// - `encoder`: the text encoder that is taken; `None` where one is given by path.
fn absent(request: &Request, encoder: Option<&'static Entry>) -> Result<Option<(&'static Entry, Vec<&'static Entry>)>> {
    let name = request.model.as_deref().unwrap_or(embedded::NAME);
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

/// What is still to come of files that are not here, and what the disk has for it; `None` where the system does not tell.
fn room(missing: &[&Entry]) -> Result<Option<Room>> {
    let store = Store::from_env()?;
    let rest = |part: &&Entry| {
        let here = match store.state(part) {
            State::Partly { bytes } => bytes,
            _ => 0,
        };
        part.size().unwrap_or(0).saturating_sub(here)
    };
    let (folder, need) = (store.cache().to_path_buf(), missing.iter().map(rest).sum());
    Ok(machine::free_disk(&folder).map(|free| Room { folder, free, need }))
}

/// A model of the catalogue of which something is not here: what there is to plan a run with it by.
pub struct Absent {
    known: Known,
    missing: Vec<&'static Entry>,
    compute: Compute,
    host: Host,
}

impl Absent {
    /// - `None` where the model is here, or is no name of the catalogue.
    /// - Errors are the user's to mend: flags.
    pub fn find(request: &Request, host: &Host) -> Result<Option<Self>> {
        let compute = device::open(host.device(), request.dtype)?;
        let encoder = match request.text_encoder.as_deref().and_then(named_text_encoder) {
            Some(entry) => Some(Encoder { entry, here: false, why: Some("as asked for".to_string()) }),
            None => encoder(request, host, &compute)?,
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
        host.check()?;
        Ok(Some(Self {
            known: Known::of(request, host, entry, encoder, &compute)?,
            missing,
            compute,
            host: host.clone(),
        }))
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
        more: &[HeldSpan],
        direction: Direction,
        written: Option<Extent>,
    ) -> Result<(Plan, Report)> {
        let facts = self.facts();
        let size = inputs::size_from_stills(request, default_size(&facts.defaults, facts.family), facts.geometry)?;
        let sketch = self.known.sketch(request, size, more, direction)?;
        let settings = sketch.settings.clone();
        let forecast = Forecast::new(self.known.model, sketch, request, &self.host, &self.compute)?;
        let target = outputs::target(request, &self.host, &settings)?;
        let mut report = forecast.report(&settings, &target, written.unwrap_or(settings.output()));
        let download = |part: &&Entry| Download { name: part.name.clone(), bytes: part.size() };
        report.downloads.extend(self.missing.iter().map(download));
        report.download_room = room(&self.missing)?;
        Ok((forecast.plan, report))
    }
}

/// A model as the catalogue knows it.
pub(super) struct Known {
    pub(super) model: Model,
    entry: &'static Entry,
    convention: Convention,
}

impl Known {
    /// - `encoder`: its text encoder, where none is named. Errors on an entry whose sizes are unknown.
    pub(super) fn of(
        request: &Request,
        host: &Host,
        entry: &'static Entry,
        encoder: Option<Encoder>,
        compute: &Compute,
    ) -> Result<Self> {
        let taken = encoder.as_ref().map(|encoder| encoder.entry);
        let mut model = match entry.embedded {
            true => Model::of(&Checkpoint::open(&Sources { model: &entry.name, ..Sources::default() })?, compute),
            false => Model::of_entry(entry, taken, request.quantize.map(Quantize::blocks), compute)?,
        };
        model.text_encoder = encoder.map(|encoder| encoder.describe());
        model.scratch = host.quantize_scratch.clone().filter(|_| cfg!(unix) && model.quantised_anew);
        model.quantised_anew &= host.quantize_cache.is_none();
        if passes::are_two(request, &entry.run) {
            let bytes = entry.upscaler.as_deref().and_then(catalogue::named).and_then(Entry::size);
            let config = UpscalerConfig::released(model.config.family())?;
            model.upscaler = Some((config, bytes.unwrap_or(0)));
        }
        let convention =
            request.convention.unwrap_or_else(|| entry.run.convention.unwrap_or_else(|| model.config.convention()));
        Ok(Self { model, entry, convention })
    }

    fn facts(&self) -> ModelFacts {
        let config = &self.model.config;
        let (family, geometry) = (config.family(), config.geometry());
        ModelFacts { family, geometry, defaults: self.entry.run.clone(), convention: self.convention }
    }

    /// What a request is planned from.
    /// - `size`: where the request asks for none. `more`: what is held besides the request's own.
    pub(super) fn sketch(
        &self,
        request: &Request,
        size: Option<(usize, usize)>,
        more: &[HeldSpan],
        direction: Direction,
    ) -> Result<Sketch> {
        let ModelFacts { family, geometry, .. } = self.facts();
        let two = self.model.upscaler.is_some();
        let (run, seed) = (&self.entry.run, request.seed.unwrap_or(0));
        let (convention, allowed) = (self.convention, None);
        let given = Given { request, model: run, allowed, family, convention, size, two, seed };
        let settings = Settings::decide(&given)?;
        settings.passes.iter().try_for_each(|pass| pass.check(self.model.config.blocks()))?;
        let tokenizer = Tokenizer::builtin_t5()?; // that of nearly all; for this it is near enough
        let texts = settings.scenes.iter().map(|scene| scene.prompt.as_str()).chain(settings.negative.as_deref());
        let texts = texts.map(|text| Ok(tokenizer.encode(text, settings.max_tokens())?.ids.len()));
        let prompts = texts.collect::<Result<Vec<usize>>>()?;
        let (legal, silent) = (geometry.legal(settings.clip), Progress::silent());
        let canvases =
            if two { family.canvases(legal, geometry, settings.upscaling.downscale, &silent)? } else { vec![legal] };
        let preparation = Preparation::of(&settings, request, legal, &canvases, true);
        let mut held = inputs::places(&inputs::held(request, &settings, legal, &preparation, geometry, &silent)?);
        held.extend(more);
        let context = more.iter().map(|place| place.count).sum();
        let config = self.model.config.clone();
        Ok(Sketch { settings, config, direction, prompts, held, context })
    }
}
