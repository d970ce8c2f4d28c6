use super::super::testing::*;
use super::*;
use crate::video::read::open;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, Rgba};

#[test]
fn written_animations_come_back() -> Result<()> {
    let folder = Scratch::new("animation");
    for (name, tolerance) in [("a.gif", 0), ("a.png", 0), ("a.webp", 12)] {
        let path = folder.path(name);
        write_clip(&path, 96, 32, 7, 12.5)?;
        let mut reader = open(&path)?;
        let info = reader.info.clone();
        assert_eq!((info.width, info.height, info.frames, info.fps), (96, 32, 7, Some(12.5)), "{name}");
        assert!(!info.still && !info.variable_rate && reader.notes.is_empty(), "{name}: {:?}", reader.notes);
        for t in 0..7 {
            let timed = reader.next()?.context("a frame")?;
            assert!((timed.start - t as f64 * 0.08).abs() < 1e-6, "{name}: {}", timed.start);
            assert!(worst_patch(&timed.frame, t) <= tolerance, "{name} {t}: {}", worst_patch(&timed.frame, t));
        }
        assert!(reader.next()?.is_none());
        for t in [5, 2, 3, 6] {
            reader.skip_to(t)?;
            assert!(worst_patch(&reader.next()?.context("a frame")?.frame, t) <= tolerance, "{name} {t}");
        }
        let bytes = std::fs::read(&path)?;
        for part in [1, 2] {
            std::fs::write(&path, &bytes[..bytes.len() * part / 3])?;
            let error = open(&path).err().context("an error")?.to_string();
            assert!(error.contains("fix:") && error.contains("cut short"), "{name}: {error}");
        }
    }
    Ok(())
}

/// What is decoded when a file is opened is bounded by all that it costs: pixels that are seen, those that are not, and frames.
#[test]
fn large_and_long_files_are_not_decoded_to_be_opened() {
    let work = |canvas: usize, layer: usize, count: usize| {
        let layer = Layer {
            x: 0,
            y: 0,
            width: layer,
            height: layer,
            seconds: 0.1,
            replaces: true,
            after: After::Stays,
            transparent: None,
            bytes: 0..9,
        };
        let index = Index { width: canvas, height: canvas, layers: vec![layer; count], ..Index::default() };
        assert!(index.check().is_ok());
        index.work()
    };
    assert!(work(640, 640, 100) <= CHECKED_WORK);
    for (canvas, layer, count) in [(5792, 5792, 8), (5792, 1, 8), (1, 5792, 8), (1, 1, 1 << 20)] {
        assert!(work(canvas, layer, count) > CHECKED_WORK, "{canvas} {layer} {count}");
    }
}

#[test]
fn what_is_missing_behind_the_last_frame_is_not_missed() -> Result<()> {
    let folder = Scratch::new("animation-end");
    for (name, missing) in [("a.gif", 1), ("a.gif", 2), ("a.png", 12)] {
        let path = folder.path(name);
        write_clip(&path, 32, 16, 3, 12.5)?;
        let bytes = std::fs::read(&path)?;
        std::fs::write(&path, &bytes[..bytes.len() - missing])?;
        let mut reader = open(&path)?;
        reader.skip_to(2)?;
        assert_eq!(reader.info.frames, 3, "{name}");
        assert_eq!(worst_patch(&reader.next()?.context("a frame")?.frame, 2), 0, "{name}");
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

/// A picture of a GIF, in codes of three bits with an empty table before each: colours 0 to 3.
fn gif_picture((x, y, w, h): (u8, u8, u8, u8), colours: &[u8], dispose: u8, transparent: bool) -> Vec<u8> {
    const CLEAR: u8 = 4;
    const END: u8 = 5;
    let codes = colours.iter().flat_map(|&colour| [CLEAR, colour]).chain([END]);
    let bits: Vec<u8> = codes.flat_map(|code| [code & 1, code >> 1 & 1, code >> 2]).collect();
    let data: Vec<u8> = bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit)).collect();
    let control = [b'!', 0xF9, 4, dispose << 2 | u8::from(transparent), 10, 0, 0, 0];
    [&control[..], &[b',', x, 0, y, 0, w, 0, h, 0, 0, 2, data.len() as u8], &data, &[0]].concat()
}

