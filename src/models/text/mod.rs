//! Prompts -> token ids -> the vectors that the transformer attends to.

pub mod cost;
pub mod names;
pub mod open;
pub mod sizes;
pub mod t5;
pub mod tokenizer;
