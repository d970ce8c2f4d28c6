//! Quantised copies: as a GGUF file of the user's own, in a folder for later runs (`--quantize-cache`), or in a file that is gone
//! with the program.

use super::entry::{Entry, Type};
use super::gguf::{self, Part};
use super::open::{Cache, Tensors};
use super::quantize::blocks;
use super::rules::GgufForm;
use super::scaled;
use crate::platform::cancel::Cancelled;
use crate::platform::files::{self, AtomicFile};
use crate::platform::machine::free_disk;
use crate::platform::progress::human_bytes;
use anyhow::{Context, Result, anyhow, ensure};
use safetensors::tensor::Dtype;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// Of how blocks are made; another one makes them anew.
const VERSION: u32 = 2;

impl Tensors {
    /// Writes all of them to a GGUF file, the large matrices as blocks; the caller commits it.
    /// - `after`: called after each tensor, of which there are [`Tensors::names`]; an error of it ends the work.
    pub fn write_gguf(
        &self,
        file: &AtomicFile,
        form: &GgufForm,
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
    pub fn with_cache(mut self, folder: &Path, form: GgufForm) -> Result<Self> {
        self.cache = Some(Cache { folder: folder.to_path_buf(), form, keep: true });
        match self.cached_file() {
            Some(file) if file.is_file() => self.taken_from(&file),
            Some(file) => check_place(folder, &file, self.written_bytes()).map(|()| self),
            None => Ok(self),
        }
    }

    /// The same tensors from a file, where they are to be kept in one: of the cache, or (`scratch`) one that is gone when they are,
    /// for layers that come and go and would be quantised anew whenever they come.
    /// - `begin`: called with the number of tensors before they are made; what it returns is called after each, and an error of it
    ///   ends the work.
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
    pub fn with_scratch(mut self, folder: &Path, form: GgufForm) -> Self {
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

    /// The bytes that all take in a file, the large matrices as blocks.
    fn written_bytes(&self) -> u64 {
        let bytes = |(name, entry): (&String, &Entry)| match self.becomes(name, entry) {
            Some(kind) => kind.size(entry.shape.iter().product()),
            None => entry.raw().bytes.len(),
        };
        self.entries.iter().map(bytes).sum::<usize>() as u64
    }
}

/// The type that a tensor that becomes no blocks is written in: as it is, but for fp8, which GGUF does not have and bf16 holds.
fn written_type(entry: &Entry) -> Type {
    match scaled::read_type(entry) {
        Type::Plain(Dtype::F8_E4M3) => Type::Plain(Dtype::BF16),
        other => other,
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
