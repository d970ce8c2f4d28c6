use std::process::ExitCode;

fn main() -> ExitCode {
    reel::cli::run(std::process::exit)
}
