//! A model that is opened, and its networks: each loaded when a stage first wants it. For one run a network is freed as soon as its
//! stage lets it go, which is what the memory plan counts on; for a batch or a server it stays for the next run.

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

/// What becomes of a network when its stage lets it go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// It is freed: one run, within its memory plan.
    #[default]
    Nothing,
    /// It stays for the next run: a batch, a server.
    Networks,
}

/// A network's place: whoever uses it holds it, and the session too where networks are kept.
struct Slot<T> {
    keep: Keep,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    kept: Option<Arc<T>>,
    lent: Weak<T>,
}

impl<T> Slot<T> {
    fn new(keep: Keep) -> Self {
        Self { keep, held: Mutex::new(Held { kept: None, lent: Weak::new() }) }
    }

    /// The network that is loaded, if it is the one that is wanted; else it is loaded.
    fn get(&self, wanted: impl Fn(&T) -> bool, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = held.lent.upgrade().filter(|here| wanted(here)) {
            return Ok(here);
        }
        held.kept = None; // freed before the other one comes
        let loaded = Arc::new(load()?);
        held.lent = Arc::downgrade(&loaded);
        held.kept = (self.keep == Keep::Networks).then(|| loaded.clone());
        Ok(loaded)
    }
}

/// The text encoder, and its layers where they stay: a run by itself reads them one after the other.
pub struct TextEncoder {
    pub t5: T5,
    pub layers: Option<Vec<Layer>>,
}

/// The transformer, with as many of its blocks in memory as were asked for.
pub struct LoadedTransformer {
    pub transformer: Transformer,
    resident: usize,
}

/// A model opened for a request, and the networks that are loaded of it.
pub struct Session {
    pub checkpoint: Checkpoint,
    pub compute: Compute,
    pub host: Host,
    keep: Keep,
    /// What the networks are loaded by: the part of the request that names them.
    named: Request,
    /// The text encoder that was chosen, where none was named.
    pub(super) encoder_choice: Option<planning::Encoder>,
    text: Slot<TextEncoder>,
    encoder: Slot<Encoder>,
    transformer: Slot<LoadedTransformer>,
    decoder: Slot<Decoder>,
}

/// What a model says of the clips that it makes.
#[derive(Clone)]
pub struct ModelFacts {
    pub family: Family,
    pub geometry: Geometry,
    /// What a run takes where nothing else is said.
    pub defaults: RunDefaults,
    pub convention: Convention,
}

impl Session {
    /// Checks the request and opens its model.
    pub fn open(request: &Request, host: &Host, keep: Keep, progress: &Progress) -> Result<Arc<Self>> {
        let compute = device::open(host.device(), request.dtype)?;
        Self::open_on(compute, request, host, keep, progress)
    }

    /// As [`Session::open`], on a device that is open already.
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

    /// Whether a request's networks are those of this session, so that it can be run in it.
    pub fn serves(&self, request: &Request) -> bool {
        self.named == names_of_networks(request)
    }

    pub fn geometry(&self) -> Geometry {
        self.checkpoint.config.geometry()
    }

    /// What a run takes where nothing else is said.
    pub fn run_defaults(&self) -> RunDefaults {
        self.checkpoint.run_defaults()
    }

    /// How a request is sampled.
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

    /// The model as plans see it.
    pub(super) fn model(&self) -> planning::Model {
        let mut model = planning::Model::of(&self.checkpoint, &self.compute);
        model.text_encoder = self.encoder_choice.as_ref().map(planning::Encoder::describe);
        model.kept = self.keep == Keep::Networks;
        model
    }

    /// How the footage of a join is made ready for the model: as every other picture that it holds.
    /// - `legal`: size that the new part is made at.
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

    /// Width and height that the model makes by default.
    pub fn default_size(&self) -> (usize, usize) {
        default_size(&self.run_defaults(), self.checkpoint.config.family())
    }

    /// The text encoder. Where networks are kept its layers stay in memory, else each is read when it runs.
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

    /// The VAE's encoder.
    pub fn encoder(&self) -> Result<Arc<Encoder>> {
        let Compute { device, stored, dtype, .. } = &self.compute;
        let Checkpoint { config, vae, .. } = &self.checkpoint;
        self.encoder.get(|_| true, || Ok(Encoder::load(config, vae.load(*stored, *dtype, device))?))
    }

    /// The transformer.
    /// - `resident`: blocks that stay in memory. `scratch`: whether the others are quantised once, into a file, where they are to be
    ///   quantised.
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

    /// The VAE's decoder.
    pub fn decoder(&self, progress: &Progress) -> Result<Arc<Decoder>> {
        let load = || {
            memory::release(); // of what the transformer was at work with
            let Compute { device, stored, dtype, .. } = &self.compute;
            let Checkpoint { config, vae, .. } = &self.checkpoint;
            let begun = Instant::now();
            let decoder = Decoder::load(config, vae.load(*stored, *dtype, device))?;
            progress.detail(&format!("the decoder is loaded, in {}", human_seconds(begun.elapsed().as_secs_f64())));
            Ok(decoder)
        };
        self.decoder.get(|_| true, load)
    }

    /// Mean and deviation of the checkpoint's latents.
    pub fn statistics(&self) -> Result<LatentStatistics> {
        let Checkpoint { config, vae, .. } = &self.checkpoint;
        Ok(networks::statistics(config, vae.load(None, DType::F32, &self.compute.device))?)
    }

    /// - Errors where a request is of other networks than these.
    pub(super) fn check_serves(&self, request: &Request) -> Result<()> {
        ensure!(self.serves(request), "this session has another model, or other parts of it, than the request names");
        Ok(())
    }
}

/// The part of a request that says which networks are loaded, and in what.
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

/// Tensors from where quantised ones are kept, if they are to be kept: for later runs, or (`scratch`) for this one.
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
