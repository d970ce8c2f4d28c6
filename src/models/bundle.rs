//! What `--model` names, opened: configurations parsed, files mapped, every tensor's name and shape checked; no weights
//! loaded. A diffusers directory, an official single file and an embedded model all become the same struct here.

use crate::embedded;
use crate::hub::catalogue::{self, Entry, Facts, RunDefaults};
use crate::job::convention::Convention;
use crate::job::sources::Sources;
pub use crate::models::locate::named_text_encoder;
use crate::models::locate::{locate, locate_text_encoder};
use crate::models::networks::Encoder;
use crate::models::text;
use crate::models::text::open::{open_text_encoder, text_form};
use crate::models::text::t5::{T5, T5Config};
use crate::models::text::tokenizer::Tokenizer;
use crate::models::{self, Config, Family};
use crate::platform::device::Quantize;
use crate::weights::open::Tensors;
use anyhow::{Context, Result, anyhow, bail, ensure};

/// The vocabulary of google/t5-v1_1, whose tokenizer is built in.
const T5_VOCABULARY: usize = 32_128;

/// A model, ready to have its stages loaded.
pub struct Checkpoint {
    /// The catalogue's name, or the path as given.
    pub name: String,
    pub config: Config,
    pub transformer: Tensors,
    pub vae: Tensors,
    pub text: (T5Config, Tensors),
    pub tokenizer: Tokenizer,
    /// Noise levels that a distilled model was trained at.
    pub allowed_sigmas: Option<Vec<f64>>,
    /// The catalogue's entry for it, found by name or by what its header shows.
    pub entry: Option<&'static Entry>,
    /// Remarks for the user, a line each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a model by name or path.
    /// - Errors on an unknown name, on a path that is no checkpoint, and on whatever does not fit together in one.
    pub fn open(sources: &Sources) -> Result<Self> {
        Self::put_together(sources).map_err(with_fix)
    }

    fn put_together(sources: &Sources) -> Result<Self> {
        let Sources { model, tokenizer, .. } = *sources;
        let mut notes = vec![];
        // a model that is missing says so with all that it takes, the text encoder too
        let place = locate(model, sources.text_encoder, &mut notes)?;
        place.entry.map(Family::of_entry).transpose()?; // an unknown one is said before its files are read
        let given = sources.text_encoder.map(locate_text_encoder).transpose()?;
        let text_encoder = given.as_deref().or(place.text_encoder.as_deref());
        let mut parts = match &place.path {
            None => {
                let built_in = place.entry.and_then(|entry| embedded::named(&entry.name));
                let built_in = built_in.with_context(|| format!("`{model}` is not in the program"))?;
                models::built_in(built_in.file, sources.vae)?
            }
            Some(path) => models::checkpoint(path, text_encoder.is_none(), sources.vae)?,
        };
        notes.append(&mut parts.notes);
        let mut own_tokenizer = parts.tokenizer.take();
        let text = match text_encoder {
            Some(path) => {
                // the file's own may be of another vocabulary; a name says which one goes with it
                own_tokenizer = place.tokenizer.as_deref().map(Tokenizer::open).transpose()?;
                open_text_encoder(path)?
            }
            None => parts.text.take().with_context(|| no_text_encoder(model))?,
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
        let what = parts.transformer.what();
        let text_channels = parts.config.text_channels();
        ensure!(
            text_channels == text.0.d_model,
            "{what}: the transformer reads text of {} channels and the text encoder {} makes {}\n  fix: pass the --text-encoder that it was trained with",
            text_channels,
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
        parts.config.check(&parts.transformer, &parts.vae)?;
        let quantize = sources.quantize.map(Quantize::blocks);
        let rules = parts.config.rules();
        let mut for_text = text.1.quantized(quantize, &text::names::QUANTISING);
        for_text.check(|vb| T5::load(&text.0, vb)?.touch())?;

        let loras = sources.loras.iter().map(|lora| (lora.file.as_path(), lora.scale));
        let facts = Facts {
            name: parts.label.as_deref(),
            vae: parts.config.vae_version(),
            layers: parts.config.blocks(),
            heads: parts.config.heads(),
            head_dim: parts.config.head_dim(),
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
        if entry.is_none_or(|entry| entry.run.convention.is_none()) {
            notes.extend(parts.otherwise);
        }
        let mut for_transformer =
            parts.transformer.quantized(quantize, rules).with_loras(loras, parts.config.layer_names())?;
        notes.extend(for_transformer.lora_remarks());
        let form = || parts.config.form(parts.allowed_sigmas.as_deref());
        if let Some(folder) = sources.quantize_cache {
            for_transformer = for_transformer.with_cache(folder, form())?;
            for_text = for_text.with_cache(folder, text_form(&text.0))?;
        } else if let Some(folder) = sources.quantize_scratch {
            for_transformer = for_transformer.with_scratch(folder, form());
        }
        Ok(Self {
            name: model.to_string(),
            config: parts.config,
            transformer: for_transformer,
            vae: parts.vae,
            text: (text.0, for_text),
            tokenizer,
            allowed_sigmas: parts.allowed_sigmas,
            entry,
            notes,
        })
    }

    /// What a run with it takes where nothing else is said.
    pub fn run_defaults(&self) -> RunDefaults {
        self.entry.map(|entry| entry.run.clone()).unwrap_or_default()
    }

    /// How it is sampled where nobody asks otherwise: as its entry says, else as it was trained.
    pub fn convention(&self) -> Convention {
        let says = self.entry.and_then(|entry| entry.run.convention);
        says.unwrap_or_else(|| self.config.convention())
    }

    /// Checks names and shapes of the VAE's encoder, which only stills and clips need.
    pub fn check_encoder(&self) -> Result<()> {
        self.vae.check(|vb| Encoder::load(&self.config, vb))
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
    let known = Family::ALL.map(Family::releases).join(" or ");
    anyhow!("{said}\n  fix: use a whole checkpoint of {known}; if this should be one, fetch it again")
}

fn no_text_encoder(model: &str) -> String {
    format!(
        "`{model}` brings no text encoder\n  fix: pass --text-encoder PATH, a T5 v1.1 encoder, or a name such as t5-xxl-fp16 (`reel models pull t5-xxl-fp16` fetches it)"
    )
}
