//! Runs a job: encodes the prompts, encodes the conditioning stills and clips, denoises, decodes the latents and writes the frames.
//! Each stage's network is loaded when it is needed and freed before the next (see `stages`).

pub mod absent;
pub mod cursor;
pub mod decode;
mod denoise;
pub mod entries;
pub mod inputs;
pub mod join;
mod remarks;
pub mod session;
pub mod stages;

use crate::hub::catalogue::Entry;
use crate::hub::store::Store;
use crate::job::geometry::Extent;
use crate::job::host::Host;
use crate::job::request::Request;
use crate::job::windows::Direction;
use crate::models::networks::{Decoder, Upscaler};
use crate::pipeline::cursor::Cursor;
use crate::pipeline::inputs::{Held, Preparation};
use crate::pipeline::session::{Keep, Session};
use crate::pipeline::stages::Stages;
use crate::planning::forecast::{self, Forecast, HeldSpan, Sketch};
use crate::planning::outputs;
use crate::planning::scenes::{Shot, shots};
use crate::planning::settings::{Given, Settings};
use crate::planning::{self, Plan, Report, Stage};
use crate::platform::progress::{Progress, counted, human_seconds};
use crate::platform::shown;
use crate::video::Frame;
use crate::video::resize::enlarge;
use crate::video::write::{Clip, Format, Sizing, Target, Writer};
use anyhow::Result;
use candle_core::Tensor;
use remarks::{beyond_world, idle_flags};
use serde_json::json;
use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Instant;

/// Words quoted from the part of a prompt beyond the token limit.
const UNREAD_WORDS: usize = 12;

/// A validated job; no weights loaded yet.
pub struct Prepared {
    pub settings: Settings,
    /// Whether the seed was drawn, because the request names none.
    drawn: bool,
    session: Arc<Session>,
    /// The clip's size in pixels and frames, rounded to whole latents.
    legal: Extent,
    /// The clip's size in each pass; the first of two is smaller.
    canvases: Vec<Extent>,
    /// The latent upscaler between two passes; `None`: one pass.
    upscaler: Option<Upscaler>,
    /// Token ids of each scene's prompt.
    prompts: Vec<Vec<u32>>,
    /// Token ids of the negative prompt, where guidance needs it.
    negative: Option<Vec<u32>>,
    /// Stills and clips that the video is conditioned on.
    held: Vec<Held>,
    shots: Vec<Shot>,
    direction: Direction,
    /// Loaded by the first decode.
    decoder: OnceCell<Arc<Decoder>>,
    pub forecast: Forecast,
}

