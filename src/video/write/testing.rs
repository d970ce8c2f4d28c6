//! What the writers' tests share: a folder that cleans up after itself, and a clip of known colours.

use super::{Frame, Target, Writer};
use anyhow::Result;
use std::path::PathBuf;

/// One file a form; MP4 only where this build has it.
#[cfg(feature = "h264")]
pub const FILES: [&str; 4] = ["a.mp4", "a.gif", "a.webp", "a.png"];
#[cfg(not(feature = "h264"))]
pub const FILES: [&str; 3] = ["a.gif", "a.webp", "a.png"];

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("reel-write-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        Scratch(folder)
    }

    /// `join` keeps a closing `/`, which a path's text needs to name a folder.
    pub fn target(&self, name: &str) -> Target {
        Target::parse(self.0.join(name)).expect("a target")
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the test's folder");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Columns of a frame, left to right.
pub const PATCHES: [[u8; 3]; 8] =
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128], [255, 255, 0], [40, 90, 200]];

/// Columns of `PATCHES`, moved along by `t` columns.
pub fn patches(width: usize, height: usize, t: usize) -> Frame {
    let colour = |x: usize| PATCHES[(x * PATCHES.len() / width + t) % PATCHES.len()];
    let row: Vec<u8> = (0..width).flat_map(colour).collect();
    Frame { width, height, rgb: row.repeat(height) }
}

/// Hard to compress, the same on every run.
pub fn noise(width: usize, height: usize, t: usize) -> Frame {
    let byte = |i: usize| ((i + t * 7919).wrapping_mul(0x9E37_79B9) >> 13 & 255) as u8;
    Frame { width, height, rgb: (0..width * height * 3).map(byte).collect() }
}

pub fn write_clip(target: &Target, width: usize, height: usize, frames: usize, fps: f64, force: bool) -> Result<()> {
    let mut writer = Writer::create(target, width, height, fps, frames, 80, force)?;
    for t in 0..frames {
        writer.push(&patches(width, height, t))?;
    }
    writer.finish()
}

/// The worst difference of patch centres in packed pixels of `channels` bytes from `patches(width, _, t)`.
pub fn worst(pixels: &[u8], channels: usize, width: usize, height: usize, t: usize) -> u8 {
    let wanted = patches(width, 1, t).rgb;
    let centre = |p: usize| (2 * p + 1) * width / (2 * PATCHES.len());
    let differences = (0..PATCHES.len()).flat_map(|p| {
        let x = centre(p);
        let wanted = &wanted[3 * x..3 * x + 3];
        let got = &pixels[(height / 2 * width + x) * channels..][..3];
        wanted.iter().zip(got).map(|(a, b)| a.abs_diff(*b)).collect::<Vec<_>>()
    });
    differences.max().expect("eight patches")
}
