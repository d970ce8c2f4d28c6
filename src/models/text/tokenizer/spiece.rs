//! SentencePiece unigram models (`spiece.model`), as T5 was trained with: a protobuf message of pieces with their scores. The
//! crate `tokenizers` takes the pieces and does not read the file.

use crate::models::text::tokenizer::{EOS, charsmap, limits};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::HashSet;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, NormalizerWrapper};

/// Sentinels of T5's pre-training: `<extra_id_99>` follows the last piece, `<extra_id_0>` is last.
const EXTRA_IDS: usize = 100;

/// The tokenizer that a model file describes.
pub fn tokenizer(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    Spiece::parse(bytes)?.tokenizer()
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
        limits::check_pieces(self.pieces.iter().map(|&(name, score, _)| Ok((name, score.into()))))?;
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
            let growth = charsmap::check(self.charsmap)?;
            ensure!(growth <= limits::MOST_GROWTH, "its charsmap makes {growth} bytes of one character");
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
