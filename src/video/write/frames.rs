//! A folder of PNG frames; each appears whole.

use super::partial::Partial;
use crate::video::Frame;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

pub struct Frames {
    folder: PathBuf,
    force: bool,
    made: bool,
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
    /// Makes the folder where it is missing. With `force`, frames that are there are removed when the first new one comes.
    pub fn create(folder: &Path, force: bool) -> Result<Frames> {
        let made = !folder.is_dir();
        if made {
            std::fs::create_dir(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
        }
        Ok(Frames { folder: folder.to_path_buf(), force, made, next: 0 })
    }

    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let partial = self.begin()?;
        let mut encoder = png::Encoder::new(partial.writer()?, frame.width as u32, frame.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().with_context(|| partial.failed())?;
        writer.write_image_data(&frame.rgb).with_context(|| partial.failed())?;
        writer.finish().with_context(|| partial.failed())?;
        partial.commit()?;
        self.next += 1;
        Ok(())
    }

    /// Takes the next frame from a PNG file, byte for byte.
    pub fn copy(&mut self, file: &Path) -> Result<()> {
        let partial = self.begin()?;
        let mut from =
            std::fs::File::open(file).with_context(|| format!("cannot read the frame `{}`", file.display()))?;
        std::io::copy(&mut from, &mut partial.writer()?).with_context(|| partial.failed())?;
        partial.commit()?;
        self.next += 1;
        Ok(())
    }

    fn begin(&self) -> Result<Partial> {
        if self.next == 0 && self.force {
            for old in existing(&self.folder)? {
                std::fs::remove_file(&old)
                    .with_context(|| format!("cannot remove the old frame `{}`", old.display()))?;
            }
        }
        Partial::create(&name(&self.folder, self.next), self.force)
    }

    pub fn finish(self) -> Result<()> {
        Ok(())
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_dir(&self.folder); // goes only if no frame came
        }
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
        for other in ["0000.png", "000001.png", "00001.PNG", "a.png", "00009.txt", "+0001.png"] {
            std::fs::write(folder.target("./").path.join(other), "mine")?;
        }
        let refused = format!("{:#}", target.check(6, 4, false).expect_err("holds frames"));
        assert!(refused.contains("00000.png") && refused.contains("--force"), "{refused}");
        write_clip(&target, 6, 4, 2, 8.0, true)?;
        let mut left =
            vec!["00000.png", "00001.png", "0000.png", "000001.png", "00001.PNG", "a.png", "00009.txt", "+0001.png"];
        left.sort_unstable();
        assert_eq!(folder.names(), left);
        Ok(())
    }
}
