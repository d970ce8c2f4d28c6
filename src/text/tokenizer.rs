//! Prompts to token ids, as the T5 encoder of LTX-Video reads them.
//!
//! What is unusual: the T5 tokenizer is built in, for a checkpoint may come without one. A
//! checkpoint's own file wins, as `tokenizer.json` or as the SentencePiece model that T5 was trained
//! with; the latter lacks T5's 100 `<extra_id_i>`, which are appended here. The closing `</s>` and the
//! cut to a token limit are made here too, whatever a file says about them: padding is added by
//! nobody, since the encoder reads real tokens only.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value as Json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, NormalizerWrapper, normalizers::replace::ReplacePattern};

const EOS: &str = "</s>";

/// Sentinels of T5's pre-training: `<extra_id_99>` follows the last piece, `<extra_id_0>` is last.
const EXTRA_IDS: usize = 100;

/// T5's `tokenizer.json` has 2.4 MB: a file far above it is something else, and is not read.
const LARGEST_FILE: u64 = 64 << 20;

/// Text to the ids of a T5-style vocabulary.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
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
        let json = tokenizers::Tokenizer::from_bytes(include_bytes!("t5-tokenizer.json"));
        Self::new(json.map_err(|e| anyhow!("the built-in T5 tokenizer: {e}"))?)
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
            let size = std::fs::metadata(path)?.len();
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
            let mut json: Json = serde_json::from_slice(bytes)?;
            check_charsmaps(&json["normalizer"])?;
            check_frame(&json["post_processor"])?;
            let parts = json.as_object_mut().context("it is no JSON object")?;
            // Padding and limit are those of the run that saved the file, `</s>` is added here, and
            // nothing is decoded. Left in, wrong ones end the program: `tokenizers` unwraps them.
            for part in ["padding", "truncation", "post_processor", "decoder"] {
                parts.insert(part.to_owned(), Json::Null);
            }
            let inner = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&json)?);
            Self::new(inner.map_err(|e| anyhow!("{e}"))?)
        };
        build().map_err(|e| unreadable(what, e))
    }

    /// Reads the content of a SentencePiece unigram model (`spiece.model`).
    /// - `what`: its name in errors.
    /// - Errors when it is damaged, or is no unigram model with `</s>` and an unknown piece.
    /// - Source: transformers `convert_slow_tokenizer.py`, `T5Converter`, at 5.23; gives the ids of
    ///   the `tokenizer.json` that it writes.
    pub fn from_spiece(bytes: &[u8], what: &str) -> Result<Self> {
        let build = || {
            let spiece = Spiece::parse(bytes)?;
            spiece.tokenizer().and_then(Self::new)
        };
        build().map_err(|e| unreadable(what, e))
    }

    fn new(inner: tokenizers::Tokenizer) -> Result<Self> {
        let eos = inner.token_to_id(EOS).context("it has no `</s>`, so it is not T5's")?;
        let vocab_size = inner.get_vocab_size(true);
        Ok(Self { inner, eos, vocab_size })
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
    /// - Special tokens in the text, as `</s>` or `<extra_id_3>`, become their ids, as in transformers.
    /// - Errors when `max_tokens` is 0.
    pub fn encode(&self, text: &str, max_tokens: usize) -> Result<Encoded> {
        ensure!(max_tokens > 0, "a prompt needs room for one token at least, `</s>`");
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| anyhow!("cannot tokenize the prompt: {e}"))?;
        let mut ids = encoding.get_ids().to_vec();
        ids.truncate(max_tokens - 1);
        let cut = encoding.get_offsets().get(ids.len());
        let unread = cut.map(|&(start, _)| tail(text, start).trim());
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

fn unreadable(what: &str, why: anyhow::Error) -> anyhow::Error {
    anyhow!(
        "cannot read tokenizer `{what}`: {why:#}\n  fix: download it again, or remove it: the T5 tokenizer is built in"
    )
}

/// What a SentencePiece model says, as far as T5 needs it.
/// - Source: sentencepiece `src/sentencepiece_model.proto`, which also gives the defaults.
struct Spiece<'a> {
    pieces: Vec<(&'a str, f32, Kind)>,
    model_type: u64,
    byte_fallback: bool,
    charsmap: &'a [u8],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Unknown,
    Control,
}

impl<'a> Spiece<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut spiece = Self {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        let (mut trainer, mut normalizer) = (false, false);
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => {
                    let n = spiece.pieces.len();
                    let piece = parse_piece(piece).with_context(|| format!("piece {n} is damaged"))?;
                    spiece.pieces.push(piece);
                }
                (2, Value::Bytes(spec)) => {
                    trainer = true;
                    for field in Fields(spec) {
                        match field? {
                            (3, Value::Varint(kind)) => spiece.model_type = kind,
                            (35, Value::Varint(on)) => spiece.byte_fallback = on != 0,
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(spec)) => {
                    normalizer = true;
                    for field in Fields(spec) {
                        match field? {
                            (2, Value::Bytes(map)) => spiece.charsmap = map,
                            (3, Value::Varint(on)) => spiece.add_dummy_prefix = on != 0,
                            (4, Value::Varint(on)) => spiece.remove_extra_whitespaces = on != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        // They follow the pieces: a file cut between two pieces reads well up to here.
        ensure!(trainer && normalizer, "it is no SentencePiece model, or its end is missing");
        Ok(spiece)
    }

    fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        match self.model_type {
            1 => {}
            2 => bail!("it is a BPE model; T5's is a unigram model"),
            other => bail!("its model type is {other}; T5's is 1, a unigram model"),
        }
        let mut names = HashSet::new();
        for &(name, ..) in &self.pieces {
            ensure!(names.insert(name), "the piece `{name}` is in it twice");
        }
        let unknown = self.pieces.iter().position(|piece| piece.2 == Kind::Unknown);
        let unknown = unknown.context("it has no piece for unknown text")?;

        let special = self.pieces.iter().filter(|piece| piece.2 != Kind::Text || is_extra_id(piece.0));
        let mut special: Vec<String> = special.map(|piece| piece.0.to_owned()).collect();
        let pieces = self.pieces.iter().map(|&(name, score, _)| (name.to_owned(), score.into()));
        let mut pieces: Vec<(String, f64)> = pieces.collect();
        let held = names.iter().any(|name| is_extra_id(name));
        let t5 = ["<pad>", EOS, "<unk>"];
        if !held && self.pieces.iter().map(|piece| piece.0).take(t5.len()).eq(t5) {
            for i in (0..EXTRA_IDS).rev() {
                special.push(format!("<extra_id_{i}>"));
                pieces.push((format!("<extra_id_{i}>"), 0.0));
            }
        }

        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if !self.charsmap.is_empty() {
            check_charsmap(self.charsmap)?;
            normalizers.push(Precompiled::from(self.charsmap)?.into());
        }
        if self.remove_extra_whitespaces {
            let runs = ReplacePattern::Regex(" {2,}".to_owned());
            normalizers.push(Strip::new(false, true).into());
            normalizers.push(Replace::new(runs, "▁").map_err(|e| anyhow!("{e}"))?.into());
        }
        let prepend = match self.add_dummy_prefix {
            true => PrependScheme::First,
            false => PrependScheme::Never,
        };
        let model = Unigram::from(pieces, Some(unknown), self.byte_fallback);
        let mut tokenizer = tokenizers::Tokenizer::new(model.map_err(|e| anyhow!("{e}"))?);
        let normalizer = tokenizer.with_normalizer(Some(Sequence::new(normalizers)));
        normalizer.map_err(|e| anyhow!("{e}"))?;
        tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', prepend, true)));
        let special = special.into_iter().map(|name| AddedToken::from(name, true));
        tokenizer.add_special_tokens(special).map_err(|e| anyhow!("{e}"))?;
        Ok(tokenizer)
    }
}

fn is_extra_id(name: &str) -> bool {
    name.starts_with("<extra_id_")
}

fn parse_piece(message: &[u8]) -> Result<(&str, f32, Kind)> {
    let (mut name, mut score, mut kind) = ("", 0.0, Kind::Text);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => name = std::str::from_utf8(bytes)?,
            (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
            (3, Value::Varint(2)) => kind = Kind::Unknown,
            // 4 is a piece that the trainer was told to keep whole, as umT5's `<extra_id_i>`.
            (3, Value::Varint(3 | 4)) => kind = Kind::Control,
            _ => {}
        }
    }
    ensure!(!name.is_empty(), "it has no text");
    ensure!(score.is_finite(), "its score is {score}");
    Ok((name, score, kind))
}

/// The fields of a protobuf message, by number. Borrows, so a length that lies costs nothing.
/// - Source: https://protobuf.dev/programming-guides/encoding, without groups, which
///   SentencePiece does not write.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length)?)?)
            }
            5 => Value::Fixed32(self.take(4)?.iter().rev().fold(0, |bits, &b| bits << 8 | u32::from(b))),
            other => bail!("a field of the unknown kind {other} is in it"),
        };
        Ok((key >> 3, value))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("a number of more than 64 bits is in it")
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).context("it ends too early")?;
        self.0 = rest;
        Ok(head)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Checks every charsmap in a normaliser's JSON.
