//! Weight files -> tensors by name. Files are mapped, never read whole: a tensor is copied to its device when a layer asks
//! for it, and its pages can go again.

use crate::nn::kernel::Math;
use crate::nn::matrix::{Mapped, usable};
use crate::nn::vars::{Source, Vars};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

enum Bytes {
    Mapped(memmap2::Mmap),
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
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            // SAFETY: the map is of a file and never written, so its pages come back as they were.
            let advice =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.0, range.1 - range.0) };
            let _ = advice; // it is only advice
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[derive(Clone)]
struct Entry {
    file: Arc<Bytes>,
    dtype: Dtype,
    shape: Vec<usize>,
    range: (usize, usize),
}

/// A tensor as it lies in its file: little-endian, row-major.
pub struct Raw<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl Entry {
    fn raw(&self) -> Raw<'_> {
        Raw { dtype: self.dtype, shape: &self.shape, bytes: &self.file[self.range.0..self.range.1] }
    }
}

/// Tensors by name, from one or several safetensors files. Cheap to clone.
#[derive(Clone)]
pub struct Tensors {
    what: String,
    entries: Arc<BTreeMap<String, Entry>>,
    metadata: Arc<HashMap<String, String>>,
}

impl Tensors {
    /// Maps safetensors files and reads their headers; all of a shard set at once.
    /// - Errors when a file is missing, truncated or not safetensors.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let what = paths.first().map(|p| format!("`{}`", p.display())).unwrap_or_default();
        let mut all = Self { what, entries: Arc::default(), metadata: Arc::default() };
        for path in paths {
            // a pipe would be waited for without end
            let plain = std::fs::metadata(path).is_ok_and(|m| m.is_file());
            ensure!(
                plain || !path.exists(),
                "`{}` is no file that can be mapped\n  fix: copy it to a plain file",
                path.display()
            );
            let file = File::open(path).with_context(|| format!("cannot read weights `{}`", path.display()))?;
            // SAFETY: the map is only read. A file that shrinks while it is mapped ends the program (SIGBUS), which no
            // library can prevent; replacing a file by renaming, as downloads do, leaves the map intact.
            let map = unsafe { memmap2::Mmap::map(&file) }
                .with_context(|| format!("cannot map weights `{}`", path.display()))?;
            all.add(Bytes::Mapped(map), &format!("`{}`", path.display()))?;
        }
        Ok(all)
    }

    /// The tensors of a file that is part of the program.
    pub fn embedded(bytes: &'static [u8], what: &str) -> Result<Self> {
        let mut all = Self { what: what.to_string(), entries: Arc::default(), metadata: Arc::default() };
        all.add(Bytes::Embedded(bytes), what)?;
        Ok(all)
    }

    fn add(&mut self, bytes: Bytes, what: &str) -> Result<()> {
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            anyhow::anyhow!(
                "{what} is not a whole safetensors file ({e}; {} bytes)\n  fix: fetch it again and compare its size and SHA-256",
                bytes.len()
            )
        })?;
        let start = header + 8; // the header's length stands before it
        let file = Arc::new(bytes);
        let entries = Arc::make_mut(&mut self.entries);
        for (name, info) in metadata.tensors() {
            let range = (start + info.data_offsets.0, start + info.data_offsets.1);
            let entry = Entry { file: file.clone(), dtype: info.dtype, shape: info.shape.clone(), range };
            ensure!(
                entries.insert(name.clone(), entry).is_none(),
                "{what}: the tensor `{name}` is in two files of the set"
            );
        }
        if let Some(own) = metadata.metadata() {
            Arc::make_mut(&mut self.metadata).extend(own.clone());
        }
        Ok(())
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
        Self { what: self.what.clone(), entries: Arc::new(entries), metadata: self.metadata.clone() }
    }

    /// Tensors for a model's constructor.
    /// - `stored`: element type that matrices are kept in; `None` keeps the file's, or `compute` where the model is small,
    ///   which saves widening them at each use and changes no number. Vectors and scalars always take `compute`.
    pub fn load(&self, stored: Option<DType>, compute: DType, device: &Device) -> Vars {
        let stored = stored.or((self.elements() <= SMALL).then_some(compute));
        let reader = Reader { tensors: self.clone(), stored };
        Vars::new(reader, compute, device.clone())
    }

    /// In what a CPU multiplies them, kept as [`Tensors::load`] keeps them.
    pub fn math(&self, stored: Option<DType>) -> Math {
        let half = self.entries.values().filter(|e| e.dtype == Dtype::BF16).map(|e| e.range.1 - e.range.0);
        let mostly_half = half.sum::<usize>() * 2 > self.size() && self.elements() > SMALL;
        match stored {
            Some(DType::BF16) => Math::Bf16,
            None if mostly_half => Math::Bf16,
            _ => Math::F32,
        }
    }

    /// Runs a model's constructor over the headers alone and lists what does not fit, so that every error comes before the
    /// first weight is loaded.
    pub fn check<T>(&self, build: impl FnOnce(Vars) -> candle_core::Result<T>) -> Result<()> {
        let faults = Arc::new(Mutex::new(vec![]));
        let checker = Checker { tensors: self.clone(), faults: faults.clone() };
        let built = build(Vars::new(checker, DType::F32, Device::Cpu));
        let faults = faults.lock().map(|f| f.clone()).unwrap_or_default();
        if faults.is_empty() {
            return built.map(|_| ()).with_context(|| format!("{} cannot be read as a model", self.what));
        }
        const SHOWN: usize = 4;
        let more = faults.len().saturating_sub(SHOWN);
        let shown = faults[..faults.len().min(SHOWN)].join("; ");
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        bail!(
            "{} does not fit its configuration: {shown}{more}\n  fix: use weights and configuration of one checkpoint",
            self.what
        )
    }
}

