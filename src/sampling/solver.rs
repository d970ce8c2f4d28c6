//! The sampling loop and its noise schedules. It knows no model: it takes numbers and closures.

use crate::sampling::noise::Noise;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// How the noise levels of a pass are found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Levels {
    /// So many steps, less the first and the last of them.
    Steps {
        steps: usize,
        skip_initial: usize,
        skip_final: usize,
    },
    Sigmas(Vec<f64>),
}

/// A descending list of noise levels that ends in 0.
/// - `sigmas`: f32 values, held in f64. `timesteps`: what the model is told at each step, 1000 sigma.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub sigmas: Vec<f64>,
    pub timesteps: Vec<f32>,
}

impl Schedule {
    /// Closes `sigmas` with a 0, unless they end in one.
    fn new(mut sigmas: Vec<f64>) -> Self {
        if sigmas.last() != Some(&0.0) {
            sigmas.push(0.0);
        }
        let timesteps = sigmas[..sigmas.len() - 1].iter().map(|s| (s * 1000.0) as f32).collect();
        Self { sigmas: sigmas.into_iter().map(|s| s as f32 as f64).collect(), timesteps }
    }

    /// Steps that it makes.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Without its first and its last steps: what is left still ends in 0.
    /// - Errors when nothing is left.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `retrieve_timesteps`, at 5260738.
    pub fn without(self, first: usize, last: usize) -> Result<Self> {
        let steps = self.steps();
        ensure!(first + last < steps, "of {steps} steps {} cannot be left out", first + last);
        let mut sigmas = self.sigmas[first..steps - last].to_vec();
        sigmas.push(0.0);
        Ok(Self { sigmas, timesteps: self.timesteps[first..steps - last].to_vec() })
    }

    /// Exactly the given levels.
    /// - Errors unless they fall from at most 1 and stay above 0 (the last may be 0).
    pub fn explicit(sigmas: &[f64]) -> Result<Self> {
        let falling = sigmas.windows(2).all(|w| w[1] < w[0]);
        let inside = sigmas.first().is_some_and(|&s| s > 0.0 && s <= 1.0) && sigmas.last().is_some_and(|&s| s >= 0.0);
        ensure!(falling && inside, "sigmas have to fall from at most 1 towards 0, each below the one before");
        Ok(Self::new(sigmas.to_vec()))
    }

    /// Even steps from 1 to 1 / steps, bent by `shift`.
    /// - Source: diffusers `pipelines/ltx/pipeline_ltx.py` (sigmas) and `schedulers/scheduling_flow_match_euler_discrete.py`,
    ///   `set_timesteps`, at 58eb52c.
    pub fn linear(steps: usize, shift: &Shift) -> Self {
        let last = 1.0 / steps as f64;
        let even = |i: usize| if steps == 1 { 1.0 } else { 1.0 + (last - 1.0) * i as f64 / (steps - 1) as f64 };
        Self::new(shift.apply((0..steps).map(even).collect()))
    }

    /// Small even steps for the first half, then quadratically growing ones.
    /// - Source: LTX-Video `schedulers/rf.py`, `linear_quadratic_schedule`, at 5260738.
    pub fn linear_quadratic(steps: usize, shift: &Shift) -> Self {
        const THRESHOLD: f64 = 0.025;
        if steps < 2 {
            return Self::new(shift.apply(vec![1.0]));
        }
        let (n, linear) = (steps as f64, (steps / 2) as f64);
        let quadratic = n - linear;
        let rest = linear - THRESHOLD * n;
        let a = rest / (linear * quadratic * quadratic);
        let b = THRESHOLD / linear - 2.0 * rest / (quadratic * quadratic);
        let c = a * linear * linear;
        let level = |i: usize| {
            let x = i as f64;
            1.0 - if i < steps / 2 { x * THRESHOLD / linear } else { a * x * x + b * x + c }
        };
        Self::new(shift.apply((0..steps).map(level).collect()))
    }
}

/// How a schedule is bent toward high noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Shift {
    /// sigma -> shift sigma / (1 + (shift - 1) sigma).
    pub shift: f64,
    /// The last level before 0, which the schedule is stretched to.
    pub terminal: Option<f64>,
}

impl Shift {
    pub const NONE: Shift = Shift { shift: 1.0, terminal: None };

    /// More shift for longer clips: log-linear in the number of latent tokens.
    /// - `bounds`: log shift at the first and at the second number of tokens, then those numbers.
    /// - Source: diffusers `pipelines/ltx/pipeline_ltx.py`, `calculate_shift`, at 58eb52c.
    pub fn by_tokens(tokens: usize, bounds: [f64; 4], terminal: Option<f64>) -> Self {
        let [low, high, few, many] = bounds;
        let slope = (high - low) / (many - few);
        Self { shift: (tokens as f64 * slope + low - slope * few).exp(), terminal }
    }

    fn apply(&self, sigmas: Vec<f64>) -> Vec<f64> {
        let mut sigmas: Vec<f64> = sigmas.into_iter().map(|s| s as f32 as f64).collect(); // as the reference rounds them
        for s in &mut sigmas {
            *s = self.shift * *s / (1.0 + (self.shift - 1.0) * *s);
        }
        // one step has nothing to stretch: its only level is 1
        if let (Some(terminal), [_, .., last]) = (self.terminal, sigmas.as_slice()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
        }
        sigmas
    }
}

/// All that a step changes, and all that a resumed run needs.
#[derive(Clone)]
pub struct State {
    /// (1, tokens, c), f32.
    pub latents: Tensor,
    pub noise: Noise,
}

/// Goes down the schedule, one step a pair of neighbouring levels.
/// - `from`: first step to make; 0 unless a run is resumed.
/// - `step`: (state, index) -> state at the next level; guidance and conditions are its own affair.
/// - `after`: progress, checkpoints, previews.
pub fn sample(
    mut state: State,
    steps: usize,
    from: usize,
    mut step: impl FnMut(State, usize) -> Result<State>,
    mut after: impl FnMut(usize, &State) -> Result<()>,
) -> Result<State> {
    for i in from..steps {
        state = step(state, i)?;
        after(i, &state)?;
    }
    Ok(state)
}

/// One Euler step: x + (next - sigma) v.
/// - `latents`, `velocity`: same shape, f32.
pub fn euler(latents: &Tensor, velocity: &Tensor, sigma: f64, next: f64) -> Result<Tensor> {
    let dt = next as f32 - sigma as f32; // the reference subtracts in f32
    Ok((latents + (velocity * dt as f64)?)?)
}

/// One step with fresh noise: the clean latents that the velocity points to, noised to the next level.
/// - `latents`, `velocity`, `fresh`: same shape, f32; `fresh` is standard noise.
/// - Source: diffusers `schedulers/scheduling_flow_match_euler_discrete.py`, `step` (`stochastic_sampling`), at 58eb52c.
pub fn stochastic(latents: &Tensor, velocity: &Tensor, fresh: &Tensor, sigma: f64, next: f64) -> Result<Tensor> {
    let clean = (latents - (velocity * sigma)?)?;
    Ok(((clean * (1.0 - next as f32) as f64)? + (fresh * next)?)?)
}
