//! 3-D convolution over channels-last frames. Time is padded by the caller (see `stream`), space with zeros here.

#[cfg(test)]
mod tests;

use super::kernel::memory::filled;
use super::kernel::micro::Kernel;
use super::kernel::product::{self, Line, Operand, Piece, RowEpilogue};
use super::kernel::rows::{RowNormAct, norm_act};
use super::kernel::{self, Job, MatmulType};
use super::matrix::Matrix;
use super::norm::NormAct;
use super::paired::Paired;
#[cfg(feature = "cuda")]
use super::path::RowPath;
use super::path::{self, ConvPath, Input};
use super::read::Read;
use super::vars::Vars;
use super::{is_stand_in, stream::FRAMES};
use candle_core::{DType, Device, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// A convolution whose kernel lies as the products read it.
#[derive(Clone)]
pub struct Conv3d {
    weight: Weight,
    bias: Tensor,
    sizes: path::Conv,
}

#[derive(Clone)]
enum Weight {
    /// (out, kt kh kw in)
    Rows(Matrix),
    Paired(Paired),
    /// (out, in, kt, kh, kw), as it is trained: what is made of it once would not follow it.
    Trained(Tensor),
}

/// What goes before a convolution and after it, in the same pass over memory.
#[derive(Clone, Copy, Default)]
pub struct Fusion<'a> {
    /// Done to each pixel before.
    pub prologue: Option<NormAct<'a>>,
    /// Added to the result.
    pub residual: Option<&'a Tensor>,
}

impl Fusion<'_> {
    /// What goes before, in a pass of its own.
    fn before(&self, x: &Tensor) -> Result<Tensor> {
        self.prologue.map_or(Ok(x.clone()), |prologue| prologue.forward(x, MatmulType::F32))
    }

    /// What goes after, in a pass of its own.
    fn after(&self, y: Tensor, bias: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if Input::of(&y, [Some(bias), self.residual].into_iter().flatten()).rows(y.elem_count()) == RowPath::Cuda {
            let how = super::cuda::Epilogue { bias: Some(bias), residual: self.residual, ..Default::default() };
            return super::cuda::finish(&y, how);
        }
        let y = y.broadcast_add(bias)?;
        self.residual.map_or(Ok(y.clone()), |residual| &y + residual)
    }
}

impl Conv3d {
    /// - `vb` holds `weight` (out, in, k, k, k) and `bias` (out). `kernel` is odd.
    pub fn load(inputs: usize, outputs: usize, kernel: usize, stride: [usize; 3], vb: Vars) -> Result<Self> {
        let weight = vb.get((outputs, inputs, kernel, kernel, kernel), "weight")?;
        Self::new(&weight, vb.get(outputs, "bias")?, stride)
    }

    /// - `weight`: (out, in, kt, kh, kw). `bias`: (out).
    pub fn new(weight: &Tensor, bias: Tensor, stride: [usize; 3]) -> Result<Self> {
        let (outputs, inputs, kt, kh, kw) = weight.dims5()?;
        let kernel = [kt, kh, kw];
        let flat = (outputs, kt * kh * kw * inputs);
        let sizes = path::Conv { inputs, outputs, kernel, stride, math: path::math(weight.dtype()) };
        // on GPUs activations are what weights are
        let dtype = if weight.device().is_cpu() { DType::F32 } else { weight.dtype() };
        let path = Input::new(weight.device(), dtype).conv(sizes, 1, 1);
        let weight = if weight.track_op() {
            Weight::Trained(weight.clone())
        } else if is_stand_in(weight) {
            let one = (0..5).try_fold(weight.clone(), |one, _| one.get(0))?;
            Weight::Rows(Matrix::new(one.broadcast_as(flat)?)) // which takes no memory either
        } else if path == ConvPath::Paired {
            let weight = weight.contiguous()?;
            let read = Read::new(&weight)?;
            Weight::Paired(Paired::new(read.rows()?, outputs, inputs))
        } else {
            let rows = Matrix::new(channels_last(weight)?.reshape(flat)?);
            Weight::Rows(if path == ConvPath::Narrow { rows.in_f32() } else { rows })
        };
        Ok(Self { weight, bias, sizes })
    }

    /// Frames that its kernel spans.
    pub fn frames(&self) -> usize {
        self.sizes.kernel[0]
    }

