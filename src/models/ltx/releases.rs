//! What reel takes of the family.

/// Its releases, for errors.
pub const RELEASES: &str = "LTX-Video 0.9.0 to 0.9.8";
