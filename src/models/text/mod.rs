//! Prompts -> token ids -> the vectors that the transformer attends to.

pub mod names;
pub mod t5;
pub mod tokenizer;
