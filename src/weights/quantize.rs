//! `--quantize`: the large matrices of the transformer and of the text encoder become blocks as they are loaded, one at a
//! time and straight from the mapped file, so that memory holds nothing but the blocks.

use super::gguf::{self, Part};
use super::open::{Entry, Raw, SMALL, Tensors, Type};
use super::scaled;
use super::source::plain;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::kernel::encode::encode;
use crate::nn::kernel::pack::Rows;
use crate::nn::matrix::{Kind, rows};
use crate::nn::paired;
use crate::platform::cancel::Cancelled;
use crate::platform::files::{self, AtomicFile};
use crate::platform::machine::free_disk;
use crate::platform::progress::human_bytes;
use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, bail};
use safetensors::tensor::Dtype;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// Of how blocks are made; another one makes them anew.
const VERSION: u32 = 2;

/// How a part is written to a GGUF file of its own.
#[derive(Clone)]
pub struct Form {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// JSON for the header: what tells the part's sizes.
    pub config: String,
    /// The names that other programs know the tensors by; and back.
    pub rename: fn(&str) -> String,
    pub back: fn(&str) -> String,
}

/// A folder for quantised parts, and how this one is written there.
#[derive(Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    form: Form,
    /// Whether they are kept for later runs.
    keep: bool,
}

/// Where the matrices lie that become blocks. All else stays as it is: norms, biases, embeddings, the tables of the
/// adaptive norms, and the first and last layers, which are few and through which everything passes.
/// - Source: city96/ComfyUI-GGUF `tools/lcpp.patch` (LLM_ARCH_LTXV) at 795e451; llama.cpp quantises the layers of T5 and its
///   embedding, which is not multiplied by here.
const LAYERS: [&str; 2] = ["transformer_blocks.", "encoder.block."];

/// Of the layers' matrices those that are kept finer than the rest: in Q8_0 where the rest is Q4_K, and as they are where it is
/// Q8_0. In the transformer their blocks are never multiplied by int8 dot products. Each is small or loses more than others, and
/// what is lost in it is lost everywhere:
/// - keys and values of the prompt, which guidance sets against those of the negative prompt, and so multiplies what was lost;
/// - what cross-attention adds to the stream, ungated and of values that lie far apart in size: rounded to eight bits it cost as
///   much as the whole MLP;
/// - what T5's layers add to its stream, which no later layer makes good.
/// - Source of `wo`: transformers `models/t5/modeling_t5.py`, `_keep_in_fp32_modules`, at 5.23.0.
const FINE: [&str; 5] = [".attn2.to_k.", ".attn2.to_v.", ".attn2.to_out.", ".SelfAttention.o.", ".DenseReluDense.wo."];

impl Tensors {
    /// The same tensors, to be quantised as they are loaded.
    pub fn quantized(mut self, quantize: Option<QuantType>) -> Self {
        self.quantize = quantize;
        self
    }

    /// What a matrix becomes when it is loaded, if it is to be quantised.
    pub(super) fn becomes(&self, name: &str, entry: &Entry) -> Option<QuantType> {
        self.wanted(name, entry).filter(|kind| entry.shape[1].is_multiple_of(kind.values()))
    }

    /// What it is to become, whether its rows allow it or not.
    fn wanted(&self, name: &str, entry: &Entry) -> Option<QuantType> {
        self.quantize.filter(|_| entry.shape.len() == 2 && plain(entry.dtype)).and_then(|kind| kind_of(name, kind))
    }

