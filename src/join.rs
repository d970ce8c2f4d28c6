//! `extend`, `bridge` and `loop`: footage, a made part that goes on from it or leads up to it, and the join. The footage never
//! goes through the VAE: it gives the model some frames of context, and the output its own frames.

mod side;

use crate::generate::{Opened, Take, target};
use crate::geometry::Extent;
use crate::inputs::{self, Held};
use crate::models::ltx::Convention;
use crate::plan::{self, Plan, Report};
use crate::progress::{Progress, human_seconds};
use crate::request::Request;
use crate::seam::{self, Colours, Ease, Watch};
use crate::video::Frame;
use crate::video::resize::{Fit, lanczos};
use crate::video::write::{Format, Target, Writer};
use crate::windows::Direction;
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use serde_json::json;
use side::Side;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Frames a second of footage that has no rate of its own.
const FALLBACK_FPS: f64 = 24.0;
/// Latent frames of context at most: more costs time and tells the model little that is new.
const MOST_CONTEXT: usize = 9;
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

/// A join with everything checked and nothing loaded.
pub struct Join {
    take: Take,
    before: Option<Side>,
    after: Option<Side>,
    closed: bool,
    /// Frames of the made clip that are new and wanted.
    new: Range<usize>,
    /// Size of the joined clip.
    size: (usize, usize),
    fps: f64,
    target: Target,
    quality: u8,
    force: bool,
    colour_match: bool,
}

