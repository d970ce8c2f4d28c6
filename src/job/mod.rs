//! What was asked for and what was decided: plain data that serialises, its ranges and its arithmetic between pixels and latents.

pub mod convention;
pub mod geometry;
pub mod host;
pub mod ranges;
pub mod recipe;
pub mod request;
pub mod sources;
pub mod tiles;
pub mod windows;
