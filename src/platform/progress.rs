//! What a person or a program sees while reel works; all of it on standard error.

use crate::platform::shown;
use crate::platform::threads;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Bars on a terminal, remarks alone elsewhere.
    #[default]
    Auto,
    /// Bars, wherever standard error goes.
    Bar,
    /// One JSON object a line.
    Json,
    /// Nothing.
    None,
}

/// How to report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub mode: Mode,
    pub quiet: bool,
    pub verbose: bool,
}

impl Progress {
    fn bars(&self) -> bool {
        !self.quiet && (self.mode == Mode::Bar || self.mode == Mode::Auto && std::io::stderr().is_terminal())
    }

    fn json(&self) -> bool {
        !self.quiet && self.mode == Mode::Json
    }

    /// One line that the user should know of.
    pub fn note(&self, text: &str) {
        match self.mode {
            _ if self.quiet => {}
            Mode::None => {}
            Mode::Json => emit(json!({"event": "note", "text": shown::line(text)})),
            _ => line(&painted(DIM, &fitted(&shown::line(text), 2))),
        }
    }

    /// One line for those who asked with `-v`.
    pub fn detail(&self, text: &str) {
        if self.verbose {
            self.note(text);
        }
    }

    /// The last line of a run; `fields` are its JSON form.
    pub fn done(&self, text: &str, fields: Value) {
        if self.json() {
            let mut event = json!({"event": "done"});
            if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
                event.extend(fields);
            }
            emit(event);
        } else if !self.quiet && self.mode != Mode::None {
            line(&fitted(&shown::line(text), 2));
        }
    }

    /// Begins a stage of `total` equal parts.
    /// - `unit`: what they are, such as `steps`.
    pub fn stage(&self, name: &'static str, total: usize, unit: &'static str) -> Stage {
        let bar = self.bars().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            // as wide as the terminal allows, so that a line stays one line on a narrow one
            let style = ProgressStyle::with_template("{prefix:>8} [{wide_bar}] {msg}, {left}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
            bar.set_style(style.with_key("left", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let left = state.eta().as_secs_f64();
                // before the first part is done nobody knows
                let _ = if state.pos() == 0 { write!(out, "…") } else { write!(out, "{} left", whole_seconds(left)) };
            }));
            bar.set_prefix(name);
            if threads::can_have_one() {
                bar.enable_steady_tick(Duration::from_millis(500)); // panics without a thread
            }
            keep(bar)
        });
        let stage = Stage { name, total, unit, made: 0, part: None, begun: Instant::now(), bar, json: self.json() };
        stage.report();
        stage
    }

    /// Begins a stage of `total` bytes that are fetched or read; 0 where nobody knows.
    pub fn bytes(&self, name: &'static str, total: u64) -> Bytes {
        let bar = self.bars().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix:>8} [{wide_bar}] {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(name);
            keep(bar)
        });
        let now = Instant::now();
        let recent = VecDeque::from([(now, 0)]);
        let mut bytes = Bytes { name, total, done: 0, worked: 0, begun: now, told: now, recent, bar, progress: *self };
        bytes.report();
        bytes
    }
}

/// A stage counted in bytes.
pub struct Bytes {
    name: &'static str,
    total: u64,
    done: u64,
    /// Of those done, the ones that took time.
    worked: u64,
    begun: Instant,
    told: Instant,
    /// `worked` at moments of the last seconds: what the speed is taken from.
    recent: VecDeque<(Instant, u64)>,
    bar: Option<ProgressBar>,
    progress: Progress,
}

impl Bytes {
    /// `n` bytes more are done.
    pub fn advance(&mut self, n: u64) {
        self.worked += n;
        self.here(n);
    }

    /// `n` bytes were done before, so they say nothing of the speed.
    pub fn here(&mut self, n: u64) {
        self.done += n;
        if self.told.elapsed() >= Duration::from_millis(250) {
            self.report();
        }
    }

    /// `n` bytes turned out not to be done.
    pub fn undo(&mut self, n: u64) {
        self.done = self.done.saturating_sub(n);
        self.report();
    }

    /// One line above the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.progress.note(text)),
            None => self.progress.note(text),
        }
    }

    /// Ends the stage; returns the seconds it took.
    pub fn finish(mut self) -> f64 {
        self.report();
        let seconds = self.begun.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            line(&format!("{:>8}  {} in {}", self.name, human_bytes(self.worked), human_seconds(seconds)));
        }
        seconds
    }

    fn report(&mut self) {
        /// What the speed is the mean of.
        const WINDOW: Duration = Duration::from_secs(8);
        self.told = Instant::now();
        self.recent.push_back((self.told, self.worked));
        while self.recent.len() > 2 && self.recent[0].0.elapsed() > WINDOW {
            self.recent.pop_front();
        }
        let (then, before) = self.recent[0];
        let speed = (self.worked - before) as f64 / (self.told - then).as_secs_f64().max(1e-3);
        let left = (speed > 0.0 && self.total > 0).then(|| self.total.saturating_sub(self.done) as f64 / speed);
        if let Some(bar) = &self.bar {
            let total = if self.total > 0 { format!(" of {}", human_bytes(self.total)) } else { String::new() };
            let left = left.map_or("…".to_string(), |left| format!("{} left", whole_seconds(left)));
            let speed = human_bytes(speed as u64);
            bar.set_message(format!("{}{total}, {speed}/s, {left}", human_bytes(self.done)));
            bar.set_position(self.done);
        }
        if self.progress.json() {
            emit(
                json!({"event": "progress", "stage": self.name, "done": self.done, "total": self.total, "unit": "bytes",
                        "seconds": round(self.begun.elapsed().as_secs_f64()), "bytes_per_second": speed.round(),
                        "seconds_left": left.map(round)}),
            );
        }
    }
}

