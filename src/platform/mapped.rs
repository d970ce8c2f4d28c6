//! Files that are used where they are, page by page as they are read.

use super::files::open_regular;
use anyhow::{Context, Result};
use memmap2::Mmap;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A file in memory. It is never written.
pub struct MappedFile {
    map: Mmap,
    version: (u64, Option<SystemTime>),
    slot: Option<usize>,
}

impl MappedFile {
    /// Maps a whole file.
    /// - Errors on what is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        // SAFETY: the map is only read. A file that shrinks while it is mapped raises SIGBUS where it is read, which `signals`
        // turns into an error; replacing a file by renaming, as downloads do, leaves the map intact.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map `{}`", path.display()))?;
        let version = file.metadata().map(|m| (m.len(), m.modified().ok())).unwrap_or_default();
        let slot = watch(map.as_ptr_range(), path);
        Ok(Self { map, version, slot })
    }

    /// Returns the file's length and the time of its last change, as they were when it was mapped.
    pub fn version(&self) -> (u64, Option<SystemTime>) {
        self.version
    }

    /// Lets the pages of a range go that has been copied; a later look reads them from the file again.
    pub fn forget(&self, range: (usize, usize)) {
        #[cfg(unix)]
        {
            // SAFETY: the map is of a file and never written, so its pages come back as they were.
            let advice = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.0, range.1 - range.0)
            };
            let _ = advice; // it is only advice
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            SLOTS[slot].end.store(0, SeqCst);
            let mut paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
            paths.retain(|(of, _)| *of != slot);
        }
    }
}

/// Where a mapped file begins and ends; an end of 0 is a free slot, one of 1 a taken one without a range yet. Atomic, for a signal
/// handler reads it, which must not wait for a lock.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// More files than that are mapped, but not watched.
static SLOTS: [Slot; 256] = [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; 256];
/// The files of taken slots.
static PATHS: Mutex<Vec<(usize, PathBuf)>> = Mutex::new(Vec::new());

fn watch(range: Range<*const u8>, path: &Path) -> Option<usize> {
    let slot = SLOTS.iter().position(|slot| slot.end.compare_exchange(0, 1, SeqCst, SeqCst).is_ok())?;
    SLOTS[slot].start.store(range.start.addr(), SeqCst);
    SLOTS[slot].end.store(range.end.addr().max(range.start.addr() + 1), SeqCst);
    PATHS.lock().unwrap_or_else(PoisonError::into_inner).push((slot, path.to_path_buf()));
    Some(slot)
}

/// Tells whether an address is in a mapped file; callable in a signal handler.
#[cfg_attr(not(unix), allow(dead_code))]
pub(super) fn contains(address: usize) -> bool {
    slot_of(address).is_some()
}

/// Returns the mapped file that an address is in.
#[cfg_attr(not(unix), allow(dead_code))]
pub(super) fn path_of(address: usize) -> Option<PathBuf> {
    let slot = slot_of(address)?;
    let paths = PATHS.try_lock().ok()?;
    paths.iter().find(|(of, _)| *of == slot).map(|(_, path)| path.clone())
}

fn slot_of(address: usize) -> Option<usize> {
    SLOTS.iter().position(|slot| slot.start.load(SeqCst) <= address && address < slot.end.load(SeqCst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::files::Scratch;

    #[test]
    fn an_address_tells_its_file() {
        let folder = Scratch::create("reel-mapped").unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, [7; 5000]).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let address = map.as_ptr().addr();
        assert_eq!(path_of(address + 4999), Some(path));
        assert!(contains(address) && !contains(address + 5000));
        drop(map);
        assert!(!contains(address));
        assert!(MappedFile::open(folder.path()).is_err());
    }
}
