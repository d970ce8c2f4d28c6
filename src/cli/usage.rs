//! What clap finds wrong, said in the form of every other error: what, where and the fix, in one to three lines.

use clap::error::{ContextKind, ErrorKind};
use clap::{Command, Error};
use std::error::Error as _;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

/// The text of an error, without the leading `error:`.
/// - `command`: the whole command line. `args`: what was given, the program's own name left out.
pub fn message(error: &Error, command: &Command, args: &[String]) -> String {
    let of = |kind| error.get(kind).map(|value| value.to_string()).unwrap_or_default();
    let (arg, value) = (bare(&of(ContextKind::InvalidArg)), of(ContextKind::InvalidValue));
    let help = format!("see `{} --help`", path(command, args));
    let valid = of(ContextKind::ValidValue);
    let (what, fix) = match error.kind() {
        ErrorKind::InvalidValue if value.is_empty() => {
            (format!("{arg} needs a value"), choices(&valid).unwrap_or(help))
        }
        ErrorKind::InvalidValue => (format!("{arg} does not take `{value}`"), choices(&valid).unwrap_or(help)),
        ErrorKind::ValueValidation => (format!("{arg} does not take `{value}`: {}", reason(error)), help),
        ErrorKind::UnknownArgument => {
            let near = bare(&of(ContextKind::SuggestedArg));
            match (arg.starts_with('-'), near.is_empty()) {
                (true, true) => (format!("there is no flag `{arg}`"), help),
                (true, false) => (format!("there is no flag `{arg}`"), format!("{near}? {help}")),
                (false, _) => (
                    format!("`{arg}` is one argument too many"),
                    format!("put a prompt of several words in quotes; {help}"),
                ),
            }
        }
        ErrorKind::InvalidSubcommand => {
            let near = of(ContextKind::SuggestedSubcommand);
            let fix = if near.is_empty() { help } else { format!("`{near}`? {help}") };
            (format!("there is no verb `{}`", of(ContextKind::InvalidSubcommand)), fix)
        }
        ErrorKind::ArgumentConflict => {
            let other = bare(&of(ContextKind::PriorArg));
            if arg == other {
                (format!("{arg} is given twice"), "give it once".to_string())
            } else {
                (format!("{arg} and {other} cannot go together"), "give one of them".to_string())
            }
        }
        ErrorKind::MissingRequiredArgument => (format!("{arg} is missing"), help),
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

/// The verb that was meant, such as `reel models list`.
fn path(command: &Command, args: &[String]) -> String {
    let (mut at, mut path) = (command, "reel".to_string());
    for arg in args {
        let Some(verb) = at.find_subcommand(arg) else { break };
        path = format!("{path} {arg}");
        at = verb;
    }
    path
}
