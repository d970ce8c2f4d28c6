//! `--quantize`: the large matrices become blocks as they are loaded, one at a
//! time and straight from the mapped file, so that memory holds nothing but the blocks.

use super::entry::{Entry, Raw, Type};
use super::open::{SMALL, Tensors};
use super::rules::Rules;
use super::scaled;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::kernel::encode::encode;
use crate::nn::kernel::pack::Rows;
use crate::nn::matrix::{Kind, rows};
use crate::nn::paired;
use candle_core::{DType, bail};

impl Tensors {
    /// The same tensors, to be quantised as they are loaded.
    /// - `rules`: which of them; and of what is in blocks already, how it is multiplied.
    pub fn quantized(mut self, quantize: Option<QuantType>, rules: &'static Rules) -> Self {
        (self.quantize, self.rules) = (quantize, Some(rules));
        self
    }

    /// What a matrix becomes when it is loaded, if it is to be quantised.
    pub(super) fn becomes(&self, name: &str, entry: &Entry) -> Option<QuantType> {
        self.wanted(name, entry).filter(|kind| entry.shape[1].is_multiple_of(kind.values()))
    }

    /// What it is to become, whether its rows allow it or not.
    fn wanted(&self, name: &str, entry: &Entry) -> Option<QuantType> {
        let is_plain = matches!(entry.dtype.kind(), Some(Kind::Plain(_)));
        let kind = self.quantize.filter(|_| entry.shape.len() == 2 && is_plain)?;
        self.rules?.becomes(name, kind)
    }

    /// How many matrices are quantised when they are loaded.
    pub fn quantized_count(&self) -> usize {
        self.entries.iter().filter(|(name, entry)| self.becomes(name, entry).is_some()).count()
    }

    /// The blocks that most values are kept in, if most are in blocks.
    pub fn mostly(&self) -> Option<QuantType> {
        let mut counts: Vec<(QuantType, usize)> = vec![];
        for (name, entry) in self.entries.iter() {
            let kind = match entry.dtype {
                Type::QuantType(kind) => Some(kind),
                Type::Plain(_) => self.becomes(name, entry),
            };
            let Some(kind) = kind else { continue };
            let values: usize = entry.shape.iter().product();
            match counts.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, count)) => *count += values,
                None => counts.push((kind, values)),
            }
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count)?;
        (most.1 * 2 > self.elements()).then_some(most.0)
    }

    /// The bytes that each takes as [`Tensors::load`] keeps it, by name.
    pub fn kept_bytes(&self, stored: Option<DType>, compute: DType) -> impl Iterator<Item = (&str, u64)> {
        let stored = stored.or((self.elements() <= SMALL).then_some(compute));
        self.entries.iter().map(move |(name, entry)| {
            let count: usize = entry.shape.iter().product();
            let bytes = match (self.becomes(name, entry), entry.dtype, stored) {
                (Some(kind), ..) | (None, Type::QuantType(kind), _) => kind.size(count),
                (None, Type::Plain(_), _) if entry.shape.len() < 2 => count * compute.size_in_bytes(),
                (None, _, stored) => match (stored, scaled::read_type(entry).kind()) {
                    (Some(dtype), _) | (None, Some(Kind::Plain(dtype))) => {
                        paired::kept_bytes(&entry.shape, dtype, compute)
                    }
                    _ => entry.raw().bytes.len(),
                },
            };
            (name.as_str(), bytes as u64)
        })
    }

    /// Matrices that are to be quantised and cannot be, because their rows do not divide into blocks.
    pub fn not_quantized(&self) -> Vec<&str> {
        let left = |(name, entry): &(&String, &Entry)| {
            self.wanted(name, entry).is_some_and(|kind| !entry.shape[1].is_multiple_of(kind.values()))
        };
        self.entries.iter().filter(left).map(|(name, _)| name.as_str()).collect()
    }
}

/// A matrix as blocks.
pub(super) fn blocks(kind: QuantType, raw: &Raw) -> candle_core::Result<Vec<u8>> {
    let Some(own) = raw.dtype.kind() else { bail!("a matrix of {}", raw.dtype) };
    let mut out = vec![0; kind.size(raw.shape.iter().product())];
    match rows(raw.bytes, own) {
        Ok(rows) if raw.scales.is_none() => encode(kind, rows, &mut out),
        // fp8, numbers with scales, and what begins or lies at an odd place in its file
        _ => scaled::read_into(raw, kind.values(), &mut out, kind.bytes(), |values, out| {
            encode(kind, Rows::F32(values), out)
        })?,
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::Dtype;

    /// A file may begin anywhere: numbers at odd addresses become the same blocks.
    #[test]
    fn numbers_may_lie_askew() {
        let values: Vec<u8> = (0..3 * 256).flat_map(|i| half::f16::from_f32((i as f32).sin()).to_le_bytes()).collect();
        let padded: Vec<u8> = [vec![0; 2], values].concat();
        let made = |shift: usize| {
            let mut bytes = padded.clone();
            bytes.rotate_left(2 - shift);
            let raw = Raw {
                dtype: Type::Plain(Dtype::F16),
                shape: &[3, 256],
                bytes: &bytes[shift..][..3 * 512],
                scales: None,
            };
            [QuantType::Q8_0, QuantType::Q4K].map(|kind| blocks(kind, &raw).unwrap())
        };
        assert_eq!(made(0), made(1));
    }
}
