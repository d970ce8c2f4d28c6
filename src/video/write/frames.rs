//! A folder of PNG frames, which appear all at once.

use crate::platform::files::AtomicFolder;
use crate::video::Frame;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

pub struct Frames {
    target: PathBuf,
    folder: AtomicFolder,
    force: bool,
    next: usize,
}

/// Frame `i`'s file.
pub fn name(folder: &Path, i: usize) -> PathBuf {
    folder.join(format!("{i:05}.png"))
}

/// The files in `folder` that are named exactly as this module names frames, in order.
pub fn existing(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let looked = || format!("cannot look into the folder `{}`", folder.display());
    for entry in std::fs::read_dir(folder).with_context(looked)? {
        let entry = entry.with_context(looked)?;
        let file = entry.file_name();
        let number =
            file.to_str().and_then(|file| file.strip_suffix(".png")).and_then(|stem| stem.parse::<usize>().ok());
        let ours = number.is_some_and(|i| name(folder, i) == entry.path());
        if ours && !entry.file_type().with_context(looked)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

impl Frames {
    /// - `force`: frames that are there are replaced in the end.
    pub fn create(target: &Path, force: bool) -> Result<Frames> {
        Ok(Frames { target: target.to_path_buf(), folder: AtomicFolder::create(target)?, force, next: 0 })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        self.folder.write(&name(Path::new(""), self.next), |out| {
            let mut encoder = png::Encoder::new(out, frame.width as u32, frame.height as u32);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&frame.rgb)?;
            Ok(writer.finish()?)
        })?;
        self.next += 1;
        Ok(())
    }

    /// Takes the next frame from a PNG file, byte for byte.
    pub fn copy(&mut self, file: &Path) -> Result<()> {
        let unread = || format!("cannot read the frame `{}`", file.display());
        let mut from = std::fs::File::open(file).with_context(unread)?;
        self.folder.write(&name(Path::new(""), self.next), |out| {
            std::io::copy(&mut from, out)?;
            Ok(())
        })?;
        self.next += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        // those of one clip are counted on from 0; a number after a gap is somebody else's
        let old = (0..).map(|i| name(&self.target, i)).take_while(|path| path.is_file()).collect::<Vec<_>>();
        self.folder.commit(self.force, &old)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn frames_read_back_exactly() -> Result<()> {
        let folder = Scratch::new("frames");
        let target = folder.target("out/");
        write_clip(&target, 13, 5, 3, 8.0, false)?;
        let names: Vec<_> = (0..3).map(|i| name(&target.path, i)).collect();
        assert_eq!(existing(&target.path)?, names);
        for (t, name) in names.iter().enumerate() {
            assert_eq!(image::open(name)?.into_rgb8().into_raw(), patches(13, 5, t).rgb);
        }
        Ok(())
    }

    #[test]
    fn force_removes_old_frames_and_nothing_else() -> Result<()> {
        let folder = Scratch::new("frames-force");
        write_clip(&folder.target("."), 6, 4, 4, 8.0, false)?;
        let target = folder.target(".");
        for other in ["0000.png", "000001.png", "00001.PNG", "a.png", "00009.txt", "+0001.png", "00050.png"] {
            std::fs::write(folder.target("./").path.join(other), "mine")?;
        }
        let refused = format!("{:#}", target.check_place(false).expect_err("holds frames"));
        assert!(refused.contains("00000.png") && refused.contains("--force"), "{refused}");
        write_clip(&target, 6, 4, 2, 8.0, true)?;
        let ours = ["00000.png", "00001.png"];
        let others = ["0000.png", "000001.png", "00001.PNG", "a.png", "00009.txt", "+0001.png", "00050.png"];
        let mut left = [&ours[..], &others[..]].concat();
        left.sort_unstable();
        assert_eq!(folder.names(), left);
        Ok(())
    }

    #[test]
    fn a_folder_of_frames_appears_whole_or_not_at_all() -> Result<()> {
        let folder = Scratch::new("frames-whole");
        let target = folder.target("out/");
        let begin = |force| -> Result<Frames> {
            let mut frames = Frames::create(&target.path, force)?;
            frames.push(&patches(6, 4, 3))?;
            Ok(frames)
        };
        let frames = begin(false)?;
        assert!(!target.path.exists());
        drop(frames);
        assert!(folder.names().is_empty());
        write_clip(&target, 6, 4, 2, 8.0, false)?;
        let first = || std::fs::read(name(&target.path, 0));
        let before = first()?;
        drop(begin(true)?);
        assert_eq!((first()?, existing(&target.path)?.len()), (before.clone(), 2));
        assert!(begin(false)?.finish().is_err());
        assert_eq!((first()?, existing(&target.path)?.len()), (before.clone(), 2));
        begin(true)?.finish()?;
        assert_ne!(first()?, before);
        assert_eq!(existing(&target.path)?.len(), 1);
        Ok(())
    }
}
