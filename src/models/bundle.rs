//! What `--model` names, opened: configurations parsed, files mapped, every tensor's name and shape checked; no weights
//! loaded. A diffusers directory, an official single file and an embedded model all become the same struct here.

use crate::embedded;
use crate::hub::catalogue::{self, Entry, Facts, RunDefaults};
use crate::job::convention::Convention;
use crate::job::geometry::Geometry;
use crate::job::sources::Sources;
pub use crate::models::locate::named_text_encoder;
use crate::models::locate::{locate, locate_text_encoder};
use crate::models::ltx::config::{SchedulerConfig, TransformerConfig, VaeConfig, VaeVersion};
use crate::models::ltx::transformer::Transformer;
use crate::models::ltx::vae::{Decoder, Encoder, LatentStatistics};
use crate::models::ltx::{RELEASES, names};
use crate::models::parts::{
    LTX_ARCHITECTURE, has_vae, header_config, open_text_encoder, open_vae, shapes, text_form, text_of,
    transformer_form, transformer_of, vae_beside, vae_folder, vae_of,
};
use crate::models::text::names as text_names;
use crate::models::text::t5::{T5, T5Config};
use crate::models::text::tokenizer::Tokenizer;
use crate::platform::device::Quantize;
use crate::sampling::solver::Schedule;
use crate::weights::config::{Keys, brief};
use crate::weights::open::{Tensors, weight_files};
use crate::weights::{part_folder, read_json};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The vocabulary of google/t5-v1_1, whose tokenizer is built in.
const T5_VOCABULARY: usize = 32_128;

/// Noise levels that a checkpoint may list, at most.
const MOST_SIGMAS: usize = 1000;

/// A model, ready to have its stages loaded.
pub struct Checkpoint {
    /// The catalogue's name, or the path as given.
    pub name: String,
    pub transformer: (TransformerConfig, Tensors),
    pub vae: (VaeConfig, Tensors),
    pub text: (T5Config, Tensors),
    pub tokenizer: Tokenizer,
    pub scheduler: SchedulerConfig,
    /// Noise levels that a distilled model was trained at.
    pub allowed_sigmas: Option<Vec<f64>>,
    /// The catalogue's entry for it, found by name or by what its header shows.
    pub entry: Option<&'static Entry>,
    /// Remarks for the user, a line each.
    pub notes: Vec<String>,
}

/// A checkpoint's parts before they are put together.
struct Parts {
    label: Option<String>,
    class: Option<String>,
    transformer: (TransformerConfig, Tensors),
    vae: (VaeConfig, Tensors),
    scheduler: SchedulerConfig,
    allowed_sigmas: Option<Vec<f64>>,
    text: Option<(T5Config, Tensors)>,
    tokenizer: Option<Tokenizer>,
    /// What the file or the directory is called, in small letters.
    called: Option<String>,
    /// Whether that alone says that the model is distilled.
    distilled: bool,
    notes: Vec<String>,
    /// Length of the file, where it is one.
    bytes: Option<u64>,
}

impl Checkpoint {
    /// Opens a model by name or path.
    /// - Errors on an unknown name, on a path that is no checkpoint, and on whatever does not fit together in one.
    pub fn open(sources: &Sources) -> Result<Self> {
        Self::put_together(sources).map_err(with_fix)
    }

