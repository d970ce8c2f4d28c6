//! Noise -> latents. A run has passes, a pass has scenes, a scene has windows, a window has steps; a [`Cursor`] holds the position,
//! and the run's loop takes one step at a time.

use crate::job::geometry::Grid;
use crate::job::windows::{ChannelStatistics, Direction, Window};
use crate::models::latents::{Clean, Condition, LatentStatistics, Layout, Posterior, Prompt, Start};
use crate::models::networks::{self, Denoiser};
use crate::pipeline::Prepared;
use crate::pipeline::cursor::{Cursor, Position};
use crate::pipeline::stages::{Stages, assert_numbers};
use crate::planning::Choices;
use crate::planning::passes::Pass;
use crate::platform::progress;
use crate::sampling::noise::Noise;
use crate::sampling::solver::{Schedule, State};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

/// State that all steps of a run share.
struct Denoising<'a> {
    prepared: &'a Prepared,
    stages: &'a Stages<'a>,
    denoiser: &'a Denoiser<'a>,
    statistics: LatentStatistics,
    /// The encoded stills and clips, for each pass.
    posteriors: &'a [Vec<Posterior>],
    /// The windows of a pass, each with the index of its scene.
    windows: Vec<(usize, &'a Window)>,
    /// The current window.
    laid: Option<LaidOut<'a>>,
    /// The current pass and its progress bar.
    stage: Option<(usize, progress::Stage)>,
}

/// A window whose noise is drawn and whose conditions are mixed in, with its schedule.
struct LaidOut<'a> {
    pass: usize,
    number: usize,
    window: networks::Window<'a>,
    schedule: Schedule,
}

impl<'a> Denoising<'a> {
    fn new(
        prepared: &'a Prepared,
        stages: &'a Stages<'a>,
        denoiser: &'a Denoiser<'a>,
        posteriors: &'a [Vec<Posterior>],
    ) -> Result<Self> {
        let shots = prepared.shots.iter().enumerate();
        let windows = shots.flat_map(|(scene, shot)| shot.windows.iter().map(move |window| (scene, window))).collect();
        let statistics = stages.session.statistics()?;
        Ok(Self { prepared, stages, denoiser, statistics, posteriors, windows, laid: None, stage: None })
    }

    fn is_done(&self, cursor: &Cursor) -> bool {
        cursor.position.pass >= self.prepared.settings.passes.len()
    }

    /// Checks a cursor read from disk.
    /// - Errors on a position that this run cannot have.
    fn check(&self, cursor: &Cursor) -> Result<()> {
        let Position { pass, window: number, step } = cursor.position;
        if self.is_done(cursor) {
            return Ok(());
        }
        let steps = self.windows.get(number).map(|(_, window)| self.schedule(pass, window)).transpose()?;
        let fits = steps.is_some_and(|schedule| step < schedule.steps()) && (step == 0 || cursor.state.is_some());
        ensure!(fits, "the position of another run: pass {}, window {}, step {step}", pass + 1, number + 1);
        Ok(())
    }

    /// Takes the step at the cursor and advances it.
    fn step(&mut self, cursor: &mut Cursor) -> Result<()> {
        let Position { pass, window: number, step } = cursor.position;
        self.report(cursor)?;
        let laid = match self.laid.take() {
            Some(laid) if (laid.pass, laid.number) == (pass, number) => laid,
            _ => self.lay_out(cursor)?,
        };
        let state = cursor.state.clone().context("a window under way has no tokens")?;
        let pass = &self.prepared.settings.passes[pass];
        let state = self.stages.step(&laid.window, state, pass, &laid.schedule, step)?;
        cursor.position.step += 1;
        if let Some((_, stage)) = &mut self.stage {
            stage.advance(1)?;
        }
        if cursor.position.step == laid.schedule.steps() {
            return self.end_window(laid.window, state, cursor);
        }
        cursor.state = Some(state);
        self.laid = Some(laid);
        Ok(())
    }

    fn pass_grid(&self, pass: usize) -> Grid {
        self.prepared.session.geometry().grid(self.prepared.canvases[pass])
    }

    /// Returns a window's sigmas and timesteps.
    fn schedule(&self, pass: usize, window: &Window) -> Result<Schedule> {
        let Grid { height, width, .. } = self.pass_grid(pass);
        self.stages.schedule(
            &self.prepared.settings.passes[pass],
            Grid { frames: window.latent_frames, height, width }.tokens(),
        )
    }

    /// Opens the progress bar of the cursor's pass, if it is not open yet.
    fn report(&mut self, cursor: &Cursor) -> Result<()> {
        let Position { pass, window: number, step } = cursor.position;
        if self.stage.as_ref().is_some_and(|(of, _)| *of == pass) {
            return Ok(());
        }
        let steps = self.windows.iter().map(|(_, window)| Ok(self.schedule(pass, window)?.steps()));
        let steps = steps.collect::<Result<Vec<usize>>>()?;
        let mut stage = self.stages.progress.stage("denoise", steps.iter().sum(), "steps");
        match steps[..number].iter().sum::<usize>() + step {
            0 => {}
            before => stage.advance(before)?, // steps done before a resumed run
        }
        self.stage = Some((pass, stage));
        Ok(())
    }

