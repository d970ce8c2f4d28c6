//! The local store of weights: the Hugging Face cache, shared with Python. A file that is there is used from there; one that is
//! not is pulled, checked against its SHA-256, and only then takes its name.
//!
//! The crate hf-hub names what lies where in the cache and at which address. Asking and fetching are ours: its 0.5 sends the
//! token on to the host that a redirect names (`Api::metadata`), adds a whole answer to what is there when a server does not
//! know ranges, checks no hash, and knows neither HF_TOKEN, HF_HUB_CACHE nor HF_HUB_OFFLINE. Its 1.0 brings an asynchronous
//! runtime and 200 crates more.

mod cache;
mod hub;
mod record;
pub mod settings;
mod transfer;

use crate::plan::free_disk;
use crate::progress::{Bytes, Progress, human_bytes};
use crate::weights::catalogue::{self, Entry, Remote, is_sha256};
use anyhow::{Context, Result, bail, ensure};
use cache::Folder;
pub use cache::Removed;
use hub::{Hub, Meta, Trouble};
use record::Record;
use settings::Settings;
use std::path::{Path, PathBuf};
use transfer::{Ended, Wanted, fetch, hash_file, pause};

/// Times that the hub may have another file than a moment ago.
const MOST_CHANGES: usize = 3;

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
    /// Begun and broken off.
    Partly {
        bytes: u64,
    },
    Absent,
}

/// What looking at a file's bytes showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hash is the one that `of` says.
    Whole {
        of: &'static str,
    },
    /// Nobody has said what the hash should be.
    Unknown {
        sha256: String,
    },
    Damaged {
        what: String,
    },
}

