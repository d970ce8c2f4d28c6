//! The scenes of a clip, each made by itself in windows.

use crate::geometry::{Extent, Geometry, Grid};
use crate::inputs::Held;
use crate::request::Settings;
use crate::windows::{self, Direction, Window};
use anyhow::{Result, ensure};

/// One scene: a clip of its own, cut to the others without a transition.
pub struct Shot {
    /// First frame, and how many are wanted.
    pub start: usize,
    pub frames: usize,
    pub grid: Grid,
    pub windows: Vec<Window>,
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
            "--prompt-at {}: the clip has {frames} frames at {} a second, and this scene begins at frame {start}",
            scene.at,
            settings.fps
        );
        starts.push(start);
    }
    let ends = starts.iter().skip(1).copied().chain([frames]);
    let shot = |(&start, end): (&usize, usize)| {
        let whole = geometry.legal(Extent { frames: end - start, ..legal });
        Shot { start, frames: end - start, grid: geometry.grid(whole), windows: vec![] }
    };
    Ok(starts.iter().zip(ends).map(shot).collect())
}

impl Shot {
    /// Whether the pictures begin in this scene.
    pub fn holds(&self, held: &Held) -> bool {
        (self.start..self.start + self.frames).contains(&held.frame)
    }

    /// Finds the windows that the scene is made in.
    /// - `window`: frames that the model makes at once. Errors when a clip to hold lies across two windows.
    pub fn cut(&mut self, window: usize, held: &[Held], geometry: Geometry, direction: Direction) -> Result<()> {
        let size = geometry.latent_frame(window.max(1) - 1) + 1;
        let total = self.grid.frames;
        let here = || held.iter().filter(|held| self.holds(held));
        let place = |held: &Held| {
            let first = held.frame - self.start;
            (geometry.latent_frame(first), geometry.latent_frame(first + held.frames.len() - 1))
        };
        // a clip that the end leads to has to lie within the window made last, with something new before it
        let last = here().filter(|held| held.frame > self.start).map(|held| total + 1 - place(held).0.min(total)).min();
        let size = size.max(2);
        let windows = windows::plan(total, size, last.unwrap_or(1).min(size), direction);
        for held in here() {
            let (first, last) = place(held);
            let mut fresh = windows.iter().map(|window| window.fresh(direction));
            ensure!(
                fresh.any(|fresh| fresh.contains(&first) && fresh.contains(&last)),
                "the {} frames held from frame {} on do not lie within one window of {window} frames\n  fix: hold fewer frames, or make longer windows with --window",
                held.frames.len(),
                held.frame
            );
        }
        self.windows = windows;
        Ok(())
    }
}