fn check_charsmaps(normalizer: &Json) -> Result<()> {
    if normalizer["type"] == "Precompiled" {
        let map = normalizer["precompiled_charsmap"].as_str().and_then(base64);
        check_charsmap(&map.context("its charsmap is not base64")?)?;
    }
    items(&normalizer["normalizers"]).try_for_each(check_charsmaps)
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

/// Checks that no text can lead the normaliser out of its tables: `spm_precompiled` follows them
/// unchecked, so that a damaged file would end the program in the middle of a prompt.
/// - `map`: the size in bytes of a double-array trie, its units (u32, all little-endian), then the
///   replacements, each ended by 0, which the trie's leaves point into.
/// - Source: sentencepiece `third_party/darts_clone/darts.h`, which makes units in blocks of 256, so
///   that a step by one byte (an xor) stays in its block.
fn check_charsmap(map: &[u8]) -> Result<()> {
    let parts = map
        .split_first_chunk()
        .and_then(|(size, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?));
    let (trie, texts) = parts.context("its charsmap ends too early")?;
    let texts = std::str::from_utf8(texts).context("its charsmap is damaged")?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|unit| unit.iter().rev().fold(0, |bits, &b| bits << 8 | u32::from(b))).collect();
    let sound = |(i, &unit): (usize, &u32)| {
        if i > 0 && unit >> 31 == 1 {
            return true; // a value; only a step's label is followed
        }
        let child = i ^ ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize;
        let Some(value) = units.get(child) else {
            return false;
        };
        let leaf = unit >> 8 & 1 == 1;
        !leaf || texts.is_char_boundary((value & 0x7fff_ffff) as usize)
    };
    let blocks = !trie.is_empty() && trie.len().is_multiple_of(4 * 256);
    ensure!(blocks && units.iter().enumerate().all(sound), "its charsmap is damaged");
    Ok(())
}

