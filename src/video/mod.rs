//! Pictures outside the model: what a clip is made of, and the files it is written to.

pub mod read;
pub mod resize;
pub mod write;

/// One picture, packed RGB, 8 bits, row-major.
/// - `rgb`: `width * height * 3` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}
