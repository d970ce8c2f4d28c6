//! The handle by which every part of a run says how far it is, and hears whether it is to go on. A [`Report`] decides what becomes
//! of what is said.

use crate::platform::cancel::{Cancel, Cancelled};
use crate::platform::report::json::Json;
use crate::platform::report::silent::Silent;
use crate::platform::report::terminal::Terminal;
pub use crate::platform::report::words::{counted, human_bytes, human_seconds};
use crate::platform::report::{Counted, Moment, Part, Report, Transfer};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
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

/// Who hears of a run, and who may stop it. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    report: Arc<dyn Report>,
    cancel: Cancel,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new(Mode::Auto, false, false)
    }
}

impl Progress {
    /// As the flags of the command line say.
    pub fn new(mode: Mode, quiet: bool, verbose: bool) -> Self {
        let told: Arc<dyn Report> = match mode {
            Mode::Auto | Mode::None => Arc::new(Terminal::new(None, verbose)),
            Mode::Bar => Arc::new(Terminal::new(Some(true), verbose)),
            Mode::Json => Arc::new(Json { verbose }),
        };
        match quiet || mode == Mode::None {
            true => Self::to(Arc::new(Silent { verbose, end: Some(told) })),
            false => Self::to(told),
        }
    }

    /// Nobody hears anything.
    pub fn silent() -> Self {
        Self::to(Arc::new(Silent::default()))
    }

    /// What is said goes to `report`; a token of its own stops the run.
    pub fn to(report: Arc<dyn Report>) -> Self {
        Self { report, cancel: Cancel::default() }
    }

    /// Says nothing, of a part of the same run: what stops that stops this.
    pub fn silenced(&self) -> Self {
        Self { report: Arc::new(Silent::default()), cancel: self.cancel.clone() }
    }

    /// Returns the token that stops the run.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// - Errors when the run was asked to stop.
    pub fn check_cancelled(&self) -> Result<(), Cancelled> {
        self.cancel.check()
    }

    /// One line that the user should know of.
    pub fn note(&self, text: &str) {
        self.report.note(text);
    }

    /// One line for those who asked with `-v`.
    pub fn detail(&self, text: &str) {
        self.report.detail(text);
    }

    /// Tells whether details are shown, and so whether hashes in errors are written out.
    pub fn is_verbose(&self) -> bool {
        self.report.is_verbose()
    }

    /// Tells whether notes go nowhere, for what would be worked out only to be said.
    pub fn is_silent(&self) -> bool {
        self.report.is_silent()
    }

    /// The last line of a run; `fields` are its JSON form.
    pub fn done(&self, text: &str, fields: Value) {
        self.report.done(text, fields);
    }

    /// The one error that ends the program.
    pub fn error(&self, error: &anyhow::Error) {
        self.report.error(error);
    }

    /// The one line of a run that a signal ended.
    pub fn interrupted(&self, text: &str) {
        self.report.interrupted(text);
    }

    /// Begins a stage of `total` equal parts.
    /// - `unit`: what they are, such as `steps`.
    pub fn stage(&self, name: &'static str, total: usize, unit: &'static str) -> Stage {
        let now = Counted { name, total, unit, made: 0, part: None, seconds: 0.0 };
        let mut stage = Stage { now, begun: Instant::now(), progress: self.clone() };
        stage.report(Moment::Begun);
        stage
    }

    /// Begins a stage of `total` bytes that are fetched or read; 0 where nobody knows.
    pub fn bytes(&self, name: &'static str, total: u64) -> Bytes {
        let begun = Instant::now();
        let now = Transfer { name, total, done: 0, worked: 0, seconds: 0.0, speed: 0.0 };
        let recent = VecDeque::from([(begun, 0)]);
        let mut bytes = Bytes { now, begun, told: begun, recent, progress: self.clone() };
        bytes.report(Moment::Begun);
        bytes
    }
}

/// A stage counted in bytes.
pub struct Bytes {
    now: Transfer,
    begun: Instant,
    told: Instant,
    /// `worked` at moments of the last seconds: what the speed is taken from.
    recent: VecDeque<(Instant, u64)>,
    progress: Progress,
}

impl Bytes {
    /// `n` bytes more are done.
    /// - Errors when the run was asked to stop.
    pub fn advance(&mut self, n: u64) -> Result<(), Cancelled> {
        self.now.worked += n;
        self.here(n)
    }

