//! The layout of the Hugging Face cache, as Python writes and reads it: `models--owner--name/` holds `blobs/ETAG` (contents),
//! `snapshots/COMMIT/FILE` (links to them) and `refs/REVISION` (a commit). Locks lie in `.locks/`.

use crate::platform::files;
use crate::weights::catalogue::Remote;
use anyhow::{Context, Result};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// One repository's part of the cache.
pub struct Folder {
    names: CacheRepo,
    root: PathBuf,
    path: PathBuf,
    revision: String,
    links: bool,
}

/// What removing a file freed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub bytes: u64,
    /// Names under which the same bytes are still used, and so stay.
    pub used_by: Vec<String>,
    /// Whether there was anything at all.
    pub any: bool,
}

impl Folder {
    /// - `links`: whether snapshots may hold links.
    pub fn new(cache: &Path, remote: &Remote, links: bool) -> Self {
        let revision = remote.revision.to_string();
        let repo = Repo::with_revision(remote.repo.to_string(), RepoType::Model, revision.clone());
        let (root, path) = (cache.to_path_buf(), cache.join(repo.folder_name()));
        Self { names: Cache::new(root.clone()).repo(repo), root, path, revision, links }
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.names.blob_path(etag)
    }

    /// What is there of a blob that is being downloaded.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    pub fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.names.pointer_path(commit).join(file)
    }

    fn locks(&self) -> PathBuf {
        self.root.join(".locks").join(self.path.file_name().unwrap_or_default())
    }

    fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path.join("snapshots")).into_iter().flatten().flatten();
        let mut commits: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        commits.sort();
        commits
    }

    /// The file, where it is here: of the commit that was pulled, of the revision, or of any other commit when its blob is the
    /// one that is known.
    pub fn find(&self, file: &str, commit: Option<&str>, sha256: Option<&str>) -> Option<PathBuf> {
        let of = |commit: &str| self.pointer(commit, file);
        let exact = [Some(of(&self.revision)), commit.map(of), self.names.get(file)];
        let known = |path: &PathBuf| sha256.is_some() && self.etag_of(path).as_deref() == sha256;
        let others = self.commits().into_iter().map(|commit| of(&commit)).filter(known);
        exact.into_iter().flatten().chain(others).find(|path| path.is_file())
    }

    /// The name of the blob that a pointer leads to, where it is a link into the blobs.
    pub fn etag_of(&self, pointer: &Path) -> Option<String> {
        let target = fs::read_link(pointer).ok()?;
        let target = plain(&pointer.parent()?.join(target));
        let name = target.strip_prefix(self.path.join("blobs")).ok()?;
        let mut parts = name.components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => name.to_str().map(str::to_string),
            _ => None,
        }
    }

    /// Makes the folders that a download writes to.
    pub fn prepare(&self) -> Result<()> {
        for folder in [self.path.join("blobs"), self.locks()] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
        }
        // tells backup programs that this can be had again
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            let _ = fs::write(tag, "Signature: 8a477f597d28d172789f06886806bc55\n"); // only a hint
        }
        Ok(())
    }

    /// Holds a blob against other pulls, Python's included, until the file is dropped or the process ends.
    /// - `waiting`: called once when another one has it.
    pub fn lock(&self, etag: &str, waiting: impl FnOnce()) -> Result<File> {
        let path = self.locks().join(format!("{etag}.lock"));
        let what = || format!("cannot lock `{}`", path.display());
        let file = File::options().create(true).write(true).truncate(false).open(&path).with_context(what)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().with_context(what)?;
            }
            // a disk without locks: two pulls at once are then the user's to avoid
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(e).with_context(what),
        }
        Ok(file)
    }

    /// Whether another process pulls this blob.
    pub fn is_locked(&self, etag: &str) -> bool {
        let path = self.locks().join(format!("{etag}.lock"));
        File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Gives a blob its place in a snapshot, and the revision its commit. The blob has to be locked.
    /// - `fresh`: nothing else refers to the blob yet, so it may be moved where links are impossible.
    pub fn link(&self, file: &str, commit: &str, etag: &str, fresh: bool) -> Result<PathBuf> {
        let (blob, pointer) = (self.blob(etag), self.pointer(commit, file));
        let what = || format!("cannot write `{}`", pointer.display());
        let folder = pointer.parent().context("a file of a snapshot lies in a folder")?;
        fs::create_dir_all(folder).with_context(what)?;
        if self.etag_of(&pointer).as_deref() != Some(etag) {
            let depth = file.split('/').count() + 1; // the file's own folders, the commit, `snapshots`
            let target: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", etag]).collect();
            // not in the snapshot, where one that a killed process left would count as a use of the blob; the lock makes it ours
            let temporary = self.blob(&format!("{etag}.pointer"));
            let _ = fs::remove_file(&temporary);
            let made = if self.links { symlink(&target, &temporary) } else { Err(ErrorKind::Unsupported.into()) };
            let from = match made {
                Ok(()) => &temporary,
                Err(_) if fresh => &blob,
                Err(_) => {
                    fs::copy(&blob, &temporary).with_context(what)?;
                    &temporary
                }
            };
            fs::rename(from, &pointer).with_context(what)?;
        }
        if self.revision != commit {
            // not `create_ref`, which empties the file first: a kill in between would leave a revision without a commit
            files::write(&self.path.join("refs").join(&self.revision), commit.as_bytes(), true)?;
        }
        Ok(pointer)
    }

    /// Takes `file` out of every snapshot, and with it the blobs that nothing else refers to. Touches nothing outside this
    /// repository's folder: where a link leads elsewhere, only the link goes.
    /// - `etags`: further blobs that are known to be this file's, for what a broken-off download left.
    pub fn remove(&self, file: &str, etags: &[String]) -> Result<Removed> {
        let mut removed = Removed::default();
        let mut blobs = etags.to_vec();
        for commit in self.commits() {
            let pointer = self.pointer(&commit, file);
            let Ok(at) = pointer.symlink_metadata() else { continue };
            if at.is_dir() {
                continue;
            }
            match self.etag_of(&pointer) {
                Some(etag) => blobs.push(etag),
                None if at.is_file() => removed.bytes += at.len(),
                None => {}
            }
            remove_file(&pointer)?;
            removed.any = true;
            let snapshot = self.names.pointer_path(&commit);
            // folders that are empty now
            for folder in pointer.ancestors().skip(1).take_while(|folder| folder.starts_with(&snapshot)) {
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        blobs.sort();
        blobs.dedup();
        let used = self.used();
        for etag in blobs {
            let users = used.iter().filter(|(of, _)| *of == etag).map(|(_, name)| name.clone());
            let users: Vec<String> = users.collect();
            for path in [self.partial(&etag), self.blob(&format!("{etag}.pointer")), self.blob(&etag)] {
                let Ok(at) = path.symlink_metadata() else { continue };
                if path == self.blob(&etag) && !users.is_empty() {
                    continue;
                }
                removed.bytes += if at.is_file() { at.len() } else { 0 };
                remove_file(&path)?;
                removed.any = true;
            }
            removed.used_by.extend(users);
        }
        removed.used_by.sort();
        removed.used_by.dedup();
        if removed.any {
            self.tidy();
        }
        Ok(removed)
    }

    /// Every blob that a snapshot links to, with the name it has there.
    fn used(&self) -> Vec<(String, String)> {
        let mut found = vec![];
        for commit in self.commits() {
            let top = self.names.pointer_path(&commit);
            let mut folders = vec![top.clone()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        folders.push(path);
                    } else if let Some(etag) = self.etag_of(&path) {
                        let name = path.strip_prefix(&top).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                        found.push((etag, name));
                    }
                }
            }
        }
        found
    }

    /// References to commits that are gone go too, then empty folders. Each is only tidiness, so none has to succeed.
    fn tidy(&self) {
        let commits = self.commits();
        let mut folders = vec![self.path.join("refs")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if fs::read_to_string(&path).is_ok_and(|text| !commits.contains(&text.trim().to_string())) {
                    let _ = fs::remove_file(path);
                }
            }
        }
        for name in ["refs", "snapshots", "blobs", ""] {
            let _ = fs::remove_dir(self.path.join(name)); // fails where something is left, as it should
        }
    }
}

fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove `{}`", path.display()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// A path with `..` and `.` taken as text, no link followed.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}