    fn put_together(sources: &Sources) -> Result<Self> {
        let Sources { model, tokenizer, .. } = *sources;
        let vae = sources.vae.map(open_vae).transpose()?;
        let mut notes = vec![];
        // a model that is missing says so with all that it takes, the text encoder too
        let place = locate(model, sources.text_encoder, &mut notes)?;
        let given = sources.text_encoder.map(locate_text_encoder).transpose()?;
        let text_encoder = given.as_deref().or(place.text_encoder.as_deref());
        let parts = match &place.path {
            None => {
                let built_in = place.entry.and_then(|entry| embedded::named(&entry.name));
                let built_in = built_in.with_context(|| format!("`{model}` is not in the program"))?;
                single_file(Tensors::embedded(built_in.file, "the embedded model")?, None, vae)?
            }
            Some(path) if path.is_dir() => directory(path, text_encoder.is_none(), vae)?,
            Some(path) => single_file(Tensors::open(std::slice::from_ref(path))?, Some(path), vae)?,
        };
        notes.extend(parts.notes);
        let mut own_tokenizer = parts.tokenizer;
        let text = match text_encoder {
            Some(path) => {
                // the file's own may be of another vocabulary; a name says which one goes with it
                own_tokenizer = place.tokenizer.as_deref().map(Tokenizer::open).transpose()?;
                open_text_encoder(path)?
            }
            None => parts.text.with_context(|| no_text_encoder(model))?,
        };
        let tokenizer = match (tokenizer, own_tokenizer) {
            (Some(path), _) => {
                let found = Tokenizer::find(path)
                    .with_context(|| format!("there is no tokenizer.json or spiece.model at `{}`\n  fix: give --tokenizer the file, or the folder that holds it", path.display()))?;
                Tokenizer::open(&found)?
            }
            (None, Some(own)) => own,
            (None, None) => match text_encoder.and_then(Tokenizer::find) {
                Some(found) => Tokenizer::open(&found)?,
                None if text.0.vocab == T5_VOCABULARY => {
                    notes.push("tokenizer: the built-in one of T5 v1.1 (none came with the text encoder)".to_string());
                    Tokenizer::builtin_t5()?
                }
                None => bail!(
                    "the text encoder has {} words and no tokenizer with it\n  fix: pass --tokenizer PATH (tokenizer.json or spiece.model)",
                    text.0.vocab
                ),
            },
        };
        let (transformer, vae) = (&parts.transformer.0, &parts.vae.0);
        let what = parts.transformer.1.what();
        ensure!(
            transformer.in_channels == vae.latent_channels && transformer.out_channels == vae.latent_channels,
            "{what}: the transformer reads {} latent channels and makes {}, and the VAE has {}\n  fix: use parts of one checkpoint",
            transformer.in_channels,
            transformer.out_channels,
            vae.latent_channels
        );
        ensure!(
            transformer.caption_channels == text.0.d_model,
            "{what}: the transformer reads text of {} channels and the text encoder {} makes {}\n  fix: pass the --text-encoder that it was trained with",
            transformer.caption_channels,
            text.1.what(),
            text.0.d_model
        );
        ensure!(
            tokenizer.vocab_size() <= text.0.vocab,
            "the tokenizer {} knows {} words and the text encoder {} {}\n  fix: pass the --tokenizer that belongs to it",
            tokenizer.what(),
            tokenizer.vocab_size(),
            text.1.what(),
            text.0.vocab
        );
        let quantize = sources.quantize.map(Quantize::blocks);
        let for_transformer = parts.transformer.1.clone().quantized(quantize, &names::QUANTISING);
        let for_text = text.1.quantized(quantize, &text_names::QUANTISING);
        for_transformer.check(|vb| Transformer::load(transformer, vb))?;
        parts.vae.1.check(|vb| {
            LatentStatistics::load(vae, vb.clone())?;
            Decoder::load(vae, vb.pp("decoder"))
        })?;
        for_text.check(|vb| T5::load(&text.0, vb)?.touch())?;

        let loras = sources.loras.iter().map(|lora| (lora.file.as_path(), lora.scale));
        let facts = Facts {
            name: parts.label.as_deref(),
            vae: vae.version().name(),
            layers: transformer.layers,
            heads: transformer.heads,
            head_dim: transformer.head_dim,
            // a GGUF file seldom says how it was distilled, and its name does
            allowed_steps: parts.allowed_sigmas.as_deref().or(parts.distilled.then_some(&[1.0])),
            bytes: parts.bytes,
            called: parts.called.as_deref(),
        };
        // a name is its own entry; a path is looked for by what the file shows, and so is a name that says nothing of runs
        let says = place.entry.filter(|entry| entry.run != RunDefaults::default());
        let found = catalogue::matching(&facts).filter(|_| says.is_none());
        let doubles = found.map(|entry| catalogue::doubles(entry, &facts)).unwrap_or_default();
        if let (Some(entry), Some(other)) = (found, doubles.first()) {
            notes.push(format!("`{}` and `{}` look alike: it is run as the former", entry.name, other.name));
        }
        let entry = says.or(found).or(place.entry);
        let convention = Convention::of(vae);
        let decided = entry.is_some_and(|entry| entry.run.convention.is_some());
        if !decided
            && parts
                .class
                .as_deref()
                .is_some_and(|class| (class == "LTXConditionPipeline") != (convention == Convention::Condition))
        {
            notes.push(format!(
                "the checkpoint names `{}`; its VAE is that of {}, so it is sampled by the `{convention}` convention",
                brief(&parts.class.unwrap_or_default()),
                vae.version().name()
            ));
        }
        let (mut for_transformer, mut for_text) = (for_transformer.with_loras(loras, names::LAYERS)?, for_text);
        notes.extend(for_transformer.lora_remarks());
        let form = || transformer_form(&parts.transformer.0, parts.allowed_sigmas.as_deref());
        if let Some(folder) = sources.quantize_cache {
            for_transformer = for_transformer.with_cache(folder, form())?;
            for_text = for_text.with_cache(folder, text_form(&text.0))?;
        } else if let Some(folder) = sources.quantize_scratch {
            for_transformer = for_transformer.with_scratch(folder, form());
        }
        Ok(Self {
            name: model.to_string(),
            transformer: (parts.transformer.0, for_transformer),
            vae: parts.vae,
            text: (text.0, for_text),
            tokenizer,
            scheduler: parts.scheduler,
            allowed_sigmas: parts.allowed_sigmas,
            entry,
            notes,
        })
    }

