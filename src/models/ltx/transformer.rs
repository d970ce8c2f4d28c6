//! The diffusion transformer of LTX-Video. Unusual about it:
//! - every token sees every other in space and time at once; there is no factorised attention and no text in the sequence;
//! - q and k are normed over all heads together and turned by a rotary table over all channels, before heads are split;
//! - cross-attention reads the stream without a norm and without a gate;
//! - each token may have a timestep of its own, so the adaptive norms take one row a distinct timestep and gather.

use super::config::TransformerConfig;
use crate::nn::attention;
use crate::nn::kernel::MatmulType;
use crate::nn::linear::{Epilogue, Linear};
use crate::nn::norm::{Norm, NormAct};
use crate::nn::path::ProductPath;
use crate::nn::{activation, rope::Rope, table::Table, timestep::TimestepEmbedder, vars::Vars};
use crate::platform::cancel::Cancel;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::cell::OnceCell;

/// Of the norms over q and k, fixed in the source (`norm_eps` in `LTXAttention`).
const QK_NORM_EPS: f64 = 1e-5;
/// Of the last norm, fixed in the source (`norm_out`).
const NORM_OUT_EPS: f64 = 1e-6;

struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: Tensor,
    norm_k: Tensor,
    heads: usize,
    scale: f64,
}

impl Attention {
    fn load(context: usize, config: &TransformerConfig, vb: Vars) -> Result<Self> {
        let d = config.width();
        Ok(Self {
            to_q: Linear::load(d, d, config.attention_bias, vb.pp("to_q"))?,
            to_k: Linear::load(context, d, config.attention_bias, vb.pp("to_k"))?,
            to_v: Linear::load(context, d, config.attention_bias, vb.pp("to_v"))?,
            to_out: Linear::load(d, d, config.attention_out_bias, vb.pp("to_out.0"))?,
            norm_q: vb.get(d, "norm_q.weight")?,
            norm_k: vb.get(d, "norm_k.weight")?,
            heads: config.heads,
            scale: ((d / config.heads) as f64).sqrt().recip(),
        })
    }

    /// The same, for a layer that stays.
    fn prepack(self) -> Self {
        let Self { to_q, to_k, to_v, to_out, .. } = self;
        Self { to_q: to_q.prepack(), to_k: to_k.prepack(), to_v: to_v.prepack(), to_out: to_out.prepack(), ..self }
    }

    /// Every token sees every other.
    /// - `x`: (b, n, d). `then`: what follows the last layer.
    fn forward(&self, x: &Tensor, rope: &Rope, then: Epilogue) -> Result<Tensor> {
        let (q, k) = (self.to_q.forward(x)?, self.to_k.forward(x)?);
        let how = attention::Attention {
            norms: [Some((&self.norm_q, QK_NORM_EPS)), Some((&self.norm_k, QK_NORM_EPS))],
            rope: Some(rope),
            int8: self.to_q.path(x) == ProductPath::Int8, // not across to the prompt: little is to be gained there, and more is lost
            ..self.how()
        };
        self.to_out.forward_then(&how.forward(&q, &k, &self.values(x)?)?, then)
    }

    /// What [`Attention::forward_to`] reads of a prompt.
    /// - `context`: (b, m, c).
    fn keys(&self, context: &Tensor) -> Result<Keys> {
        let weight = Table::one(&self.norm_k)?;
        let norm = NormAct::new(Norm::Rms, QK_NORM_EPS).scale(&weight);
        Ok(Keys { k: norm.forward(&self.to_k.forward(context)?, self.how().math)?, v: self.values(context)? })
    }

    /// Every token sees the prompt.
    /// - `x`: (b, n, d). `then`: what follows the last layer.
    fn forward_to(&self, x: &Tensor, keys: &Keys, then: Epilogue) -> Result<Tensor> {
        let how = attention::Attention { norms: [Some((&self.norm_q, QK_NORM_EPS)), None], ..self.how() };
        self.to_out.forward_then(&how.forward(&self.to_q.forward(x)?, &keys.k, &keys.v)?, then)
    }

