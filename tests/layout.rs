//! Who may use whom, read off the sources.

use std::collections::{BTreeMap, BTreeSet};
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

    /// Its module: `nn/kernel/mod.rs` is nn, kernel.
    fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if path == "lib" { vec![] } else { path.split('/').map(String::from).collect() }
    }

    /// Every path in it that begins with `crate`, `super` or `self`, with the lists of `use` written out.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut all = vec![];
        for start in ["crate::", "super::", "self::"] {
            for (at, _) in self.code.match_indices(start) {
                let before = self.code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue; // in the middle of another path
                }
                expand(&self.code[at..], vec![], &mut all);
            }
        }
        all
    }
}

/// Reads one path of a `use` or of code, and every one of a list in braces. Returns what follows it.
fn expand<'a>(mut text: &'a str, mut path: Vec<String>, all: &mut Vec<Vec<String>>) -> &'a str {
    loop {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        path.push(text[..end].to_string());
        text = &text[end..];
        let Some(rest) = text.strip_prefix("::") else { break };
        if let Some(mut list) = rest.strip_prefix('{') {
            loop {
                list = list.trim_start();
                if let Some(after) = list.strip_prefix('}') {
                    return after;
                }
                list = expand(list, path.clone(), all);
                let end = list.find([',', '}']).unwrap_or(list.len()); // `as` and another name
                list = list[end..].trim_start_matches(',');
                if list.is_empty() {
                    return list;
                }
            }
        }
        text = rest;
    }
    all.push(path);
    text
}

/// Everything that breaks a rule, as one failure.
fn assert_none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// Rooms from below: each may use itself and those before it, as far as [`NARROW`] does not say less.
const ROOMS: [&str; 13] = [
    "embedded", "platform", "nn", "sampling", "video", "weights", "job", "hub", "models", "planning", "pipeline",
    "bench", "cli",
];
/// Rooms that know fewer others than those below them.
const NARROW: [(&str, &[&str]); 6] = [
    ("embedded", &[]),
    ("platform", &[]),
    ("nn", &["platform"]),
    ("sampling", &[]),
    ("video", &["platform"]),
    ("weights", &["nn", "platform"]),
];

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let mut broken = vec![];
    for source in sources() {
        let room = source.path.split(['/', '.']).next().unwrap().to_string();
        if source.path == "lib.rs" || room == "guide" {
            continue;
        }
        let Some(place) = ROOMS.iter().position(|name| *name == room) else {
            assert_eq!(source.path, "main.rs", "a room that this test does not know");
            assert!(source.uses().iter().all(|used| used == "cli"), "main.rs uses more than cli");
            continue;
        };
        let narrow = NARROW.iter().find(|(name, _)| *name == room).map(|(_, rooms)| rooms);
        for used in source.uses() {
            let below = match narrow {
                Some(rooms) => rooms.contains(&used.as_str()),
                None => ROOMS[..place].contains(&used.as_str()),
            };
            if used != room && !below {
                broken.push(format!("{} uses {used}", source.path));
            }
        }
    }
    assert_none("house rules of use", broken);
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module).filter(|m| !m.is_empty()).collect();
    // the file in which a path ends
    let find = |own: &[String], path: &[String]| -> Option<Vec<String>> {
        let up = path.iter().take_while(|name| ["crate", "super", "self"].contains(&name.as_str())).count();
        let mut at = if path[0] == "crate" { vec![] } else { own.to_vec() };
        path[..up].iter().filter(|name| *name == "super").for_each(|_| drop(at.pop()));
        let mut found = modules.get(&at).cloned();
        for name in &path[up..] {
            at.push(name.clone());
            match modules.get(&at) {
                Some(module) => found = Some(module.clone()),
                None => break,
            }
        }
        found
    };
    let mut uses: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for source in &sources {
        let own = source.module();
        let others = source.paths().into_iter().filter_map(|path| find(&own, &path)).filter(|other| *other != own);
        uses.insert(own.clone(), others.collect());
    }
    // what each file reaches, step by step
    let mut reach = uses.clone();
    loop {
        let before: usize = reach.values().map(BTreeSet::len).sum();
        for module in &modules {
            let more: Vec<Vec<String>> = reach[module].iter().filter_map(|m| uses.get(m)).flatten().cloned().collect();
            reach.get_mut(module).unwrap().extend(more);
        }
        if reach.values().map(BTreeSet::len).sum::<usize>() == before {
            break;
        }
    }
    let circle_of = |module: &Vec<String>| -> Vec<String> {
        let both = modules.iter().filter(|other| reach[module].contains(*other) && reach[*other].contains(module));
        both.map(|module| module.join("/")).collect()
    };
    let found: BTreeSet<Vec<String>> = modules.iter().map(circle_of).filter(|circle| circle.len() > 1).collect();
    assert_none("files import each other", found.iter().map(|circle| circle.join(", ")).collect());
}