    /// What a run with it takes where nothing else is said.
    pub fn run_defaults(&self) -> RunDefaults {
        self.entry.map(|entry| entry.run.clone()).unwrap_or_default()
    }

    /// Checks names and shapes of the VAE's encoder, which only stills and clips need.
    pub fn check_encoder(&self) -> Result<()> {
        self.vae.1.check(|vb| Encoder::load(&self.vae.0, vb.pp("encoder")))
    }

    pub fn geometry(&self) -> Geometry {
        let [time, space, _] = self.vae.0.strides();
        Geometry { time, space }
    }
}

/// What most faults inside a checkpoint have in common is the fix; faults with one of their own keep it.
fn with_fix(error: anyhow::Error) -> anyhow::Error {
    if error.chain().any(|cause| cause.to_string().contains("\n  fix:")) {
        return error;
    }
    // below the first line stand backtraces, where the environment asks for them
    let said = error.chain().map(|cause| cause.to_string().lines().next().unwrap_or_default().to_string());
    let said = said.collect::<Vec<_>>().join(": ");
    anyhow!("{said}\n  fix: use a whole checkpoint of LTX-Video 0.9.0 to 0.9.8; if this should be one, fetch it again")
}

fn no_text_encoder(model: &str) -> String {
    format!(
        "`{model}` brings no text encoder\n  fix: pass --text-encoder PATH, a T5 v1.1 encoder, or a name such as t5-xxl-fp16 (`reel models pull t5-xxl-fp16` fetches it)"
    )
}

/// The last name of a path, in small letters.
fn called(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().to_lowercase())
}

/// A diffusers directory.
fn directory(dir: &Path, with_text: bool, vae: Option<(VaeConfig, Tensors)>) -> Result<Parts> {
    let index = dir.join("model_index.json");
    let vae_dir = part_folder(dir, "vae");
    let Some(transformer_dir) = part_folder(dir, "transformer").filter(|_| vae.is_some() || vae_dir.is_some()) else {
        bail!(
            "`{}` is not a checkpoint: it lacks the folders `transformer/` and `vae/` of the diffusers layout\n  fix: pass such a directory, or one .safetensors file",
            dir.display()
        )
    };
    let class = if index.is_file() { read_json(&index)?["_class_name"].as_str().map(String::from) } else { None };
    let json = |path: PathBuf| read_json(&path).map(|json| (json, format!("`{}`", path.display())));
    let (transformer, what) = json(transformer_dir.join("config.json"))?;
    let transformer = TransformerConfig::parse(&transformer, &what)?;
    let vae = match (vae, vae_dir) {
        (Some(vae), _) => vae,
        (None, vae_dir) => vae_folder(&vae_dir.unwrap_or_default())?,
    };
    let (scheduler, what) = json(dir.join("scheduler/scheduler_config.json"))?;
    let scheduler = SchedulerConfig::parse(&scheduler, &what)?;
    let called = called(dir);
    let text_dir = part_folder(dir, "text_encoder").filter(|_| with_text);
    let tokenizer = text_dir.as_ref().and_then(|text_dir| {
        part_folder(dir, "tokenizer").and_then(|dir| Tokenizer::find(&dir)).or_else(|| Tokenizer::find(text_dir))
    });
    Ok(Parts {
        label: None,
        class,
        transformer: (transformer, Tensors::open(&weight_files(&transformer_dir)?)?),
        vae,
        scheduler,
        allowed_sigmas: None,
        text: text_dir.map(|dir| open_text_encoder(&dir)).transpose()?,
        tokenizer: tokenizer.map(|path| Tokenizer::open(&path)).transpose()?,
        distilled: called.as_ref().is_some_and(|called| called.contains("distilled")),
        called,
        notes: vec![],
        bytes: None,
    })
}

