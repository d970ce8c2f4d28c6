//! What a program hears: one JSON object a line, on standard error.

use super::words::round;
use super::{Counted, Moment, Report, Transfer, told};
use crate::platform::shown;
use serde_json::{Value, json};
use std::io::Write;

/// One JSON object a line.
pub struct Json {
    pub verbose: bool,
}

impl Report for Json {
    fn note(&self, text: &str) {
        emit(&json!({"event": "note", "text": shown::line(text)}));
    }

    fn is_verbose(&self) -> bool {
        self.verbose
    }

    fn stage(&self, moment: Moment, stage: &Counted) {
        if moment != Moment::Finished {
            emit(&stage_event(stage));
        }
    }

    fn bytes(&self, moment: Moment, bytes: &Transfer) {
        if moment != Moment::Finished {
            emit(&bytes_event(bytes));
        }
    }

    fn done(&self, _: &str, fields: Value) {
        let mut event = json!({"event": "done"});
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        emit(&event);
    }

    fn error(&self, error: &anyhow::Error) {
        emit(&error_event(error));
    }

    fn interrupted(&self, text: &str) {
        emit(&json!({"event": "error", "text": text}));
    }
}

fn stage_event(stage: &Counted) -> Value {
    json!({"event": "progress", "stage": stage.name, "done": stage.made, "total": stage.total, "unit": stage.unit,
           "state": stage.state(), "seconds": round(stage.seconds), "seconds_left": stage.seconds_left().map(round)})
}

fn bytes_event(bytes: &Transfer) -> Value {
    json!({"event": "progress", "stage": bytes.name, "done": bytes.done, "total": bytes.total, "unit": "bytes",
           "seconds": round(bytes.seconds), "bytes_per_second": bytes.speed.round(),
           "seconds_left": bytes.seconds_left().map(round)})
}

/// The fix, and what else stands below an error's first line, is a field of its own.
fn error_event(error: &anyhow::Error) -> Value {
    let (head, below) = told(error);
    let mut event = json!({"event": "error", "text": shown::line(&head)});
    for line in &below {
        let (label, rest) = line.trim_start().split_once(": ").unwrap_or(("more", line));
        event[label] = shown::line(rest).into();
    }
    event
}

/// Writes a line of JSON, with what a terminal would obey written as JSON writes it: only strings hold such characters. A closed
/// standard error is no reason to stop a run.
fn emit(event: &Value) {
    let _ = writeln!(std::io::stderr(), "{}", shown::visible(&event.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::report::Part;

    #[test]
    fn stages_are_told_with_all_their_numbers() {
        let part = Some(Part { label: "window 2 of 3".to_string(), before: 16, total: 16 });
        let stage = Counted { name: "denoise", total: 48, unit: "steps", made: 20, part, seconds: 5.00049 };
        let want = r#"{"event":"progress","stage":"denoise","done":20,"total":48,"unit":"steps","state":"window 2 of 3, step 5 of 16","seconds":5.0,"seconds_left":7.001}"#;
        assert_eq!(stage_event(&stage).to_string(), want);
        let bytes = Transfer { name: "pull", total: 100, done: 60, worked: 50, seconds: 2.0, speed: 20.4 };
        let want = r#"{"event":"progress","stage":"pull","done":60,"total":100,"unit":"bytes","seconds":2.0,"bytes_per_second":20.0,"seconds_left":1.961}"#;
        assert_eq!(bytes_event(&bytes).to_string(), want);
        let unknown = bytes_event(&Transfer { total: 0, ..bytes });
        assert!(unknown["seconds_left"].is_null());
    }

    #[test]
    fn an_errors_fix_is_a_field() {
        let error = anyhow::anyhow!("no room\n  files: a b\n  fix: make some").context("cannot write `a`");
        let want = r#"{"event":"error","text":"cannot write `a`: no room","files":"a b","fix":"make some"}"#;
        assert_eq!(error_event(&error).to_string(), want);
    }
}
