//! The command line: commands and flags -> requests. The only room that knows clap.

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
use crate::platform::files::CannotWrite;
use crate::platform::folders::Folder;
use crate::platform::progress::{self, Mode, Progress};
use crate::platform::shown;
use crate::platform::signals::{self, End};
use crate::platform::streams;
use crate::platform::threads;
use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use std::io::Write;
use std::process::ExitCode;
use std::sync::LazyLock;

/// How a command failed, which is what the exit code says.
pub enum Failure {
    /// The user can mend it: flags, files, sizes. Exit code 2.
    BadInput(anyhow::Error),
    /// It went wrong under way. Exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// Of a command that reads and writes in one go: what cannot be written is the machine's fault, all else the input's.
    fn of(error: anyhow::Error) -> Self {
        if error.is::<CannotWrite>() { Failure::Failed(error) } else { Failure::BadInput(error) }
    }
}

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
    fn apply(&self) -> Result<Progress, Failure> {
        let progress = Progress { mode: self.progress, quiet: self.quiet, verbose: self.verbose };
        if let Some(remark) = start_threads(self.threads)? {
            progress.note(&remark);
        }
        Ok(progress)
    }
}

/// Starts the threads that networks are computed with; returns one line where they are fewer than asked for.
/// - `asked`: `--threads`. Without it rayon's own variable counts, and then the cores.
fn start_threads(asked: Option<u16>) -> Result<Option<String>, Failure> {
    let variable = || std::env::var("RAYON_NUM_THREADS").ok()?.parse::<usize>().ok().filter(|n| *n > 0);
    threads::start(asked.map(usize::from).or_else(variable)).map_err(|e| Failure::Failed(e.into()))
}

/// Runs the program: parses, does, prints the one error.
pub fn run() -> ExitCode {
    arenas::spare_address_space();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let printed = e.print().and_then(|()| std::io::stdout().flush());
            // of what went to standard error nobody could be told
            return if e.use_stderr() { ExitCode::from(2) } else { ended(written(printed), Mode::Auto) };
        }
        Err(e) => {
            let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
            progress::error(&anyhow::anyhow!(usage::message(&e, &Cli::command(), &args)), asked_mode(&args));
            return ExitCode::from(2);
        }
    };
    let mode = match &cli.command {
        Command::Generate(args) => args.making.common.progress,
        Command::Extend(args) => args.joining.making.common.progress,
        Command::Bridge(args) => args.joining.making.common.progress,
        Command::Loop(args) => args.joining.making.common.progress,
        Command::Models(command) => models::mode(command),
        _ => Mode::Auto,
    };
    // the self-test compares what was built, and so goes by what was built
    if !matches!(cli.command, Command::Selftest(_) | Command::Completions { .. } | Command::Licenses)
        && let Some(Err(e)) = Folder::Config.path().map(|folder| catalogue::add_own(&folder.join("weights.toml")))
    {
        progress::error(&e, mode);
        return ExitCode::from(2);
    }
    signals::listen(move |end| match end {
        End::Interrupted(text) => progress::interrupted(text, mode),
        End::Failed(text) => {
            progress::clear_line();
            progress::error(&anyhow::anyhow!(text.clone()), mode)
        }
    });
    let done = match cli.command {
        Command::Generate(args) => generate::run(*args),
        Command::Extend(args) => join::extend(*args),
        Command::Bridge(args) => join::bridge(*args),
        Command::Loop(args) => join::close(*args),
        Command::Models(command) => models::run(command),
        Command::Selftest(args) => selftest::run(args),
        Command::Bench(args) => bench::run_all(*args),
        Command::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "reel", &mut script);
            print_exact(&script)
        }
        Command::Licenses => print_exact(include_bytes!("../licenses.txt")),
    };
    ended(done, mode)
}

/// Prints the one error, and says how the program ends.
fn ended(done: Result<(), Failure>, mode: Mode) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::BadInput(e)) => {
            progress::error(&e, mode);
            ExitCode::from(2)
        }
        Err(Failure::Failed(e)) => {
            progress::error(&e, mode);
            ExitCode::from(1)
        }
    }
}

/// How progress is to be shown, by arguments that cannot be parsed.
fn asked_mode(args: &[String]) -> Mode {
    let asks = |(i, arg): (usize, &String)| match arg.as_str() {
        "--progress" => args.get(i + 1).is_some_and(|how| how == "json"),
        arg => arg == "--progress=json",
    };
    if args.iter().enumerate().any(asks) { Mode::Json } else { Mode::Auto }
}

/// Columns that text on standard output is made for: the terminal's, and 80 where there is none.
fn columns() -> usize {
    const PIPED: usize = 80;
    const WIDEST: usize = 100; // longer lines of text are hard to read
    let size = terminal_size::terminal_size_of(std::io::stdout());
    size.map_or(PIPED, |(width, _)| width.0 as usize).clamp(20, WIDEST)
}

/// Lines for a person to standard output: nothing in them that a terminal would obey, and no value that fills the screen.
fn print(text: &[u8]) -> Result<(), Failure> {
    print_exact(shown::lines(&String::from_utf8_lossy(text)).as_bytes())
}

/// Lines for a program: JSON, or values with commas. What a terminal would obey is written as JSON writes it.
fn print_data(text: &str) -> Result<(), Failure> {
    let lines = text.split('\n').map(shown::visible).collect::<Vec<_>>();
    print_exact(lines.join("\n").as_bytes())
}

/// Bytes to standard output as they are.
fn print_exact(data: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    written(out.write_all(data).and_then(|()| out.flush()))
}

/// What became of writing to standard output. A reader that has had enough is no error.
fn written(done: std::io::Result<()>) -> Result<(), Failure> {
    const FAILED: &str = "cannot write to standard output";
    match done {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::Failed(anyhow::Error::new(e).context(FAILED))),
        Ok(()) if streams::output_was_closed() => Err(Failure::Failed(anyhow::anyhow!("{FAILED}: it is closed"))),
        Ok(()) => Ok(()),
    }
}

/// Version, features and the CPU's path: what a bug report needs.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        format!("{} (features: {}; CPU: {})", env!("CARGO_PKG_VERSION"), features(), crate::nn::kernel::cpu_path())
    });
    &VERSION
}

/// Cargo features of this build.
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
