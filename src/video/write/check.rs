//! What can be wrong with an output before any work starts.

use super::{Format, Rate, Sizing, Target, frames};
use crate::platform::files::{AtomicFile, folder_of};
use crate::platform::streams;
use anyhow::{Result, bail, ensure};
use std::io::{ErrorKind, IsTerminal};
use std::path::PathBuf;

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
/// - `sizing`: what a user can change about the size.
pub fn size(format: Format, width: usize, height: usize, sizing: Sizing) -> Result<()> {
    ensure!(width > 0 && height > 0, "a clip of {width}x{height} has no pixels\n  fix: --size WxH with both above 0");
    let (longer, shorter, name) = match format {
        Format::Mp4 if cfg!(not(feature = "h264")) => bail!(NO_H264),
        Format::Mp4 => (MP4_SIDES.0, MP4_SIDES.1, "MP4 (H.264)"),
        Format::Gif => (GIF_SIDE, GIF_SIDE, "GIF"),
        Format::Webp => (WEBP_SIDE, WEBP_SIDE, "WebP"),
        Format::Apng | Format::Frames => (PNG_SIDE, PNG_SIDE, "PNG"),
        Format::Y4m => return Ok(()),
    };
    // each error with the flag that helps, where there is one, and the forms that do
    let flag = |change: &str| match sizing {
        Sizing::Asked => format!("fix: a {change} --size, or write"),
        Sizing::Scaled(_) => format!("fix: a {change} --scale or --size, or write"),
        Sizing::Footage => "fix: write".to_string(),
    };
    if width.max(height) > longer || width.min(height) > shorter {
        let forms = if name == "PNG" { "`-` (Y4M)" } else { "`.png`, a folder of frames or `-`" };
        bail!("{width}x{height} is more than {name} can hold here, {longer}x{shorter}\n  {} {forms}", flag("smaller"));
    }
    let forms = "`.gif`, `.webp`, `.png`, a folder of frames or `-`";
    if format == Format::Mp4 && width.min(height) < MP4_LEAST {
        bail!(
            "{width}x{height} is less than MP4 (H.264) takes here, {MP4_LEAST}x{MP4_LEAST}\n  {} {forms}",
            flag("larger")
        );
    }
    if format == Format::Mp4 && (width % 2 == 1 || height % 2 == 1) {
        // enlarged an odd number of times, an even size stays even
        let times = if let Sizing::Scaled(times) = sizing { times } else { 1 };
        let even = |side: usize| (side / times).next_multiple_of(2); // the limits are even, so this stays within them
        bail!(
            "MP4 takes even sizes only (its colour is stored for 2x2 pixels), not {width}x{height}\n  \
             fix: --size {}x{}, or write {forms}, which take odd sizes",
            even(width),
            even(height)
        );
    }
    Ok(())
}

/// Clips that are longer than the form can count or time.
pub fn length(format: Format, frames: usize, rate: Rate) -> Result<()> {
    let fits = match format {
        Format::Mp4 => u32::try_from(frames as u64 * u64::from(rate.clock().1)).is_ok(),
        Format::Webp => i32::try_from(rate.ticks(frames, 1000)).is_ok(),
        Format::Apng => u32::try_from(frames).is_ok(),
        Format::Gif | Format::Frames | Format::Y4m => true,
    };
    let name = match format {
        Format::Mp4 => "an MP4",
        Format::Webp => "a WebP",
        _ => "this form",
    };
    ensure!(
        fits,
        "{frames} frames at {:.3} a second are longer than {name} can time\n  fix: fewer frames, or write a folder of frames",
        f64::from(rate.num) / f64::from(rate.den)
    );
    Ok(())
}