impl Join {
    /// Checks all that can be wrong before the long part.
    /// - Errors are the user's to mend.
    pub fn prepare(request: &Request, asked: &Asked, progress: &Progress) -> Result<Self> {
        let opened = Opened::new(request, progress)?;
        let geometry = opened.geometry();
        let first = asked.before.as_deref().or(asked.after.as_deref()).context("there is no footage to join")?;
        let silent = Progress { quiet: true, ..*progress }; // what is remarkable is said when the clip is read
        let info = inputs::open(first, "the clip", &silent)?.info;
        let size = (info.width, info.height);
        let fps = match (info.fps, request.fps.or(opened.run_defaults().fps)) {
            (Some(fps), _) => fps,
            (None, Some(fps)) => fps, // stills and folders of frames have no rate of their own
            (None, None) => FALLBACK_FPS,
        };
        let made_size = request
            .size
            .unwrap_or_else(|| inputs::size_in_aspect(info.width, info.height, opened.default_size(), geometry));
        let legal = geometry.legal(Extent { width: made_size.0, height: made_size.1, frames: 1 });
        let made_size = (legal.width, legal.height);
        let window = request.window.or(opened.run_defaults().window).unwrap_or(crate::request::WINDOW);
        let latents = (window.max(1) - 1) / geometry.time + 1;
        let sides = asked.before.is_some() as usize + asked.after.is_some() as usize;
        let most = match asked.context {
            Some(frames) => (frames.max(1) - 1) / geometry.time + 1,
            // half the window goes to what is new
            None => (latents.div_ceil(2) / sides).clamp(2, MOST_CONTEXT),
        };
        // those checkpoints can only go on from a still
        let most = if opened.convention == Convention::Text { 1 } else { most };
        ensure!(
            opened.convention == Convention::Condition || asked.after.is_none(),
            "this checkpoint can go on from a clip's last frame, but not lead up to a clip\n  fix: use a model from 0.9.5 on, or the built-in one"
        );
        let preparation = opened.join_preparation(request, legal);
        let side = |path: &Option<PathBuf>, tail: bool| {
            path.as_deref().map(|path| Side::read(path, tail, most, fps, &preparation, geometry, progress)).transpose()
        };
        let (mut before, mut after) = (side(&asked.before, true)?, side(&asked.after, false)?);
        // where things lie in the made clip: context, what is new, context
        let wanted = match (request.frames, request.seconds) {
            (Some(n), _) => n,
            (None, Some(seconds)) => ((seconds * fps).round() as usize).max(1),
            (None, None) => geometry.time * (latents / 2).max(1),
        };
        let lead = before.as_ref().map_or(0, |side| side.context.len());
        let (new, total, mut held) = match &mut after {
            None => (lead..lead + wanted, lead + wanted, vec![]),
            Some(after) => {
                let at = (lead + wanted).next_multiple_of(geometry.time);
                // without footage before, frames too many fall off the front; between two clips none may
                let new = if before.is_some() { lead..at } else { at - wanted..at };
                let held = Held { frame: at, strength: 1.0, frames: std::mem::take(&mut after.seen) };
                (new, at + after.context.len(), vec![held])
            }
        };
        if new.len() != wanted {
            progress.note(&format!(
                "{} new frames instead of {wanted}: between two clips the model fills whole groups of {}",
                new.len(),
                geometry.time
            ));
        }
        if let Some(before) = &mut before {
            held.insert(0, Held { frame: 0, strength: 1.0, frames: std::mem::take(&mut before.seen) });
        }
        ensure!(
            after.is_none() || request.prompt_at.is_empty(),
            "--prompt-at makes scenes of their own, and what leads up to a clip is one scene\n  fix: leave it out"
        );
        // a scene's time counts from the start of what is new
        let mut scenes = request.prompt_at.clone();
        scenes.iter_mut().filter(|scene| scene.at > 0.0).for_each(|scene| scene.at += new.start as f64 / fps);
        let request = Request {
            size: Some(made_size),
            frames: Some(total),
            seconds: None,
            fps: Some(fps),
            prompt_at: scenes,
            fit: Fit::Stretch,
            // between two clips colours have to change on the way: the later one holds them, not the first window
            no_drift_match: request.no_drift_match || before.is_some() && after.is_some(),
            ..request.clone()
        };
        let direction = if before.is_some() { Direction::Forward } else { Direction::Back };
        let take = Take::new(opened, &request, None, held, direction, progress)?;
        let target = target(&request, &take.settings)?;
        target.check(size.0, size.1, request.force)?;
        let count = |side: &Option<Side>| side.as_ref().map_or(0, |side| side.frames);
        let all = count(&before) + new.len() + if asked.closed { 0 } else { count(&after) };
        if take.outlook.fits().is_ok() {
            plan::check_disk(&target, Extent { width: size.0, height: size.1, frames: all })?;
        }
        for path in [&asked.before, &asked.after].into_iter().flatten() {
            ensure!(
                !same_place(path, &target.path),
                "the output `{}` is the clip itself\n  fix: give another name with -o",
                target.path.display()
            );
        }
        let encoded = matches!(target.format, Format::Mp4 | Format::Webp);
        let quality = request.quality.unwrap_or(if encoded { FOOTAGE_QUALITY } else { take.settings.quality });
        Ok(Self {
            take,
            before,
            after,
            closed: asked.closed,
            new,
            size,
            fps,
            target,
            quality,
            force: request.force,
            colour_match: asked.colour_match,
        })
    }

    /// Frames of footage that are written before and after what is new.
    fn footage(&self) -> (usize, usize) {
        let count = |side: &Option<Side>| side.as_ref().map_or(0, |side| side.frames);
        (count(&self.before), if self.closed { 0 } else { count(&self.after) })
    }

    /// - Errors when the run does not fit the memory that there is.
    pub fn fits(&self) -> Result<()> {
        self.take.outlook.fits()
    }

    /// What the run will take; disk is that of the joined clip.
    pub fn plan(&self) -> (&Plan, Report) {
        let (lead, tail) = self.footage();
        let all = Extent { width: self.size.0, height: self.size.1, frames: lead + self.new.len() + tail };
        (&self.take.outlook.plan, self.take.outlook.report(&self.take.settings, &self.target, all))
    }

