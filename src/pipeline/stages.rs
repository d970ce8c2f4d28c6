//! The three networks at work: text -> context, pixels -> latents, noise -> latents, latents -> pixels. A stage loads its
//! network when it begins and frees it when it ends.

use crate::job::geometry::{Extent, Grid};
use crate::job::recipe::Recipe;
use crate::models::bundle::Checkpoint;
use crate::models::ltx::conditioning::{Layout, Tokens, draw, draw_like};
use crate::models::ltx::transformer::{Context, Transformer};
use crate::models::ltx::upscale::{Upscaler, adain, tone_map as compress_tones};
use crate::models::ltx::vae::{Decoder, Encoder, LatentStatistics, Posterior};
use crate::models::text::t5::T5;
use crate::nn::kernel::memory;
use crate::nn::rope::Rope;
use crate::nn::tiles::Tiling;
use crate::pipeline::decode;
use crate::planning::Choices;
use crate::planning::cut::VaeChunking;
use crate::planning::passes::Pass;
use crate::planning::settings::Settings;
use crate::platform::cancel::Cancelled;
use crate::platform::device::Compute;
use crate::platform::fault::{Fault, Mark};
use crate::platform::progress::{Progress, Stage, human_seconds};
use crate::sampling::noise::Noise;
use crate::sampling::solver::{self, Schedule, State};
use crate::video::Frame;
use crate::weights::open::Tensors;
use anyhow::{Result, anyhow};
use candle_core::{DType, Tensor};
use std::time::Instant;

/// A checkpoint with where to run it and whom to tell.
pub struct Stages<'a> {
    pub checkpoint: &'a Checkpoint,
    pub compute: &'a Compute,
    pub settings: &'a Settings,
    pub choices: &'a Choices,
    pub progress: &'a Progress,
}