    fn values(&self, x: &Tensor) -> Result<Tensor> {
        self.to_v.forward_then(x, Epilogue { narrow: true, ..Epilogue::default() })
    }

    fn how(&self) -> attention::Attention<'_> {
        attention::Attention {
            heads: self.heads,
            scale: self.scale,
            norms: [None; 2],
            rope: None,
            bias: None,
            math: self.to_q.math(),
            int8: false,
        }
    }

    /// With every token attending to itself alone.
    /// - `x`: (b, n, d). `then`: what follows the last layer.
    /// - Source: LTX-Video `models/transformers/attention.py`, `AttnProcessor2_0` (`SkipLayerStrategy.AttentionValues`), at
    ///   5260738.
    fn forward_alone(&self, x: &Tensor, then: Epilogue) -> Result<Tensor> {
        self.to_out.forward_then(&self.values(x)?, then)
    }
}

/// A prompt as one layer's cross-attention reads it: the same at every step.
pub struct Keys {
    /// Normed keys, and values: (1, m, d), on a CPU rounded to what products read.
    k: Tensor,
    v: Tensor,
}

/// A prompt, as the transformer reads it.
pub struct Context {
    /// (1, m, d)
    pub text: Tensor,
    /// Of each layer, from the first time that it runs on; of layers that are trained none are kept.
    keys: Vec<OnceCell<Keys>>,
}

/// Shifts, scales and gates: one row a distinct timestep, gathered to tokens as they are used.
pub struct Modulation {
    /// (timesteps, parts, d)
    pub rows: Tensor,
    /// (tokens), each token's row; `None`: one timestep for all.
    pub index: Option<Tensor>,
}

impl Modulation {
    /// Part `i`, as a gate or a shift.
    fn part(&self, i: usize) -> Result<Table> {
        let rows = self.rows.narrow(1, i, 1)?.squeeze(1)?.contiguous()?; // (timesteps, d)
        Ok(Table { rows, index: self.index.clone() })
    }

    /// Part `i`, as a scale: what is stored is the difference from one.
    fn scale(&self, i: usize) -> Result<Table> {
        let part = self.part(i)?;
        Ok(Table { rows: (part.rows + 1.0)?, ..part })
    }

    /// The rows of `table` (parts, d) added.
    fn with(&self, table: &Tensor) -> Result<Self> {
        Ok(Self { rows: self.rows.broadcast_add(table)?, index: self.index.clone() })
    }
}

/// One layer.
pub struct Block {
    table: Tensor, // (6, d)
    attn1: Attention,
    attn2: Attention,
    up: Linear,
    down: Linear,
    eps: f64,
}

impl Block {
    /// - `vb` holds one `transformer_blocks.{i}`.
    pub fn load(config: &TransformerConfig, vb: Vars) -> Result<Self> {
        let d = config.width();
        Ok(Self {
            table: vb.get((6, d), "scale_shift_table")?.to_dtype(vb.dtype())?,
            attn1: Attention::load(d, config, vb.pp("attn1"))?,
            attn2: Attention::load(config.cross_attention_dim, config, vb.pp("attn2"))?,
            up: Linear::load(d, 4 * d, true, vb.pp("ff.net.0.proj"))?,
            down: Linear::load(4 * d, d, true, vb.pp("ff.net.2"))?,
            eps: config.norm_eps,
        })
    }

    /// The same, its weights repacked into the panels that products read; for layers kept in memory.
    fn prepack(self) -> Self {
        let Self { attn1, attn2, up, down, .. } = self;
        Self { attn1: attn1.prepack(), attn2: attn2.prepack(), up: up.prepack(), down: down.prepack(), ..self }
    }

    /// What [`Block::forward`] reads of a prompt.
    /// - `context`: (1, m, d).
    pub fn keys(&self, context: &Tensor) -> Result<Keys> {
        self.attn2.keys(context)
    }

