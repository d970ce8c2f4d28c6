//! RGB to Y'CbCr, the one place: BT.709, limited range (Y' 16 to 235, Cb and Cr 16 to 240).

use crate::video::Frame;

/// How much of the colour is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chroma {
    /// 4:2:0: one colour sample for 2x2 pixels, their mean. Readers that repeat it (`read::yuv`, and `ffmpeg` unasked)
    /// hand back what the next writing averages to the same. Even sizes only.
    Quarter,
    /// 4:4:4: one for each pixel.
    Full,
}

/// A picture as three planes.
/// - `y`: (height, width). `u`, `v`: the same, or halved both ways.
pub struct Planes {
    chroma: Chroma,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

// In 1/65536, of full-range RGB. Source: ITU-R BT.709-6, Kr 0.2126 and Kb 0.0722, scaled by 219/255 (Y') and 224/255
// (Cb, Cr). The last digits are rounded so that grey has no colour (a row of 0) and white is 235.
const Y: [i32; 3] = [11966, 40254, 4064];
const U: [i32; 3] = [-6596, -22189, 28785];
const V: [i32; 3] = [28784, -26145, -2639];
const BITS: u32 = 16;

/// `rgb`: the sum of 2^`log2` pixels. The result is rounded to nearest.
fn mix(weights: [i32; 3], offset: i32, rgb: [i32; 3], log2: u32) -> u8 {
    let sum: i32 = weights.iter().zip(rgb).map(|(w, c)| w * c).sum();
    let shift = BITS + log2;
    (offset + ((sum + (1 << (shift - 1))) >> shift)) as u8 // 16 to 240 by the weights
}

impl Planes {
    pub fn new(width: usize, height: usize, chroma: Chroma) -> Planes {
        let colours = match chroma {
            Chroma::Quarter => (width / 2) * (height / 2),
            Chroma::Full => width * height,
        };
        Planes { chroma, y: vec![0; width * height], u: vec![0; colours], v: vec![0; colours] }
    }

    /// Takes over a frame of the planes' size.
    pub fn fill(&mut self, frame: &Frame) {
        let (w, rgb) = (frame.width, &frame.rgb);
        let pixels = rgb.as_chunks::<3>().0;
        for (y, pixel) in self.y.iter_mut().zip(pixels) {
            *y = mix(Y, 16, pixel.map(i32::from), 0);
        }
        let colours = self.u.iter_mut().zip(&mut self.v);
        match self.chroma {
            Chroma::Full => {
                for ((u, v), pixel) in colours.zip(pixels) {
                    let rgb = pixel.map(i32::from);
                    (*u, *v) = (mix(U, 128, rgb, 0), mix(V, 128, rgb, 0));
                }
            }
            Chroma::Quarter => {
                for (i, (u, v)) in colours.enumerate() {
                    let (row, x) = (i / (w / 2) * 2, i % (w / 2) * 2);
                    let block = [row * w + x, row * w + x + 1, (row + 1) * w + x, (row + 1) * w + x + 1];
                    let rgb = [0, 1, 2].map(|c| block.iter().map(|&at| i32::from(pixels[at][c])).sum());
                    (*u, *v) = (mix(U, 128, rgb, 2), mix(V, 128, rgb, 2));
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
        let mut planes = Planes::new(1, 1, Chroma::Full);
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
        let mut planes = Planes::new(4, 2, Chroma::Quarter);
        let mut fill = |rows: [[[u8; 3]; 4]; 2]| {
            planes.fill(&Frame { width: 4, height: 2, rgb: rows.concat().concat() });
            planes.u.clone()
        };
        assert_eq!(fill([[black; 4]; 2]), [128, 128]);
        assert_eq!(fill([[black, blue, black, black], [black; 4]]), [156, 128]); // 128 + 112 / 4
        assert_eq!(fill([[black, black, black, blue], [black, black, blue, black]]), [128, 184]);
        assert_eq!(fill([[blue; 4]; 2]), [240, 240]);
    }

    #[test]
    fn reading_and_writing_again_changes_nothing_much() {
        use crate::video::read::yuv;
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
        let mut again = Planes::new(w, h, Chroma::Quarter);
        again.fill(&planes.rgb(&yuv::Colour::new(1, false, w, h)));
        for (old, new) in [(&planes.y, &again.y), (&planes.u, &again.u), (&planes.v, &again.v)] {
            let worst = old.iter().zip(new).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(1), "{worst:?}"); // RGB in whole numbers
        }
    }
}
