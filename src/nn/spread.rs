//! Channels into time and space, on all threads.

use super::fast;
use super::read::Read;
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Each pixel's channels as a box of pixels: (1, f, h, w, n) -> (1, st f, sh h, sw w, c), y(t, i, j, c) = x(`channel`(c, t, i, j)).
/// - `None` where the plain operations have to do it: on a GPU, and where gradients are wanted.
pub fn spread(
    x: &Tensor,
    [st, sh, sw]: [usize; 3],
    channel: impl Fn(usize, usize, usize, usize) -> usize,
) -> Result<Option<Tensor>> {
    let (b, f, h, w, n) = x.dims5()?;
    if !fast(x) || !x.is_contiguous() || b != 1 {
        return Ok(None);
    }
    let c = n / (st * sh * sw);
    // where the values of one line of a box come from: (t, i), then (j, c)
    let from_channels: Vec<usize> = (0..st * sh * sw * c)
        .map(|at| {
            let (line, at) = (at / (sw * c), at % (sw * c));
            channel(at % c, line / sh, line % sh, at / c)
        })
        .collect();
    let read = Read::new(x)?;
    let from = read.slice::<f32>()?;
    let mut to = vec![0f32; from.len()];
    let row = sw * w * c;
    to.par_chunks_mut(row.max(1)).enumerate().for_each(|(at, to)| {
        let (frame, y) = (at / (sh * h), at % (sh * h));
        let channels = &from_channels[(frame % st * sh + y % sh) * sw * c..][..sw * c];
        let pixels = &from[(frame / st * h + y / sh) * w * n..][..w * n];
        for (to, pixel) in to.chunks_exact_mut(sw * c).zip(pixels.chunks_exact(n)) {
            to.iter_mut().zip(channels).for_each(|(to, &channel)| *to = pixel[channel]);
        }
    });
    Tensor::from_vec(to, (1, st * f, sh * h, sw * w, c), &Device::Cpu).map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::testing::values;
    use super::*;

    #[test]
    fn it_is_a_permutation_as_the_plain_operations_make_it() -> Result<()> {
        let (f, h, w, c, [st, sh, sw]) = (3, 2, 5, 4, [2, 3, 2]);
        let x = values(&[1, f, h, w, c * st * sh * sw], 1)?;
        let plain = x.reshape(vec![1, f, h, w, c, st, sh, sw])?.permute(vec![0, 1, 5, 2, 6, 3, 7, 4])?;
        let plain = plain.reshape((1, f * st, h * sh, w * sw, c))?;
        let got = spread(&x, [st, sh, sw], |c, t, i, j| ((c * st + t) * sh + i) * sw + j)?.expect("on the CPU");
        assert_eq!(got.dims(), plain.dims());
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, plain.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}
