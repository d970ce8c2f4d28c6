//! The story: a prompt is encoded, noise is drawn and denoised, latents are decoded, frames are written. Each stage is
//! opened when it is needed and freed before the next: a stage's scope is its memory.

use crate::checkpoint::Checkpoint;
use crate::device::{self, Compute};
use crate::geometry::{Extent, Grid};
use crate::models::ltx::Convention;
use crate::models::ltx::transformer::Transformer;
use crate::models::ltx::vae::{Decoder, LatentStatistics};
use crate::nn::rope::Rope;
use crate::noise::Noise;
use crate::plan;
use crate::progress::{Progress, human_seconds};
use crate::request::{Levels, Request, Settings};
use crate::sampler::{self, Guidance, Schedule, Shift, State};
use crate::text::t5::T5;
use crate::video::Frame;
use crate::video::write::{Format, Target, Writer};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::time::Instant;

/// The model that is part of the program.
pub const DEFAULT_MODEL: &str = "tiny";

/// Pixels that one group of latent frames may decode to: bounds the decoder's memory, whatever the clip's length.
const DECODED_PIXELS: usize = 1 << 21;

/// A run with everything checked and nothing loaded.
pub struct Job {
    pub settings: Settings,
    pub target: Target,
    checkpoint: Checkpoint,
    compute: Compute,
    legal: Extent,
    schedule: Schedule,
    /// Tokens of the prompt and, where guidance asks for it, of the negative prompt.
    prompts: Vec<Vec<u32>>,
    force: bool,
}

impl Job {
    /// Checks all that can be wrong before the long part.
    /// - Errors are the user's to mend: flags, files, sizes, output.
    pub fn prepare(request: &Request, progress: &Progress) -> Result<Self> {
        request.check()?;
        let compute = device::open(request.device.as_deref().unwrap_or("auto"), request.dtype)?;
        let model = request.model.as_deref().unwrap_or(DEFAULT_MODEL);
        let checkpoint = Checkpoint::open(model, request.text_encoder.as_deref(), request.tokenizer.as_deref())?;
        let own = Convention::of(&checkpoint.vae.0);
        let convention = request.convention.unwrap_or(own);
        checkpoint.notes.iter().for_each(|note| progress.note(note));
        if convention != own {
            progress.note(&format!("--convention {convention}: this checkpoint was trained for `{own}`"));
        }
        let seed = request.seed.unwrap_or_else(fresh_seed);
        let defaults = checkpoint.entry.map(|e| e.run.clone()).unwrap_or_default();
        let settings = Settings::decide(request, &defaults, checkpoint.allowed_sigmas.as_deref(), convention, seed)?;
        if checkpoint.entry.is_none() {
            progress.note(&format!(
                "`{model}` is not in the catalogue: diffusers' defaults of the `{convention}` convention"
            ));
        }
        if request.seed.is_none() {
            progress.note(&format!("seed {seed}"));
        } else if seed > u32::MAX as u64 {
            progress.note(&format!("seed {seed}: torch's generator reads its low 32 bits, {}", seed as u32));
        }
        idle_flags(request, &settings, &checkpoint).iter().for_each(|note| progress.note(note));

        let asked = settings.clip;
        let legal = checkpoint.geometry().legal(asked);
        if legal != asked {
            let (a, l) = (asked, legal);
            progress.note(&format!(
                "{}x{}, {} frames: made as {}x{}, {} frames, and cropped",
                a.width, a.height, a.frames, l.width, l.height, l.frames
            ));
        }
        let target = match &request.out {
            Some(path) => Target::parse(path)?,
            None => Target::parse(&default_name(&settings.prompt, seed))?,
        };
        target.check(asked.width, asked.height, request.force)?;
        plan::check_memory(&checkpoint, legal, &compute)?;
        plan::check_disk(&target, asked)?;
        if request.quality.is_some() && !matches!(target.format, Format::Mp4 | Format::Webp) {
            progress.note("--quality has no effect on a lossless format");
        }
        let schedule = schedule(&settings, &checkpoint, checkpoint.geometry().grid(legal).tokens())?;
        let mut prompts = vec![];
        for (text, which) in [(Some(&settings.prompt), "prompt"), (settings.negative.as_ref(), "negative prompt")] {
            let Some(text) = text else { continue };
            let encoded = checkpoint.tokenizer.encode(text, convention.max_tokens())?;
            if let Some(unread) = &encoded.unread {
                let unread = unread.split_whitespace().collect::<Vec<_>>().join(" "); // one line
                progress.note(&format!(
                    "the {which} is longer than {} tokens; not read: “{unread}”",
                    convention.max_tokens()
                ));
            }
            prompts.push(encoded.ids);
        }
        Ok(Self { settings, target, checkpoint, compute, legal, schedule, prompts, force: request.force })
    }

