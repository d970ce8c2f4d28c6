//! Noise -> latents: the passes, in each every scene, in each its windows.

use crate::job::geometry::{Extent, Grid};
use crate::job::windows::{ChannelStatistics, Direction, Window};
use crate::models::ltx::conditioning::{Clean, Condition, Start, Tokens};
use crate::models::ltx::vae::{LatentStatistics, Posterior};
use crate::pipeline::Prepared;
use crate::pipeline::inputs::Held;
use crate::pipeline::stages::{Denoiser, Stages};
use crate::planning::passes::Pass;
use crate::sampling::noise::Noise;
use crate::sampling::solver::State;
use anyhow::Result;
use candle_core::Tensor;

/// One pass, with all that its windows share.
struct PassContext<'a> {
    pass: &'a Pass,
    /// Which of how many, from 0.
    number: (usize, usize),
    canvas: Extent,
    stages: &'a Stages<'a>,
    denoiser: &'a Denoiser<'a>,
    statistics: LatentStatistics,
}

impl Prepared {
    /// Noise -> latents of each scene, (1, f, h, w, c), by one pass or two.
    /// - `posteriors`: of what is held, for each pass.
    pub(super) fn denoise(
        &self,
        stages: &Stages,
        texts: &[Tensor],
        posteriors: Vec<Vec<Posterior>>,
    ) -> Result<(Vec<Tensor>, Noise)> {
        let mut noise = Noise::new(self.settings.seed);
        let denoiser = stages.denoiser(&texts[..self.prompts.len()], texts.get(self.prompts.len()))?;
        let mut latents: Vec<Tensor> = vec![];
        let passes = self.settings.passes.iter().zip(&self.canvases).zip(posteriors);
        for (i, ((pass, &canvas), posteriors)) in passes.enumerate() {
            let starts = match &self.upscaler {
                Some(upscaler) if i > 0 => stages.upscale(upscaler, &self.windows_of(&latents)?)?,
                _ => vec![],
            };
            let number = (i, self.canvases.len());
            let way =
                PassContext { pass, number, canvas, stages, denoiser: &denoiser, statistics: stages.statistics()? };
            (latents, noise) = self.pass(&way, posteriors, starts, noise)?;
        }
        Ok((latents, noise))
    }

    /// The latents of each window, scene after scene: (1, f, h, w, c) -> the same.
    fn windows_of(&self, latents: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut all = vec![];
        for (shot, latents) in self.shots.iter().zip(latents) {
            for window in &shot.windows {
                all.push(latents.narrow(1, window.start, window.frames)?.contiguous()?);
            }
        }
        Ok(all)
    }

    /// One pass over every scene.
    /// - `starts`: what each window begins from, in order; empty: from noise alone.
    fn pass(
        &self,
        way: &PassContext,
        posteriors: Vec<Posterior>,
        starts: Vec<Tensor>,
        mut noise: Noise,
    ) -> Result<(Vec<Tensor>, Noise)> {
        let PassContext { pass, number: (pass_number, passes), canvas, stages, denoiser, statistics } = way;
        let geometry = self.checkpoint.geometry();
        let Grid { height, width, .. } = geometry.grid(*canvas);
        let schedule = |window: &Window| stages.schedule(pass, Grid { frames: window.frames, height, width }.tokens());
        let mut conditions: Vec<(&Held, Posterior)> = self.held.iter().zip(posteriors).collect();
        let mut starts = starts.into_iter();
        let mut steps = 0;
        for window in self.shots.iter().flat_map(|shot| &shot.windows) {
            steps += schedule(window)?.steps();
        }
        let mut stage = stages.progress.stage("denoise", steps, "steps");
        let count: usize = self.shots.iter().map(|shot| shot.windows.len()).sum();
        let mut window_number = 0;
        let mut all = vec![];
        for (scene, shot) in self.shots.iter().enumerate() {
            let mut made: Option<Tensor> = None; // (1, f, h, w, c)
            let mut reference: Option<ChannelStatistics> = None;
            for window in &shot.windows {
                let schedule = schedule(window)?;
                let layout = stages.layout(Grid { frames: window.frames, height, width });
                let fresh = window.fresh(self.direction);
                let mut here: Vec<Condition> = self.carried(&made, window)?.into_iter().collect();
                let (now, later) = conditions.into_iter().partition(|(held, _)| {
                    shot.holds(held.frame) && fresh.contains(&geometry.latent_frame(held.frame - shot.start))
                });
                conditions = later;
                here.extend(Vec::from_iter(now).into_iter().map(|(held, posterior): (&Held, _)| Condition {
                    frame: frame_in(window, held.frame - shot.start, geometry.time),
                    strength: held.strength,
                    clean: Clean::Encoded(posterior),
                }));
                let start = starts.next().map(|latents| Start { latents, sigma: schedule.sigmas[0] });
                let tokens = Tokens::new(&layout, &here, start.as_ref(), statistics, &mut noise)?;
                window_number += 1;
                let labels = [("pass", pass_number + 1, *passes), ("window", window_number, count)];
                let labels =
                    labels.iter().filter(|(_, _, of)| *of > 1).map(|(what, i, of)| format!("{what} {i} of {of}"));
                stage.part(labels.collect::<Vec<_>>().join(", "), schedule.steps());
                let State { latents, noise: after } =
                    denoiser.run(&tokens, scene, pass, &schedule, noise, &mut stage)?;
                noise = after;
                let plane = height * width;
                let latents = latents.narrow(1, (fresh.start - window.start) * plane, fresh.len() * plane)?;
                let latents = match &reference {
                    Some(reference) if self.settings.drift_match => reference.impose(&latents)?,
                    _ => {
                        reference = Some(ChannelStatistics::of(&latents)?);
                        latents
                    }
                };
                let latents = latents.reshape((1, fresh.len(), height, width, layout.channels))?;
                made = Some(match (made, self.direction) {
                    (Some(made), Direction::Forward) => Tensor::cat(&[&made, &latents], 1)?,
                    (Some(made), Direction::Back) => Tensor::cat(&[&latents, &made], 1)?,
                    (None, _) => latents,
                });
            }
            all.extend(made);
        }
        stage.finish();
        Ok((all, noise))
    }

    /// What a window goes on from: the latents beside it that were made before.
    fn carried(&self, made: &Option<Tensor>, window: &Window) -> Result<Option<Condition>> {
        let Some(made) = made else { return Ok(None) };
        let (first, frame) = match self.direction {
            Direction::Forward => (window.start, 0),
            Direction::Back => (0, window.added() * self.checkpoint.geometry().time),
        };
        let latents = made.narrow(1, first, window.carried)?.contiguous()?;
        Ok(Some(Condition { frame, strength: 1.0, clean: Clean::Made(latents) }))
    }
}

/// The frame of a window that a frame of its scene is; the first, where that lies inside the latent frame that the window begins
/// with, which as a first one stands for its last frame alone.
/// - `time`: frames a latent frame.
fn frame_in(window: &Window, frame: usize, time: usize) -> usize {
    frame.saturating_sub(window.start * time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_inside_a_windows_first_latent_is_its_first() {
        let window = Window { start: 2, frames: 5, carried: 2 }; // its first latent frame holds the frames 9 to 16
        let frames = [9, 12, 16, 17, 24].map(|frame| frame_in(&window, frame, 8));
        assert_eq!(frames, [0, 0, 0, 1, 8]);
    }
}