    /// - `x`: (b, f + kt - 1, h, w, in), padded in time, in parts that follow each other. Returns (b, ceil(f / st), ceil(h / sh), ceil(w / sw), out).
    pub fn forward(&self, x: &[Tensor], around: Fusion) -> Result<Tensor> {
        match self.path(x, around) {
            ConvPath::Narrow | ConvPath::Paired | ConvPath::Direct => return self.implicit(x, around),
            #[cfg(feature = "cuda")]
            ConvPath::Cuda => return self.on_cuda(x, around),
            _ => (),
        }
        let joined;
        let whole = match x {
            [whole] => whole,
            parts => {
                joined = Tensor::cat(parts, FRAMES)?;
                &joined
            }
        };
        self.taps(whole, around)
    }

    /// The path that all parts take. Of no parts the CPU's own form says so.
    fn path(&self, x: &[Tensor], around: Fusion) -> ConvPath {
        let tables = around.prologue.iter().flat_map(NormAct::tables);
        let others: Vec<&Tensor> = [Some(&self.bias), around.residual].into_iter().flatten().chain(tables).collect();
        let plain = match &self.weight {
            Weight::Rows(rows) => rows.is_plain(),
            Weight::Paired(_) => false,
            Weight::Trained(_) => true,
        };
        let path = |x: &Tensor| {
            let input = Input::of(x, others.iter().copied()).or_plain(plain);
            input.conv(self.sizes, x.dim(0).unwrap_or(0), x.elem_count())
        };
        x.iter().map(path).reduce(|a, b| if a == b { a } else { ConvPath::Candle }).unwrap_or(ConvPath::Direct)
    }

    /// The form of CUDA's own kernels.
    #[cfg(feature = "cuda")]
    fn on_cuda(&self, x: &[Tensor], around: Fusion) -> Result<Tensor> {
        let Weight::Rows(rows) = &self.weight else { bail!("conv3d: a kernel in pairs on a GPU") };
        let x = super::cuda::window(x, around.prologue.map(|prologue| prologue.row_ops()))?;
        let path::Conv { kernel, stride, .. } = self.sizes;
        super::cuda::conv(&x, &rows.tensor()?, &self.bias, around.residual, kernel, stride)
    }

    /// The CPU form. Frames are copied once, in the type that products read and with zeros left and right; then every tap is the
    /// same rows a constant distance further on, so the products read the copy where it lies. Or they are made in pairs.
    fn implicit(&self, parts: &[Tensor], around: Fusion) -> Result<Tensor> {
        let Conv3d { weight, bias, sizes } = self;
        let path::Conv { kernel: [kt, ..], inputs: c, outputs, stride: [st, sh, sw], .. } = sizes;
        let Some(first) = parts.first() else { bail!("conv3d: no frames") };
        let (b, _, h, w, _) = first.dims5()?;
        let parts = parts.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let reads = parts.iter().map(Read::new).collect::<Result<Vec<_>>>()?;
        let mut clips: Vec<Vec<&[f32]>> = vec![vec![]; b];
        for (part, read) in parts.iter().zip(&reads) {
            let frames = part.dim(FRAMES)?;
            if part.dims() != [b, frames, h, w, *c] {
                bail!("conv3d: {:?} where {:?} goes before, in {c} channels", part.dims(), first.dims())
            }
            let values = read.slice::<f32>()?.chunks((frames * h * w * c).max(1));
            clips.iter_mut().zip(values).for_each(|(clip, values)| clip.extend(values.chunks(h * w * c)));
        }
        let frames = clips.first().map_or(0, Vec::len);
        if frames < *kt {
            bail!("conv3d: {frames} frames for a kernel over {kt}")
        }
        let out = [(frames + 1 - kt).div_ceil(*st), h.div_ceil(*sh), w.div_ceil(*sw)];
        let shape = (b, out[0], out[1], out[2], *outputs);
        let bias = Read::new(bias)?;
        let residual = around.residual.map(Tensor::contiguous).transpose()?;
        let residual = residual.as_ref().map(Read::new).transpose()?;
        let residual: Option<&[f32]> = residual.as_ref().map(|r| r.slice()).transpose()?;
        let size = out.iter().product::<usize>() * outputs;
        if residual.is_some_and(|r| r.len() != b * size) {
            bail!("conv3d: the residual has another size than {shape:?}")
        }
        let read = around.prologue.as_ref().map(NormAct::read).transpose()?;
        let how = read.as_ref().map(|read| read.rows(*c, b * frames * h * w)).transpose()?;
        let how = |pixel: usize| how.as_ref().map_or(RowNormAct::default(), |how| how(pixel));
        let bias = bias.slice::<f32>()?;
        let clips = clips.iter().enumerate();
        let finish = |i: usize| {
            let residual = residual.map(|r| &r[i * size..][..size]);
            RowEpilogue { bias: Some(bias), residual, ..RowEpilogue::default() }
        };
        let y = match weight {
            Weight::Rows(rows) => rows.rows(|weights| {
                let run = |y: &mut [MaybeUninit<f32>]| {
                    for ((i, x), y) in clips.zip(y.chunks_mut(size)) {
                        let job = Run { conv: self, x, size: [h, w], out, how: &how, weights, finish: finish(i), y };
                        kernel::dispatch(rows.math(), job)
                    }
                };
                // SAFETY: a product writes all of its result.
                unsafe { filled(b * size, run) }
            })?,
            Weight::Paired(paired) => {
                let run = |y: &mut [MaybeUninit<f32>]| {
                    for ((i, x), y) in clips.zip(y.chunks_mut(size)) {
                        paired.convolve(x, [h, w], &how, finish(i), y)
                    }
                };
                // SAFETY: as above.
                unsafe { filled(b * size, run) }
            }
            Weight::Trained(_) => bail!("conv3d: a kernel that is trained where products read rows"),
        };
        Tensor::from_vec(y, shape, &Device::Cpu)
    }

