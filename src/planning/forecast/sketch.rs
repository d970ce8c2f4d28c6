//! What a run is planned from: what was decided, and counts of what it reads.

use crate::job::geometry::{Extent, Grid};
use crate::job::request::Request;
use crate::job::windows::{self, Direction};
use crate::models::Config;
use crate::planning::passes::Pass;
use crate::planning::scenes::{Shot, Span, shots};
use crate::planning::settings::Settings;
use crate::planning::{Task, Window};
use crate::platform::progress::Progress;
use anyhow::Result;

/// What a run is planned from: what was decided, and counts of what it reads.
#[derive(Clone)]
pub struct Sketch {
    pub settings: Settings,
    /// Which way a clip longer than a window grows.
    pub direction: Direction,
    /// Tokens of each prompt, the negative one included.
    pub prompts: Vec<usize>,
    pub held: Vec<HeldSpan>,
    /// Frames of the clip that footage gives.
    pub context: usize,
    pub config: Config,
}

/// What is held, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct HeldSpan {
    /// Its first frame, and how many there are.
    pub frame: usize,
    pub count: usize,
    /// Of its pictures; `None`: not read yet.
    pub bytes: Option<usize>,
}

impl HeldSpan {
    /// The frames of each.
    pub fn spans(all: &[HeldSpan]) -> Vec<Span> {
        all.iter().map(|place| Span { first_frame: place.frame, frames: place.count }).collect()
    }
}

impl Sketch {
    /// Counts what there is to make.
    /// - Errors on sizes, scenes and held frames that do not go together.
    pub fn task(&self) -> Result<Task> {
        let Self { settings, held, .. } = self;
        let geometry = self.config.geometry();
        let legal = geometry.legal(settings.clip);
        let canvases = match settings.passes.len() {
            0 | 1 => vec![legal],
            _ => settings.family.canvases(legal, geometry, settings.upscaling.downscale, &Progress::silent())?,
        };
        let mut shots = shots(settings, legal, geometry)?;
        let spans = HeldSpan::spans(held);
        shots.iter_mut().try_for_each(|shot| shot.cut(settings.window, &spans, geometry, self.direction))?;
        let mut windows = vec![];
        for (i, (pass, canvas)) in settings.passes.iter().zip(&canvases).enumerate() {
            let Grid { height, width, .. } = geometry.grid(*canvas);
            for (shot, window) in shots.iter().flat_map(|shot| shot.windows.iter().map(move |window| (shot, window))) {
                let plane = height * width;
                let (steps, evaluations) = self.evaluations(pass, window.latent_frames * plane)?;
                let tokens = (window.latent_frames + self.beside(shot, window)) * plane;
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
        let schedule = self.config.schedule(&pass.levels, convention, recipe, tokens)?;
        let guidance = schedule.sigmas[..schedule.steps()].iter().map(|&sigma| pass.guidance.at(sigma));
        let each = guidance.map(|at| 1 + usize::from(at.needs_negative()) + usize::from(at.needs_stg()));
        Ok((schedule.steps(), each.sum()))
    }

    /// Latent frames beside a window, of what is held there at a later frame than its first.
    fn beside(&self, shot: &Shot, window: &windows::Window) -> usize {
        let geometry = self.config.geometry();
        let first_frame = window.latent_start * geometry.time;
        let fresh = window.fresh(self.direction);
        let here = self.held.iter().filter(|place| shot.holds(place.frame)).filter(|place| {
            let frame = place.frame - shot.first_frame;
            frame > first_frame && fresh.contains(&geometry.latent_frame(frame))
        });
        let held: usize = here
            .map(|place| (geometry.latent_frame(place.count - 1) + 1).min(self.settings.family.prefix_latent_frames()))
            .sum();
        // what a window that grows back goes on from stands at its end
        held + if self.direction == Direction::Back {
            window.latent_carried.min(self.settings.family.prefix_latent_frames())
        } else {
            0
        }
    }

    /// The same with a clip of another size; `None` where that cannot be made.
    pub(super) fn resized(&self, clip: Extent) -> Option<Task> {
        let before = self.settings.clip.frames;
        let held = self.held.iter().map(|place| match place.frame + place.count {
            // what the clip ends with moves with its end
            end if end >= before && place.frame > 0 => {
                Some(HeldSpan { frame: (place.frame + clip.frames).checked_sub(before)?, ..*place })
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

/// What a request holds, before any of it is read: a frame each.
pub fn stills(request: &Request) -> Vec<HeldSpan> {
    let count = request.image.iter().count() + request.keyframe.len() + request.last_image.iter().count();
    vec![HeldSpan { frame: 0, count: 1, bytes: None }; count]
}