/// Elements that may as well be widened: 1 GiB in f32.
const SMALL: usize = 1 << 28;

fn candle_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F8_E4M3 => DType::F8E4M3,
        _ => return None,
    })
}

struct Reader {
    tensors: Tensors,
    stored: Option<DType>,
}

impl Reader {
    /// The type that a tensor is kept in.
    fn kept(&self, shape: &[usize], own: DType, dtype: DType) -> DType {
        if shape.len() < 2 { dtype } else { self.stored.unwrap_or(own) }
    }
}

impl Source for Reader {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some(entry) = self.tensors.entries.get(name) else {
            candle_core::bail!("{}: there is no tensor `{name}`", self.tensors.what)
        };
        let Raw { dtype: stored, shape: own_shape, bytes } = entry.raw();
        let Some(own) = candle_dtype(stored) else {
            candle_core::bail!("{}: `{name}` has element type {stored:?}", self.tensors.what)
        };
        if own_shape != shape.dims() {
            candle_core::bail!("{}: `{name}` has shape {own_shape:?}, expected {shape:?}", self.tensors.what)
        }
        let tensor = Tensor::from_raw_buffer(bytes, own, own_shape, device)?;
        entry.file.forget(entry.range);
        tensor.to_dtype(self.kept(own_shape, own, dtype))
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.entries.contains_key(name)
    }

    fn mapped(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> Option<Arc<dyn Mapped>> {
        let entry = self.tensors.entries.get(name)?;
        let own = candle_dtype(entry.dtype)?;
        let as_it_is = self.kept(&entry.shape, own, dtype) == own && entry.shape == shape.dims();
        (device.is_cpu() && as_it_is && usable(entry.raw().bytes, own))
            .then(|| Arc::new(InPlace { entry: entry.clone(), dtype: own }) as Arc<dyn Mapped>)
    }
}

/// A tensor that is used where it lies; its pages may go when nobody uses it any more.
struct InPlace {
    entry: Entry,
    dtype: DType,
}

impl Mapped for InPlace {
    fn bytes(&self) -> &[u8] {
        self.entry.raw().bytes
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.entry.file.forget(self.entry.range);
    }
}

/// With so many faults the rest need not be looked at.
const MOST_FAULTS: usize = 100;

struct Checker {
    tensors: Tensors,
    faults: Arc<Mutex<Vec<String>>>,
}

impl Source for Checker {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let fault = match self.tensors.entries.get(name) {
            None => Some(format!("the tensor `{name}` is missing")),
            Some(e) if e.shape != shape.dims() => {
                Some(format!("`{name}` has shape {:?}, expected {:?}", e.shape, shape.dims()))
            }
            Some(e) if candle_dtype(e.dtype).is_none() => Some(format!("`{name}` has element type {:?}", e.dtype)),
            Some(_) => None,
        };
        if let (Some(fault), Ok(mut faults)) = (fault, self.faults.lock()) {
            faults.push(fault);
            if faults.len() == MOST_FAULTS {
                candle_core::bail!("it is another model")
            }
        }
        // a stand-in: the right shape over one element
        Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.entries.contains_key(name)
    }
}

/// The safetensors files of one part of a diffusers directory: a shard set by its index, or the one file.
/// - `dir`: such as `transformer/`. Errors when there is none, or several without an index.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read the directory `{}`", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
        .collect();
    // shortest first: variants such as `….fp16.safetensors` are longer than the plain file beside them
    names.sort_by_key(|name| (name.len(), name.clone()));
    if let Some(index) = names.iter().find(|name| name.ends_with(".index.json")) {
        let path = dir.join(index);
        let json = crate::weights::read_json(&path)?;
        let map = json["weight_map"].as_object().filter(|map| !map.is_empty());
        let map = map.with_context(|| {
            format!("`{}` has no `weight_map` with files\n  fix: fetch the checkpoint again", path.display())
        })?;
        let mut files: Vec<&str> = map.values().filter_map(|v| v.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        for file in &files {
            ensure!(
                dir.join(file).is_file(),
                "the shard `{}` named in `{index}` is missing\n  fix: fetch the checkpoint again",
                dir.join(file).display()
            );
        }
        return Ok(files.into_iter().map(|file| dir.join(file)).collect());
    }
    match names.as_slice() {
        [] => bail!(
            "there are no .safetensors weights in `{}`\n  fix: put the checkpoint's weights there, as .safetensors",
            dir.display()
        ),
        [first, rest @ ..] => {
            let stem = first.trim_end_matches(".safetensors");
            ensure!(
                rest.iter().all(|name| name.starts_with(stem)),
                "there are several .safetensors files in `{}` and no index that says how they belong together: {}\n  fix: leave one, or add the set's index",
                dir.display(),
                names.join(", ")
            );
            Ok(vec![dir.join(first)])
        }
    }
}