    /// - `x`: (1, n, d). `time`: six parts. `rope`: `None` leaves self-attention out (see [`Transformer::forward_without`]).
    pub fn forward(&self, x: &Tensor, keys: &Keys, time: &Modulation, rope: Option<&Rope>) -> Result<Tensor> {
        let ada = time.with(&self.table)?; // shift, scale, gate; of the attention, then of the MLP
        let math = self.up.math();
        let normed = |x: &Tensor, first: usize| {
            let (shift, scale) = (ada.part(first)?, ada.scale(first + 1)?);
            NormAct::new(Norm::Rms, self.eps).scale(&scale).shift(&shift).forward(x, math)
        };
        let h = normed(x, 0)?;
        let gate = ada.part(2)?;
        let then = Epilogue { gate: Some(&gate), residual: Some(x), ..Epilogue::default() };
        let x = match rope {
            Some(rope) => self.attn1.forward(&h, rope, then)?,
            None => self.attn1.forward_alone(&h, then)?,
        };
        let x = self.attn2.forward_to(&x, keys, Epilogue { residual: Some(&x), ..Epilogue::default() })?;
        let h = self.up.forward_then(&normed(&x, 3)?, Epilogue { gelu: true, narrow: true, ..Epilogue::default() })?;
        let gate = ada.part(5)?;
        self.down.forward_then(&h, Epilogue { gate: Some(&gate), residual: Some(&x), ..Epilogue::default() })
    }
}

/// The whole transformer. Its ends (all but the blocks) are multiplied in f32 on a CPU, as everything passes through them and
/// they are a thousandth of the work.
pub struct Transformer {
    proj_in: Linear,
    time_embedder: TimestepEmbedder,
    time_linear: Linear,
    caption_1: Linear,
    caption_2: Linear,
    /// Those that stay in memory, from the first on.
    blocks: Vec<Block>,
    /// How the others are opened, each when it runs.
    later: (TransformerConfig, Vars),
    table: Tensor, // (2, d)
    proj_out: Linear,
    width: usize,
    dtype: DType,
}

impl Transformer {
    pub fn load(config: &TransformerConfig, vb: Vars) -> Result<Self> {
        Self::load_part(config, vb, config.layers)
    }

    /// - `resident`: how many blocks are loaded once and stay; the others are opened each time they run, and let go after.
    pub fn load_part(config: &TransformerConfig, vb: Vars, resident: usize) -> Result<Self> {
        let d = config.width();
        let blocks = vb.pp("transformer_blocks");
        let resident = resident.min(config.layers);
        Ok(Self {
            proj_in: Linear::load(config.in_channels, d, true, vb.pp("proj_in"))?.in_f32(),
            time_embedder: TimestepEmbedder::load(d, vb.pp("time_embed.emb"))?,
            time_linear: Linear::load(d, 6 * d, true, vb.pp("time_embed.linear"))?.in_f32(),
            caption_1: Linear::load(config.caption_channels, d, true, vb.pp("caption_projection.linear_1"))?.in_f32(),
            caption_2: Linear::load(d, d, true, vb.pp("caption_projection.linear_2"))?.in_f32(),
            blocks: (0..resident)
                .map(|i| Ok(Block::load(config, blocks.pp(i.to_string()))?.prepack()))
                .collect::<Result<_>>()?,
            later: (config.clone(), blocks),
            table: vb.get((2, d), "scale_shift_table")?.to_dtype(vb.dtype())?,
            proj_out: Linear::load(d, config.out_channels, true, vb.pp("proj_out"))?.in_f32(),
            width: d,
            dtype: vb.dtype(),
        })
    }

    /// What the cross-attentions read; once a prompt, not once a step. Keys and values come with the first step.
    /// - `text`: (1, m, caption_channels), real tokens only.
    pub fn context(&self, text: &Tensor) -> Result<Context> {
        let text = activation::gelu_tanh(&self.caption_1.forward(&text.to_dtype(self.dtype)?)?)?;
        let layers = self.later.0.layers;
        Ok(Context { text: self.caption_2.forward(&text)?, keys: (0..layers).map(|_| OnceCell::new()).collect() })
    }

