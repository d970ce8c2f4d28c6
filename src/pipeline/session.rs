//! An open model and its networks, each loaded when a stage first needs it. In a single run a network is freed when its stage ends,
//! as the memory plan assumes; in a batch or a server it stays loaded for the next run.

use crate::embedded;
use crate::hub::catalogue::RunDefaults;
use crate::job::convention::Convention;
use crate::job::geometry::{Extent, Geometry};
use crate::job::host::Host;
use crate::job::recipe::Recipe;
use crate::job::request::Request;
use crate::models::Family;
use crate::models::bundle::Checkpoint;
use crate::models::latents::LatentStatistics;
use crate::models::networks::{self, Decoder, Encoder, Transformer};
use crate::models::text::t5::{Layer, T5};
use crate::nn::kernel::memory;
use crate::pipeline::inputs::Preparation;
use crate::pipeline::remarks::log_quantised;
use crate::planning::passes::{self, Upscaling};
use crate::planning::settings::{default_size, image_crf};
use crate::planning::{self, forecast};
use crate::platform::device::{self, Compute};
use crate::platform::progress::{Progress, human_seconds};
use crate::video::resize::Fit;
use crate::weights::open::Tensors;
use anyhow::{Result, ensure};
use candle_core::DType;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

/// Whether networks stay loaded after their stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Frees each network after its stage: a single run, within its memory plan.
    #[default]
    Nothing,
    /// Keeps networks for the next run: a batch, a server.
    Networks,
}

/// Loads and shares one network: its users own it, and the session does too where networks are kept.
struct Slot<T> {
    keep: Keep,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    /// The session's own reference, with [`Keep::Networks`].
    kept: Option<Arc<T>>,
    /// The network last loaded, while anyone uses it.
    lent: Weak<T>,
}

impl<T> Slot<T> {
    fn new(keep: Keep) -> Self {
        Self { keep, held: Mutex::new(Held { kept: None, lent: Weak::new() }) }
    }

    /// Returns the loaded network if it is `wanted`, else loads one.
    fn get(&self, wanted: impl Fn(&T) -> bool, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = held.lent.upgrade().filter(|here| wanted(here)) {
            return Ok(here);
        }
        held.kept = None; // freed before the next one is loaded
        let loaded = Arc::new(load()?);
        held.lent = Arc::downgrade(&loaded);
        held.kept = (self.keep == Keep::Networks).then(|| loaded.clone());
        Ok(loaded)
    }
}

/// The text encoder.
pub struct TextEncoder {
    pub t5: T5,
    /// Its layers, where networks are kept; `None`: each is read from its file when it runs.
    pub layers: Option<Vec<Layer>>,
}

/// The transformer, with its first `resident` blocks in memory.
pub struct LoadedTransformer {
    pub transformer: Transformer,
    resident: usize,
}

/// A model opened for a request, and those of its networks that are loaded.
pub struct Session {
    pub checkpoint: Checkpoint,
    pub compute: Compute,
    pub host: Host,
    keep: Keep,
    /// The part of the request that decides which networks are loaded.
    named: Request,
    /// The text encoder chosen for a request that names none.
    pub(super) encoder_choice: Option<planning::Encoder>,
    text: Slot<TextEncoder>,
    encoder: Slot<Encoder>,
    transformer: Slot<LoadedTransformer>,
    decoder: Slot<Decoder>,
}

/// What a request's defaults depend on: the model's family, latent sizes and pipeline.
#[derive(Clone)]
pub struct ModelFacts {
    pub family: Family,
    pub geometry: Geometry,
    /// Run settings where the request names none.
    pub defaults: RunDefaults,
    pub convention: Convention,
}

impl Session {
    /// Checks the request and opens its model.
    pub fn open(request: &Request, host: &Host, keep: Keep, progress: &Progress) -> Result<Arc<Self>> {
        let compute = device::open(host.device(), request.dtype)?;
        Self::open_on(compute, request, host, keep, progress)
    }