    /// Writes all of them to a GGUF file, the large matrices as blocks; the caller commits it.
    /// - `after`: called after each tensor, of which there are [`Tensors::names`]; an error of it ends the work.
    pub fn write_gguf(
        &self,
        file: &AtomicFile,
        form: &Form,
        mut after: impl FnMut() -> Result<(), Cancelled>,
    ) -> Result<()> {
        let entries: Vec<_> = self.entries.iter().collect();
        let part = |(name, entry): &(&String, &Entry)| Part {
            name: (form.rename)(name),
            dtype: self.becomes(name, entry).map_or(written_type(entry), Type::QuantType),
            shape: entry.shape.clone(),
        };
        let parts: Vec<Part> = entries.iter().map(part).collect();
        let mut header = vec![("general.architecture", form.architecture), ("config", form.config.as_str())];
        // by which the catalogue knows a model
        header.extend(self.metadata("name").map(|name| ("name", name)));
        gguf::write(file, &header, &parts, |i, to| {
            let (name, entry) = entries[i];
            match self.becomes(name, entry) {
                Some(kind) => to.write_all(&blocks(kind, &entry.raw())?)?,
                None if written_type(entry) != entry.dtype => {
                    let halves = scaled::halves(&entry.raw())?;
                    to.write_all(&halves.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?
                }
                None => to.write_all(entry.raw().bytes)?,
            }
            entry.forget();
            after()?;
            Ok(())
        })
    }

    /// The same tensors, to be kept quantised in `folder` and taken from there. What lies there already is used from now on.
    /// - Errors when it cannot be read, and when what is missing cannot be written there.
    pub fn with_cache(mut self, folder: &Path, form: Form) -> Result<Self> {
        self.cache = Some(Cache { folder: folder.to_path_buf(), form, keep: true });
        match self.cached_file() {
            Some(file) if file.is_file() => self.taken_from(&file),
            Some(file) => check_place(folder, &file, self.written_bytes()).map(|()| self),
            None => Ok(self),
        }
    }

    /// The same tensors from a file, where they are to be kept in one: of the cache, or (`scratch`) one that is gone when they are,
    /// for layers that come and go and would be quantised anew whenever they come.
    /// - `begin`: called with the number of tensors before they are made; what it returns is called after each, and an error of it ends the
    ///   work.
    pub fn through_file<F: FnMut() -> Result<(), Cancelled>>(
        &self,
        scratch: bool,
        begin: impl FnOnce(usize) -> F,
    ) -> Result<Self> {
        if scratch { self.through_scratch(begin) } else { self.through_cache(begin) }
    }

    /// From the cache: quantised and written now, if they are not yet.
    fn through_cache<F: FnMut() -> Result<(), Cancelled>>(&self, begin: impl FnOnce(usize) -> F) -> Result<Self> {
        let (Some(file), Some(cache)) = (self.cached_file(), &self.cache) else { return Ok(self.clone()) };
        if !file.is_file() {
            std::fs::create_dir_all(&cache.folder)
                .map_err(|error| anyhow!("{}: {error}\n  {FIX}", not_kept(&cache.folder)))?;
            files::sweep(&cache.folder);
            let made = AtomicFile::create(&file, false)?;
            self.write_gguf(&made, &cache.form, begin(self.entries.len()))?;
            // another process may have made the same meanwhile
            made.commit_or_keep()?;
        }
        self.clone().taken_from(&file)
    }

    /// The same tensors, which may be kept quantised in `folder` for as long as the program runs.
    pub fn with_scratch(mut self, folder: &Path, form: Form) -> Self {
        self.cache = Some(Cache { folder: folder.to_path_buf(), form, keep: false });
        self
    }

    /// Where they may be kept quantised for as long as the program runs; `None` where that needs no file, or has no place. A file
    /// that is in use is removed there and then, which not every system does.
    pub fn scratch(&self) -> Option<&Path> {
        let cache = self.cache.as_ref().filter(|cache| cfg!(unix) && !cache.keep)?;
        (self.quantized_count() > 0).then_some(cache.folder.as_path())
    }

    /// From a file that is gone when they are.
    fn through_scratch<F: FnMut() -> Result<(), Cancelled>>(&self, begin: impl FnOnce(usize) -> F) -> Result<Self> {
        let (Some(folder), Some(cache)) = (self.scratch(), &self.cache) else { return Ok(self.clone()) };
        let place = || {
            let folder = folder.display();
            format!(
                "cannot keep quantised weights in `{folder}` while they are used\n  fix: quantise them once, by `reel models quantize`"
            )
        };
        std::fs::create_dir_all(folder).with_context(place)?;
        files::sweep(folder);
        let file =
            AtomicFile::create(&folder.join(format!("{}.run", cache.form.architecture)), false).with_context(place)?;
        self.write_gguf(&file, &cache.form, begin(self.entries.len())).with_context(place)?;
        self.clone().taken_from(file.path()) // what is mapped stays when the file goes, until it is let go
    }

    fn taken_from(self, file: &Path) -> Result<Self> {
        let Some(cache) = &self.cache else { return Ok(self) };
        let kept = Tensors::open(&[file.to_path_buf()]).with_context(|| {
            format!("`{}` is a damaged quantised copy\n  fix: remove it; it is made again", file.display())
        })?;
        let back = cache.form.back;
        Ok(kept.renamed(|name| Some(back(name))).in_place_of(self))
    }

    /// Where they are kept, by the files that they come from; `None` where they are to be kept nowhere, or need no quantising.
    fn cached_file(&self) -> Option<PathBuf> {
        let (cache, kind) = (self.cache.as_ref().filter(|cache| cache.keep)?, self.quantize?);
        if self.quantized_count() == 0 || self.identity().is_empty() {
            return None;
        }
        let mut hash = std::hash::DefaultHasher::new();
        (self.identity(), kind.name(), VERSION).hash(&mut hash);
        let name = format!("{}-{}-{:016x}.gguf", cache.form.architecture, kind.name(), hash.finish());
        Some(cache.folder.join(name))
    }

    /// Whether they are taken from the cache, or will be.
    pub fn is_cached(&self) -> bool {
        self.kept || self.cached_file().is_some()
    }

    /// Whether these were quantised in an earlier run and kept.
    pub fn is_kept(&self) -> bool {
        self.kept
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

    /// The bytes that all take in a file, the large matrices as blocks.
    fn written_bytes(&self) -> u64 {
        let bytes = |(name, entry): (&String, &Entry)| match self.becomes(name, entry) {
            Some(kind) => kind.size(entry.shape.iter().product()),
            None => entry.raw().bytes.len(),
        };
        self.entries.iter().map(bytes).sum::<usize>() as u64
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

/// Checks that `file` of the cache, of so many bytes, can be written, before the long part. Leaves nothing behind.
fn check_place(folder: &Path, file: &Path, bytes: u64) -> Result<()> {
    // what is missing of the folder is made when there is something to keep
    let there = folder.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(folder);
    let tried = if there == folder { file.to_path_buf() } else { there.join(file.file_name().unwrap_or_default()) };
    AtomicFile::create(&tried, false).map(drop).map_err(|error| {
        let why = error.to_string();
        anyhow!("{}: {}\n  {FIX}", not_kept(folder), why.lines().next().unwrap_or_default())
    })?;
    let free = free_disk(folder).unwrap_or(u64::MAX);
    ensure!(
        bytes <= free,
        "{}: they take {}, and {} are free there\n  {FIX}",
        not_kept(folder),
        human_bytes(bytes),
        human_bytes(free)
    );
    Ok(())
}

const FIX: &str =
    "fix: make room or permission there, set XDG_CACHE_HOME to another folder, or leave --quantize-cache out";

fn not_kept(folder: &Path) -> String {
    format!("--quantize-cache cannot keep quantised weights in `{}`", folder.display())
}

/// What the matrix of that name becomes where the layers become `kind`; `None`: it stays as it is.
pub fn kind_of(name: &str, kind: QuantType) -> Option<QuantType> {
    let fine = is_fine(name);
    match kind {
        _ if !is_layer(name) => None,
        _ if !fine => Some(kind),
        QuantType::Q8_0 => None,
        _ => Some(QuantType::Q8_0),
    }
}

/// Whether the tensor of that name, if it is a matrix, is one of the large ones.
pub fn is_layer(name: &str) -> bool {
    name.ends_with(".weight")
        && !name.contains("relative_attention_bias")
        && LAYERS.iter().any(|layers| name.contains(layers))
}

fn is_fine(name: &str) -> bool {
    FINE.iter().any(|part| name.contains(part))
}

/// Whether the blocks of that tensor are dequantised to be multiplied, even where int8 dot products are faster: `FINE`, and
/// those of the text encoder, which runs once a prompt and over few words, and whose activations lie far apart in size.
pub fn dequantised(name: &str) -> bool {
    name.contains(LAYERS[1]) || is_fine(name)
}

/// The type that a tensor that becomes no blocks is written in: as it is, but for fp8, which GGUF does not have and bf16 holds.
fn written_type(entry: &Entry) -> Type {
    match scaled::read_type(entry) {
        Type::Plain(Dtype::F8_E4M3) => Type::Plain(Dtype::BF16),
        other => other,
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
    use safetensors::Dtype;

    /// Which matrices become what, by their part in the model.
    #[test]
    fn what_becomes_blocks() {
        let (q8, q4) = (Some(QuantType::Q8_0), Some(QuantType::Q4K));
        let block = |part: &str| format!("transformer_blocks.7.{part}.weight");
        let layer = |part: &str| format!("encoder.block.3.layer.{part}.weight");
        let rough = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"];
        let rough = rough.into_iter().chain(["ff.net.0.proj", "ff.net.2"]).map(block);
        let text = ["0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v", "1.DenseReluDense.wi_0"].map(layer);
        for name in rough.chain(text) {
            assert_eq!((kind_of(&name, QuantType::Q8_0), kind_of(&name, QuantType::Q4K)), (q8, q4), "{name}");
        }
        let fine = ["attn2.to_k", "attn2.to_v", "attn2.to_out.0"].map(block).into_iter();
        for name in fine.chain(["0.SelfAttention.o", "1.DenseReluDense.wo"].map(layer)) {
            assert_eq!((kind_of(&name, QuantType::Q8_0), kind_of(&name, QuantType::Q4K)), (None, q8), "{name}");
            assert!(dequantised(&name), "{name}");
        }
        let relative = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let ends = ["proj_in.weight", "proj_out.weight", "time_embed.linear.weight", "shared.weight", relative];
        for name in
            ends.into_iter().chain(["caption_projection.linear_1.weight", "transformer_blocks.0.scale_shift_table"])
        {
            assert_eq!(kind_of(name, QuantType::Q4K), None, "{name}");
        }
        // what is multiplied by int8 dot products
        for name in ["attn1.to_q", "attn1.to_out.0", "attn2.to_q", "ff.net.2"].map(block) {
            assert!(!dequantised(&name), "{name}");
        }
    }

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
