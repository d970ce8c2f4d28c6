//! What LTX-Video's networks take: bytes at the most and operations, counted from shapes alone.

pub mod count;
pub mod networks;
pub mod upscaler;
pub mod vae;
