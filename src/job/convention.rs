//! Which of two ways a checkpoint was trained to be sampled in.

use serde::{Deserialize, Serialize};

/// How a checkpoint was trained to be sampled. What differs between the two, its family answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// From text, and from one still as the first frame.
    Text,
    /// From text, with stills and clips held at any frame.
    Condition,
}

impl std::fmt::Display for Convention {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Convention::Text => "text",
            Convention::Condition => "condition",
        })
    }
}