    /// Makes the clip.
    /// - Errors are the machine's: memory, disk, device.
    pub fn run(self, progress: &Progress) -> Result<()> {
        let begun = Instant::now();
        let (clip, seed) = (self.settings.clip, self.settings.seed);
        progress.detail(&format!(
            "{} on {}, {} steps, {} tokens",
            self.checkpoint.name,
            if self.compute.device.is_cpu() { "the CPU" } else { "the GPU" },
            self.schedule.steps(),
            self.grid().tokens()
        ));
        let contexts = self.encode_text(progress)?;
        let state = self.denoise(&contexts, progress)?;
        drop(contexts);
        self.decode(state, progress)?;
        let seconds = begun.elapsed().as_secs_f64();
        let out = self.target.path.display();
        progress.done(
            &format!(
                "{out}: {}x{}, {} frames, seed {seed}, {}",
                clip.width,
                clip.height,
                clip.frames,
                human_seconds(seconds)
            ),
            json!({"out": out.to_string(), "width": clip.width, "height": clip.height, "frames": clip.frames,
                   "fps": self.settings.fps, "seed": seed, "seconds": (seconds * 1000.0).round() / 1000.0}),
        );
        Ok(())
    }

    fn grid(&self) -> Grid {
        self.checkpoint.geometry().grid(self.legal)
    }

    /// Text vectors of each prompt: (1, real tokens, channels).
    fn encode_text(&self, progress: &Progress) -> Result<Vec<Tensor>> {
        let (config, tensors) = &self.checkpoint.text;
        let t5 = T5::load(config, tensors.load(self.compute.stored, self.compute.dtype, &self.compute.device))?;
        let mut stage = progress.stage("text", config.layers * self.prompts.len());
        let mut contexts = vec![];
        for ids in &self.prompts {
            let mut padded = ids.clone();
            padded.resize(self.settings.convention.encoded_tokens(ids.len()), 0);
            let text = t5.encode(&padded, || stage.advance(1))?;
            // the transformer masks padding, so its rows may as well stay out
            contexts.push(text.narrow(1, 0, ids.len())?.contiguous()?);
        }
        stage.finish();
        Ok(contexts)
    }

