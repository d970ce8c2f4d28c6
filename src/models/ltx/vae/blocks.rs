//! What encoder and decoder are built of. Everything runs on (b, frames, h, w, c), group by group (see `nn::stream`); a
//! layer that cannot answer yet gives `None`.

use crate::models::ltx::config::Down;
use crate::nn::conv3d::{Conv3d, Fusion};
use crate::nn::linear::Linear;
use crate::nn::matrix::Matrix;
use crate::nn::norm::{Norm, NormAct};
use crate::nn::path::{self, ConvPath, Input};
use crate::nn::spread::{Order, gather, spread};
use crate::nn::stream::{FRAMES, Stream};
use crate::nn::table::Table;
use crate::nn::timestep::TimestepEmbedder;
use crate::nn::vars::Vars;
use crate::sampling::noise::Noise;
use candle_core::{Result, Tensor};

/// Of the norms over channels, fixed in the source.
const NORM_EPS: f64 = 1e-8;

/// Divides each pixel's channels by their root mean square.
pub fn pixel_norm<'a>() -> NormAct<'a> {
    NormAct::new(Norm::Rms, NORM_EPS)
}

/// A convolution that knows how many frames it looks back and ahead.
pub struct TimeConv {
    conv: Conv3d,
    before: usize,
    after: usize,
}

impl TimeConv {
    /// - `vb` holds `conv.weight` and `conv.bias`. `causal`: looks back only.
    /// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `LTXVideoCausalConv3d`, at 58eb52c.
    pub fn load(inputs: usize, outputs: usize, causal: bool, vb: Vars) -> Result<Self> {
        const KERNEL: usize = 3;
        let after = if causal { 0 } else { KERNEL / 2 };
        let conv = Conv3d::load(inputs, outputs, KERNEL, [1; 3], vb.pp("conv"))?;
        Ok(Self { conv, before: KERNEL - 1 - after, after })
    }

    /// - `prologue`: done to each pixel before. `skip`: added to the frames that come out, which may be later ones; the result is
    ///   `None` while there are none.
    pub fn forward(
        &self,
        x: Option<&Tensor>,
        prologue: Option<NormAct>,
        skip: Option<Skip>,
        stream: &mut Stream,
    ) -> Result<Option<Tensor>> {
        let window = stream.window(x, self.before, self.after)?;
        let mut count = 0;
        for part in window.iter().flatten() {
            count += part.dim(FRAMES)?;
        }
        let count = count.saturating_sub(self.before + self.after);
        let residual = match skip {
            Some(Skip(skip)) => stream.delay(skip, count)?,
            None => None,
        };
        window.map(|x| self.conv.forward(&x, Fusion { prologue, residual: residual.as_ref() })).transpose()
    }
}

/// Frames on their way round a convolution.
pub struct Skip<'a>(pub Option<&'a Tensor>);

/// Shift and scale of each norm, from the decoder's timestep.
struct Ada {
    shift_1: Table,
    scale_1: Table,
    shift_2: Table,
    scale_2: Table,
}

impl Ada {
    /// - `table`: (4, c). `temb`: (1, 4 c).
    fn new(table: &Tensor, temb: &Tensor) -> Result<Self> {
        let rows = temb.reshape(table.shape())?.add(table)?;
        let shift = |i: usize| Table::one(&rows.get(i)?);
        let scale = |i: usize| Table::one(&(rows.get(i)? + 1.0)?); // what is stored is the difference from one
        Ok(Self { shift_1: shift(0)?, scale_1: scale(1)?, shift_2: shift(2)?, scale_2: scale(3)? })
    }
}

/// Two convolutions beside a shortcut.
pub struct Resnet {
    conv1: TimeConv,
    conv2: TimeConv,
    shortcut: Option<Shortcut>,
    noise_scales: Option<[Tensor; 2]>,
    table: Option<Tensor>, // (4, inputs)
}

struct Shortcut {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    linear: Linear,
}