/// One file of a pull, asked about.
struct Item<'a> {
    entry: &'a Entry,
    remote: Remote<'a>,
    folder: Folder,
    meta: Meta,
    /// Bytes, where anyone tells.
    bytes: Option<u64>,
    /// What the finished file has to hash to.
    sha256: Option<String>,
    /// Bytes of it that are on the disk already.
    kept: u64,
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

    fn folder(&self, remote: &Remote) -> Folder {
        Folder::new(&self.settings.cache, remote, self.settings.links)
    }

    fn record(&self, entry: &Entry) -> Option<Record> {
        Record::read(&self.settings.data, entry)
    }

    /// The entry's file, where it is here. Asks nobody.
    pub fn find(&self, entry: &Entry) -> Option<PathBuf> {
        let (remote, record) = (entry.remote()?, self.record(entry));
        let known = record.as_ref().and_then(|r| r.sha256.as_deref()).or(entry.sha256.as_deref());
        self.folder(&remote).find(remote.file, record.as_ref().map(|r| r.commit.as_str()), known)
    }

    pub fn state(&self, entry: &Entry) -> State {
        let Some(remote) = entry.remote() else { return State::Absent };
        if let Some(path) = self.find(entry) {
            let bytes = path.metadata().map_or(0, |m| m.len());
            return State::Here { path, bytes };
        }
        let folder = self.folder(&remote);
        let begun =
            self.etags(entry).iter().filter_map(|etag| folder.partial(etag).metadata().ok()).map(|m| m.len()).max();
        begun.map_or(State::Absent, |bytes| State::Partly { bytes })
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

    /// Fetches what is not here, having said what it is, how large, under which licence and where it goes.
    /// - `accept_hash`: goes on where the hub's own answer is not what the catalogue says.
    pub fn pull(&self, entries: &[&Entry], accept_hash: bool, progress: &Progress) -> Result<()> {
        let mut missing = vec![];
        for entry in entries {
            match (entry.remote(), self.find(entry)) {
                (None, _) => progress.note(&format!("`{}` is part of the program", entry.name)),
                (_, Some(path)) => progress.note(&format!("`{}` is here: {}", entry.name, path.display())),
                (Some(remote), None) => missing.push((*entry, remote)),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = missing.iter().map(|(entry, _)| format!("`{}`", entry.name)).collect();
        ensure!(
            !self.settings.offline,
            "{} {} not here, and HF_HUB_OFFLINE says not to fetch\n  fix: unset HF_HUB_OFFLINE, or copy the file into `{}` as Python's cache has it",
            names.join(" and "),
            if names.len() == 1 { "is" } else { "are" },
            self.settings.cache.display()
        );
        let hub = Hub::new(&self.settings)?;
        let items: Vec<Item> = missing
            .into_iter()
            .map(|(entry, remote)| self.ask(&hub, entry, remote, accept_hash, progress))
            .collect::<Result<_>>()?;
        self.say(&items, progress);
        self.check_disk(&items)?;
        let mut stage = progress.bytes("pull", items.iter().map(|item| item.bytes.unwrap_or(0)).sum());
        let done = items.into_iter().try_for_each(|item| self.fetch(&hub, item, accept_hash, progress, &mut stage));
        stage.finish();
        done
    }

    /// Asks the hub what a file is, and holds the answer against the catalogue's.
    fn ask<'a>(
        &self,
        hub: &Hub,
        entry: &'a Entry,
        remote: Remote<'a>,
        accept_hash: bool,
        progress: &Progress,
    ) -> Result<Item<'a>> {
        let mut failed = 0;
        let meta = loop {
            match hub.meta(&remote) {
                Ok(meta) => break meta,
                Err(Trouble::Again(why, rest)) => {
                    let Some(wait) = self.settings.waits.get(failed) else {
                        bail!(
                            "cannot ask for `{}`: {why}, {} times over\n  fix: try again later",
                            entry.name,
                            failed + 1
                        )
                    };
                    failed += 1;
                    pause(&why, rest.unwrap_or(*wait), |text| progress.note(text));
                }
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Changed) => {
                    bail!("`{}` changes while it is asked about\n  fix: try again later", entry.name)
                }
            }
        };
        let said = |hash: Option<&str>, bytes: Option<u64>| {
            let bytes = bytes.map(|bytes| format!("{bytes} bytes"));
            let parts: Vec<String> = hash.map(|hash| format!("SHA-256 {hash}")).into_iter().chain(bytes).collect();
            parts.join(", ")
        };
        let other_hash = entry.sha256.as_deref().zip(meta.sha256()).is_some_and(|(ours, hubs)| ours != hubs);
        // where the hashes agree it is the same file, whatever the catalogue says of its length
        let same = entry.sha256.is_some() && entry.sha256.as_deref() == meta.sha256();
        let other_size = !same && entry.bytes.zip(meta.bytes).is_some_and(|(ours, hubs)| ours != hubs);
        if other_hash || other_size {
            let text = format!(
                "`{}`: the catalogue knows {}, and the hub has {}",
                entry.name,
                said(entry.sha256.as_deref().filter(|_| other_hash), entry.bytes),
                said(meta.sha256(), meta.bytes)
            );
            ensure!(
                accept_hash,
                "{text}\n  fix: if the publisher replaced the file, `reel models pull {} --accept-hash` takes the hub's word; else do not use it",
                entry.name
            );
            progress.note(&format!("{text}; taken by the hub's word"));
        }
        let folder = self.folder(&remote);
        let kept = folder.partial(&meta.etag).metadata().map_or(0, |m| m.len());
        let bytes = meta.bytes.or(entry.bytes.filter(|_| !other_hash));
        let sha256 = meta.sha256().map(str::to_string).or_else(|| entry.sha256.clone());
        Ok(Item { entry, remote, folder, meta, bytes, sha256, kept })
    }

    /// Size, licence and place, before the first byte.
    fn say(&self, items: &[Item], progress: &Progress) {
        for item in items {
            let size = item.bytes.map_or("size unknown".to_string(), human_bytes);
            let kept = if item.kept > 0 { format!(", {} of it here", human_bytes(item.kept)) } else { String::new() };
            let text = item.entry.licence_file.as_ref();
            let at = text.map(|file| format!(" ({}/{}/blob/main/{file})", self.settings.endpoint, item.remote.repo));
            progress.note(&format!(
                "{}: {} from {}, {size}{kept}; licence: {}{}",
                item.entry.name,
                item.remote.file,
                item.remote.repo,
                item.entry.licence,
                at.unwrap_or_default()
            ));
        }
        let rest: u64 = items.iter().map(Item::rest).sum();
        progress.note(&format!("to fetch: {}, into {}", human_bytes(rest), self.settings.cache.display()));
    }

    fn check_disk(&self, items: &[Item]) -> Result<()> {
        let need: u64 = items.iter().map(Item::rest).fold(0, u64::saturating_add);
        let free = free_disk(&self.settings.cache).unwrap_or(u64::MAX);
        ensure!(
            need <= free,
            "{} are needed in `{}`, and {} are free there\n  fix: make room (`reel models list` shows what is here), or set HF_HOME to another disk",
            human_bytes(need),
            self.settings.cache.display(),
            human_bytes(free)
        );
        Ok(())
    }

    fn fetch(
        &self,
        hub: &Hub,
        mut item: Item,
        accept_hash: bool,
        progress: &Progress,
        stage: &mut Bytes,
    ) -> Result<()> {
        for _ in 0..MOST_CHANGES {
            item.folder.prepare()?;
            let etag = item.meta.etag.clone();
            let name = &item.entry.name;
            let _lock = item.folder.lock(&etag, || {
                stage.note(&format!("`{name}` is being pulled by another process: waiting for it"));
            })?;
            // written first, so that what is broken off is known to be this entry's
            let mut record = item.record();
            record.write(&self.settings.data, name)?;
            let blob = item.folder.blob(&etag);
            let fresh = !blob.exists();
            if fresh {
                let wanted =
                    Wanted { remote: item.remote, meta: &item.meta, bytes: item.bytes, sha256: item.sha256.as_deref() };
                let partial = item.folder.partial(&etag);
                match fetch(hub, &wanted, &partial, &self.settings.waits, stage) {
                    Ok(done) => {
                        record.sha256.get_or_insert(done.sha256);
                        record.bytes.get_or_insert(done.bytes);
                    }
                    Err(ended) => {
                        if partial.metadata().is_ok_and(|m| m.len() == 0) {
                            let _ = std::fs::remove_file(&partial); // nothing to go on from
                        }
                        match ended {
                            Ended::Failed(error) => return Err(error),
                            Ended::Changed => {
                                stage.note(&format!("`{name}` has changed on the hub meanwhile"));
                                item = self.ask(hub, item.entry, item.remote, accept_hash, progress)?;
                                continue;
                            }
                        }
                    }
                }
                std::fs::rename(&partial, &blob).with_context(|| format!("cannot write `{}`", blob.display()))?;
            } else {
                stage.here(item.bytes.unwrap_or(0));
            }
            let path = item.folder.link(item.remote.file, &item.meta.commit, &etag, fresh)?;
            record.write(&self.settings.data, name)?;
            stage.note(&format!("`{name}` is here: {}", path.display()));
            return Ok(());
        }
        bail!("`{}` keeps changing on the hub\n  fix: try again later", item.entry.name)
    }

    /// Reads a file that is here, and holds its hash against what the hub said of it, or else the catalogue.
    /// - `read`: bytes as they are read. Errors when the file is not here, or cannot be read.
    pub fn verify(&self, entry: &Entry, read: impl FnMut(u64)) -> Result<Verdict> {
        let remote = entry.remote().context("a model in the program has no file")?;
        let path = self.find(entry).with_context(|| not_here(entry))?;
        let record = self.record(entry);
        let folder = self.folder(&remote);
        let etag = folder.etag_of(&path).filter(|etag| is_sha256(etag));
        let recorded = record.as_ref().and_then(|record| record.sha256.clone());
        let known = [(etag, "the hub"), (recorded, "the hub at the download"), (entry.sha256.clone(), "the catalogue")];
        let known = known.into_iter().find_map(|(hash, of)| Some((hash?, of)));
        let bytes = path.metadata().with_context(|| format!("cannot read `{}`", path.display()))?.len();
        let right = record.as_ref().and_then(|record| record.bytes);
        if let Some(right) = right.filter(|right| *right != bytes) {
            return Ok(Verdict::Damaged {
                what: format!("{} has {bytes} bytes, and {right} are right", path.display()),
            });
        }
        let (sha256, _) = hash_file(&path, read)?;
        Ok(match known {
            Some((right, of)) if right == sha256 => Verdict::Whole { of },
            Some((right, of)) => {
                Verdict::Damaged { what: format!("{} has SHA-256 {sha256}, and {of} says {right}", path.display()) }
            }
            None => Verdict::Unknown { sha256 },
        })
    }

    /// Takes a file out of the cache, with what a broken-off download left of it.
    pub fn remove(&self, entry: &Entry) -> Result<Removed> {
        let remote =
            entry.remote().with_context(|| format!("`{}` is part of the program, and has no file", entry.name))?;
        let folder = self.folder(&remote);
        let etags = self.etags(entry);
        for etag in &etags {
            ensure!(
                !folder.is_locked(etag),
                "`{}` is being pulled by another process\n  fix: stop that one first",
                entry.name
            );
        }
        let removed = folder.remove(remote.file, &etags)?;
        Record::forget(&self.settings.data, &entry.name);
        Ok(removed)
    }
}

impl Item<'_> {
    /// Bytes that are still to come.
    fn rest(&self) -> u64 {
        if self.folder.blob(&self.meta.etag).exists() {
            return 0;
        }
        self.bytes.unwrap_or(0).saturating_sub(self.kept)
    }

    fn record(&self) -> Record {
        let Remote { repo, revision, file } = self.remote;
        Record {
            repo: repo.to_string(),
            revision: revision.to_string(),
            file: file.to_string(),
            commit: self.meta.commit.clone(),
            etag: self.meta.etag.clone(),
            bytes: self.bytes,
            sha256: self.sha256.clone(),
        }
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
