//! Sizes of released networks, by name: what is planned before a model is here, and timed without one.

use serde_json::Value;

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Transformer,
    Text,
    Vae,
}

/// A released network: its name, what it is, and its `config.json`.
#[derive(Clone, Debug)]
pub struct Size {
    pub name: &'static str,
    pub part: Part,
    pub config: Value,
}
