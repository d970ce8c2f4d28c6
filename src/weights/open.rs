//! Weight files -> tensors by name. Files are mapped, never read whole: a tensor is copied to its device when a layer asks
//! for it, and its pages can go again.

use super::entry::{Bytes, Entry, Placed, Raw, Type};
use super::rules::{GgufForm, Rules};
use super::{gguf, scaled};
use crate::nn::kernel::MatmulType;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::matrix::LowRank;
use crate::platform::mapped::MappedFile;
use crate::weights::config::{self, brief};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A LoRA as layers meet it.
pub(super) trait Added: Send + Sync {
    /// The low-rank product that is added to one layer.
    /// - `math`: in what a CPU multiplies by the layer itself.
    fn layer(
        &self,
        name: &str,
        math: MatmulType,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Option<LowRank>>;

    /// What is added to the bias of one layer.
    fn bias(&self, layer: &str, dtype: DType, device: &Device) -> candle_core::Result<Option<Tensor>>;

    /// What the user should know of it.
    fn remark(&self) -> Option<&str>;
}

/// A folder for quantised parts, and how this one is written there.
#[derive(Clone)]
pub(super) struct Cache {
    pub folder: PathBuf,
    pub form: GgufForm,
    /// Whether they are kept for later runs.
    pub keep: bool,
}

/// Tensors by name, from one or several files. Cheap to clone.
#[derive(Clone)]
pub struct Tensors {
    what: String,
    pub(super) entries: Arc<BTreeMap<String, Entry>>,
    metadata: Arc<HashMap<String, String>>,
    pub(super) quantize: Option<QuantType>,
    pub(super) rules: Option<&'static Rules>,
    pub(super) loras: Arc<Vec<Box<dyn Added>>>,
    pub(super) cache: Option<Cache>,
    /// Whether these were taken from the cache.
    pub(super) kept: bool,
    /// Places, sizes and times of the files.
    identity: String,
}

impl Tensors {
    /// Maps safetensors or GGUF files and reads their headers; all of a shard set at once.
    /// - Errors when a file is missing, truncated or neither of the two.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let what = paths.first().map(|p| format!("`{}`", p.display())).unwrap_or_default();
        let mut all = Self::empty(what);
        for path in paths {
            let map = MappedFile::open(path)?;
            let place = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let (size, time) = map.version();
            all.identity += &format!("{} {size} {time:?}\n", place.display());
            all.add(Bytes::Mapped(map), &format!("`{}`", path.display()))?;
        }
        scaled::attach(Arc::make_mut(&mut all.entries));
        Ok(all)
    }

    fn empty(what: String) -> Self {
        Self {
            what,
            entries: Arc::default(),
            metadata: Arc::default(),
            quantize: None,
            rules: None,
            loras: Arc::default(),
            cache: None,
            kept: false,
            identity: String::new(),
        }
    }

    /// The tensors of a file that is part of the program.
    pub fn embedded(bytes: &'static [u8], what: &str) -> Result<Self> {
        let mut all = Self::empty(what.to_string());
        all.add(Bytes::Embedded(bytes), what)?;
        Ok(all)
    }

    fn add(&mut self, bytes: Bytes, what: &str) -> Result<()> {
        let (tensors, metadata) = if bytes.starts_with(gguf::MAGIC) {
            gguf::read(&bytes, what)?
        } else {
            let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
            let header = bytes.get(8..).unwrap_or_default();
            let header = &header[..header.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
            let read = if length > LARGEST_HEADER {
                Err(format!("a header of {length} bytes"))
            } else if tensors_in(header) > MOST_TENSORS {
                Err(format!("a header of more than {MOST_TENSORS} tensors"))
            } else {
                SafeTensors::read_metadata(&bytes).map_err(|e| match said_size(&bytes) {
                    Some(size) if size != bytes.len() as u64 => format!("its header says {size} bytes"),
                    _ => e.to_string().chars().take(120).collect(),
                })
            };
            let (header, metadata) = read.map_err(|e| {
                anyhow::anyhow!(
                    "{what} is not a whole safetensors or GGUF file ({e}; it has {} bytes)\n  fix: fetch it again and compare its size and SHA-256",
                    bytes.len()
                )
            })?;
            let start = header + 8; // the header's length stands before it
            let placed = metadata.tensors().into_iter().map(|(name, info)| Placed {
                name,
                dtype: Type::Plain(info.dtype),
                shape: info.shape.clone(),
                range: (start + info.data_offsets.0, start + info.data_offsets.1),
            });
            (placed.collect(), metadata.metadata().clone().unwrap_or_default())
        };
        check_sizes(&tensors)
            .with_context(|| format!("{what} is no file of weights\n  fix: fetch it again, or another one"))?;
        let file = Arc::new(bytes);
        let entries = Arc::make_mut(&mut self.entries);
        for Placed { name, dtype, shape, range } in tensors {
            let entry = Entry { file: file.clone(), dtype, shape, scales: None, range };
            ensure!(entries.insert(name.clone(), entry).is_none(), "{what}: the tensor `{name}` is there twice");
        }
        Arc::make_mut(&mut self.metadata).extend(metadata);
        Ok(())
    }

    /// What the user should know of their LoRAs.
    pub fn lora_remarks(&self) -> impl Iterator<Item = String> {
        self.loras.iter().filter_map(|lora| lora.remark().map(String::from))
    }

    /// Taken from the cache in place of others.
    pub(super) fn in_place_of(self, others: Self) -> Self {
        Self { kept: true, loras: others.loras, quantize: others.quantize, rules: others.rules, ..self }
    }

    /// What tells their files from others, and from what they were before; nothing for what is part of the program.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// What these are, for errors.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The header's own entries.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// Every tensor as it lies in its file, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Raw<'_>)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.raw()))
    }

