//! Prompts to token ids, as the T5 encoder of LTX-Video reads them.
//!
//! What is unusual: the T5 tokenizer is built in, for a checkpoint may come without one. A
//! checkpoint's own file wins, as `tokenizer.json` or as the SentencePiece model that T5 was trained
//! with; the latter lacks T5's 100 `<extra_id_i>`, which are appended here. The closing `</s>` and the
//! cut to a token limit are made here too, whatever a file says about them: padding is added by
//! nobody, since the encoder reads real tokens only.

mod charsmap;
mod limits;
mod spiece;

use crate::weights::config;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value as Json;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const EOS: &str = "</s>";

/// T5's `tokenizer.json` has 2.4 MB and umT5's 17: a file far above it is something else, and is not read.
const LARGEST_FILE: u64 = 32 << 20;

/// Bytes of a text that are looked at, at least, and for each token that may come of it: the rest cannot be read anyway, unless
/// almost all is white space.
const LONGEST_TEXT: usize = 16 << 10;
const BYTES_PER_TOKEN: usize = 64;

/// Text to the ids of a T5-style vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// Its name in errors.
    what: String,
    eos: u32,
    vocab_size: usize,
}

/// The ids that T5 reads, and what was cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Real tokens only, the last one `</s>`; never empty.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, as typed, without surrounding white space.
    pub unread: Option<String>,
}

impl Tokenizer {
    /// The tokenizer of google/t5-v1_1-xxl, which every LTX-Video checkpoint uses.
    /// - Source: ComfyUI `comfy/text_encoders/t5_tokenizer/tokenizer.json`, unchanged.
    pub fn builtin_t5() -> Result<Self> {
        const WHAT: &str = "of T5 v1.1 that is built in";
        static READ: OnceLock<Tokenizer> = OnceLock::new();
        if let Some(read) = READ.get() {
            return Ok(read.clone());
        }
        let json = tokenizers::Tokenizer::from_bytes(include_bytes!("t5-tokenizer.json"));
        let read = Self::new(json.map_err(|e| anyhow!("the tokenizer {WHAT}: {e}"))?, WHAT)?;
        Ok(READ.get_or_init(|| read).clone())
    }

    /// Finds the tokenizer that belongs to a checkpoint, if it brings one.
    /// - `dir_or_file`: a folder, a weights file, or a tokenizer file itself. Looked in: the folder (a
    ///   file's: the one that holds it), `tokenizer/` in it, `tokenizer/` beside it. The nearest
    ///   wins, and in one folder `tokenizer.json` before `spiece.model`.
    pub fn find(dir_or_file: &Path) -> Option<PathBuf> {
        const NAMES: [&str; 2] = ["tokenizer.json", "spiece.model"];
        let is_tokenizer = dir_or_file.file_name().is_some_and(|name| NAMES.iter().any(|n| name == *n));
        if is_tokenizer && dir_or_file.is_file() {
            return Some(dir_or_file.to_owned());
        }
        let folder = match dir_or_file.is_dir() {
            true => dir_or_file,
            false => dir_or_file.parent()?,
        };
        let beside = match folder.file_name() {
            Some(_) => folder.with_file_name("tokenizer"),
            None => folder.join("../tokenizer"), // `.`, or a file without a folder in its path
        };
        let folders = [folder.to_owned(), folder.join("tokenizer"), beside];
        let mut files = folders.iter().flat_map(|dir| NAMES.map(|name| dir.join(name)));
        files.find(|file| file.is_file())
    }

