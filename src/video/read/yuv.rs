//! Y'CbCr planes to RGB, the way back of `write::colour` for every matrix, range and siting that files come in.
//!
//! Colour at a half or a quarter of the resolution is brought up with the cubic that players and `ffmpeg` use (Keys, at
//! -0.6), in whole numbers: the same bytes on every machine and any number of threads.

use crate::video::Frame;
use rayon::prelude::*;

/// Where a colour sample lies among the two pixels that it stands for, along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siting {
    /// On the first: left, or top.
    First,
    Between,
    /// On the second: bottom.
    #[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only H.264 has it"))]
    Second,
}

/// How a file's numbers mean colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// The weights of red and blue in luma.
    pub kr: f64,
    pub kb: f64,
    /// Numbers from 0 to 255; else luma from 16 to 235 and colour from 16 to 240.
    pub full: bool,
    pub across: Siting,
    pub down: Siting,
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

impl Colour {
    /// - `matrix`: `matrix_coefficients`; one that has no weights is taken for the untagged one.
    pub fn new(matrix: u8, full: bool, width: usize, height: usize) -> Colour {
        let (kr, kb) = weights(matrix).or(weights(untagged(width, height))).unwrap_or(BT601);
        Colour { kr, kb, full, across: Siting::First, down: Siting::Between }
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

/// Four neighbours' weights and where the first of them lies from half the pixel's place.
type Taps = (isize, [i32; 4]);

const TAP_BITS: u32 = 14;

/// Keys' cubic at -0.6.
fn cubic(distance: f64) -> f64 {
    let (a, d) = (-0.6, distance.abs());
    match d {
        d if d < 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => a * (((d - 5.0) * d + 8.0) * d - 4.0),
        _ => 0.0,
    }
}

/// For pixels at even and at odd places.
fn taps(halved: bool, siting: Siting) -> [Taps; 2] {
    let one = 1 << TAP_BITS;
    if !halved {
        return [(0, [one, 0, 0, 0]); 2];
    }
    let sited = match siting {
        Siting::First => 0.0,
        Siting::Between => 0.5,
        Siting::Second => 1.0,
    };
    [0.0, 1.0].map(|pixel| {
        let place: f64 = (pixel - sited) / 2.0;
        let first = place.floor() - 1.0;
        let mut weights = [0, 1, 2, 3].map(|i| (cubic(first + f64::from(i) - place) * f64::from(one)).round() as i32);
        weights[1] += one - weights.iter().sum::<i32>(); // flat colour stays as it is
        (first as isize, weights)
    })
}

/// Bits below a whole number, between the two axes and after them.
const FRACTION: u32 = 8;
const MATRIX_BITS: u32 = 13;

/// One row of a colour plane, filtered along both axes.
/// - `column`: scratch. `out`: as wide as the picture.
fn colour_row(
    planes: &Planes,
    plane: &[u8],
    row: usize,
    filters: &[[Taps; 2]; 2],
    column: &mut Vec<i32>,
    out: &mut [i32],
) {
    let half = |n: usize, halved: bool| if halved { n.div_ceil(2) } else { n };
    let (w, h) = (half(planes.width, planes.halved.0), half(planes.height, planes.halved.1));
    let near = |place: usize, halved: bool| if halved { (place / 2, place % 2) } else { (place, 0) };
    let clamped = |i: isize, n: usize| i.clamp(0, n as isize - 1) as usize;

    let (at, odd) = near(row, planes.halved.1);
    let (first, weights) = filters[1][odd];
    let rows = [0, 1, 2, 3].map(|i| {
        let row = clamped(at as isize + first + i, h);
        &plane[row * w..][..w]
    });
    column.clear();
    column.extend((0..w).map(|x| {
        let sum: i32 = rows.iter().zip(weights).map(|(row, weight)| i32::from(row[x]) * weight).sum();
        (sum + (1 << (TAP_BITS - FRACTION - 1))) >> (TAP_BITS - FRACTION)
    }));
    let top = 255 << FRACTION;
    for (x, out) in out.iter_mut().enumerate() {
        let (at, odd) = near(x, planes.halved.0);
        let (first, weights) = filters[0][odd];
        let start = at as isize + first;
        let sum: i32 = if start >= 0 && start as usize + 4 <= w {
            column[start as usize..][..4].iter().zip(weights).map(|(value, weight)| value * weight).sum()
        } else {
            (0..4).map(|i| column[clamped(start + i, w)] * weights[i as usize]).sum()
        };
        *out = ((sum + (1 << (TAP_BITS - 1))) >> TAP_BITS).clamp(0, top);
    }
}

impl Planes {
    /// Rows are worked on in parallel; each depends on the planes alone.
    pub fn rgb(&self, colour: &Colour) -> Frame {
        let (w, h) = (self.width, self.height);
        let (kr, kb) = (colour.kr, colour.kb);
        let kg = 1.0 - kr - kb;
        let (black, luma, chroma) = if colour.full { (0, 1.0, 1.0) } else { (16, 255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |weight: f64| (weight * f64::from(1 << MATRIX_BITS)).round() as i32;
        let (cy, rv, bu) = (fixed(luma), fixed(2.0 * (1.0 - kr) * chroma), fixed(2.0 * (1.0 - kb) * chroma));
        let (gu, gv) = (fixed(2.0 * kb * (1.0 - kb) / kg * chroma), fixed(2.0 * kr * (1.0 - kr) / kg * chroma));
        let filters = [taps(self.halved.0, colour.across), taps(self.halved.1, colour.down)];
        let grey = self.u.is_empty();

        let mut rgb = vec![0; w * h * 3];
        rgb.par_chunks_mut((w * 3).max(1)).enumerate().for_each_init(
            || (Vec::new(), vec![128 << FRACTION; w], vec![128 << FRACTION; w]),
            |(column, u, v), (row, out)| {
                if !grey {
                    colour_row(self, &self.u, row, &filters, column, u);
                    colour_row(self, &self.v, row, &filters, column, v);
                }
                let shift = MATRIX_BITS + FRACTION;
                let to_byte = |sum: i32| ((sum + (1 << (shift - 1))) >> shift).clamp(0, 255) as u8;
                let rest = u.iter().zip(v.iter());
                for ((pixel, y), (u, v)) in out.as_chunks_mut::<3>().0.iter_mut().zip(&self.y[row * w..]).zip(rest) {
                    let y = ((i32::from(*y) - black) * cy) << FRACTION;
                    let (u, v) = (u - (128 << FRACTION), v - (128 << FRACTION));
                    *pixel = [to_byte(y + rv * v), to_byte(y - gu * u - gv * v), to_byte(y + bu * u)];
                }
            },
        );
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
    fn colour_samples_lie_where_the_siting_says() {
        let mut planes = flat([128, 128, 128], (true, true), (8, 2));
        planes.v = vec![100, 100, 160, 160];
        let reds = |across| {
            let colour = Colour { across, ..Colour::new(1, true, 8, 2) };
            planes.rgb(&colour).rgb.chunks(3).take(8).map(|p| p[0]).collect::<Vec<_>>()
        };
        let left = reds(Siting::First);
        assert_eq!((left[2], left[4]), (84, 178)); // on the samples: 128 + 1.5748 (v - 128)
        assert_eq!(left[3], 131); // half way
        let centre = reds(Siting::Between);
        assert_eq!(i32::from(centre[3]) - 131, 131 - i32::from(centre[4])); // the same on both sides of the edge
    }

    #[test]
    fn high_definition_is_taken_for_bt709() {
        assert_eq!([untagged(640, 480), untagged(1280, 536), untagged(720, 720), untagged(1024, 576)], [6, 1, 1, 6]);
    }
}
