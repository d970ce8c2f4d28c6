//! What clap finds wrong, said in the form of every other error: what, where and the fix, in one to three lines.

use super::hints;
use clap::error::{ContextKind, ErrorKind};
use clap::{Command, Error};
use std::error::Error as _;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

/// The text of an error, without the leading `error:`.
/// - `root`: the whole command line. `args`: what was given, the program's own name left out.
pub fn message(error: &Error, root: &Command, args: &[String]) -> String {
    let of = |kind| error.get(kind).map(|value| value.to_string()).unwrap_or_default();
    let (arg, value) = (bare(&of(ContextKind::InvalidArg)), of(ContextKind::InvalidValue));
    let (command, called) = command(root, args);
    let help = format!("see `{called} --help`");
    let valid = of(ContextKind::ValidValue);
    let (what, fix) = match error.kind() {
        ErrorKind::InvalidValue if value.is_empty() => {
            (format!("{arg} needs a value"), choices(&valid).unwrap_or(help))
        }
        ErrorKind::InvalidValue => (format!("{arg} does not take `{value}`"), choices(&valid).unwrap_or(help)),
        ErrorKind::ValueValidation => (format!("{arg} does not take `{value}`: {}", reason(error)), help),
        ErrorKind::UnknownArgument => {
            let near = bare(&of(ContextKind::SuggestedArg));
            let what = format!("there is no flag `{arg}`");
            let of_generate = || called == "reel" && has_flag(root.find_subcommand("generate"), &arg);
            match hints::flag(&arg, command, &called, args) {
                _ if !arg.starts_with('-') => (
                    format!("`{arg}` is one argument too many"),
                    format!("put a prompt of several words in quotes; {help}"),
                ),
                Some(fix) => (what, fix),
                None if of_generate() => (
                    format!("`{arg}` belongs to a command"),
                    format!("put it after one: reel generate \"PROMPT\" {arg} …"),
                ),
                None if near.is_empty() => (what, help),
                None => (what, format!("{near}? {help}")),
            }
        }
        ErrorKind::InvalidSubcommand => {
            let (typed, near) = (of(ContextKind::InvalidSubcommand), of(ContextKind::SuggestedSubcommand));
            let rest = args.iter().position(|arg| *arg == typed).map_or(&[][..], |at| &args[at..]);
            let meant = || if near.is_empty() { help } else { format!("`{called} {near}`? {help}") };
            (format!("there is no command `{typed}`"), hints::command(&called, rest).unwrap_or_else(meant))
        }
        ErrorKind::ArgumentConflict => {
            let other = bare(&of(ContextKind::PriorArg));
            if arg == other {
                (format!("{arg} is given twice"), "give it once".to_string())
            } else {
                (format!("{arg} and {other} cannot go together"), "give one of them".to_string())
            }
        }
        ErrorKind::MissingRequiredArgument if arg == "--dry-run" => (
            "--json goes with --dry-run".to_string(),
            "--dry-run --json for the plan, or --progress json for a run".to_string(),
        ),
        ErrorKind::MissingRequiredArgument => (format!("{arg} is missing"), help),
        ErrorKind::InvalidUtf8 => {
            let wrong = args.iter().find(|arg| arg.contains('\u{fffd}'));
            let wrong = wrong.map(|arg| format!("`{arg}` ")).unwrap_or_default();
            (format!("an argument {wrong}is not UTF-8"), "give prompts and names of models in UTF-8".to_string())
        }
        // what is left is rare; its first line says it
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            (first.trim_start_matches("error: ").to_string(), help)
        }
    };
    format!("{what}\n  fix: {fix}")
}

/// `--size <WxH>` -> `--size`, `<PROMPT>` -> `PROMPT`.
fn bare(arg: &str) -> String {
    let all = arg.split(", ").map(|one| {
        let name = one.split([' ', '=']).next().unwrap_or(one);
        if name.starts_with('<') || name.starts_with('[') { name.trim_matches(['<', '>', '[', ']', '.']) } else { name }
    });
    all.collect::<Vec<_>>().join(", ")
}

fn choices(valid: &str) -> Option<String> {
    (!valid.is_empty()).then(|| format!("choose one of {valid}"))
}

/// Why a value was refused.
fn reason(error: &Error) -> String {
    let Some(source) = error.source() else { return "it cannot be read".to_string() };
    if let Some(e) = source.downcast_ref::<ParseIntError>() {
        return match e.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "the number is too large".to_string(),
            _ => "expected a whole number".to_string(),
        };
    }
    if source.is::<ParseFloatError>() {
        return "expected a number".to_string();
    }
    // clap writes ranges as Rust does
    source.to_string().replace("..=", " to ")
}

/// Whether a command takes a flag, such as `--size` or `-o`.
fn has_flag(command: Option<&Command>, flag: &str) -> bool {
    let long = |arg: &clap::Arg| arg.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long));
    let short = |arg: &clap::Arg| arg.get_short().is_some_and(|short| *flag == format!("-{short}"));
    command.is_some_and(|command| command.get_arguments().any(|arg| long(arg) || short(arg)))
}

/// The command that was meant, and how it is called, such as `reel models list`.
fn command<'a>(root: &'a Command, args: &[String]) -> (&'a Command, String) {
    let (mut at, mut path) = (root, "reel".to_string());
    for arg in args {
        let Some(command) = at.find_subcommand(arg) else { break };
        path = format!("{path} {arg}");
        at = command;
    }
    (at, path)
}