    /// Makes the new part and writes the joined clip.
    /// - Errors are the machine's: memory, disk, device.
    pub fn run(self, progress: &Progress) -> Result<()> {
        self.fits()?;
        let begun = Instant::now();
        let latents = self.take.latents(progress)?;
        let [first, second] = self.corrections(&latents)?;
        let (lead, tail) = self.footage();
        let total = lead + self.new.len() + tail;
        let (width, height) = self.size;
        let mut writer = Writer::create(&self.target, width, height, self.fps, total, self.quality, self.force)?;
        // the samples that may be copied later have to be known when the file is begun
        [&self.before, &self.after].into_iter().flatten().for_each(|side| writer.expect_clip(&side.path));
        let mut watch = Watch::default();
        if let Some(before) = &self.before {
            before.copy(self.size, &mut writer, lead.saturating_sub(WATCHED)..lead, &mut watch)?;
        }
        let joined = watch.len();
        let mut index = 0;
        let count = self.new.len();
        self.take.decode(&latents, progress, |mut frame| {
            let at = index;
            index += 1;
            if !self.new.contains(&at) {
                return Ok(());
            }
            let i = at - self.new.start;
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
            let frame = lanczos(&frame, width, height);
            watch.push(&frame);
            writer.push(&frame)
        })?;
        let left = watch.len();
        if let Some(after) = &self.after {
            if self.closed {
                // nothing more is written, but the last seam is where the clip begins again
                after.watch(0..WATCHED, &mut watch)?;
            } else {
                after.copy(self.size, &mut writer, 0..WATCHED, &mut watch)?;
            }
        }
        writer.finish()?;
        let mut scores = vec![];
        let footage = [0..joined, left..watch.len()];
        for (join, there) in [(joined, self.before.is_some()), (left, self.after.is_some())] {
            if let (true, Some((jump, own))) = (there, watch.seam(join, &footage)) {
                progress.note(&format!(
                    "seam: colour {:.2} (the clip's own changes: {:.2}), spread {:.2} ({:.2}), motion {:.2} ({:.2}), of 255",
                    jump.mean, own.mean, jump.spread, own.spread, jump.motion, own.motion
                ));
                let of = |c: seam::Change| json!({"colour": c.mean, "spread": c.spread, "motion": c.motion});
                scores.push(json!({"jump": of(jump), "own": of(own)}));
            }
        }
        let (out, seed, seconds) = (self.target.path.display(), self.take.settings.seed, begun.elapsed().as_secs_f64());
        progress.done(
            &format!("{out}: {width}x{height}, {total} frames, {count} of them new, seed {seed}, {}", human_seconds(seconds)),
            json!({"out": out.to_string(), "width": width, "height": height, "frames": total, "new": count, "fps": self.fps,
                   "seed": seed, "seams": scores, "seconds": (seconds * 1000.0).round() / 1000.0}),
        );
        Ok(())
    }

    /// What brings the new part to the footage before and after it.
    fn corrections(&self, latents: &[Tensor]) -> Result<[Option<Correction>; 2]> {
        let correct = |made: Vec<Frame>, mut seen: Frame, footage: &[Frame], next: &Frame| {
            let colours = if self.colour_match { Colours::matching(&made, footage) } else { Colours::SAME };
            colours.apply(&mut seen, &[]);
            Correction { ease: Ease::new(next, &seen), colours }
        };
        let near = seam::COMPARED.min(self.new.len());
        let mut both = [None, None];
        if let Some(Side { context, .. }) = &self.before {
            let start = self.new.start;
            let mut made = self.take.look(&latents[0], start - 1, start + near - 1)?;
            let seen = made.remove(0);
            both[0] =
                Some(correct(made, seen, &context[context.len().saturating_sub(near)..], &context[context.len() - 1]));
        }
        if let Some(Side { context, .. }) = &self.after {
            let end = self.new.end;
            let mut made = self.take.look(&latents[latents.len() - 1], end - near, end)?;
            let Some(seen) = made.pop() else { return Ok(both) };
            both[1] = Some(correct(made, seen, &context[..near.min(context.len())], &context[0]));
        }
        Ok(both)
    }
}

/// Whether two paths name the same file.
fn same_place(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
