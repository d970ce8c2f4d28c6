//! `extend`, `bridge` and `loop`: footage, a made part that goes on from it or leads up to it, and the join. The footage never
//! goes through the VAE: it gives the model some frames of context, and the output its own frames.

mod layout;
pub mod seam;
mod side;

use crate::job::geometry::Extent;
use crate::job::host::Host;
use crate::job::ranges::MOST_FRAMES;
use crate::job::request::Request;
use crate::models::defaults::Holds;
use crate::pipeline::Prepared;
use crate::pipeline::absent::Absent;
use crate::pipeline::inputs::{self, Held, Preparation};
use crate::pipeline::join::seam::{Colours, Ease, Seam, Watch};
use crate::pipeline::session::{Keep, ModelFacts, Session};
use crate::planning::forecast::HeldSpan;
use crate::planning::outputs;
use crate::planning::settings::default_size;
use crate::planning::{self, Plan, Report};
use crate::platform::progress::{Progress, human_seconds};
use crate::video::Frame;
use crate::video::read::Info;
use crate::video::resize::{Fit, lanczos};
use crate::video::write::{Clip, Format, Sizing, Target, Writer};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use layout::{Given, Layout};
use serde_json::json;
use side::{Canvas, Side};
use std::path::PathBuf;
use std::time::Instant;

/// Frames a second of footage that has no rate of its own.
const FALLBACK_FPS: f64 = 24.0;
/// Frames of footage next to a join that its own changes are measured over.
const WATCHED: usize = 48;
/// Quality of an H.264 file whose footage has to be encoded again: 45 dB and more.
const FOOTAGE_QUALITY: u8 = 95;

/// What is to be joined.
pub struct Asked {
    /// Footage before the made part.
    pub before: Option<PathBuf>,
    /// Footage after it.
    pub after: Option<PathBuf>,
    /// Whether `after` is `before` again, and so not written twice.
    pub closed: bool,
    /// Frames of context from each, instead of as many as help.
    pub context: Option<usize>,
    pub colour_match: bool,
}

/// What brings the new part to the footage at one join.
struct Correction {
    colours: Colours,
    ease: Ease,
}

/// What the headers of the footage say.
struct Headers {
    before: Option<Info>,
    after: Option<Info>,
}

impl Headers {
    /// Opens each file once; what is remarkable of it is said once.
    fn new(asked: &Asked, progress: &Progress) -> Result<Self> {
        let look = |path: &PathBuf| Ok::<_, anyhow::Error>(inputs::open(path, "the clip", progress)?.info);
        let before = asked.before.as_ref().map(look).transpose()?;
        let after = match &asked.after {
            after if *after == asked.before => before.clone(),
            after => after.as_ref().map(look).transpose()?,
        };
        Ok(Self { before, after })
    }

    /// What decides size and rate.
    fn first(&self) -> Result<&Info> {
        self.before.as_ref().or(self.after.as_ref()).context("there is no footage to join")
    }

    /// Frames a second of the joined clip.
    /// - `default`: the model's.
    fn fps(&self, request: &Request, default: Option<f64>, progress: &Progress) -> Result<f64> {
        let Some(own) = self.first()?.fps else {
            return Ok(request.fps.or(default).unwrap_or(FALLBACK_FPS)); // stills and folders of frames have none of their own
        };
        if request.fps.is_some_and(|fps| (fps - own).abs() > 1e-3) {
            progress.note(&format!("--fps has no effect: the footage has {own:.3} frames a second, and keeps them"));
        }
        Ok(own)
    }
}

/// A join with everything checked and nothing loaded.
pub struct Join {
    prepared: Prepared,
    before: Option<Side>,
    after: Option<Side>,
    closed: bool,
    layout: Layout,
    /// How the model sees the footage.
    preparation: Preparation,
    canvas: Canvas,
    fps: f64,
    target: Target,
    quality: u8,
    force: bool,
    colour_match: bool,
}

/// A join as the footage's headers and the model's facts lay it out.
struct Draft {
    /// For the made clip.
    request: Request,
    layout: Layout,
    before: Option<Side>,
    after: Option<Side>,
    /// Size of the footage.
    shown: (usize, usize),
    /// Size of the made clip, in whole latents.
    legal: Extent,
    fps: f64,
}

