//! Y'CbCr planes to RGB, the way back of `write::colour` for every matrix, range and layout that files come in.
//!
//! Colour at a half or a quarter of the resolution is repeated, as `ffmpeg -pix_fmt rgb24` does unasked: the models' own
//! tools read clips that way, so it is what the weights have seen. All in whole numbers: the same bytes on every machine
//! and any number of threads.

use crate::video::Frame;
use rayon::prelude::*;

/// How a file's numbers mean colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// The weights of red and blue in luma.
    pub kr: f64,
    pub kb: f64,
    /// Numbers from 0 to 255; else luma from 16 to 235 and colour from 16 to 240.
    pub full: bool,
}

/// Red and blue weights by `matrix_coefficients`; none for what is not Y'CbCr with constant weights.
/// - Source: ITU-T H.273, table 4.
pub fn weights(matrix: u8) -> Option<(f64, f64)> {
    match matrix {
        1 => Some((0.2126, 0.0722)),
        4 => Some((0.30, 0.11)),
        5 | 6 => Some(BT601),
        7 => Some((0.212, 0.087)),
        9 => Some((0.2627, 0.0593)),
        _ => None,
    }
}

const BT601: (f64, f64) = (0.299, 0.114);

/// `matrix_coefficients` of a stream that does not say: BT.601 where both sides are below high definition's, else BT.709,
/// as players take it.
pub fn untagged(width: usize, height: usize) -> u8 {
    if width < 1280 && height < 720 { 6 } else { 1 }
}

/// Whether `transfer_characteristics` is one of pictures that are brighter than 8 bits can show: PQ and HLG.
#[cfg(any(test, feature = "h264"))]
pub fn is_hdr(transfer: u8) -> bool {
    matches!(transfer, 16 | 18)
}

impl Colour {
    /// - `matrix`: `matrix_coefficients`; one that has no weights is taken for the untagged one.
    pub fn new(matrix: u8, full: bool, width: usize, height: usize) -> Colour {
        let (kr, kb) = weights(matrix).or(weights(untagged(width, height))).unwrap_or(BT601);
        Colour { kr, kb, full }
    }
}

/// A picture as planes.
/// - `y`: (height, width). `u`, `v`: halved (rounded up) along the axes named by `halved`; empty where there is no colour.
#[derive(Clone, Debug, Default)]
pub struct Planes {
    pub width: usize,
    pub height: usize,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
    /// Across, down.
    pub halved: (bool, bool),
}

const BITS: u32 = 16;

impl Planes {
    /// Rows are worked on in parallel; each depends on the planes alone.
    pub fn rgb(&self, colour: &Colour) -> Frame {
        let (w, h) = (self.width, self.height);
        let (kr, kb) = (colour.kr, colour.kb);
        let kg = 1.0 - kr - kb;
        let (black, luma, chroma) = if colour.full { (0, 1.0, 1.0) } else { (16, 255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |weight: f64| (weight * f64::from(1 << BITS)).round() as i32;
        let (cy, rv, bu) = (fixed(luma), fixed(2.0 * (1.0 - kr) * chroma), fixed(2.0 * (1.0 - kb) * chroma));
        let (gu, gv) = (fixed(2.0 * kb * (1.0 - kb) / kg * chroma), fixed(2.0 * kr * (1.0 - kr) / kg * chroma));
        let (across, down) = (usize::from(self.halved.0), usize::from(self.halved.1));
        let grey = self.u.is_empty();

        let mut rgb = vec![0; w * h * 3];
        rgb.par_chunks_mut((w * 3).max(1)).enumerate().for_each(|(row, out)| {
            let first = (row >> down) * w.div_ceil(1 + across);
            let at = |plane: &[u8], x: usize| if grey { 0 } else { i32::from(plane[first + (x >> across)]) - 128 };
            let to_byte = |sum: i32| ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8;
            for (x, (pixel, y)) in out.as_chunks_mut::<3>().0.iter_mut().zip(&self.y[row * w..]).enumerate() {
                let (y, u, v) = ((i32::from(*y) - black) * cy, at(&self.u, x), at(&self.v, x));
                *pixel = [to_byte(y + rv * v), to_byte(y - gu * u - gv * v), to_byte(y + bu * u)];
            }
        });
        Frame { width: w, height: h, rgb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(yuv: [u8; 3], halved: (bool, bool), (w, h): (usize, usize)) -> Planes {
        let n = |n: usize, halved: bool| if halved { n.div_ceil(2) } else { n };
        let colours = n(w, halved.0) * n(h, halved.1);
        Planes {
            width: w,
            height: h,
            y: vec![yuv[0]; w * h],
            u: vec![yuv[1]; colours],
            v: vec![yuv[2]; colours],
            halved,
        }
    }

    #[test]
    fn the_known_colours_in_every_layout() {
        let cases = [
            (1, false, [63, 102, 240], [255, 0, 0]),
            (1, false, [173, 42, 26], [0, 255, 0]),
            (1, false, [32, 240, 118], [0, 0, 255]),
            (1, false, [126, 128, 128], [128, 128, 128]),
            (6, false, [81, 90, 240], [254, 0, 0]),
            (6, true, [76, 85, 255], [254, 0, 0]),
            (6, true, [255, 128, 128], [255, 255, 255]),
            (9, false, [16, 128, 128], [0, 0, 0]),
        ];
        for (matrix, full, yuv, rgb) in cases {
            for (halved, size) in [((true, true), (5, 3)), ((true, false), (4, 3)), ((false, false), (1, 1))] {
                let got = flat(yuv, halved, size).rgb(&Colour::new(matrix, full, size.0, size.1));
                assert_eq!((got.width, got.height), size);
                for pixel in got.rgb.chunks(3) {
                    let near = pixel.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= 1);
                    assert!(near, "{matrix} {full} {yuv:?}: {pixel:?} for {rgb:?}");
                }
            }
        }
        let grey = Planes { width: 2, height: 1, y: vec![16, 235], ..Planes::default() };
        assert_eq!(grey.rgb(&Colour::new(2, false, 2, 1)).rgb, [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn pixels_share_the_colour_of_their_block() {
        let reds = |halved| {
            let mut planes = flat([128, 128, 128], halved, (5, 3));
            planes.v.iter_mut().enumerate().for_each(|(i, v)| *v += 10 * i as u8);
            let red = |pixel: &[u8]| (f64::from(pixel[0].abs_diff(128)) / 15.748).round() as u8; // 10 / 2 (1 - Kr)
            planes.rgb(&Colour::new(1, true, 5, 3)).rgb.chunks(3).map(red).collect::<Vec<_>>()
        };
        assert_eq!(reds((true, true)), [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5]);
        assert_eq!(reds((true, false)), [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8]);
        assert_eq!(reds((false, true))[..10], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn high_definition_is_taken_for_bt709() {
        assert_eq!([untagged(640, 480), untagged(1280, 536), untagged(720, 720), untagged(1024, 576)], [6, 1, 1, 6]);
    }
}
