//! The bytes of one file, from the hub to the disk. A download that breaks off goes on where it was, in this run or a later one;
//! the hash is taken over every byte, those of earlier runs too.

use crate::hub::catalogue::Remote;
use crate::hub::store::check::no_plain_file;
use crate::hub::store::hub::{FetchError, Hub, Meta};
use crate::hub::store::short;
use crate::platform::cancel::{Cancel, Cancelled};
use crate::platform::machine::free_disk;
use crate::platform::progress::{Bytes, human_bytes};
use anyhow::{Context, Result, anyhow, bail};
use ring::digest::{Context as Hash, SHA1_FOR_LEGACY_USE_ONLY as SHA1, SHA256};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

/// Read and hashed at once.
const PIECE: usize = 1 << 18;

/// What is to be fetched.
pub struct Wanted<'a> {
    pub remote: Remote<'a>,
    pub meta: &'a Meta,
    /// Bytes, where the hub or the catalogue tells.
    pub bytes: Option<u64>,
    pub sha256: Option<&'a str>,
    /// Whether errors show the beginnings of hashes alone.
    pub short_hashes: bool,
}

impl Wanted<'_> {
    /// The beginning of git's hash, where the hub gives that one and nothing better is known.
    fn git(&self) -> Option<Hash> {
        let is_git = is_git_hash(&self.meta.etag) && self.sha256.is_none();
        self.bytes.filter(|_| is_git).map(begun_by_git)
    }
}

/// A download that is done: all bytes are in the partial file, on the disk.
#[derive(Debug)]
pub struct Fetched {
    pub bytes: u64,
    pub sha256: String,
}

/// Why a download ended. What is there of the file stays.
#[derive(Debug)]
pub enum Ended {
    /// The hub has another file by now.
    Changed,
    Failed(anyhow::Error),
}

/// A partial file with the hash of what it holds.
struct Part {
    file: File,
    bytes: u64,
    hash: Hash,
    /// Git's hash of a small file, which the hub gives in place of a SHA-256; it begins with the length.
    git: Option<Hash>,
    /// Whether the server is still believed to give parts of files.
    ranges: bool,
}

impl Part {
    /// Opens what an earlier run left, or an empty file, and takes the hash of it.
    fn open(path: &Path, wanted: &Wanted, stage: &mut Bytes) -> Result<Self> {
        let what = || format!("cannot write `{}`", path.display());
        // a link would be written through, and a pipe waited for
        if let Some(kind) = path.symlink_metadata().ok().as_ref().and_then(no_plain_file) {
            bail!("`{}` is {kind}, and a file belongs there\n  fix: move it away", path.display());
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).with_context(what)?;
        let mut part = Self { file, bytes: 0, hash: Hash::new(&SHA256), git: wanted.git(), ranges: true };
        let mut piece = vec![0; PIECE];
        loop {
            match part.file.read(&mut piece).with_context(what)? {
                0 => return Ok(part),
                n => {
                    part.count(&piece[..n]);
                    stage.here(n as u64)?;
                }
            }
        }
    }

    fn add(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.file.write_all(piece)?;
        self.count(piece);
        Ok(())
    }

    fn count(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.git.iter_mut().for_each(|git| git.update(piece));
        self.bytes += piece.len() as u64;
    }

    fn empty(&mut self, wanted: &Wanted, stage: &mut Bytes) -> std::io::Result<()> {
        stage.undo(self.bytes);
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.bytes, self.hash, self.git) = (0, Hash::new(&SHA256), wanted.git());
        Ok(())
    }
}

