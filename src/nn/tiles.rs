//! Pictures made tile by tile: overlapping tiles, each by itself, blended linearly where they overlap. Time is not cut: every
//! tile goes through the whole clip, so what is blended is exact in time.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

/// How a picture is cut, in latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    pub height: usize,
    pub width: usize,
    /// Of neighbouring tiles; less than either side.
    pub overlap: usize,
}

/// One tile: where it begins and how large it is, in latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub y: usize,
    pub x: usize,
    pub height: usize,
    pub width: usize,
}

impl Tiling {
    /// Whether a picture of this many latents is one tile.
    pub fn is_whole(&self, height: usize, width: usize) -> bool {
        self.height >= height && self.width >= width
    }

    /// The tiles of a picture, row by row. A tile that lay wholly within the one before it is left out.
    pub fn tiles(&self, height: usize, width: usize) -> Vec<Vec<Tile>> {
        let cut = |total: usize, size: usize| {
            let (step, mut all) = ((size - self.overlap.min(size - 1)).max(1), vec![]);
            let mut at = 0;
            loop {
                all.push((at, size.min(total - at)));
                if at + size >= total {
                    return all;
                }
                at += step;
            }
        };
        let columns = cut(width, self.width);
        let row = |(y, height)| columns.iter().map(|&(x, width)| Tile { y, x, height, width }).collect();
        cut(height, self.height).into_iter().map(row).collect()
    }
}

/// What a tile leaves to its neighbours: its last rows or columns, of every frame.
#[derive(Clone, Default)]
struct Strip {
    rows: usize,
    columns: usize,
    values: Vec<f32>, // (frames, rows, columns, c)
}

/// A picture that grows tile by tile.
struct Canvas<'a, T> {
    frames: usize,
    width: usize,
    channels: usize,
    /// Rows and columns that two tiles share.
    overlap: usize,
    values: Vec<T>, // (frames, height, width, c)
    height: usize,
    convert: &'a (dyn Fn(f32) -> T + Sync),
}

/// Makes a clip tile by tile.
/// - `scale`: of what tiles give, along each side of a latent. `size`: frames, height, width and channels of the clip.
///   `convert`: each value, once it is blended. `make`: makes a tile and hands over (first frame, (1, f, h, w, c)).
/// - Returns (frames, height, width, c), row-major.
/// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `tiled_decode`, `tiled_encode`, `blend_v`, `blend_h`, at
///   58eb52c.
pub fn assemble<T: Copy + Default + Send + Sync>(
    tiling: &Tiling,
    scale: usize,
    size: [usize; 4],
    convert: &(dyn Fn(f32) -> T + Sync),
    mut make: impl FnMut(Tile, &mut dyn FnMut(usize, &Tensor) -> Result<()>) -> Result<()>,
) -> Result<Vec<T>> {
    let [frames, height, width, channels] = size;
    let values = vec![T::default(); frames * height * width * channels];
    let mut canvas = Canvas { frames, width, channels, overlap: tiling.overlap * scale, values, height, convert };
    let rows = tiling.tiles(height / scale, width / scale);
    let mut above: Vec<Strip> = vec![];
    for (i, row) in rows.iter().enumerate() {
        let mut below = vec![];
        let mut left = Strip::default();
        for (j, &tile) in row.iter().enumerate() {
            let last = (i + 1 == rows.len(), j + 1 == row.len());
            let mut bottom = canvas.strip(if last.0 { 0 } else { tile.height * scale }, tile.width * scale, true);
            let mut right = canvas.strip(if last.1 { 0 } else { tile.width * scale }, tile.height * scale, false);
            make(tile, &mut |first, part| {
                canvas.put(tile, scale, first, part, above.get(j), &left, &mut bottom, &mut right, last)
            })?;
            below.push(bottom);
            left = right;
        }
        above = below;
    }
    Ok(canvas.values)
}

