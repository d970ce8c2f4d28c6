//! Files and folders that appear whole or not at all, and small files read with a bound.
//!
//! Everything that this program writes is written under a random name beside its target (`.NAME.XXXXXX.partial`, which no other
//! process can have, in whatever container it runs) and renamed when it is complete. What is not complete yet is known to one
//! registry, which [`remove_unfinished`] empties when a signal ends the program. Nothing that this process did not make is removed.

use crate::platform::fault::{CannotWrite, Fault, Mark};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

/// Files and folders of this process that have not got their names yet.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// What names of unfinished files and folders end in.
const SUFFIX: &str = ".partial";
/// Times that a folder is emptied which is still being filled.
const MOST_TRIES: usize = 1000;
/// Links that lead to a target, at most.
const MOST_LINKS: usize = 40;
/// Unfinished files of the cache that are older were left by a process that was killed.
const STALE: Duration = Duration::from_secs(3 * 24 * 3600);

/// Locks the registry. A panic leaves the set as good as it was, so a poisoned lock does no harm.
fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes everything unfinished, and keeps the registry locked, so that nothing is begun or completed after it: for the end of the
/// program, from an ordinary thread.
/// - `patience`: how long to wait for a file that is just being renamed.
pub fn remove_unfinished(patience: Duration) {
    let begun = Instant::now();
    loop {
        if let Ok(mut paths) = UNFINISHED.try_lock() {
            remove_all(&mut paths);
            return std::mem::forget(paths);
        }
        if begun.elapsed() > patience {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn remove_all(paths: &mut BTreeSet<PathBuf>) {
    while let Some(path) = paths.pop_first() {
        // nobody is left to tell of what cannot be removed
        if !path.is_dir() {
            let _ = fs::remove_file(path);
            continue;
        }
        // other threads may still write into it, until it is gone
        let _ = (0..MOST_TRIES).find(|_| fs::remove_dir_all(&path).is_ok() || !path.exists());
    }
}

/// An entry of the registry, which goes when this does.
struct Registered(PathBuf);

impl Drop for Registered {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

/// A file that is being written; removed when dropped before [`AtomicFile::commit`].
pub struct AtomicFile {
    file: NamedTempFile, // before its entry, so that it is gone first
    _registered: Registered,
    target: PathBuf,
    force: bool,
}

impl AtomicFile {
    /// Opens an empty file beside `target`.
    /// - `force`: `commit` may replace a file; where `target` is a link, the file that it leads to.
    /// - Errors when the folder cannot be written, and when there is something at `target` that is no file.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        let target = if force { followed(target) } else { target.to_path_buf() };
        if let Ok(there) = target.symlink_metadata() {
            refuse_special(&target, there.file_type())?;
        }
        let mut registry = unfinished(); // held meanwhile: a signal finds every file that there is
        let file = named(&target, 0o666, |builder, folder| builder.tempfile_in(folder))?;
        registry.insert(file.path().to_path_buf());
        drop(registry);
        // tells those who sweep a folder that it is in use; a disk without locks has nobody to tell
        let _ = file.as_file().try_lock();
        let _registered = Registered(file.path().to_path_buf());
        Ok(Self { file, _registered, target, force })
    }

    /// The unfinished file.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Where the unfinished file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns a buffered handle on the file; flush it before `commit`.
    pub fn writer(&self) -> Result<BufWriter<Output>> {
        let file = self.file().try_clone().with_context(|| self.failed())?;
        Ok(BufWriter::with_capacity(1 << 18, Output(file)))
    }

    /// Returns the head of errors of writing this file.
    pub fn failed(&self) -> CannotWrite {
        CannotWrite(self.target.clone())
    }

    /// Puts the bytes on the disk and gives the file its name.
    /// - Errors when the name was taken meanwhile and `force` is off; the file is then gone.
    pub fn commit(self) -> Result<()> {
        let failed = self.failed();
        match self.complete() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(appeared(&failed.0)),
            other => other.map_err(explained).context(failed),
        }
    }

    /// As `commit`, for files whose name tells their content: where the name was taken meanwhile, the file there stays.
    pub fn commit_or_keep(mut self) -> Result<()> {
        self.force = false;
        let failed = self.failed();
        match self.complete() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(explained).context(failed),
        }
    }

    fn complete(self) -> io::Result<()> {
        let Self { file, _registered, target, force } = self;
        file.as_file().sync_all()?;
        if let Some(there) = target.metadata().ok().filter(|_| force) {
            let _ = file.as_file().set_permissions(there.permissions()); // as they were; else as of any new file
        }
        let _registry = unfinished(); // held while renaming: a signal finds either the unfinished or the complete file
        if force {
            return file.persist(&target).map(drop).map_err(|failed| failed.error);
        }
        match file.persist_noclobber(&target) {
            Ok(_) => Ok(()),
            Err(_) if target.symlink_metadata().is_ok() => Err(ErrorKind::AlreadyExists.into()),
            // a disk that neither renames without replacing nor has hard links: looking first has to do
            Err(failed) => failed.file.persist(&target).map(drop).map_err(|failed| failed.error),
        }
    }
}

/// The file that an [`AtomicFile`] writes to. Its errors say what can be done about a disk that takes no more.
pub struct Output(File);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(explained)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(explained)
    }
}

