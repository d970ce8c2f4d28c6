//! The blocks of a GIF.
//! Source: GIF89a specification, 18 to 23.

use super::{After, Index, Input, Layer, MOST_LAYERS};
use anyhow::{Context, Result, bail, ensure};

/// What a graphic control extension says of the next picture.
#[derive(Clone, Copy, Default)]
struct Control {
    dispose: u8,
    /// Hundredths of a second.
    delay: u16,
    transparent: Option<u8>,
}

/// Skips blocks of up to 255 bytes up to the empty one that ends them.
/// - Returns where they end, without the empty one. It may be missing at the file's end: the bytes before it are whole.
fn skip_blocks(input: &mut Input) -> Result<u64> {
    while !input.ended() {
        let [size] = input.take()?;
        if size == 0 {
            return Ok(input.at - 1);
        }
        input.go_to(input.at + u64::from(size))?;
    }
    Ok(input.at)
}

fn control(input: &mut Input) -> Result<Control> {
    let mut control = Control::default();
    let [size] = input.take()?;
    if size >= 4 {
        let [flags, low, high, index] = input.take()?;
        input.go_to(input.at + u64::from(size) - 4)?;
        let transparent = (flags & 1 != 0).then_some(index);
        control = Control { dispose: flags >> 2 & 7, delay: u16::from_le_bytes([low, high]), transparent };
    } else {
        input.go_to(input.at + u64::from(size))?;
    }
    if size > 0 {
        skip_blocks(input)?;
    }
    Ok(control)
}

/// What cannot be meant (0 or 10 ms) is a tenth of a second, as browsers and `ffmpeg` have it.
fn seconds(delay: u16) -> f64 {
    if delay > 1 { f64::from(delay) / 100.0 } else { 0.1 }
}

fn picture(input: &mut Input, control: Control) -> Result<Layer> {
    let start = input.at - 1;
    let [x, x1, y, y1, w, w1, h, h1, flags] = input.take()?;
    let [x, y, width, height] =
        [[x, x1], [y, y1], [w, w1], [h, h1]].map(|bytes| usize::from(u16::from_le_bytes(bytes)));
    ensure!(width > 0 && height > 0, "it is {width}x{height} pixels");
    input.go_to(input.at + palette(flags))?;
    input.take::<1>()?; // the width of the first codes
    let end = skip_blocks(input)?;
    let after = match control.dispose {
        2 => After::Cleared,
        3 => After::Undone,
        _ => After::Stays,
    };
    Ok(Layer {
        x,
        y,
        width,
        height,
        seconds: seconds(control.delay),
        replaces: control.transparent.is_none(),
        after,
        transparent: control.transparent,
        bytes: start..end,
    })
}

/// Bytes of the palette that the flags announce.
fn palette(flags: u8) -> u64 {
    if flags & 128 != 0 { 3 << ((flags & 7) + 1) } else { 0 }
}

/// Reads the index. A file whose last byte, the trailer, is missing is whole.
pub fn index(input: &mut Input) -> Result<Index> {
    let header: [u8; 13] = input.take().context("it is cut short")?;
    let size = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let mut index = Index { width: size(6), height: size(8), head: header.to_vec(), ..Index::default() };
    index.head.extend(input.take_all(palette(header[10]) as usize)?);
    let mut next = Control::default();
    while !input.ended() {
        let [kind] = input.take()?;
        let layers = &mut index.layers;
        let done = match kind {
            b';' => break,
            b'!' => match input.take()? {
                [0xF9] => control(input).map(|control| next = control),
                [_] => skip_blocks(input).map(|_| ()),
            },
            b',' => {
                ensure!(layers.len() < MOST_LAYERS, "it holds more than {MOST_LAYERS} frames");
                let layer = picture(input, std::mem::take(&mut next));
                layers.push(layer.with_context(|| format!("frame {} is damaged or cut short", layers.len()))?);
                Ok(())
            }
            0 => Ok(()), // one empty block too many, as some programs write
            _ if layers.is_empty() => bail!("it is damaged at byte {}", input.at - 1),
            _ => break, // what follows is no GIF
        };
        // Nothing of a picture is lost where a comment or the like is cut.
        if done.is_err() && !layers.is_empty() {
            break;
        }
        done?;
    }
    Ok(index)
}

/// A file of that picture alone.
/// - `head`: the animation's. `bytes`: from the picture's descriptor to the end of its blocks.
pub fn still(head: &[u8], layer: &Layer, bytes: &[u8]) -> Vec<u8> {
    let mut file = head.to_vec();
    file[6..10].copy_from_slice(&bytes[5..9]); // the canvas is the picture
    file.extend([b'!', 0xF9, 4, u8::from(layer.transparent.is_some()), 0, 0, layer.transparent.unwrap_or(0), 0]);
    file.extend([b',', 0, 0, 0, 0]);
    file.extend(&bytes[5..]);
    file.extend([0, b';']);
    file
}
