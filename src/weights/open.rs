//! Weight files -> tensors by name. Files are mapped, never read whole: a tensor is copied to its device when a layer asks
//! for it, and its pages can go again.

use super::lora::{Adapter, LayerNames};
use super::quantize::Cache;
use super::source::{Checker, Fault, Reader};
use super::{forms, gguf, scaled};
use crate::nn::kernel::MatmulType;
use crate::nn::kernel::blocks::QuantType;
use crate::nn::matrix::{Kind, Mapped, usable};
use crate::nn::vars::Vars;
use crate::platform::mapped::MappedFile;
use crate::weights::config::{self, brief};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

enum Bytes {
    Mapped(MappedFile),
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Lets the pages of a range go that has been copied; a later look reads them from the file again.
    fn forget(&self, range: (usize, usize)) {
        if let Bytes::Mapped(map) = self {
            map.forget(range);
        }
    }
}

/// What a tensor is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Plain(Dtype),
    QuantType(QuantType),
}

impl Type {
    /// What products and layers can use; `None` for integers and the like.
    pub fn kind(self) -> Option<Kind> {
        Some(Kind::Plain(match self {
            Type::QuantType(kind) => return Some(Kind::QuantType(kind)),
            Type::Plain(Dtype::F64) => DType::F64,
            Type::Plain(Dtype::F32) => DType::F32,
            Type::Plain(Dtype::F16) => DType::F16,
            Type::Plain(Dtype::BF16) => DType::BF16,
            Type::Plain(Dtype::F8_E4M3) => DType::F8E4M3,
            Type::Plain(_) => return None,
        }))
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Type::Plain(dtype) => write!(f, "{dtype:?}"),
            Type::QuantType(kind) => f.write_str(kind.name()),
        }
    }
}

/// A tensor as a file's header places it.
pub(super) struct Placed {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: (usize, usize),
}

#[derive(Clone)]
pub(super) struct Entry {
    file: Arc<Bytes>,
    pub dtype: Type,
    pub shape: Vec<usize>,
    /// What its numbers are multiplied by when they are read: one factor, or one for each row.
    pub scales: Option<Arc<[f32]>>,
    range: (usize, usize),
}

/// A tensor as it lies in its file: little-endian, row-major.
pub struct Raw<'a> {
    pub dtype: Type,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
    /// What its numbers have to be multiplied by: one factor, or one for each row.
    pub scales: Option<&'a [f32]>,
}

impl Entry {
    /// Whether it is part of the program.
    pub(super) fn is_built_in(&self) -> bool {
        matches!(*self.file, Bytes::Embedded(_))
    }

    pub fn raw(&self) -> Raw<'_> {
        let bytes = &self.file[self.range.0..self.range.1];
        Raw { dtype: self.dtype, shape: &self.shape, bytes, scales: self.scales.as_deref() }
    }

    /// Lets its pages go; a later look reads them from the file again.
    pub fn forget(&self) {
        self.file.forget(self.range);
    }

    /// Itself, to be used where it lies; `None` where it is misaligned for its element type, or has to be multiplied by scales first.
    pub fn in_place(&self) -> Option<Arc<dyn Mapped>> {
        let kind = self.dtype.kind().filter(|_| self.scales.is_none())?;
        usable(self.raw().bytes, kind).then(|| Arc::new(InPlace { entry: self.clone(), kind }) as Arc<dyn Mapped>)
    }
}

/// A tensor that is used where it lies; its pages may go when nobody uses it any more.
struct InPlace {
    entry: Entry,
    kind: Kind,
}

impl Mapped for InPlace {
    fn bytes(&self) -> &[u8] {
        self.entry.raw().bytes
    }

    fn kind(&self) -> Kind {
        self.kind
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.entry.forget();
    }
}

/// Tensors by name, from one or several files. Cheap to clone.
#[derive(Clone)]
pub struct Tensors {
    what: String,
    pub(super) entries: Arc<BTreeMap<String, Entry>>,
    metadata: Arc<HashMap<String, String>>,
    pub(super) quantize: Option<QuantType>,
    pub(super) loras: Arc<Vec<Adapter>>,
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