impl Shortcut {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (scale, shift) = (Table::one(&self.weight)?, Table::one(&self.bias)?);
        let prologue = NormAct::new(Norm::Layer, self.eps).scale(&scale).shift(&shift);
        self.linear.forward(&prologue.forward(x, self.linear.math())?)
    }
}

/// What kind of residual block.
#[derive(Clone, Copy)]
pub struct Kind {
    pub causal: bool,
    pub timestep: bool,
    pub noise: bool,
    pub eps: f64,
}

impl Resnet {
    /// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `LTXVideoResnetBlock3d`, at 58eb52c.
    pub fn load(inputs: usize, outputs: usize, kind: Kind, vb: Vars) -> Result<Self> {
        let shortcut = if inputs == outputs {
            None
        } else {
            let at = vb.pp("conv_shortcut.conv");
            // a kernel of one tap is a dense layer over channels
            let weight = at.get((outputs, inputs, 1, 1, 1), "weight")?.reshape((outputs, inputs))?;
            let linear = Linear::new(Matrix::new(weight), Some(at.get(outputs, "bias")?));
            let conv = path::Conv { inputs, outputs, kernel: [1; 3], stride: [1; 3], math: linear.math() };
            let narrow = Input::new(vb.device(), vb.dtype()).conv(conv, 1, 1) == ConvPath::Narrow;
            Some(Shortcut {
                weight: vb.get(inputs, "norm3.weight")?,
                bias: vb.get(inputs, "norm3.bias")?,
                eps: kind.eps,
                linear: if narrow { linear.in_f32() } else { linear },
            })
        };
        let scale = |name| vb.get((inputs, 1, 1), name)?.reshape(inputs)?.to_dtype(vb.dtype());
        Ok(Self {
            conv1: TimeConv::load(inputs, outputs, kind.causal, vb.pp("conv1"))?,
            conv2: TimeConv::load(outputs, outputs, kind.causal, vb.pp("conv2"))?,
            shortcut,
            noise_scales: if kind.noise {
                Some([scale("per_channel_scale1")?, scale("per_channel_scale2")?])
            } else {
                None
            },
            table: if kind.timestep {
                Some(vb.get((4, inputs), "scale_shift_table")?.to_dtype(vb.dtype())?)
            } else {
                None
            },
        })
    }

    /// - `temb`: (1, 4 c), where the decoder takes a timestep. `noise`: the generator of the decoder's own noise.
    pub fn forward(
        &self,
        x: Option<&Tensor>,
        temb: Option<&Tensor>,
        noise: &mut Noise,
        stream: &mut Stream,
    ) -> Result<Option<Tensor>> {
        let ada = match (&self.table, temb) {
            (Some(table), Some(temb)) => Some(Ada::new(table, temb)?),
            _ => None,
        };
        let prologue = |first: bool| match &ada {
            Some(ada) if first => pixel_norm().scale(&ada.scale_1).shift(&ada.shift_1).silu(),
            Some(ada) => pixel_norm().scale(&ada.scale_2).shift(&ada.shift_2).silu(),
            None => pixel_norm().silu(),
        };
        let shortcut = match &self.shortcut {
            Some(shortcut) => x.map(|x| shortcut.forward(x)).transpose()?,
            None => x.cloned(),
        };
        let h = self.conv1.forward(x, Some(prologue(true)), None, stream)?;
        let h = self.add_noise(h, 0, noise, stream)?;
        if self.noise_scales.is_none() {
            return self.conv2.forward(h.as_ref(), Some(prologue(false)), Some(Skip(shortcut.as_ref())), stream);
        }
        let h = self.conv2.forward(h.as_ref(), Some(prologue(false)), None, stream)?;
        let h = self.add_noise(h, 1, noise, stream)?;
        add_delayed(h, shortcut.as_ref(), stream)
    }