impl Stages<'_> {
    /// Text vectors of each prompt: (1, real tokens, channels).
    pub fn encode_text(&self, prompts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        let (config, tensors) = &self.checkpoint.text;
        let tensors = self.quantized(tensors, false)?;
        let t5 = T5::load(config, tensors.load(self.compute.stored, self.compute.dtype, &self.compute.device))?;
        let mut stage = self.progress.stage("text", config.layers * prompts.len(), "layers");
        let padded = |ids: &Vec<u32>| {
            let mut ids = ids.clone();
            ids.resize(self.settings.encoded_tokens(ids.len()), 0);
            ids
        };
        let padded: Vec<Vec<u32>> = prompts.iter().map(padded).collect();
        let texts = t5.encode_each(&padded, || stage.advance(1))?;
        texts.iter().try_for_each(|text| assert_numbers(text, "the text encoder", &tensors))?;
        // the transformer masks padding in every recipe, so its rows may as well stay out
        let contexts = texts.iter().zip(prompts).map(|(text, ids)| text.narrow(1, 0, ids.len())?.force_contiguous());
        let contexts = contexts.collect::<candle_core::Result<_>>()?;
        drop((texts, t5));
        stage.finish();
        memory::release();
        Ok(contexts)
    }

    /// Tensors from where quantised ones are kept, if they are to be kept: for later runs, or (`scratch`) for this one.
    fn quantized(&self, tensors: &Tensors, scratch: bool) -> Result<Tensors> {
        let mut stage = None;
        let tensors = tensors.through_file(scratch, |count| {
            let stage = stage.insert(self.progress.stage("quantise", count, "matrices"));
            || stage.advance(1)
        })?;
        if let Some(stage) = stage {
            stage.finish();
        }
        Ok(tensors)
    }

    /// What the encoder knows of each clip.
    /// - `clips`: 1 + k frames each. `size`: of the pass that they are for, width and height; pictures of another size are
    ///   brought to it.
    pub fn encode_clips(&self, clips: &[&[Frame]], size: (usize, usize)) -> Result<Vec<Posterior>> {
        if clips.is_empty() {
            return Ok(vec![]);
        }
        let Compute { device, stored, dtype, .. } = &self.compute;
        let (config, tensors) = &self.checkpoint.vae;
        let mut stage = self.progress.stage("encode", clips.iter().map(|clip| clip.len()).sum(), "frames");
        let encoder = Encoder::load(config, tensors.load(*stored, *dtype, device).pp("encoder"))?;
        let mut posteriors = vec![];
        for clip in clips {
            let mut done = 0; // a try that ran out of memory is not counted twice
            let geometry = self.checkpoint.geometry();
            let latents = (size.1 / geometry.space, size.0 / geometry.space);
            let attempt = |cut: &VaeChunking| {
                let mut now = 0;
                decode::encode(&encoder, (clip, size), cut, geometry, device, |frames| {
                    now += frames;
                    let more = now.saturating_sub(done);
                    done += more;
                    stage.advance(more)
                })
            };
            posteriors.push(decode::with_less(self.choices.encode, latents, attempt, |tiling| self.again(tiling))?);
        }
        stage.finish();
        drop(encoder);
        memory::release();
        Ok(posteriors)
    }

    /// Mean and deviation of the checkpoint's latents.
    pub fn statistics(&self) -> Result<LatentStatistics> {
        let (config, tensors) = &self.checkpoint.vae;
        Ok(LatentStatistics::load(config, tensors.load(None, DType::F32, &self.compute.device))?)
    }

    /// How a video of `grid` is laid out.
    pub fn layout(&self, grid: Grid) -> Layout {
        Layout {
            convention: self.settings.convention,
            geometry: self.checkpoint.geometry(),
            grid,
            fps: self.settings.fps,
            channels: self.checkpoint.transformer.0.in_channels,
            device: self.compute.device.clone(),
        }
    }

    /// The noise levels of a pass over a video of so many tokens.
    pub fn schedule(&self, pass: &Pass, tokens: usize) -> Result<Schedule> {
        let Settings { convention, recipe, .. } = *self.settings;
        pass.levels.schedule(&self.checkpoint.scheduler, convention, recipe, tokens)
    }

    /// Loads the transformer, with the prompts that it is to follow.
    /// - `positive`: text vectors of each scene. `negative`: of the negative prompt, where guidance asks for it.
    pub fn denoiser(&self, positive: &[Tensor], negative: Option<&Tensor>) -> Result<Denoiser<'_>> {
        let Compute { device, stored, dtype, .. } = &self.compute;
        let (config, tensors) = &self.checkpoint.transformer;
        let tensors = self.quantized(tensors, self.choices.scratch)?;
        let weights = tensors.load(*stored, *dtype, device);
        let transformer =
            Transformer::load_part(config, weights, self.choices.resident)?.stopped_by(self.progress.cancel());
        let positive = positive.iter().map(|text| transformer.context(text)).collect::<candle_core::Result<_>>()?;
        let negative = negative.map(|text| transformer.context(text)).transpose()?;
        Ok(Denoiser { stages: self, transformer, positive, negative })
    }

    /// Latents of the first pass -> what the second begins from: sides twice as long.
    /// - `latents`: (1, f, h, w, c), normalised, of each window.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `LTXMultiScalePipeline`, at 5260738.
    pub fn upscale(&self, upscaler: &Upscaler, latents: &[Tensor]) -> Result<Vec<Tensor>> {
        memory::release(); // of what the transformer was at work with
        let mut stage = self.progress.stage("upscale", latents.len(), "windows");
        let network = upscaler.load(&self.compute.device)?;
        let statistics = self.statistics()?;
        let mut all = vec![];
        for latents in latents {
            let large = statistics.normalise(&network.forward(&statistics.denormalise(latents)?)?)?;
            all.push(adain(&large, latents, self.settings.upscaling.adain)?);
            stage.advance(1)?;
        }
        stage.finish();
        memory::release();
        Ok(all)
    }

    /// What the decoder reads: denormalised, with the noise that it expects mixed in and tones compressed where the last pass
    /// says so.
    /// - `latents`: (1, f, h, w, c), normalised.
    pub fn decoder_input(&self, latents: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let config = &self.checkpoint.vae.0;
        assert_numbers(latents, "the model", &self.checkpoint.transformer.1)?;
        let draw = || {
            let tokens = latents.elem_count() / config.latent_channels;
            let drawn = draw(noise, tokens, config.latent_channels)?.reshape(latents.shape())?;
            Ok::<_, anyhow::Error>(drawn.to_device(&self.compute.device)?)
        };
        let drawn = config.timestep_conditioning.then(draw).transpose()?;
        let drawn = drawn.as_ref().map(|drawn| (drawn, self.settings.decode_noise));
        let tone_map = self.settings.passes.last().map_or(0.0, |pass| pass.tone_map);
        decoder_input(latents, &self.statistics()?, drawn, tone_map, self.settings.recipe)
    }

    /// Loads the decoder, which is then at hand for all scenes of a run.
    pub fn decoder(&self) -> Result<Decoder> {
        memory::release(); // of what the transformer was at work with
        let Compute { device, stored, dtype, .. } = &self.compute;
        let (config, tensors) = &self.checkpoint.vae;
        let begun = Instant::now();
        let decoder = Decoder::load(config, tensors.load(*stored, *dtype, device).pp("decoder"))?;
        self.progress.detail(&format!("the decoder is loaded, in {}", human_seconds(begun.elapsed().as_secs_f64())));
        Ok(decoder)
    }

    /// Latents -> frames, handed to `sink` in their order. A device that runs out of memory gets smaller tiles; nothing but the
    /// decoding is done again.
    /// - `decoder`: of [`Stages::decoder`]. `latents`: of [`Stages::decoder_input`], all of a clip or a part of it. `legal`: the size of the whole; pictures of
    ///   another size are brought to it. `clip`: the size that frames are then cropped to, and how many of them are wanted.
    ///   `after`: called with the number of frames done; an error of it ends the work.
    pub fn decode(
        &self,
        decoder: &Decoder,
        latents: &Tensor,
        legal: Extent,
        clip: Extent,
        mut sink: impl FnMut(Frame) -> Result<()>,
        mut after: impl FnMut(usize) -> Result<(), Cancelled>,
    ) -> Result<()> {
        let (_, _, h, w, _) = latents.dims5()?;
        let (mut handed, mut done) = (0, 0);
        let attempt = |cut: &VaeChunking| {
            // the decoder of 0.9.1 draws from torch's global generator: another stream, with the same seed
            let start = (self.settings.decode_timestep as f32, Noise::new(self.settings.seed));
            let (mut made, mut now) = (0, 0);
            let sink = |frame| {
                made += 1;
                if made > handed {
                    handed = made;
                    sink(frame)?;
                }
                Ok(())
            };
            let counted = |frames| {
                now += frames;
                let more = usize::saturating_sub(now, done);
                done += more;
                after(more)
            };
            decode::decode(decoder, latents, (cut, self.checkpoint.geometry()), (legal, clip), start, sink, counted)
        };
        let made = decode::with_less(self.choices.decode, (h, w), attempt, |tiling| self.again(tiling))?;
        if made != clip.frames {
            return Err(anyhow!("the decoder made {made} of {} frames", clip.frames)).fault(Fault::Machine);
        }
        Ok(())
    }

    /// Says that a device ran out of memory.
    fn again(&self, tiling: &Tiling) {
        let space = self.checkpoint.geometry().space;
        let (w, h) = (tiling.width * space, tiling.height * space);
        self.progress.note(&format!("the device ran out of memory: once more, in tiles of {w}x{h}"));
    }
}

