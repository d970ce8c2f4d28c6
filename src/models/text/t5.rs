//! The encoder of T5 v1.1. Unusual about it:
//! - scores are not divided by the root of the head size;
//! - positions are a learnt bias on the scores, a function of the distance alone, owned by the first layer and used by all;
//! - its layers are opened one after the other while it runs, so the 19 GB of XXL in f32 are never in memory at once.

use crate::nn::attention::Attention;
use crate::nn::linear::{Epilogue, Linear};
use crate::nn::matrix::Matrix;
use crate::nn::norm::{Norm, NormAct, rms_norm};
use crate::nn::table::Table;
use crate::nn::vars::Vars;
use crate::platform::cancel::Cancelled;
use crate::weights::config::{Keys, with_fix};
use anyhow::{Context, ensure};
use candle_core::{Result, Tensor};
use serde_json::{Value, json};

/// Beyond these no text encoder goes: words, channels, heads; and layers.
const MOST: usize = 1 << 20;
const MOST_LAYERS: usize = 1024;

/// What reel takes, for errors.
const TAKEN: &str = "T5 v1.1";

/// Sizes of the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    pub vocab: usize,
    pub d_model: usize,
    pub d_kv: usize,
    pub d_ff: usize,
    pub heads: usize,
    pub layers: usize,
    pub buckets: usize,
    pub max_distance: usize,
    pub eps: f64,
}

impl T5Config {
    /// Reads the `config.json` of transformers' T5.
    /// - Defaults: transformers `models/t5/configuration_t5.py`, `T5Config.__init__`.
    pub fn parse(json: &Value, what: &str) -> anyhow::Result<Self> {
        Self::read(json, what).map_err(|error| with_fix(error, TAKEN))
    }

    fn read(json: &Value, what: &str) -> anyhow::Result<Self> {
        let mut keys = Keys::new(json, what)?;
        // about training, decoding and the file itself
        keys.ignore(&[
            "_name_or_path",
            "architectures",
            "bos_token_id",
            "classifier_dropout",
            "decoder_start_token_id",
            "dropout_rate",
            "dtype",
            "eos_token_id",
            "initializer_factor",
            "is_decoder",
            "is_encoder_decoder",
            "is_gated_act",
            "n_positions",
            "num_decoder_layers",
            "output_past",
            "pad_token_id",
            "scale_decoder_outputs",
            "task_specific_params",
            "tie_word_embeddings",
            "tokenizer_class",
            "torch_dtype",
            "transformers_version",
            "use_cache",
        ]);
        keys.only("model_type", &[json!("t5")])?;
        keys.only("feed_forward_proj", &[json!("gated-gelu")])?;
        keys.only("dense_act_fn", &[json!("gelu_new"), json!("gelu_pytorch_tanh")])?;
        let config = Self {
            vocab: keys.size("vocab_size", 32_128, MOST)?,
            d_model: keys.size("d_model", 512, MOST)?,
            d_kv: keys.size("d_kv", 64, MOST)?,
            d_ff: keys.size("d_ff", 2048, MOST)?,
            heads: keys.size("num_heads", 8, MOST)?,
            layers: keys.size("num_layers", 6, MOST_LAYERS)?,
            buckets: keys.size("relative_attention_num_buckets", 32, MOST)?,
            max_distance: keys.size("relative_attention_max_distance", 128, MOST)?,
            eps: keys.positive("layer_norm_epsilon", 1e-6)?,
        };
        keys.finish(TAKEN)?;
        config.checked(what)
    }

    /// In transformers' form, as [`T5Config::parse`] reads it.
    pub fn to_json(&self) -> Value {
        json!({
            "model_type": "t5", "feed_forward_proj": "gated-gelu", "vocab_size": self.vocab, "d_model": self.d_model,
            "d_kv": self.d_kv, "d_ff": self.d_ff, "num_heads": self.heads, "num_layers": self.layers,
            "relative_attention_num_buckets": self.buckets, "relative_attention_max_distance": self.max_distance,
            "layer_norm_epsilon": self.eps,
        })
    }

    /// What both ways to a configuration have to give.
    fn checked(self, what: &str) -> anyhow::Result<Self> {
        ensure!(
            self.buckets >= 4 && self.max_distance > self.buckets / 4,
            "{what}: `relative_attention_num_buckets` is {} and `relative_attention_max_distance` {}: there have to be at least 4 of the former, and the latter has to be above a quarter of it",
            self.buckets,
            self.max_distance
        );
        let sizes = [
            ("vocab_size", self.vocab, MOST),
            ("d_model", self.d_model, MOST),
            ("d_kv", self.d_kv, MOST),
            ("d_ff", self.d_ff, MOST),
            ("num_heads", self.heads, MOST),
            ("relative_attention_num_buckets", self.buckets, MOST),
            ("num_layers", self.layers, MOST_LAYERS),
        ];
        for (key, size, most) in sizes {
            ensure!((1..=most).contains(&size), "{what}: `{key}` is {size}, and reel takes 1 to {most}");
        }
        Ok(self)
    }

