//! How long stages took on this machine: one JSON line a finished stage, in the user's state folder, and one a kind of
//! operations whose speed was measured. Plans forecast from it, and nothing else reads it; no output depends on it. It is the
//! machine's own: no prompts, no paths.

use crate::platform::files::{self, AtomicFile};
use crate::platform::folders::Folder;
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
/// A run with so many times more or fewer operations tells nothing; of another model's, so many.
const MOST_APART: f64 = 50.0;
const OTHERS_APART: f64 = 4.0;
/// Operations a second that some machine may make; a line that says otherwise was not written here.
const SPEEDS: std::ops::Range<f64> = 1e4..1e18;

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

impl Run {
    /// Operations a second, if these are numbers that a machine may have measured.
    fn speed(&self) -> Option<f64> {
        Some(self.operations as f64 / self.seconds).filter(|speed| SPEEDS.contains(speed))
    }
}

/// The file that runs are kept in; `None` where the system says no place for it.
pub fn place() -> Option<PathBuf> {
    Some(Folder::State.path()?.join("history.jsonl"))
}

/// All runs, the oldest first. Lines that cannot be read, or say what cannot be, are left out.
pub fn read(path: &Path) -> Vec<Run> {
    let bytes = files::read_small(path, MOST_BYTES).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let runs = text.lines().filter_map(|line| serde_json::from_str::<Run>(line).ok());
    runs.filter(|run| run.speed().is_some()).collect()
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

/// Seconds that a stage will take: as the runs of the nearest size did, by operations. Runs of the same model go before
/// others', which have to be nearer.
/// - `like`: the stage to come; its seconds are not read. `None` where nothing like it, in kind and size, was run here.
pub fn forecast(runs: &[Run], like: &Run) -> Option<f64> {
    if like.operations == 0 {
        return None;
    }
    let same = |run: &&Run| {
        (&run.stage, run.threads, run.operand, &run.device) == (&like.stage, like.threads, like.operand, &like.device)
            && run.speed().is_some()
    };
    let apart = |run: &Run| (run.operations as f64 / like.operations as f64).ln().abs();
    let nearest = |own: bool, most: f64| {
        let near = runs.iter().filter(same).filter(|run| (run.model == like.model) == own && apart(run) <= most.ln());
        let mut near: Vec<&Run> = near.collect();
        near.reverse(); // of equally near ones the newest
        near.sort_by(|a, b| apart(a).total_cmp(&apart(b)));
        let mut speeds: Vec<f64> = near.into_iter().take(NEAREST).filter_map(Run::speed).collect();
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    };
    let speed = nearest(true, MOST_APART).or_else(|| nearest(false, OTHERS_APART))?;
    Some(like.operations as f64 / speed)
}

/// Operations a second of a kind of work, as measured last.
/// - `like`: the kind, as `stage` names it, and where it is to be done; its operations and seconds are not read. `None` where it
///   was not measured with as many threads and the same instructions, which `model` names.
pub fn speed(runs: &[Run], like: &Run) -> Option<f64> {
    let same = |run: &&Run| {
        (&run.stage, &run.model, run.threads, &run.device) == (&like.stage, &like.model, like.threads, &like.device)
    };
    runs.iter().rev().filter(same).find_map(Run::speed)
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
        const MANY: u64 = 1_000_000_000;
        let runs = [
            run("decode", "a", MANY / 10, 1.0),
            run("decode", "a", MANY, 20.0),
            run("decode", "a", MANY / 10 * 11, 22.0),
            run("decode", "a", MANY / 10 * 9, 18.0),
            run("decode", "b", MANY, 999.0),
            run("denoise", "a", MANY, 5.0),
            Run { threads: 1, ..run("decode", "a", MANY, 40.0) },
        ];
        let like = |stage, model, operations| forecast(&runs, &run(stage, model, operations, 0.0));
        let is = |found: Option<f64>, seconds: f64| found.is_some_and(|found| (found / seconds - 1.0).abs() < 1e-9);
        assert!(is(like("decode", "a", 2 * MANY), 40.0));
        assert!(is(like("decode", "b", 2 * MANY), 2.0 * 999.0));
        // no run of its own: the nearest of all others, and none that is far off
        assert!(is(like("decode", "c", MANY / 10), 1.0));
        assert_eq!(like("decode", "c", 20 * MANY), None);
        assert_eq!(like("text", "a", MANY), None);
        assert_eq!(like("decode", "a", MANY / 1000), None); // far too small
        assert_eq!(forecast(&[], &run("text", "a", MANY, 0.0)), None);
    }

    #[test]
    fn a_measured_speed_holds_for_its_threads_and_instructions() {
        let of = |model: &str, seconds: f64| run("product in f32", model, 1_000_000_000, seconds);
        let runs = [of("AVX2", 1.0), of("AVX2", 2.0), of("AVX-512", 0.5), Run { threads: 4, ..of("AVX2", 0.1) }];
        assert_eq!(speed(&runs, &of("AVX2", 0.0)), Some(5e8)); // the newest
        assert_eq!(speed(&runs, &of("AVX-512", 0.0)), Some(2e9));
        assert_eq!(speed(&runs, &of("NEON", 0.0)), None);
        assert_eq!(speed(&runs, &Run { threads: 3, ..of("AVX2", 0.0) }), None);
        assert_eq!(speed(&runs, &run("product in bf16", "AVX2", 0, 0.0)), None);
        // no stage is forecast from it
        assert_eq!(forecast(&runs, &run("text", "AVX2", 1_000_000_000, 0.0)), None);
    }

    #[test]
    fn what_cannot_have_been_measured_is_left_out() {
        let folder = std::env::temp_dir().join(format!("reel-foreign-history-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("history.jsonl");
        let good = serde_json::to_string(&run("text", "a", 1_000_000_000, 1.0)).unwrap();
        let with = |from: &str, to: &str| good.replace(from, to);
        let foreign = [
            with("1.0", "-1.0"),
            with("1.0", "0.0"),
            with("1.0", "NaN"),
            with("1.0", "1e999"),
            with("1.0", "1e300"),
            with("1.0", "1e-300"),
            with("1000000000", "0"),
            with("1000000000", "-5"),
            with("1000000000", "99999999999999999999999"),
            "[".repeat(100_000),
            "{}".to_string(),
            String::new(),
        ];
        let text = format!("{good}\n{}\n{good}\n", foreign.join("\n"));
        std::fs::write(&path, [text.as_bytes(), b"\xff\xfe\n", good.as_bytes()].concat()).unwrap();
        assert_eq!(read(&path).len(), 3);
        // one that is far too long is none of ours
        std::fs::write(&path, format!("{}{good}\n", "x\n".repeat(MOST_BYTES as usize))).unwrap();
        assert!(read(&path).is_empty());
        assert!(read(&folder).is_empty() && read(&folder.join("none")).is_empty());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_long_history_loses_its_oldest_lines() {
        let folder = std::env::temp_dir().join(format!("reel-history-{}", std::process::id()));
        let path = folder.join("state/history.jsonl");
        for i in 0..MOST_LINES as u64 + 3 {
            add(&path, &run("text", "a", 1_000_000 + i, 1.0)).unwrap();
        }
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"half a li").unwrap();
        let runs = read(&path);
        assert_eq!(
            (runs.len(), runs[runs.len() - 1].operations),
            (MOST_LINES / 2 + 3, 1_000_000 + MOST_LINES as u64 + 2)
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// Runs end beside each other, also when one of them shortens the history.
    #[test]
    fn no_line_is_lost_among_several_writers() {
        let folder = files::Scratch::create("reel-history").unwrap();
        let path = folder.path().join("history.jsonl");
        let each = 50;
        // so that it is shortened once meanwhile, by lines that are old
        (0..MOST_LINES - 20).for_each(|_| add(&path, &run("text", "old", 1_000_000, 1.0)).unwrap());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    (0..each).for_each(|i| add(path, &run("text", "new", 1_000_000 + writer * each + i, 1.0)).unwrap())
                });
            }
        });
        let mut new: Vec<u64> =
            read(&path).into_iter().filter(|run| run.model == "new").map(|run| run.operations).collect();
        new.sort_unstable();
        assert_eq!(new, (0..4 * each).map(|i| 1_000_000 + i).collect::<Vec<u64>>());
    }

    #[test]
    #[cfg(unix)]
    fn a_history_that_is_no_file_is_none() {
        assert!(read(Path::new("/dev/zero")).is_empty());
    }
}