    /// `n` bytes were done before, so they say nothing of the speed.
    /// - Errors when the run was asked to stop.
    pub fn here(&mut self, n: u64) -> Result<(), Cancelled> {
        /// Between two reports, at least.
        const REST: Duration = Duration::from_millis(250);
        self.now.done += n;
        if self.told.elapsed() >= REST {
            self.report(Moment::UnderWay);
        }
        self.progress.check_cancelled()
    }

    /// `n` bytes turned out not to be done.
    pub fn undo(&mut self, n: u64) {
        self.now.done = self.now.done.saturating_sub(n);
        self.report(Moment::UnderWay);
    }

    /// One line that the user should know of.
    pub fn note(&self, text: &str) {
        self.progress.note(text);
    }

    /// Returns the token that stops the run.
    pub fn cancel(&self) -> &Cancel {
        self.progress.cancel()
    }

    /// Ends the stage; returns the seconds it took.
    pub fn finish(mut self) -> f64 {
        self.report(Moment::UnderWay);
        self.now.seconds = self.begun.elapsed().as_secs_f64();
        self.progress.report.bytes(Moment::Finished, &self.now);
        self.now.seconds
    }

    fn report(&mut self, moment: Moment) {
        /// What the speed is the mean of.
        const WINDOW: Duration = Duration::from_secs(8);
        self.told = Instant::now();
        self.recent.push_back((self.told, self.now.worked));
        while self.recent.len() > 2 && self.recent[0].0.elapsed() > WINDOW {
            self.recent.pop_front();
        }
        let (then, before) = self.recent[0];
        self.now.speed = (self.now.worked - before) as f64 / (self.told - then).as_secs_f64().max(1e-3);
        self.now.seconds = self.begun.elapsed().as_secs_f64();
        self.progress.report.bytes(moment, &self.now);
    }
}

/// A stage under way.
pub struct Stage {
    now: Counted,
    begun: Instant,
    progress: Progress,
}

impl Stage {
    /// Begins a part of the stage, from which on the parts of that one are counted.
    /// - `label`: what it is called, such as `window 3 of 13`; empty: nothing.
    pub fn part(&mut self, label: String, total: usize) {
        self.now.part = Some(Part { label, before: self.now.made, total });
        self.report(Moment::UnderWay);
    }

    /// `parts` more are made.
    /// - Errors when the run was asked to stop: whoever says how far it is hears whether to go on.
    pub fn advance(&mut self, parts: usize) -> Result<(), Cancelled> {
        self.now.made += parts;
        self.report(Moment::UnderWay);
        self.progress.check_cancelled()
    }

    /// Ends the stage; returns the seconds it took.
    pub fn finish(mut self) -> f64 {
        self.report(Moment::Finished);
        self.now.seconds
    }

