//! Conditions a video on stills and clips: mixes their clean latents into the noise, and keeps a strength and a position for each
//! token.

use crate::job::convention::Convention;
use crate::job::geometry::Grid;
use crate::models::latents::{Condition, LatentStatistics, Layout, Start, draw, draw_like};
use crate::models::ltx::positions;
use crate::sampling::noise::Noise;
use crate::sampling::solver::{euler, stochastic};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// Leading latent frames of a clip placed after frame 0 that become extra tokens in front of the video's.
/// - Source: diffusers `pipelines/ltx/pipeline_ltx_condition.py`, `num_prefix_latent_frames`, at 58eb52c.
pub const PREFIX_LATENT_FRAMES: usize = 2;
/// Strengths above this count as 1; the slack is for rounding.
const FULL_STRENGTH: f32 = 1.0 - 1e-6;

/// A video's tokens during sampling, preceded by the extra ones that only condition it.
pub struct Tokens {
    /// (1, extra + video tokens, c), f32: initial noise, with the conditions mixed in.
    pub latents: Tensor,
    /// Conditioning strength of each token, 0 to 1; empty without conditions.
    pub strengths: Vec<f32>,
    /// Position of each token: (seconds, pixels down, pixels across).
    pub positions: Vec<[f32; 3]>,
    /// Number of leading tokens that are not part of the video.
    pub extra: usize,
}

impl Tokens {
    /// Draws a video's noise and mixes its conditions in.
    /// - `start`: latents to noise and begin from; `None`: begins from pure noise.
    /// - `noise`: drawn in the reference's order. [`Convention::Text`]: each still's latents, then the video's noise;
    ///   [`Convention::Condition`]: the video's noise, then each condition's latents and, after frame 0, its extra tokens' noise.
    /// - Source: diffusers `pipelines/ltx/pipeline_ltx_condition.py` and `pipeline_ltx_image2video.py`, `prepare_latents`,
    ///   at 58eb52c.
    pub fn new(
        layout: &Layout,
        conditions: &[Condition],
        start: Option<&Start>,
        statistics: &LatentStatistics,
        noise: &mut Noise,
    ) -> Result<Self> {
        let Layout { convention, geometry, grid, fps, channels, device, .. } = layout;
        let positions = match convention {
            Convention::Text => positions::plain(geometry, *grid, *fps),
            Convention::Condition => positions::causal(geometry, *grid, *fps, 0),
        };
        let mut stills = vec![];
        if *convention == Convention::Text {
            for condition in conditions {
                stills.push(condition.clean.latents(statistics, noise)?);
            }
        }
        let latents = draw(noise, grid.tokens(), *channels)?.to_device(device)?;
        let latents = match start {
            Some(start) => start.noised(&latents)?,
            None => latents,
        };
        let mut tokens = Self { latents, strengths: vec![], positions, extra: 0 };
        if conditions.is_empty() {
            return Ok(tokens);
        }
        let plane = grid.height * grid.width;
        tokens.strengths = vec![0.0; grid.tokens()];
        let (mut beside, mut beside_strengths, mut beside_positions) = (vec![], vec![], vec![]);
        for (i, condition) in conditions.iter().enumerate() {
            let latents = match stills.get(i) {
                Some(still) => still.clone(),
                None => condition.clean.latents(statistics, noise)?,
            };
            let (_, frames, _, _, c) = latents.dims5()?;
            let flat = latents.reshape((1, frames * plane, c))?;
            if condition.frame == 0 {
                ensure!(frames <= grid.frames, "{frames} latent frames to hold in a clip of {}", grid.frames);
                tokens.hold(&flat, 0, condition.strength)?;
                continue;
            }
            if frames > PREFIX_LATENT_FRAMES {
                let start = (condition.frame / geometry.time + PREFIX_LATENT_FRAMES) * plane;
                let rest = flat.narrow(1, PREFIX_LATENT_FRAMES * plane, (frames - PREFIX_LATENT_FRAMES) * plane)?;
                ensure!(start + rest.dim(1)? <= grid.tokens(), "a clip at frame {} does not fit", condition.frame);
                tokens.hold(&rest, start, condition.strength)?;
            }
            let prefix = Grid { frames: frames.min(PREFIX_LATENT_FRAMES), ..*grid };
            let count = prefix.tokens();
            let drawn = draw(noise, count, c)?.to_device(device)?;
            beside.push(lerp(&drawn, &flat.narrow(1, 0, count)?, condition.strength)?);
            beside_strengths.extend(std::iter::repeat_n(condition.strength as f32, count));
            beside_positions.extend(positions::causal(geometry, prefix, *fps, condition.frame));
        }
        if !beside.is_empty() {
            beside.push(tokens.latents);
            tokens.latents = Tensor::cat(&beside, 1)?;
            tokens.extra = beside_strengths.len();
            beside_strengths.append(&mut tokens.strengths);
            beside_positions.append(&mut tokens.positions);
            (tokens.strengths, tokens.positions) = (beside_strengths, beside_positions);
        }
        Ok(tokens)
    }