/// A stage under way.
pub struct Stage {
    name: &'static str,
    total: usize,
    /// What is counted: `steps`, `frames`.
    unit: &'static str,
    made: usize,
    part: Option<Part>,
    begun: Instant,
    bar: Option<ProgressBar>,
    json: bool,
}

/// A part of a stage that is counted by itself, such as a window of a long clip.
struct Part {
    /// `window 3 of 13`; empty where there is but one.
    label: String,
    /// What was made of the stage when it began, and how much it makes.
    before: usize,
    total: usize,
}

impl Stage {
    /// Begins a part of the stage, from which on the parts of that one are counted.
    /// - `label`: what it is called, such as `window 3 of 13`; empty: nothing.
    pub fn part(&mut self, label: String, total: usize) {
        self.part = Some(Part { label, before: self.made, total });
        self.report();
    }

    /// `parts` more are made.
    pub fn advance(&mut self, parts: usize) {
        self.made += parts;
        if let Some(bar) = &self.bar {
            bar.inc(parts as u64);
        }
        self.report();
    }

    /// Ends the stage; returns the seconds it took.
    pub fn finish(self) -> f64 {
        let seconds = self.begun.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            line(&format!("{:>8}  {} in {}", self.name, counted(self.total, self.unit), human_seconds(seconds)));
        }
        seconds
    }

    /// What is being made: `window 3 of 13, step 5 of 16`, or `40 of 208 frames`.
    fn state(&self) -> String {
        match &self.part {
            None => format!("{} of {}", self.made, counted(self.total, self.unit)),
            Some(Part { label, before, total }) => {
                let comma = if label.is_empty() { "" } else { ", " };
                let now = (self.made - before + 1).min(*total); // the one under way
                format!("{label}{comma}{} {now} of {total}", singular(self.unit))
            }
        }
    }

    fn report(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.state());
        }
        if self.json {
            let seconds = self.begun.elapsed().as_secs_f64();
            let left =
                (self.made > 0).then(|| seconds / self.made as f64 * (self.total - self.made.min(self.total)) as f64);
            emit(
                json!({"event": "progress", "stage": self.name, "done": self.made, "total": self.total, "unit": self.unit,
                        "state": self.state(), "seconds": round(seconds), "seconds_left": left.map(round)}),
            );
        }
    }
}

/// `1 frame`, `17 frames`.
/// - `unit`: in the plural, with an `s`.
pub fn counted(n: usize, unit: &str) -> String {
    format!("{n} {}", if n == 1 { singular(unit) } else { unit })
}

fn singular(unit: &str) -> &str {
    match unit {
        "matrices" => "matrix",
        _ => unit.strip_suffix('s').unwrap_or(unit),
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// `0.42 s`, `12.3 s`, `3 min 07 s`, `2 h 05 min`.
pub fn human_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
        s => format!("{} h {:02} min", s as u64 / 3600, s as u64 % 3600 / 60),
    }
}

/// Bytes in decimal units with three digits, as download pages show them: `6.34 GB`.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let decimals = match value {
                _ if unit == "B" => 0,
                v if v < 9.995 => 2,
                v if v < 99.95 => 1,
                _ => 0,
            };
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

/// As [`human_seconds`], without fractions, which would only flicker.
fn whole_seconds(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.0} s") } else { human_seconds(seconds) }
}

