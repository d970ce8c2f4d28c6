//! Pulling: what is missing is said with its size and licence, the hub is asked, and files are fetched, checked and given their names.

use crate::hub::catalogue::{Entry, Kind, Remote};
use crate::hub::store::cache::Folder;
use crate::hub::store::hub::{self, FetchError, Hub, Meta};
use crate::hub::store::record::Record;
use crate::hub::store::settings::HUB;
use crate::hub::store::transfer::{Ended, Wanted, fetch, hash_file, hash_of_git, is_git_hash, pause};
use crate::hub::store::{State, Store, short};
use crate::platform::cancel::Cancelled;
use crate::platform::fault::{Fault, Mark};
use crate::platform::machine::free_disk;
use crate::platform::progress::{Bytes, Progress, human_bytes};
use crate::platform::signals::Remains;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::Path;

/// Times that the hub may have another file than a moment ago.
const MOST_CHANGES: usize = 3;
/// Times that a hub is asked that cannot be reached at all.
const MOST_CALLS: usize = 2;

/// A file that is not here.
type Missing<'a> = (&'a Entry, Remote<'a>);

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
    /// Fetches what is not here, having said what it is, how large, under which licence and where it goes.
    /// - `accept_hash`: goes on where the hub's own answer is not what the catalogue says.
    /// - Errors are the machine's, whatever they are: no flag mends a network, a hub, or what the environment says of them.
    pub fn pull(&self, entries: &[&Entry], accept_hash: bool, progress: &Progress) -> Result<()> {
        self.pull_missing(entries, accept_hash, progress).fault(Fault::Machine)
    }

    fn pull_missing(&self, entries: &[&Entry], accept_hash: bool, progress: &Progress) -> Result<()> {
        let mut missing: Vec<Missing> = vec![];
        for entry in entries {
            let Some(remote) = entry.remote() else {
                progress.note(&format!("`{}` is part of the program", entry.name));
                continue;
            };
            let found = self.look(entry);
            found.remarks.iter().for_each(|remark| progress.note(remark));
            match found.state {
                State::Here { path, .. } => progress.note(&format!("`{}` is here: {}", entry.name, path.display())),
                State::Damaged { what, .. } => {
                    progress.note(&format!("`{}` is damaged ({what}): it is fetched anew", entry.name));
                    missing.push((entry, remote));
                }
                State::Partly { .. } | State::Absent => missing.push((entry, remote)),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.announce(&missing, progress);
        if self.settings.offline {
            let what = format!("{}, and HF_HUB_OFFLINE says not to fetch", not_here(&missing));
            bail!(self.elsewhere(&what, "unset HF_HUB_OFFLINE", &missing));
        }
        let hub = Hub::new(&self.settings)?;
        let items: Vec<Item> =
            missing.iter().map(|one| self.ask(&hub, *one, &missing, accept_hash, progress)).collect::<Result<_>>()?;
        self.log(&items, progress);
        self.check_disk(&items)?;
        let _remains = Remains::set("what has come is kept, and the same command continues from there");
        let mut stage = progress.bytes("pull", items.iter().map(|item| item.bytes.unwrap_or(0)).sum());
        let done = items.into_iter().try_for_each(|item| self.fetch(&hub, item, accept_hash, progress, &mut stage));
        if !done.as_ref().is_err_and(Cancelled::caused) {
            stage.finish(); // else nothing more is said of it
        }
        done
    }

    /// Says what is missing, how large it is as far as the catalogue knows, and under which licence: before anyone is asked.
    fn announce(&self, missing: &[Missing], progress: &Progress) {
        for (entry, remote) in missing {
            let at = self.licence_address(entry).map(|address| format!(" ({address})")).unwrap_or_default();
            progress.note(&format!(
                "{}: {}, {} from {}; licence: {}{at}",
                entry.name,
                entry.size_text(),
                remote.file,
                remote.repo,
                entry.licence
            ));
        }
        if missing.len() > 1 {
            progress.note(&format!("in all: {}", size_of(missing.iter().map(|(entry, _)| *entry))));
        }
    }

    /// An error that says where the files are for who has another way to them.
    /// - `what`: why they cannot be fetched from here. `fix`: what would mend that.
    fn elsewhere(&self, what: &str, fix: &str, missing: &[Missing]) -> String {
        let addresses: Vec<String> = missing.iter().filter_map(|(entry, _)| self.address(entry)).collect();
        let flags: Vec<String> = missing.iter().map(|(entry, remote)| flag(entry, remote.file)).collect();
        format!(
            "{what}\n  files: {}\n  fix: {fix}; or fetch these files elsewhere, and give them by their paths: {}",
            addresses.join(" "),
            flags.join(" ")
        )
    }

    /// Asks the hub what a file is, and holds the answer against the catalogue's.
    /// - `missing`: all that is to be fetched, for an error.
    fn ask<'a>(
        &self,
        hub: &Hub,
        (entry, remote): Missing<'a>,
        missing: &[Missing],
        accept_hash: bool,
        progress: &Progress,
    ) -> Result<Item<'a>> {
        let meta = self.meta(hub, entry, &remote, missing, progress)?;
        let said = |hash: Option<&str>, bytes: Option<u64>| {
            let bytes = bytes.map(|bytes| format!("{bytes} bytes"));
            let hash = hash.map(|hash| if progress.is_verbose() { hash.to_string() } else { short(hash) });
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
        ensure!(
            meta.bytes != Some(0),
            "`{}`: the hub has `{}` as a file of no bytes\n  fix: try again later, or another HF_ENDPOINT",
            entry.name,
            remote.file
        );
        let folder = self.folder(&remote);
        folder.check_places(remote.file, &meta.commit, &meta.etag)?;
        let kept = folder.partial(&meta.etag).metadata().map_or(0, |m| m.len());
        let bytes = meta.bytes.or(entry.bytes.filter(|_| !other_hash));
        let sha256 = meta.sha256().map(str::to_string).or_else(|| entry.sha256.clone());
        Ok(Item { entry, remote, folder, meta, bytes, sha256, kept })
    }

    /// The hub's answer, asked for again while that may help.
    fn meta(
        &self,
        hub: &Hub,
        entry: &Entry,
        remote: &Remote,
        missing: &[Missing],
        progress: &Progress,
    ) -> Result<Meta> {
        let mut failed = 0;
        loop {
            progress.check_cancelled()?;
            let (why, rest, most) = match hub.meta(remote) {
                Ok(meta) => return Ok(meta),
                Err(FetchError::Retry(why, rest)) => (why, rest, None),
                Err(FetchError::Away(why)) => (why, None, Some(MOST_CALLS)),
                Err(FetchError::Fatal(error)) => return Err(error),
                Err(FetchError::Modified) => {
                    bail!("`{}` changes while it is asked about\n  fix: try again later", entry.name)
                }
            };
            failed += 1;
            let wait = self.settings.waits.get(failed - 1).filter(|_| most.is_none_or(|most| failed < most));
            match (wait, most) {
                (Some(wait), _) => {
                    pause(&why, rest.unwrap_or(*wait), progress.cancel(), |text| progress.note(text))?;
                }
                (None, Some(_)) => {
                    // an address that was set and does not answer is no way out
                    let fix = match self.settings.endpoint == HUB {
                        true => "set HTTPS_PROXY where the network has a proxy, or HF_ENDPOINT to a mirror".to_string(),
                        false => format!(
                            "correct HF_ENDPOINT, which is `{}`, or unset it, which asks {HUB}; or set HTTPS_PROXY where the network has a proxy",
                            self.settings.shown_endpoint()
                        ),
                    };
                    bail!(self.elsewhere(&format!("{}: {why}, {failed} times over", not_here(missing)), &fix, missing))
                }
                (None, None) => {
                    bail!("cannot ask for `{}`: {why}, {failed} times over\n  fix: try again later", entry.name)
                }
            }
        }
    }

    /// What the hub's answers add to what was announced, before the first byte: other sizes, and files that nobody vouches for.
    fn log(&self, items: &[Item], progress: &Progress) {
        for item in items {
            let name = &item.entry.name;
            let size = item.bytes.map_or("size unknown".to_string(), human_bytes);
            if item.kept > 0 {
                progress.note(&format!("{name}: {size}, {} of it here", human_bytes(item.kept)));
            } else if item.entry.size_text() != size {
                progress.note(&format!("{name}: {size}, as the hub has it"));
            }
            if !item.is_vouched_for() {
                progress.note(&format!(
                    "{name}: nobody vouches for these bytes: neither the hub nor the catalogue says what their hash should be"
                ));
            }
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

    /// Fetches one file. A pull of which nothing is left leaves no record either: the one of before is put back.
    fn fetch(&self, hub: &Hub, item: Item, accept_hash: bool, progress: &Progress, stage: &mut Bytes) -> Result<()> {
        let (entry, folder) = (item.entry, self.folder(&item.remote));
        let before = self.record(entry);
        let done = self.fetch_recorded(hub, item, accept_hash, progress, stage);
        let is_left = |etag: &str| [folder.partial(etag), folder.blob(etag)].iter().any(|path| path.exists());
        if done.is_err() && self.record(entry).is_some_and(|record| !is_left(&record.etag)) {
            match before {
                // where it cannot be written, what is there is only out of date
                Some(before) => drop(before.write(&self.settings.data, &entry.name)),
                None => Record::forget(&self.settings.data, &entry.name),
            }
        }
        done
    }

    fn fetch_recorded(
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
            let mut waited = false;
            let lock = item.folder.lock(&etag, progress.cancel(), || {
                waited = true;
                stage.note(&format!("`{name}` is being pulled by another process: waiting for it"));
            })?;
            // the other one has checked it
            if let (true, State::Here { path, bytes }) = (waited, self.state(item.entry)) {
                stage.here(bytes)?;
                stage.note(&format!("`{name}` is here: {}", path.display()));
                return Ok(());
            }
            // written first, so that what is broken off is known to be this entry's
            let mut record = item.record();
            record.write(&self.settings.data, name)?;
            let blob = item.folder.blob(&etag);
            let fresh = !item.adopts(&blob, stage)?;
            if fresh {
                let partial = item.folder.partial(&etag);
                let done = fetch(hub, &item.wanted(progress.is_verbose()), &partial, &self.settings.waits, stage);
                let done = done.and_then(|done| match lock.held {
                    true => Ok(done),
                    // another process may have written to the same file
                    false => hash_file(&partial, |_| progress.check_cancelled()).map_err(Ended::Failed).and_then(|(now, _)| {
                        let other = || anyhow!("`{name}`: another process wrote to `{}`\n  fix: run one pull at a time: this disk knows no locks", partial.display());
                        if now == done.sha256 { Ok(done) } else { Err(Ended::Failed(other())) }
                    }),
                });
                match done {
                    Ok(done) => {
                        if !item.is_vouched_for() {
                            record.own_sha256 = Some(done.sha256);
                        }
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
                                let one = (item.entry, item.remote);
                                item = self.ask(hub, one, &[one], accept_hash, progress)?;
                                continue;
                            }
                        }
                    }
                }
                std::fs::rename(&partial, &blob).with_context(|| format!("cannot write `{}`", blob.display()))?;
            }
            let path = item.folder.link(item.remote.file, &item.meta.commit, &etag, fresh)?;
            record.write(&self.settings.data, name)?;
            stage.note(&format!("`{name}` is here: {}", path.display()));
            return Ok(());
        }
        bail!("`{}` keeps changing on the hub\n  fix: try again later", item.entry.name)
    }
}

