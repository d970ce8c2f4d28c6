//! `--vae-tile`.

use serde::{Deserialize, Serialize};

/// `--vae-tile`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tiles {
    /// Where memory asks for it.
    #[default]
    Auto,
    None,
    /// Width and height in pixels.
    Of(usize, usize),
}
