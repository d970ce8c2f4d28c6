//! Who may use whom, read off the sources.

use std::path::{Path, PathBuf};

/// A file of `src`: its path there, and its code without comments and unit tests.
struct Source {
    path: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut all = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("testing.rs") && !name.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let is_test_module = |at: &usize| text[*at..].lines().nth(1).is_some_and(|line| line.ends_with('{'));
                let end = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(is_test_module);
                let lines = text[..end.unwrap_or(text.len())].lines();
                let code = lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                all.push(Source { path: name, code });
            }
        }
    }
    assert!(all.len() > 30, "only {} sources found", all.len());
    all
}

impl Source {
    /// `room` is a folder (`nn/`) or a file (`noise.rs`).
    fn is_in(&self, rooms: &[&str]) -> bool {
        rooms.iter().any(|room| if room.ends_with('/') { self.path.starts_with(room) } else { self.path == *room })
    }

    /// The rooms of this crate that it names.
    fn uses(&self) -> Vec<String> {
        let after = self.code.split("crate::").skip(1).chain(self.code.split("reel::").skip(1));
        let room = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_string();
        let rooms: Vec<String> = after.map(room).collect();
        assert!(!rooms.contains(&String::new()), "{}: `crate::{{…}}` hides from this test: one line a room", self.path);
        rooms
    }
}

/// Everything that breaks a rule, as one failure.
fn assert_none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let allowed: [(&str, &[&str]); 12] = [
        ("models/", &["config", "geometry", "models", "nn", "noise"]),
        ("text/", &["config", "nn", "text"]),
        ("nn/", &["nn", "platform"]),
        ("video/", &["platform", "video"]),
        ("platform/", &["platform"]),
        ("sampler.rs", &["noise"]),
        ("noise.rs", &[]),
        ("geometry.rs", &[]),
        ("ranges.rs", &[]),
        ("shown.rs", &[]),
        ("config.rs", &[]),
        ("main.rs", &["cli"]),
    ];
    let mut broken = vec![];
    for source in sources() {
        for (_, rooms) in allowed.iter().filter(|(room, _)| source.is_in(&[room])) {
            broken.extend(
                source
                    .uses()
                    .iter()
                    .filter(|u| !rooms.contains(&u.as_str()))
                    .map(|u| format!("{} uses {u}", source.path)),
            );
        }
        if !source.is_in(&["main.rs", "cli/"]) && source.uses().contains(&"cli".to_string()) {
            broken.push(format!("{} uses cli", source.path));
        }
    }
    assert_none("house rules of use", broken);
}

/// `words`: what only `rooms` may say. A room that no longer says it has to leave the list.
fn only(rule: &str, words: &[&str], rooms: &[&str]) {
    let says: Vec<Source> = sources().into_iter().filter(|s| words.iter().any(|word| s.code.contains(word))).collect();
    assert_none(rule, says.iter().filter(|s| !s.is_in(rooms)).map(|s| s.path.clone()).collect());
    let idle = rooms.iter().filter(|room| !says.iter().any(|s| s.is_in(&[room])));
    assert_none(&format!("{rule}, but these do not"), idle.map(|room| room.to_string()).collect());
}

#[test]
fn only_the_command_line_knows_clap() {
    only("knows clap", &["clap"], &["cli/", "device.rs", "progress.rs", "video/resize.rs", "bench.rs"]);
    // these hold enums that are flags as they are
    for source in sources().iter().filter(|s| s.is_in(&["device.rs", "progress.rs", "video/resize.rs", "bench.rs"])) {
        assert!(!source.code.replace("clap::ValueEnum", "").contains("clap"), "{}", source.path);
    }
}

#[test]
fn files_are_written_in_few_places() {
    // a bare `File::create`, not that of `AtomicFile`, which everything is to be written through
    let creates = [" File::create", "(File::create", "::File::create", "File::options", "OpenOptions"];
    let others = ["fs::write", "fs::rename", "fs::remove_", "fs::create_dir", "fs::copy"];
    let words = [&creates[..], &others].concat();
    // the store goes on with what it has of a download, quantised copies have a folder, the history of this machine is added to,
    // and a peak of memory begins anew by writing to the process's own entry in /proc
    let rooms = ["platform/files.rs", "weights/store/", "weights/quantize.rs", "history.rs", "platform/machine.rs"];
    only("writes files", &words, &rooms);
}

#[test]
fn printing_is_done_in_few_places() {
    only("prints with a macro", &["print!", "println!", "dbg!"], &[]);
    only("writes to standard error", &["io::stderr"], &["progress.rs"]);
    only("writes to standard output", &["io::stdout"], &["cli/mod.rs", "video/write/"]);
}

#[test]
fn the_environment_is_read_by_flags_and_the_store() {
    // what Python's variables say of the hub and its cache is the store's, whether a terminal has colours is progress's, and
    // whether a GPU's own kernels are turned off the machine's
    only(
        "reads the environment",
        &["env::var", "env::args"],
        &["cli/", "weights/store/settings.rs", "folders.rs", "progress.rs", "platform/machine.rs"],
    );
}

#[test]
fn unsafe_code_lives_in_kernels_mapped_files_and_signals() {
    // and standard output is looked at before `main`, and the allocator is told of limits
    let system = ["platform/arenas.rs", "platform/mapped.rs", "platform/signals.rs", "platform/streams.rs"];
    only("is unsafe", &["unsafe "], &[&["nn/", "noise.rs"][..], &system].concat());
}
