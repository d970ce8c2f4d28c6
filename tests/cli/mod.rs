//! The program as a user meets it: every error, exit codes, help, outputs.

mod common;
mod flags;
mod gguf;
mod joins;
mod lora;
mod models;
mod runs;
mod stills;
mod system;
mod weights;
mod words;