/// Denormalises latents for the decoder, with noise mixed in and their tones compressed.
/// - `latents`: (1, f, h, w, c), normalised. `noise`: standard noise of that shape and its share, for decoders that expect some.
///   `tone_map`: 0 to 1, 0 for none; tones come after the noise in both recipes.
/// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__`, at 5260738; diffusers
///   `pipelines/ltx/pipeline_ltx_condition.py`, `__call__`, at 58eb52c, which mixes the noise into denormalised latents.
pub fn decoder_input(
    latents: &Tensor,
    statistics: &LatentStatistics,
    noise: Option<(&Tensor, f64)>,
    tone_map: f64,
    recipe: Recipe,
) -> Result<Tensor> {
    let noisy = |latents: Tensor| -> Result<Tensor> {
        let Some((drawn, share)) = noise else { return Ok(latents) };
        Ok(((latents * (1.0 - share))? + (drawn * share)?)?)
    };
    if recipe.noises_normalised() {
        let latents = compress_tones(&noisy(latents.clone())?, tone_map)?;
        return Ok(statistics.denormalise(&latents)?);
    }
    let latents = noisy(statistics.denormalise(latents)?)?;
    if tone_map == 0.0 {
        return Ok(latents);
    }
    Ok(statistics.denormalise(&compress_tones(&statistics.normalise(&latents)?, tone_map)?)?)
}