    /// Draws the noise of the cursor's window and mixes in its conditions and starting latents. Uses the generator as it was when
    /// the window began, so that a resumed window is laid out as before.
    fn lay_out(&mut self, cursor: &mut Cursor) -> Result<LaidOut<'a>> {
        let Position { pass, window: number, .. } = cursor.position;
        let (scene, window) = self.windows[number];
        let schedule = self.schedule(pass, window)?;
        let Grid { height, width, .. } = self.pass_grid(pass);
        let Prepared { settings, session, shots, held, direction, .. } = self.prepared;
        let (shot, geometry) = (&shots[scene], self.prepared.session.geometry());
        let layout = Layout {
            convention: settings.convention,
            geometry,
            grid: Grid { frames: window.latent_frames, height, width },
            fps: settings.fps,
            channels: session.checkpoint.config.latent_channels(),
            device: session.compute.device.clone(),
            image_noise: settings.image_noise,
            stochastic: settings.stochastic,
        };
        let fresh = window.fresh(*direction);
        let mut conditions: Vec<Condition> = self.carried(&cursor.made, window)?.into_iter().collect();
        let here = held.iter().zip(&self.posteriors[pass]).filter(|(held, _)| {
            shot.holds(held.frame) && fresh.contains(&geometry.latent_frame(held.frame - shot.first_frame))
        });
        conditions.extend(here.map(|(held, posterior)| Condition {
            frame: frame_in(window, held.frame - shot.first_frame, geometry.time),
            strength: held.strength,
            clean: Clean::Encoded(posterior.clone()),
        }));
        let start = cursor.starts.get(number).cloned();
        let start = start.map(|latents| Start { latents, sigma: schedule.sigmas[0] });
        let mut noise = cursor.noise_at_window_start.clone();
        let laid = self.denoiser.window(scene, &layout, &conditions, start.as_ref(), &self.statistics, &mut noise)?;
        if cursor.state.is_none() {
            cursor.state = Some(State { latents: laid.latents().clone(), noise });
        }
        let (passes, count) = (settings.passes.len(), self.windows.len());
        let labels = [("pass", pass + 1, passes), ("window", number + 1, count)];
        let labels = labels.iter().filter(|(_, _, of)| *of > 1).map(|(what, i, of)| format!("{what} {i} of {of}"));
        if let Some((_, stage)) = &mut self.stage {
            stage.part(labels.collect::<Vec<_>>().join(", "), schedule.steps());
        }
        Ok(LaidOut { pass, number, window: laid, schedule })
    }

    /// Appends a finished window to its scene and a finished scene to the pass, and moves the cursor to the next window.
    fn end_window(&mut self, window: networks::Window, state: State, cursor: &mut Cursor) -> Result<()> {
        cursor.state = None;
        cursor.noise_at_window_start = state.noise;
        let latents = window.video(&state.latents)?;
        let number = cursor.position.window;
        let (scene, window) = self.windows[number];
        let Prepared { settings, direction, .. } = self.prepared;
        let fresh = window.fresh(*direction);
        let latents = latents.narrow(1, fresh.start - window.latent_start, fresh.len())?.contiguous()?;
        let (b, f, h, w, c) = latents.dims5()?;
        let latents = latents.reshape((b, f * h * w, c))?;
        let latents = match &cursor.reference {
            Some(reference) if settings.drift_match => reference.impose(&latents)?,
            _ => {
                cursor.reference = Some(ChannelStatistics::of(&latents)?);
                latents
            }
        };
        let latents = latents.reshape((b, f, h, w, c))?;
        cursor.made = Some(match (cursor.made.take(), direction) {
            (Some(made), Direction::Forward) => Tensor::cat(&[&made, &latents], 1)?,
            (Some(made), Direction::Back) => Tensor::cat(&[&latents, &made], 1)?,
            (None, _) => latents,
        });
        cursor.position = Position { window: number + 1, step: 0, ..cursor.position };
        if self.windows.get(number + 1).is_none_or(|(next, _)| *next != scene) {
            cursor.scenes.extend(cursor.made.take());
            cursor.reference = None;
        }
        if cursor.position.window == self.windows.len() { self.end_pass(cursor) } else { Ok(()) }
    }

    /// Moves the cursor to the next pass, which begins from the finished pass's latents, upscaled.
    fn end_pass(&mut self, cursor: &mut Cursor) -> Result<()> {
        if let Some((_, stage)) = self.stage.take() {
            stage.finish();
        }
        cursor.position = Position { pass: cursor.position.pass + 1, window: 0, step: 0 };
        if self.is_done(cursor) {
            return Ok(());
        }
        cursor.starts = match &self.prepared.upscaler {
            Some(upscaler) => {
                let windows = self.windows_of(&std::mem::take(&mut cursor.scenes))?;
                self.stages.upscale(upscaler, &windows, &self.statistics)?
            }
            None => vec![],
        };
        Ok(())
    }

    /// Splits the scenes' latents into those of each window: (1, f, h, w, c) each.
    fn windows_of(&self, scenes: &[Tensor]) -> Result<Vec<Tensor>> {
        let part = |(scene, window): &(usize, &Window)| {
            Ok(scenes[*scene].narrow(1, window.latent_start, window.latent_frames)?.contiguous()?)
        };
        self.windows.iter().map(part).collect()
    }

    /// Returns the condition by which a window continues the one before: the latents where the two overlap.
    fn carried(&self, made: &Option<Tensor>, window: &Window) -> Result<Option<Condition>> {
        let Some(made) = made else { return Ok(None) };
        let (first, frame) = match self.prepared.direction {
            Direction::Forward => (window.latent_start, 0),
            Direction::Back => (0, window.added() * self.prepared.session.geometry().time),
        };
        let latents = made.narrow(1, first, window.latent_carried)?.contiguous()?;
        Ok(Some(Condition { frame, strength: 1.0, clean: Clean::Made(latents) }))
    }
}