    /// Mixes `clean`, (1, n, c), into the video's tokens from token `start` on.
    fn hold(&mut self, clean: &Tensor, start: usize, strength: f64) -> Result<()> {
        let count = clean.dim(1)?;
        let mixed = lerp(&self.latents.narrow(1, start, count)?, clean, strength)?;
        let rest = start + count;
        let after = self.latents.narrow(1, rest, self.latents.dim(1)? - rest)?;
        self.latents = Tensor::cat(&[&self.latents.narrow(1, 0, start)?, &mixed, &after], 1)?;
        self.strengths[start..rest].fill(strength as f32);
        Ok(())
    }

    /// Resets tokens of strength 1 to their clean latents plus some noise, which helps motion continue from a still.
    /// - `latents`: current latents of the run. `scale`: `--image-noise`. `sigma`: of the step.
    /// - Draws noise for all tokens, whatever their strength, as the reference does.
    pub fn with_noise(&self, latents: &Tensor, scale: f64, sigma: f64, noise: &mut Noise) -> Result<Tensor> {
        let drawn = draw_like(latents, noise)?;
        let noised = (&self.latents + (drawn * (scale * sigma * sigma))?)?;
        let held: Vec<u8> = self.strengths.iter().map(|&s| (s > FULL_STRENGTH) as u8).collect();
        choose(&held, &noised, latents)
    }

    /// Returns each token's timestep, from 0 to 1000: the step's, or 1000 (1 - strength) where that is lower.
    /// - Without conditions, a single value for all tokens.
    pub fn timesteps(&self, timestep: f32) -> Vec<f32> {
        if self.strengths.is_empty() {
            return vec![timestep];
        }
        self.strengths.iter().map(|s| timestep.min((1.0 - s) * 1000.0)).collect()
    }

    /// Takes step `i`: moves each token from its own sigma to the next lower one of the schedule. A token stays as it is while the
    /// step's sigma is above 1 - strength.
    /// - `sigmas`: the whole schedule. `timesteps`: [`Tokens::timesteps`] at step `i`. `fresh`: noise for every token, for a
    ///   stochastic step (see [`stochastic`]); `None`: an Euler step.
    /// - Source: diffusers `schedulers/scheduling_flow_match_euler_discrete.py`, `step` (per-token branch), and
    ///   `pipelines/ltx/pipeline_ltx_condition.py`, `__call__`, at 58eb52c.
    pub fn step(
        &self,
        latents: &Tensor,
        velocity: &Tensor,
        sigmas: &[f64],
        i: usize,
        timesteps: &[f32],
        fresh: Option<&Tensor>,
    ) -> Result<Tensor> {
        if self.strengths.is_empty() {
            return match fresh {
                Some(fresh) => stochastic(latents, velocity, fresh, sigmas[i], sigmas[i + 1]),
                None => euler(latents, velocity, sigmas[i], sigmas[i + 1]),
            };
        }
        const SLACK: f32 = 1e-6;
        let sigmas: Vec<f32> = sigmas.iter().map(|&s| s as f32).collect();
        let next = |own: f32| sigmas.iter().copied().filter(|&s| s < own - SLACK).fold(0.0, f32::max);
        let own = || timesteps.iter().map(|t| t / 1000.0);
        let each = |values: &mut dyn Iterator<Item = f32>| {
            Tensor::from_iter(values, latents.device())?.reshape((1, (), 1)) // (1, tokens, 1)
        };
        let moved = match fresh {
            Some(fresh) => {
                let clean = (latents - velocity.broadcast_mul(&each(&mut own())?)?)?;
                let (kept, noised) = (each(&mut own().map(|s| 1.0 - next(s)))?, each(&mut own().map(next))?);
                (clean.broadcast_mul(&kept)? + fresh.broadcast_mul(&noised)?)?
            }
            None => (latents - velocity.broadcast_mul(&each(&mut own().map(|s| s - next(s)))?)?)?,
        };
        let free: Vec<u8> = self.strengths.iter().map(|s| (sigmas[i] - SLACK < 1.0 - s) as u8).collect();
        choose(&free, &moved, latents)
    }
}

/// Selects token by token: `yes` where `mask` is 1, else `no`; both (1, tokens, c).
fn choose(mask: &[u8], yes: &Tensor, no: &Tensor) -> Result<Tensor> {
    let mask = Tensor::new(mask, yes.device())?.reshape((1, (), 1))?.broadcast_as(yes.shape())?;
    Ok(mask.where_cond(yes, no)?)
}

/// Interpolates: a + w (b - a), with torch's rounding.
/// - Source: PyTorch `aten/src/ATen/native/Lerp.h`, `lerp`.
fn lerp(a: &Tensor, b: &Tensor, w: f64) -> Result<Tensor> {
    let difference = (b.to_dtype(DType::F32)? - a)?;
    Ok(if w < 0.5 { (a + (difference * w)?)? } else { (b - (difference * (1.0 - w))?)? })
}
