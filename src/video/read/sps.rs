//! H.264's sequence parameter set: what has to be known before a decoder is started.
//! Source: ITU-T H.264, 7.3.2.1.1 and annex E.1.1.

use super::shape::Shape;
use anyhow::{Context, Result, bail, ensure};

/// - `width`, `height`: after cropping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sps {
    pub width: usize,
    pub height: usize,
    /// 4:2:0 is 1.
    pub chroma_format: u32,
    pub bits: u32,
    /// Made of whole frames only.
    pub progressive: bool,
    /// `matrix_coefficients` and range, where the stream says.
    pub matrix: Option<u8>,
    pub full: Option<bool>,
    /// Primaries, transfer and matrix as they stand, where they do.
    pub description: Option<[u8; 3]>,
    /// Of pixels that are not square.
    pub shape: Option<Shape>,
}

/// What level 6.2 allows, in macroblocks: a decoder asks for memory by what stands here.
const LARGEST: u64 = 139_264;

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<u32> {
        let byte = self.bytes.get(self.at / 8).context("a parameter set ends too early")?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(u32::from(bit))
    }

    fn flag(&mut self) -> Result<bool> {
        Ok(self.bit()? == 1)
    }

    fn bits(&mut self, n: u32) -> Result<u32> {
        (0..n).try_fold(0, |value, _| Ok(value << 1 | self.bit()?))
    }

    /// Exponential Golomb.
    fn ue(&mut self) -> Result<u32> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
            ensure!(zeros < 32, "a parameter set holds an impossible number");
        }
        Ok((1u64 << zeros) as u32 - 1 + self.bits(zeros)?)
    }

    fn se(&mut self) -> Result<i64> {
        let k = i64::from(self.ue()?);
        Ok(if k % 2 == 1 { (k + 1) / 2 } else { -k / 2 })
    }
}

