//! How long stages took on this machine: one JSON line a finished stage, in the user's state folder. Plans forecast from it, and
//! nothing else reads it; no output depends on it. It is the machine's own: no prompts, no paths.

use crate::folders::Folder;
use crate::platform::files::{self, AtomicFile};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Lines that are kept; the oldest go first.
const MOST_LINES: usize = 400;
/// Bytes that a history is read with; a longer file is none of ours.
const MOST_BYTES: u64 = 1 << 20;
/// Runs that a forecast is made from.
const NEAREST: usize = 3;
/// A run with so many times more or fewer operations tells nothing.
const MOST_APART: f64 = 50.0;

/// One finished stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub stage: String,
    pub model: String,
    /// Multiplications and additions, as plans count them.
    pub operations: u64,
    pub seconds: f64,
    pub threads: usize,
    /// Bytes of a number that products read.
    pub operand: u64,
    pub device: String,
}

/// The file that runs are kept in; `None` where the system says no place for it.
pub fn place() -> Option<PathBuf> {
    Some(Folder::State.path()?.join("history.jsonl"))
}

/// All runs, the oldest first. Lines that cannot be read are left out.
pub fn read(path: &Path) -> Vec<Run> {
    let text = files::read_small_text(path, MOST_BYTES).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Adds a finished stage.
/// - Errors where the place cannot be written; a run is none the worse for it.
pub fn add(path: &Path, run: &Run) -> Result<()> {
    let folder = files::folder_of(path);
    std::fs::create_dir_all(&folder)?;
    // Held while lines are read and written anew, so that no line of a process beside this one is lost. A file of its own, for the
    // history itself is replaced. On a disk without locks a line may be lost, and is no great loss.
    let lock = File::options().create(true).append(true).open(folder.join(".history.lock"))?;
    let _ = lock.lock();
    let text = match files::read_small_text(path, MOST_BYTES) {
        Err(error) if files::is_missing(&error) => String::new(),
        text => text?,
    };
    if text.lines().count() >= MOST_LINES {
        let kept: Vec<&str> = text.lines().skip(MOST_LINES / 2).collect();
        let file = AtomicFile::create(path, true)?;
        file.file().write_all((kept.join("\n") + "\n").as_bytes())?;
        file.commit()?;
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    // in one piece, so that runs beside each other do not mix their lines
    Ok(file.write_all(format!("{}\n", serde_json::to_string(run)?).as_bytes())?)
}

/// Seconds that a stage will take: as the runs of the nearest size did, by operations. Runs of the same model go before others'.
/// - `like`: the stage to come; its seconds are not read. `None` where nothing like it, in kind and size, was run here.
pub fn forecast(runs: &[Run], like: &Run) -> Option<f64> {
    if like.operations == 0 {
        return None;
    }
    let same = |run: &&Run| {
        (&run.stage, run.threads, run.operand, &run.device) == (&like.stage, like.threads, like.operand, &like.device)
            && run.operations > 0
            && run.seconds > 0.0
    };
    let all: Vec<&Run> = runs.iter().filter(same).collect();
    let own: Vec<&Run> = all.iter().copied().filter(|run| run.model == like.model).collect();
    let mut near = if own.is_empty() { all } else { own };
    near.reverse(); // of equally near ones the newest
    let apart = |run: &Run| (run.operations as f64 / like.operations as f64).ln().abs();
    near.retain(|run| apart(run) <= MOST_APART.ln());
    near.sort_by(|a, b| apart(a).total_cmp(&apart(b)));
    let mut paces: Vec<f64> = near.iter().take(NEAREST).map(|run| run.seconds / run.operations as f64).collect();
    paces.sort_by(f64::total_cmp);
    let middle = paces.get(paces.len().checked_sub(1)? / 2)?;
    Some(middle * like.operations as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stage: &str, model: &str, operations: u64, seconds: f64) -> Run {
        let (stage, model, device) = (stage.into(), model.into(), "cpu".into());
        Run { stage, model, operations, seconds, threads: 2, operand: 2, device }
    }

    #[test]
    fn the_nearest_runs_of_the_same_kind_decide() {
        let runs = [
            run("decode", "a", 100, 1.0),
            run("decode", "a", 1000, 20.0),
            run("decode", "a", 1100, 22.0),
            run("decode", "a", 900, 18.0),
            run("decode", "b", 1000, 999.0),
            run("denoise", "a", 1000, 5.0),
            Run { threads: 1, ..run("decode", "a", 1000, 40.0) },
        ];
        let like = |stage, model, operations| forecast(&runs, &run(stage, model, operations, 0.0));
        assert!((like("decode", "a", 2000).unwrap() - 40.0).abs() < 1e-9);
        assert!((like("decode", "c", 100).unwrap() - 1.0).abs() < 2.0); // no run of its own: all others
        assert_eq!(like("text", "a", 10), None);
        assert_eq!(like("decode", "a", 1), None); // far too small
        assert_eq!(forecast(&[], &run("text", "a", 10, 0.0)), None);
    }

    #[test]
    fn a_long_history_loses_its_oldest_lines() {
        let folder = std::env::temp_dir().join(format!("reel-history-{}", std::process::id()));
        let path = folder.join("state/history.jsonl");
        for i in 0..MOST_LINES as u64 + 3 {
            add(&path, &run("text", "a", i + 1, 1.0)).unwrap();
        }
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"half a li").unwrap();
        let runs = read(&path);
        assert_eq!((runs.len(), runs[runs.len() - 1].operations), (MOST_LINES / 2 + 3, MOST_LINES as u64 + 3));
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// Runs end beside each other, also when one of them shortens the history.
    #[test]
    fn no_line_is_lost_among_several_writers() {
        let folder = files::Scratch::create("reel-history").unwrap();
        let path = folder.path().join("history.jsonl");
        let each = 50;
        // so that it is shortened once meanwhile, by lines that are old
        (0..MOST_LINES - 20).for_each(|_| add(&path, &run("text", "old", 1, 1.0)).unwrap());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    (0..each).for_each(|i| add(path, &run("text", "new", writer * each + i + 1, 1.0)).unwrap())
                });
            }
        });
        let mut new: Vec<u64> =
            read(&path).into_iter().filter(|run| run.model == "new").map(|run| run.operations).collect();
        new.sort_unstable();
        assert_eq!(new, (1..=4 * each).collect::<Vec<u64>>());
    }

    #[test]
    #[cfg(unix)]
    fn a_history_that_is_no_file_is_none() {
        assert!(read(Path::new("/dev/zero")).is_empty());
    }
}
