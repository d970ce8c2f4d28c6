//! What the system does to a run: other processes, signals, limits, closed streams, and things in the place of files.
#![cfg(unix)]

use super::common::*;
use reel::embedded::TINY;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `reel` in a shell that has set something up before.
fn after(setup: &str, folder: &Path, args: &[&str]) -> Command {
    let plain = command(folder, args);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{setup}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_reel")]).args(args);
    shell.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Long enough to be met in the middle.
const LONG: [&str; 8] = ["generate", "x", "--frames", "800", "--steps", "200", "--progress", "json"];

/// Waits until a run says that it is at the network.
fn until_it_denoises(child: &mut Child) -> impl BufRead + use<> {
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("denoise") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it never began");
    }
    said
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Containers share a folder, and in each the process is number 1: the names of two processes may be the same.
#[test]
fn what_another_process_of_the_same_number_writes_is_left_alone() {
    let scratch = Scratch::new();
    let theirs = "for n in .a.gif.$$.partial .a.gif.$$-1.partial; do echo theirs > $n; done";
    let output = after(theirs, &scratch.0, &short(&["-o", "a.gif"])).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let names = names(&scratch.0);
    assert_eq!(names.len(), 3, "{names:?}");
    for name in &names[..2] {
        assert_eq!(std::fs::read_to_string(scratch.path(name)).unwrap(), "theirs\n");
    }
    // the same name at the same time: one has it, and the other says so
    let scratch = Scratch::new();
    let start = || command(&scratch.0, &short(&["-o", "b.gif"])).stderr(Stdio::piped()).spawn().unwrap();
    let runs = [start(), start()].map(|child| child.wait_with_output().unwrap());
    let done = runs.iter().filter(|run| run.status.success()).count();
    let refused = |run: &Output| run.status.success() || text(&run.stderr).contains("b.gif");
    assert!(done >= 1 && runs.iter().all(refused));
    assert_eq!(self::names(&scratch.0), ["b.gif"]);
}

#[test]
fn an_interrupt_says_what_it_leaves() {
    let scratch = Scratch::new();
    let mut child =
        command(&scratch.0, &[&LONG[..], &["-o", "a.gif"]].concat()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = until_it_denoises(&mut child);
    send("-INT", &child);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let last = rest.lines().last().unwrap_or_default();
    assert!(last.contains("interrupted; nothing was written"), "{rest}");
    assert_eq!(rest.matches("\"error\"").count(), 1, "one message, whoever says it: {rest}");
    assert!(names(&scratch.0).is_empty());
    // what remains is known when the signal comes, and no longer when the run has stopped
    let args =
        ["generate", "x", "--frames", "800", "--sigmas", "1", "--guidance", "1", "--progress", "json", "-o", "-"];
    let mut child = command(&scratch.0, &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"stage\":\"decode\",\"done\":1") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it never decoded");
    }
    send("-INT", &child);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.lines().last().unwrap().contains("interrupted; the clip on standard output is cut off"), "{rest}");
    assert_eq!(rest.matches("\"error\"").count(), 1, "{rest}");
}

/// Who waits for standard input asks nobody whether to go on.
#[test]
fn an_interrupt_does_not_wait_for_what_hangs() {
    let scratch = Scratch::new();
    let args = ["generate", "-", "--threads", "1000", "-o", "a.gif"];
    let mut child = command(&scratch.0, &args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.contains("--threads 1000"), "{first}");
    let begun = Instant::now();
    send("-TERM", &child);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(rest, "interrupted; nothing was written\n");
}

/// `nohup`, and the background of scripts.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    for signal in ["HUP", "INT", "TERM"] {
        let scratch = Scratch::new();
        let args = ["generate", "x", "--size", "32x32", "--frames", "400", "--steps", "9", "-o", "a.gif"];
        let args = [&args[..], &["--progress", "json"]].concat();
        let mut child = after(&format!("trap '' {signal}"), &scratch.0, &args).spawn().unwrap();
        let mut said = until_it_denoises(&mut child);
        send(&format!("-{signal}"), &child);
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}: {rest}");
        assert_eq!(names(&scratch.0), ["a.gif"]);
    }
}