    /// Noise -> latents: (1, tokens, c), f32.
    fn denoise(&self, texts: &[Tensor], progress: &Progress) -> Result<State> {
        let Compute { device, stored, dtype } = &self.compute;
        let (config, tensors) = &self.checkpoint.transformer;
        let grid = self.grid();
        let mut noise = Noise::new(self.settings.seed);
        let latents = draw(&mut noise, grid, config.in_channels)?.to_device(device)?;
        let state = State { latents, noise };

        let mut stage = progress.stage("denoise", self.schedule.steps());
        let transformer = Transformer::load(config, tensors.load(*stored, *dtype, device))?;
        let contexts = texts.iter().map(|text| transformer.context(text)).collect::<candle_core::Result<Vec<_>>>()?;
        let geometry = self.checkpoint.geometry();
        let positions = match self.settings.convention {
            Convention::Text => geometry.plain_positions(grid, self.settings.fps),
            Convention::Condition => geometry.causal_positions(grid, self.settings.fps, 0),
        };
        let shares: Vec<[f32; 3]> =
            positions.iter().map(|p| std::array::from_fn(|i| p[i] / config.max_pos[i])).collect();
        let rope = Rope::new(&shares, config.width(), config.theta, device)?;
        let guidance = Guidance { scale: self.settings.guidance, rescale: self.settings.guidance_rescale };
        let velocity = |latents: &Tensor, context: &Tensor, timestep: f32| {
            // guidance and steps are f32 in any precision of the model
            transformer.forward(latents, context, &[timestep], &rope)?.to_dtype(DType::F32)
        };
        let step = |state: State, i: usize| {
            let timestep = self.schedule.timesteps[i];
            let mut v = velocity(&state.latents, &contexts[0], timestep)?;
            if let Some(negative) = contexts.get(1) {
                v = guidance.combine(&velocity(&state.latents, negative, timestep)?, &v)?;
            }
            let (sigma, next) = (self.schedule.sigmas[i], self.schedule.sigmas[i + 1]);
            Ok(State { latents: sampler::euler(&state.latents, &v, sigma, next)?, noise: state.noise })
        };
        let state = sampler::sample(state, self.schedule.steps(), 0, step, |_, _| {
            stage.advance(1);
            Ok(())
        })?;
        stage.finish();
        Ok(state)
    }

    /// Latents -> frames -> file.
    fn decode(&self, state: State, progress: &Progress) -> Result<()> {
        let Compute { device, stored, dtype } = &self.compute;
        let (config, tensors) = &self.checkpoint.vae;
        let (grid, clip) = (self.grid(), self.settings.clip);
        let mut stage = progress.stage("decode", clip.frames);
        let vb = tensors.load(*stored, *dtype, device);
        let State { latents, mut noise } = state;
        let latents = latents.reshape((1, grid.frames, grid.height, grid.width, config.latent_channels))?;
        ensure!(
            is_finite(&latents)?,
            "the model made values that are no numbers\n  fix: try --dtype f32; if that does not help, the weights are damaged"
        );
        let mut latents = LatentStatistics::load(config, vb.clone())?.denormalise(&latents)?;
        if config.timestep_conditioning {
            let scale = self.settings.decode_noise;
            let drawn = draw(&mut noise, grid, config.latent_channels)?.reshape(latents.shape())?.to_device(device)?;
            latents = ((latents * (1.0 - scale))? + (drawn * scale)?)?;
        }
        let decoder = Decoder::load(config, vb.pp("decoder"))?;
        // the decoder of 0.9.1 draws from torch's global generator: another stream, with the same seed
        let mut decoding = decoder.start(self.settings.decode_timestep as f32, Noise::new(self.settings.seed));
        let mut writer = Writer::create(
            &self.target,
            clip.width,
            clip.height,
            self.settings.fps,
            clip.frames,
            self.settings.quality,
            self.force,
        )?;
        let group = (DECODED_PIXELS / (self.legal.width * self.legal.height * self.checkpoint.geometry().time)).max(1);
        let mut made = 0;
        for first in (0..grid.frames).step_by(group) {
            let count = group.min(grid.frames - first);
            let last = first + count == grid.frames;
            let Some(pixels) = decoder.push(&latents.narrow(1, first, count)?, last, &mut decoding)? else { continue };
            for frame in frames(&pixels, self.legal, clip)? {
                if made < clip.frames {
                    writer.push(&frame)?;
                    made += 1;
                    stage.advance(1);
                }
            }
        }
        ensure!(made == clip.frames, "the decoder made {made} of {} frames", clip.frames);
        writer.finish()?;
        stage.finish();
        Ok(())
    }
}