impl Prepared {
    /// Fills in the request's defaults and reads its conditioning pictures.
    /// - `size`: width and height where the request names none. `more`: places of further pictures, to be passed to
    ///   [`Prepared::hold`]. `direction`: which way a clip longer than a window grows.
    /// - Errors are for the user to fix: flags, files, sizes.
    pub fn new(
        session: &Arc<Session>,
        request: &Request,
        size: Option<(usize, usize)>,
        more: &[HeldSpan],
        direction: Direction,
        progress: &Progress,
    ) -> Result<Self> {
        session.check_serves(request)?;
        request.check()?;
        let Session { checkpoint, compute, .. } = &**session;
        let convention = session.convention(request);
        let seed = request.seed.unwrap_or_else(fresh_seed);
        let defaults = checkpoint.run_defaults();
        let allowed = checkpoint.allowed_sigmas.as_deref();
        let (family, channels) = (checkpoint.config.family(), checkpoint.config.latent_channels());
        let here = |entry: &Entry| Store::from_env()?.sound(entry);
        let upscaler = Upscaler::find(family, request, checkpoint.entry, channels, convention, here)?;
        let two = upscaler.is_some();
        let given = Given { request, model: &defaults, allowed, family, convention, size, two, seed };
        let settings = Settings::decide(&given)?;
        let blocks = checkpoint.config.blocks();
        settings.passes.iter().try_for_each(|pass| pass.check(blocks))?;
        if seed > u32::MAX as u64 {
            progress.note(&format!("seed {seed}: torch's generator reads its low 32 bits, {}", seed as u32));
        }
        let geometry = checkpoint.config.geometry();
        let legal = geometry.legal(settings.clip);
        let mut shots = shots(&settings, legal, geometry)?;
        let canvases = match &upscaler {
            Some(_) => family.canvases(legal, geometry, settings.upscaling.downscale, progress)?,
            None => vec![legal],
        };
        let mut model = session.model();
        model.upscaler = upscaler.as_ref().map(Upscaler::size);
        // fails on pictures that cannot be placed, before any is read
        shots.iter_mut().try_for_each(|shot| shot.cut(settings.window, &HeldSpan::spans(more), geometry, direction))?;
        let mut sketch = Sketch {
            settings: settings.clone(),
            config: checkpoint.config.clone(),
            direction,
            prompts: vec![1],
            held: [forecast::stills(request).as_slice(), more].concat(),
            context: more.iter().map(|place| place.count).sum(),
        };
        let first = Forecast::new(model.clone(), sketch.clone(), request, &session.host, compute)?;
        let mut held = vec![];
        if first.refusal.is_none() {
            let preparation = Preparation::of(&settings, request, legal, &canvases, checkpoint.entry.is_some());
            held = inputs::held(request, &settings, legal, &preparation, geometry, progress)?;
        }
        sketch.held = [inputs::places(&held).as_slice(), more].concat();
        if !sketch.held.is_empty() {
            checkpoint.check_encoder()?;
        }
        idle_flags(request, &settings, checkpoint, sketch.held.is_empty()).iter().for_each(|note| progress.note(note));
        let size = request.size.filter(|_| more.is_empty()); // a join takes the footage's size and is not enlarged
        beyond_world(&settings, size, checkpoint.entry).iter().for_each(|note| progress.note(note));
        let encode = |text: &str, which: &str| {
            let encoded = checkpoint.tokenizer.encode(text, settings.max_tokens())?;
            if let Some(unread) = &encoded.unread {
                let unread = shown::beginning(unread, UNREAD_WORDS);
                let most = settings.max_tokens();
                progress.note(&format!("the {which} is longer than {most} tokens; not read: “{unread}”"));
            }
            Ok::<_, anyhow::Error>(encoded.ids)
        };
        let prompts = settings.scenes.iter().map(|scene| encode(&scene.prompt, "prompt")).collect::<Result<_>>()?;
        let negative = settings.negative.as_deref().map(|text| encode(text, "negative prompt")).transpose()?;
        for shot in &mut shots {
            shot.cut(settings.window, &HeldSpan::spans(&sketch.held), geometry, direction)?;
        }
        let prompts: Vec<Vec<u32>> = prompts;
        sketch.prompts = prompts.iter().chain(&negative).map(Vec::len).collect();
        let forecast = match first.refusal {
            None => Forecast::new(model, sketch, request, &session.host, compute)?,
            Some(_) => first,
        };
        Ok(Self {
            settings,
            drawn: request.seed.is_none(),
            session: session.clone(),
            legal,
            canvases,
            upscaler,
            prompts,
            negative,
            held,
            shots,
            direction,
            decoder: OnceCell::new(),
            forecast,
        })
    }

    /// Adds pictures at a place that [`Prepared::new`] was given as `more`; call before [`Prepared::latents`].
    pub fn hold(&mut self, held: Held) {
        self.held.push(held);
    }

    fn stages<'a>(&'a self, progress: &'a Progress) -> Stages<'a> {
        Stages { session: &self.session, settings: &self.settings, choices: &self.forecast.plan.choices, progress }
    }

    /// Logs what was chosen for the user: the seed, and the size in whole latents.
    fn log(&self, progress: &Progress) {
        if self.drawn {
            progress.note(&format!("seed {}", self.settings.seed));
        }
        let (asked, legal) = (self.settings.clip, self.legal);
        let made = format!("made as {}x{}, {}", legal.width, legal.height, counted(legal.frames, "frames"));
        let text =
            format!("{}x{}, {}: {made}, and cropped", asked.width, asked.height, counted(asked.frames, "frames"));
        if (legal.width, legal.height) != (asked.width, asked.height) {
            progress.note(&text);
        } else if legal != asked && self.shots.len() == 1 {
            progress.detail(&text);
        }
    }

