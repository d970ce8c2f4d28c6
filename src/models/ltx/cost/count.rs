//! Bytes in use while a network runs, counted from shapes alone: the loops of the network are walked through in their order, and
//! every tensor is taken and given back where the code makes it and lets it go.

use crate::models::cost::{Count, Widths};
use crate::models::ltx::config::{Down, DownBlock, UpBlock};
use crate::nn::kernel::{row_stride, winograd};
use crate::nn::path::{self, ConvPath, RowPath};

/// Pictures of one layer: height, width, channels.
#[derive(Clone, Copy, Debug)]
pub struct Picture {
    pub h: u64,
    pub w: u64,
    pub c: u64,
}

impl Picture {
    pub fn with(self, c: usize) -> Self {
        Self { c: c as u64, ..self }
    }

    pub fn values(self, frames: u64) -> u64 {
        frames * self.h * self.w * self.c
    }
}

/// Bytes from pixel to pixel, where products read them.
fn row_bytes(channels: u64, operand: u64) -> u64 {
    row_stride(channels as usize, operand as usize) as u64 * operand
}

/// Frames on their way: how many, and the bytes that they hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    pub count: u64,
    pub bytes: u64,
}

/// Of one layer, as in `nn::stream`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    frames: u64,
    started: bool,
}

/// A VAE on its way through a clip.
pub struct Walk {
    pub count: Count,
    pub slots: Vec<Slot>,
    /// Slots of layers that are fed by themselves, while others are at work.
    pub tracks: Vec<Vec<Slot>>,
    cursor: usize,
    last: bool,
    widths: Widths,
}

/// A convolution.
#[derive(Clone, Copy)]
pub struct Conv {
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    /// Clips that it is made over, one after the other where a kernel of our own does it.
    pub batch: u64,
}

impl Conv {
    /// Over 3 x 3 x 3.
    pub const PLAIN: Conv = Conv { kernel: [3; 3], stride: [1; 3], batch: 1 };
}

/// A resident block's options.
#[derive(Clone, Copy)]
pub struct Kind {
    pub before: u64,
    pub after: u64,
    pub noise: bool,
}

impl Walk {
    pub fn new(widths: Widths) -> Self {
        Self { count: Count::default(), slots: vec![], tracks: vec![], cursor: 0, last: false, widths }
    }

    pub fn next_group(&mut self, last: bool) {
        (self.cursor, self.last) = (0, last);
    }

    fn slot(&mut self) -> &mut Slot {
        if self.cursor == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.cursor += 1;
        &mut self.slots[self.cursor - 1]
    }

    pub fn bytes(&self, picture: Picture, frames: u64) -> u64 {
        picture.values(frames) * self.widths.activation
    }

    /// New frames of a size.
    pub fn make(&mut self, picture: Picture, count: u64) -> Frames {
        let bytes = self.bytes(picture, count);
        self.count.take(bytes);
        Frames { count, bytes }
    }

    pub fn drop(&mut self, frames: Frames) {
        self.count.give(frames.bytes);
    }

    /// `Stream::window`. `joined`: whether what reads it joins its parts, where others read them where they are.
    fn window(&mut self, x: u64, picture: Picture, before: u64, after: u64, joined: bool) -> Frames {
        let (last, one) = (self.last, self.bytes(picture, 1));
        let slot = self.slot();
        let held = std::mem::take(&mut slot.frames);
        let (mut total, mut parts) = (held, (held > 0) as u64);
        if x > 0 {
            if !slot.started && before > 0 {
                (total, parts) = (total + before, parts + 1);
            }
            slot.started = true;
            (total, parts) = (total + x, parts + 1);
        }
        if last && after > 0 && parts > 0 {
            (total, parts) = (total + after, parts + 1);
        }
        let context = before + after;
        let keep = if last { 0 } else { context.min(total) };
        slot.frames = keep;
        let during = if !joined {
            held * one
        } else if parts > 1 {
            total * one
        } else {
            0
        };
        if joined {
            self.count.take(during);
        }
        self.count.take(keep * one);
        if joined {
            self.count.give(held * one);
        }
        if total > context {
            return Frames { count: total, bytes: during };
        }
        self.count.give(during);
        Frames::default()
    }

    /// `Stream::delay` and `Stream::whole`: takes `x` frames in, gives `out` out, keeps the rest.
    fn delay(&mut self, x: u64, picture: Picture, out: u64) -> Frames {
        let one = self.bytes(picture, 1);
        let slot = self.slot();
        let held = std::mem::take(&mut slot.frames);
        let total = held + x;
        let rest = total.saturating_sub(out);
        slot.frames = rest;
        let all = if held > 0 && x > 0 { total * one } else { 0 };
        self.count.take(all);
        self.count.take(rest * one);
        self.count.give(held * one);
        if out > 0 {
            return Frames { count: out, bytes: all };
        }
        self.count.give(all);
        Frames::default()
    }