    /// The configuration of a bare weight file, from its shapes.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>, what: &str) -> anyhow::Result<Self> {
        let matrix = |name: &str| {
            shape(name).filter(|s| s.len() == 2).with_context(|| {
                format!("{what} is not a T5 encoder: there is no `{name}`\n  fix: use the encoder of a T5 v1.1")
            })
        };
        let embedding = matrix("shared.weight").or_else(|_| matrix("encoder.embed_tokens.weight"))?;
        let first = "encoder.block.0.layer";
        let bias = matrix(&format!("{first}.0.SelfAttention.relative_attention_bias.weight"))?;
        let query = matrix(&format!("{first}.0.SelfAttention.q.weight"))?;
        let up = matrix(&format!("{first}.1.DenseReluDense.wi_0.weight"))?;
        let layers =
            (0..).take_while(|i| shape(&format!("encoder.block.{i}.layer.0.layer_norm.weight")).is_some()).count();
        let config = Self {
            vocab: embedding[0],
            d_model: embedding[1],
            d_kv: query[0] / bias[1].max(1),
            d_ff: up[0],
            heads: bias[1],
            layers,
            buckets: bias[0],
            max_distance: 128, // of every released T5
            eps: 1e-6,
        };
        config.checked(what)
    }
}

/// One layer's weights.
pub struct Layer {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: Tensor,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl Layer {
    fn load(config: &T5Config, vb: Vars) -> Result<Self> {
        let (d, inner, ff) = (config.d_model, config.heads * config.d_kv, config.d_ff);
        let attention = vb.pp("layer.0.SelfAttention");
        let mlp = vb.pp("layer.1.DenseReluDense");
        Ok(Self {
            attention_norm: vb.get(d, "layer.0.layer_norm.weight")?,
            q: Linear::load(d, inner, false, attention.pp("q"))?,
            k: Linear::load(d, inner, false, attention.pp("k"))?,
            v: Linear::load(d, inner, false, attention.pp("v"))?,
            o: Linear::load(inner, d, false, attention.pp("o"))?,
            mlp_norm: vb.get(d, "layer.1.layer_norm.weight")?,
            wi_0: Linear::load(d, ff, false, mlp.pp("wi_0"))?,
            wi_1: Linear::load(d, ff, false, mlp.pp("wi_1"))?,
            wo: Linear::load(ff, d, false, mlp.pp("wo"))?,
        })
    }

    /// - `x`: (b, n, d_model). `bias`: broadcast to (b, heads, n, n).
    fn forward(&self, x: &Tensor, bias: &Tensor, config: &T5Config) -> Result<Tensor> {
        let math = self.q.math();
        let normed = |x: &Tensor, weight: &Tensor| {
            NormAct::new(Norm::Rms, config.eps).scale(&Table::one(weight)?).forward(x, math)
        };
        let h = normed(x, &self.attention_norm)?;
        let (q, k) = (self.q.forward(&h)?, self.k.forward(&h)?);
        let v = self.v.forward_then(&h, Epilogue { narrow: true, ..Epilogue::default() })?;
        let how = Attention {
            heads: config.heads,
            scale: 1.0,
            norms: [None; 2],
            rope: None,
            bias: Some(bias),
            math,
            int8: false,
        };
        let x =
            self.o.forward_then(&how.forward(&q, &k, &v)?, Epilogue { residual: Some(x), ..Epilogue::default() })?;
        let h = normed(&x, &self.mlp_norm)?;
        let gate = self.wi_0.forward_then(&h, Epilogue { gelu: true, ..Epilogue::default() })?;
        let h = self.wi_1.forward_then(&h, Epilogue { factor: Some(&gate), narrow: true, ..Epilogue::default() })?;
        self.wo.forward_then(&h, Epilogue { residual: Some(&x), ..Epilogue::default() })
    }
}

/// The encoder: its embedding is read row by row, its layers when they run.
pub struct T5 {
    config: T5Config,
    vb: Vars,
    embedding: Matrix,     // (vocab, d_model)
    position_bias: Tensor, // (buckets, heads)
    final_norm: Tensor,
}

impl T5 {
    /// - `vb` holds `shared` or `encoder.embed_tokens`, and `encoder.block.{i}`.
    pub fn load(config: &T5Config, vb: Vars) -> Result<Self> {
        let name = if vb.contains_tensor("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
        let first = vb.pp("encoder.block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            embedding: vb.table(config.vocab, config.d_model, name)?,
            position_bias: first.get((config.buckets, config.heads), "weight")?.to_dtype(vb.dtype())?,
            final_norm: vb.get(config.d_model, "encoder.final_layer_norm.weight")?,
            config: config.clone(),
            vb,
        })
    }

