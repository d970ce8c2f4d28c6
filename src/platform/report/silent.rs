//! Nothing: for the library's users, who have what comes back, and for `--quiet` and `--progress none`, which still hear of the end.

use super::{Counted, Moment, Report, Transfer};
use serde_json::Value;
use std::sync::Arc;

/// Says nothing, or what ends a run alone.
#[derive(Default)]
pub struct Silent {
    pub verbose: bool,
    /// Who hears of an error and an interruption.
    pub end: Option<Arc<dyn Report>>,
}

impl Report for Silent {
    fn note(&self, _: &str) {}

    fn is_verbose(&self) -> bool {
        self.verbose
    }

    fn is_silent(&self) -> bool {
        true
    }

    fn stage(&self, _: Moment, _: &Counted) {}

    fn bytes(&self, _: Moment, _: &Transfer) {}

    fn done(&self, _: &str, _: Value) {}

    fn error(&self, error: &anyhow::Error) {
        self.end.iter().for_each(|end| end.error(error));
    }

    fn interrupted(&self, text: &str) {
        self.end.iter().for_each(|end| end.interrupted(text));
    }
}