    /// The path of a convolution of `frames` frames, and the bytes of a number that its products read.
    fn path(&self, conv: Conv, frames: u64, input: Picture, output: Picture) -> (ConvPath, u64) {
        let Widths { operand, input: given, product, .. } = self.widths;
        let Conv { kernel, stride, batch } = conv;
        let (inputs, outputs) = (input.c as usize, output.c as usize);
        let sizes = path::Conv { inputs, outputs, kernel, stride, math: product.math };
        let path = given.conv(sizes, batch as usize, (batch * input.values(frames)) as usize);
        (path, if path == ConvPath::Narrow { 4 } else { operand })
    }

    /// `Conv3d::forward`: those that come out.
    /// - `frames`, `out`: frames of a clip that go in and come out.
    pub fn conv(&mut self, conv: Conv, frames: u64, input: Picture, output: Picture, out: u64) -> Frames {
        let (path, operand) = self.path(conv, frames, input, output);
        let [_, rows, columns] = conv.kernel.map(|k| k as u64 - 1);
        let direct = conv.kernel.iter().product::<usize>() as u64 * output.values(out) * input.c;
        let (count, y) = (conv.batch * out, self.bytes(output, conv.batch * out));
        let products = match path {
            ConvPath::Paired => out * winograd::multiplications(input.h, input.w) * input.c * output.c,
            _ => direct,
        };
        self.count.operations += 2 * conv.batch * products;
        match path {
            ConvPath::Narrow | ConvPath::Direct | ConvPath::Paired => {
                let copy = match path {
                    ConvPath::Paired => winograd::bytes(frames, input.h, input.w, input.c, operand),
                    _ => frames * input.h * (input.w + columns) * row_bytes(input.c, operand),
                };
                [y, copy].into_iter().for_each(|bytes| self.count.take(bytes));
                self.count.give(copy);
            }
            ConvPath::Cuda => {
                let window = self.bytes(input, conv.batch * frames);
                [window, y].into_iter().for_each(|bytes| self.count.take(bytes));
                self.count.give(window);
            }
            ConvPath::Candle => {
                // padded twice; then the sum so far, a tap's rows, their product and the sum with it
                let wide = Picture { h: input.h + rows, w: input.w + columns, ..input };
                let (padded, tap) = (self.bytes(wide, conv.batch * frames), self.bytes(input, count));
                [padded, padded].into_iter().for_each(|bytes| self.count.take(bytes));
                self.count.give(padded);
                [tap, y, y, y].into_iter().for_each(|bytes| self.count.take(bytes));
                [padded, tap, y, y].into_iter().for_each(|bytes| self.count.give(bytes));
            }
        }
        Frames { count, bytes: y }
    }

    /// `TimeConv::forward`. `skip`: frames that go round it.
    pub fn time_conv(&mut self, x: u64, input: Picture, output: Picture, kind: Kind, skip: Option<u64>) -> Frames {
        let Kind { before, after, .. } = kind;
        let (path, _) = self.path(Conv::PLAIN, x + before + after, input, output);
        let joined = matches!(path, ConvPath::Cuda | ConvPath::Candle);
        let window = self.window(x, input, before, after, joined);
        let count = window.count.saturating_sub(before + after);
        let residual = skip.map(|skip| self.delay(skip, output, count)).unwrap_or_default();
        let y = if count > 0 { self.conv(Conv::PLAIN, window.count, input, output, count) } else { Frames::default() };
        self.drop(window);
        self.drop(residual);
        y
    }

    /// The path of what goes between products.
    pub fn rows(&self, picture: Picture, frames: u64) -> RowPath {
        self.widths.input.rows(picture.values(frames) as usize)
    }

    /// `add_noise`: a sum in place of its input.
    fn noise(&mut self, x: Frames, picture: Picture) -> Frames {
        self.slot();
        let y = self.make(picture, x.count);
        self.drop(x);
        y
    }

    /// `add_delayed`.
    fn add_delayed(&mut self, h: Frames, skip: u64, picture: Picture) -> Frames {
        let residual = self.delay(skip, picture, h.count);
        let y = self.make(picture, h.count);
        self.drop(residual);
        self.drop(h);
        y
    }

    /// `Resnet::forward`; `x` stays its caller's.
    pub fn resnet(&mut self, x: Frames, input: Picture, outputs: usize, kind: Kind) -> Frames {
        let output = input.with(outputs);
        let shortcut = if input.c != output.c && x.count > 0 {
            let (_, operand) = self.path(Conv { kernel: [1; 3], ..Conv::PLAIN }, x.count, input, output);
            let normed = x.count * input.h * input.w * row_bytes(input.c, operand);
            self.count.take(normed);
            let y = self.make(output, x.count);
            self.count.give(normed);
            self.count.operations += 2 * output.values(x.count) * input.c;
            y
        } else {
            Frames::default()
        };
        let mut h = self.time_conv(x.count, input, output, kind, None);
        let y = if kind.noise {
            h = self.noise(h, output);
            let y = self.time_conv(h.count, output, output, kind, None);
            let y = self.noise(y, output);
            self.add_delayed(y, x.count, output)
        } else {
            self.time_conv(h.count, output, output, kind, Some(x.count))
        };
        self.drop(h);
        self.drop(shortcut);
        y
    }

