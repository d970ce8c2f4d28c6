//! What can be wrong with an output before any work starts.

use super::{Format, Target, frames};
use crate::platform::files::{AtomicFile, folder_of};
use anyhow::{Result, bail, ensure};
use std::io::{ErrorKind, IsTerminal};

pub const NO_H264: &str = "this build of reel cannot write MP4: it was made without the feature `h264`\n  \
                           fix: write .gif, .webp, .png or a folder of frames, or build with `--features h264`";

/// Longer and shorter side that openh264's encoder takes, either way round, and the least of both.
const MP4_SIDES: (usize, usize) = (3840, 2160);
const MP4_LEAST: usize = 16;
/// A GIF's sides are 16-bit; a WebP frame's are 14-bit; a PNG's are 31-bit.
const GIF_SIDE: usize = 65535;
const WEBP_SIDE: usize = 16383;
const PNG_SIDE: usize = i32::MAX as usize;

/// Sizes that the form cannot hold.
pub fn size(format: Format, width: usize, height: usize) -> Result<()> {
    ensure!(width > 0 && height > 0, "a clip of {width}x{height} has no pixels\n  fix: --size WxH with both above 0");
    let (longer, shorter, name) = match format {
        Format::Mp4 if cfg!(not(feature = "h264")) => bail!(NO_H264),
        Format::Mp4 => (MP4_SIDES.0, MP4_SIDES.1, "MP4 (H.264)"),
        Format::Gif => (GIF_SIDE, GIF_SIDE, "GIF"),
        Format::Webp => (WEBP_SIDE, WEBP_SIDE, "WebP"),
        Format::Apng | Format::Frames => (PNG_SIDE, PNG_SIDE, "PNG"),
        Format::Y4m => return Ok(()),
    };
    if width.max(height) > longer || width.min(height) > shorter {
        bail!("{width}x{height} is more than {name} can hold here, {longer}x{shorter}\n  {}", other_forms(format));
    }
    if format == Format::Mp4 && width.min(height) < MP4_LEAST {
        bail!(
            "{width}x{height} is less than MP4 (H.264) takes here, {MP4_LEAST}x{MP4_LEAST}\n  \
             fix: a larger --size, or write .gif, .webp, .png, a folder of frames or `-`"
        );
    }
    if format == Format::Mp4 && (width % 2 == 1 || height % 2 == 1) {
        let even = |side: usize| side + side % 2; // the limits are even, so this stays within them
        bail!(
            "MP4 takes even sizes only (its colour is stored for 2x2 pixels), not {width}x{height}\n  \
             fix: --size {}x{}, or write .gif, .webp, .png, a folder of frames or `-`, which take odd sizes",
            even(width),
            even(height)
        );
    }
    Ok(())
}

fn other_forms(format: Format) -> &'static str {
    match format {
        Format::Mp4 => "fix: a smaller --size, or write .png, a folder of frames or `-`",
        _ => "fix: a smaller --size",
    }
}

/// An output that is already there, and folders that are missing or cannot be written.
pub fn place(target: &Target, force: bool) -> Result<()> {
    let path = &target.path;
    if target.format == Format::Y4m {
        ensure!(
            !std::io::stdout().is_terminal(),
            "`-` would write raw video to the terminal\n  fix: pipe it, as in `... -o - | ffplay -`, or give -o FILE"
        );
        return Ok(());
    }
    let folder = folder_of(path);
    match std::fs::metadata(&folder) {
        Ok(entry) => ensure!(
            entry.is_dir(),
            "cannot write `{}`: `{}` is a file, not a folder\n  fix: choose another -o",
            path.display(),
            folder.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "cannot write `{}`: the folder `{}` does not exist\n  fix: mkdir -p {}",
            path.display(),
            folder.display(),
            folder.display()
        ),
        Err(error) => bail!(
            "cannot write `{}`: cannot look into the folder `{}`: {error}\n  fix: choose another -o",
            path.display(),
            folder.display()
        ),
    }
    let probe = match std::fs::metadata(path) {
        Ok(entry) if target.format == Format::Frames => {
            ensure!(
                entry.is_dir(),
                "cannot write frames to `{}`: it is a file\n  fix: choose another folder for -o",
                path.display()
            );
            if let Some(old) = frames::existing(path)?.first()
                && !force
            {
                bail!(
                    "the folder `{}` already holds frames, such as `{}`\n  \
                     fix: --force removes them and writes the new ones, or choose another -o",
                    path.display(),
                    old.display()
                );
            }
            frames::name(path, 0)
        }
        Ok(entry) if entry.is_dir() => {
            bail!("cannot write `{}`: it is a folder\n  fix: choose another -o", path.display())
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            bail!("cannot write `{}`: {error}\n  fix: choose another -o", path.display())
        }
        // A link that leads nowhere is there too.
        _ if path.symlink_metadata().is_ok() && !force => {
            bail!("the output `{}` already exists\n  fix: --force replaces it, or choose another -o", path.display())
        }
        _ => path.clone(),
    };
    // Permissions, read-only disks and quotas are best asked by doing what will be done.
    AtomicFile::create(&probe, true).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn error(result: Result<()>) -> String {
        format!("{:#}", result.expect_err("an error"))
    }

    #[test]
    fn sizes_that_do_not_fit() {
        assert!(size(Format::Gif, 65535, 1).is_ok() && size(Format::Gif, 65536, 1).is_err());
        assert!(size(Format::Webp, 16383, 7).is_ok() && size(Format::Webp, 16384, 7).is_err());
        assert!(size(Format::Apng, 5, 7).is_ok() && size(Format::Frames, 0, 7).is_err());
        assert!(size(Format::Y4m, 5, 7).is_ok() && size(Format::Y4m, 5, 0).is_err());
    }

    #[test]
    #[cfg(feature = "h264")]
    fn mp4_wants_even_sizes_within_the_encoders_limits() {
        assert!(size(Format::Mp4, 2160, 3840).is_ok() && size(Format::Mp4, 2162, 3840).is_err());
        assert!(size(Format::Mp4, 16, 16).is_ok() && size(Format::Mp4, 16, 14).is_err());
        let odd = error(size(Format::Mp4, 765, 512));
        assert!(odd.contains("--size 766x512") && odd.contains(".webp"), "{odd}");
        assert!(size(Format::Mp4, 766, 511).is_err());
    }

    #[test]
    #[cfg(not(feature = "h264"))]
    fn mp4_needs_the_feature() {
        assert!(error(size(Format::Mp4, 768, 512)).contains("h264"));
    }

    #[test]
    fn folders_that_are_missing_or_files() -> Result<()> {
        let folder = Scratch::new("place");
        assert!(error(place(&folder.target("no/a.gif"), false)).contains("mkdir -p"));
        std::fs::write(folder.target("plain").path, "")?;
        assert!(error(place(&folder.target("plain/a.gif"), true)).contains("`"));
        assert!(error(place(&folder.target("plain"), true)).contains("is a file"));
        assert!(error(place(&folder.target("plain/"), true)).contains("fix:"));
        assert!(error(place(&folder.target(&format!("{}.gif", "a".repeat(300))), true)).contains("fix:"));
        std::fs::create_dir(folder.target("there").path)?;
        let gif = Target { format: Format::Gif, path: folder.target("there").path };
        assert!(error(place(&gif, true)).contains("is a folder"));
        place(&folder.target("there"), false)?;
        place(&folder.target("new/"), false)?;
        assert_eq!(folder.names(), ["plain", "there"]);
        Ok(())
    }
}
