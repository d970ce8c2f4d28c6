//! Room on the disk for a clip.

use crate::job::geometry::Extent;
use crate::platform::machine::free_disk;
use crate::platform::progress::human_bytes;
use crate::video::write::{Format, Target};
use anyhow::{Result, ensure};

/// Pixels that a byte of each form holds when a clip compresses very well.
fn pixels_a_byte(format: Format) -> Option<u64> {
    match format {
        Format::Mp4 | Format::Webp => Some(400),
        Format::Gif => Some(20),
        Format::Apng | Format::Frames => Some(10),
        Format::Y4m => None,
    }
}

/// Bytes that `clip` takes in `target` however well it compresses; `None` where it goes to no disk.
pub fn least_disk(target: &Target, clip: Extent) -> Option<u64> {
    let pixels = pixels_a_byte(target.format)?;
    Some((clip.width as u64 * clip.height as u64 * clip.frames as u64).div_ceil(pixels))
}

/// - Errors when the disk that `target` is on has no room for `clip`, however well it compresses.
pub fn check_disk(target: &Target, clip: Extent) -> Result<()> {
    let Some(need) = least_disk(target, clip) else { return Ok(()) };
    let Some(free) = free_disk(&target.path) else { return Ok(()) };
    ensure!(
        need <= free,
        "`{}` needs at least {} on the disk, and {} are free there\n  fix: make room, or give -o on another disk",
        target.path.display(),
        human_bytes(need),
        human_bytes(free)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_disk_is_large_enough_for_everything() {
        let clip = Extent { width: 1 << 24, height: 1 << 24, frames: 1 << 14 };
        let check = |path: &str| check_disk(&Target::parse(path).unwrap(), clip);
        assert!(check("-").is_ok());
        assert!(!cfg!(unix) || check("a.gif").is_err_and(|e| e.to_string().contains("fix:")));
        assert!(check_disk(&Target::parse("a.gif").unwrap(), Extent { width: 64, height: 64, frames: 9 }).is_ok());
    }
}