impl Draft {
    fn new(request: &Request, asked: &Asked, facts: &ModelFacts, progress: &Progress) -> Result<Self> {
        let ModelFacts { family, geometry, defaults, convention } = facts;
        let holds = family.holds(*convention);
        let headers = Headers::new(asked, progress)?;
        let first = headers.first()?;
        let shown = (first.width, first.height);
        let fps = headers.fps(request, defaults.fps, progress)?;
        let made_size = request
            .size
            .unwrap_or_else(|| inputs::size_in_aspect(shown.0, shown.1, default_size(defaults, *family), *geometry));
        let legal = geometry.legal(Extent { width: made_size.0, height: made_size.1, frames: 1 });
        ensure!(
            holds == Holds::AnyFrame || asked.after.is_none(),
            "this checkpoint can continue from a clip's last frame, but not lead up to a clip\n  fix: use a model from 0.9.5 on, or the built-in one"
        );
        let side = |path: &Option<PathBuf>, info: &Option<Info>, tail: bool| match (path, info) {
            (Some(path), Some(info)) => Some(Side::new(path, info, tail, fps, progress)),
            _ => None,
        };
        let (before, after) = (side(&asked.before, &headers.before, true), side(&asked.after, &headers.after, false));
        let layout = Layout::new(&Given {
            geometry: *geometry,
            window: request.window.or(defaults.window).unwrap_or(family.defaults().window),
            before: before.as_ref().map(|side| side.frames),
            after: after.as_ref().map(|side| side.frames),
            context: asked.context,
            single: holds == Holds::FirstFrame, // those can only go on from a still
            wanted: request.frames_at(fps)?,
        });
        let Layout { wanted, frames, .. } = layout;
        let new = layout.new.len();
        if new != wanted {
            progress.note(&format!(
                "{new} new frames instead of {wanted}: between two clips the model fills whole groups of {}",
                geometry.time
            ));
        }
        ensure!(
            frames <= MOST_FRAMES,
            "{new} new frames and {} of context are more than the {MOST_FRAMES} that are made at once\n  fix: fewer --frames or --seconds",
            frames - new
        );
        let request = made(request, &layout, (legal.width, legal.height), fps)?;
        Ok(Self { request, layout, before, after, shown, legal, fps })
    }

    /// Frames of the joined clip.
    fn frames(&self, asked: &Asked) -> usize {
        let count = |side: &Option<Side>| side.as_ref().map_or(0, |side| side.frames);
        count(&self.before) + self.layout.new.len() + if asked.closed { 0 } else { count(&self.after) }
    }
}

impl Join {
    /// Plans a join with a model that is not here; `None` where it is.
    /// - Errors are the user's to mend.
    pub fn plan_absent(
        request: &Request,
        host: &Host,
        asked: &Asked,
        progress: &Progress,
    ) -> Result<Option<(Plan, Report)>> {
        let Some(absent) = Absent::find(request, host)? else { return Ok(None) };
        let draft = Draft::new(request, asked, &absent.facts(), progress)?;
        let (width, height) = draft.shown;
        let written = Extent { width, height, frames: draft.frames(asked) };
        let layout = &draft.layout;
        absent.plan(&draft.request, &layout.places(), layout.direction(), Some(written)).map(Some)
    }

    /// Checks all that can be wrong before the long part, from the footage's headers.
    /// - Errors are the user's to mend.
    pub fn prepare(request: &Request, host: &Host, asked: &Asked, progress: &Progress) -> Result<Self> {
        let clips: Vec<_> = [&asked.before, &asked.after].into_iter().flatten().map(PathBuf::as_path).collect();
        outputs::check_named(request, host, &clips)?;
        let session = Session::open(request, host, Keep::Nothing, progress)?;
        let draft = Draft::new(request, asked, &session.facts(request), progress)?;
        let all = draft.frames(asked);
        let Draft { request, layout, before, after, shown, legal, fps } = draft;
        let preparation = session.join_preparation(&request, legal);
        let prepared = Prepared::new(&session, &request, None, &layout.places(), layout.direction(), progress)?;
        let target = outputs::target(&request, host, &prepared.settings)?;
        let canvas = canvas(shown, &target, progress);
        let (width, height) = canvas.size;
        outputs::check(&request, host, &target, &clips)?;
        target.check_clip(&Clip { width, height, frames: all, fps }, Sizing::Footage)?;
        if prepared.forecast.fits().is_ok() {
            planning::check_disk(&target, Extent { width, height, frames: all })?;
        }
        let encoded = matches!(target.format, Format::Mp4 | Format::Webp);
        let quality = request.quality.unwrap_or(if encoded { FOOTAGE_QUALITY } else { prepared.settings.quality });
        Ok(Self {
            prepared,
            before,
            after,
            closed: asked.closed,
            layout,
            preparation,
            canvas,
            fps,
            target,
            quality,
            force: host.force,
            colour_match: asked.colour_match,
        })
    }

