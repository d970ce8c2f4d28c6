//! Channels into time and space, and back, on all threads.

use super::path::{Input, RowPath};
use super::read::Read;
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Which channel of a pixel holds frame t, line i and column j of channel c of its box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// ((c st + t) sh + i) sw + j
    Lines,
    /// ((c st + t) sw + j) sh + i
    Columns,
}

impl Order {
    fn channel(self, [st, sh, sw]: [usize; 3], c: usize, t: usize, i: usize, j: usize) -> usize {
        match self {
            Order::Lines => ((c * st + t) * sh + i) * sw + j,
            Order::Columns => ((c * st + t) * sw + j) * sh + i,
        }
    }
}

/// Each pixel's channels as a box of pixels: (1, f, h, w, n) -> (1, st f, sh h, sw w, c), in the `order` of its channels.
/// - `plus`: pixels that are added, spread likewise; (1, f, h, w, m), whose channels begin anew where they end.
/// - `None` where the plain operations have to do it: on other GPUs than CUDA's, and where gradients are wanted.
pub fn spread(x: &Tensor, stride: [usize; 3], plus: Option<&Tensor>, order: Order) -> Result<Option<Tensor>> {
    let (b, f, h, w, n) = x.dims5()?;
    let [st, sh, sw] = stride;
    let contiguous = x.is_contiguous() && plus.is_none_or(Tensor::is_contiguous);
    match Input::of(x, plus).or_plain(b != 1).rows(x.elem_count()) {
        RowPath::Kernel if contiguous => (),
        #[cfg(feature = "cuda")]
        RowPath::Cuda => return super::cuda::spread(x, stride, plus, order == Order::Columns).map(Some),
        _ => return Ok(None),
    }
    let channel = |c: usize, t: usize, i: usize, j: usize| order.channel(stride, c, t, i, j);
    let c = n / (st * sh * sw);
    // where the values of one line of a box come from: (t, i), then (j, c)
    let places = |channels: usize| -> Vec<usize> {
        let place = |at: usize| {
            let (line, at) = (at / (sw * c), at % (sw * c));
            channel(at % c % channels, line / sh, line % sh, at / c)
        };
        (0..st * sh * sw * c).map(place).collect()
    };
    let read = Read::new(x)?;
    let from = read.slice::<f32>()?;
    let plus_read = plus.map(Read::new).transpose()?;
    let added = match &plus_read {
        Some(read) => {
            let values = read.slice::<f32>()?;
            let m = values.len() / (f * h * w).max(1);
            Some((values, m, places((m / (st * sh * sw)).max(1))))
        }
        None => None,
    };
    let from_channels = places(c.max(1));
    let mut to = vec![0f32; from.len()];
    let row = sw * w * c;
    to.par_chunks_mut(row.max(1)).enumerate().for_each(|(at, to)| {
        let (frame, y) = (at / (sh * h), at % (sh * h));
        let channels = &from_channels[(frame % st * sh + y % sh) * sw * c..][..sw * c];
        let pixels = &from[(frame / st * h + y / sh) * w * n..][..w * n];
        for (to, pixel) in to.chunks_exact_mut(sw * c).zip(pixels.chunks_exact(n)) {
            to.iter_mut().zip(channels).for_each(|(to, &channel)| *to = pixel[channel]);
        }
        if let Some((values, m, places)) = &added {
            let places = &places[(frame % st * sh + y % sh) * sw * c..][..sw * c];
            let pixels = &values[(frame / st * h + y / sh) * w * m..][..w * m];
            for (to, pixel) in to.chunks_exact_mut(sw * c).zip(pixels.chunks_exact(*m)) {
                to.iter_mut().zip(places).for_each(|(to, &place)| *to += pixel[place]);
            }
        }
    });
    Tensor::from_vec(to, (1, st * f, sh * h, sw * w, c), &Device::Cpu).map(Some)
}