impl Read for Output {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// Says what a disk lacks, and what to do.
fn explained(error: io::Error) -> io::Error {
    let text = match error.kind() {
        ErrorKind::StorageFull => "the disk is full\n  fix: make room, or write to another disk",
        ErrorKind::QuotaExceeded => "your share of the disk is used up\n  fix: make room, or write to another disk",
        // of FAT 4 GiB
        ErrorKind::FileTooLarge => {
            "the file is larger than the shell's limit (`ulimit -f`) or the disk allows\n  \
             fix: `ulimit -f unlimited`, or write to another disk"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

/// A folder that is being filled; removed when dropped before [`AtomicFolder::commit`].
pub struct AtomicFolder {
    folder: TempDir, // before its entry, so that it is gone first
    _registered: Registered,
    target: PathBuf,
}

impl AtomicFolder {
    /// Makes an empty folder beside `target`, or within it where that is a folder already: one that its users stand in, or that a
    /// disk is mounted on, cannot be exchanged for another.
    /// - Errors when that cannot be done, and when `target` is no folder.
    pub fn create(target: &Path) -> Result<Self> {
        let target: PathBuf = target.components().collect(); // a `/` at the end would follow a link
        let is_folder = target.is_dir();
        ensure!(
            is_folder || target.symlink_metadata().is_err(),
            "`{}` is not a folder\n  fix: choose another place",
            target.display()
        );
        Self::begin(&if is_folder { target.join("new") } else { target.clone() }, target)
    }

    fn begin(beside: &Path, target: PathBuf) -> Result<Self> {
        let mut registry = unfinished(); // held meanwhile, as for a file
        let folder = named(beside, 0o777, |builder, folder| builder.tempdir_in(folder))?;
        registry.insert(folder.path().to_path_buf());
        let _registered = Registered(folder.path().to_path_buf());
        Ok(Self { folder, _registered, target })
    }

    /// The unfinished folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file in it and puts it on the disk.
    pub fn write(&self, name: &Path, write: impl FnOnce(&mut BufWriter<Output>) -> Result<()>) -> Result<()> {
        let make = || -> Result<()> {
            let file = File::options().write(true).create_new(true).open(self.path().join(name)).map_err(explained)?;
            let mut out = BufWriter::with_capacity(1 << 18, Output(file));
            write(&mut out)?;
            out.flush()?;
            Ok(out.get_ref().0.sync_all().map_err(explained)?)
        };
        make().with_context(|| CannotWrite(self.target.join(name)))
    }

    /// Gives the folder its name; where it exists, moves the files into it.
    /// - `force`: files of the same names may be replaced, and those of `old` are removed, after the new ones are there.
    /// - Errors when a name was taken meanwhile and `force` is off; then nothing is changed.
    pub fn commit(self, force: bool, old: &[PathBuf]) -> Result<()> {
        let Self { folder, _registered, target } = self;
        let _registry = unfinished(); // held meanwhile: a signal comes before it or after it
        if target.is_dir() {
            return merge(folder.path(), &target, force, old).context(CannotWrite(target));
        }
        match fs::rename(folder.path(), &target) {
            Ok(()) => {
                let _ = folder.keep(); // it has another name by now
                Ok(())
            }
            Err(_) if target.symlink_metadata().is_ok() => Err(appeared(&target)),
            Err(error) => Err(error).context(CannotWrite(target)),
        }
    }
}

/// Moves all files of one folder into another on the same disk.
fn merge(from: &Path, to: &Path, force: bool, old: &[PathBuf]) -> Result<()> {
    let mut names = vec![];
    for entry in fs::read_dir(from)? {
        names.push(entry?.file_name());
    }
    names.sort();
    if !force && let Some(taken) = names.iter().map(|name| to.join(name)).find(|path| path.symlink_metadata().is_ok()) {
        bail!(appeared(&taken));
    }
    for name in &names {
        fs::rename(from.join(name), to.join(name))?;
    }
    let outdated = old.iter().filter(|path| path.file_name().is_some_and(|name| !names.iter().any(|n| n == name)));
    for path in outdated.filter(|_| force) {
        fs::remove_file(path).with_context(|| format!("cannot remove the old file `{}`", path.display()))?;
    }
    Ok(())
}

/// A folder in the system's temporary folder, removed with all that is in it when dropped.
pub struct Scratch(AtomicFolder);

impl Scratch {
    /// - `name`: what the folder's name begins with.
    /// - Errors when there is no place for temporary files.
    pub fn create(name: &str) -> Result<Self> {
        let place = std::env::temp_dir().join(name);
        let folder = AtomicFolder::begin(&place, place.clone()).map_err(|error| {
            let error = error.to_string();
            let what = error.lines().next().unwrap_or_default();
            anyhow!("{what}\n  fix: set TMPDIR to a folder that can be written")
        });
        Ok(Self(folder.fault(Fault::Machine)?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Writes a small file.
/// - `force`: replaces one that is there. Makes the folder where it is missing.
pub fn write(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    let file = AtomicFile::create(path, force)?;
    file.writer()?.write_all(bytes).with_context(|| file.failed())?;
    file.commit()
}

/// Removes what processes that were killed left unfinished in `folder`, one of our own: files that nobody has locked and that are some
/// days old. Only tidiness, so nothing of it has to succeed.
pub fn sweep(folder: &Path) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours = name.starts_with('.') && name.ends_with(SUFFIX) && path.is_file();
        if !is_ours {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        let age = file.metadata().and_then(|m| m.modified()).map(|time| time.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > STALE) && file.try_lock().is_ok() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens a file to read it.
/// - Errors on folders, pipes and devices, which have no end or would be waited for.
pub fn open_regular(path: &Path) -> Result<File> {
    let regular = |is: fs::Metadata| {
        let what = match is.file_type() {
            kind if kind.is_file() => return Ok(()),
            kind if kind.is_dir() => "it is a folder",
            _ => "it is a pipe or a device",
        };
        bail!("{what}, not a file\n  fix: give a regular file")
    };
    // looked at before it is opened, which waits at a pipe, and after, for it may be another by then
    let open = || -> Result<File> {
        regular(fs::metadata(path)?)?;
        let file = File::open(path)?;
        regular(file.metadata()?)?;
        Ok(file)
    };
    open().with_context(|| format!("cannot read `{}`", path.display()))
}

/// Reads a file that is small by its nature: a configuration, an index, a list.
/// - `most`: bytes that it may have.
/// - Errors on files that are longer, and as [`open_regular`] does. [`is_missing`] tells one that is not there.
pub fn read_small(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let read = open_regular(path)?.take(most + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read `{}`", path.display()))?;
    if bytes.len() as u64 > most {
        bail!(
            "cannot read `{}`: it has more than {most} bytes, which is too long for what it should be\n  fix: give the right file",
            path.display()
        )
    }
    Ok(bytes)
}

/// Reads a small text, as [`read_small`].
/// - Errors on bytes that are no UTF-8.
pub fn read_small_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read_small(path, most)?)
        .map_err(|e| anyhow!("cannot read `{}`: it is no text: {}", path.display(), e.utf8_error()))
}

/// Tells whether an error of reading is that there is no such file.
pub fn is_missing(error: &anyhow::Error) -> bool {
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    matches!(kind, Some(ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// Tells whether writing to `out` would replace `input`, or a file in the folder `input`; links are followed.
pub fn would_replace(out: &Path, input: &Path) -> bool {
    let Ok(input) = input.canonicalize() else { return false };
    let beside = folder_of(out).canonicalize().map(|folder| folder.join(out.file_name().unwrap_or_default()));
    out.symlink_metadata().is_ok()
        && [out.canonicalize(), beside].into_iter().flatten().any(|out| out.starts_with(&input))
}

/// Returns the folder that holds `path`; `.` for a bare name.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes something unfinished beside `target`, under a random name.
/// - `mode`: its permissions on Unix, less the umask, as of any new file.
fn named<T>(target: &Path, mode: u32, make: impl FnOnce(&tempfile::Builder, &Path) -> io::Result<T>) -> Result<T> {
    let name: String = target.file_name().unwrap_or_default().to_string_lossy().chars().take(50).collect(); // names end at 255 bytes
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    let folder = folder_of(target);
    make(&builder, &folder).map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            let folder = folder.display();
            return anyhow!("there is no folder `{folder}`\n  fix: mkdir -p {folder}, or choose another place");
        }
        let fault = Fault::of_kind(error.kind());
        let error = error.to_string();
        let error = error.split(" at path ").next().unwrap_or_default(); // without the random name
        let error = anyhow!(
            "cannot write to the folder `{}`: {error}\n  fix: make room or permission there, or choose another place",
            folder.display()
        );
        error.fault(fault)
    })
}

/// Returns where a link leads, whether there is something or not.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(leads) = fs::read_link(&path) else { break };
        path = folder_of(&path).join(leads);
    }
    path
}

/// - Errors on what is neither file nor link: renaming onto it would take it away.
fn refuse_special(path: &Path, kind: fs::FileType) -> Result<()> {
    let what = match kind {
        kind if kind.is_file() || kind.is_symlink() => return Ok(()),
        kind if kind.is_dir() => "a folder",
        _ => "a pipe or a device",
    };
    bail!("cannot write `{}`: it is {what}\n  fix: choose another place", path.display())
}

fn appeared(path: &Path) -> anyhow::Error {
    anyhow!(
        "`{}` appeared meanwhile, and is left as it is\n  fix: --force replaces it, or choose another place",
        path.display()
    )
}

#[cfg(test)]
mod tests;
