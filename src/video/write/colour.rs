//! RGB to Y'CbCr, the one place. Unless a clip's footage or a form asks for another it is BT.709 in limited range (Y' 16 to 235,
//! Cb and Cr 16 to 240).

use crate::video::Frame;
use crate::video::read::yuv;

/// How much of the colour is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chroma {
    /// 4:2:0: one colour sample for 2x2 pixels, their mean. Readers that repeat it (`read::yuv`, and `ffmpeg` unasked)
    /// hand back what the next writing averages to the same. Even sizes only.
    Quarter,
    /// 4:4:4: one for each pixel.
    Full,
}

/// The matrix and range of Y'CbCr, as weights of full-range RGB in 1/65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    y: [i32; 3],
    u: [i32; 3],
    v: [i32; 3],
    /// Y' of black.
    black: i32,
}

const BITS: u32 = 16;

impl Space {
    /// - `matrix`: `matrix_coefficients`; one that has no weights is taken for what readers take for a stream of the size that
    ///   says nothing. `full`: Y' 0 to 255 and not 16 to 235.
    /// - Source: ITU-T H.273, 8.3: Kr and Kb of the matrix, scaled in limited range by 219/255 (Y') and 224/255 (Cb, Cr).
    pub fn new(matrix: u8, full: bool, width: usize, height: usize) -> Space {
        let yuv::Colour { kr, kb, .. } = yuv::Colour::new(matrix, full, width, height);
        let one = f64::from(1 << BITS);
        let (luma, chroma) = if full { (one, one) } else { (one * 219.0 / 255.0, one * 224.0 / 255.0) };
        let whole = |x: f64| x.round() as i32;
        // what rounding leaves goes to one number of each row, so that grey has no colour (a row of 0) and white is 235 or 255
        let kg = 1.0 - kr - kb;
        let (y_r, y_b) = (whole(kr * luma), whole(kb * luma));
        let (to_b, to_r) = (chroma / (2.0 * (1.0 - kb)), chroma / (2.0 * (1.0 - kr)));
        let (u_r, u_g) = (whole(-kr * to_b), whole(-kg * to_b));
        let (v_g, v_b) = (whole(-kg * to_r), whole(-kb * to_r));
        Space {
            y: [y_r, whole(luma) - y_r - y_b, y_b],
            u: [u_r, u_g, -u_r - u_g],
            v: [-v_g - v_b, v_g, v_b],
            black: if full { 0 } else { 16 },
        }
    }

    /// BT.709 in limited range.
    #[cfg(any(test, feature = "h264"))]
    pub fn bt709() -> Space {
        Space::new(1, false, 0, 0)
    }
}

/// A picture as three planes.
/// - `y`: (height, width). `u`, `v`: the same, or halved both ways.
pub struct Planes {
    chroma: Chroma,
    space: Space,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

/// `rgb`: the sum of 2^`log2` pixels. The result is rounded to nearest.
fn mix(weights: [i32; 3], offset: i32, rgb: [i32; 3], log2: u32) -> u8 {
    let sum: i32 = weights.iter().zip(rgb).map(|(w, c)| w * c).sum();
    let shift = BITS + log2;
    (offset + ((sum + (1 << (shift - 1))) >> shift)).clamp(0, 255) as u8 // only a full range's Cb and Cr reach 256
}

impl Planes {
    pub fn new(width: usize, height: usize, chroma: Chroma, space: Space) -> Planes {
        let colours = match chroma {
            Chroma::Quarter => (width / 2) * (height / 2),
            Chroma::Full => width * height,
        };
        Planes { chroma, space, y: vec![0; width * height], u: vec![0; colours], v: vec![0; colours] }
    }