/// Each box of pixels as the channels of one, in means of `mean` neighbours: (1, st f, sh h, sw w, c) -> (1, f, h, w, n / mean),
/// with n = st sh sw c, in the `order` of its channels.
/// - `None` where the plain operations have to do it: on other GPUs than CUDA's, and where gradients are wanted.
pub fn gather(x: &Tensor, stride: [usize; 3], mean: usize, order: Order) -> Result<Option<Tensor>> {
    let (b, frames, height, width, c) = x.dims5()?;
    let [st, sh, sw] = stride;
    match Input::of(x, []).or_plain(b != 1).rows(x.elem_count()) {
        RowPath::Kernel if x.is_contiguous() => (),
        #[cfg(feature = "cuda")]
        RowPath::Cuda => return super::cuda::gather(x, stride, mean, order == Order::Columns).map(Some),
        _ => return Ok(None),
    }
    let channel = |c: usize, t: usize, i: usize, j: usize| order.channel(stride, c, t, i, j);
    let (f, h, w) = (frames / st, height / sh, width / sw);
    // where each channel comes from, from a box's first value on
    let mut places = vec![0; st * sh * sw * c];
    for at in 0..st * sh * sw {
        let (t, i, j) = (at / (sh * sw), at / sw % sh, at % sw);
        (0..c).for_each(|c_in| places[channel(c_in, t, i, j)] = ((t * height + i) * width + j) * c + c_in);
    }
    let read = Read::new(x)?;
    let from = read.slice::<f32>()?;
    let n = places.len() / mean;
    let mut to = vec![0f32; f * h * w * n];
    to.par_chunks_mut((w * n).max(1)).enumerate().for_each(|(at, to)| {
        let line = &from[(at / h * st * height + at % h * sh) * width * c..];
        for (j, to) in to.chunks_exact_mut(n).enumerate() {
            let pixel = &line[j * sw * c..];
            if mean == 1 {
                to.iter_mut().zip(&places).for_each(|(to, &place)| *to = pixel[place]);
            } else {
                for (to, places) in to.iter_mut().zip(places.chunks_exact(mean)) {
                    *to = places.iter().map(|&place| pixel[place]).sum::<f32>() / mean as f32;
                }
            }
        }
    });
    Tensor::from_vec(to, (1, f, h, w, n), &Device::Cpu).map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;

    #[test]
    fn it_is_a_permutation_as_the_plain_operations_make_it() -> Result<()> {
        let (f, h, w, c, [st, sh, sw]) = (3, 2, 5, 4, [2, 3, 2]);
        let x = values(&[1, f, h, w, c * st * sh * sw], 1)?;
        let plain = x.reshape(vec![1, f, h, w, c, st, sh, sw])?.permute(vec![0, 1, 5, 2, 6, 3, 7, 4])?;
        let plain = plain.reshape((1, f * st, h * sh, w * sw, c))?;
        let order = Order::Lines;
        let got = spread(&x, [st, sh, sw], None, order)?.expect("on the CPU");
        assert_eq!(got.dims(), plain.dims());
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, plain.flatten_all()?.to_vec1::<f32>()?);
        let plus = values(&[1, f, h, w, c / 2 * st * sh * sw], 2)?;
        let wide = spread(&plus, [st, sh, sw], None, order)?.expect("on the CPU");
        let plain = (plain + Tensor::cat(&[&wide, &wide], 4)?)?;
        let got = spread(&x, [st, sh, sw], Some(&plus), order)?.expect("on the CPU");
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, plain.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    /// The means are added up in another order.
    const LIMIT: f32 = 1e-6;

    #[test]
    fn it_comes_back_and_means_are_of_neighbours() -> Result<()> {
        let (f, h, w, c, [st, sh, sw]) = (3, 2, 5, 4, [2, 3, 2]);
        let x = values(&[1, f, h, w, c * st * sh * sw], 1)?;
        let order = Order::Lines;
        let wide = spread(&x, [st, sh, sw], None, order)?.expect("on the CPU");
        let back = gather(&wide, [st, sh, sw], 1, order)?.expect("on the CPU");
        assert_eq!(back.dims(), x.dims());
        assert_eq!(back.flatten_all()?.to_vec1::<f32>()?, x.flatten_all()?.to_vec1::<f32>()?);
        let means = gather(&wide, [st, sh, sw], 6, order)?.expect("on the CPU");
        let plain = x.reshape(vec![1, f, h, w, c * st * sh * sw / 6, 6])?.mean(5)?;
        assert!(distance(&means, &plain)? < LIMIT);
        Ok(())
    }
}
