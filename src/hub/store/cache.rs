//! The layout of the Hugging Face cache, as Python writes and reads it: `models--owner--name/` holds `blobs/ETAG` (contents),
//! `snapshots/COMMIT/FILE` (links to them) and `refs/REVISION` (a commit). Locks lie in `.locks/`.

use crate::hub::catalogue::Remote;
use crate::hub::store::check::{is_commit, is_etag, no_plain_file, read_note};
use crate::platform::cancel::Cancel;
use crate::platform::files;
use anyhow::{Context, Result, bail, ensure};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Bytes of a file that names a commit, at most.
const MOST_REFERENCE: u64 = 1 << 10;

/// One repository's part of the cache.
pub struct Folder {
    names: CacheRepo,
    root: PathBuf,
    path: PathBuf,
    revision: String,
    links: bool,
}

/// A blob that is ours alone, as long as this lives.
pub struct Lock {
    /// Whether the disk knows locks. Where it does not, another process may write the same partial file.
    pub held: bool,
    _file: File,
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

    /// Commits that have a snapshot. What else is in that folder is nobody's.
    fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path.join("snapshots")).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        let mut commits: Vec<String> = names.filter(|name| is_commit(name)).collect();
        commits.sort();
        commits
    }

    fn reference(&self) -> PathBuf {
        self.path.join("refs").join(&self.revision)
    }

    /// The commit that the revision is said to stand for here, where that is written down.
    /// - Errors say what is wrong with the reference, its path first.
    pub fn commit(&self) -> Result<Option<String>, String> {
        let Some(text) = read_note(&self.reference())? else { return Ok(None) };
        let commit = text.trim();
        if is_commit(commit) {
            return Ok(Some(commit.to_string()));
        }
        let shown: String = commit.chars().take(60).collect();
        Err(format!("`{}` holds {shown:?}, which is no commit, and is left aside", self.reference().display()))
    }

    /// Where snapshots have something of the file's name: of the revision, of the commit that was pulled, or of any other commit
    /// when its blob is the one that is known.
    pub fn pointers(&self, file: &str, commit: Option<&str>, sha256: Option<&str>) -> Vec<PathBuf> {
        let own = Some(self.revision.as_str()).filter(|revision| is_commit(revision));
        let referred = self.commit().ok().flatten();
        let exact = [own, commit, referred.as_deref()].into_iter().flatten().map(|commit| self.pointer(commit, file));
        let known = |path: &PathBuf| sha256.is_some() && self.etag_of(path).as_deref() == sha256;
        let others = self.commits().into_iter().map(|commit| self.pointer(&commit, file)).filter(known);
        let mut found: Vec<PathBuf> = vec![];
        for path in exact.chain(others) {
            if path.symlink_metadata().is_ok() && !found.contains(&path) {
                found.push(path);
            }
        }
        found
    }

    /// Where a file really is, when a link in a snapshot leads out of the cache. What newer versions of Python share between
    /// caches is a blob that is a link, and stays.
    pub fn outside(&self, pointer: &Path) -> Option<PathBuf> {
        if self.etag_of(pointer).is_some() {
            return None;
        }
        let (root, place) = (self.root.canonicalize().ok()?, pointer.canonicalize().ok()?);
        (!place.starts_with(root)).then_some(place)
    }

    /// The name of the blob that a pointer leads to, where it is a link into the blobs.
    pub fn etag_of(&self, pointer: &Path) -> Option<String> {
        let target = fs::read_link(pointer).ok()?;
        let target = plain(&pointer.parent()?.join(target));
        let name = target.strip_prefix(self.path.join("blobs")).ok()?;
        let mut parts = name.components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(name)), None) => name.to_str().filter(|name| is_etag(name)).map(str::to_string),
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

    /// Checks that nothing stands where a download will write: before it, not after.
    /// - Errors name what is in the way.
    pub fn check_places(&self, file: &str, commit: &str, etag: &str) -> Result<()> {
        let lock = self.lock_of(etag);
        let places = [self.blob(etag), self.pointer(commit, file), self.partial(etag), self.reference(), lock];
        for (i, place) in places.iter().enumerate() {
            let may_be_link = i < 2; // what is written in place would be written through one
            let above = place.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
            for folder in above {
                let Ok(at) = folder.metadata() else { continue };
                ensure!(at.is_dir(), "`{}` is no directory\n  fix: move it away", folder.display());
                break;
            }
            let Ok(at) = place.symlink_metadata() else { continue };
            match no_plain_file(&at) {
                None => {}
                Some(_) if may_be_link && at.is_symlink() && !place.is_dir() => {}
                Some(kind) => {
                    bail!("`{}` is {kind}, and a file belongs there\n  fix: move it away", place.display())
                }
            }
        }
        Ok(())
    }

    fn lock_of(&self, etag: &str) -> PathBuf {
        self.locks().join(format!("{etag}.lock"))
    }

    /// Locks a blob against other pulls, Python's included, until the lock is dropped or the process ends.
    /// - `waiting`: called once when another one has it. `cancel`: ends the wait with an error.
    pub fn lock(&self, etag: &str, cancel: &Cancel, waiting: impl FnOnce()) -> Result<Lock> {
        /// Between two looks at a lock that another one has.
        const REST: Duration = Duration::from_millis(100);
        let mut waiting = Some(waiting);
        self.locked(etag, |file| {
            waiting.take().into_iter().for_each(|waiting| waiting());
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(true),
                    Err(TryLockError::WouldBlock) => cancel.sleep(REST)?,
                    Err(TryLockError::Error(e)) => return Err(e.into()),
                }
            }
        })?
        .context("a lock that was waited for is there")
    }

    /// As [`Folder::lock`], and `None` where another one has it.
    pub fn try_lock(&self, etag: &str) -> Result<Option<Lock>> {
        self.locked(etag, |_| Ok(false))
    }

    /// - `taken`: what to do where another one has the lock; whether it is ours after that.
    fn locked(&self, etag: &str, mut taken: impl FnMut(&File) -> Result<bool>) -> Result<Option<Lock>> {
        let path = self.lock_of(etag);
        let what = || format!("cannot lock `{}`", path.display());
        loop {
            let file = File::options().create(true).write(true).truncate(false).open(&path).with_context(what)?;
            let held = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) if taken(&file).with_context(what)? => true,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => false,
                Err(TryLockError::Error(e)) => return Err(e).with_context(what),
            };
            // some versions of Python remove the file as they let go: then this lock is on a file that nobody else sees
            if !held || is_same(&file, &path) {
                return Ok(Some(Lock { held, _file: file }));
            }
        }
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
            files::write(&self.reference(), commit.as_bytes(), true)?;
        }
        Ok(pointer)
    }

    /// Takes `file` out of every snapshot, and with it the blobs that nothing else refers to. Touches nothing outside this
    /// repository's folder: where a link leads elsewhere, only the link goes.
    /// - `etags`: further blobs that are known to be this file's, for what a broken-off download left.
    /// - Errors when another process pulls one of the blobs; nothing is removed then.
    pub fn remove(&self, file: &str, etags: &[String]) -> Result<Removed> {
        let mut removed = Removed::default();
        if !self.path.exists() {
            return Ok(removed);
        }
        // a snapshot that is a link to a folder elsewhere has files of others
        let inside = |folder: &Path| match (self.path.canonicalize(), folder.canonicalize()) {
            (Ok(own), Ok(folder)) => folder.starts_with(own),
            _ => false,
        };
        let mut commits = self.commits();
        commits.retain(|commit| self.pointer(commit, file).parent().is_some_and(inside));
        let pointers: Vec<PathBuf> = commits.iter().map(|commit| self.pointer(commit, file)).collect();
        let mut blobs: Vec<String> =
            pointers.iter().filter_map(|path| self.etag_of(path)).chain(etags.to_vec()).collect();
        blobs.sort();
        blobs.dedup();
        fs::create_dir_all(self.locks())
            .with_context(|| format!("cannot make the folder `{}`", self.locks().display()))?;
        let mut locks = vec![];
        for etag in &blobs {
            let taken = || format!("`{file}` is being pulled by another process\n  fix: wait for that one, or stop it");
            locks.push(self.try_lock(etag)?.with_context(taken)?);
        }
        for (commit, pointer) in commits.iter().zip(pointers) {
            let Ok(at) = pointer.symlink_metadata() else { continue };
            if at.is_dir() {
                continue;
            }
            if self.etag_of(&pointer).is_none() && at.is_file() {
                removed.bytes += at.len();
            }
            remove_file(&pointer)?;
            removed.any = true;
            let snapshot = self.names.pointer_path(commit);
            // folders that are empty now
            for folder in pointer.ancestors().skip(1).take_while(|folder| folder.starts_with(&snapshot)) {
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        let used = self.used();
        for etag in blobs {
            let users = used.iter().filter(|(of, _)| *of == etag).map(|(_, name)| name.clone());
            let users: Vec<String> = users.collect();
            for path in [self.partial(&etag), self.blob(&format!("{etag}.pointer")), self.blob(&etag)] {
                let Ok(at) = path.symlink_metadata() else { continue };
                if at.is_dir() || path == self.blob(&etag) && !users.is_empty() {
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
                } else if files::read_small_text(&path, MOST_REFERENCE)
                    .is_ok_and(|text| !commits.contains(&text.trim().to_string()))
                {
                    let _ = fs::remove_file(path);
                }
            }
        }
        for name in ["refs", "snapshots", "blobs", ""] {
            let _ = fs::remove_dir(self.path.join(name)); // fails where something is left, as it should
        }
    }
}

/// Whether an open file is the one that has this path now.
fn is_same(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |at: fs::Metadata| (at.dev(), at.ino());
        matches!((file.metadata().map(id), path.metadata().map(id)), (Ok(ours), Ok(now)) if ours == now)
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path); // an open file cannot be removed there
        true
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
