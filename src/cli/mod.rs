//! The command line: commands and flags -> requests. The only module that uses clap.

mod bench;
mod generate;
mod help;
mod hints;
mod join;
mod making;
mod models;
mod number;
mod selftest;
mod usage;

use crate::hub::catalogue;
use crate::platform::arenas;
use crate::platform::fault::{Fault, Mark};
use crate::platform::folders::Folder;
use crate::platform::progress::{Mode, Progress};
use crate::platform::shown;
use crate::platform::signals::{End, INTERRUPTED, Signals};
use crate::platform::streams;
use crate::platform::threads;
use anyhow::{Context, Result, anyhow};
use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use std::io::Write;
use std::process::ExitCode;
use std::sync::LazyLock;

/// Exit code of errors that the user can fix: flags, files, sizes.
const BAD_INPUT: u8 = 2;

#[derive(Parser)]
#[command(name = "reel", version = version(), about = "A prompt becomes a video, on your own machine", arg_required_else_help = true, after_help = help::reel())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(Box<generate::Args>),
    Extend(Box<join::Extend>),
    Bridge(Box<join::Bridge>),
    Loop(Box<join::Loop>),
    /// The models that reel knows
    #[command(subcommand)]
    Models(models::Command),
    Selftest(selftest::Args),
    Bench(Box<bench::Args>),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the notices of all that is in this program
    Licenses,
}

impl Command {
    /// Returns the message and thread flags, for commands that have them.
    fn common(&self) -> Option<&Common> {
        match self {
            Command::Generate(args) => Some(&args.making.common),
            Command::Extend(args) => Some(&args.joining.making.common),
            Command::Bridge(args) => Some(&args.joining.making.common),
            Command::Loop(args) => Some(&args.joining.making.common),
            Command::Models(command) => command.common(),
            Command::Selftest(args) => Some(&args.common),
            Command::Bench(_) | Command::Completions { .. } | Command::Licenses => None,
        }
    }
}

/// Flags about talking and threads, of every command that computes.
#[derive(clap::Args)]
struct Common {
    /// Threads to compute with, at most four for each core [default: all cores]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::whole::<u16>("threads"), help_heading = "Machine", hide_short_help = true)]
    threads: Option<u16>,
    /// How to show progress, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "HOW", help_heading = "Messages", hide_short_help = true)]
    progress: Mode,
    /// Errors only
    #[arg(short, long, help_heading = "Messages", hide_short_help = true)]
    quiet: bool,
    /// More about what is done
    #[arg(short, long, help_heading = "Messages", hide_short_help = true)]
    verbose: bool,
}

impl Common {
    fn progress(&self) -> Progress {
        Progress::new(self.progress, self.quiet, self.verbose)
    }

    /// Starts the compute threads.
    fn start(&self, progress: &Progress) -> Result<()> {
        start_threads(self.threads)?.iter().for_each(|remark| progress.note(remark));
        Ok(())
    }
}

/// Starts the compute threads; returns a remark where they are fewer than asked for.
/// - `asked`: `--threads`; else `RAYON_NUM_THREADS` decides, else the number of cores.
fn start_threads(asked: Option<u16>) -> Result<Option<String>> {
    let variable = || std::env::var("RAYON_NUM_THREADS").ok()?.parse::<usize>().ok().filter(|n| *n > 0);
    threads::start(asked.map(usize::from).or_else(variable)).fault(Fault::Machine)
}