    /// The plain form: one matrix product a tap, added up.
    fn taps(&self, x: &Tensor, around: Fusion) -> Result<Tensor> {
        let path::Conv { kernel: [kt, kh, kw], outputs, stride, .. } = self.sizes;
        let (b, frames, h, w, inputs) = x.dims5()?;
        let weight = match &self.weight {
            Weight::Rows(rows) => rows.tensor()?,
            Weight::Paired(paired) => {
                Tensor::from_vec(paired.kernel(), (outputs, kt * kh * kw * inputs), &Device::Cpu)?
            }
            Weight::Trained(weight) => weight.permute((0, 2, 3, 4, 1))?,
        };
        let weight = weight.to_dtype(x.dtype())?.reshape((outputs, kt, kh, kw, inputs))?;
        let x = around.before(x)?;
        let x = x.pad_with_zeros(2, kh / 2, kh / 2)?.pad_with_zeros(3, kw / 2, kw / 2)?;
        let mut sum: Option<Tensor> = None;
        let mut shape = (0, 0, 0);
        for t in 0..kt {
            for i in 0..kh {
                for j in 0..kw {
                    let tap = x.narrow(FRAMES, t, frames + 1 - kt)?.narrow(2, i, h)?.narrow(3, j, w)?;
                    let tap = every(&every(&every(&tap, FRAMES, stride[0])?, 2, stride[1])?, 3, stride[2])?;
                    shape = (tap.dim(FRAMES)?, tap.dim(2)?, tap.dim(3)?);
                    let kernel = weight.narrow(1, t, 1)?.narrow(2, i, 1)?.narrow(3, j, 1)?.reshape(((), inputs))?; // (out, in)
                    let y = tap.reshape(((), inputs))?.matmul(&kernel.t()?)?;
                    sum = Some(match sum {
                        Some(sum) => (sum + y)?,
                        None => y,
                    });
                }
            }
        }
        let Some(sum) = sum else { bail!("conv3d: empty kernel") };
        around.after(sum.reshape((b, shape.0, shape.1, shape.2, outputs))?, &self.bias)
    }
}

/// (out, in, kt, kh, kw) -> (out, kt, kh, kw, in), contiguous.
fn channels_last(weight: &Tensor) -> Result<Tensor> {
    let order = (0, 2, 3, 4, 1);
    if !weight.device().is_cpu() || weight.track_op() || !weight.is_contiguous() {
        return weight.permute(order)?.contiguous();
    }
    let (outputs, inputs, kt, kh, kw) = weight.dims5()?;
    let shape = (outputs, kt, kh, kw, inputs);
    match weight.dtype() {
        DType::F32 => turned::<f32>(weight, inputs, kt * kh * kw, shape),
        DType::BF16 => turned::<half::bf16>(weight, inputs, kt * kh * kw, shape),
        _ => weight.permute(order)?.contiguous(),
    }
}

