//! What a run needs at the very least, from file headers alone, against what the machine has: a clip that cannot be made is
//! refused before the first weight is loaded. These are lower bounds, so a run that passes may still need more.

use crate::checkpoint::Checkpoint;
use crate::device::Compute;
use crate::geometry::Extent;
use crate::video::write::{Format, Target};
use anyhow::{Result, ensure};
use std::path::Path;

/// Where the system does not tell its memory, a clip that needs more than this is a typing error.
const UNKNOWN_MEMORY: u64 = 1 << 40;

/// Activations that are alive at once at the transformer's widest point, in widths of its stream: the stream and its normed
/// form, the MLP's four before and four after the activation.
const TRANSFORMER_WIDTHS: u64 = 10;
/// And at the decoder's end: a convolution's input, its output and the residual.
const DECODER_WIDTHS: u64 = 3;

/// Bytes of memory that making `clip` takes at the least.
fn least_memory(checkpoint: &Checkpoint, clip: Extent, compute: &Compute) -> u64 {
    let product = |factors: &[u64]| factors.iter().fold(1u64, |a, &b| a.saturating_mul(b));
    let element = compute.dtype.size_in_bytes() as u64;
    let (config, tensors) = &checkpoint.transformer;
    let weights = tensors.kept_bytes(compute.stored);
    let tokens = checkpoint.geometry().grid(clip).tokens() as u64;
    let denoise = weights.saturating_add(product(&[tokens, config.width() as u64, TRANSFORMER_WIDTHS, element]));

    // one latent frame at a time is the least that the decoder takes
    let vae = &checkpoint.vae.0;
    let frames = clip.frames.min(checkpoint.geometry().time) as u64;
    let cells = (clip.width / vae.patch_size * (clip.height / vae.patch_size)) as u64;
    let width = vae.decoder.last().map_or(vae.decoder_width, |b| b.outputs) as u64;
    let decode = product(&[frames, cells, width, DECODER_WIDTHS, element]);
    denoise.max(decode)
}

/// - Errors when making `clip` takes more memory than there is. Only a CPU's memory is known.
pub fn check_memory(checkpoint: &Checkpoint, clip: Extent, compute: &Compute) -> Result<()> {
    if !compute.device.is_cpu() {
        return Ok(());
    }
    let (need, free) = (least_memory(checkpoint, clip, compute), free_memory().unwrap_or(UNKNOWN_MEMORY));
    ensure!(
        need <= free,
        "{}x{}, {} frames with this model need at least {} of memory, and {} are free\n  \
         fix: a smaller --size, fewer --frames, or a smaller model",
        clip.width,
        clip.height,
        clip.frames,
        gigabytes(need),
        gigabytes(free)
    );
    Ok(())
}

/// Bytes of memory that can still be had, where the system tells: Linux.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    // a container may have less than its machine
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(limit.map_or(free, |limit: u64| limit.min(free)))
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

/// - Errors when the disk that `target` is on has no room for `clip`, however well it compresses.
pub fn check_disk(target: &Target, clip: Extent) -> Result<()> {
    let Some(pixels) = pixels_a_byte(target.format) else { return Ok(()) };
    let Some(free) = free_disk(&target.path) else { return Ok(()) };
    let need = (clip.width as u64 * clip.height as u64 * clip.frames as u64).div_ceil(pixels);
    ensure!(
        need <= free,
        "`{}` needs at least {} on the disk, and {} are free there\n  fix: make room, or give -o on another disk",
        target.path.display(),
        gigabytes(need),
        gigabytes(free)
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

/// `0.3 GB`, `275 GB`.
fn gigabytes(bytes: u64) -> String {
    let gb = bytes as f64 / 1e9;
    if gb < 10.0 { format!("{gb:.1} GB") } else { format!("{gb:.0} GB") }
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
    fn no_disk_is_large_enough_for_everything() {
        let clip = Extent { width: 1 << 24, height: 1 << 24, frames: 1 << 14 };
        let check = |path: &str| check_disk(&Target::parse(path).unwrap(), clip);
        assert!(check("-").is_ok());
        assert!(!cfg!(unix) || check("a.gif").is_err_and(|e| e.to_string().contains("fix:")));
        assert!(check_disk(&Target::parse("a.gif").unwrap(), Extent { width: 64, height: 64, frames: 9 }).is_ok());
    }
}