    /// One picture of noise for all frames, drawn when the first frames come.
    fn add_noise(&self, x: Option<Tensor>, i: usize, noise: &mut Noise, stream: &mut Stream) -> Result<Option<Tensor>> {
        let Some(scales) = &self.noise_scales else { return Ok(x) };
        let Some(x) = x else {
            stream.once(|| Ok(None))?;
            return Ok(None);
        };
        let (_, _, h, w, _) = x.dims5()?;
        let picture = stream.once(|| Ok(Some(Tensor::from_vec(noise.normal(h * w), (1, 1, h, w, 1), x.device())?)))?;
        let Some(picture) = picture else { return Ok(Some(x)) };
        let picture = picture.to_dtype(x.dtype())?; // drawn in f32
        Ok(Some(x.broadcast_add(&picture.broadcast_mul(&scales[i])?)?))
    }
}

/// `h` plus the frames of `skip` that belong to it.
fn add_delayed(h: Option<Tensor>, skip: Option<&Tensor>, stream: &mut Stream) -> Result<Option<Tensor>> {
    let count = h.as_ref().map_or(Ok(0), |h| h.dim(FRAMES))?;
    match (h, stream.delay(skip, count)?) {
        (Some(h), Some(skip)) => Ok(Some((h + skip)?)),
        _ => Ok(None),
    }
}

/// Residual blocks in a row, with the embedding of the timestep that they share.
pub struct Resnets {
    time_embedder: Option<TimestepEmbedder>,
    resnets: Vec<Resnet>,
}

impl Resnets {
    /// - `vb` holds `resnets.{j}` and, with a timestep, `time_embedder`.
    pub fn load(width: usize, layers: usize, kind: Kind, vb: Vars) -> Result<Self> {
        Ok(Self {
            time_embedder: if kind.timestep {
                Some(TimestepEmbedder::load(4 * width, vb.pp("time_embedder"))?)
            } else {
                None
            },
            resnets: (0..layers)
                .map(|j| Resnet::load(width, width, kind, vb.pp(format!("resnets.{j}"))))
                .collect::<Result<_>>()?,
        })
    }

    /// One by one, for those who feed them so.
    pub fn each(&self) -> &[Resnet] {
        &self.resnets
    }

    /// (1, 4 c), where there is a timestep.
    pub fn embed(&self, timestep: Option<f32>, like: &candle_core::Device) -> Result<Option<Tensor>> {
        match (&self.time_embedder, timestep) {
            (Some(embedder), Some(t)) => embedder.forward(&[t], like).map(Some),
            _ => Ok(None),
        }
    }

    pub fn forward(
        &self,
        mut x: Option<Tensor>,
        temb: Option<&Tensor>,
        noise: &mut Noise,
        stream: &mut Stream,
    ) -> Result<Option<Tensor>> {
        for resnet in &self.resnets {
            x = resnet.forward(x.as_ref(), temb, noise, stream)?;
        }
        Ok(x)
    }
}

/// Twice the size in time, height and width.
pub struct Upsampler {
    conv: TimeConv,
    residual: bool,
}

impl Upsampler {
    /// - `width`: channels in; `width / factor` come out.
    /// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `LTXVideoUpsampler3d`, at 58eb52c.
    pub fn load(width: usize, residual: bool, factor: usize, causal: bool, vb: Vars) -> Result<Self> {
        Ok(Self { conv: TimeConv::load(width, 8 * width / factor, causal, vb.pp("conv"))?, residual })
    }

    pub fn forward(&self, x: Option<Tensor>, stream: &mut Stream) -> Result<Option<Tensor>> {
        let h = self.conv.forward(x.as_ref(), None, None, stream)?;
        let skip = match self.residual {
            true => stream.delay(x.as_ref(), h.as_ref().map_or(Ok(0), |h| h.dim(FRAMES))?)?,
            false => None,
        };
        let y = h.map(|h| unfold(&h, skip.as_ref())).transpose()?;
        stream.drop_first(y, 1)
    }
}