impl Prepared {
    /// Denoises all scenes; returns their latents, (1, f, h, w, c) each, and the generator as it is afterwards.
    /// - `texts`: embeddings of every prompt, the negative one last. `posteriors`: the encoded stills and clips, for each pass.
    ///   `from`: where a resumed run continues; `None`: from the start. `after`: called after each step.
    pub(super) fn denoise(
        &self,
        stages: &Stages,
        texts: &[Tensor],
        posteriors: &[Vec<Posterior>],
        from: Option<Cursor>,
        after: &mut dyn FnMut(&Cursor) -> Result<()>,
    ) -> Result<(Vec<Tensor>, Noise)> {
        let Choices { resident, scratch, .. } = *stages.choices;
        let loaded = self.session.transformer(resident, scratch, stages.progress)?;
        let (positive, negative) = (&texts[..self.prompts.len()], texts.get(self.prompts.len()));
        let denoiser = loaded.transformer.denoiser(
            &self.session.checkpoint.config,
            positive,
            negative,
            stages.progress.cancel(),
        )?;
        let mut cursor = from.unwrap_or_else(|| Cursor::start(self.settings.seed));
        let mut run = Denoising::new(self, stages, &denoiser, posteriors)?;
        run.check(&cursor)?;
        while !run.is_done(&cursor) {
            run.step(&mut cursor)?;
            after(&cursor)?;
        }
        Ok((cursor.scenes, cursor.noise_at_window_start))
    }
}

impl Stages<'_> {
    /// Takes step `i` of a window, with guidance.
    /// - `state`: its tokens and the generator after `i` steps.
    fn step(
        &self,
        window: &networks::Window,
        state: State,
        pass: &Pass,
        schedule: &Schedule,
        i: usize,
    ) -> Result<State> {
        let (sigma, timestep) = (schedule.sigmas[i], schedule.timesteps[i]);
        let state = window.noised(state, sigma)?;
        let guidance = pass.guidance.at(sigma);
        let velocity = |prompt, without: &[usize]| window.velocity(&state.latents, timestep, prompt, without);
        let v = velocity(Prompt::Positive, &[])?;
        if i == 0 {
            // broken weights are reported at the first step, not after hours
            assert_numbers(&v, "the model", &self.session.checkpoint.transformer)?;
        }
        let negative = guidance.needs_negative().then(|| velocity(Prompt::Negative, &[])).transpose()?;
        let weakened = guidance.needs_stg().then(|| velocity(Prompt::Positive, guidance.stg_blocks)).transpose()?;
        let v = guidance.combine(&v, negative.as_ref(), weakened.as_ref())?;
        window.advance(state, &v, schedule, i)
    }
}

/// Converts a pixel frame of a scene to one of its window. Frames within the window's first latent frame become 0: a first latent
/// frame stands for one pixel frame only.
/// - `time`: pixel frames for each latent frame.
fn frame_in(window: &Window, frame: usize, time: usize) -> usize {
    frame.saturating_sub(window.latent_start * time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_inside_a_windows_first_latent_is_its_first() {
        let window = Window { latent_start: 2, latent_frames: 5, latent_carried: 2 }; // its first latent frame: frames 9 to 16
        let frames = [9, 12, 16, 17, 24].map(|frame| frame_in(&window, frame, 8));
        assert_eq!(frames, [0, 0, 0, 1, 8]);
    }
}