    /// Takes over a frame of the planes' size.
    pub fn fill(&mut self, frame: &Frame) {
        let (w, rgb) = (frame.width, &frame.rgb);
        let Space { y, u, v, black } = self.space;
        let (weigh_u, weigh_v) = (u, v);
        let pixels = rgb.as_chunks::<3>().0;
        for (out, pixel) in self.y.iter_mut().zip(pixels) {
            *out = mix(y, black, pixel.map(i32::from), 0);
        }
        let colours = self.u.iter_mut().zip(&mut self.v);
        match self.chroma {
            Chroma::Full => {
                for ((u, v), pixel) in colours.zip(pixels) {
                    let rgb = pixel.map(i32::from);
                    (*u, *v) = (mix(weigh_u, 128, rgb, 0), mix(weigh_v, 128, rgb, 0));
                }
            }
            Chroma::Quarter => {
                for (i, (u, v)) in colours.enumerate() {
                    let (row, x) = (i / (w / 2) * 2, i % (w / 2) * 2);
                    let block = [row * w + x, row * w + x + 1, (row + 1) * w + x, (row + 1) * w + x + 1];
                    let rgb = [0, 1, 2].map(|c| block.iter().map(|&at| i32::from(pixels[at][c])).sum());
                    (*u, *v) = (mix(weigh_u, 128, rgb, 2), mix(weigh_v, 128, rgb, 2));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the definition, in f64: Y' 16 + 219 Ey, Cb 128 + 224 (Eb - Ey) / 1.8556, Cr 128 + 224 (Er - Ey) / 1.5748.
    fn exact([r, g, b]: [u8; 3]) -> [f64; 3] {
        let [r, g, b] = [r, g, b].map(|c| f64::from(c) / 255.0);
        let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        [16.0 + 219.0 * y, 128.0 + 224.0 * (b - y) / 1.8556, 128.0 + 224.0 * (r - y) / 1.5748]
    }

    fn one(rgb: [u8; 3]) -> [u8; 3] {
        let mut planes = Planes::new(1, 1, Chroma::Full, Space::bt709());
        planes.fill(&Frame { width: 1, height: 1, rgb: rgb.to_vec() });
        [planes.y[0], planes.u[0], planes.v[0]]
    }

    #[test]
    fn the_known_colours() {
        let cases = [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([128, 128, 128], [126, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
            ([255, 255, 0], [219, 16, 138]),
        ];
        for (rgb, yuv) in cases {
            assert_eq!(one(rgb), yuv, "{rgb:?}");
        }
    }

    #[test]
    fn every_colour_is_rounded_to_nearest() {
        let mut worst = 0.0f64;
        let steps = || (0..=255u8).step_by(15);
        for (r, g, b) in steps().flat_map(|r| steps().flat_map(move |g| steps().map(move |b| (r, g, b)))) {
            for (got, exact) in one([r, g, b]).into_iter().zip(exact([r, g, b])) {
                worst = worst.max((f64::from(got) - exact).abs());
            }
        }
        assert!(worst < 0.51, "{worst}"); // half, and what 16 bits of weight lose
    }

    #[test]
    fn a_quarter_of_the_colour_is_the_mean_of_four() {
        let (black, blue) = ([0, 0, 0], [0, 0, 255]);
        let mut planes = Planes::new(4, 2, Chroma::Quarter, Space::bt709());
        let mut fill = |rows: [[[u8; 3]; 4]; 2]| {
            planes.fill(&Frame { width: 4, height: 2, rgb: rows.concat().concat() });
            planes.u.clone()
        };
        assert_eq!(fill([[black; 4]; 2]), [128, 128]);
        assert_eq!(fill([[black, blue, black, black], [black; 4]]), [156, 128]); // 128 + 112 / 4
        assert_eq!(fill([[black, black, black, blue], [black, black, blue, black]]), [128, 184]);
        assert_eq!(fill([[blue; 4]; 2]), [240, 240]);
    }

    /// BT.709's weights are what clips have been written with from the first; their bytes stay.
    #[test]
    fn the_weights_of_bt709_stay() {
        let known = Space { y: [11966, 40254, 4064], u: [-6596, -22189, 28785], v: [28784, -26145, -2639], black: 16 };
        assert_eq!(Space::bt709(), known);
    }

    #[test]
    fn reading_and_writing_again_changes_nothing_much() {
        let (w, h) = (38, 22);
        let wave = |i: usize, step: usize, most: usize| (i * step % most) as u8;
        let planes = yuv::Planes {
            width: w,
            height: h,
            y: (0..w * h).map(|i| 90 + wave(i, 37, 71)).collect(),
            u: (0..w * h / 4).map(|i| 108 + wave(i, 23, 41)).collect(),
            v: (0..w * h / 4).map(|i| 108 + wave(i, 17, 41)).collect(),
            halved: (true, true),
        };
        for (matrix, full) in [(1, false), (1, true), (6, false), (6, true), (9, false), (2, false)] {
            let mut again = Planes::new(w, h, Chroma::Quarter, Space::new(matrix, full, w, h));
            again.fill(&planes.rgb(&yuv::Colour::new(matrix, full, w, h)));
            for (old, new) in [(&planes.y, &again.y), (&planes.u, &again.u), (&planes.v, &again.v)] {
                let worst = old.iter().zip(new).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(worst <= Some(1), "{matrix} {full}: {worst:?}"); // RGB in whole numbers
            }
        }
    }
}