/// Cargo is told of one executable of tests and looks for no other, so a file that nobody names would be left out unseen.
#[test]
fn every_file_of_tests_is_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut missing = vec![];
    for (folder, list) in [("", "main.rs"), ("cli", "cli/mod.rs"), ("store", "store/mod.rs")] {
        let named = std::fs::read_to_string(root.join(list)).unwrap();
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let is_module = path.extension().is_some_and(|end| end == "rs") || path.join("mod.rs").is_file();
            let is_list = root.join(list) == path;
            if is_module && !is_list && !named.contains(&format!("mod {name};")) {
                missing.push(path.display().to_string());
            }
        }
    }
    assert_none("tests that are never run", missing);
}

/// `words`: what only `rooms` may say. A room that no longer says it has to leave the list.
fn only(rule: &str, words: &[&str], rooms: &[&str]) {
    let says: Vec<Source> = sources().into_iter().filter(|s| words.iter().any(|word| s.code.contains(word))).collect();
    assert_none(rule, says.iter().filter(|s| !s.is_in(rooms)).map(|s| s.path.clone()).collect());
    let idle = rooms.iter().filter(|room| !says.iter().any(|s| s.is_in(&[room])));
    assert_none(&format!("{rule}, but these do not"), idle.map(|room| room.to_string()).collect());
}

/// A family is a room under `models/`; what others ask of it goes through `models/mod.rs` and `models/networks.rs`.
#[test]
fn no_room_but_models_names_a_family() {
    let names_one = |code: &str| {
        let code = code.to_lowercase();
        code.match_indices("ltx").any(|(at, _)| {
            let after = &code[at + 3..];
            // names of the catalogue, such as `ltx-2b-0.9.8-distilled`, are what users type
            !(after.starts_with('-') && after[1..].starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let named = sources().into_iter().filter(|s| !s.is_in(&["models/"]) && s.path != "lib.rs");
    assert_none("names a family", named.filter(|s| names_one(&s.code)).map(|s| s.path).collect());
    assert!(names_one("use crate::models::ltx::vae") && names_one("Family::Ltx") && !names_one("\"ltx-2b-0.9.5\""));
    let inside = sources().into_iter().filter(|s| s.is_in(&["models/"]) && !s.is_in(&["models/ltx/"]));
    let named: Vec<String> = inside.filter(|s| names_one(&s.code)).map(|s| s.path).collect();
    assert_eq!(named, ["models/mod.rs", "models/networks.rs"], "an arm for each family stands here alone");
}

#[test]
fn only_the_command_line_knows_clap() {
    only(
        "knows clap",
        &["clap"],
        &["cli/", "platform/device.rs", "platform/progress.rs", "video/resize.rs", "bench.rs"],
    );
    // these hold enums that are flags as they are
    for source in sources()
        .iter()
        .filter(|s| s.is_in(&["platform/device.rs", "platform/progress.rs", "video/resize.rs", "bench.rs"]))
    {
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
    let rooms = ["platform/files.rs", "hub/store/", "weights/copies.rs", "planning/history.rs", "platform/machine.rs"];
    only("writes files", &words, &rooms);
}

#[test]
fn printing_is_done_in_few_places() {
    only("prints with a macro", &["print!", "println!", "dbg!"], &[]);
    only("writes to standard error", &["io::stderr"], &["platform/report/json.rs", "platform/report/terminal.rs"]);
    only("writes to standard output", &["io::stdout"], &["cli/mod.rs", "video/write/"]);
}

/// What ends the process skips everything that is cleaned up on the way out, so nobody else may.
#[test]
fn the_program_is_ended_in_one_place() {
    only("ends the process", &["process::exit", "process::abort", "_exit("], &["main.rs"]);
}

#[test]
fn the_environment_is_read_by_flags_and_the_store() {
    // what Python's variables say of the hub and its cache is the store's, whether a terminal has colours is the report's, and
    // whether a GPU's own kernels are turned off the machine's
    only(
        "reads the environment",
        &["env::var", "env::args"],
        &["cli/", "hub/store/settings.rs", "platform/folders.rs", "platform/report/terminal.rs", "platform/machine.rs"],
    );
}

#[test]
fn unsafe_code_lives_in_kernels_mapped_files_and_signals() {
    // and standard output is looked at before `main`, and the allocator is told of limits
    let system = ["platform/arenas.rs", "platform/mapped.rs", "platform/signals.rs", "platform/streams.rs"];
    only("is unsafe", &["unsafe "], &[&["nn/", "sampling/noise.rs"][..], &system].concat());
}
