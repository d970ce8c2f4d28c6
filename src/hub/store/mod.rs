//! The local store of weights: the Hugging Face cache, shared with Python. A file that is there is used from there; one that is
//! not is pulled, checked against its SHA-256, and only then takes its name.
//!
//! The crate hf-hub names what lies where in the cache and at which address. Asking and fetching are ours: its 0.5 sends the
//! token on to the host that a redirect names (`Api::metadata`), adds a whole answer to what is there when a server does not
//! know ranges, checks no hash, and knows neither HF_TOKEN, HF_HUB_CACHE nor HF_HUB_OFFLINE. Its 1.0 brings an asynchronous
//! runtime and 200 crates more.

mod cache;
mod check;
mod hub;
mod pull;
mod record;
pub mod settings;
mod transfer;

use crate::hub::catalogue::{self, Entry, Remote, is_sha256};
use crate::platform::cancel::Cancelled;
use anyhow::{Context, Result, bail};
use cache::Folder;
pub use cache::Removed;
use check::{Length, fault};
pub use pull::size_of;
use record::Record;
use settings::Settings;
use std::path::{Path, PathBuf};
use transfer::{hash_file, hash_of_git, is_git_hash};

pub struct Store {
    settings: Settings,
}

/// How much of a file is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Here {
        path: PathBuf,
        bytes: u64,
    },
    /// Something is there that cannot be the file.
    Damaged {
        bytes: u64,
        /// The path first.
        what: String,
    },
    /// Begun and broken off.
    Partly {
        bytes: u64,
    },
    Absent,
}

/// What the cache has of an entry's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub state: State,
    /// What on the way to it is not as it should be, and does no harm; a line each.
    pub remarks: Vec<String>,
}

/// What looking at a file's bytes showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hash is the one that `of` says.
    Whole { of: &'static str },
    /// Git's hash is the one that the hub says; it has no other of small files.
    WholeByGit,
    /// The hash is the one that the download had; nobody else has said what it should be.
    Own { sha256: String },
    /// Nobody has said what the hash should be.
    Unknown { sha256: String },
    Damaged {
        what: String,
        /// Both hashes in full, where hashes differ.
        hashes: Option<String>,
    },
}

impl Store {
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    pub fn from_env() -> Result<Self> {
        Settings::from_env().map(Self::new)
    }

    /// Where pulled files go.
    pub fn cache(&self) -> &Path {
        &self.settings.cache
    }

    /// Where the hub has an entry's file: an address for any browser.
    pub fn address(&self, entry: &Entry) -> Option<String> {
        // what the catalogue knows is at the hub itself, whatever mirror is set
        let endpoint = if entry.own { self.settings.shown_endpoint() } else { settings::HUB.to_string() };
        Some(hub::address(&endpoint, &entry.remote()?))
    }

    /// Where the text of an entry's licence is.
    pub fn licence_address(&self, entry: &Entry) -> Option<String> {
        let (repo, file) = (entry.repo.as_ref()?, entry.licence_file.as_ref()?);
        Some(format!("{}/{repo}/blob/main/{file}", self.settings.shown_endpoint()))
    }

    fn folder(&self, remote: &Remote) -> Folder {
        Folder::new(&self.settings.cache, remote, self.settings.links)
    }

    fn record(&self, entry: &Entry) -> Option<Record> {
        Record::read(&self.settings.data, entry).ok().flatten()
    }