/// Takes out the bytes that keep start codes from appearing.
pub fn unescape(unit: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(unit.len());
    let mut zeros = 0;
    for &byte in unit {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

/// Puts them in.
pub fn escape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    let mut zeros = 0;
    for &byte in bytes {
        if zeros >= 2 && byte <= 3 {
            out.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

const MAIN: u8 = 77;
const HIGH: u8 = 100;
const SCALABLE_BASELINE: u8 = 83;

/// The set of a Main or High stream under the name of Scalable Baseline, which openh264 decodes the same way but hands
/// out picture by picture in the order of decoding. Under their own names it holds pictures back and guesses the order of
/// showing, with no way to tell which one came out.
/// - Others are returned as they are.
pub fn in_decoding_order(unit: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = unescape(unit);
    match bytes.get_mut(1) {
        Some(profile) if *profile == HIGH => *profile = SCALABLE_BASELINE,
        Some(profile) if *profile == MAIN => {
            *profile = SCALABLE_BASELINE;
            let mut b = Bits { bytes: &bytes, at: 32 };
            b.ue()?;
            let at = b.at;
            // What Main leaves out: 4:2:0, 8 bits of luma and of colour, no transform bypass, no scaling lists.
            let left_out = [0, 1, 0, 1, 1, 0, 0];
            let bit = |i: usize| bytes[i / 8] >> (7 - i % 8) & 1;
            let bits: Vec<u8> = (0..at).map(bit).chain(left_out).chain((at..bytes.len() * 8).map(bit)).collect();
            let byte = |bits: &[u8]| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | bit << (7 - i));
            bytes = bits.chunks(8).map(byte).collect();
            let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(end);
        }
        _ => return Ok(unit.to_vec()),
    }
    Ok(escape(&bytes))
}

/// - `unit`: with its header byte, without a start code.
/// - Errors when it is cut short, or declares a size that is none or beyond H.264's largest.
pub fn parse(unit: &[u8]) -> Result<Sps> {
    let bytes = unescape(unit);
    let mut b = Bits { bytes: &bytes, at: 8 };
    let profile = b.bits(8)?;
    b.bits(16)?;
    b.ue()?;
    let (mut chroma_format, mut bits) = (1, 8);
    if [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135].contains(&profile) {
        chroma_format = b.ue()?;
        ensure!(chroma_format <= 3, "a parameter set declares colour layout {chroma_format}");
        if chroma_format == 3 {
            b.bit()?;
        }
        bits = 8 + b.ue()?.max(b.ue()?).min(24);
        b.bit()?;
        if b.flag()? {
            for i in 0..if chroma_format == 3 { 12 } else { 8 } {
                if b.flag()? {
                    skip_scaling_list(&mut b, if i < 6 { 16 } else { 64 })?;
                }
            }
        }
    }
    b.ue()?;
    match b.ue()? {
        0 => _ = b.ue()?,
        1 => {
            b.bit()?;
            b.se()?;
            b.se()?;
            for _ in 0..b.ue()?.min(255) {
                b.se()?;
            }
        }
        2 => {}
        other => bail!("a parameter set declares picture order {other}"),
    }
    b.ue()?;
    b.bit()?;
    let (across, down) = (u64::from(b.ue()?) + 1, u64::from(b.ue()?) + 1);
    let progressive = b.flag()?;
    let down = if progressive { down } else { down * 2 };
    ensure!(across.saturating_mul(down) <= LARGEST, "a parameter set declares {}x{} pixels", across * 16, down * 16);
    if !progressive {
        b.bit()?;
    }
    b.bit()?;
    let (mut width, mut height) = (across * 16, down * 16);
    if b.flag()? {
        let step_across = if matches!(chroma_format, 1 | 2) { 2 } else { 1 };
        let step_down = if chroma_format == 1 { 2 } else { 1 } * if progressive { 1 } else { 2 };
        let sides = [b.ue()?, b.ue()?, b.ue()?, b.ue()?].map(u64::from);
        width = width.saturating_sub((sides[0] + sides[1]) * step_across);
        height = height.saturating_sub((sides[2] + sides[3]) * step_down);
    }
    ensure!(width > 0 && height > 0, "a parameter set declares a picture without pixels");
    let mut sps = Sps {
        width: width as usize,
        height: height as usize,
        chroma_format,
        bits,
        progressive,
        matrix: None,
        full: None,
        description: None,
        shape: None,
    };
    if b.flag()? {
        // What stands here only says how to show the picture; a set that is cut short within it still decodes.
        let _ = usability(&mut b, &mut sps);
    }
    Ok(sps)
}

fn skip_scaling_list(b: &mut Bits, size: usize) -> Result<()> {
    let (mut last, mut next) = (8, 8);
    for _ in 0..size {
        if next != 0 {
            next = (last + b.se()?).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Ok(())
}

/// The start of the video usability information.
fn usability(b: &mut Bits, sps: &mut Sps) -> Result<()> {
    if b.flag()? {
        sps.shape = match b.bits(8)? {
            255 => Shape::new(b.bits(16)?, b.bits(16)?),
            index => Shape::of_h264(index),
        };
    }
    if b.flag()? {
        b.bit()?; // overscan
    }
    if b.flag()? {
        b.bits(3)?;
        sps.full = Some(b.flag()?);
        if b.flag()? {
            let [primaries, transfer, matrix] = [b.bits(8)? as u8, b.bits(8)? as u8, b.bits(8)? as u8];
            sps.description = Some([primaries, transfer, matrix]);
            sps.matrix = Some(matrix).filter(|&matrix| matrix != 2);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cropped_and_colour_is_read() -> Result<()> {
        let writer = crate::video::read::h264::tests::parameter_set(50, 34)?;
        let sps = parse(&writer)?;
        assert_eq!((sps.width, sps.height, sps.chroma_format, sps.bits, sps.progressive), (50, 34, 1, 8, true));
        assert_eq!((sps.matrix, sps.full), (Some(1), Some(false)));
        Ok(())
    }

    #[test]
    fn another_name_changes_nothing_else() -> Result<()> {
        // Main, 640x360, as x264 writes it; the same by x264 as High differs in the profile and seven bits.
        let main = [0x67, 77, 0x40, 30, 0xEC, 0xA0, 0x50, 0x17, 0xFC, 0xB8, 0x08, 0x80];
        let renamed = in_decoding_order(&main)?;
        assert_eq!(renamed[..4], [0x67, 83, 0x40, 30]);
        assert_eq!(parse(&renamed)?, parse(&main)?);
        assert_eq!((parse(&main)?.width, parse(&main)?.height), (640, 360));
        let high = [0x67, 100, 0, 30, 0xAC, 0xD9, 0x40, 0xA0, 0x2F, 0xF9, 0x70, 0x11];
        assert_eq!(in_decoding_order(&high)?[1..], [&[83], &high[2..]].concat());
        assert_eq!(in_decoding_order(&[0x67, 66, 0, 30])?, [0x67, 66, 0, 30]);
        assert!(in_decoding_order(&[0x67, 77]).is_err());
        assert_eq!(unescape(&escape(&[0, 0, 0, 0, 1, 0, 0, 3, 0, 0])), [0, 0, 0, 0, 1, 0, 0, 3, 0, 0]);
        Ok(())
    }

    #[test]
    fn nonsense_is_an_error_or_harmless() -> Result<()> {
        let good = crate::video::read::h264::tests::parameter_set(64, 48)?;
        for end in 0..good.len() {
            let _ = parse(&good[..end]);
        }
        for i in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[i / 8] ^= 1 << (i % 8);
            if let Ok(sps) = parse(&bad) {
                assert!(sps.width * sps.height <= LARGEST as usize * 256);
            }
        }
        assert!(parse(&[]).is_err() && parse(&[0; 64]).is_err());
        Ok(())
    }
}
