//! The VAE's two networks, walked through over shapes.

use crate::models::cost::{Count, Widths};
use crate::models::ltx::config::{Down, UpBlock, VaeConfig};
use crate::models::ltx::cost::count::{Frames, Kind, Picture, Walk};
use crate::nn::stream::Chunking;

/// Frames that a kernel of three looks back and ahead.
fn kind(causal: bool, noise: bool) -> Kind {
    if causal { Kind { before: 2, after: 0, noise } } else { Kind { before: 1, after: 1, noise } }
}

/// One layer of the decoder, and the pictures that go into it.
#[derive(Clone, Copy)]
enum Layer<'a> {
    Conv(Picture),
    Resnet(usize, Kind),
    Up(&'a UpBlock, Kind),
}

/// The decoder over a clip or tile of latents (frames, height, width).
pub fn decoder(config: &VaeConfig, [frames, h, w]: [usize; 3], chunking: Chunking, widths: Widths) -> Count {
    let causal = config.decoder_causal;
    let latent = Picture { h: h as u64, w: w as u64, c: config.latent_channels as u64 };
    let mut picture = latent.with(config.decoder_width);
    let mut layers = vec![(Layer::Conv(picture), latent, 1)];
    let mid = kind(causal, config.decoder_mid_noise);
    layers.extend((0..config.decoder_mid).map(|_| (Layer::Resnet(config.decoder_width, mid), picture, 1)));
    let mut rate = 1;
    for block in &config.decoder {
        let kind = kind(causal, block.noise);
        if block.inputs != block.outputs {
            layers.push((Layer::Resnet(block.outputs, kind), picture, rate));
            picture = picture.with(block.outputs);
        }
        if block.up {
            layers.push((Layer::Up(block, kind), picture, rate));
            (picture, rate) =
                (Picture { h: 2 * picture.h, w: 2 * picture.w, c: picture.c / block.factor as u64 }, 2 * rate);
        }
        layers.extend((0..block.layers).map(|_| (Layer::Resnet(block.outputs, kind), picture, rate)));
    }
    let p = config.patch_size;
    let patches = picture.with(3 * p * p);
    let run = Run { layers, ends: (picture, patches, rate), plain: kind(causal, false), chunking };
    let mut walk = Walk::new(widths);
    walk.tracks = vec![vec![]; run.layers.len() + 1];
    let group = chunking.latent_frames.clamp(1, frames);
    for first in (0..frames).step_by(group) {
        let count = group.min(frames - first);
        let x = Frames { count: count as u64, bytes: 0 };
        run.feed(0, x, first + count == frames, &mut walk);
    }
    walk.count
}

/// `Decoder::feed`, over shapes.
struct Run<'a> {
    /// Each with what goes in, and the frames that a latent frame has become.
    layers: Vec<(Layer<'a>, Picture, usize)>,
    ends: (Picture, Picture, usize),
    plain: Kind,
    chunking: Chunking,
}

impl Run<'_> {
    /// - `x` is let go.
    fn feed(&self, i: usize, x: Frames, last: bool, walk: &mut Walk) {
        // every layer has slots of its own
        walk.slots = std::mem::take(&mut walk.tracks[i]);
        walk.next_group(last);
        let Some(&(layer, input, _)) = self.layers.get(i) else {
            let (input, patches, _) = self.ends;
            let y = walk.time_conv(x.count, input, patches, self.plain, None);
            walk.tracks[i] = std::mem::take(&mut walk.slots);
            let pixels = walk.make(patches, y.count);
            walk.drop(y);
            walk.drop(x);
            // once more flat, in f32, and as 8-bit frames
            let flat = 4 * patches.values(pixels.count);
            walk.count.take(flat);
            (0..pixels.count).for_each(|_| walk.count.take(patches.values(1)));
            (0..pixels.count).for_each(|_| walk.count.give(patches.values(1)));
            walk.count.give(flat);
            return walk.drop(pixels);
        };
        let y = match layer {
            Layer::Conv(output) => {
                let y = walk.time_conv(x.count, input, output, self.plain, None);
                walk.drop(x);
                y
            }
            Layer::Resnet(outputs, kind) => {
                let y = walk.resnet(x, input, outputs, kind);
                walk.drop(x);
                y
            }
            Layer::Up(block, kind) => walk.up(x, input, block, kind).0,
        };
        walk.tracks[i] = std::mem::take(&mut walk.slots);
        let rate = self.layers.get(i + 1).map_or(self.ends.2, |next| next.2);
        let most = self.chunking.frames(rate) as u64;
        if y.count == 0 {
            walk.drop(y);
            if last {
                self.feed(i + 1, Frames::default(), true, walk);
            }
        } else if y.count <= most {
            self.feed(i + 1, y, last, walk);
        } else {
            for first in (0..y.count).step_by(most as usize) {
                let part = Frames { count: most.min(y.count - first), bytes: 0 };
                self.feed(i + 1, part, last && first + most >= y.count, walk);
            }
            walk.drop(y);
        }
    }
}

/// The encoder over pixels (frames, height, width), `group` latent frames at a time.
pub fn encoder(config: &VaeConfig, [frames, h, w]: [usize; 3], group: usize, widths: Widths) -> Count {
    let mut walk = Walk::new(widths);
    let kind = kind(config.encoder_causal, false);
    let (p, time) = (config.patch_size, config.strides()[0]);
    let patches = Picture { h: (h / p) as u64, w: (w / p) as u64, c: (3 * p * p) as u64 };
    let (mut first, group) = (0, group.max(1));
    while first < frames {
        let count = if first == 0 { 1 + (group - 1) * time } else { group * time };
        let count = count.min(frames - first);
        first += count;
        walk.next_group(first == frames);
        let pixels = walk.make(patches, count as u64);
        let x = walk.make(patches, count as u64);
        let mut picture = patches.with(config.encoder.first().map_or(0, |b| b.inputs));
        let mut y = walk.time_conv(x.count, patches, picture, kind, None);
        for block in &config.encoder {
            y = walk.resnets(y, picture, block.layers, kind);
            (y, picture) = walk.down(y, picture, block, kind);
            if !matches!(block.down, Down::Fold(_)) && block.inputs != block.outputs {
                let z = walk.resnet(y, picture, block.outputs, kind);
                walk.drop(y);
                (y, picture) = (z, picture.with(block.outputs));
            }
        }
        y = walk.resnets(y, picture, config.encoder_mid, kind);
        let moments = walk.time_conv(y.count, picture, picture.with(config.latent_channels + 1), kind, None);
        walk.drop(y);
        walk.drop(x);
        walk.drop(pixels);
        let _ = moments; // kept until the clip is whole
    }
    walk.count
}