    /// Encodes prompts and pictures and denoises; returns the decoder's input, (1, f, h, w, c) for each scene.
    /// - Errors are the machine's: memory, disk, device.
    pub fn latents(&self, progress: &Progress) -> Result<Vec<Tensor>> {
        self.latents_from(None, &mut |_| Ok(()), progress)
    }

    /// Makes latents as [`Prepared::latents`], in a run that can be resumed.
    /// - `from`: where to resume; `None`: from the start. `after`: called after each step with the cursor to resume from.
    pub fn latents_from(
        &self,
        from: Option<Cursor>,
        after: &mut dyn FnMut(&Cursor) -> Result<()>,
        progress: &Progress,
    ) -> Result<Vec<Tensor>> {
        self.log(progress);
        let stages = self.stages(progress);
        let place = if self.session.compute.device.is_cpu() { "the CPU" } else { "the GPU" };
        let tokens: usize = self.shots.iter().map(|shot| shot.grid.tokens()).sum();
        progress.detail(&format!("{} on {place}, {tokens} tokens", self.session.checkpoint.name));
        self.forecast.log(progress);
        let begun = Instant::now();
        let prompts: Vec<Vec<u32>> = self.prompts.iter().chain(&self.negative).cloned().collect();
        let texts = stages.encode_text(&prompts)?;
        self.forecast.remember(Stage::Text, begun, progress);
        let begun = Instant::now();
        let clips: Vec<&[Frame]> = self.held.iter().map(|held| held.frames.as_slice()).collect();
        let size = |canvas: &Extent| (canvas.width, canvas.height);
        let posteriors = self.canvases.iter().map(|canvas| stages.encode_clips(&clips, size(canvas)));
        let posteriors = posteriors.collect::<Result<Vec<_>>>()?;
        self.forecast.remember(Stage::Encode, begun, progress);
        let begun = Instant::now();
        let (latents, mut noise) = self.denoise(&stages, &texts, &posteriors, from, after)?;
        self.forecast.remember(Stage::Denoise, begun, progress);
        latents.iter().map(|latents| stages.decoder_input(latents, &mut noise)).collect()
    }

    /// Returns the decoder, loaded at the first call; a run's scenes and [`Prepared::look`] share it.
    fn decoder(&self, stages: &Stages) -> Result<&Decoder> {
        if let Some(decoder) = self.decoder.get() {
            return Ok(decoder);
        }
        let decoder = self.session.decoder(stages.progress)?;
        Ok(self.decoder.get_or_init(|| decoder))
    }

    /// Decodes the clip and passes each frame to `sink` as it is finished.
    /// - `latents`: from [`Prepared::latents`].
    pub fn decode(
        &self,
        latents: &[Tensor],
        progress: &Progress,
        mut sink: impl FnMut(Frame) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut stage = progress.stage("decode", self.settings.clip.frames, "frames");
        let stages = self.stages(progress);
        let decoder = self.decoder(&stages)?;
        let mut sink = |frame| {
            progress.check_cancelled()?;
            sink(frame)
        };
        for (shot, latents) in self.shots.iter().zip(latents) {
            let clip = Extent { frames: shot.frames, ..self.settings.clip };
            stages.decode(decoder, latents, self.legal, clip, &mut sink, |frames| stage.advance(frames))?;
        }
        stage.finish();
        self.forecast.remember(Stage::Decode, begun, progress);
        Ok(())
    }

    /// Decodes only the frames `first` to `last`, inclusive, as a preview: close to the full decode, which also sees latent frames
    /// further away.
    /// - `latents`: of the frames' scene, which begins at frame 0.
    pub fn look(&self, latents: &Tensor, first: usize, last: usize, progress: &Progress) -> Result<Vec<Frame>> {
        /// Latent frames decoded on either side of the wanted ones: roughly the decoder's receptive field.
        const MARGIN: usize = 2;
        let geometry = self.session.geometry();
        let from = geometry.latent_frame(first).saturating_sub(MARGIN);
        let to = (geometry.latent_frame(last) + 1 + MARGIN).min(latents.dim(1)?);
        let part = latents.narrow(1, from, to - from)?;
        let clip = Extent { frames: (to - from - 1) * geometry.time + 1, ..self.settings.clip };
        let mut frames = vec![];
        let silent = progress.silenced();
        let push = |frame| {
            frames.push(frame);
            Ok(silent.check_cancelled()?)
        };
        let stages = self.stages(&silent);
        stages.decode(self.decoder(&stages)?, &part, self.legal, clip, push, |_| silent.check_cancelled())?;
        let start = from * geometry.time; // a pixel frame of the scene: the part's frame 0
        Ok(frames.into_iter().skip(first - start).take(last + 1 - first).collect())
    }
}