/// One file with everything, or with everything but the text encoder, or with the transformer alone.
/// - `vae`: in place of the file's own.
fn single_file(tensors: Tensors, path: Option<&Path>, vae: Option<(VaeConfig, Tensors)>) -> Result<Parts> {
    let what = tensors.what().to_string();
    let mut notes = vec![];
    let transformer = transformer_of(&tensors);
    let text = text_of(&tensors);
    let config = header_config(&tensors)?;
    let at = |key: &str| format!("{what}: `{key}` in its header");
    let (transformer_config, own_vae_config, scheduler, allowed_sigmas, text_config);
    match &config {
        Some(config) => {
            let mut keys = Keys::new(config, &at("config"))?;
            keys.ignore(&["_class_name", "_diffusers_version"]);
            transformer_config =
                TransformerConfig::parse(&keys.need::<Value>("transformer")?, &at("config.transformer"))?;
            own_vae_config = keys.get::<Value>("vae")?;
            let json: Option<Value> = keys.get("scheduler")?;
            scheduler = json.map(|json| SchedulerConfig::parse(&json, &at("config.scheduler"))).transpose()?;
            allowed_sigmas = keys.get::<Vec<f64>>("allowed_inference_steps")?.filter(|s| !s.is_empty());
            if let Some(sigmas) = &allowed_sigmas {
                let count = sigmas.len();
                ensure!(
                    count <= MOST_SIGMAS,
                    "{}: it has {count} noise levels, and reel takes at most {MOST_SIGMAS}",
                    at("config.allowed_inference_steps")
                );
                let of = || at("config.allowed_inference_steps");
                Schedule::explicit(sigmas).with_context(of)?;
            }
            let json: Option<Value> = keys.get("text_encoder")?;
            text_config = json.map(|json| T5Config::parse(&json, &at("config.text_encoder"))).transpose()?;
            keys.finish(RELEASES)?;
        }
        None => {
            let json = names::transformer_config_from_shapes(shapes(&transformer), &what);
            let json = json.map_err(|e| match tensors.metadata("general.architecture") {
                Some(of) if of != LTX_ARCHITECTURE => anyhow!(
                    "{what} is a GGUF file of the architecture `{}`, and LTX-Video's is `{LTX_ARCHITECTURE}`\n  fix: pass a transformer of LTX-Video, or a name of `reel models list`",
                    brief(of)
                ),
                _ => e,
            })?;
            transformer_config = TransformerConfig::parse(&json, &what)?;
            (own_vae_config, scheduler, allowed_sigmas, text_config) = (None, None, None, None);
        }
    }
    let (vae_config, vae) = match vae {
        Some(vae) => vae,
        None if has_vae(&tensors) || path.is_none() => {
            ensure!(config.is_none() || own_vae_config.is_some(), "{}: the key `vae` is missing", at("config"));
            vae_of(&tensors, own_vae_config)?
        }
        None => {
            let found = vae_beside(path.unwrap_or(Path::new("")), &what)?;
            notes.push(format!("VAE: `{}` (found beside the model)", found.display()));
            open_vae(&found)?
        }
    };
    let scheduler = scheduler.unwrap_or_else(|| match vae_config.version() {
        VaeVersion::V090 | VaeVersion::V091 => SchedulerConfig::token_shift(),
        VaeVersion::V095 => SchedulerConfig::plain(),
    });
    let text = match (text, text_config) {
        (None, _) => None,
        (Some(text), Some(config)) => Some((config, text)),
        (Some(text), None) => Some((T5Config::from_shapes(shapes(&text), &what)?, text)),
    };
    let tokenizer = match tensors.metadata("tokenizer") {
        Some(json) => Some(Tokenizer::from_json(json.as_bytes(), &at("tokenizer"))?),
        None => {
            path.filter(|_| text.is_some()).and_then(Tokenizer::find).map(|path| Tokenizer::open(&path)).transpose()?
        }
    };
    let called = path.and_then(called);
    Ok(Parts {
        label: tensors.metadata("name").map(String::from),
        class: None,
        transformer: (transformer_config, transformer.renamed(|name| Some(names::transformer_from_official(name)))),
        vae: (vae_config, vae),
        scheduler,
        allowed_sigmas,
        text,
        tokenizer,
        distilled: config.is_none() && called.as_ref().is_some_and(|called| called.contains("distilled")),
        called,
        notes,
        bytes: path.and_then(|path| path.metadata().ok()).map(|file| file.len()),
    })
}
