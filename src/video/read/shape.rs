//! Pixels that are not square, and the pictures that they make with square ones.

/// Width and height of a pixel, to one another; never equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    across: u32,
    down: u32,
}

/// Shapes of `aspect_ratio_idc` from 2 on. Source: ITU-T H.264, table E-1.
#[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder looks for them"))]
const H264: [(u32, u32); 15] = [
    (12, 11),
    (10, 11),
    (16, 11),
    (40, 33),
    (24, 11),
    (20, 11),
    (32, 11),
    (80, 33),
    (18, 11),
    (15, 11),
    (64, 33),
    (160, 99),
    (4, 3),
    (3, 2),
    (2, 1),
];

impl Shape {
    /// - None for square pixels, for what is no shape, and for what no camera has: more than four times as wide as high, or the
    ///   other way round.
    pub fn new(across: u32, down: u32) -> Option<Shape> {
        const MOST: u32 = 4;
        let fits = across != down && across.checked_div(down)? < MOST && down.checked_div(across)? < MOST;
        fits.then_some(Shape { across, down })
    }

    /// - `index`: `aspect_ratio_idc`.
    #[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder looks for it"))]
    pub fn of_h264(index: u32) -> Option<Shape> {
        let (across, down) = *H264.get((index as usize).checked_sub(2)?)?;
        Shape::new(across, down)
    }

    /// The shape after a quarter turn.
    #[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only the decoder turns pictures"))]
    pub fn turned(self) -> Shape {
        Shape { across: self.down, down: self.across }
    }

    /// Returns the size of a picture with square pixels: wider or higher, so that nothing of it is lost, and even, as films are.
    pub fn squared(self, width: usize, height: usize) -> (usize, usize) {
        let Shape { across, down } = self;
        let stretched = |side: usize, by: u32, of: u32| {
            ((side as f64 * f64::from(by) / f64::from(of) / 2.0).round() as usize * 2).max(side)
        };
        if across > down { (stretched(width, across, down), height) } else { (width, stretched(height, down, across)) }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.across, self.down)
    }
}

/// The command that makes all frames one size.
pub fn one_size(width: usize, height: usize) -> String {
    format!("`ffmpeg -i IN -vf scale={width}:{height} -c:v libx264 -crf 10 -pix_fmt yuv420p OUT.mp4`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_shape() {
        let squared = |across, down, size: (usize, usize)| Shape::new(across, down).map(|s| s.squared(size.0, size.1));
        assert_eq!(squared(4, 3, (96, 64)), Some((128, 64)));
        assert_eq!(squared(16, 15, (720, 576)), Some((768, 576)));
        assert_eq!(squared(8, 9, (720, 480)), Some((720, 540)));
        assert_eq!(Shape::new(4, 3).map(|s| s.turned().squared(64, 96)), Some((64, 128)));
        for (across, down) in [(1, 1), (0, 1), (1, 0), (0, 0), (40, 1), (1, 4), (u32::MAX, 1)] {
            assert_eq!(Shape::new(across, down), None, "{across}:{down}");
        }
        assert_eq!((Shape::of_h264(14), Shape::of_h264(1)), (Shape::new(4, 3), None));
        assert_eq!((Shape::of_h264(0), Shape::of_h264(17), Shape::of_h264(255)), (None, None, None));
    }
}