/// Parses the command line, runs the command and prints its error, if any.
/// - `exit`: ends the process at once with an exit code, for signals.
pub fn run(exit: fn(i32) -> !) -> ExitCode {
    arenas::spare_address_space();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let printed = e.print().and_then(|()| std::io::stdout().flush());
            // a failed write to standard error has nowhere to be reported
            return if e.use_stderr() {
                ExitCode::from(BAD_INPUT)
            } else {
                ended(written(printed), &Progress::default())
            };
        }
        Err(e) => {
            let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
            let progress = Progress::new(asked_mode(&args), false, false);
            progress.error(&anyhow!(usage::message(&e, &Cli::command(), &args)));
            return ExitCode::from(BAD_INPUT);
        }
    };
    let progress = cli.command.common().map_or_else(Progress::default, Common::progress);
    // the self-test uses the built-in catalogue only, so it skips the user's `weights.toml`
    if !matches!(cli.command, Command::Selftest(_) | Command::Completions { .. } | Command::Licenses)
        && let Some(Err(e)) = Folder::Config.path().map(|folder| catalogue::add_own(&folder.join("weights.toml")))
    {
        progress.error(&e);
        return ExitCode::from(BAD_INPUT);
    }
    let heard = progress.clone();
    let signals = Signals::listen(progress.cancel().clone(), exit, move |end| match end {
        End::Interrupted(text) => heard.interrupted(text),
        End::Failed(text) => heard.error(&anyhow!(text.clone())),
    });
    let done = match cli.command {
        Command::Generate(args) => generate::run(*args, &progress),
        Command::Extend(args) => join::extend(*args, &progress),
        Command::Bridge(args) => join::bridge(*args, &progress),
        Command::Loop(args) => join::close(*args, &progress),
        Command::Models(command) => models::run(command, &progress),
        Command::Selftest(args) => selftest::run(args, &progress),
        Command::Bench(args) => bench::run_all(*args),
        Command::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "reel", &mut script);
            print_exact(&script)
        }
        Command::Licenses => print_exact(include_bytes!("../licenses.txt")),
    };
    if done.is_err() {
        signals.end_if_interrupted(); // an interrupted run may fail in any way; the interruption is its cause
    }
    ended(done, &progress)
}

/// Prints the error, if any, and returns the exit code.
fn ended(done: Result<()>, progress: &Progress) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    progress.error(&error);
    ExitCode::from(match Fault::of(&error) {
        Fault::Machine => 1,
        Fault::Input => BAD_INPUT,
        Fault::Cancelled => INTERRUPTED,
    })
}

/// Finds the value of `--progress` in arguments that clap rejected.
fn asked_mode(args: &[String]) -> Mode {
    let asks = |(i, arg): (usize, &String)| match arg.as_str() {
        "--progress" => args.get(i + 1).is_some_and(|how| how == "json"),
        arg => arg == "--progress=json",
    };
    if args.iter().enumerate().any(asks) { Mode::Json } else { Mode::Auto }
}

/// Returns the width in columns to wrap standard output at: the terminal's, at most 100, or 80 without a terminal.
fn columns() -> usize {
    const PIPED: usize = 80;
    const WIDEST: usize = 100; // longer lines of text are hard to read
    let size = terminal_size::terminal_size_of(std::io::stdout());
    size.map_or(PIPED, |(width, _)| width.0 as usize).clamp(20, WIDEST)
}

/// Prints text for a person: control characters are made harmless and overlong values are shortened.
fn print(text: &[u8]) -> Result<()> {
    print_exact(shown::lines(&String::from_utf8_lossy(text)).as_bytes())
}

/// Prints text for a program, JSON or comma-separated values: control characters are escaped as in JSON.
fn print_data(text: &str) -> Result<()> {
    let lines = text.split('\n').map(shown::visible).collect::<Vec<_>>();
    print_exact(lines.join("\n").as_bytes())
}

/// Writes bytes to standard output unchanged.
fn print_exact(data: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    written(out.write_all(data).and_then(|()| out.flush()))
}

/// Turns the result of a write to standard output into the program's own. A reader that closed the pipe is not an error.
fn written(done: std::io::Result<()>) -> Result<()> {
    const FAILED: &str = "cannot write to standard output";
    match done {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(e).context(FAILED).fault(Fault::Machine),
        Ok(()) if streams::output_was_closed() => Err(anyhow!("{FAILED}: it is closed")).fault(Fault::Machine),
        Ok(()) => Ok(()),
    }
}

/// Returns version, Cargo features and CPU instruction set, for bug reports.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        format!("{} (features: {}; CPU: {})", env!("CARGO_PKG_VERSION"), features(), crate::nn::kernel::cpu_path())
    });
    &VERSION
}

/// Lists the Cargo features of this build.
fn features() -> String {
    let all = [
        ("h264", cfg!(feature = "h264")),
        ("cuda", cfg!(feature = "cuda")),
        ("flash-attn", cfg!(feature = "flash-attn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
    ];
    let on: Vec<&str> = all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    if on.is_empty() { "none".to_string() } else { on.join(", ") }
}

#[cfg(test)]
mod tests;