/// The way down: frames and sides divided by `stride`.
pub enum Downsampler {
    /// A strided convolution (0.9.0, 0.9.1).
    Conv(Conv3d, usize),
    /// A convolution whose answer, and whose input averaged, are folded from space and time into channels (0.9.5 on).
    Fold { conv: TimeConv, stride: [usize; 3], outputs: usize },
}

impl Downsampler {
    /// - Source: diffusers `models/autoencoders/autoencoder_kl_ltx.py`, `LTXVideoDownsampler3d` and `LTXVideoDownBlock3D`, at 58eb52c.
    pub fn load(inputs: usize, outputs: usize, down: Down, causal: bool, vb: Vars) -> Result<Option<Self>> {
        Ok(match down {
            Down::No => None,
            Down::Conv(stride) => Some(Self::Conv(Conv3d::load(inputs, inputs, 3, stride, vb.pp("conv"))?, stride[0])),
            Down::Fold(stride) => {
                let conv = TimeConv::load(inputs, outputs / stride.iter().product::<usize>(), causal, vb.pp("conv"))?;
                Some(Self::Fold { conv, stride, outputs })
            }
        })
    }

    pub fn forward(&self, x: Option<&Tensor>, stream: &mut Stream) -> Result<Option<Tensor>> {
        match self {
            Self::Conv(conv, time) => {
                stream.strided_window(x, 2, *time)?.map(|x| conv.forward(&[x], Fusion::default())).transpose()
            }
            Self::Fold { conv, stride, outputs } => {
                let time = stride[0];
                let x = stream.repeat_first(x, time - 1)?;
                let h = conv.forward(x.as_ref(), None, None, stream)?;
                let h = stream.whole(h.as_ref(), time)?.map(|h| fold(&h, *stride, *outputs)).transpose()?;
                let skip = stream.whole(x.as_ref(), time)?.map(|x| fold(&x, *stride, *outputs)).transpose()?;
                add_delayed(h, skip.as_ref(), stream)
            }
        }
    }
}

/// Space and time into channels: (b, f, h, w, c) -> (b, f / st, h / sh, w / sw, c st sh sw), channel = ((c st + t) sh + i) sw + j,
/// and then means of neighbouring channels, so that there are `outputs`.
fn fold(x: &Tensor, [st, sh, sw]: [usize; 3], outputs: usize) -> Result<Tensor> {
    let (b, f, h, w, c) = x.dims5()?;
    let (f, h, w, mean) = (f / st, h / sh, w / sw, c * st * sh * sw / outputs);
    if let Some(y) = gather(x, [st, sh, sw], mean, Order::Lines)? {
        return Ok(y);
    }
    let x = x.reshape(vec![b, f, st, h, sh, w, sw, c])?.permute(vec![0, 1, 3, 5, 7, 2, 4, 6])?; // (b, f, h, w, c, t, i, j)
    if mean == 1 { x.reshape((b, f, h, w, outputs)) } else { x.reshape(vec![b, f, h, w, outputs, mean])?.mean(5) }
}

/// Channels into space and time: (b, f, h, w, 8 c) -> (b, 2 f, 2 h, 2 w, c), channel = c 8 + (t 2 + i) 2 + j; and `skip`, whose
/// channels then are fewer and stand side by side as often as they fit in.
fn unfold(x: &Tensor, skip: Option<&Tensor>) -> Result<Tensor> {
    if let Some(y) = spread(x, [2, 2, 2], skip, Order::Lines)? {
        return Ok(y);
    }
    let (b, f, h, w, c) = x.dims5()?;
    let y = x.reshape(vec![b, f, h, w, c / 8, 2, 2, 2])?.permute(vec![0, 1, 5, 2, 6, 3, 7, 4])?; // (b, f, t, h, i, w, j, c)
    let y = y.reshape((b, 2 * f, 2 * h, 2 * w, c / 8))?;
    match skip {
        Some(skip) => y + Tensor::cat(&vec![unfold(skip, None)?; c / skip.dim(4)?], 4)?,
        None => Ok(y),
    }
}
