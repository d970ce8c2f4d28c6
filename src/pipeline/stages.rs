//! The networks at work: text -> context, pixels -> latents, latents -> pixels. A stage takes its network from the session when it
//! begins and lets it go when it ends.

use crate::job::geometry::Extent;
use crate::models::bundle::Checkpoint;
use crate::models::latents::{LatentStatistics, Posterior};
use crate::models::networks::{Decoder, DecoderInput, Upscaler};
use crate::nn::kernel::memory;
use crate::nn::tiles::Tiling;
use crate::pipeline::decode::{self, Latents, Pixels};
use crate::pipeline::session::Session;
use crate::planning::Choices;
use crate::planning::cut::VaeChunking;
use crate::planning::passes::Pass;
use crate::planning::settings::Settings;
use crate::platform::cancel::Cancelled;
use crate::platform::fault::{Fault, Mark};
use crate::platform::progress::Progress;
use crate::sampling::noise::Noise;
use crate::sampling::solver::Schedule;
use crate::video::Frame;
use crate::weights::open::Tensors;
use anyhow::{Result, anyhow};
use candle_core::{DType, Tensor};

/// A session, what a run decided, and whom to tell.
pub struct Stages<'a> {
    pub session: &'a Session,
    pub settings: &'a Settings,
    pub choices: &'a Choices,
    pub progress: &'a Progress,
}

impl Stages<'_> {
    /// Text vectors of each prompt: (1, real tokens, channels).
    pub fn encode_text(&self, prompts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        let encoder = self.session.text(self.progress)?;
        let (config, tensors) = &self.session.checkpoint.text;
        let mut stage = self.progress.stage("text", config.layers * prompts.len(), "layers");
        let padded = |ids: &Vec<u32>| {
            let mut ids = ids.clone();
            ids.resize(self.settings.encoded_tokens(ids.len()), 0);
            ids
        };
        let padded: Vec<Vec<u32>> = prompts.iter().map(padded).collect();
        let texts = match &encoder.layers {
            None => encoder.t5.encode_each(&padded, || stage.advance(1))?,
            Some(layers) => {
                let encode = |ids: &Vec<u32>| {
                    stage.advance(config.layers)?;
                    Ok(encoder.t5.encode_with(ids, layers)?)
                };
                padded.iter().map(encode).collect::<Result<_>>()?
            }
        };
        texts.iter().try_for_each(|text| assert_numbers(text, "the text encoder", tensors))?;
        // the transformer masks padding in every recipe, so its rows may as well stay out
        let contexts = texts.iter().zip(prompts).map(|(text, ids)| text.narrow(1, 0, ids.len())?.force_contiguous());
        let contexts = contexts.collect::<candle_core::Result<_>>()?;
        drop((texts, encoder));
        stage.finish();
        memory::release();
        Ok(contexts)
    }

    /// The encoder's posterior of each clip.
    /// - `clips`: 1 + k frames each. `size`: of the pass that they are for, width and height; pictures of another size are
    ///   brought to it.
    pub fn encode_clips(&self, clips: &[&[Frame]], size: (usize, usize)) -> Result<Vec<Posterior>> {
        if clips.is_empty() {
            return Ok(vec![]);
        }
        let device = &self.session.compute.device;
        let mut stage = self.progress.stage("encode", clips.iter().map(|clip| clip.len()).sum(), "frames");
        let encoder = self.session.encoder()?;
        let mut posteriors = vec![];
        for clip in clips {
            let mut done = 0; // a try that ran out of memory is not counted twice
            let geometry = self.session.geometry();
            let (height, width) = (size.1 / geometry.space, size.0 / geometry.space);
            let pixels = Pixels { frames: clip, size, geometry };
            let attempt = |cut: &VaeChunking| {
                let mut now = 0;
                decode::encode(&encoder, &pixels, cut, device, |frames| {
                    now += frames;
                    let more = now.saturating_sub(done);
                    done += more;
                    stage.advance(more)
                })
            };
            posteriors
                .push(decode::with_less(self.choices.encode, height, width, attempt, |tiling| self.again(tiling))?);
        }
        stage.finish();
        drop(encoder);
        memory::release();
        Ok(posteriors)
    }

    /// The noise levels of a pass over a video of so many tokens.
    pub fn schedule(&self, pass: &Pass, tokens: usize) -> Result<Schedule> {
        let Settings { convention, recipe, .. } = *self.settings;
        self.session.checkpoint.config.schedule(&pass.levels, convention, recipe, tokens)
    }

    /// Latents of the first pass -> what the second begins from.
    /// - `latents`: (1, f, h, w, c), normalised, of each window.
    pub fn upscale(
        &self,
        upscaler: &Upscaler,
        latents: &[Tensor],
        statistics: &LatentStatistics,
    ) -> Result<Vec<Tensor>> {
        memory::release(); // of what the transformer was at work with
        let mut stage = self.progress.stage("upscale", latents.len(), "windows");
        let (adain, device) = (self.settings.upscaling.adain, &self.session.compute.device);
        let all = upscaler.upscale(latents, statistics, adain, device, || stage.advance(1))?;
        stage.finish();
        memory::release();
        Ok(all)
    }

    /// What the decoder reads: denormalised, with the noise that it expects mixed in and tones compressed where the last pass
    /// says so.
    /// - `latents`: (1, f, h, w, c), normalised.
    pub fn decoder_input(&self, latents: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let Checkpoint { config, transformer, .. } = &self.session.checkpoint;
        assert_numbers(latents, "the model", transformer)?;
        let input = DecoderInput {
            noise: self.settings.decode_noise,
            tone_map: self.settings.passes.last().map_or(0.0, |pass| pass.tone_map),
            recipe: self.settings.recipe,
        };
        input.apply(config, latents, &self.session.statistics()?, noise)
    }

    /// Latents -> frames, handed to `sink` in their order. A device that runs out of memory gets smaller tiles; nothing but the
    /// decoding is done again.
    /// - `decoder`: of [`Session::decoder`]. `latents`: of [`Stages::decoder_input`], all of a clip or a part of it. `legal`: the size of the whole; pictures of
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
        let (geometry, timestep) = (self.session.geometry(), self.settings.decode_timestep as f32);
        let of = Latents { latents, geometry, legal, clip, timestep };
        let (mut handed, mut done) = (0, 0);
        let attempt = |cut: &VaeChunking| {
            // the decoder of 0.9.1 draws from torch's global generator: another stream, with the same seed
            let noise = Noise::new(self.settings.seed);
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
            decode::decode(decoder, &of, cut, noise, sink, counted)
        };
        let made = decode::with_less(self.choices.decode, h, w, attempt, |tiling| self.again(tiling))?;
        if made != clip.frames {
            return Err(anyhow!("the decoder made {made} of {} frames", clip.frames)).fault(Fault::Machine);
        }
        Ok(())
    }

    /// Says that a device ran out of memory.
    fn again(&self, tiling: &Tiling) {
        let space = self.session.geometry().space;
        let (w, h) = (tiling.width * space, tiling.height * space);
        self.progress.note(&format!("the device ran out of memory: once more, in tiles of {w}x{h}"));
    }
}

/// Errors when a network made values that are no numbers, and names the tensor that they come from, if it is one.
pub fn assert_numbers(x: &Tensor, who: &str, weights: &Tensors) -> Result<()> {
    if x.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Ok(());
    }
    match weights.find_no_numbers() {
        Some(damage) => Err(damage),
        None => Err(anyhow!("{who} made values that are no numbers\n  fix: try --dtype f32")).fault(Fault::Machine),
    }
}