    /// Reads the frames of footage that the model sees. Only for a run: a plan needs none of them.
    /// - Errors are the user's to mend.
    pub fn read(&mut self, progress: &Progress) -> Result<()> {
        let sides = [&mut self.before, &mut self.after].into_iter().flatten();
        for (side, HeldSpan { frame, count, .. }) in sides.zip(self.layout.places()) {
            let frames = side.read(count, &self.preparation, progress)?;
            self.prepared.hold(Held { frame, strength: 1.0, frames });
        }
        Ok(())
    }

    /// Frames of footage that are written before and after what is new.
    fn footage(&self) -> (usize, usize) {
        let count = |side: &Option<Side>| side.as_ref().map_or(0, |side| side.frames);
        (count(&self.before), if self.closed { 0 } else { count(&self.after) })
    }

    /// - Errors when the run does not fit the memory that there is.
    pub fn fits(&self) -> Result<()> {
        self.prepared.forecast.fits()
    }

    /// What the run will take; disk is that of the joined clip.
    pub fn plan(&self) -> (&Plan, Report) {
        let (lead, tail) = self.footage();
        let (width, height) = self.canvas.size;
        let all = Extent { width, height, frames: lead + self.layout.new.len() + tail };
        (&self.prepared.forecast.plan, self.prepared.forecast.report(&self.prepared.settings, &self.target, all))
    }

    /// Makes the new part and writes the joined clip, after [`Join::read`].
    /// - Errors are the machine's: memory, disk, device.
    pub fn run(self, progress: &Progress) -> Result<()> {
        self.fits()?;
        let begun = Instant::now();
        let latents = self.prepared.latents(progress)?;
        let [first, second] = self.corrections(&latents, progress)?;
        let (lead, tail) = self.footage();
        let count = self.layout.new.len();
        let total = lead + count + tail;
        let (width, height) = self.canvas.size;
        let mut writer = Writer::create(&self.target, width, height, self.fps, total, self.quality, self.force)?;
        // the samples that may be copied later have to be known when the file is begun
        [&self.before, &self.after].into_iter().flatten().for_each(|side| writer.expect_clip(&side.path));
        let mut watch = Watch::default();
        if let Some(before) = &self.before {
            before.copy(self.canvas, &mut writer, lead.saturating_sub(WATCHED)..lead, &mut watch, progress)?;
        }
        let joined = watch.len();
        let mut index = 0;
        self.prepared.decode(&latents, progress, |mut frame| {
            let at = index;
            index += 1;
            if !self.layout.new.contains(&at) {
                return Ok(());
            }
            let i = at - self.layout.new.start;
            let share = if count > 1 { i as f64 / (count - 1) as f64 } else { 0.5 };
            let mut ease = vec![];
            let colours = match (&first, &second) {
                (Some(a), Some(b)) => a.colours.towards(&b.colours, share),
                (Some(one), None) | (None, Some(one)) => one.colours.clone(),
                (None, None) => Colours::SAME,
            };
            ease.extend(first.as_ref().map(|c| (&c.ease, Ease::weight(i))));
            ease.extend(second.as_ref().map(|c| (&c.ease, Ease::weight(count - 1 - i))));
            ease.retain(|(_, weight)| *weight > 0.0);
            colours.apply(&mut frame, &ease);
            let (across, down) = self.canvas.shown;
            let frame = self.canvas.bring(lanczos(&frame, across, down));
            watch.push(&frame);
            writer.push(&frame)
        })?;
        let left = watch.len();
        if let Some(after) = &self.after {
            if self.closed {
                // nothing more is written, but the last seam is where the clip begins again
                after.watch(self.canvas, 0..WATCHED, &mut watch, progress)?;
            } else {
                after.copy(self.canvas, &mut writer, 0..WATCHED, &mut watch, progress)?;
            }
        }
        writer.finish()?;
        let footage = [0..joined, left..watch.len()];
        let joins = [(joined, self.before.is_some()), (left, self.after.is_some())];
        let seams = joins.into_iter().filter(|join| join.1).filter_map(|(join, _)| watch.seam(join, &footage));
        let seams: Vec<Seam> = seams.collect();
        for (i, seam) in seams.iter().enumerate() {
            let which = if seams.len() == 1 { "" } else { ["first ", "second "][i] };
            progress.note(&format!("{which}join: {}", seam.word()));
            progress.detail(&seam.numbers());
        }
        let scores: Vec<_> = seams.iter().map(Seam::json).collect();
        let (out, seed, seconds) =
            (self.target.path.display(), self.prepared.settings.seed, begun.elapsed().as_secs_f64());
        progress.done(
            &format!("{out}: {width}x{height}, {total} frames, {count} of them new, seed {seed}, {}", human_seconds(seconds)),
            json!({"out": out.to_string(), "width": width, "height": height, "frames": total, "new": count, "fps": self.fps,
                   "seed": seed, "seams": scores, "seconds": (seconds * 1000.0).round() / 1000.0}),
        );
        Ok(())
    }