#[test]
fn a_file_beyond_the_shells_limit_is_an_error() {
    let scratch = Scratch::new();
    let checkpoint = Model::tiny().directory(&scratch, "ck");
    let before = scratch.listing();
    let checkpoint = checkpoint.to_str().unwrap();
    let runs = [
        short(&["-o", "a.png"]),
        short(&["-o", "frames/"]),
        vec!["models", "quantize", checkpoint, "--type", "q8_0", "-o", "a.gguf"],
        vec!["models", "pack", checkpoint, "-o", "a.safetensors"],
    ];
    for args in runs {
        let output = after("ulimit -f 1", &scratch.0, &args).output().unwrap();
        judge(&args, &output, 1, &["cannot write", "ulimit -f", "fix:"]);
        assert_eq!(scratch.listing(), before, "{args:?}");
    }
}

/// A mapped file that shrinks raises SIGBUS in whoever reads it.
#[test]
fn weights_that_shrink_under_way_are_an_error() {
    let scratch = Scratch::new();
    let model = scratch.write("m.safetensors", TINY);
    // the VAE is read when denoising is over
    let args = ["generate", "x", "--steps", "40", "--progress", "json", "--model", "m.safetensors", "-o", "a.gif"];
    let mut child = command(&scratch.0, &args).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = until_it_denoises(&mut child);
    std::fs::File::options().write(true).open(&model).unwrap().set_len(100).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("m.safetensors") && rest.contains("cut off") && rest.contains("\"fix\":"), "{rest}");
    assert_eq!(names(&scratch.0), ["m.safetensors"]);
}