impl<T: Copy + Default + Send + Sync> Canvas<'_, T> {
    /// An empty strip along a tile's end.
    /// - `across`: the tile's size toward that end; 0 where it has no neighbour there. `along`: its other side.
    fn strip(&self, across: usize, along: usize, bottom: bool) -> Strip {
        let deep = self.overlap.min(across);
        let (rows, columns) = if bottom { (deep, along) } else { (along, deep) };
        Strip { rows, columns, values: vec![0.0; self.frames * rows * columns * self.channels] }
    }

    #[allow(clippy::too_many_arguments)] // a tile and all its neighbours
    fn put(
        &mut self,
        tile: Tile,
        scale: usize,
        first: usize,
        part: &Tensor,
        above: Option<&Strip>,
        left: &Strip,
        bottom: &mut Strip,
        right: &mut Strip,
        last: (bool, bool),
    ) -> Result<()> {
        let (_, frames, h, w, c) = part.dims5()?;
        let count = frames.min(self.frames.saturating_sub(first));
        let mut values = part.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let overlap = self.overlap;
        values[..count * h * w * c].par_chunks_mut(h * w * c).enumerate().for_each(|(f, frame)| {
            let f = first + f;
            if let Some(above) = above.filter(|above| above.rows > 0) {
                let extent = overlap.min(above.rows).min(h);
                for y in 0..extent {
                    let share = y as f32 / extent as f32;
                    let from = ((f * above.rows + above.rows - extent + y) * above.columns) * c;
                    let row = &mut frame[y * w * c..][..w * c];
                    blend(row, &above.values[from..][..w * c], |_| share);
                }
            }
            if left.columns > 0 {
                let extent = overlap.min(left.columns).min(w);
                for y in 0..h {
                    let from = ((f * left.rows + y) * left.columns + left.columns - extent) * c;
                    let row = &mut frame[y * w * c..][..extent * c];
                    blend(row, &left.values[from..][..extent * c], |i| (i / c) as f32 / extent as f32);
                }
            }
        });
        for f in 0..count {
            let frame = &values[f * h * w * c..][..h * w * c];
            let whole = first + f;
            let rows = bottom.rows * bottom.columns * c;
            bottom.values[whole * rows..][..rows].copy_from_slice(&frame[(h - bottom.rows) * w * c..][..rows]);
            for y in 0..right.rows {
                let to = &mut right.values[(whole * right.rows + y) * right.columns * c..][..right.columns * c];
                to.copy_from_slice(&frame[((y + 1) * w - right.columns) * c..][..right.columns * c]);
            }
        }
        // the next tile brings what it shares with this one
        let kept_h = if last.0 { h } else { h - overlap.min(h) };
        let kept_w = if last.1 { w } else { w - overlap.min(w) };
        let (top, start) = (tile.y * scale, tile.x * scale);
        let (whole_h, whole_w, convert) = (self.height, self.width, self.convert);
        let to = self.values.par_chunks_mut(whole_h * whole_w * c).skip(first).take(count);
        to.zip(values.par_chunks(h * w * c)).for_each(|(to, from)| {
            for y in 0..kept_h {
                let to = &mut to[((top + y) * whole_w + start) * c..][..kept_w * c];
                to.iter_mut().zip(&from[y * w * c..]).for_each(|(to, from)| *to = convert(*from));
            }
        });
        Ok(())
    }
}

/// Values that lie under the end of `before` and the start of `row`, more and more of the latter.
fn blend(row: &mut [f32], before: &[f32], share: impl Fn(usize) -> f32) {
    for (i, (to, from)) in row.iter_mut().zip(before).enumerate() {
        let share = share(i);
        *to = from * (1.0 - share) + *to * share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const TILING: Tiling = Tiling { height: 4, width: 5, overlap: 2 };

    #[test]
    fn tiles_cover_a_picture_without_one_too_many() {
        let rows = TILING.tiles(6, 11);
        assert_eq!(rows.len(), 2);
        let xs: Vec<_> = rows[1].iter().map(|t| (t.y, t.x, t.height, t.width)).collect();
        assert_eq!(xs, [(2, 0, 4, 5), (2, 3, 4, 5), (2, 6, 4, 5)]);
        let ends: Vec<_> = TILING.tiles(4, 6)[0].iter().map(|t| (t.x, t.width)).collect();
        assert_eq!(ends, [(0, 5), (3, 3)]);
        assert_eq!(TILING.tiles(3, 5), [[Tile { y: 0, x: 0, height: 3, width: 5 }]]);
    }

    /// What every tile agrees on comes out as it is, in whatever parts its frames come.
    #[test]
    fn agreeing_tiles_give_the_picture() -> Result<()> {
        let (scale, frames, height, width, c) = (3, 5, 7, 11, 2);
        let size = [frames, height * scale, width * scale, c];
        let all = super::super::testing::values(&[1, size[0], size[1], size[2], c], 3)?;
        let got = assemble(&TILING, scale, size, &|x| x, |tile, put| {
            let part = all.narrow(2, tile.y * scale, tile.height * scale)?;
            let part = part.narrow(3, tile.x * scale, tile.width * scale)?;
            put(0, &part.narrow(1, 0, 2)?)?;
            put(2, &part.narrow(1, 2, 3)?)
        })?;
        let got = Tensor::from_vec(got, all.shape(), &Device::Cpu)?;
        assert!(super::super::testing::distance(&got, &all)? < 1e-6); // two shares of a number make the number, nearly
        Ok(())
    }
}