/// The kernel of each output turned over, on all threads.
fn turned<T: WithDType>(weight: &Tensor, inputs: usize, taps: usize, shape: impl Into<Shape>) -> Result<Tensor> {
    let read = Read::new(weight)?;
    let from = read.slice::<T>()?;
    let mut to = vec![T::zero(); from.len()];
    let size = (inputs * taps).max(1);
    to.par_chunks_mut(size).zip(from.par_chunks(size)).for_each(|(to, from)| {
        for (tap, to) in to.chunks_mut(inputs).enumerate() {
            to.iter_mut().enumerate().for_each(|(c, to)| *to = from[c * taps + tap]);
        }
    });
    Tensor::from_vec(to, shape, &Device::Cpu)
}

/// Every `stride`-th entry along `axis`, from the first.
fn every(x: &Tensor, axis: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let index: Vec<u32> = (0..x.dim(axis)? as u32).step_by(stride).collect();
    x.contiguous()?.index_select(&Tensor::new(index, x.device())?, axis)
}

struct Run<'a, F> {
    conv: &'a Conv3d,
    /// Frames of (h, w, in).
    x: &'a [&'a [f32]],
    size: [usize; 2],
    out: [usize; 3],
    how: &'a F,
    weights: kernel::pack::Rows<'a>,
    finish: RowEpilogue<'a>,
    y: &'a mut [MaybeUninit<f32>],
}

impl<'b, F: Fn(usize) -> RowNormAct<'b> + Sync> Job for Run<'_, F> {
    type Done = ();

    fn run<K: Kernel>(self) {
        let path::Conv { kernel: [kt, kh, kw], inputs: c, outputs: n, stride: [st, sh, sw], .. } = self.conv.sizes;
        let (frames, [h, w], [of, oh, ow]) = (self.x.len(), self.size, self.out);
        let side = kw / 2;
        let pixel_stride = kernel::row_stride(c, size_of::<K::Elem>()); // from pixel to pixel
        let line = (w + 2 * side) * pixel_stride;
        let zero = MaybeUninit::new(K::Elem::default());
        let write = |copy: &mut [MaybeUninit<K::Elem>]| {
            copy.par_chunks_mut(line).enumerate().with_min_len(4).for_each(|(i, copy)| {
                let (inner, right) = copy.split_at_mut((side + w) * pixel_stride);
                let (left, inner) = inner.split_at_mut(side * pixel_stride);
                left.fill(zero);
                right.fill(zero);
                let pixels = inner.chunks_mut(pixel_stride).zip(self.x[i / h][i % h * w * c..][..w * c].chunks(c));
                for (j, (to, from)) in pixels.enumerate() {
                    let how = (self.how)(i * w + j);
                    let (to, rest) = to.split_at_mut(c);
                    // SAFETY: K was chosen for this CPU.
                    unsafe {
                        K::vectorised(
                            #[inline(always)]
                            || norm_act::<K::V, K::Elem>(&how, from, to),
                        )
                    }
                    rest.fill(zero);
                }
            });
        };
        // SAFETY: pixels, sides and what lies between pixels are written.
        let copy = unsafe { filled(frames * h * line, write) };
        let mut lines = Vec::with_capacity(of * oh);
        for f in 0..of {
            for i in 0..oh {
                let start = (f * st * h + i * sh) * line;
                lines.push(Line { start, count: ow, row: (i * sh) as isize });
            }
        }
        let mut pieces = vec![];
        for t in 0..kt {
            for r in 0..kh {
                let row = r as isize - (kh / 2) as isize;
                let shift = ((t * h) as isize + row) * line as isize;
                let k0 = (t * kh + r) * kw * c;
                if pixel_stride == c {
                    // the taps of a row are neighbours
                    pieces.push(Piece { shift, k0, k: kw * c, row });
                } else {
                    let taps = (0..kw).map(|s| Piece {
                        shift: shift + (s * pixel_stride) as isize,
                        k0: k0 + s * c,
                        k: c,
                        row,
                    });
                    pieces.extend(taps);
                }
            }
        }
        let operand = Operand { data: &copy, stride: sw * pixel_stride, lines, pieces, height: h as isize };
        product::product::<K, f32>(&operand, self.weights, n, self.finish, self.y, n);
    }
}