/// Colour 0 is none, then red, green, blue.
fn gif(width: u16, height: u16, pictures: &[Vec<u8>]) -> Vec<u8> {
    let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
    let palette = [9, 9, 9, 255, 0, 0, 0, 255, 0, 0, 0, 255];
    [b"GIF89a", size.as_slice(), &[0x81, 0, 0], &palette, &pictures.concat(), b";"].concat()
}

/// Frames as letters, a row after the other.
fn letters(path: &Path) -> Result<Vec<String>> {
    let mut reader = open(path)?;
    let mut frames = vec![];
    while let Some(timed) = reader.next()? {
        let letter = |pixel: &[u8; 3]| match pixel {
            [255, 255, 255] => '.',
            [255, 0, 0] => 'r',
            [0, 255, 0] => 'g',
            [0, 0, 255] => 'b',
            [0, 127 | 128, 127 | 128] => 'm',
            _ => '?',
        };
        frames.push(timed.frame.rgb.as_chunks::<3>().0.iter().map(letter).collect());
    }
    Ok(frames)
}

#[test]
fn a_gif_is_laid_by_its_rules_on_white() -> Result<()> {
    let folder = Scratch::new("gif-layers");
    let path = folder.path("a.gif");
    let pictures = [
        gif_picture((1, 0, 2, 2), &[1; 4], 2, false),   // red, then emptied
        gif_picture((0, 0, 1, 2), &[2; 2], 1, false),   // green stays
        gif_picture((0, 1, 3, 1), &[3, 0, 3], 3, true), // blue, the middle lets through, then undone
        gif_picture((2, 0, 1, 1), &[1], 1, false),
        gif_picture((3, 1, 4, 4), &[3; 16], 1, false), // reaches beyond the canvas
    ];
    std::fs::write(&path, gif(4, 2, &pictures))?;
    assert_eq!(letters(&path)?, [".rr..rr.", "g...g...", "g...b.b.", "g.r.g...", "g.r.g..b"]);
    let mut reader = open(&path)?;
    assert!(reader.notes.iter().any(|note| note.contains("white")), "{:?}", reader.notes);
    reader.skip_to(3)?;
    assert_eq!(reader.next()?.context("a frame")?.frame.rgb[..3], [0, 255, 0]);
    Ok(())
}

const RED: [u8; 4] = [255, 0, 0, 255];
const GREEN: [u8; 4] = [0, 255, 0, 255];
const HALF_BLUE: [u8; 4] = [0, 0, 255, 128];
const NOTHING: [u8; 4] = [255, 0, 0, 0];

/// Rectangle, colour, whether it replaces, whether it is emptied afterwards.
const LAYERS: [([u32; 4], [u8; 4], bool, bool); 4] = [
    ([2, 0, 2, 2], RED, false, true),
    ([0, 2, 4, 2], GREEN, false, false),
    ([2, 2, 2, 2], HALF_BLUE, false, false),
    ([0, 2, 2, 2], NOTHING, true, false),
];
const SHOWN: [&str; 4] =
    ["..rr....rr..............", "............gggg..gggg..", "............ggmm..ggmm..", "..............mm....mm.."];

