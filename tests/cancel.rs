//! A run that is asked to stop, through the library. In a process of its own, because it sets a variable of the whole process.

use crate::common::{Scratch, alone};
use reel::job::host::Host;
use reel::job::request::{Keyframe, Request};
use reel::pipeline::Job;
use reel::platform::cancel::{Cancel, Cancelled};
use reel::platform::progress::Progress;
use reel::platform::report::{Counted, Moment, Report, Transfer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// Stops the run when so many parts of a stage are made.
struct Stopper {
    stage: &'static str,
    at: usize,
    cancel: OnceLock<Cancel>,
    /// Where each stage stands that was told since.
    after: Mutex<Vec<(&'static str, usize)>>,
    done: Mutex<Option<String>>,
}

impl Report for Stopper {
    fn note(&self, _: &str) {}

    fn is_verbose(&self) -> bool {
        true
    }

    fn stage(&self, _: Moment, stage: &Counted) {
        let cancel = self.cancel.get().unwrap();
        if cancel.is_cancelled() {
            self.after.lock().unwrap().push((stage.name, stage.made));
        }
        if stage.name == self.stage && stage.made >= self.at {
            cancel.cancel();
        }
    }

    fn bytes(&self, _: Moment, _: &Transfer) {}

    fn done(&self, text: &str, _: Value) {
        *self.done.lock().unwrap() = Some(text.to_string());
    }

    fn error(&self, _: &anyhow::Error) {}

    fn interrupted(&self, _: &str) {}
}

fn host(scratch: &Scratch, out: &str) -> Host {
    Host { device: Some("cpu".to_string()), out: Some(scratch.path(out).into()), ..Host::default() }
}

fn request(scratch: &Scratch) -> Request {
    let still = scratch.path("still.png");
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([7 * x as u8, 8 * y as u8, 90])).save(&still).unwrap();
    Request {
        prompt: "a red ball on the sand".to_string(),
        model: Some("tiny".to_string()),
        size: Some((32, 32)),
        frames: Some(81),
        steps: Some(5),
        seed: Some(7),
        // two of them, so that there is something between them
        keyframe: [0, 40].map(|frame| Keyframe { file: PathBuf::from(&still), frame, strength: 1.0 }).to_vec(),
        ..Request::default()
    }
}

fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_that_is_stopped_ends_soon_and_leaves_nothing() {
    alone("cancel::a_stopped_run");
}

#[test]
#[ignore = "in a process of its own, by `a_run_that_is_stopped_ends_soon_and_leaves_nothing`"]
fn a_stopped_run() {
    let scratch = Scratch::new("cancel");
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("state");
    // SAFETY: no other thread runs yet; this is the only test of its process.
    unsafe { std::env::set_var("XDG_STATE_HOME", state) }; // the machine's own history is none of the tests' business
    for out in ["a.gif", "frames/"] {
        for (stage, at) in [("text", 1), ("encode", 1), ("denoise", 2), ("decode", 9)] {
            let (request, host) = (request(&scratch), host(&scratch, out));
            let (cancel, after, done) = Default::default();
            let report = Arc::new(Stopper { stage, at, cancel, after, done });
            let progress = Progress::to(report.clone());
            report.cancel.set(progress.cancel().clone()).unwrap();
            let error = Job::prepare(&request, &host, &progress).unwrap().run(&progress).unwrap_err();
            assert!(Cancelled::caused(&error), "{stage}: {error:#}");
            assert_eq!(*report.after.lock().unwrap(), [], "{stage} goes on");
            assert_eq!(*report.done.lock().unwrap(), None, "{stage}");
            assert_eq!(names(&scratch.path("")), ["still.png"], "{stage}");
        }
    }
    // before it began; clips are read then
    let stopped = Progress::silent();
    stopped.cancel().cancel();
    let error = Job::prepare(&request(&scratch), &host(&scratch, "a.gif"), &stopped).err().unwrap();
    assert!(Cancelled::caused(&error), "{error:#}");
    // nobody else's run is stopped by that
    let free = Progress::silent();
    Job::prepare(&request(&scratch), &host(&scratch, "a.gif"), &free).unwrap().run(&free).unwrap();
    assert_eq!(names(&scratch.path("")), ["a.gif", "still.png"]);
}