/// Noise for a whole latent grid, drawn channel by channel as the reference does: (1, tokens, c), f32, on the CPU.
fn draw(noise: &mut Noise, grid: Grid, channels: usize) -> Result<Tensor> {
    let tokens = grid.tokens();
    let drawn = Tensor::from_vec(noise.normal(channels * tokens), (1, channels, tokens), &candle_core::Device::Cpu)?;
    Ok(drawn.transpose(1, 2)?.contiguous()?)
}

fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.sum_all()?.to_scalar::<f32>()?.is_finite())
}

/// (1, f, H, W, 3) in [-1, 1] -> 8-bit pictures, cropped to the centre.
fn frames(pixels: &Tensor, legal: Extent, clip: Extent) -> Result<Vec<Frame>> {
    let (left, top) = ((legal.width - clip.width) / 2, (legal.height - clip.height) / 2);
    let pixels = pixels.squeeze(0)?.narrow(1, top, clip.height)?.narrow(2, left, clip.width)?;
    let mut all = vec![];
    for i in 0..pixels.dim(0)? {
        let values = pixels.get(i)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let rgb = values.iter().map(|v| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
        all.push(Frame { width: clip.width, height: clip.height, rgb });
    }
    Ok(all)
}

/// The noise levels of a run: one place for all conventions.
fn schedule(settings: &Settings, checkpoint: &Checkpoint, tokens: usize) -> Result<Schedule> {
    let config = &checkpoint.scheduler;
    let fixed = Shift { shift: config.shift, terminal: config.terminal };
    Ok(match (&settings.levels, settings.convention) {
        (Levels::Sigmas(sigmas), _) => Schedule::explicit(sigmas)?,
        (Levels::Steps(n), Convention::Text) => match config.dynamic {
            Some(bounds) => Schedule::linear(*n, &Shift::by_tokens(tokens, bounds, config.terminal)),
            None => Schedule::linear(*n, &fixed),
        },
        // the shift by tokens belongs to the other convention
        (Levels::Steps(n), Convention::Condition) if config.dynamic.is_some() => {
            Schedule::linear_quadratic(*n, &Shift::NONE)
        }
        (Levels::Steps(n), Convention::Condition) => Schedule::linear_quadratic(*n, &fixed),
    })
}

/// Flags that do nothing in this run, a line each.
fn idle_flags(request: &Request, settings: &Settings, checkpoint: &Checkpoint) -> Vec<String> {
    let mut notes = vec![];
    if settings.negative.is_none() {
        if request.negative.is_some() {
            notes.push(format!(
                "--negative has no effect: guidance is {}, and the negative prompt is used above 1",
                settings.guidance
            ));
        }
        if request.guidance_rescale.is_some_and(|x| x > 0.0) {
            notes.push(format!("--guidance-rescale has no effect: guidance is {}", settings.guidance));
        }
    }
    if !checkpoint.vae.0.timestep_conditioning {
        for (given, flag) in [(request.decode_timestep, "--decode-timestep"), (request.decode_noise, "--decode-noise")]
        {
            if given.is_some() {
                notes.push(format!("{flag} has no effect: this VAE's decoder takes no timestep"));
            }
        }
    }
    if request.image_noise.is_some() {
        notes.push("--image-noise has no effect: there is no still or clip to condition on".to_string());
    }
    notes
}

/// A file name from the prompt's first words and the seed.
fn default_name(prompt: &str, seed: u64) -> String {
    const LONGEST: usize = 40;
    let mut name = String::new();
    for word in prompt.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        if name.len() + word.len() > LONGEST {
            break;
        }
        name.push_str(&word.to_lowercase());
        name.push('-');
    }
    let extension = if cfg!(feature = "h264") { "mp4" } else { "webp" };
    format!("{name}{seed}.{extension}")
}

/// A seed below 2^32 from the system's randomness.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // the standard library seeds its hash maps from the system; no crate is needed for one number
    std::hash::RandomState::new().build_hasher().finish() & 0xFFFF_FFFF
}
