//! What LTX-Video's networks take: bytes at the most and operations, counted from shapes alone.

mod count;
pub mod transformer;
pub mod upscaler;
pub mod vae;