impl Item<'_> {
    /// Bytes that are still to come.
    fn rest(&self) -> u64 {
        let here = self.folder.blob(&self.meta.etag).metadata().map_or(0, |at| at.len());
        let bytes = self.bytes.unwrap_or(0);
        bytes.saturating_sub(self.kept.max(if here <= bytes { here } else { 0 }))
    }

    /// Whether anyone but this download says what the bytes should hash to.
    fn is_vouched_for(&self) -> bool {
        self.sha256.is_some() || is_git_hash(&self.meta.etag) && self.bytes.is_some()
    }

    fn wanted(&self, verbose: bool) -> Wanted<'_> {
        Wanted {
            remote: self.remote,
            meta: &self.meta,
            bytes: self.bytes,
            sha256: self.sha256.as_deref(),
            short_hashes: !verbose,
        }
    }

    /// Whether the blob that is there is the file, by its length and its hash. One that is not is put aside: what is cut off
    /// becomes the beginning of a download, anything else goes.
    fn adopts(&self, blob: &Path, stage: &mut Bytes) -> Result<bool> {
        let Ok(at) = blob.symlink_metadata() else { return Ok(false) };
        let name = &self.entry.name;
        let bytes = blob.metadata().map_or(0, |at| at.len());
        let mut what = String::new();
        if bytes > 0 && self.bytes.is_none_or(|right| right == bytes) {
            let right = match (&self.sha256, self.is_vouched_for()) {
                (Some(right), _) => hash_file(blob, |_| stage.cancel().check())?.0 == *right,
                (None, true) => hash_of_git(blob)? == self.meta.etag,
                (None, false) => true,
            };
            if right {
                stage.here(bytes)?;
                return Ok(true);
            }
            what.push_str("other bytes than its name says");
        }
        if what.is_empty() {
            what =
                format!("{bytes} bytes of {}", self.bytes.map_or("the file's".to_string(), |right| right.to_string()));
        }
        stage.note(&format!("`{name}`: the blob `{}` has {what}", blob.display()));
        let partial = self.folder.partial(&self.meta.etag);
        let cut = at.is_file() && self.bytes.is_some_and(|right| (self.kept + 1..right).contains(&bytes));
        let put = if cut { std::fs::rename(blob, partial) } else { std::fs::remove_file(blob) };
        put.with_context(|| format!("cannot put `{}` aside", blob.display()))?;
        Ok(false)
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
            own_sha256: None,
        }
    }
}