/// Decodes base64 with the standard alphabet, as strictly as `tokenizers`, which ends the program at
/// what it cannot read: None when a character, the padding or a bit beyond the last byte is wrong.
fn base64(text: &str) -> Option<Vec<u8>> {
    let symbols = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for symbol in symbols.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    let whole = text.len().is_multiple_of(4) && text.len() - symbols.len() <= 2;
    (whole && bits & ((1 << held) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::LazyLock;

    const T5_JSON: &[u8] = include_bytes!("t5-tokenizer.json");

    static T5: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::builtin_t5().unwrap());

    /// Ids of transformers' `T5Tokenizer`.
    static GOLDEN: LazyLock<Json> =
        LazyLock::new(|| serde_json::from_str(include_str!("../../tests/goldens/tokenizer.json")).unwrap());

    fn ids(value: &Json) -> Vec<u32> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn assert_golden(tokenizer: &Tokenizer) {
        let cases = GOLDEN["cases"].as_array().unwrap();
        assert!(cases.len() > 30);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let got = tokenizer.encode(text, 256).unwrap();
            assert_eq!(got, Encoded { ids: ids(&case["ids"]), unread: None }, "{text:?}");
        }
    }

    fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
    }

    fn number(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3), varint(value)].concat()
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn piece(name: &str, score: f32, kind: u64) -> Vec<u8> {
        let score = [varint(2 << 3 | 5), score.to_le_bytes().to_vec()].concat();
        // The kind of plain text is the default and not written.
        let kind = if kind == 1 { Vec::new() } else { number(3, kind) };
        field(1, &[field(1, name.as_bytes()), score, kind].concat())
    }

    /// A model file as SentencePiece writes it.
    fn spiece(pieces: &[(&str, f32, u64)], model_type: u64, charsmap: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|&(name, score, kind)| piece(name, score, kind)).collect();
        // Fields of every wire type that reel has no use for are in between.
        let fixed64 = [varint(90 << 3 | 1), vec![7; 8]].concat();
        bytes.extend(field(2, &[number(3, model_type), number(4, 32000), number(41, u64::MAX), fixed64].concat()));
        bytes.extend(field(3, &[field(1, b"nmt_nfkc"), field(2, charsmap), number(3, 1), number(4, 1)].concat()));
        bytes
    }

    /// The SentencePiece model that T5's `tokenizer.json` was made from.
    fn t5_spiece(pieces: usize) -> Vec<u8> {
        let json: Json = serde_json::from_slice(T5_JSON).unwrap();
        let vocab: Vec<(String, f32)> = serde_json::from_value(json["model"]["vocab"].clone()).unwrap();
        let kind = |i| [3, 3, 2].get(i).copied().unwrap_or(1);
        let vocab = vocab.iter().take(pieces).enumerate();
        let vocab: Vec<_> = vocab.map(|(i, (name, score))| (name.as_str(), *score, kind(i))).collect();
        let charsmap = &json["normalizer"]["normalizers"][0]["precompiled_charsmap"];
        spiece(&vocab, 1, &base64(charsmap.as_str().unwrap()).unwrap())
    }

    /// The smallest model that reads as T5's.
    fn tiny_spiece() -> Vec<u8> {
        let pieces =
            [("<pad>", 0.0, 3), (EOS, 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1), ("▁a", -1.0, 1), ("b", -3.0, 1)];
        spiece(&pieces, 1, b"")
    }

    fn error(result: Result<Tokenizer>) -> String {
        format!("{:#}", result.err().expect("an error"))
    }

    #[test]
    fn builtin_equals_transformers() {
        assert_eq!(T5.vocab_size(), 32_100);
        assert_golden(&T5);
    }

    /// With and without the extra ids in the file; they end up in the same places.
    #[test]
    fn spiece_equals_transformers() {
        for pieces in [32_000, 32_100] {
            let bytes = t5_spiece(pieces);
            let tokenizer = Tokenizer::from_spiece(&bytes, "spiece.model").unwrap();
            assert_eq!(tokenizer.vocab_size(), 32_100);
            for (token, id) in [("<extra_id_0>", 32_099), ("<extra_id_99>", 32_000), (EOS, 1)] {
                assert_eq!(tokenizer.inner.token_to_id(token), Some(id));
            }
            assert_golden(&tokenizer);
        }
    }

    #[test]
    fn cuts_as_transformers_and_tells_what() {
        for case in GOLDEN["cut"].as_array().unwrap() {
            let (text, max) = (case["text"].as_str().unwrap(), case["max_tokens"].as_u64().unwrap() as usize);
            let got = T5.encode(text, max).unwrap();
            assert_eq!(got.ids, ids(&case["ids"]), "{max} of {text:?}");
            assert_eq!(got.ids.last(), Some(&1));
            let whole = T5.encode(text, 10_000).unwrap();
            assert_eq!(got.unread.is_some(), whole.ids.len() > max);
        }
        assert!(T5.encode("A cat.", 0).is_err());
    }

    #[test]
    fn unread_is_the_text_as_typed() {
        let cases = [
            ("A cat.", 4, None),
            ("A cat.", 3, Some(".")),
            ("A cat.", 1, Some("A cat.")),
            ("  A   cat, a  dog \n", 4, Some("a  dog")),
            // Characters that normalising joins, widens or drops, before and after the cut.
            ("A ﬁne ｃａｔ, ½ of a ﬁlm… ", 5, Some("½ of a ﬁlm…")),
            ("A cat\u{200b} 東京タワー dog", 4, Some("東京タワー dog")),
            ("e\u{301}cole e\u{301}cole", 3, Some("e\u{301}cole")),
        ];
        for (text, max, unread) in cases {
            let got = T5.encode(text, max).unwrap();
            assert_eq!(got.unread.as_deref(), unread, "{max} of {text:?}: {:?}", got.ids);
        }
        // An offset into a character quotes the whole character.
        assert_eq!(tail("aé", 2), "é");
        assert_eq!(tail("aé", 9), "");
    }

    /// A file may carry another run's padding and limit, and no rule that appends `</s>`.
    #[test]
    fn limits_and_frame_of_a_file_are_not_taken() {
        let mut json: Json = serde_json::from_slice(T5_JSON).unwrap();
        let pad = json!({"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
        let cut = json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        (json["padding"], json["truncation"], json["post_processor"]) = (pad, cut, Json::Null);
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "tokenizer.json").unwrap();
        assert_golden(&tokenizer);
    }

    /// The shape of the tiny model's tokenizer: lower case, single bytes for unknown characters.
    fn bytes_json() -> Json {
        let special = ["<pad>", EOS, "<unk>"].map(|name| (name.to_owned(), 0.0));
        let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0));
        let words = ["▁", "▁a", "▁red", "▁ball", "b"].map(|name| (name.to_owned(), -1.0));
        let vocab: Vec<(String, f64)> = special.into_iter().chain(bytes).chain(words).collect();
        let added: Vec<Json> = (0..3)
            .map(|id| json!({"id": id, "content": vocab[id].0, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
            .collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
            "post_processor": null, "decoder": null,
            "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": true},
        })
    }

    #[test]
    fn lower_case_and_bytes() {
        let tokenizer = Tokenizer::from_json(bytes_json().to_string().as_bytes(), "tokenizer.json").unwrap();
        assert_eq!(tokenizer.vocab_size(), 264);
        assert_eq!(tokenizer.encode("A red BALL", 9).unwrap().ids, [260, 261, 262, 1]);
        let mixed = tokenizer.encode("a É red", 9).unwrap();
        assert_eq!(mixed.ids, [260, 259, 3 + 0xc3, 3 + 0xa9, 261, 1]);
        let cut = tokenizer.encode("a É red", 4).unwrap();
        assert_eq!(cut.unread.as_deref(), Some("É red"));
    }

    #[test]
    fn damaged_json_is_an_error() {
        let table: [(&[u8], &str); 6] = [
            (b"", "EOF"),
            (b"{}", "cannot read tokenizer `x`: "),
            (b"[]", "no JSON object"),
            (b"{\"model\": 3}", "cannot read"),
            (&T5_JSON[..T5_JSON.len() / 2], "cannot read"),
            (b"\xff\xfe\x00", "cannot read"),
        ];
        for (bytes, want) in table {
            let got = error(Tokenizer::from_json(bytes, "x"));
            assert!(got.contains(want) && got.contains("fix: "), "{got}");
        }
        let read = |json: &Json| error(Tokenizer::from_json(json.to_string().as_bytes(), "x"));

        let mut no_eos = bytes_json();
        no_eos["model"]["vocab"][1][0] = json!("<eos>");
        no_eos["added_tokens"] = json!([]);
        assert!(read(&no_eos).contains("no `</s>`"), "{}", read(&no_eos));

        let mut framed = bytes_json();
        framed["post_processor"] = json!({
            "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
        });
        assert!(read(&framed).contains("it adds \"<pad>\" to every prompt"), "{}", read(&framed));

        let text = bytes_json().to_string();
        for n in (0..text.len()).step_by(97) {
            assert!(Tokenizer::from_json(&text.as_bytes()[..n], "x").is_err(), "the first {n} bytes");
        }
        // Wrong parts that reel has no use for, and that `tokenizers` itself would not survive.
        let mut unused = bytes_json();
        unused["decoder"] = json!(3);
        unused["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": EOS}}]});
        let tokenizer = Tokenizer::from_json(unused.to_string().as_bytes(), "x").unwrap();
        assert_eq!(tokenizer.encode("a", 9).unwrap().ids, [260, 1]);

        // A charsmap whose root steps out of its table would end the program at the first prompt.
        let mut mapped = bytes_json();
        for map in ["BAAAAAD///8=", "BAAAAAD///9=", "BAAAAAD///8", "?", ""] {
            mapped["normalizer"]["normalizers"][0] = json!({"type": "Precompiled", "precompiled_charsmap": map});
            assert!(read(&mapped).contains("charsmap"), "{}", read(&mapped));
        }
        assert_eq!(base64("AQID/w=="), Some(vec![1, 2, 3, 255]));
    }

    #[test]
    fn damaged_spiece_is_an_error() {
        let pad = ("<pad>", 0.0, 3);
        let (eos, unk) = ((EOS, 0.0, 3), ("<unk>", 0.0, 2));
        let huge = [varint(1 << 3 | 2), varint(u64::MAX), b"x".to_vec()].concat();
        let table = [
            (Vec::new(), "end is missing"),
            (b"not a model at all".to_vec(), "cannot read tokenizer `x`"),
            (vec![0xff; 64], "more than 64 bits"),
            (huge, "ends too early"),
            (vec![0x0b], "unknown kind 3"),
            (piece("<pad>", 0.0, 3), "end is missing"),
            (spiece(&[pad, eos, unk], 2, b""), "BPE"),
            (spiece(&[pad, eos, unk], 9, b""), "model type is 9"),
            (spiece(&[pad, eos], 1, b""), "no piece for unknown text"),
            (spiece(&[pad, unk], 1, b""), "no `</s>`"),
            (spiece(&[pad, eos, unk, pad], 1, b""), "`<pad>` is in it twice"),
            (spiece(&[pad, eos, unk, ("a", f32::NAN, 1)], 1, b""), "score is NaN"),
            (spiece(&[pad, eos, unk, ("", 0.0, 1)], 1, b""), "piece 3 is damaged: it has no text"),
            (spiece(&[pad, eos, unk], 1, b"\x00"), "charsmap"),
            (spiece(&[pad, eos, unk], 1, &[0xff; 1028]), "charsmap"),
            (spiece(&[pad, eos, unk], 1, &[[0, 4, 0, 0].as_slice(), &[0x7f; 1024]].concat()), "charsmap"),
            ([spiece(&[pad, eos, unk], 1, b""), field(1, &field(1, b"\xff"))].concat(), "piece 3 is damaged"),
        ];
        for (bytes, want) in table {
            let got = error(Tokenizer::from_spiece(&bytes, "x"));
            assert!(got.contains(want) && got.contains("fix: "), "want {want:?}, got {got}");
        }
    }

    #[test]
    fn every_cut_of_a_spiece_is_an_error() {
        let bytes = tiny_spiece();
        let tokenizer = Tokenizer::from_spiece(&bytes, "x").unwrap();
        assert_eq!(tokenizer.encode("a b ☃", 9).unwrap().ids, [4, 3, 5, 3, 2, 1]);
        assert_eq!(tokenizer.vocab_size(), 106);
        for n in 0..bytes.len() {
            assert!(Tokenizer::from_spiece(&bytes[..n], "x").is_err(), "the first {n} bytes");
        }
    }

    /// Whatever single byte is wrong: an error, or a tokenizer that still answers.
    #[test]
    fn no_wrong_byte_panics() {
        let bytes = tiny_spiece();
        for i in 0..bytes.len() {
            for flip in [0x01, 0x02, 0x08, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[i] ^= flip;
                if let Ok(tokenizer) = Tokenizer::from_spiece(&bytes, "x") {
                    assert!(!tokenizer.encode("a b ☃ </s>", 9).unwrap().ids.is_empty());
                }
            }
        }
    }

    #[test]
    fn finds_and_opens_files() {
        let root = std::env::temp_dir().join(format!("reel-tokenizer-{}", std::process::id()));
        for folder in ["model/tokenizer", "model/text_encoder", "alone"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let write = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).unwrap();
        let found = |name: &str| {
            let file = Tokenizer::find(&root.join(name))?;
            Some(file.strip_prefix(&root).unwrap().to_owned())
        };
        write("model/text_encoder/model.safetensors", b"");
        assert_eq!(found("model"), None);
        write("model/tokenizer/spiece.model", &tiny_spiece());
        for from in [
            "model",
            "model/text_encoder",
            "model/text_encoder/model.safetensors",
            "model/tokenizer",
            "model/tokenizer/spiece.model",
        ] {
            assert_eq!(found(from), Some("model/tokenizer/spiece.model".into()), "from {from}");
        }
        assert_eq!(found("alone"), None);
        write("model/tokenizer/tokenizer.json", bytes_json().to_string().as_bytes());
        assert_eq!(found("model"), Some("model/tokenizer/tokenizer.json".into()));
        assert_eq!(found("model/tokenizer/spiece.model"), Some("model/tokenizer/spiece.model".into()));
        // The nearest wins.
        write("model/text_encoder/spiece.model", &tiny_spiece());
        assert_eq!(found("model/text_encoder"), Some("model/text_encoder/spiece.model".into()));

        write("alone/json", bytes_json().to_string().as_bytes());
        write("alone/spiece", &tiny_spiece());
        for (name, size) in [
            ("model/tokenizer/tokenizer.json", 264),
            ("model/tokenizer/spiece.model", 106),
            ("alone/json", 264),
            ("alone/spiece", 106),
        ] {
            assert_eq!(Tokenizer::open(&root.join(name)).unwrap().vocab_size(), size, "{name}");
        }
        assert!(error(Tokenizer::open(&root.join("none.json"))).contains("none.json"));
        let large = std::fs::File::create(root.join("alone/large.model")).unwrap();
        large.set_len(LARGEST_FILE + 1).unwrap();
        assert!(error(Tokenizer::open(&root.join("alone/large.model"))).contains("64 MB are too many"));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
