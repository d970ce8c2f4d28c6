//! What a run says while it works, and to whom: one trait, and a file for each form that it takes.

pub mod json;
pub mod silent;
pub mod terminal;
pub mod words;

use serde_json::Value;
use words::{counted, singular};

/// Takes what a run says. A run has one, which all of its threads may talk to.
pub trait Report: Send + Sync {
    /// Takes one line that the user should know of.
    fn note(&self, text: &str);

    /// Takes one line for those who asked for more.
    fn detail(&self, text: &str) {
        if self.is_verbose() {
            self.note(text);
        }
    }

    /// Tells whether details are shown, and so whether values in other lines are written out.
    fn is_verbose(&self) -> bool;

    /// Tells whether notes go nowhere, for what would be worked out only to be said.
    fn is_silent(&self) -> bool {
        false
    }

    /// Takes where a stage of equal parts stands.
    fn stage(&self, moment: Moment, stage: &Counted);

    /// Takes where a stage of bytes stands, a few times a second.
    fn bytes(&self, moment: Moment, bytes: &Transfer);

    /// Takes the last line of a run; `fields` are its JSON form.
    fn done(&self, text: &str, fields: Value);

    /// Takes the one error that ends a run.
    fn error(&self, error: &anyhow::Error);

    /// Takes the one line of a run that was interrupted.
    fn interrupted(&self, text: &str);
}

/// What has just become of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Begun,
    UnderWay,
    Finished,
}

/// A stage of equal parts.
#[derive(Clone, Debug)]
pub struct Counted {
    pub name: &'static str,
    pub total: usize,
    /// What is counted, in the plural: `steps`, `frames`.
    pub unit: &'static str,
    pub made: usize,
    pub part: Option<Part>,
    /// Since it began.
    pub seconds: f64,
}

/// A part of a stage that is counted by itself, such as a window of a long clip.
#[derive(Clone, Debug)]
pub struct Part {
    /// `window 3 of 13`; empty where there is but one.
    pub label: String,
    /// What was made of the stage when it began, and how much it makes.
    pub before: usize,
    pub total: usize,
}

impl Counted {
    /// Says what is being made: `window 3 of 13, step 5 of 16`, or `40 of 208 frames`.
    pub fn state(&self) -> String {
        match &self.part {
            None => format!("{} of {}", self.made, counted(self.total, self.unit)),
            Some(Part { label, before, total }) => {
                let comma = if label.is_empty() { "" } else { ", " };
                let now = (self.made - before + 1).min(*total); // the one under way
                format!("{label}{comma}{} {now} of {total}", singular(self.unit))
            }
        }
    }

    /// Seconds that it will still take; `None` before the first part is made.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = (self.total - self.made.min(self.total)) as f64;
        (self.made > 0).then(|| self.seconds / self.made as f64 * left)
    }
}

/// A stage of bytes that are fetched or read.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub name: &'static str,
    /// 0 where nobody knows.
    pub total: u64,
    pub done: u64,
    /// Of those done, the ones that took time.
    pub worked: u64,
    /// Since it began.
    pub seconds: f64,
    /// Bytes a second, of late.
    pub speed: f64,
}

impl Transfer {
    /// Seconds that it will still take; `None` where that is not known.
    pub fn seconds_left(&self) -> Option<f64> {
        let known = self.speed > 0.0 && self.total > 0;
        known.then(|| self.total.saturating_sub(self.done) as f64 / self.speed)
    }
}

/// Returns an error's first line, and the lines below it: the last ones that a cause names.
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

/// Returns a message's first line, and what is ours below it. A line that begins within backticks is a value's; of others only those
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
}