    /// What is here of an entry's file: the first of the places where it may be that has nothing wrong with it. Asks nobody.
    pub fn look(&self, entry: &Entry) -> Found {
        let mut remarks = vec![];
        let Some(remote) = entry.remote() else { return Found { state: State::Absent, remarks } };
        let folder = self.folder(&remote);
        let record = Record::read(&self.settings.data, entry).unwrap_or_else(|what| {
            remarks.push(what);
            None
        });
        remarks.extend(folder.commit().err());
        let known = record.as_ref().and_then(|r| r.sha256.as_deref()).or(entry.sha256.as_deref());
        let commit = record.as_ref().map(|r| r.commit.as_str());
        let mut damaged = None;
        for path in folder.pointers(remote.file, commit, known) {
            if !path.exists() && folder.etag_of(&path).is_some() {
                continue; // its blob was removed
            }
            let etag = folder.etag_of(&path);
            let length = length(entry, of_this(record.as_ref(), &folder, &path, etag.as_deref()), etag.as_deref());
            if let Some(place) = folder.outside(&path) {
                remarks.push(format!("`{}` leads out of the cache, to `{}`", path.display(), place.display()));
            }
            let bytes = path.metadata().map_or(0, |at| at.len());
            match fault(&path, remote.file, length) {
                None => return Found { state: State::Here { path, bytes }, remarks },
                Some(what) => damaged = damaged.or(Some(State::Damaged { bytes, what })),
            }
        }
        let begun = || {
            let partial = self.etags(entry).into_iter().map(|etag| folder.partial(&etag));
            partial.filter_map(|path| path.metadata().ok()).map(|at| at.len()).max()
        };
        let state = damaged.unwrap_or_else(|| begun().map_or(State::Absent, |bytes| State::Partly { bytes }));
        Found { state, remarks }
    }

    /// The entry's file, where it is here with nothing wrong with it. Asks nobody.
    pub fn find(&self, entry: &Entry) -> Option<PathBuf> {
        match self.look(entry).state {
            State::Here { path, .. } => Some(path),
            _ => None,
        }
    }

    /// As [`Store::find`].
    /// - Errors when something is there that cannot be the file.
    pub fn sound(&self, entry: &Entry) -> Result<Option<PathBuf>> {
        match self.look(entry).state {
            State::Here { path, .. } => Ok(Some(path)),
            State::Damaged { .. } => bail!(self.lack(entry)),
            State::Partly { .. } | State::Absent => Ok(None),
        }
    }

    pub fn state(&self, entry: &Entry) -> State {
        self.look(entry).state
    }

    /// What to say of a file that is not here, or not as it should be.
    pub fn lack(&self, entry: &Entry) -> String {
        match self.state(entry) {
            State::Damaged { what, .. } => {
                format!("`{0}` is damaged: {what}\n  fix: `reel models pull {0}` fetches it anew", entry.name)
            }
            _ => not_here(entry),
        }
    }

    /// Blobs that are known to be the entry's.
    fn etags(&self, entry: &Entry) -> Vec<String> {
        self.record(entry).map(|record| record.etag).into_iter().chain(entry.sha256.clone()).collect()
    }