    /// What brings the new part to the footage before and after it.
    fn corrections(&self, latents: &[Tensor], progress: &Progress) -> Result<[Option<Correction>; 2]> {
        let correct = |made: Vec<Frame>, mut seen: Frame, footage: &[Frame], next: &Frame| {
            let colours = if self.colour_match { Colours::matching(&made, footage) } else { Colours::SAME };
            colours.apply(&mut seen, &[]);
            Correction { ease: Ease::new(next, &seen), colours }
        };
        let new = &self.layout.new;
        let near = seam::COMPARED.min(new.len());
        let mut both = [None, None];
        if let Some(Side { context, .. }) = &self.before {
            let mut made = self.prepared.look(&latents[0], new.start - 1, new.start + near - 1, progress)?;
            let seen = made.remove(0);
            both[0] =
                Some(correct(made, seen, &context[context.len().saturating_sub(near)..], &context[context.len() - 1]));
        }
        if let Some(Side { context, .. }) = &self.after {
            let mut made = self.prepared.look(&latents[latents.len() - 1], new.end - near, new.end, progress)?;
            let Some(seen) = made.pop() else { return Ok(both) };
            both[1] = Some(correct(made, seen, &context[..near.min(context.len())], &context[0]));
        }
        Ok(both)
    }
}

/// The request for the made clip of a join.
/// - Errors on scenes that cannot be.
fn made(request: &Request, layout: &Layout, size: (usize, usize), fps: f64) -> Result<Request> {
    ensure!(
        layout.after.is_none() || request.prompt_at.is_empty(),
        "--prompt-at makes scenes of their own, and what leads up to a clip is one scene\n  fix: leave it out"
    );
    let mut scenes = request.prompt_at.clone();
    for scene in &mut scenes {
        let frame = (scene.at * fps).round() as usize;
        ensure!(
            frame < layout.new.len(),
            "--prompt-at {}: the new part has {} frames at {fps} a second, and this scene begins at frame {frame}\n  fix: a longer --seconds",
            scene.at,
            layout.new.len()
        );
        // a scene's time counts from the start of what is new
        if scene.at > 0.0 {
            scene.at += layout.new.start as f64 / fps;
        }
    }
    Ok(Request {
        size: Some(size),
        scale: None, // a joined clip has the footage's size
        scale_filter: None,
        frames: Some(layout.frames),
        seconds: None,
        fps: Some(fps),
        prompt_at: scenes,
        fit: Fit::Stretch,
        // between two clips colours have to change on the way: the later one holds them, not the first window
        no_drift_match: request.no_drift_match || layout.before.is_some() && layout.after.is_some(),
        ..request.clone()
    })
}

/// The pictures that are written: the footage's, with a last row or column once more where a form takes even sides only.
fn canvas(shown: (usize, usize), target: &Target, progress: &Progress) -> Canvas {
    let even = |side: usize| side.next_multiple_of(2);
    let size = if target.format == Format::Mp4 { (even(shown.0), even(shown.1)) } else { shown };
    if size != shown {
        progress.note(&format!(
            "MP4 takes even sizes only: the footage's {}x{} is continued by its outermost pixels to {}x{}",
            shown.0, shown.1, size.0, size.1
        ));
    }
    Canvas { shown, size }
}