#[test]
fn an_apng_is_laid_by_its_rules() -> Result<()> {
    let folder = Scratch::new("apng-layers");
    let path = folder.path("a.png");
    let mut encoder = png::Encoder::new(File::create(&path)?, 6, 4);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_animated(LAYERS.len() as u32, 0)?;
    encoder.set_sep_def_img(true)?; // a still for programs that show none that move
    encoder.set_frame_delay(1, 8)?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&GREEN.repeat(24))?;
    for ([x, y, w, h], colour, replaces, emptied) in LAYERS {
        writer.set_frame_dimension(w, h)?;
        writer.set_frame_position(x, y)?;
        writer.set_blend_op(if replaces { png::BlendOp::Source } else { png::BlendOp::Over })?;
        writer.set_dispose_op(if emptied { png::DisposeOp::Background } else { png::DisposeOp::None })?;
        writer.write_image_data(&colour.repeat((w * h) as usize))?;
    }
    writer.finish()?;
    assert_eq!(letters(&path)?, SHOWN);
    Ok(())
}

/// A WebP file: canvas 6x4, the rectangles and what their `VP8L` chunks hold.
fn webp(layers: &[([u32; 4], Vec<u8>, u8)]) -> Vec<u8> {
    let three = |n: u32| n.to_le_bytes()[..3].to_vec();
    let chunk = |name: &[u8; 4], body: &[u8]| {
        let pad = vec![0; body.len() % 2];
        [name.as_slice(), &(body.len() as u32).to_le_bytes(), body, &pad].concat()
    };
    let mut body = b"WEBP".to_vec();
    body.extend(chunk(b"VP8X", &[vec![0x12, 0, 0, 0], three(5), three(3)].concat()));
    body.extend(chunk(b"ANIM", &[0, 0, 255, 255, 0, 0]));
    for ([x, y, w, h], picture, flags) in layers {
        let head = [three(x / 2), three(y / 2), three(w - 1), three(h - 1), three(125), vec![*flags]].concat();
        body.extend(chunk(b"ANMF", &[head, picture.clone()].concat()));
    }
    chunk(b"RIFF", &body)
}

fn vp8l([_, _, w, h]: [u32; 4], colour: [u8; 4]) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let pixels = RgbaImage::from_pixel(w, h, Rgba(colour));
    WebPEncoder::new_lossless(&mut file).encode(&pixels, w, h, ExtendedColorType::Rgba8)?;
    let at = file.windows(4).position(|name| name == b"VP8L").context("no picture")?;
    Ok(file[at..].to_vec())
}

#[test]
fn a_webp_is_laid_by_its_rules() -> Result<()> {
    let folder = Scratch::new("webp-layers");
    let path = folder.path("a.webp");
    let mut layers = vec![];
    for (place, colour, replaces, emptied) in LAYERS {
        layers.push((place, vp8l(place, colour)?, u8::from(replaces) << 1 | u8::from(emptied)));
    }
    std::fs::write(&path, webp(&layers))?;
    assert_eq!(letters(&path)?, SHOWN);
    layers[1].0 = [0, 2, 4, 1]; // not the size of its picture
    std::fs::write(&path, webp(&layers))?;
    let error = open(&path).err().context("an error")?.to_string();
    assert!(error.contains("4x2") && error.contains("4x1"), "{error}");
    Ok(())
}

#[test]
fn a_few_bytes_cannot_ask_for_much() -> Result<()> {
    let folder = Scratch::new("animation-bombs");
    let path = folder.path("a.gif");
    let dot = gif_picture((0, 0, 1, 1), &[1], 1, false);
    for (width, height, frames, what) in
        [(11585, 11585, 1, "too many"), (5000, 5000, 1000, "too many"), (0, 4, 1, "nothing"), (65535, 65535, 1, "fix:")]
    {
        std::fs::write(&path, gif(width, height, &vec![dot.clone(); frames]))?;
        let error = open(&path).err().context("an error")?.to_string();
        assert!(error.contains(what), "{width}x{height}: {error}");
    }
    // a picture that is larger than its canvas
    let mut large = dot;
    large[13..17].copy_from_slice(&[0xFF; 4]);
    std::fs::write(&path, gif(1, 1, &[large]))?;
    let error = open(&path).err().context("65535x65535 pixels are read")?.to_string();
    assert!(error.contains("fix:"), "{error}");
    Ok(())
}