    /// The time embedding of each distinct timestep: (timesteps, 6, d) for the layers, (timesteps, 1, d) for the last norm.
    pub fn time(&self, timesteps: &[f32], device: &Device) -> Result<(Tensor, Tensor)> {
        let emb = self.time_embedder.forward(timesteps, device)?; // (timesteps, d)
        let temb = self.time_linear.forward(&activation::silu(&emb)?)?;
        Ok((temb.reshape((timesteps.len(), 6, self.width))?, emb.unsqueeze(1)?))
    }

    /// The velocity of each token.
    /// - `x`: (1, n, in_channels). `timesteps`: in 0..=1000, one for all tokens or one a token.
    /// - Returns (1, n, out_channels).
    /// - Source: diffusers `models/transformers/transformer_ltx.py`, `LTXVideoTransformer3DModel.forward`, at 58eb52c.
    pub fn forward(&self, x: &Tensor, context: &Context, timesteps: &[f32], rope: &Rope) -> Result<Tensor> {
        self.forward_without(&[], x, context, timesteps, rope, &Cancel::default())
    }

    /// As [`Transformer::forward`], with self-attention left out of some blocks: each token passes on its own values. It is
    /// what spatio-temporal guidance leads away from.
    /// - `cancel`: asked before each block, for a step over a long clip takes minutes.
    pub fn forward_without(
        &self,
        blocks: &[usize],
        x: &Tensor,
        context: &Context,
        timesteps: &[f32],
        rope: &Rope,
        cancel: &Cancel,
    ) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        if timesteps.len() != 1 && timesteps.len() != tokens {
            bail!("{} timesteps for {tokens} tokens", timesteps.len())
        }
        let mut distinct: Vec<f32> = vec![];
        let index = timesteps.iter().map(|t| match distinct.iter().position(|d| d.to_bits() == t.to_bits()) {
            Some(i) => i as u32,
            None => {
                distinct.push(*t);
                distinct.len() as u32 - 1
            }
        });
        let index: Vec<u32> = index.collect();
        let index = if distinct.len() == 1 { None } else { Some(Tensor::new(index, x.device())?) };
        let (temb, emb) = self.time(&distinct, x.device())?;
        let time = Modulation { rows: temb, index: index.clone() };

        let layer = |block: &Block, i: usize, h: &Tensor| {
            cancel.check()?;
            if block.attn2.to_k.track_op() || context.text.track_op() {
                // of weights that change, and with their gradients
                let keys = block.keys(&context.text)?;
                return block.forward(h, &keys, &time, (!blocks.contains(&i)).then_some(rope));
            }
            let keys = match context.keys[i].get() {
                Some(keys) => keys,
                None => {
                    let keys = block.keys(&context.text)?;
                    context.keys[i].get_or_init(|| keys)
                }
            };
            block.forward(h, keys, &time, (!blocks.contains(&i)).then_some(rope))
        };
        let mut h = self.proj_in.forward(&x.to_dtype(self.dtype)?)?; // (1, n, d)
        for (i, block) in self.blocks.iter().enumerate() {
            h = layer(block, i, &h)?;
        }
        let (config, later) = &self.later;
        for i in self.blocks.len()..config.layers {
            h = layer(&Block::load(config, later.pp(i.to_string()))?, i, &h)?;
        }
        // shift, then scale, of the last norm
        let ada = Modulation { rows: Tensor::cat(&[&emb, &emb], 1)?, index }.with(&self.table)?;
        let (shift, scale) = (ada.part(0)?, ada.scale(1)?);
        let h = NormAct::new(Norm::Layer, NORM_OUT_EPS).scale(&scale).shift(&shift).forward(&h, MatmulType::F32)?;
        self.proj_out.forward(&h)
    }
}
