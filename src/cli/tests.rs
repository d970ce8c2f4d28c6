//! What the command line takes and refuses, flag by flag.

use super::*;
use crate::job::ranges;
use clap::Arg;
use std::any::TypeId;
use std::path::PathBuf;

/// Every command that takes arguments: how it is called, and its command.
fn commands(command: &clap::Command, path: Vec<String>) -> Vec<(Vec<String>, clap::Command)> {
    if command.has_subcommands() {
        let deeper = |sub: &clap::Command| commands(sub, [path.clone(), vec![sub.get_name().to_string()]].concat());
        return command.get_subcommands().flat_map(deeper).collect();
    }
    vec![(path, command.clone())]
}

/// Whether a flag's value is a number or holds one: whatever is neither text, nor a path, nor one of several words.
fn is_number(arg: &Arg) -> bool {
    let words = [TypeId::of::<String>(), TypeId::of::<PathBuf>(), TypeId::of::<bool>()];
    let parser = arg.get_value_parser();
    let takes = arg.get_action().takes_values() && arg.get_possible_values().is_empty();
    takes && (arg.get_id() == "prompt_at" || !words.iter().any(|id| parser.type_id() == *id))
}

/// The shortest line with a command and a flag: what is required, then the flag.
fn line(path: &[String], command: &clap::Command, flag: &str, values: &[String]) -> Vec<String> {
    let mut line = [vec!["reel".to_string()], path.to_vec()].concat();
    for arg in command.get_arguments().filter(|arg| arg.is_required_set()) {
        line.extend(arg.get_long().map(|long| format!("--{long}")));
        let choices = arg.get_possible_values();
        line.push(choices.first().map_or("x".to_string(), |choice| choice.get_name().to_string()));
    }
    if flag == "vae-overlap" {
        line.extend(["--vae-tile", "64x64"].map(String::from));
    }
    line.push(format!("--{flag}"));
    line.extend_from_slice(values);
    line
}

/// The values of a flag with a number in them.
type Form = fn(&str) -> Vec<String>;

/// How a number is written after its flag, and the range that it has to keep.
fn forms(flag: &str) -> Vec<(&str, Form)> {
    match flag {
        "size" | "vae-tile" => vec![(flag, |n| vec![format!("{n}x64")]), (flag, |n| vec![format!("64x{n}")])],
        "keyframe" => vec![(flag, |n| vec![format!("a.png@{n}")]), ("strength", |n| vec![format!("a.png@0:{n}")])],
        "lora" => vec![(flag, |n| vec![format!("a.safetensors:{n}")])],
        "prompt-at" => vec![(flag, |n| vec![n.to_string(), "a blue ball".to_string()])],
        _ => vec![(flag, |n| vec![n.to_string()])],
    }
}

/// Parses a line and what is read later from it.
fn judge(line: &[String]) -> Result<(), String> {
    let cli = Cli::try_parse_from(line).map_err(|e| usage::message(&e, &Cli::command(), &line[1..]))?;
    let making = match cli.command {
        Command::Generate(args) => args.making,
        Command::Extend(args) => args.joining.making,
        Command::Bridge(args) => args.joining.making,
        Command::Loop(args) => args.joining.making,
        _ => return Ok(()),
    };
    making.request("x".to_string(), Default::default()).map(|_| ()).map_err(|e| e.to_string())
}

