//! The transformer at work on a window: what it is told at each step, and what a step does to the window's tokens.

use crate::job::geometry::Grid;
use crate::models::latents::{Condition, LatentStatistics, Layout, Prompt, Start, draw_like};
use crate::models::ltx::conditioning::Tokens;
use crate::models::ltx::config::TransformerConfig;
use crate::models::ltx::transformer::{Context, Transformer};
use crate::nn::rope::Rope;
use crate::platform::cancel::Cancel;
use crate::sampling::noise::Noise;
use crate::sampling::solver::{Schedule, State};
use anyhow::{Context as _, Result};
use candle_core::{DType, Tensor};

/// A transformer and the prompts that it follows.
pub struct Denoiser<'a> {
    transformer: &'a Transformer,
    config: &'a TransformerConfig,
    positive: Vec<Context>,
    negative: Option<Context>,
    cancel: Cancel,
}

impl<'a> Denoiser<'a> {
    /// - `positive`: text vectors of each scene, (1, m, caption_channels). `negative`: where guidance asks for it. `cancel`: asked
    ///   before each block.
    pub fn new(
        transformer: &'a Transformer,
        config: &'a TransformerConfig,
        positive: &[Tensor],
        negative: Option<&Tensor>,
        cancel: &Cancel,
    ) -> candle_core::Result<Self> {
        let positive = positive.iter().map(|text| transformer.context(text)).collect::<candle_core::Result<_>>()?;
        let negative = negative.map(|text| transformer.context(text)).transpose()?;
        Ok(Self { transformer, config, positive, negative, cancel: cancel.clone() })
    }

    /// Draws a window's noise and lays what it holds out in it: see [`Tokens::new`].
    pub fn window(
        &self,
        scene: usize,
        layout: &Layout,
        conditions: &[Condition],
        start: Option<&Start>,
        statistics: &LatentStatistics,
        noise: &mut Noise,
    ) -> Result<Window<'_>> {
        let tokens = Tokens::new(layout, conditions, start, statistics, noise)?;
        let config = self.config;
        let share = |p: &[f32; 3]| std::array::from_fn(|i| p[i] / config.max_pos[i]);
        let shares: Vec<[f32; 3]> = tokens.positions.iter().map(share).collect();
        let rope = Rope::new(&shares, config.width(), config.theta, &layout.device)?;
        let Layout { grid, image_noise, stochastic, .. } = *layout;
        Ok(Window { denoiser: self, scene, tokens, rope, grid, image_noise, stochastic })
    }
}

/// A window of video on its way down the noise levels.
pub struct Window<'a> {
    denoiser: &'a Denoiser<'a>,
    scene: usize,
    tokens: Tokens,
    rope: Rope,
    grid: Grid,
    image_noise: f64,
    stochastic: bool,
}

impl Window<'_> {
    /// What its first step begins from: (1, tokens, c), f32.
    pub fn latents(&self) -> &Tensor {
        &self.tokens.latents
    }

    /// Puts noise on what is held, where the run wants that, before the step at `sigma`.
    pub fn noised(&self, State { latents, mut noise }: State, sigma: f64) -> Result<State> {
        if self.image_noise == 0.0 || self.tokens.strengths.is_empty() {
            return Ok(State { latents, noise });
        }
        let latents = self.tokens.with_noise(&latents, self.image_noise, sigma, &mut noise)?;
        Ok(State { latents, noise })
    }

    /// Evaluates the transformer: the velocity of each token, f32, in which guidance and steps are made whatever the model runs in.
    /// - `timestep`: of the step. `without`: blocks that self-attention is left out of.
    pub fn velocity(&self, latents: &Tensor, timestep: f32, prompt: Prompt, without: &[usize]) -> Result<Tensor> {
        let Denoiser { transformer, positive, negative, cancel, .. } = self.denoiser;
        let context = match prompt {
            Prompt::Positive => &positive[self.scene],
            Prompt::Negative => negative.as_ref().context("guidance asks for a negative prompt that was not read")?,
        };
        let timesteps = self.tokens.timesteps(timestep);
        let velocity = transformer.forward_without(without, latents, context, &timesteps, &self.rope, cancel)?;
        Ok(velocity.to_dtype(DType::F32)?)
    }

    /// Takes step `i` of the schedule: see [`Tokens::step`].
    pub fn advance(
        &self,
        State { latents, mut noise }: State,
        velocity: &Tensor,
        schedule: &Schedule,
        i: usize,
    ) -> Result<State> {
        let fresh = self.stochastic.then(|| draw_like(&latents, &mut noise)).transpose()?;
        let timesteps = self.tokens.timesteps(schedule.timesteps[i]);
        let latents = self.tokens.step(&latents, velocity, &schedule.sigmas, i, &timesteps, fresh.as_ref())?;
        Ok(State { latents, noise })
    }

    /// The video's own latents, without what only conditioned it: (1, f, h, w, c).
    pub fn video(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, tokens, c) = latents.dims3()?;
        let Grid { frames, height, width } = self.grid;
        let own = latents.narrow(1, self.tokens.extra, tokens - self.tokens.extra)?.contiguous()?;
        Ok(own.reshape((1, frames, height, width, c))?)
    }
}
