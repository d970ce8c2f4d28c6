//! What a person sees, on standard error: lines, and bars where it is a terminal.

use super::words::{counted, human_bytes, human_seconds, whole_seconds};
use super::{Counted, Moment, Report, Transfer, told};
use crate::platform::shown;
use crate::platform::threads;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines for a person.
pub struct Terminal {
    /// Whether stages are shown as bars.
    bars: bool,
    verbose: bool,
    /// The bar of the stage that was begun last.
    drawn: Mutex<Option<Drawn>>,
}

struct Drawn {
    stage: &'static str,
    bar: ProgressBar,
}

impl Terminal {
    /// - `bars`: whether stages are shown as bars; `None`: where standard error is a terminal.
    pub fn new(bars: Option<bool>, verbose: bool) -> Self {
        let bars = bars.unwrap_or_else(|| std::io::stderr().is_terminal());
        Self { bars, verbose, drawn: Mutex::new(None) }
    }

    /// Locks the bar, to take or exchange it; it is drawn without the lock, for a terminal that is stopped holds that up.
    fn drawn(&self) -> MutexGuard<'_, Option<Drawn>> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the bar of a stage, where that was the last one to begin.
    fn bar_of(&self, stage: &str) -> Option<ProgressBar> {
        self.drawn().as_ref().filter(|drawn| drawn.stage == stage).map(|drawn| drawn.bar.clone())
    }

    fn begin(&self, stage: &'static str, total: u64, template: &str) -> Option<ProgressBar> {
        if !self.bars {
            return None;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        // as wide as the terminal allows, so that a line stays one line on a narrow one
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> ").with_key(
            "left",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let left = state.eta().as_secs_f64();
                // before the first part is done nobody knows
                let _ = if state.pos() == 0 { write!(out, "…") } else { write!(out, "{} left", whole_seconds(left)) };
            },
        ));
        bar.set_prefix(stage);
        *self.drawn() = Some(Drawn { stage, bar: bar.clone() });
        Some(bar)
    }

    /// Takes a stage's bar away and says in a line what was done.
    fn finish(&self, stage: &'static str, what: &str, seconds: f64) {
        if !self.bars {
            return;
        }
        if let Some(bar) = self.bar_of(stage) {
            *self.drawn() = None;
            bar.finish_and_clear();
        }
        line(&format!("{stage:>8}  {what} in {}", human_seconds(seconds)));
    }

    /// Takes away the bar, which is drawn no more after that, and what is left of it on the terminal.
    fn clear(&self) {
        let drawn = self.drawn().take();
        if let Some(Drawn { bar, .. }) = drawn {
            bar.finish_and_clear();
        }
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Report for Terminal {
    fn note(&self, text: &str) {
        let say = || line(&painted(DIM, &fitted(&shown::line(text), 2)));
        let bar = self.drawn().as_ref().map(|drawn| drawn.bar.clone());
        match bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    fn is_verbose(&self) -> bool {
        self.verbose
    }

    fn stage(&self, moment: Moment, stage: &Counted) {
        let bar = match moment {
            Moment::Begun => {
                let bar = self.begin(stage.name, stage.total as u64, "{prefix:>8} [{wide_bar}] {msg}, {left}");
                if let Some(bar) = bar.as_ref().filter(|_| threads::can_have_one()) {
                    bar.enable_steady_tick(Duration::from_millis(500)); // panics without a thread
                }
                bar
            }
            Moment::UnderWay => self.bar_of(stage.name),
            Moment::Finished => return self.finish(stage.name, &counted(stage.total, stage.unit), stage.seconds),
        };
        if let Some(bar) = bar {
            bar.set_position(stage.made as u64);
            bar.set_message(stage.state());
        }
    }

    fn bytes(&self, moment: Moment, bytes: &Transfer) {
        let bar = match moment {
            Moment::Begun => self.begin(bytes.name, bytes.total, "{prefix:>8} [{wide_bar}] {msg}"),
            Moment::UnderWay => self.bar_of(bytes.name),
            Moment::Finished => return self.finish(bytes.name, &human_bytes(bytes.worked), bytes.seconds),
        };
        if let Some(bar) = bar {
            let total = if bytes.total > 0 { format!(" of {}", human_bytes(bytes.total)) } else { String::new() };
            let left = bytes.seconds_left().map_or("…".to_string(), |left| format!("{} left", whole_seconds(left)));
            let speed = human_bytes(bytes.speed as u64);
            bar.set_message(format!("{}{total}, {speed}/s, {left}", human_bytes(bytes.done)));
            bar.set_position(bytes.done);
        }
    }

    fn done(&self, text: &str, _: Value) {
        line(&fitted(&shown::line(text), 2));
    }

    /// What and where with its causes on the first line, below it the fix that the deepest cause names.
    fn error(&self, error: &anyhow::Error) {
        /// Of what is broken: as wide as `error: ` and `  fix: `.
        const INDENT: usize = 7;
        let (head, below) = told(error);
        let below = below.iter().map(|line| {
            let line = fitted(&shown::line(line), INDENT);
            match line.strip_prefix("  fix:") {
                Some(rest) => format!("\n  {}{rest}", painted(BOLD, "fix:")),
                None => format!("\n{line}"),
            }
        });
        let head = fitted(&format!("error: {}", shown::line(&head)), INDENT);
        let head = head.strip_prefix("error:").unwrap_or(&head);
        let is_drawn = self.drawn().is_some();
        if is_drawn {
            self.clear();
        }
        line(&format!("{}{head}{}", painted(RED, "error:"), below.collect::<String>()));
    }

    fn interrupted(&self, text: &str) {
        self.clear();
        line(text);
    }
}

/// A line broken between words, where standard error is a terminal that is narrower.
/// - `indent`: of what is below its first line.
fn fitted(text: &str, indent: usize) -> String {
    match terminal_size::terminal_size_of(std::io::stderr()) {
        Some((columns, _)) if columns.0 > 0 => shown::wrapped(text, indent, columns.0.into()),
        _ => text.to_string(),
    }
}

/// A closed standard error is no reason to stop a run.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Colours, as a terminal is told them.
const RED: &str = "1;31";
const BOLD: &str = "1";
const DIM: &str = "2";

/// Text in a colour, where standard error shows colours.
fn painted(colour: &str, text: &str) -> String {
    if has_colours() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_string() }
}

/// Whether standard error shows colours: a terminal does, unless `NO_COLOR` or a terminal without any says otherwise;
/// `CLICOLOR_FORCE` says that whatever it is does.
fn has_colours() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match (set("NO_COLOR"), set("CLICOLOR_FORCE")) {
        (Some(_), _) => false,
        (None, Some(force)) if force != "0" => true,
        _ => std::io::stderr().is_terminal() && set("TERM").is_none_or(|term| term != "dumb"),
    }
}
