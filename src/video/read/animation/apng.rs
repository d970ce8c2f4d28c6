//! The chunks of a PNG file, still or moving.
//! Source: PNG (Third Edition), 5 and 11.3.6.

use super::{After, Index, Input, Layer, MOST_LAYERS};
use crate::video::read::boxes::Bytes;
use anyhow::{Context, Result, ensure};

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";

/// What the frame that is being read was announced as.
fn layer(control: &[u8], first: bool) -> Result<Layer> {
    let mut b = Bytes(control);
    b.u32()?; // its place among the chunks
    let mut side = || b.u32().map(|side| side as usize);
    let (width, height, x, y) = (side()?, side()?, side()?, side()?);
    let (parts, of) = (b.u16()?, b.u16()?);
    let seconds = f64::from(parts) / f64::from(if of == 0 { 100 } else { of });
    let after = match b.u8()? {
        1 => After::Cleared,
        2 if first => After::Cleared,
        2 => After::Undone,
        _ => After::Stays,
    };
    Ok(Layer {
        x,
        y,
        width,
        height,
        seconds: if seconds > 0.0 { seconds } else { 0.1 },
        replaces: b.u8()? == 0,
        after,
        transparent: None,
        bytes: 0..0,
    })
}

/// Reads the index of a file that moves.
/// - None for a still.
/// - Errors when it ends before the last of its frames does.
pub fn index(input: &mut Input) -> Result<Option<Index>> {
    let mut index = Index::default();
    let mut frames = None;
    let mut now: Option<Layer> = None;
    let mut ended = false;
    input.go_to(SIGNATURE.len() as u64)?;
    while input.at + 12 <= input.length {
        let start = input.at;
        let size = u64::from(u32::from_be_bytes(input.take()?));
        let name: [u8; 4] = input.take()?;
        let end = input.at + size + 4;
        if end > input.length {
            break;
        }
        let small = size <= 1024;
        match &name {
            b"IHDR" if size == 13 && index.head.is_empty() => {
                let body = input.take_all(size as usize)?;
                let mut b = Bytes(&body);
                (index.width, index.height) = (b.u32()? as usize, b.u32()? as usize);
                index.head.extend(chunk(b"IHDR", &body));
            }
            b"PLTE" | b"tRNS" if small && (1..4096).contains(&index.head.len()) => {
                let body = input.take_all(size as usize)?;
                index.head.extend(chunk(&name, &body));
            }
            b"acTL" if small && frames.is_none() => {
                frames = Some(Bytes(&input.take_all(size as usize)?).u32()? as usize);
            }
            b"IDAT" if frames.is_none() => return Ok(None),
            b"IDAT" | b"fdAT" => {
                // A picture that no control announces is the still for programs that show none that move.
                if let Some(layer) = &mut now {
                    let first = if layer.bytes.is_empty() { start } else { layer.bytes.start };
                    layer.bytes = first..end;
                }
            }
            b"fcTL" if small && frames.is_some() => {
                index.layers.extend(now.take().filter(|layer| !layer.bytes.is_empty()));
                ensure!(index.layers.len() < MOST_LAYERS, "it holds more than {MOST_LAYERS} frames");
                let layer = layer(&input.take_all(size as usize)?, index.layers.is_empty())?;
                let inside = layer.x.saturating_add(layer.width) <= index.width
                    && layer.y.saturating_add(layer.height) <= index.height;
                ensure!(
                    inside && layer.width > 0 && layer.height > 0,
                    "frame {} reaches beyond the picture, or is empty",
                    index.layers.len()
                );
                now = Some(layer);
            }
            b"IEND" => {
                ended = true;
                break;
            }
            _ => {}
        }
        input.go_to(end)?;
    }
    let Some(frames) = frames else { return Ok(None) };
    index.layers.extend(now.filter(|layer| !layer.bytes.is_empty()));
    // A file whose last chunk, the end, is missing is whole.
    ensure!(
        ended || index.layers.len() >= frames,
        "it is cut short: it ends in frame {} of {frames}",
        index.layers.len()
    );
    index.layers.truncate(frames);
    Ok(Some(index))
}

/// With its length and checksum.
pub(super) fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(name);
    crc.update(body);
    let size = (body.len() as u32).to_be_bytes();
    [size.as_slice(), name, body, &crc.finalize().to_be_bytes()].concat()
}

/// A file of that picture alone.
/// - `head`: the animation's. `bytes`: the picture's chunks, and others among them.
/// - Errors when a chunk is damaged.
pub fn still(head: &[u8], layer: &Layer, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut header = head.get(8..21).context("its header is missing")?.to_vec();
    header[..4].copy_from_slice(&(layer.width as u32).to_be_bytes());
    header[4..8].copy_from_slice(&(layer.height as u32).to_be_bytes());
    let mut file = [SIGNATURE.as_slice(), &chunk(b"IHDR", &header), head.get(25..).unwrap_or_default()].concat();
    let mut rest = Bytes(bytes);
    while !rest.0.is_empty() {
        let size = rest.u32()? as usize;
        let whole = rest.take(size.saturating_add(8))?; // name, body, checksum
        match &whole[..4] {
            b"IDAT" => file.extend([(size as u32).to_be_bytes().as_slice(), whole].concat()),
            b"fdAT" => {
                let (body, sum) = whole.split_at(size + 4);
                ensure!(crc32fast::hash(body).to_be_bytes() == sum, "its checksum is wrong");
                file.extend(chunk(b"IDAT", body.get(8..).context("a chunk is too short")?));
            }
            _ => {}
        }
    }
    file.extend(chunk(b"IEND", b""));
    Ok(file)
}