/// Fetches `wanted` into `path`, which a pull of the same content may have begun.
/// - `waits`: between attempts that brought nothing. An attempt that brings bytes starts them anew.
pub fn fetch(hub: &Hub, wanted: &Wanted, path: &Path, waits: &[Duration], stage: &mut Bytes) -> Result<Fetched, Ended> {
    let mut part = Part::open(path, wanted, stage).map_err(Ended::Failed)?;
    let disk = |error, path| disk(error, path, wanted.bytes);
    // bytes that did not come in one piece from the start may be of anywhere; a whole file that is wrong is the server's fault
    let mut pieced = part.bytes > 0;
    let (mut failed, mut anew) = (0, false);
    loop {
        if wanted.bytes.is_some_and(|bytes| part.bytes > bytes) {
            part.empty(wanted, stage).map_err(|e| disk(e, path))?;
            pieced = false;
        }
        let before = part.bytes;
        let whole = wanted.bytes == Some(part.bytes) && part.bytes > 0;
        let done = if whole { Ok(()) } else { attempt(hub, wanted, path, &mut part, stage) };
        let rest = match &done {
            Err(FetchError::Retry(_, rest)) => *rest,
            _ => None,
        };
        pieced |= before > 0 && part.bytes > before;
        match done {
            Ok(()) => {
                part.file.sync_all().map_err(|e| disk(e, path))?;
                let sha256 = hex(part.hash.clone());
                let git = part.git.clone().map(hex);
                let wrong = match (wanted.sha256, &git) {
                    (Some(right), _) if right != sha256 => Some(("SHA-256", sha256.as_str(), right)),
                    (None, Some(git)) if *git != wanted.meta.etag => {
                        Some(("git's hash", git.as_str(), &*wanted.meta.etag))
                    }
                    _ => None,
                };
                let Some((what, found, right)) = wrong else { return Ok(Fetched { bytes: part.bytes, sha256 }) };
                // nothing of it can be trusted, so nothing of it is kept
                part.empty(wanted, stage).map_err(|e| disk(e, path))?;
                if !pieced || anew {
                    let shown = |hash: &str| if wanted.short_hashes { short(hash) } else { hash.to_string() };
                    let (found, right) = (shown(found), shown(right));
                    return Err(Ended::Failed(anyhow!(
                        "`{}` came whole with the wrong bytes: {what} {found}, and {right} was announced\n  fix: try again later, or another HF_ENDPOINT",
                        wanted.remote.file
                    )));
                }
                (pieced, anew) = (false, true);
                let file = wanted.remote.file;
                stage.note(&format!("`{file}`: the pieces do not make up the right file; starting it over"));
            }
            Err(FetchError::Modified) => return Err(Ended::Changed),
            Err(FetchError::Fatal(error)) => return Err(Ended::Failed(error)),
            // a hub that is away was there a moment ago: patience may help
            Err(FetchError::Retry(why, _) | FetchError::Away(why)) => {
                if part.bytes > before {
                    failed = 0;
                }
                let Some(wait) = waits.get(failed) else {
                    let of = wanted.bytes.map(|bytes| format!(" of {}", human_bytes(bytes))).unwrap_or_default();
                    return Err(Ended::Failed(anyhow!(
                        "`{}`: {why}, {} times over\n  fix: run the same command again: {}{of} are kept, and it continues from there",
                        wanted.remote.file,
                        failed + 1,
                        human_bytes(part.bytes)
                    )));
                };
                failed += 1;
                let wait = rest.unwrap_or(*wait);
                pause(&why, wait, stage.cancel(), |text| stage.note(text)).map_err(|e| Ended::Failed(e.into()))?;
            }
        }
    }
}

/// Waits between attempts, and says so.
/// - Errors when the run is asked to stop meanwhile.
pub fn pause(why: &str, wait: Duration, cancel: &Cancel, note: impl FnOnce(&str)) -> Result<(), Cancelled> {
    note(&format!("{why}; trying again in {:.0} s", wait.as_secs_f64().ceil()));
    cancel.sleep(wait)
}

/// One request, and what it brings. An error leaves in `part` what had come.
fn attempt(hub: &Hub, wanted: &Wanted, path: &Path, part: &mut Part, stage: &mut Bytes) -> Result<(), FetchError> {
    let from = if part.ranges { part.bytes } else { 0 };
    let response = hub.bytes(&wanted.remote, wanted.meta, from)?;
    let on_disk = |e| match disk(e, path, wanted.bytes) {
        Ended::Failed(error) => FetchError::Fatal(error),
        Ended::Changed => FetchError::Modified,
    };
    let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
    let (start, total) = text("content-range").and_then(|range| ranges(&range)).unwrap_or_default();
    let length = text("content-length").and_then(|n| n.parse::<u64>().ok());
    // Bytes that come again are passed over: what is here stays, whatever a server makes of ranges, and the hash over the whole
    // file tells whether they were the same.
    let mut known = match response.status().as_u16() {
        206 if total.is_some() && wanted.bytes.is_some() && total != wanted.bytes => return Err(FetchError::Modified),
        206 if start.is_some_and(|start| start <= part.bytes) => part.bytes - start.unwrap_or_default(),
        206 => {
            part.ranges = false;
            return Err(FetchError::Retry("the server sent another part than was asked for".to_string(), None));
        }
        200 => match (length, wanted.bytes) {
            (Some(length), Some(bytes)) if length != bytes => {
                return Err(FetchError::Fatal(anyhow!(
                    "`{}` has {bytes} bytes, and the server sends {length}\n  fix: try again later, or another HF_ENDPOINT",
                    wanted.remote.file
                )));
            }
            _ => part.bytes,
        },
        // nothing comes after what is here
        416 if wanted.bytes.is_none() && total == Some(part.bytes) => return Ok(()),
        416 => {
            part.ranges = false;
            return Err(FetchError::Retry("the server does not have the part that was asked for".to_string(), None));
        }
        status => return Err(FetchError::Retry(format!("the server answers {status}"), None)),
    };
    let mut body = response.into_body().into_reader();
    let mut piece = vec![0; PIECE];
    loop {
        let n = match body.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(FetchError::Retry(format!("the connection broke ({e})"), None)),
        };
        let skip = known.min(n as u64) as usize;
        known -= skip as u64;
        let new = &piece[skip..n];
        if wanted.bytes.is_some_and(|bytes| part.bytes + new.len() as u64 > bytes) {
            return Err(FetchError::Fatal(anyhow!(
                "`{}`: the server sends more than the {} bytes that the file has\n  fix: try again later, or another HF_ENDPOINT",
                wanted.remote.file,
                wanted.bytes.unwrap_or_default()
            )));
        }
        part.add(new).map_err(on_disk)?;
        stage.advance(new.len() as u64).map_err(|e| FetchError::Fatal(e.into()))?;
    }
    match wanted.bytes {
        Some(bytes) if part.bytes < bytes => {
            Err(FetchError::Retry("the connection closed too early".to_string(), None))
        }
        _ => Ok(()),
    }
}

