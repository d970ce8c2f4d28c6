//! Files that appear whole or not at all: written as `.NAME.PID.partial` beside NAME, renamed when done.

use super::check::folder_of;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What this process has half written, for the day a signal ends it.
static OPEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The set is whole after any panic, so a poisoned lock is as good as another.
fn open() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is half written. Called when a signal ends the program, from an ordinary thread.
pub fn remove_partial() {
    remove(&mut open());
}

fn remove(paths: &mut BTreeSet<PathBuf>) {
    while let Some(path) = paths.pop_first() {
        let _ = std::fs::remove_file(path); // nobody is left to tell
    }
}

/// A file in the making; removed when dropped before `commit`.
pub struct Partial {
    temporary: PathBuf,
    target: PathBuf,
    force: bool,
    file: File,
}

impl Partial {
    /// - `force`: `commit` may replace a file.
    pub fn create(target: &Path, force: bool) -> Result<Partial> {
        let mut open = open();
        let temporary = temporary(target, &open);
        // Left by a process that was killed and had the same id, as in a container: nobody else's.
        let _ = std::fs::remove_file(&temporary);
        let file = File::options().read(true).write(true).create_new(true).open(&temporary).map_err(|error| {
            let folder = folder_of(target);
            anyhow!(
                "cannot write to the folder `{}`: {error}\n  fix: make room or permission there, or choose another -o",
                folder.display()
            )
        })?;
        open.insert(temporary.clone());
        Ok(Partial { temporary, target: target.to_path_buf(), force, file })
    }

    /// A buffered handle on the file; flush it before `commit`.
    pub fn writer(&self) -> Result<BufWriter<File>> {
        Ok(BufWriter::with_capacity(1 << 18, self.file.try_clone().with_context(|| self.failed())?))
    }

    /// The file itself, for those that need no buffer.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// `cannot write ...`, for the errors of those who write.
    pub fn failed(&self) -> String {
        format!("cannot write `{}`", self.target.display())
    }

    /// Puts the bytes on the disk and gives the file its name.
    /// - Errors when the name was taken meanwhile and `force` is off; the file is then gone.
    pub fn commit(self) -> Result<()> {
        self.file.sync_all().with_context(|| self.failed())?;
        let mut open = open(); // held while renaming: a signal finds either the partial or the whole file
        if !open.contains(&self.temporary) {
            bail!("{}: interrupted", self.failed());
        }
        let renamed = if self.force { std::fs::rename(&self.temporary, &self.target) } else { self.take_free_name() };
        match renamed {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "`{}` appeared while the clip was being made, and is left as it is\n  \
                 fix: --force replaces it, or choose another -o",
                self.target.display()
            ),
            other => other.with_context(|| self.failed())?,
        }
        open.remove(&self.temporary);
        Ok(())
    }

    /// A hard link fails where the name is taken, with no moment between looking and doing. Where the disk has no hard
    /// links, looking first has to do.
    fn take_free_name(&self) -> std::io::Result<()> {
        match std::fs::hard_link(&self.temporary, &self.target) {
            Ok(()) => std::fs::remove_file(&self.temporary),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
            Err(_) if self.target.symlink_metadata().is_ok() => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => std::fs::rename(&self.temporary, &self.target),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if open().remove(&self.temporary) {
            let _ = std::fs::remove_file(&self.temporary); // the error that led here is the one to tell
        }
    }
}

/// `.NAME.PID.partial`, with a number where this process already writes that one.
fn temporary(target: &Path, taken: &BTreeSet<PathBuf>) -> PathBuf {
    let name: String = target.file_name().unwrap_or_default().to_string_lossy().chars().take(50).collect(); // names end at 255 bytes
    let folder = folder_of(target);
    let id = std::process::id();
    let first = folder.join(format!(".{name}.{id}.partial"));
    let more = (1..).map(|n| folder.join(format!(".{name}.{id}-{n}.partial")));
    std::iter::once(first).chain(more).find(|path| !taken.contains(path)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scratch;
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_appears_whole_or_not_at_all() -> Result<()> {
        let folder = Scratch::new("partial");
        let path = folder.target("a.gif").path;
        let one = Partial::create(&path, false)?;
        let two = Partial::create(&path, false)?;
        let three = Partial::create(&path, true)?;
        for (partial, text) in [(&one, "one"), (&two, "two"), (&three, "three")] {
            let mut writer = partial.writer()?;
            writer.write_all(text.as_bytes())?;
            writer.flush()?;
        }
        assert_eq!(folder.names().len(), 3);
        one.commit()?;
        assert_eq!(std::fs::read(&path)?, b"one");
        assert!(two.commit().is_err());
        assert_eq!(std::fs::read(&path)?, b"one");
        three.commit()?;
        assert_eq!(std::fs::read(&path)?, b"three");
        assert_eq!(folder.names(), ["a.gif"]);
        Ok(())
    }

    #[test]
    fn a_signal_leaves_nothing_half_written() -> Result<()> {
        let folder = Scratch::new("signal");
        let paths = ["a", "b"].map(|name| folder.target(name).path);
        for path in &paths {
            std::fs::write(path, "half")?;
        }
        let mut set = BTreeSet::from(paths);
        remove(&mut set);
        assert!(set.is_empty() && folder.names().is_empty());
        Ok(())
    }

    #[test]
    fn long_names_still_fit() -> Result<()> {
        let folder = Scratch::new("long");
        let path = folder.target(&format!("{}.gif", "ä".repeat(120))).path;
        Partial::create(&path, false)?.commit()?;
        assert_eq!(folder.names().len(), 1);
        Ok(())
    }
}