    /// Residual blocks in a row.
    pub fn resnets(&mut self, mut x: Frames, picture: Picture, layers: usize, kind: Kind) -> Frames {
        for _ in 0..layers {
            let y = self.resnet(x, picture, picture.c as usize, kind);
            self.drop(x);
            x = y;
        }
        x
    }

    /// `Upsampler::forward`: twice the size.
    pub fn up(&mut self, x: Frames, input: Picture, block: &UpBlock, kind: Kind) -> (Frames, Picture) {
        let conv_out = input.with(8 * input.c as usize / block.factor);
        let h = self.time_conv(x.count, input, conv_out, kind, None);
        let large = Picture { h: 2 * input.h, w: 2 * input.w, c: input.c / block.factor as u64 };
        let skip = if block.residual { self.delay(x.count, input, h.count) } else { Frames::default() };
        let mut y = self.make(large, 2 * h.count); // unfolded
        if block.residual && self.rows(conv_out, h.count) == RowPath::Candle {
            // what goes round it unfolded, side by side with itself, and the sum
            let part = self.bytes(input, h.count);
            self.count.take(part);
            let wide = self.make(large, 2 * h.count);
            self.count.give(part);
            let sum = self.make(large, 2 * h.count);
            self.drop(wide);
            self.drop(y);
            y = sum;
        }
        self.drop(h);
        self.drop(skip);
        self.drop(x);
        let slot = self.slot();
        if y.count > 0 && !slot.started {
            slot.started = true;
            y.count -= 1; // a view of the rest
        }
        (y, large)
    }

    /// `Downsampler::forward`.
    pub fn down(&mut self, x: Frames, input: Picture, block: &DownBlock, kind: Kind) -> (Frames, Picture) {
        let stride = block.down.stride().map(|s| s as u64);
        let small = Picture { h: input.h / stride[1], w: input.w / stride[2], c: block.outputs as u64 };
        match block.down {
            Down::No => (x, input),
            Down::Conv(_) => {
                let output = small.with(block.inputs);
                let one = self.bytes(input, 1);
                let slot = self.slot();
                let held = std::mem::take(&mut slot.frames);
                let total = held + x.count + if x.count > 0 && !slot.started { kind.before } else { 0 };
                slot.started |= x.count > 0;
                let windows = (total + stride[0]).saturating_sub(kind.before + 1) / stride[0];
                let rest = total - windows * stride[0];
                slot.frames = rest;
                self.count.take(total * one);
                self.count.take(rest * one);
                self.count.give(held * one);
                let conv = Conv { stride: block.down.stride(), ..Conv::PLAIN };
                let y = match windows {
                    0 => Frames::default(),
                    n => self.conv(conv, (n - 1) * stride[0] + kind.before + 1, input, output, n),
                };
                self.count.give(total * one);
                self.drop(x);
                (y, output)
            }
            Down::Fold(_) => {
                let slot = self.slot();
                let first = if x.count > 0 && !slot.started && stride[0] > 1 { stride[0] - 1 } else { 0 };
                slot.started |= first > 0;
                let all = match first {
                    0 => Frames { bytes: 0, ..x },
                    _ => self.make(input, x.count + first),
                };
                let narrow = input.with(block.outputs / stride.iter().product::<u64>() as usize);
                let h = self.time_conv(all.count, input, narrow, kind, None);
                let whole = |held: u64, x: u64| (held + x) / stride[0] * stride[0];
                let held = self.slots.get(self.cursor).map_or(0, |slot| slot.frames);
                let out = whole(held, h.count);
                let kept = self.delay(h.count, narrow, out);
                let y = self.make(small, out / stride[0]);
                self.drop(kept);
                self.drop(h);
                let held = self.slots.get(self.cursor).map_or(0, |slot| slot.frames);
                let out = whole(held, all.count);
                let kept = self.delay(all.count, input, out);
                let plain = self.rows(input, out) == RowPath::Candle;
                let folded = if plain { self.bytes(input, out) } else { 0 }; // before means are taken
                self.count.take(folded);
                let skip = self.make(small, out / stride[0]);
                self.count.give(folded);
                self.drop(kept);
                let y = self.add_delayed(y, skip.count, small);
                self.drop(skip);
                self.drop(all);
                self.drop(x);
                (y, small)
            }
        }
    }
}
