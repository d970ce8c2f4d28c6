//! What the machine has: memory and disk; and how sizes are read.

use crate::geometry::Extent;
use crate::progress::human_bytes;
use crate::video::write::{Format, Target};
use anyhow::{Result, ensure};
use std::path::Path;

/// Bytes of memory that can still be had, where the system tells: Linux.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    // a container may have less than its machine
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(limit.map_or(free, |limit: u64| limit.min(free)))
}

/// The most memory that this process has had, where the system tells: Linux.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Lets the most begin anew from what this process has now; what others measure of it begins anew too.
/// - Errors where the system does not do that.
pub fn forget_peak() -> std::io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5")
}

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

/// Bytes free to us on the disk where `path` is, or will be; `None` where the system does not tell.
pub fn free_disk(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let there = path.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
        let disk = there.filter(|p| p.exists()).find_map(|p| rustix::fs::statvfs(p).ok())?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// `8GiB`, `8 GB`, `512MiB`, `8G` (as GiB), or plain bytes, to bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 12] = [
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
        ("tib", 1099511627776.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("k", 1024.0),
        ("m", 1048576.0),
        ("g", 1073741824.0),
        ("b", 1.0),
    ];
    let wrong = || "expected a size such as 8GiB, 8GB, 512MiB or a number of bytes".to_string();
    let lower = text.trim().to_lowercase();
    let unit = UNITS.iter().find(|(unit, _)| lower.ends_with(unit));
    let (number, factor) = match unit {
        Some((unit, factor)) => (&lower[..lower.len() - unit.len()], *factor),
        None => (lower.as_str(), 1.0),
    };
    let number = number.trim().parse::<f64>().map_err(|_| wrong())?;
    let bytes = number * factor;
    if !(bytes.is_finite() && (1.0..=1e18).contains(&bytes)) {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_disk() {
        assert!(free_memory().is_none_or(|free| free > 1 << 20));
        assert!(free_disk(Path::new("no/such/folder/a.mp4")).is_none_or(|free| free > 0));
    }

    #[test]
    fn sizes_are_read() {
        let sizes = ["8GiB", "8gb", "512 MiB", "1.5G", "123456", "7b"].map(|text| parse_size(text).unwrap());
        assert_eq!(sizes, [8 << 30, 8_000_000_000, 512 << 20, 3 << 29, 123_456, 7]);
        for wrong in ["", "GiB", "-1GB", "8GBs", "inf", "nan", "0", "1e30"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_disk_is_large_enough_for_everything() {
        let clip = Extent { width: 1 << 24, height: 1 << 24, frames: 1 << 14 };
        let check = |path: &str| check_disk(&Target::parse(path).unwrap(), clip);
        assert!(check("-").is_ok());
        assert!(!cfg!(unix) || check("a.gif").is_err_and(|e| e.to_string().contains("fix:")));
        assert!(check_disk(&Target::parse("a.gif").unwrap(), Extent { width: 64, height: 64, frames: 9 }).is_ok());
    }
}