    /// Reads a tokenizer file: a `tokenizer.json` or a SentencePiece model, by its name, or else by
    /// what is in it.
    pub fn open(path: &Path) -> Result<Self> {
        let what = path.display().to_string();
        let read = || {
            let file = std::fs::metadata(path)?;
            ensure!(file.is_file(), "it is no plain file");
            let size = file.len();
            ensure!(size <= LARGEST_FILE, "{} MB are too many for a tokenizer", size >> 20);
            Ok(std::fs::read(path)?)
        };
        let bytes = read().map_err(|e| unreadable(&what, e))?;
        let json = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => true,
            Some("model") => false,
            _ => bytes.trim_ascii_start().first() == Some(&b'{'),
        };
        if json { Self::from_json(&bytes, &what) } else { Self::from_spiece(&bytes, &what) }
    }

    /// Reads the content of a `tokenizer.json`.
    /// - `what`: its name in errors.
    /// - Errors when it is no tokenizer, has no `</s>`, or frames a prompt in more than `</s>`.
    pub fn from_json(bytes: &[u8], what: &str) -> Result<Self> {
        let build = || {
            let mut json = config::json(bytes)?;
            limits::check(&json)?;
            check_frame(&json["post_processor"])?;
            let parts = json.as_object_mut().context("it is no JSON object")?;
            // Padding and limit are those of the run that saved the file, `</s>` is added here, and
            // nothing is decoded. Left in, wrong ones end the program: `tokenizers` unwraps them.
            for part in ["padding", "truncation", "post_processor", "decoder"] {
                parts.insert(part.to_owned(), Json::Null);
            }
            let bytes = serde_json::to_vec(&json)?;
            drop(json);
            let inner = caught(|| tokenizers::Tokenizer::from_bytes(bytes))?;
            Self::new(inner.map_err(|e| anyhow!("{e}"))?, &format!("`{what}`"))
        };
        build().map_err(|e| unreadable(what, e))
    }

    /// Reads the content of a SentencePiece unigram model (`spiece.model`).
    /// - `what`: its name in errors.
    /// - Errors when it is damaged, or is no unigram model with `</s>` and an unknown piece.
    /// - Source: transformers `convert_slow_tokenizer.py`, `T5Converter`, at 5.23; gives the ids of
    ///   the `tokenizer.json` that it writes.
    pub fn from_spiece(bytes: &[u8], what: &str) -> Result<Self> {
        let read = caught(|| spiece::tokenizer(bytes)).flatten();
        read.and_then(|inner| Self::new(inner, &format!("`{what}`"))).map_err(|e| unreadable(what, e))
    }

    fn new(inner: tokenizers::Tokenizer, what: &str) -> Result<Self> {
        let eos = inner.token_to_id(EOS).context("it has no `</s>`, so it is not T5's")?;
        // an added token may have any id
        let last = inner.get_added_tokens_decoder().into_keys().max().map_or(0, |id| id as usize + 1);
        let vocab_size = inner.get_vocab_size(true).max(last);
        Ok(Self { inner: Arc::new(inner), what: what.to_string(), eos, vocab_size })
    }

    /// What it is, for errors.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The same tokenizer as `tokenizer.json` content.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| anyhow!("cannot write the tokenizer as JSON: {e}"))
    }

    /// The number of ids; a model's embedding table has at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Turns a prompt into ids that end in `</s>`.
    /// - `max_tokens`: at most so many ids, `</s>` among them; the text's end is cut, as diffusers does.
    /// - Of a very long text only the beginning is looked at; what follows it counts as not read.
    /// - Special tokens in the text, as `</s>` or `<extra_id_3>`, become their ids, as in transformers.
    /// - Errors when `max_tokens` is 0.
    pub fn encode(&self, text: &str, max_tokens: usize) -> Result<Encoded> {
        ensure!(max_tokens > 0, "a prompt needs room for one token at least, `</s>`");
        let longest = max_tokens.saturating_mul(BYTES_PER_TOKEN).max(LONGEST_TEXT);
        let rest = tail(text, longest);
        let looked_at = &text[..text.len() - rest.len()];
        let encoding = caught(|| self.inner.encode(looked_at, false)).and_then(|e| e.map_err(|e| anyhow!("{e}")));
        let encoding =
            encoding.with_context(|| format!("cannot tokenize the prompt with the tokenizer {}", self.what))?;
        let mut ids = encoding.get_ids().to_vec();
        ids.truncate(max_tokens - 1);
        let cut = encoding.get_offsets().get(ids.len()).map(|&(start, _)| tail(text, start));
        let unread = cut.or((!rest.is_empty()).then_some(rest)).map(str::trim);
        ids.push(self.eos);
        Ok(Encoded { ids, unread: unread.filter(|text| !text.is_empty()).map(str::to_owned) })
    }
}

/// `text` from byte `start` on, or from the start of the character that holds this byte: where
/// normalising has changed lengths, an offset may point into one.
fn tail(text: &str, start: usize) -> &str {
    let start = (0..=start.min(text.len())).rev().find(|&i| text.is_char_boundary(i));
    &text[start.unwrap_or(0)..]
}

/// Does what the crate may panic at, and turns a panic into an error.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| anyhow!("it is damaged: `tokenizers` gave up on it"))
}

fn unreadable(what: &str, why: anyhow::Error) -> anyhow::Error {
    anyhow!(
        "cannot read tokenizer `{what}`: {why:#}\n  fix: download it again, or remove it: the T5 tokenizer is built in"
    )
}

/// Checks that a post-processor frames a prompt in nothing but `</s>`.
fn check_frame(processor: &Json) -> Result<()> {
    let tokens = items(&processor["single"]).map(|part| &part["SpecialToken"]["id"]);
    let other = tokens.chain([&processor["cls"], &processor["sep"]]).find(|id| !id.is_null() && *id != EOS);
    ensure!(other.is_none(), "it adds {} to every prompt, T5's adds `</s>` alone", other.unwrap_or(&Json::Null));
    items(&processor["processors"]).try_for_each(check_frame)
}

fn items(list: &Json) -> impl Iterator<Item = &Json> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests;
