//! What the readers' tests share: a folder that cleans up after itself, and a clip of known colours.

use crate::video::Frame;
use crate::video::write::{Target, Writer};
use anyhow::Result;
use std::path::{Path, PathBuf};

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("reel-read-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        Scratch(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PATCHES: [[u8; 3]; 4] = [[255, 0, 0], [0, 255, 0], [255, 255, 255], [40, 90, 200]];

/// Columns of `PATCHES`, moved along by `t` columns, darker by `t`.
fn colour(x: usize, width: usize, t: usize) -> [u8; 3] {
    PATCHES[(x * PATCHES.len() / width + t) % PATCHES.len()].map(|c| c.saturating_sub(t as u8))
}

pub fn patches(width: usize, height: usize, t: usize) -> Frame {
    let row: Vec<u8> = (0..width).flat_map(|x| colour(x, width, t)).collect();
    Frame { width, height, rgb: row.repeat(height) }
}

/// The worst difference in the patches' centres from `patches(_, _, t)`.
pub fn worst_patch(frame: &Frame, t: usize) -> u8 {
    let n = PATCHES.len();
    let differences = (0..n).flat_map(|patch| {
        let x = (2 * patch + 1) * frame.width / (2 * n);
        let at = (frame.height / 2 * frame.width + x) * 3;
        let wanted = colour(x, frame.width, t);
        (0..3).map(move |c| frame.rgb[at + c].abs_diff(wanted[c]))
    });
    differences.max().expect("patches")
}

pub fn write_clip(path: &Path, width: usize, height: usize, frames: usize, fps: f64) -> Result<()> {
    let target = Target::parse(path)?;
    let mut writer = Writer::create(&target, width, height, fps, frames, 90, true)?;
    for t in 0..frames {
        writer.push(&patches(width, height, t))?;
    }
    writer.finish()
}