    /// Opens every layer once without running it: for checking names and shapes.
    pub fn touch(&self) -> Result<()> {
        (0..self.config.layers).try_for_each(|i| self.layer(i).map(|_| ()))
    }

    fn layer(&self, i: usize) -> Result<Layer> {
        Layer::load(&self.config, self.vb.pp(format!("encoder.block.{i}")))
    }

    /// All layers at once, for those who run them again and again and have the memory.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        (0..self.config.layers).map(|i| self.layer(i)).collect()
    }

    /// - `ids`: one prompt's tokens, all of which are attended to. `after`: called after each layer.
    /// - Returns (1, ids, d_model).
    /// - Source: transformers `models/t5/modeling_t5.py`, `T5Stack.forward`.
    pub fn encode(&self, ids: &[u32], mut after: impl FnMut()) -> Result<Tensor> {
        let after = || {
            after();
            Ok(())
        };
        Ok(self.encode_each(&[ids.to_vec()], after)?.remove(0))
    }

    /// As [`T5::encode`], for several prompts by themselves: each layer is opened once.
    /// - `after`: called after each layer of each prompt; an error of it ends the work.
    pub fn encode_each(
        &self,
        prompts: &[Vec<u32>],
        mut after: impl FnMut() -> std::result::Result<(), Cancelled>,
    ) -> Result<Vec<Tensor>> {
        self.run(prompts, |i, xs| {
            let layer = self.layer(i)?;
            for (x, bias) in xs.iter_mut() {
                *x = layer.forward(x, bias, &self.config)?;
                after()?;
            }
            Ok(())
        })
    }

    /// As [`T5::encode`], over layers that are open already.
    pub fn encode_with(&self, ids: &[u32], layers: &[Layer]) -> Result<Tensor> {
        let all = self.run(&[ids.to_vec()], |i, xs| {
            xs.iter_mut().try_for_each(|(x, bias)| layers[i].forward(x, bias, &self.config).map(|y| *x = y))
        });
        Ok(all?.remove(0))
    }

    /// - `layer`: takes the vectors of all prompts, beside their position biases, through a layer.
    fn run(
        &self,
        prompts: &[Vec<u32>],
        mut layer: impl FnMut(usize, &mut [(Tensor, Tensor)]) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let embed = |ids: &Vec<u32>| {
            let x = self.embedding.pick(ids, self.vb.dtype(), self.vb.device())?.unsqueeze(0)?; // (1, ids, d_model)
            Ok((x, self.bias(ids.len())?))
        };
        let mut xs: Vec<(Tensor, Tensor)> = prompts.iter().map(embed).collect::<Result<_>>()?;
        for i in 0..self.config.layers {
            layer(i, &mut xs)?;
        }
        xs.iter().map(|(x, _)| rms_norm(x, Some(&self.final_norm), self.config.eps)).collect()
    }

    /// Position bias: (1, heads, n, n).
    fn bias(&self, n: usize) -> Result<Tensor> {
        let buckets: Vec<u32> = (0..n * n).map(|i| self.bucket(i / n, i % n)).collect();
        let bias = self.position_bias.index_select(&Tensor::new(buckets, self.vb.device())?, 0)?; // (n n, heads)
        bias.reshape((n, n, self.config.heads))?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()
    }

    /// Which bias belongs to key `k` seen from query `q`: exact for near keys, by the logarithm of the distance for far ones.
    /// - Source: transformers `models/t5/modeling_t5.py`, `T5Attention._relative_position_bucket` (bidirectional).
    fn bucket(&self, q: usize, k: usize) -> u32 {
        let half = self.config.buckets / 2;
        let exact = half / 2;
        let distance = q.abs_diff(k);
        let bucket = if distance < exact {
            distance
        } else {
            let ratio = (distance as f32 / exact as f32).ln() / (self.config.max_distance as f32 / exact as f32).ln();
            (exact + (ratio * (half - exact) as f32) as usize).min(half - 1)
        };
        (if k > q { half + bucket } else { bucket }) as u32
    }
}