/// One `reel generate`: a prepared job and its output file.
pub struct Job {
    prepared: Prepared,
    target: Target,
    force: bool,
}

impl Job {
    /// Checks request, files, sizes and output before any weights are loaded.
    /// - Errors are for the user to fix.
    pub fn prepare(request: &Request, host: &Host, progress: &Progress) -> Result<Self> {
        outputs::check_named(request, host, &[])?;
        let session = Session::open(request, host, Keep::Nothing, progress)?;
        let size = inputs::size_from_stills(request, session.default_size(), session.geometry())?;
        let prepared = Prepared::new(&session, request, size, &[], Direction::Forward, progress)?;
        let clip = prepared.settings.output();
        let target = outputs::target(request, host, &prepared.settings)?;
        outputs::check(request, host, &target, &[])?;
        let Extent { width, height, frames } = clip;
        let sizing = if prepared.settings.scale > 1 { Sizing::Scaled(prepared.settings.scale) } else { Sizing::Asked };
        target.check_clip(&Clip { width, height, frames, fps: prepared.settings.fps }, sizing)?;
        if prepared.forecast.fits().is_ok() {
            planning::check_disk(&target, prepared.settings.least(clip))?; // a run that does not fit in memory fails for that first
        }
        if request.quality.is_some() && !matches!(target.format, Format::Mp4 | Format::Webp) {
            progress.note("--quality has no effect on a lossless format");
        }
        Ok(Self { prepared, target, force: host.force })
    }

    /// Checks that the run fits in memory.
    /// - Errors with what would fit.
    pub fn fits(&self) -> Result<()> {
        self.prepared.forecast.fits()
    }

    /// Returns the run's plan and the rest of the `--dry-run` report.
    pub fn plan(&self) -> (&Plan, Report) {
        let settings = &self.prepared.settings;
        (&self.prepared.forecast.plan, self.prepared.forecast.report(settings, &self.target, settings.output()))
    }

    /// Makes the clip and writes it.
    /// - Errors are the machine's: memory, disk, device.
    pub fn run(self, progress: &Progress) -> Result<()> {
        self.fits()?;
        let begun = Instant::now();
        let settings = self.prepared.settings.clone();
        let Extent { width, height, frames } = settings.output();
        let mut writer = None;
        let latents = self.prepared.latents(progress)?;
        self.prepared.decode(&latents, progress, |frame| {
            // created at the first frame, so that a long run leaves no empty file behind
            let writer = match &mut writer {
                Some(writer) => writer,
                None => writer.insert(Writer::create(
                    &self.target,
                    width,
                    height,
                    settings.fps,
                    frames,
                    settings.quality,
                    self.force,
                )?),
            };
            writer.push(&enlarge(frame, settings.scale, settings.scale_filter))
        })?;
        if let Some(writer) = writer {
            writer.finish()?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (out, seed) = (self.target.path.display(), settings.seed);
        progress.done(
            &format!("{out}: {width}x{height}, {}, seed {seed}, {}", counted(frames, "frames"), human_seconds(seconds)),
            json!({"out": out.to_string(), "width": width, "height": height, "frames": frames, "fps": settings.fps,
                   "seed": seed, "seconds": (seconds * 1000.0).round() / 1000.0}),
        );
        Ok(())
    }
}

/// Draws a seed below 2^32 from the system's randomness.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // the standard library seeds its hash maps from the system, so no crate is needed for one number
    std::hash::RandomState::new().build_hasher().finish() & 0xFFFF_FFFF
}