/// `bytes 7-20/21` or `bytes */21`: where it starts, and the length of the whole.
fn ranges(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    Some((range.split_once('-').and_then(|(start, _)| start.parse().ok()), total.parse().ok()))
}

/// A disk that does not take what came. What it has taken stays.
/// - `bytes`: of the whole file, where known.
fn disk(error: std::io::Error, path: &Path, bytes: Option<u64>) -> Ended {
    let kept = path.metadata().map_or(0, |m| m.len());
    let (why, fix) = match error.kind() {
        ErrorKind::StorageFull => ("the disk is full".to_string(), "make room"),
        ErrorKind::QuotaExceeded => ("your share of the disk is used up".to_string(), "make room"),
        // of FAT 4 GiB; `ulimit -f` sets one too
        ErrorKind::FileTooLarge => {
            ("the disk, or a limit of the shell, takes no file so long".to_string(), "lift the limit (`ulimit -f`)")
        }
        _ => (error.to_string(), "check the disk"),
    };
    let of = bytes.map(|bytes| format!(" of {}", human_bytes(bytes))).unwrap_or_default();
    let free = free_disk(path).map(|free| format!(", and {} are free", human_bytes(free))).unwrap_or_default();
    Ended::Failed(anyhow!(
        "cannot write `{}`: {why}; {}{of} are kept{free}\n  fix: {fix}, and run the same command again: it continues from there; or set HF_HOME to another disk",
        path.display(),
        human_bytes(kept)
    ))
}

/// SHA-256 of a file, in lower-case hex, and its length.
/// - `read`: called with the bytes that were read; an error of it ends the work.
pub fn hash_file(path: &Path, mut read: impl FnMut(u64) -> Result<(), Cancelled>) -> Result<(String, u64)> {
    let what = || format!("cannot read `{}`", path.display());
    let mut file = File::open(path).with_context(what)?;
    let (mut hash, mut bytes, mut piece) = (Hash::new(&SHA256), 0, vec![0; PIECE]);
    loop {
        match file.read(&mut piece).with_context(what)? {
            0 => return Ok((hex(hash), bytes)),
            n => {
                hash.update(&piece[..n]);
                bytes += n as u64;
                read(n as u64)?;
            }
        }
    }
}

/// Whether a text is a hash as git makes them of files.
pub fn is_git_hash(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Git's hash of a file of so many bytes, before the first of them.
fn begun_by_git(bytes: u64) -> Hash {
    let mut hash = Hash::new(&SHA1);
    hash.update(format!("blob {bytes}\0").as_bytes());
    hash
}

/// Git's hash of a file, in lower-case hex.
pub fn hash_of_git(path: &Path) -> Result<String> {
    let what = || format!("cannot read `{}`", path.display());
    let mut file = File::open(path).with_context(what)?;
    let mut hash = begun_by_git(file.metadata().with_context(what)?.len());
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).with_context(what)? {
            0 => return Ok(hex(hash)),
            n => hash.update(&piece[..n]),
        }
    }
}

fn hex(hash: Hash) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(ranges("bytes 7-20/21"), Some((Some(7), Some(21))));
        assert_eq!(ranges("bytes */21"), Some((None, Some(21))));
        assert_eq!(ranges("bytes 7-20/*"), Some((Some(7), None)));
        assert_eq!((ranges("lines 7-20/21"), ranges("bytes 7")), (None, None));
    }

    #[test]
    fn a_disk_that_takes_no_more_is_named_with_what_it_lacks() {
        let path = std::env::temp_dir().join(format!("reel-disk-{}", std::process::id()));
        std::fs::write(&path, [7; 1001]).unwrap();
        for (kind, words) in [(ErrorKind::StorageFull, "the disk is full"), (ErrorKind::QuotaExceeded, "is used up")] {
            let Ended::Failed(error) = disk(kind.into(), &path, Some(5000)) else { panic!() };
            let error = error.to_string();
            for words in [words, "1.00 kB of 5.00 kB are kept", &path.display().to_string(), "make room", " are free"] {
                assert!(error.contains(words), "no `{words}` in {error}");
            }
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_hash_is_what_it_should_be() {
        assert_eq!(hex(Hash::new(&SHA256)), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