/// An output that is already there, and folders that are missing or cannot be written.
pub fn place(target: &Target, force: bool) -> Result<()> {
    let path = &target.path;
    if target.format == Format::Y4m {
        ensure!(
            !std::io::stdout().is_terminal(),
            "`-` would write raw video to the terminal\n  fix: pipe it, as in `... -o - | ffplay -`, or give -o FILE"
        );
        ensure!(
            !streams::output_was_closed(),
            "`-` is standard output, which is closed\n  fix: pipe it, as in `... -o - | ffplay -`, or give -o FILE"
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
        Ok(entry) if !entry.is_file() && !entry.is_dir() => bail!(
            "cannot write `{0}`: it is a pipe or a device, not a file\n  \
             fix: `-o - > {0}` writes raw video (Y4M) into it, or choose another -o",
            path.display()
        ),
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
                     fix: --force puts the new ones in their place, or choose another -o",
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
        _ if target.format == Format::Frames && path.components().collect::<PathBuf>().is_symlink() => bail!(
            "cannot write frames to `{}`: it is a link that leads nowhere\n  fix: make the folder that it leads to, or choose another -o",
            path.display()
        ),
        // A link that leads nowhere is there too.
        _ if path.symlink_metadata().is_ok() && !force => {
            bail!("the output `{}` already exists\n  fix: --force replaces it, or choose another -o", path.display())
        }
        _ => path.clone(),
    };
    // what a link leads to is replaced, and so has to be a clip too
    if let Ok(real) = path.canonicalize()
        && force
        && !Target::parse(&real).is_ok_and(|real| real.format == target.format)
        && target.format != Format::Frames
    {
        bail!(
            "the output `{}` is a link to `{}`, a file of another kind\n  fix: remove the link, or choose another -o",
            path.display(),
            real.display()
        );
    }
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
        let fits = |format, width, height| size(format, width, height, Sizing::Asked).is_ok();
        assert!(fits(Format::Gif, 65535, 1) && !fits(Format::Gif, 65536, 1));
        assert!(fits(Format::Webp, 16383, 7) && !fits(Format::Webp, 16384, 7));
        assert!(fits(Format::Apng, 5, 7) && !fits(Format::Frames, 0, 7));
        assert!(fits(Format::Y4m, 5, 7) && !fits(Format::Y4m, 5, 0));
        // no flag changes the size of footage, and so none is named
        let footage = error(size(Format::Webp, 20_000, 7, Sizing::Footage));
        assert!(!footage.contains("--size") && footage.contains("fix: write `.png`"), "{footage}");
    }

    #[test]
    #[cfg(feature = "h264")]
    fn mp4_wants_even_sizes_within_the_encoders_limits() {
        let size = |width, height| size(Format::Mp4, width, height, Sizing::Asked);
        assert!(size(2160, 3840).is_ok() && size(2162, 3840).is_err());
        assert!(size(16, 16).is_ok() && size(16, 14).is_err());
        let odd = error(size(765, 512));
        assert!(odd.contains("--size 766x512") && odd.contains(".webp"), "{odd}");
        assert!(size(766, 511).is_err());
        let scaled = |width, height| super::size(Format::Mp4, width, height, Sizing::Scaled(3));
        assert!(error(scaled(99, 66)).contains("--size 34x22"), "{}", error(scaled(99, 66)));
        assert!(error(scaled(4200, 66)).contains("a smaller --scale"));
    }

    #[test]
    fn lengths_that_cannot_be_timed() -> Result<()> {
        let (slow, fast) = (Rate::new(0.01)?, Rate::new(24.0)?);
        for format in [Format::Mp4, Format::Webp] {
            assert!(length(format, 100_000, fast).is_ok());
            assert!(error(length(format, 100_000, slow)).contains("fix: fewer frames"), "{format:?}");
        }
        assert!(length(Format::Frames, 100_000, slow).is_ok());
        Ok(())
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pipes_devices_and_links_are_not_replaced() -> Result<()> {
        let folder = Scratch::new("special");
        let pipe = folder.target("pipe.gif");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe.path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )?;
        for target in [pipe, Target::parse("/dev/null")?, Target { format: Format::Gif, path: "/dev/null".into() }] {
            let error = error(place(&target, true));
            assert!(error.contains("a pipe or a device") && error.contains("`-o - > "), "{error}");
        }
        let model = folder.target("model.png").path.with_extension("safetensors");
        std::fs::write(&model, "weights")?;
        let link = folder.target("link.png");
        std::os::unix::fs::symlink(&model, &link.path)?;
        assert!(error(place(&link, true)).contains("a link to"));
        assert_eq!(std::fs::read(&model)?, b"weights");
        Ok(())
    }

    #[test]
    #[cfg(not(feature = "h264"))]
    fn mp4_needs_the_feature() {
        assert!(error(size(Format::Mp4, 768, 512, Sizing::Asked)).contains("h264"));
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
