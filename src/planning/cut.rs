//! How the VAE goes through a clip: how many frames at a time, in which tiles.

use crate::job::geometry::Geometry;
use crate::nn::stream::Chunking;
use crate::nn::tiles::Tiling;
use candle_core::Device;

/// How the VAE goes through a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaeChunking {
    /// Frames at a time; any numbers give the same.
    pub chunking: Chunking,
    /// `None`: whole pictures.
    pub tiling: Option<Tiling>,
}

/// Pixels that one group of latent frames may stand for: bounds the VAE's memory, whatever the clip's length. A GPU is not busy
/// with less than some latent frames at once.
const GROUP_PIXELS: usize = 1 << 17;
const GROUP_PIXELS_GPU: usize = 1 << 22;

/// Latent frames that the VAE takes at a time, of pictures of this size, where nothing else is asked for.
pub fn group(width: usize, height: usize, geometry: Geometry, device: &Device) -> usize {
    let pixels = if device.is_cpu() { GROUP_PIXELS } else { GROUP_PIXELS_GPU };
    (pixels / (width * height * geometry.time)).max(1)
}

/// Sides of tiles that are not made smaller, in latents.
pub const LEAST_TILE: usize = 4;

/// Smaller tiles than `tiling`, for pictures of this many latents: one more along the longer side of a tile, all of about one
/// size; `None` where they would get too small to look at anything.
pub fn smaller(tiling: Option<Tiling>, height: usize, width: usize) -> Option<Tiling> {
    let now = tiling.unwrap_or(Tiling { height, width, overlap: 0 });
    let tiles = now.tiles(height, width);
    let (mut rows, mut columns) = (tiles.len(), tiles.first().map_or(1, Vec::len));
    if now.height.min(height) > now.width.min(width) {
        rows += 1
    } else {
        columns += 1
    }
    let overlap = overlap(height / rows, width / columns).max(1);
    let side = |total: usize, count: usize| (total + (count - 1) * overlap).div_ceil(count);
    let (h, w) = (side(height, rows), side(width, columns));
    let cut = |size: usize, count: usize| count == 1 || size >= LEAST_TILE;
    (cut(h, rows) && cut(w, columns) && h * w < now.height.min(height) * now.width.min(width)).then_some(Tiling {
        height: h,
        width: w,
        overlap,
    })
}

/// Overlap of tiles of this size where none is asked for: a third of the shorter side. On the embedded model tiles of 13 x 11
/// latents come within 35 dB of the whole picture with an overlap of 2, 14 x 12 ones within 41 dB with 4.
pub fn overlap(height: usize, width: usize) -> usize {
    let side = height.min(width);
    (side / 3).max(1).min(side.saturating_sub(1))
}