    /// The files that `model` is run with, itself first: each with where it is, if it is here.
    /// - `text_encoder`: one to take in place of the model's own. Without it, a variant that is here does for one that is not.
    pub fn parts<'e>(&self, model: &'e Entry, text_encoder: Option<&'e Entry>) -> Vec<(&'e Entry, Option<PathBuf>)> {
        let named = |name: &'e Option<String>| name.as_deref().and_then(catalogue::named);
        let encoder = text_encoder.or_else(|| {
            let variants = catalogue::text_encoders(model);
            variants.iter().find(|e| self.find(e).is_some()).or(variants.first()).copied()
        });
        let parts = [Some(model), encoder, named(&model.tokenizer), named(&model.upscaler)];
        parts.into_iter().flatten().map(|entry| (entry, self.find(entry))).collect()
    }

    /// Reads a file that is here, and holds its hash against what the hub said of it, or else the catalogue, or else the download.
    /// - `read`: bytes as they are read; an error of it ends the work. Errors when nothing of the file is here, or it cannot be read.
    pub fn verify(&self, entry: &Entry, read: impl FnMut(u64) -> Result<(), Cancelled>) -> Result<Verdict> {
        let remote = entry.remote().context("a model in the program has no file")?;
        let path = match self.state(entry) {
            State::Here { path, .. } => path,
            State::Damaged { what, .. } => return Ok(Verdict::Damaged { what, hashes: None }),
            _ => bail!(not_here(entry)),
        };
        let folder = self.folder(&remote);
        let record = self.record(entry);
        let etag = folder.etag_of(&path);
        let record = of_this(record.as_ref(), &folder, &path, etag.as_deref());
        let recorded = |hash: &dyn Fn(&Record) -> Option<String>| record.and_then(hash);
        let by_name = etag.clone().filter(|etag| is_sha256(etag));
        let at_download = recorded(&|record| record.sha256.clone().filter(|hash| *hash == record.etag));
        let known =
            [(by_name, "the hub"), (at_download, "the hub at the download"), (entry.sha256.clone(), "the catalogue")];
        let (sha256, _) = hash_file(&path, read)?;
        if let Some((right, of)) = known.into_iter().find_map(|(hash, of)| Some((hash?, of))) {
            return Ok(match right == sha256 {
                true => Verdict::Whole { of },
                false => damaged(&path, "SHA-256", &sha256, &right, of),
            });
        }
        // of small files the hub gives git's hash
        if let Some(right) = etag.or(recorded(&|record| Some(record.etag.clone()))).filter(|etag| is_git_hash(etag)) {
            let git = hash_of_git(&path)?;
            return Ok(match git == right {
                true => Verdict::WholeByGit,
                false => damaged(&path, "git's hash", &git, &right, "the hub"),
            });
        }
        Ok(match recorded(&|record| record.own_sha256.clone()) {
            Some(own) if own == sha256 => Verdict::Own { sha256 },
            Some(own) => damaged(&path, "SHA-256", &sha256, &own, "the download"),
            None => Verdict::Unknown { sha256 },
        })
    }

    /// Takes a file out of the cache, with what a broken-off download left of it.
    pub fn remove(&self, entry: &Entry) -> Result<Removed> {
        let remote =
            entry.remote().with_context(|| format!("`{}` is part of the program, and has no file", entry.name))?;
        let removed = self.folder(&remote).remove(remote.file, &self.etags(entry))?;
        Record::forget(&self.settings.data, &entry.name);
        Ok(removed)
    }
}

/// The record, if it is of the very file that is at `path`: not of another commit's.
/// - `etag`: of that file, where its name tells.
fn of_this<'r>(record: Option<&'r Record>, folder: &Folder, path: &Path, etag: Option<&str>) -> Option<&'r Record> {
    record.filter(|record| match etag {
        Some(etag) => etag == record.etag,
        None => path == folder.pointer(&record.commit, &record.file),
    })
}

/// How long an entry's file has to be.
/// - `record`: of that very file. `etag`: of the file that is there, where its name tells.
fn length(entry: &Entry, record: Option<&Record>, etag: Option<&str>) -> Length {
    let recorded = record.and_then(|record| record.bytes);
    let another = etag.is_some_and(|etag| is_sha256(etag) && entry.sha256.as_deref().is_some_and(|ours| ours != etag));
    match (recorded, entry.bytes) {
        (Some(bytes), _) => Length::Recorded(bytes),
        (None, Some(bytes)) if !another => Length::Catalogued(bytes),
        _ => Length::Unknown,
    }
}

fn damaged(path: &Path, kind: &str, found: &str, right: &str, of: &str) -> Verdict {
    let path = path.display();
    Verdict::Damaged {
        what: format!("`{path}` has {kind} {}, and {of} says {}", short(found), short(right)),
        hashes: Some(format!("`{path}`: {kind} {found}; {of} says {right}")),
    }
}

/// The beginning of a hash, which is enough to tell two apart.
pub fn short(hash: &str) -> String {
    match hash.get(..12) {
        Some(first) if hash.len() > 16 => format!("{first}…"),
        _ => hash.to_string(),
    }
}

/// What to say of a file that is not here.
pub fn not_here(entry: &Entry) -> String {
    format!(
        "`{}` is not here ({}, licence: {})\n  fix: `reel models pull {}`",
        entry.name,
        entry.size_text(),
        entry.licence,
        entry.name
    )
}