/// JSON, with what a terminal would obey written as JSON writes it: only strings hold such characters.
fn emit(event: Value) {
    line(&shown::visible(&event.to_string()));
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

/// The bar that was begun last: what an interrupt takes away.
static DRAWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Keeps a bar for [`clear_line`].
fn keep(bar: ProgressBar) -> ProgressBar {
    if let Ok(mut drawn) = DRAWN.lock() {
        *drawn = Some(bar.clone());
    }
    bar
}

/// Takes away the bar, which is drawn no more after that, and what is left of it on the terminal.
pub fn clear_line() {
    let drawn = DRAWN.lock().ok().and_then(|mut drawn| drawn.take());
    if let Some(bar) = drawn {
        bar.finish_and_clear();
    }
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

/// The one line of a run that a signal ended.
pub fn interrupted(text: &str, mode: Mode) {
    match mode {
        Mode::Json => emit(json!({"event": "error", "text": text})),
        _ => {
            clear_line();
            line(text)
        }
    }
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

/// The one error that ends the program: what and where with its causes on the first line, below it the fix that the deepest
/// cause names. As JSON the fix is a field of its own.
pub fn error(error: &anyhow::Error, mode: Mode) {
    let (head, below) = told(error);
    if mode != Mode::Json {
        /// Of what is broken: as wide as `error: ` and `  fix: `.
        const INDENT: usize = 7;
        let below = below.iter().map(|line| {
            let line = fitted(&shown::line(line), INDENT);
            match line.strip_prefix("  fix:") {
                Some(rest) => format!("\n  {}{rest}", painted(BOLD, "fix:")),
                None => format!("\n{line}"),
            }
        });
        let head = fitted(&format!("error: {}", shown::line(&head)), INDENT);
        let head = head.strip_prefix("error:").unwrap_or(&head);
        return line(&format!("{}{head}{}", painted(RED, "error:"), below.collect::<String>()));
    }
    let mut event = json!({"event": "error", "text": shown::line(&head)});
    for line in &below {
        let (label, rest) = line.trim_start().split_once(": ").unwrap_or(("more", line));
        event[label] = shown::line(rest).into();
    }
    emit(event);
}

/// An error's first line, and the lines below it: the last ones that a cause names.
fn told(error: &anyhow::Error) -> (String, Vec<String>) {
    let (mut heads, mut below): (Vec<String>, Vec<String>) = (vec![], vec![]);
    for cause in error.chain() {
        let (head, own) = parts(&cause.to_string());
        // some errors repeat their cause's message in their own
        if !heads.last().is_some_and(|said| said.ends_with(&head)) {
            heads.push(head);
        }
        if !own.is_empty() {
            below = own;
        }
    }
    (heads.join(": "), below)
}

/// A message's first line, and what is ours below it. A line that begins within backticks is a value's; of others only those
/// such as `  fix: …` are ours: where the environment asks for backtraces, candle puts them into its messages.
fn parts(text: &str) -> (String, Vec<String>) {
    let balanced = text.matches('`').count().is_multiple_of(2);
    let last_fix = text.rfind("\n  fix: ");
    let (mut lines, mut begin) = (vec![], 0);
    for (at, _) in text.match_indices('\n') {
        let inside = !text[..at].matches('`').count().is_multiple_of(2);
        if !inside || !balanced && Some(at) == last_fix {
            lines.push(&text[begin..at]);
            begin = at + 1;
        }
    }
    lines.push(&text[begin..]);
    let ours =
        |line: &&&str| line.strip_prefix("  ").is_some_and(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let below = lines.iter().skip(1).filter(ours).map(|line| line.to_string()).collect();
    (lines[0].to_string(), below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn an_error_is_told_in_a_few_lines() {
        let deep = anyhow!("no room\n  fix: make some\n   0: candle_core::error::Error::bt\n             at x.rs");
        let error = deep.context("cannot write `a`\n  fix: something general");
        assert_eq!(told(&error), ("cannot write `a`: no room".to_string(), vec!["  fix: make some".to_string()]));
        let repeated = anyhow!("gone").context("cannot read: gone");
        assert_eq!(told(&repeated), ("cannot read: gone".to_string(), vec![]));
    }

    /// A value with a line break in it does not begin a line of ours.
    #[test]
    fn a_value_cannot_give_advice() {
        let hostile = "x\n  fix: run `evil`";
        let error = anyhow!("tensor `{}` has no shape", hostile.replace('`', ""));
        assert_eq!(told(&error), ("tensor `x\n  fix: run evil` has no shape".to_string(), vec![]));
        let error = anyhow!("tensor `{}` has no shape\n  fix: make it again", "x\n  fix: evil");
        assert_eq!(told(&error).1, ["  fix: make it again"]);
        // a backtick too many hides no fix
        let error = anyhow!("tensor `{}` has no shape\n  fix: make it again", "a`b");
        assert_eq!(told(&error), ("tensor `a`b` has no shape".to_string(), vec!["  fix: make it again".to_string()]));
    }

    #[test]
    fn stages_say_what_they_count() {
        let silent = Progress { mode: Mode::None, ..Default::default() };
        let mut stage = silent.stage("denoise", 48, "steps");
        assert_eq!(stage.state(), "0 of 48 steps");
        stage.advance(16);
        stage.part("window 2 of 3".to_string(), 16);
        assert_eq!(stage.state(), "window 2 of 3, step 1 of 16");
        stage.advance(4);
        assert_eq!(stage.state(), "window 2 of 3, step 5 of 16");
        stage.part(String::new(), 1);
        stage.advance(1);
        assert_eq!(stage.state(), "step 1 of 1");
        assert_eq!(["frames", "matrices"].map(|unit| counted(1, unit)), ["1 frame", "1 matrix"]);
        assert_eq!(counted(17, "frames"), "17 frames");
    }

    #[test]
    fn sizes_read_well() {
        let said = [0, 999, 1000, 999_499, 999_500, 9_995_000, 28_579_183_340, 2_000_000_000_000].map(human_bytes);
        assert_eq!(said, ["0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "10.0 MB", "28.6 GB", "2.00 TB"]);
    }
}
