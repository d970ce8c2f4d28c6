//! Which of diffusers' two ways a checkpoint was trained for.

use serde::{Deserialize, Serialize};

/// How a checkpoint was trained to be sampled; everything that differs between the two is a method here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// As diffusers' LTXPipeline: 0.9.0 and 0.9.1.
    Text,
    /// As diffusers' LTXConditionPipeline: 0.9.5 on.
    Condition,
}

impl Convention {
    /// Tokens that a prompt is cut to.
    pub fn max_tokens(self) -> usize {
        match self {
            Convention::Text => 128,
            Convention::Condition => 256,
        }
    }

    /// Tokens that T5 runs over, for a prompt of `tokens`. With `Text` the padding is attended to, so it has to be there;
    /// with `Condition` it is masked, so leaving it out changes nothing.
    pub fn encoded_tokens(self, tokens: usize) -> usize {
        match self {
            Convention::Text => self.max_tokens(),
            Convention::Condition => tokens,
        }
    }
}

impl std::fmt::Display for Convention {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Convention::Text => "text",
            Convention::Condition => "condition",
        })
    }
}
