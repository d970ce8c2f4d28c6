//! One still to one frame, by the rules of Pillow's `convert("RGB")`: alpha is dropped and not composited, what is hidden
//! under it shows.

use super::jpeg::{self, Outline};
use super::{Remarks, limits, turned};
use crate::video::Frame;
use anyhow::{Context, Result, ensure};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

/// Bytes in memory while one still is decoded. A file of a few bytes can ask for any number of pixels.
const MOST_BYTES: f64 = 900e6;
/// Bytes of a file that is read into memory whole: JPEG, of the largest cameras.
const LARGEST_FILE: u64 = 128 << 20;
/// Pixels times passes over them: ten passes over 50 million, two to four seconds of work.
const MOST_PASSES: usize = 1 << 29;
/// Passes that the decoder makes over any picture.
const MOST_SCANS: usize = 100;
/// The same, up to which a whole JPEG is decoded twice to see whether data is missing inside.
const CHECKED_PASSES: usize = 1 << 25;

fn decoder(input: Box<dyn Input>, format: ImageFormat, outline: Outline) -> Result<impl ImageDecoder> {
    let mut reader = ImageReader::with_format(input, format);
    reader.limits(limits());
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    super::check_size(width as usize, height as usize)?;
    let pixels = width as usize * height as usize;
    let colour = f64::from(decoder.color_type().bytes_per_pixel());
    let each = match format {
        ImageFormat::WebP => 13.0, // planes, alpha's own picture, and three copies on the way to RGB
        _ => colour + 3.0 + outline.coefficients,
    };
    let bytes = pixels as f64 * each;
    ensure!(
        bytes <= MOST_BYTES,
        "it claims {width}x{height} pixels, {:.1} GB to decode\n  fix: make it smaller: \
         `ffmpeg -i IN -vf scale=4096:-2 OUT.png`",
        bytes / 1e9
    );
    let fits = outline.scans <= MOST_SCANS && outline.scans.saturating_mul(pixels) <= MOST_PASSES;
    ensure!(
        fits,
        "it claims {} passes over its {width}x{height} pixels, too many for a picture\n  fix: save it as PNG, or as JPEG that is not progressive",
        outline.scans
    );
    Ok(decoder)
}

/// The file's bytes for a decoder, after a look at what the decoder does not check.
fn file(path: &Path, format: ImageFormat) -> Result<(Box<dyn Input>, Outline)> {
    if format != ImageFormat::Jpeg {
        return Ok((Box::new(BufReader::new(File::open(path)?)), Outline::default()));
    }
    let bytes = whole(path)?;
    let outline = jpeg::outline(&bytes);
    Ok((Box::new(Cursor::new(bytes)), outline))
}

trait Input: BufRead + Seek {}
impl<T: BufRead + Seek> Input for T {}

fn whole(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    ensure!(size <= LARGEST_FILE, "it is {size} bytes long, more than any photo");
    Ok(std::fs::read(path)?)
}

/// As it is shown, from the header alone.
pub fn size(path: &Path, format: ImageFormat) -> Result<(usize, usize)> {
    let (input, outline) = file(path, format)?;
    let mut decoder = decoder(input, format, outline)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    Ok(if super::lies(decoder.orientation()?) { (height, width) } else { (width, height) })
}

/// The still, upright: a photo's own note of how the camera was held is followed (Pillow leaves that to its caller).
/// - Errors when it is damaged or cut short.
pub fn read(path: &Path, format: ImageFormat, remarks: &mut Remarks) -> Result<Frame> {
    let (input, outline) = file(path, format)?;
    let mut decoder = decoder(input, format, outline)?;
    let orientation = decoder.orientation()?;
    remarks.turned |= orientation != Orientation::NoTransforms;
    let image = DynamicImage::from_decoder(decoder).context("the picture is damaged or cut short")?;
    let pixels = image.width() as usize * image.height() as usize;
    let checked = outline.end.is_none() || outline.scans.saturating_mul(pixels) <= CHECKED_PASSES;
    if format == ImageFormat::Jpeg && checked {
        let shown = hash(Some(&image));
        let frame = frame(image, remarks); // before its memory is needed again
        ensure!(!is_cut(&whole(path)?, outline, shown), "it is cut short: the rest of the picture is missing");
        return Ok(turned(frame, orientation));
    }
    Ok(turned(frame(image, remarks), orientation))
}