/// A flag with a number that has no range, or is not held to it, fails here.
#[test]
fn every_number_has_a_range_and_keeps_it() {
    let mut seen = vec![];
    for (path, command) in commands(&Cli::command(), vec![]) {
        for flag in command.get_arguments().filter(|arg| is_number(arg)).filter_map(|arg| arg.get_long()) {
            for (name, form) in forms(flag) {
                let range = ranges::of(name).unwrap_or_else(|| panic!("--{flag} of {path:?} has no range"));
                let line = |number: &str| line(&path, &command, flag, &form(number));
                // a thousandth above: 1e18 + 1 is 1e18 in floating point
                let above = (range.high * 1.001).ceil() as i128 + 1;
                let beside = [range.low.floor() as i128 - 1, above].map(|n| n.to_string());
                let odd = ["nan", "inf", "1e300", "99999999999999999999999999999999999999999"];
                // what is no number after a LoRA's name is part of the name
                let words: &[&str] = if name == "lora" { &[] } else { &["", "x", "0x10"] };
                for bad in beside.iter().map(String::as_str).chain(odd).chain(words.iter().copied()) {
                    let said = judge(&line(bad)).err();
                    let said = said.unwrap_or_else(|| panic!("{:?} is taken", line(bad)));
                    assert!(said.contains(&format!("--{flag}")) && said.contains("\n  fix: "), "{bad}: {said}");
                    assert!(said.lines().count() <= 3, "{said}");
                }
                // the ends of 64 bits are no floating point numbers
                let ends = if flag == "seed" { [-2.0, 7.0] } else { [range.low, range.high] };
                for good in ends.map(|n| n.to_string()) {
                    judge(&line(&good)).unwrap_or_else(|e| panic!("{:?}: {e}", line(&good)));
                }
                seen.push(name.to_string());
            }
        }
    }
    let keys =
        ["width", "height", "skip-initial", "skip-final", "guidance-timesteps", "downscale", "heads", "head-dim"];
    let idle = ranges::RANGES.iter().map(|range| range.name).filter(|name| {
        !seen.iter().any(|seen| seen == name) && !keys.contains(name) && !["bytes", "about-bytes"].contains(name)
    });
    assert_eq!(idle.collect::<Vec<_>>(), Vec::<&str>::new(), "ranges of nothing");
    assert!(seen.iter().filter(|name| *name == "size").count() >= 10, "{seen:?}");
}

/// `-h` fits a screen: the flags that most runs take, with examples; `--help` has all of them, each with its default.
#[test]
fn short_help_is_short_and_long_help_has_defaults() {
    let root = Cli::command();
    for name in ["generate", "extend", "bridge", "loop"] {
        let mut command = root.find_subcommand(name).unwrap().clone();
        let short = command.render_help().to_string();
        let flags = |text: &str| text.lines().filter(|line| line.trim_start().starts_with('-')).count();
        assert!((11..=14).contains(&flags(&short)), "{name}: {} flags\n{short}", flags(&short));
        assert!(short.contains("Examples:\n  reel "), "{short}");
        let long = command.render_long_help().to_string();
        assert!(flags(&long) > 40 && long.contains("Examples:"), "{name}");
    }
    let mut generate = root.find_subcommand("generate").unwrap().clone();
    assert_eq!(generate.render_help().to_string().matches("  reel generate ").count(), 3);
    let long = generate.render_long_help().to_string();
    let long = long.split_whitespace().collect::<Vec<_>>().join(" "); // however it is wrapped
    for default in
        ["built in: 64x64", "built in: 17", "built in: 16", "built in: 3", "built in: 8", "default: 85", "-1 draws one"]
    {
        assert!(long.contains(default), "{default}\n{long}");
    }
    assert!(long.contains("The built-in model knows: one ball"), "{long}");
    // what changes nothing of a clip by default needs no word
    let told = ["pull", "quantize-cache", "force", "no-drift-match", "dry-run", "json", "quiet", "verbose", "help"];
    let given = ["image", "last-image", "keyframe", "prompt-at", "lora", "seconds", "vae"];
    for arg in generate.get_arguments().filter(|arg| arg.get_long().is_some()) {
        let (name, help) = (arg.get_long().unwrap(), arg.get_help().map(|help| help.to_string()).unwrap_or_default());
        let said =
            help.contains("[default: ") || !arg.get_default_values().is_empty() && !arg.is_hide_default_value_set();
        assert!(said || told.contains(&name) || given.contains(&name), "--{name} says no default: {help}");
    }
}

#[test]
fn shells_are_listed_once() {
    let mut command = Cli::command().find_subcommand("completions").unwrap().clone();
    assert_eq!(command.render_long_help().to_string().matches("elvish").count(), 1);
}