    /// Opens a session as [`Session::open`], on a device that is already open.
    pub fn open_on(
        compute: Compute,
        request: &Request,
        host: &Host,
        keep: Keep,
        progress: &Progress,
    ) -> Result<Arc<Self>> {
        request.check()?;
        host.check()?;
        if let Some(remark) = &compute.remark {
            progress.note(remark);
        }
        let model = request.model.as_deref().unwrap_or(embedded::NAME);
        let encoder = forecast::encoder(request, host, &compute)?.filter(|encoder| encoder.here);
        let mut sources = request.sources(model, host);
        sources.text_encoder = sources.text_encoder.or(encoder.as_ref().map(|encoder| Path::new(&encoder.entry.name)));
        let checkpoint = Checkpoint::open(&sources)?;
        if let Some(encoder) = encoder.as_ref().filter(|encoder| encoder.why.is_some()) {
            progress.note(&format!("text encoder: {}", encoder.describe()));
        }
        if let Some(quantize) = request.quantize {
            log_quantised(&checkpoint, quantize, progress);
        }
        checkpoint.notes.iter().for_each(|note| progress.note(note));
        let own = checkpoint.convention();
        let convention = request.convention.unwrap_or(own);
        if convention != own {
            progress.note(&format!("--convention {convention}: this checkpoint was trained for `{own}`"));
        }
        if checkpoint.entry.is_none() {
            progress.note(&format!(
                "`{model}` is not in the catalogue: diffusers' defaults of the `{convention}` convention"
            ));
        }
        Ok(Arc::new(Self {
            checkpoint,
            compute,
            host: host.clone(),
            keep,
            named: names_of_networks(request),
            encoder_choice: encoder,
            text: Slot::new(keep),
            encoder: Slot::new(keep),
            transformer: Slot::new(keep),
            decoder: Slot::new(keep),
        }))
    }

    /// Returns whether a request needs the networks of this session, so that it can run in it.
    pub fn serves(&self, request: &Request) -> bool {
        self.named == names_of_networks(request)
    }

    pub fn geometry(&self) -> Geometry {
        self.checkpoint.config.geometry()
    }

    /// Returns the run settings where the request names none.
    pub fn run_defaults(&self) -> RunDefaults {
        self.checkpoint.run_defaults()
    }

    /// Returns the pipeline that samples a request.
    pub fn convention(&self, request: &Request) -> Convention {
        request.convention.unwrap_or_else(|| self.checkpoint.convention())
    }

    pub fn facts(&self, request: &Request) -> ModelFacts {
        ModelFacts {
            family: self.checkpoint.config.family(),
            geometry: self.geometry(),
            defaults: self.run_defaults(),
            convention: self.convention(request),
        }
    }

    /// Returns the model's description for planning.
    pub(super) fn model(&self) -> planning::Model {
        let mut model = planning::Model::of(&self.checkpoint, &self.compute);
        model.text_encoder = self.encoder_choice.as_ref().map(planning::Encoder::describe);
        model.kept = self.keep == Keep::Networks;
        model
    }

    /// Returns how a join's footage is prepared for the encoder: like any other conditioning picture.
    /// - `legal`: size of the new part, in whole latents.
    pub fn join_preparation(&self, request: &Request, legal: Extent) -> Preparation {
        let defaults = self.run_defaults();
        let family = self.checkpoint.config.family();
        let two = passes::are_two(request, &defaults);
        let downscale = Upscaling::decide(request, &defaults, family).downscale;
        let largest = if two { family.pass_sizes(legal, self.geometry(), downscale)[1] } else { legal };
        Preparation {
            clip: (legal.width, legal.height),
            legal: (legal.width, legal.height),
            largest: (largest.width, largest.height),
            fit: Fit::Stretch,
            crf: image_crf(request, &defaults),
            recipe: Recipe::decide(request.convention, defaults.recipe),
            moved: true,
        }
    }

    /// Returns the model's default width and height in pixels.
    pub fn default_size(&self) -> (usize, usize) {
        default_size(&self.run_defaults(), self.checkpoint.config.family())
    }

    /// Returns the text encoder, loading it if needed.
    pub fn text(&self, progress: &Progress) -> Result<Arc<TextEncoder>> {
        let load = || {
            let (config, tensors) = &self.checkpoint.text;
            let tensors = quantized(tensors, false, progress)?;
            let Compute { device, stored, dtype, .. } = &self.compute;
            let t5 = T5::load(config, tensors.load(*stored, *dtype, device))?;
            let layers = (self.keep == Keep::Networks).then(|| t5.layers()).transpose()?;
            Ok(TextEncoder { t5, layers })
        };
        self.text.get(|_| true, load)
    }

