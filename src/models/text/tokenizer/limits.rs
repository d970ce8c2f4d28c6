//! Which tokenizer files are read: those that are made of the parts that T5's are made of, within bounds. The crate `tokenizers`
//! knows many more parts, some of which panic, grow a text without end or never come to one, if a file asks for it.

use crate::models::text::tokenizer::{charsmap, items};
use crate::weights::config::brief;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

/// Pieces of a vocabulary, bytes of one and of all, and how far from 0 a score may be. umT5 has 256,300 pieces of 2 MB; the crate
/// keeps a table for each byte of them, and drops these one within the other.
const MOST_PIECES: usize = 1 << 19;
const LONGEST_PIECE: usize = 256;
const MOST_PIECE_BYTES: usize = 3 << 20;
const HIGHEST_SCORE: f64 = 1e6;

/// Added tokens, at most.
const MOST_ADDED: usize = 4096;

/// Parts of a normaliser, or of a pre-tokenizer, at most.
const MOST_PARTS: usize = 16;
/// By how much a text may grow where all of its characters grow as the one that grows most. T5's tables make 33 bytes of one
/// character, and then perhaps two `▁` of each pair of spaces.
pub const MOST_GROWTH: usize = 256;

/// The one regular expression of T5's files: runs of spaces.
const SPACES: &str = " {2,}";

/// By how much Unicode's own tables may make a text longer: in bytes, U+FDFA by 11 (NFKC) and U+0130 by 1.5 (lower case).
const UNICODE_GROWTH: usize = 11;

/// Checks the parts of a `tokenizer.json`.
pub fn check(json: &Json) -> Result<()> {
    ensure!(json.is_object(), "it is no JSON object");
    let mut parts = 0;
    let growth = growth(&json["normalizer"], &mut parts)?;
    ensure!(growth <= MOST_GROWTH, "its normaliser may make a text {growth} times as long");
    check_pre_tokenizer(&json["pre_tokenizer"], &mut 0)?;
    let model = &json["model"];
    // of old files that do not say it, the form of the vocabulary does
    let kind = model["type"].as_str().unwrap_or(if model["vocab"].is_array() { "Unigram" } else { "missing" });
    ensure!(kind == "Unigram", "its model is of the type `{}`, and T5's is `Unigram`", brief(kind));
    let pieces = items(&model["vocab"]).map(|piece| match (piece[0].as_str(), piece[1].as_f64()) {
        (Some(text), Some(score)) => Ok((text, score)),
        _ => bail!("its vocabulary is no list of pieces and their scores"),
    });
    check_pieces(pieces)?;
    check_added(&json["added_tokens"])
}

/// Checks a vocabulary, of whichever kind of file.
pub fn check_pieces<'a>(pieces: impl Iterator<Item = Result<(&'a str, f64)>>) -> Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for piece in pieces {
        let (text, score) = piece?;
        count += 1;
        bytes += text.len();
        ensure!(text.len() <= LONGEST_PIECE, "a piece of its vocabulary has {} bytes (`{}`)", text.len(), brief(text));
        ensure!(
            score.is_finite() && score.abs() <= HIGHEST_SCORE,
            "the score of the piece `{}` is {score:e}",
            brief(text)
        );
        ensure!(count <= MOST_PIECES && bytes <= MOST_PIECE_BYTES, "its vocabulary is far larger than T5's");
    }
    ensure!(count > 0, "its vocabulary is empty");
    Ok(())
}

fn check_added(added: &Json) -> Result<()> {
    ensure!(items(added).count() <= MOST_ADDED, "it adds {} tokens to its vocabulary", items(added).count());
    for token in items(added) {
        let text = token["content"].as_str().context("one of its added tokens has no text")?;
        ensure!(
            (1..=LONGEST_PIECE).contains(&text.len()),
            "an added token has {} bytes (`{}`)",
            text.len(),
            brief(text)
        );
        ensure!(
            token["normalized"] != true,
            "its added token `{}` is looked for after normalising, and none of T5's is",
            brief(text)
        );
    }
    Ok(())
}

/// By how many times a normaliser may make a text longer.
/// - Errors on parts that T5's files do not have.
fn growth(normalizer: &Json, parts: &mut usize) -> Result<usize> {
    *parts += 1;
    ensure!(*parts <= MOST_PARTS, "its normaliser has more than {MOST_PARTS} parts");
    Ok(match normalizer["type"].as_str() {
        None if normalizer.is_null() => 1,
        Some("Sequence") => {
            let mut all = 1usize;
            for part in items(&normalizer["normalizers"]) {
                all = all.saturating_mul(growth(part, parts)?);
            }
            all
        }
        Some("Precompiled") => {
            let map = normalizer["precompiled_charsmap"].as_str().and_then(|text| STANDARD.decode(text).ok());
            charsmap::check(&map.context("its charsmap is not base64")?)?.max(1)
        }
        Some("Replace") => {
            let (pattern, content) = (&normalizer["pattern"], normalizer["content"].as_str());
            let content = content.context("its normaliser replaces by nothing that is a text")?;
            let replaced = match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
                (Some(text), None) if !text.is_empty() => text.len(),
                (None, Some(SPACES)) => 2,
                _ => bail!("its normaliser replaces `{}`, which T5's does not", brief(&pattern.to_string())),
            };
            content.len().div_ceil(replaced).max(1)
        }
        Some("NFC" | "NFD" | "NFKC" | "NFKD") => UNICODE_GROWTH,
        Some("Lowercase") => 2,
        Some("Strip" | "StripAccents" | "Nmt") => 1,
        other => {
            bail!("its normaliser has a part of the type `{}`, which T5's does not", brief(other.unwrap_or("missing")))
        }
    })
}

fn check_pre_tokenizer(part: &Json, parts: &mut usize) -> Result<()> {
    *parts += 1;
    ensure!(*parts <= MOST_PARTS, "its pre-tokenizer has more than {MOST_PARTS} parts");
    match part["type"].as_str() {
        None if part.is_null() => Ok(()),
        Some("WhitespaceSplit" | "Metaspace") => Ok(()),
        Some("Sequence") => items(&part["pretokenizers"]).try_for_each(|part| check_pre_tokenizer(part, parts)),
        other => {
            let kind = brief(other.unwrap_or("missing"));
            bail!("its pre-tokenizer has a part of the type `{kind}`, which T5's does not")
        }
    }
}