    /// Bytes of all tensors.
    pub fn size(&self) -> usize {
        self.entries.values().map(Entry::size).sum()
    }

    /// Elements of all tensors.
    pub fn elements(&self) -> usize {
        self.entries.values().map(|e| e.shape.iter().product::<usize>()).sum()
    }

    /// The tensors that `rename` gives a name, under that name.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let entries = self.entries.iter().filter_map(|(name, entry)| Some((rename(name)?, entry.clone()))).collect();
        Self { entries: Arc::new(entries), ..self.clone() }
    }
}

/// Bytes of a safetensors header, at most. It may hold a tokenizer, and ComfyUI's workflow.
const LARGEST_HEADER: u64 = 32 << 20;
/// Tensors of a file, bytes of a name, and dimensions, at most.
const MOST_TENSORS: usize = 1 << 16;
const LONGEST_NAME: usize = 256;
const MOST_DIMENSIONS: usize = 8;
/// The logarithm of two of the product of a tensor's sides, where none is 0.
const MOST_VALUES: u32 = 46;

/// About how many tensors a safetensors header lists, without reading it.
fn tensors_in(header: &[u8]) -> usize {
    const KEY: &[u8] = b"\"data_offsets\"";
    header.windows(KEY.len()).filter(|part| *part == KEY).count()
}

/// The size that a safetensors file has by its own header.
fn said_size(bytes: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    let header = config::json(bytes.get(8..usize::try_from(length.checked_add(8)?).ok()?)?).ok()?;
    let end = |value: &serde_json::Value| value["data_offsets"][1].as_u64();
    header.as_object()?.values().filter_map(end).max().unwrap_or(0).checked_add(length)?.checked_add(8)
}

/// Errors on what no file of weights has, before anything is sized by it.
fn check_sizes(tensors: &[Placed]) -> Result<()> {
    ensure!(tensors.len() <= MOST_TENSORS, "it has {} tensors", tensors.len());
    for Placed { name, shape, .. } in tensors {
        let start = || brief(name);
        ensure!(name.len() <= LONGEST_NAME, "a tensor's name has {} bytes (`{}`)", name.len(), start());
        ensure!(shape.len() <= MOST_DIMENSIONS, "`{name}` has {} dimensions", shape.len());
        // sides of an empty tensor take no bytes, and may say anything
        let values = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side.max(&1)));
        ensure!(values.is_some_and(|n| n.ilog2() <= MOST_VALUES), "`{name}` has shape {shape:?}");
    }
    Ok(())
}

/// Elements that may as well be widened: 1 GiB in f32.
pub const SMALL: usize = 1 << 28;

/// What stands in the middle of an index's name; before `json` may stand a variant, as in `model.safetensors.index.fp16.json`.
const INDEX: &str = ".safetensors.index.";
const PLAIN_INDEX: &str = ".safetensors.index.json";

/// The safetensors files of one part of a diffusers directory: a shard set by its index, or the one file. What has a plain name
/// goes before a variant.
/// - `dir`: such as `transformer/`. Errors when there is none, or several without an index.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read the directory `{}`", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    // shortest first: variants such as `….fp16.safetensors` are longer than the plain file beside them
    names.sort_by_key(|name| (name.len(), name.clone()));
    if let Some(index) = names.iter().find(|name| name.ends_with(PLAIN_INDEX)) {
        return shards(dir, index);
    }
    let files: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    let index = names.iter().find(|name| name.contains(INDEX) && name.ends_with(".json"));
    let is_shard = |name: &str| name.contains("-of-");
    if let Some(index) = index.filter(|_| files.iter().all(|name| is_shard(name))) {
        return shards(dir, index);
    }
    let files: Vec<&String> =
        if index.is_some() { files.into_iter().filter(|name| !is_shard(name)).collect() } else { files };
    match files.as_slice() {
        [] => bail!(
            "there are no .safetensors weights in `{}`\n  fix: put the checkpoint's weights there, as .safetensors",
            dir.display()
        ),
        [first, rest @ ..] => {
            let stem = first.trim_end_matches(".safetensors");
            const SHOWN: usize = 4;
            let shown: Vec<&str> = files.iter().take(SHOWN).map(|name| name.as_str()).collect();
            ensure!(
                rest.iter().all(|name| name.starts_with(stem)),
                "there are several .safetensors files in `{}` and no index that says how they belong together: {}{}\n  fix: leave one, or add the set's index",
                dir.display(),
                shown.join(", "),
                if files.len() > SHOWN { format!(" and {} more", files.len() - SHOWN) } else { String::new() }
            );
            Ok(vec![dir.join(first)])
        }
    }
}

/// The files that an index names, all of which have to be beside it.
fn shards(dir: &Path, index: &str) -> Result<Vec<PathBuf>> {
    const FIX: &str = "fix: fetch the checkpoint again";
    let path = dir.join(index);
    let json = crate::weights::read_json(&path)?;
    let map = json["weight_map"].as_object().filter(|map| !map.is_empty());
    let map = map.with_context(|| format!("`{}` has no `weight_map` with files\n  {FIX}", path.display()))?;
    let mut files = vec![];
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|own| own == *name));
        files.push(name.with_context(|| {
            format!("`{}` names no file in its folder for the tensor `{}`\n  {FIX}", path.display(), brief(tensor))
        })?);
    }
    files.sort_unstable();
    files.dedup();
    for file in &files {
        ensure!(dir.join(file).is_file(), "the shard `{}` named in `{index}` is missing\n  {FIX}", brief(file));
    }
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}