    /// Returns the VAE's encoder, loading it if needed.
    pub fn encoder(&self) -> Result<Arc<Encoder>> {
        let Compute { device, stored, dtype, .. } = &self.compute;
        let Checkpoint { config, vae, .. } = &self.checkpoint;
        self.encoder.get(|_| true, || Ok(Encoder::load(config, vae.load(*stored, *dtype, device))?))
    }

    /// Returns the transformer, loading it if needed.
    /// - `resident`: blocks that stay in memory. `scratch`: with `--quantize`, whether the other blocks are quantised
    ///   once, into a file, instead of at every use.
    pub fn transformer(&self, resident: usize, scratch: bool, progress: &Progress) -> Result<Arc<LoadedTransformer>> {
        let load = || {
            let Checkpoint { config, transformer, .. } = &self.checkpoint;
            let tensors = quantized(transformer, scratch, progress)?;
            let Compute { device, stored, dtype, .. } = &self.compute;
            let transformer = Transformer::load(config, tensors.load(*stored, *dtype, device), resident)?;
            Ok(LoadedTransformer { transformer, resident })
        };
        self.transformer.get(|loaded| loaded.resident == resident, load)
    }

    /// Returns the VAE's decoder, loading it if needed.
    pub fn decoder(&self, progress: &Progress) -> Result<Arc<Decoder>> {
        let load = || {
            memory::release(); // buffers that the transformer worked with
            let Compute { device, stored, dtype, .. } = &self.compute;
            let Checkpoint { config, vae, .. } = &self.checkpoint;
            let begun = Instant::now();
            let decoder = Decoder::load(config, vae.load(*stored, *dtype, device))?;
            progress.detail(&format!("the decoder is loaded, in {}", human_seconds(begun.elapsed().as_secs_f64())));
            Ok(decoder)
        };
        self.decoder.get(|_| true, load)
    }

    /// Loads mean and standard deviation of the checkpoint's latents.
    pub fn statistics(&self) -> Result<LatentStatistics> {
        let Checkpoint { config, vae, .. } = &self.checkpoint;
        Ok(networks::statistics(config, vae.load(None, DType::F32, &self.compute.device))?)
    }

    /// Checks that a request needs the networks of this session.
    pub(super) fn check_serves(&self, request: &Request) -> Result<()> {
        ensure!(self.serves(request), "this session has another model, or other parts of it, than the request names");
        Ok(())
    }
}

/// Returns the part of a request that decides which networks are loaded, and in which types.
fn names_of_networks(request: &Request) -> Request {
    Request {
        model: request.model.clone(),
        text_encoder: request.text_encoder.clone(),
        tokenizer: request.tokenizer.clone(),
        vae: request.vae.clone(),
        quantize: request.quantize,
        lora: request.lora.clone(),
        dtype: request.dtype,
        ..Request::default()
    }
}

/// Returns the tensors, quantised into a file first where one is kept: the cache for later runs, or (`scratch`) one for this run.
fn quantized(tensors: &Tensors, scratch: bool, progress: &Progress) -> Result<Tensors> {
    let mut stage = None;
    let tensors = tensors.through_file(scratch, |count| {
        let stage = stage.insert(progress.stage("quantise", count, "matrices"));
        || stage.advance(1)
    })?;
    if let Some(stage) = stage {
        stage.finish();
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_network_is_freed_with_its_last_user_or_kept_for_the_next() -> Result<()> {
        for (keep, loads) in [(Keep::Nothing, 2), (Keep::Networks, 1)] {
            let (slot, count) = (Slot::new(keep), Cell::new(0));
            let load = || {
                count.set(count.get() + 1);
                Ok(count.get())
            };
            let first = slot.get(|_| true, load)?;
            let same = slot.get(|_| true, load)?;
            assert!(Arc::ptr_eq(&first, &same) && count.get() == 1, "while it is in use");
            drop((first, same));
            slot.get(|_| true, load)?;
            assert_eq!(count.get(), loads, "{keep:?}");
            let before = count.get();
            slot.get(|_| false, load)?;
            assert_eq!(count.get(), before + 1, "another one is wanted");
        }
        Ok(())
    }
}