    /// The same tensors, with LoRAs added to the layers that load them.
    /// - Errors when one does not fit; see [`Adapter::open`].
    pub fn with_loras<'a>(mut self, loras: impl Iterator<Item = (&'a Path, f64)>, names: LayerNames) -> Result<Self> {
        let adapters = loras.map(|(path, scale)| Adapter::open(path, scale, &self, names)).collect::<Result<_>>()?;
        self.loras = Arc::new(adapters);
        Ok(self)
    }

    /// What the user should know of their LoRAs.
    pub fn lora_remarks(&self) -> impl Iterator<Item = String> {
        self.loras.iter().filter_map(|lora| lora.remark().map(String::from))
    }

    /// Taken from the cache in place of others.
    pub(super) fn in_place_of(self, others: Self) -> Self {
        Self { kept: true, loras: others.loras, quantize: others.quantize, ..self }
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
        self.entries.values().map(|e| e.range.1 - e.range.0).sum()
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

    /// Tensors for a model's constructor.
    /// - `stored`: element type that matrices are kept in; `None` keeps the file's, or `compute` where the model is small,
    ///   which saves widening them at each use and changes no number. Vectors and scalars always take `compute`; blocks
    ///   stay blocks.
    pub fn load(&self, stored: Option<DType>, compute: DType, device: &Device) -> Vars {
        let widened = stored.or((self.elements() <= SMALL).then_some(compute));
        let reader = Reader { tensors: self.clone(), stored: widened, blocks_in: blocks_in(stored) };
        Vars::new(reader, compute, device.clone())
    }

    /// In what a CPU multiplies most of them, kept as [`Tensors::load`] keeps them.
    pub fn math(&self, stored: Option<DType>) -> MatmulType {
        let bytes = |wanted: fn(Type) -> bool| {
            self.entries.values().filter(|e| wanted(scaled::read_type(e))).map(|e| e.range.1 - e.range.0).sum::<usize>()
        };
        let blocks = bytes(|dtype| matches!(dtype, Type::QuantType(_))) > 0 || self.quantize.is_some();
        let mostly_half = bytes(|dtype| dtype == Type::Plain(Dtype::BF16)) * 2 > self.size() && self.elements() > SMALL;
        match stored {
            Some(DType::BF16) => MatmulType::Bf16,
            stored if blocks => blocks_in(stored),
            None if mostly_half => MatmulType::Bf16,
            _ => MatmulType::F32,
        }
    }

    /// Runs a model's constructor over the headers alone and lists what does not fit, so that every error comes before the
    /// first weight is loaded; then looks for damage among the weights.
    pub fn check<T>(&self, build: impl FnOnce(Vars) -> candle_core::Result<T>) -> Result<()> {
        self.check_form()?;
        let faults = Arc::new(Mutex::new(vec![]));
        let asked = Arc::new(Mutex::new(vec![]));
        let checker = Checker { tensors: self.clone(), asked: asked.clone(), faults: faults.clone() };
        let built = build(Vars::new(checker, DType::F32, Device::Cpu));
        let faults = faults.lock().map(|f| f.clone()).unwrap_or_default();
        if faults.is_empty() {
            built.with_context(|| format!("{} cannot be read as a model", self.what))?;
            return self.check_numbers(&asked.lock().map(|names| names.clone()).unwrap_or_default());
        }
        if let Some((name, dtype)) = faults.iter().find_map(Fault::unread) {
            bail!("{} has weights of type {dtype} (`{name}`), which reel does not read\n  {}", self.what, forms::FIX)
        }
        const SHOWN: usize = 4;
        let more = faults.len().saturating_sub(SHOWN);
        let shown: Vec<String> = faults.iter().take(SHOWN).map(Fault::to_string).collect();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        bail!(
            "{} does not fit its configuration: {}{more}\n  fix: use weights and configuration of one checkpoint",
            self.what,
            shown.join("; ")
        )
    }

    /// Errors when they are quantised in a form that reel does not read.
    pub fn check_form(&self) -> Result<()> {
        match forms::unread(&self.entries) {
            Some((form, name)) => {
                bail!(
                    "{} is quantised in a form that reel does not read: {form} (`{name}`)\n  {}",
                    self.what,
                    forms::FIX
                )
            }
            None => Ok(()),
        }
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

/// In what a CPU multiplies by blocks, where matrices are to be kept in `stored`: in bf16, unless f32 was asked for. Rounding
/// what was read out of blocks to bf16 once more is little beside what was lost when they were made (relative error of
/// sums of 2048 products of normal values with Q8_0: 0.53 % in f32, 0.58 % in bf16; with Q4_K 7.18 % in either; with bf16 alone
/// 0.24 %).
fn blocks_in(stored: Option<DType>) -> MatmulType {
    if stored == Some(DType::F32) { MatmulType::F32 } else { MatmulType::Bf16 }
}

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