/// `16.6 GB`, `about 38.9 GB`, or what is known of it.
pub fn size_of<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> String {
    let sum = human_bytes(entries.clone().filter_map(Entry::size).sum());
    let remote = || entries.clone().filter(|entry| !entry.embedded);
    match (remote().any(|entry| entry.size().is_none()), remote().any(|entry| entry.bytes.is_none())) {
        (true, _) if remote().all(|entry| entry.size().is_none()) => "size unknown".to_string(),
        (true, _) => format!("more than {sum}"),
        (false, true) => format!("about {sum}"),
        (false, false) => sum,
    }
}

/// `` `a` is not here ``, `` `a` and `b` are not here ``.
fn not_here(missing: &[Missing]) -> String {
    let names: Vec<String> = missing.iter().map(|(entry, _)| format!("`{}`", entry.name)).collect();
    format!("{} {} not here", names.join(" and "), if names.len() == 1 { "is" } else { "are" })
}

/// The flag that takes an entry's file by its path.
fn flag(entry: &Entry, file: &str) -> String {
    let flag = match entry.kind {
        Kind::Model => "--model",
        Kind::TextEncoder => "--text-encoder",
        Kind::Upscaler => "--upscaler",
        Kind::Tokenizer => "--tokenizer",
    };
    let name = hub::last_of(file);
    if name.contains(char::is_whitespace) { format!("{flag} \"{name}\"") } else { format!("{flag} {name}") }
}
