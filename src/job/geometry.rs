//! Pixels and latents: the only arithmetic between the two.

use serde::{Deserialize, Serialize};

/// What one latent stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Frames a latent frame, after the first, which stands for one.
    pub time: usize,
    /// Pixels along each side.
    pub space: usize,
}

/// Width, height and frames of a clip, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub width: usize,
    pub height: usize,
    pub frames: usize,
}

/// A clip's latent grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub frames: usize,
    pub height: usize,
    pub width: usize,
}

impl Grid {
    /// Latent tokens in the clip.
    pub fn tokens(&self) -> usize {
        self.frames * self.height * self.width
    }
}

impl Geometry {
    /// The smallest clip that the model can make and that holds `asked`: sides in whole latents, 1 + k `time` frames.
    pub fn legal(&self, asked: Extent) -> Extent {
        Extent {
            width: asked.width.next_multiple_of(self.space),
            height: asked.height.next_multiple_of(self.space),
            frames: (asked.frames - 1).next_multiple_of(self.time) + 1,
        }
    }

    /// The latent grid of a legal clip.
    pub fn grid(&self, legal: Extent) -> Grid {
        Grid {
            frames: (legal.frames - 1) / self.time + 1,
            height: legal.height / self.space,
            width: legal.width / self.space,
        }
    }

    /// The latent frame that a pixel frame lies in.
    pub fn latent_frame(&self, frame: usize) -> usize {
        frame.div_ceil(self.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { time: 8, space: 32 };

    #[test]
    fn legal_sizes_hold_what_was_asked() {
        let legal = |width, height, frames| {
            let l = GEOMETRY.legal(Extent { width, height, frames });
            (l.width, l.height, l.frames)
        };
        assert_eq!(legal(704, 480, 161), (704, 480, 161));
        assert_eq!(legal(720, 481, 12), (736, 512, 17));
        assert_eq!(legal(1, 1, 1), (32, 32, 1));
    }
}
