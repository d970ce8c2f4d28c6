//! A folder of frames: PNG, JPEG or WebP files in the order that people count in (2 before 10), all of one size.

use super::{Clip, Remarks, Source, still};
use crate::video::Frame;
use anyhow::{Context, Result, ensure};
use image::ImageFormat;
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

pub struct Folder {
    files: Vec<(PathBuf, ImageFormat)>,
    at: usize,
}

fn format(path: &Path) -> Option<ImageFormat> {
    let hidden = path.file_name()?.to_string_lossy().starts_with('.');
    match path.extension()?.to_string_lossy().to_ascii_lowercase().as_str() {
        _ if hidden => None,
        "png" => Some(ImageFormat::Png),
        "jpg" | "jpeg" => Some(ImageFormat::Jpeg),
        "webp" => Some(ImageFormat::WebP),
        _ => None,
    }
}

/// Runs of digits are compared as numbers, the rest as bytes.
fn natural(a: &str, b: &str) -> Ordering {
    fn split(text: &str, digits: bool) -> (&str, &str) {
        text.split_at(text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len()))
    }
    let (mut left, mut right) = (a, b);
    while !left.is_empty() && !right.is_empty() {
        let ((text_l, rest_l), (text_r, rest_r)) = (split(left, false), split(right, false));
        let ((digits_l, rest_l), (digits_r, rest_r)) = (split(rest_l, true), split(rest_r, true));
        let (number_l, number_r) = (digits_l.trim_start_matches('0'), digits_r.trim_start_matches('0'));
        let numbers = number_l.len().cmp(&number_r.len()).then_with(|| number_l.cmp(number_r));
        let order = text_l.cmp(text_r).then(numbers);
        if order != Ordering::Equal {
            return order;
        }
        (left, right) = (rest_l, rest_r);
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Files that are opened: an hour of frames.
const MOST: usize = 100_000;

/// Reads every file's header, to find the one that does not fit.
pub fn open(path: &Path, remarks: &mut Remarks) -> Result<Clip> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        files.extend(format(&path).map(|format| (path, format)));
        ensure!(
            files.len() <= MOST,
            "there are more than {MOST} frames in the folder\n  fix: make a clip of them: \
             `ffmpeg -framerate 24 -i IN/%05d.png -c:v libx264 -crf 10 -pix_fmt yuv420p OUT.mp4`"
        );
    }
    files.retain(|(path, _)| path.is_file());
    ensure!(
        !files.is_empty(),
        "there are no frames in the folder\n  fix: put PNG, JPEG or WebP files of one size in it"
    );
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    files.sort_by(|a, b| natural(&name(&a.0), &name(&b.0)));

    let mut first = None;
    for (file, format) in &files {
        let size = still::size(file, *format).with_context(|| format!("frame `{}` is damaged", name(file)))?;
        let (width, height) = *first.get_or_insert(size);
        ensure!(
            size == (width, height),
            "frame `{}` is {}x{}, the others before it {width}x{height}\n  fix: make all frames one size",
            name(file),
            size.0,
            size.1
        );
    }
    let (width, height) = first.context("there are no frames")?;
    still::read(&files[0].0, files[0].1, remarks).with_context(|| format!("frame `{}`", name(&files[0].0)))?;
    Ok(Clip {
        width,
        height,
        still: false,
        starts: vec![0.0; files.len()],
        end: None,
        tick: 0.0,
        codec: "frames".to_string(),
        sound: false,
        path: PathBuf::from(path),
        source: Box::new(Folder { files, at: 0 }),
    })
}

impl Source for Folder {
    fn next(&mut self) -> Result<Option<Frame>> {
        let Some((path, format)) = self.files.get(self.at) else { return Ok(None) };
        let frame = still::read(path, *format, &mut Remarks::default())
            .with_context(|| format!("frame {} (`{}`)", self.at, path.display()))?;
        self.at += 1;
        Ok(Some(frame))
    }

    fn file(&self, frame: usize) -> Option<&Path> {
        self.files.get(frame).map(|(path, _)| path.as_path())
    }

    fn skip_to(&mut self, frame: usize) -> Result<()> {
        self.at = frame;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::video::read::open;
    use image::{Rgb, RgbImage};

    #[test]
    fn numbers_count_as_people_count() {
        let mut names = ["f10.png", "f2.png", "f1.png", "F3.png", "f02.png", "f1.5.png"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["F3.png", "f1.5.png", "f1.png", "f02.png", "f2.png", "f10.png"]);
    }

    #[test]
    fn frames_of_one_size_in_order() -> Result<()> {
        let folder = Scratch::new("folder");
        assert!(open(&folder.path("")).err().context("an error")?.to_string().contains("no frames"));
        for i in [10u8, 9, 1, 0] {
            RgbImage::from_pixel(6, 4, Rgb([i; 3])).save(folder.path(&format!("x{i}.png")))?;
        }
        std::fs::write(folder.path("notes.txt"), "not a frame")?;
        let mut reader = open(&folder.path(""))?;
        let info = reader.info.clone();
        assert_eq!((info.width, info.height, info.frames, info.fps, info.still), (6, 4, 4, None, false));
        let mut seen = Vec::new();
        while let Some(timed) = reader.next()? {
            seen.push(timed.frame.rgb[0]);
        }
        assert_eq!(seen, [0, 1, 9, 10]);
        reader.skip_to(2)?;
        assert_eq!(reader.next()?.context("a frame")?.frame.rgb[0], 9);

        RgbImage::new(6, 5).save(folder.path("x5.png"))?;
        let error = open(&folder.path("")).err().context("an error")?.to_string();
        assert!(error.contains("`x5.png`") && error.contains("6x5") && error.contains("fix:"), "{error}");
        Ok(())
    }
}