#[test]
fn threads_are_as_many_as_there_is_use_for() {
    let scratch = Scratch::new();
    let begun = Instant::now();
    let output = reel(&scratch.0, &short(&["-o", "a.gif", "--threads", "1000"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--threads 1000"), "{}", text(&output.stderr));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let id = Command::new("id").arg("-u").output().unwrap();
    if text(&id.stdout).trim() == "0" {
        return; // whom the next limit does not hold
    }
    let output = after("ulimit -u 1", &scratch.0, &short(&["-o", "b.gif", "--threads", "2"])).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no more threads"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read(scratch.path("a.gif")).unwrap(), std::fs::read(scratch.path("b.gif")).unwrap());
}

#[test]
fn closed_streams_and_missing_folders_are_no_end() {
    let scratch = Scratch::new();
    let setups = [
        "exec <&-",
        "exec >&-",
        "exec 2>&-",
        "exec <&- >&- 2>&-",
        "unset HOME XDG_STATE_HOME XDG_CONFIG_HOME XDG_DATA_HOME HF_HOME",
        "export HOME=/nowhere XDG_STATE_HOME=/dev/null/state TMPDIR=/dev/null/tmp",
        "export XDG_STATE_HOME=/proc",
        "ulimit -s 512",
    ];
    for (i, setup) in setups.iter().enumerate() {
        let name = format!("{i}.gif");
        let output = after(setup, &scratch.0, &short(&["-o", &name])).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{setup}: {}", text(&output.stderr));
        assert!(scratch.path(&name).is_file(), "{setup}");
    }
    let output = after("export TMPDIR=/dev/null/tmp", &scratch.0, &["selftest"]).output().unwrap();
    judge(&["selftest"], &output, 1, &["TMPDIR", "fix:"]);
}

/// What runs in less address space runs in more: no reserve grows with the limit. (It is told in kB.)
#[test]
#[cfg(target_os = "linux")]
fn more_address_space_refuses_nothing_that_less_runs() {
    let scratch = Scratch::new();
    let runs = |limit: usize| {
        let args = short(&["--threads", "8", "--force", "-o", "a.gif"]);
        after(&format!("ulimit -v {limit}"), &scratch.0, &args).output().unwrap().status.success()
    };
    let (limits, mut least) = ([100_000, 125_000, 150_000, 200_000, 250_000, 300_000, 400_000, 600_000], None);
    for limit in limits {
        let done = runs(limit);
        assert!(done || least.is_none(), "{limit} kB are refused, and {least:?} run");
        least = least.or(done.then_some(limit));
    }
    assert!(least.is_some_and(|least| least <= 300_000), "{least:?}");
}

/// The library opens `/dev/null` in its place, which takes everything.
#[test]
fn a_closed_standard_output_is_an_error_where_something_goes_there() {
    let scratch = Scratch::new();
    let clip = short(&["-o", "-"]);
    let plan = short(&["--dry-run"]);
    for (args, code) in [(&clip[..], 2), (&plan, 1), (&["--help"], 1), (&["models", "list", "--json"], 1)] {
        let output = after("exec >&-", &scratch.0, args).output().unwrap();
        judge(args, &output, code, &["standard output", "closed"]);
    }
    // where it is not closed there is nothing to say
    let output = after("exec >/dev/null", &scratch.0, &clip).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

/// Pipes are not waited for, and what has no end is not read.
#[test]
fn pipes_and_devices_are_no_files() {
    let scratch = Scratch::new();
    assert!(Command::new("mkfifo").arg(scratch.path("pipe")).status().unwrap().success());
    let pipe = scratch.path("pipe");
    let places = ["/dev/zero", pipe.to_str().unwrap()];
    each(&places, |&place| {
        let refuse = |args: &[&str]| {
            let begun = Instant::now();
            refused(&scratch, args, &[place, "fix:"]);
            assert!(begun.elapsed() < Duration::from_secs(5), "{args:?}");
        };
        for flag in ["--model", "--text-encoder", "--vae", "--lora", "--image", "--upscaler", "--tokenizer"] {
            refuse(&["generate", "x", flag, place, "-o", "a.gif"]);
        }
        refuse(&["models", "quantize", place, "--type", "q8_0", "-o", "a.gguf"]);
        refuse(&["extend", place, "x", "-o", "a.gif"]);
        // in the place of a configuration
        let folder = scratch.path(&format!("config{}/reel", place.len()));
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(place, folder.join("weights.toml")).unwrap();
        let mut run = command(&scratch.0, &short(&["-o", "a.gif"]));
        let output = run.env("XDG_CONFIG_HOME", folder.parent().unwrap()).output().unwrap();
        judge(&["weights.toml"], &output, 2, &["weights.toml", "a pipe or a device", "fix:"]);
        // and of a checkpoint's configuration
        let checkpoint = Model::tiny().directory(&scratch, &format!("ck{}", place.len()));
        for file in ["transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"] {
            let kept = std::fs::read(checkpoint.join(file)).unwrap();
            std::fs::remove_file(checkpoint.join(file)).unwrap();
            std::os::unix::fs::symlink(place, checkpoint.join(file)).unwrap();
            refused(&scratch, &["generate", "x", "--model", checkpoint.to_str().unwrap()], &["json"]);
            std::fs::remove_file(checkpoint.join(file)).unwrap();
            std::fs::write(checkpoint.join(file), kept).unwrap();
        }
    });
    // an output that is one stays what it is
    std::fs::rename(&pipe, scratch.path("pipe.gif")).unwrap();
    refused(&scratch, &short(&["-o", "pipe.gif", "--force"]), &["pipe.gif", "fix:"]);
}

#[test]
fn quantising_talks_as_other_verbs_do() {
    let scratch = Scratch::new();
    let checkpoint = Model::tiny().directory(&scratch, "ck");
    let quantise = |more: &[&str]| {
        let args = ["models", "quantize", checkpoint.to_str().unwrap(), "--type", "q8_0", "--force", "-o", "a.gguf"];
        let output = reel(&scratch.0, &[&args[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    assert_eq!(quantise(&["-q", "--threads", "1"]), "");
    let said = quantise(&["--progress", "json"]);
    assert!(said.lines().all(|line| line.starts_with('{')) && said.contains("\"stage\":\"quantise\""), "{said}");
}
