//! The scenes of a clip, each made by itself in windows.

use crate::job::geometry::{Extent, Geometry, Grid};
use crate::job::windows::{self, Direction, Window};
use crate::planning::settings::Settings;
use anyhow::{Result, ensure};

/// One scene: a clip of its own, cut to the others without a transition.
pub struct Shot {
    /// Of the clip, the frame that it begins with.
    pub first_frame: usize,
    /// How many are wanted.
    pub frames: usize,
    pub grid: Grid,
    pub windows: Vec<Window>,
}

/// Frames that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub first_frame: usize,
    pub frames: usize,
}

/// The scenes of a clip, not yet cut into windows.
/// - Errors when a scene begins after the clip's end.
pub fn shots(settings: &Settings, legal: Extent, geometry: Geometry) -> Result<Vec<Shot>> {
    let frames = settings.clip.frames;
    let mut starts: Vec<usize> = vec![];
    for scene in &settings.scenes {
        let start = (scene.at * settings.fps).round() as usize;
        ensure!(
            start < frames && starts.last().is_none_or(|&last| last < start),
            "--prompt-at {}: the clip has {frames} frames at {} a second, and this scene begins at frame {start}\n  fix: a longer clip, such as --seconds {}, or an earlier scene",
            scene.at,
            settings.fps,
            (scene.at * 1.25).ceil().max(scene.at + 1.0)
        );
        starts.push(start);
    }
    let ends = starts.iter().skip(1).copied().chain([frames]);
    let shot = |(&start, end): (&usize, usize)| {
        let whole = geometry.legal(Extent { frames: end - start, ..legal });
        Shot { first_frame: start, frames: end - start, grid: geometry.grid(whole), windows: vec![] }
    };
    Ok(starts.iter().zip(ends).map(shot).collect())
}

impl Shot {
    /// Whether pictures that are held from `frame` on begin in this scene.
    pub fn holds(&self, frame: usize) -> bool {
        (self.first_frame..self.first_frame + self.frames).contains(&frame)
    }

    /// Finds the windows that the scene is made in.
    /// - `window`: frames that the model makes at once. `held`: the frames of what is held.
    /// - Errors when a clip to hold lies across two windows.
    pub fn cut(&mut self, window: usize, held: &[Span], geometry: Geometry, direction: Direction) -> Result<()> {
        let size = geometry.latent_frame(window.max(1) - 1) + 1;
        let total = self.grid.frames;
        let here = || held.iter().filter(|held| self.holds(held.first_frame));
        let place = |&Span { first_frame, frames }: &Span| {
            let first = first_frame - self.first_frame;
            (geometry.latent_frame(first), geometry.latent_frame(first + frames - 1))
        };
        let last = match direction {
            // a clip that the end leads to has to lie within the window made last, with something new before it
            Direction::Forward => here()
                .filter(|held| held.first_frame > self.first_frame)
                .map(|held| total + 1 - place(held).0.min(total))
                .min(),
            // it lies within the window made first
            Direction::Back => None,
        };
        let size = size.max(2);
        let windows = windows::plan(total, size, last.unwrap_or(1).min(size), direction);
        for held in here() {
            let (first, last) = place(held);
            let mut fresh = windows.iter().map(|window| window.fresh(direction));
            ensure!(
                fresh.any(|fresh| fresh.contains(&first) && fresh.contains(&last)),
                "the {} frames held from frame {} on do not lie within one window of {window} frames\n  fix: hold fewer frames (of footage: --context), or make longer windows with --window",
                held.frames,
                held.first_frame
            );
        }
        self.windows = windows;
        Ok(())
    }
}