    fn report(&mut self, moment: Moment) {
        self.now.seconds = self.begun.elapsed().as_secs_f64();
        self.progress.report.stage(moment, &self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Mutex;

    /// Keeps what it is told.
    #[derive(Default)]
    struct Recorder {
        verbose: bool,
        lines: Mutex<Vec<String>>,
    }

    impl Recorder {
        fn keep(&self, line: String) {
            self.lines.lock().unwrap().push(line);
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.lines.lock().unwrap())
        }
    }

    impl Report for Recorder {
        fn note(&self, text: &str) {
            self.keep(format!("note {text}"));
        }

        fn is_verbose(&self) -> bool {
            self.verbose
        }

        fn stage(&self, moment: Moment, stage: &Counted) {
            self.keep(format!("{moment:?} {} {}/{}: {}", stage.name, stage.made, stage.total, stage.state()));
        }

        fn bytes(&self, moment: Moment, bytes: &Transfer) {
            let Transfer { name, total, done, worked, .. } = bytes;
            self.keep(format!("{moment:?} {name} {done}/{total}, {worked} of them now"));
        }

        fn done(&self, text: &str, fields: Value) {
            self.keep(format!("done {text} {fields}"));
        }

        fn error(&self, error: &anyhow::Error) {
            self.keep(format!("error {error:#}"));
        }

        fn interrupted(&self, text: &str) {
            self.keep(format!("interrupted {text}"));
        }
    }

    fn recorded(verbose: bool) -> (Arc<Recorder>, Progress) {
        let report = Arc::new(Recorder { verbose, ..Recorder::default() });
        (report.clone(), Progress::to(report))
    }

    #[test]
    fn stages_say_what_they_count() {
        let (report, progress) = recorded(false);
        let mut stage = progress.stage("denoise", 48, "steps");
        stage.advance(16).unwrap();
        stage.part("window 2 of 3".to_string(), 16);
        stage.advance(4).unwrap();
        stage.part(String::new(), 1);
        stage.advance(1).unwrap();
        let seconds = stage.finish();
        assert!((0.0..60.0).contains(&seconds));
        let want = [
            "Begun denoise 0/48: 0 of 48 steps",
            "UnderWay denoise 16/48: 16 of 48 steps",
            "UnderWay denoise 16/48: window 2 of 3, step 1 of 16",
            "UnderWay denoise 20/48: window 2 of 3, step 5 of 16",
            "UnderWay denoise 20/48: step 1 of 1",
            "UnderWay denoise 21/48: step 1 of 1",
            "Finished denoise 21/48: step 1 of 1",
        ];
        assert_eq!(report.take(), want);
    }

    #[test]
    fn bytes_are_told_now_and_then() {
        let (report, progress) = recorded(false);
        let mut bytes = progress.bytes("pull", 100);
        bytes.here(40).unwrap(); // too soon after the beginning
        bytes.advance(30).unwrap();
        bytes.note("the connection broke");
        bytes.undo(10);
        bytes.told -= Duration::from_secs(1);
        bytes.advance(20).unwrap();
        bytes.finish();
        let want = [
            "Begun pull 0/100, 0 of them now",
            "note the connection broke",
            "UnderWay pull 60/100, 30 of them now",
            "UnderWay pull 80/100, 50 of them now",
            "UnderWay pull 80/100, 50 of them now",
            "Finished pull 80/100, 50 of them now",
        ];
        assert_eq!(report.take(), want);
    }

    #[test]
    fn who_says_how_far_it_is_hears_whether_to_go_on() {
        let progress = Progress::silent();
        let (mut stage, mut bytes) = (progress.stage("denoise", 2, "steps"), progress.bytes("pull", 2));
        assert_eq!((stage.advance(1), bytes.advance(1), bytes.here(1)), (Ok(()), Ok(()), Ok(())));
        progress.clone().cancel().cancel();
        assert_eq!(
            (stage.advance(1), bytes.advance(1), bytes.here(1)),
            (Err(Cancelled), Err(Cancelled), Err(Cancelled))
        );
        assert_eq!(progress.silenced().check_cancelled(), Err(Cancelled));
        assert_eq!(Progress::silent().check_cancelled(), Ok(()), "another run");
    }

    #[test]
    fn details_are_for_who_asked() {
        for verbose in [false, true] {
            let (report, progress) = recorded(verbose);
            progress.clone().detail("more");
            progress.done("a.gif", json!({"out": "a.gif"}));
            progress.error(&anyhow::anyhow!("no room").context("cannot write"));
            progress.interrupted("interrupted; nothing was written");
            let mut want = vec![
                r#"done a.gif {"out":"a.gif"}"#,
                "error cannot write: no room",
                "interrupted interrupted; nothing was written",
            ];
            if verbose {
                want.insert(0, "note more");
            }
            assert_eq!(report.take(), want);
        }
    }

    #[test]
    fn the_quiet_hear_of_the_end_alone() {
        let report = Arc::new(Recorder::default());
        let progress = Progress::to(Arc::new(Silent { verbose: true, end: Some(report.clone()) }));
        progress.note("a");
        progress.detail("b");
        progress.done("c", json!({}));
        progress.stage("d", 1, "steps").finish();
        progress.bytes("e", 1).finish();
        assert!(report.take().is_empty() && progress.is_verbose() && progress.is_silent());
        progress.error(&anyhow::anyhow!("f"));
        progress.interrupted("g");
        assert_eq!(report.take(), ["error f", "interrupted g"]);
        assert!(!Progress::default().is_silent() && Progress::silent().is_silent());
        assert!(
            Progress::new(Mode::Json, true, false).is_silent() && Progress::new(Mode::None, false, true).is_verbose()
        );
    }
}