/// A still that is in memory.
pub fn decode(file: Vec<u8>, format: ImageFormat) -> Result<DynamicImage> {
    Ok(DynamicImage::from_decoder(decoder(Box::new(Cursor::new(file)), format, Outline::default())?)?)
}

/// Whether the picture would be another one if other bytes followed. Its decoder makes up what is missing, and says nothing.
/// - `shown`: the hash of the picture as it is.
fn is_cut(bytes: &[u8], outline: Outline, shown: u64) -> bool {
    let with = |filler| hash(decode(jpeg::continued(bytes, outline, filler), ImageFormat::Jpeg).ok().as_ref());
    let shown = if outline.end.is_some() { shown } else { with(0) };
    shown != with(0x55)
}

fn hash(image: Option<&DynamicImage>) -> u64 {
    let mut hash = DefaultHasher::new();
    image.map(DynamicImage::as_bytes).hash(&mut hash);
    hash.finish()
}

/// 16-bit values give their upper byte. (So Pillow reads colour; 16-bit grey it cuts off at 255 instead, which makes
/// nearly any picture white and is not followed.)
pub fn frame(image: DynamicImage, remarks: &mut Remarks) -> Frame {
    let (width, height) = (image.width() as usize, image.height() as usize);
    remarks.deep |= matches!(image.color().bits_per_pixel() / u16::from(image.color().channel_count()), 16 | 32);
    let high = |value: u16| (value >> 8) as u8;
    let mut alpha = false;
    let rgb = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => image.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            let pixels = image.into_raw();
            alpha = pixels.as_chunks::<2>().0.iter().any(|p| p[1] < 255);
            pixels.as_chunks::<2>().0.iter().flat_map(|p| [p[0]; 3]).collect()
        }
        DynamicImage::ImageRgba8(image) => {
            let pixels = image.into_raw();
            alpha = pixels.as_chunks::<4>().0.iter().any(|p| p[3] < 255);
            pixels.as_chunks::<4>().0.iter().flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageLuma16(image) => image.into_raw().into_iter().flat_map(|v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => {
            let pixels = image.into_raw();
            alpha = pixels.as_chunks::<2>().0.iter().any(|p| p[1] < u16::MAX);
            pixels.as_chunks::<2>().0.iter().flat_map(|p| [high(p[0]); 3]).collect()
        }
        DynamicImage::ImageRgba16(image) => {
            let pixels = image.into_raw();
            alpha = pixels.as_chunks::<4>().0.iter().any(|p| p[3] < u16::MAX);
            pixels.as_chunks::<4>().0.iter().flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        other => other.into_rgb8().into_raw(), // floating point, which none of the formats here has
    };
    remarks.alpha |= alpha;
    Frame { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Remarks, open};
    use super::*;
    use image::{GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba, RgbaImage};

    fn one(image: DynamicImage) -> (Vec<u8>, Remarks) {
        let mut remarks = Remarks::default();
        (frame(image, &mut remarks).rgb, remarks)
    }

    #[test]
    fn every_colour_type_follows_pillow() {
        let (rgb, remarks) = one(RgbaImage::from_pixel(1, 1, Rgba([10, 20, 30, 0])).into());
        assert_eq!((rgb, remarks.alpha), (vec![10, 20, 30], true));
        let (rgb, remarks) = one(RgbaImage::from_pixel(1, 1, Rgba([10, 20, 30, 255])).into());
        assert_eq!((rgb, remarks.alpha), (vec![10, 20, 30], false));
        assert_eq!(one(GrayImage::from_pixel(1, 1, Luma([77])).into()).0, [77; 3]);
        assert_eq!(one(ImageBuffer::from_pixel(1, 1, LumaA([9u8, 3])).into()).0, [9; 3]);
        let (rgb, remarks) = one(ImageBuffer::from_pixel(1, 1, Rgb([383u16, 384, 65535])).into());
        assert_eq!((rgb, remarks.deep), (vec![1, 1, 255], true)); // not rounded
        assert_eq!(one(ImageBuffer::from_pixel(1, 1, Luma([0x8123u16])).into()).0, [0x81; 3]);
        assert_eq!(one(ImageBuffer::from_pixel(1, 1, LumaA([0x8123u16, 0])).into()).0, [0x81; 3]);
        assert_eq!(one(ImageBuffer::from_pixel(1, 1, Rgba([256u16, 512, 768, 9])).into()).0, [1, 2, 3]);
    }

    #[test]
    fn stills_are_clips_of_one_frame() -> Result<()> {
        let folder = Scratch::new("still");
        let image = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8 * 30, y as u8 * 50, 100]));
        for name in ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"] {
            let path = folder.path(name);
            image.save(&path)?;
            let hidden = folder.path("no-extension");
            std::fs::rename(&path, &hidden)?;
            let mut reader = open(&hidden)?;
            let info = &reader.info;
            assert_eq!((info.width, info.height, info.frames, info.fps, info.still), (7, 5, 1, None, true), "{name}");
            let frame = reader.next()?.context("a frame")?.frame;
            let worst = frame.rgb.iter().zip(image.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(if name == "a.jpg" { 40 } else { 0 }), "{name}: {worst:?}");
            assert!(reader.next()?.is_none() && reader.notes.is_empty());
        }
        Ok(())
    }

    #[test]
    fn photos_stand_upright() -> Result<()> {
        let folder = Scratch::new("exif");
        let path = folder.path("a.jpg");
        RgbImage::from_fn(16, 8, |x, _| Rgb(if x < 8 { [250, 0, 0] } else { [0, 0, 250] })).save(&path)?;
        let mut bytes = std::fs::read(&path)?;
        // TIFF header, one entry: tag 0x112, short, one of them, 6: turn by 90 degrees clockwise.
        let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        bytes.splice(2..2, exif.iter().copied());
        std::fs::write(&path, &bytes)?;
        let mut reader = open(&path)?;
        assert_eq!((reader.info.width, reader.info.height), (8, 16));
        let frame = reader.next()?.context("a frame")?.frame;
        assert!(frame.rgb[..3][0] > 200 && frame.rgb[8 * 16 * 3 - 3..][2] > 200, "the left is not on top");
        assert_eq!(reader.notes.len(), 1, "{:?}", reader.notes);
        Ok(())
    }

    fn written(name: &str, image: &RgbImage) -> Result<(Scratch, std::path::PathBuf, Vec<u8>)> {
        let folder = Scratch::new(&format!("cut-{name}"));
        let path = folder.path(name);
        image.save(&path)?;
        let bytes = std::fs::read(&path)?;
        Ok((folder, path, bytes))
    }

    #[test]
    fn a_still_that_is_cut_is_an_error() -> Result<()> {
        let image = RgbImage::from_fn(70, 50, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x * 3) as u8]));
        for name in ["b.jpg", "b.png", "b.webp", "b.gif", "b.bmp"] {
            let (_folder, path, bytes) = written(name, &image)?;
            for share in [30, 50, 70, 90, 97] {
                std::fs::write(&path, &bytes[..bytes.len() * share / 100])?;
                let error = open(&path).err().with_context(|| format!("{name} cut at {share} % is read"))?.to_string();
                assert!(error.contains("fix:"), "{name} {share}: {error}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_jpeg_that_lacks_data_is_an_error_and_one_that_lacks_its_end_is_not() -> Result<()> {
        let image = RgbImage::from_fn(70, 50, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x * 3) as u8]));
        let (_folder, path, bytes) = written("c.jpg", &image)?;
        let whole = open(&path)?.next()?.context("a frame")?.frame;
        std::fs::write(&path, &bytes[..bytes.len() - 2])?;
        assert!(open(&path)?.next()?.context("a frame")?.frame == whole);
        for (tail, what) in [(vec![0; 500], "zeros of a cut download"), (vec![0xFF, 0xD9], "an end")] {
            std::fs::write(&path, [&bytes[..bytes.len() / 2], &tail].concat())?;
            let error = open(&path).err().with_context(|| format!("half of it and {what} is read"))?.to_string();
            assert!(error.contains("cut short"), "{what}: {error}");
        }
        // a picture whose last row is of one colour is whole
        let flat = RgbImage::from_pixel(70, 50, Rgb([128; 3]));
        let (_folder, path, _) = written("d.jpg", &flat)?;
        assert_eq!(open(&path)?.next()?.context("a frame")?.frame.rgb[0], 128);
        Ok(())
    }

    #[test]
    fn a_decoder_that_panics_is_an_error_without_its_words() -> Result<()> {
        let folder = Scratch::new("panic");
        let path = folder.path("a.png");
        // two by two pixels with a palette of four bytes
        let bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x02\0\0\0\x02\x08\x03\0\0\0\x45\x68\xfd\x16\0\0\0\x04PLTE\0\x01\x02\x03\
            \x1e\x5e\xf7\x75\0\0\0\x0bIDATx\x9c\x63\x60\0\x01\0\0\x06\0\x01\xfe\x8c\x67\xc8\0\0\0\0IEND\xae\x42\x60\x82";
        std::fs::write(&path, bytes)?;
        let error = open(&path).err().context("an error")?.to_string();
        assert!(error.contains("damaged") && error.contains("fix:"), "{error}");
        Ok(())
    }

    #[test]
    fn paths_that_lead_to_nothing_say_what_helps() -> Result<()> {
        let error = |path: &Path| open(path).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error(Path::new("https://example.org/a.mp4")).contains("URLs are not fetched"));
        assert!(error(Path::new("nothing/here.png")).contains("check the path"));
        #[cfg(unix)]
        {
            let folder = Scratch::new("paths");
            let path = folder.path("a.mp4");
            std::fs::create_dir(&path)?;
            assert!(error(&path).contains("no frames in the folder"));
            assert!(error(Path::new("/dev/zero")).contains("no ordinary file"));
            std::fs::write(folder.path("b.mp4"), "")?;
            assert!(error(&folder.path("b.mp4")).contains("empty"));
        }
        Ok(())
    }

    #[test]
    fn a_progressive_jpeg_is_counted_before_it_is_decoded() -> Result<()> {
        // 11585x11585 pixels in three components that all have as many
        let header = b"\xff\xd8\xff\xc2\0\x11\x08\x2d\x41\x2d\x41\x03\x01\x11\0\x02\x11\0\x03\x11\0\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\x3f\0\xff\xd9";
        let folder = Scratch::new("progressive");
        std::fs::write(folder.path("a.jpg"), header)?;
        let error = open(&folder.path("a.jpg")).err().context("an error")?.to_string();
        assert!(error.contains("GB to decode"), "{error}");
        // a small one with more passes than any picture has, and a large one with as many as would take long
        for (side, passes) in [([0, 64], 101), ([0x1b, 0x58], 40)] {
            let mut file = header[..header.len() - 2].to_vec();
            [7, 9].into_iter().for_each(|at| file[at..at + 2].copy_from_slice(&side));
            let scan = file.split_off(file.len() - 14);
            file.extend(scan.repeat(passes));
            file.extend(b"\xff\xd9");
            std::fs::write(folder.path("b.jpg"), file)?;
            let error = open(&folder.path("b.jpg")).err().context("an error")?.to_string();
            assert!(error.contains(&format!("{passes} passes")) && error.contains("fix: save"), "{error}");
        }
        Ok(())
    }
}
