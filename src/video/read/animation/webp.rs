//! The chunks of a WebP file, still or moving.
//! Source: WebP Container Specification; RFC 9649.

use super::{After, Index, Input, Layer, MOST_LAYERS};
use anyhow::{Result, ensure};

fn number([a, b, c]: [u8; 3]) -> usize {
    usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16
}

/// The next chunk's name, and where its body ends.
fn chunk(input: &mut Input) -> Result<([u8; 4], u64)> {
    let name = input.take()?;
    let size = u64::from(u32::from_le_bytes(input.take()?));
    let end = input.at + size;
    ensure!(end <= input.length, "it is cut short");
    Ok((name, end))
}

/// Checks that a coded picture is of the announced size: decoders ask for memory by what stands in it.
fn check_picture(input: &mut Input, name: [u8; 4], size: (usize, usize)) -> Result<()> {
    let coded = match &name {
        b"VP8 " => {
            let [_, _, _, _, _, _, w, w1, h, h1] = input.take()?;
            let side = |bytes| usize::from(u16::from_le_bytes(bytes) & 0x3FFF);
            (side([w, w1]), side([h, h1]))
        }
        b"VP8L" => {
            let [_, a, b, c, d] = input.take()?;
            let bits = u32::from_le_bytes([a, b, c, d]) as usize;
            ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        }
        _ => return Ok(()),
    };
    ensure!(coded == size, "a picture of {}x{} pixels is announced as {}x{}", coded.0, coded.1, size.0, size.1);
    Ok(())
}

/// Goes through the chunks up to `end`, and checks the pictures among them.
/// - Errors when there is none.
fn check_pictures(input: &mut Input, end: u64, size: (usize, usize)) -> Result<()> {
    let mut found = false;
    while input.at + 8 <= end && !found {
        let (name, body) = chunk(input)?;
        check_picture(input, name, size)?;
        found = matches!(&name, b"VP8 " | b"VP8L");
        input.go_to(body.next_multiple_of(2).min(input.length))?;
    }
    ensure!(found, "there is no picture in it");
    Ok(())
}

fn layer(input: &mut Input, end: u64) -> Result<Layer> {
    let mut three = || input.take().map(number);
    let (x, y, width, height) = (three()? * 2, three()? * 2, three()? + 1, three()? + 1);
    let milliseconds = three()?;
    let [flags] = input.take()?;
    let bytes = input.at..end;
    check_pictures(input, end, (width, height))?;
    Ok(Layer {
        x,
        y,
        width,
        height,
        seconds: if milliseconds > 0 { milliseconds as f64 / 1000.0 } else { 0.1 },
        replaces: flags & 2 != 0,
        after: if flags & 1 != 0 { After::Cleared } else { After::Stays },
        transparent: None,
        bytes,
    })
}

/// Reads the index of a file that moves, and checks one that does not.
pub fn index(input: &mut Input) -> Result<Option<Index>> {
    let [_, _, _, _, a, b, c, d, _, _, _, _] = input.take()?;
    let end = 8 + u64::from(u32::from_le_bytes([a, b, c, d]));
    let (name, body) = chunk(input)?;
    if &name != b"VP8X" {
        return Ok(None); // one picture, which says how large it is
    }
    let [flags, _, _, _] = input.take()?;
    let (width, height) = (number(input.take()?) + 1, number(input.take()?) + 1);
    input.go_to(body.next_multiple_of(2))?;
    if flags & 2 == 0 {
        super::super::check_size(width, height)?;
        check_pictures(input, input.length, (width, height))?;
        return Ok(None);
    }
    let mut index = Index { width, height, ..Index::default() };
    ensure!(end <= input.length + 1, "it is cut short: {} of its {end} bytes are there", input.length);
    while input.at + 8 <= end.min(input.length) {
        let (name, body) = chunk(input)?;
        if &name == b"ANMF" {
            ensure!(index.layers.len() < MOST_LAYERS, "it holds more than {MOST_LAYERS} frames");
            let layer = layer(input, body)?;
            let inside = layer.x + layer.width <= width && layer.y + layer.height <= height;
            ensure!(inside, "frame {} reaches beyond the picture", index.layers.len());
            index.layers.push(layer);
        }
        input.go_to(body.next_multiple_of(2).min(input.length))?;
    }
    Ok(Some(index))
}

/// A file of that picture alone.
/// - `bytes`: its chunks.
pub fn still(layer: &Layer, bytes: &[u8]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    if bytes.starts_with(b"ALPH") {
        let side = |n: usize| [0, 8, 16].map(|shift| ((n - 1) >> shift) as u8);
        body.extend(b"VP8X\x0a\0\0\0\x10\0\0\0");
        body.extend(side(layer.width).into_iter().chain(side(layer.height)));
    }
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(2), 0);
    [b"RIFF".as_slice(), &(body.len() as u32).to_le_bytes(), &body].concat()
}