/// Errors when a network made values that are no numbers, and names the tensor that they come from, if it is one.
fn assert_numbers(x: &Tensor, who: &str, weights: &Tensors) -> Result<()> {
    if x.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(());
    }
    match weights.find_no_numbers() {
        Some(damage) => Err(damage),
        None => Err(anyhow!("{who} made values that are no numbers\n  fix: try --dtype f32")).fault(Fault::Machine),
    }
}

/// A loaded transformer and the prompts that it follows.
pub struct Denoiser<'a> {
    stages: &'a Stages<'a>,
    transformer: Transformer,
    positive: Vec<Context>,
    negative: Option<Context>,
}

impl Denoiser<'_> {
    /// Takes a laid-out video down its noise levels, after the prompt of `scene`.
    /// - Returns the video's own tokens, (1, tokens, c), f32, and the generator.
    pub fn run(
        &self,
        tokens: &Tokens,
        scene: usize,
        pass: &Pass,
        schedule: &Schedule,
        noise: Noise,
        stage: &mut Stage,
    ) -> Result<State> {
        let settings = self.stages.settings;
        let config = &self.stages.checkpoint.transformer.0;
        let shares: Vec<[f32; 3]> =
            tokens.positions.iter().map(|p| std::array::from_fn(|i| p[i] / config.max_pos[i])).collect();
        let rope = Rope::new(&shares, config.width(), config.theta, &self.stages.compute.device)?;
        let velocity = |without: &[usize], latents: &Tensor, context: &Context, timesteps: &[f32]| {
            // guidance and steps are f32 in any precision of the model
            self.transformer.forward_without(without, latents, context, timesteps, &rope)?.to_dtype(DType::F32)
        };
        let step = |State { mut latents, mut noise }: State, i: usize| {
            if settings.image_noise > 0.0 && !tokens.strengths.is_empty() {
                latents = tokens.with_noise(&latents, settings.image_noise, schedule.sigmas[i], &mut noise)?;
            }
            let timesteps = tokens.timesteps(schedule.timesteps[i]);
            let guidance = pass.guidance.at(schedule.sigmas[i]);
            let positive = &self.positive[scene];
            let v = velocity(&[], &latents, positive, &timesteps)?;
            if i == 0 {
                // before hours go into what cannot come to anything
                assert_numbers(&v, "the model", &self.stages.checkpoint.transformer.1)?;
            }
            let negative = self.negative.as_ref().filter(|_| guidance.needs_negative());
            let negative = negative.map(|text| velocity(&[], &latents, text, &timesteps)).transpose()?;
            let weakened = guidance.needs_stg();
            let weakened =
                weakened.then(|| velocity(guidance.stg_blocks, &latents, positive, &timesteps)).transpose()?;
            let v = guidance.combine(&v, negative.as_ref(), weakened.as_ref())?;
            let fresh = settings.stochastic.then(|| draw_like(&latents, &mut noise)).transpose()?;
            Ok(State { latents: tokens.step(&latents, &v, &schedule.sigmas, i, &timesteps, fresh.as_ref())?, noise })
        };
        let state = State { latents: tokens.latents.clone(), noise };
        let State { latents, noise } = solver::sample(state, schedule.steps(), 0, step, |_, _| {
            stage.advance(1)?;
            Ok(())
        })?;
        let own = latents.dim(1)? - tokens.extra;
        Ok(State { latents: latents.narrow(1, tokens.extra, own)?.contiguous()?, noise })
    }
}
