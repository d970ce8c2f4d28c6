//! One still to one frame, by the rules of Pillow's `convert("RGB")`: alpha is dropped and not composited, what is hidden
//! under it shows.

use super::{Remarks, limits, turned};
use crate::video::Frame;
use anyhow::{Context, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

fn decoder(path: &Path, format: ImageFormat) -> Result<impl ImageDecoder> {
    let mut reader = ImageReader::with_format(BufReader::new(File::open(path)?), format);
    reader.limits(limits());
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    super::check_size(width as usize, height as usize)?;
    Ok(decoder)
}

/// As it is shown, from the header alone.
pub fn size(path: &Path, format: ImageFormat) -> Result<(usize, usize)> {
    let mut decoder = decoder(path, format)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    Ok(if super::lies(decoder.orientation()?) { (height, width) } else { (width, height) })
}

/// The still, upright: a photo's own note of how the camera was held is followed (Pillow leaves that to its caller).
pub fn read(path: &Path, format: ImageFormat, remarks: &mut Remarks) -> Result<Frame> {
    let mut decoder = decoder(path, format)?;
    let orientation = decoder.orientation()?;
    remarks.turned |= orientation != Orientation::NoTransforms;
    let image = DynamicImage::from_decoder(decoder).context("the picture is damaged")?;
    Ok(turned(frame(image, remarks), orientation))
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
        for name in ["a.png", "a.jpg", "a.webp", "a.gif"] {
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
}
