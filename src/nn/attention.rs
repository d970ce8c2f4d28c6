//! Scaled dot-product attention over heads that lie side by side in each token, with the norms and the rotary positions that
//! go before it. The scores of a long clip never exist all at once. On a GPU FlashAttention's kernels meet them where the
//! feature `flash-attn` is on; norms and positions are the plain form's.

use super::kernel::attend::{self, Heads};
use super::kernel::memory::filled;
use super::kernel::micro::Kernel;
use super::kernel::micro::Scores;
use super::kernel::rows::{Angles, heads};
use super::kernel::{self, Job, MatmulType};
use super::norm::rms_norm;
#[cfg(feature = "cuda")]
use super::path::RowPath;
use super::path::{self, AttentionPath, Input};
use super::read::{Lines, Read, is_lines, lines};
use super::rope::Rope;
use super::{activation::softmax, linear::with_operand};
#[cfg(feature = "cuda")]
use super::{cuda::RowOps, norm::Norm, table::Table};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use std::f32::consts::LOG2_E;
use std::mem::MaybeUninit;

/// How queries, keys and values meet.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    pub heads: usize,
    /// Multiplied with each score.
    pub scale: f64,
    /// RMS norms of q and of k over all heads together, and what is added to their mean squares.
    pub norms: [Option<(&'a Tensor, f64)>; 2],
    /// Turns q and k.
    pub rope: Option<&'a Rope>,
    /// (1, heads, n, m), added to the scores.
    pub bias: Option<&'a Tensor>,
    /// In what a CPU multiplies.
    pub math: MatmulType,
    /// Whether it may make scores by int8 dot products, which rounds queries and keys to eight bits.
    pub int8: bool,
}

/// Scores that the plain form holds at a time, in elements: 64 Mi (256 MiB in f32).
pub const SCORES: usize = 1 << 26;

impl Attention<'_> {
    /// softmax(q kᵀ scale + bias) v.
    /// - `q`: (b, n, d). `k`, `v`: (b, m, d). Returns (b, n, d), on a CPU rounded to what products read.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (b, n, d) = q.dims3()?;
        let k = &k.to_dtype(q.dtype())?; // keys of a prompt that were kept come rounded, and are few
        let others = [Some(k), Some(v), self.bias, self.norms[0].map(|n| n.0), self.norms[1].map(|n| n.0)];
        let others = others.into_iter().flatten();
        let path = Input::of(q, others).or_plain(!matches!(v.dtype(), DType::BF16) && v.dtype() != q.dtype());
        let (head_dim, bias) = (d / self.heads, self.bias.is_some());
        let path = path.attention(path::Heads { batch: b, head_dim, bias, math: self.math, int8: self.int8 });
        match path {
            AttentionPath::Int8 | AttentionPath::Kernel => (),
            #[cfg(feature = "flash-attn")]
            AttentionPath::Flash => {
                let scale = self.scale as f32;
                return self.over_heads(q, k, v, |q, k, v| candle_flash_attn::flash_attn(q, k, v, scale, false));
            }
            _ => return self.plain(q, k, v),
        }
        let v = if is_lines(v) { v.clone() } else { v.contiguous()? };
        let bias = match self.bias {
            Some(bias) => Some(bias.broadcast_as((1, self.heads, n, k.dim(1)?))?.contiguous()?),
            None => None,
        };
        let op = Fused { how: self, bias, int8: path == AttentionPath::Int8 };
        let y = q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v, &op)?;
        y.narrow(2, 0, d) // rows may have been set apart
    }

    /// The plain form.
    pub fn plain(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.over_heads(q, k, v, |q, k, v| self.in_groups(q, k, v))
    }

    /// Norms, positions, and heads apart for `meet`, which takes q, k and v as (b, n or m, heads, head_dim) and answers like q.
    fn over_heads(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        meet: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (b, n, d) = q.dims3()?;
        let (q, k) = (self.placed(q, self.norms[0])?, self.placed(k, self.norms[1])?);
        let split = |x: &Tensor| x.reshape((b, (), self.heads, d / self.heads));
        meet(&split(&q)?, &split(&k)?, &split(v)?)?.reshape((b, n, d))
    }

    /// Queries or keys, normed and turned.
    fn placed(&self, x: &Tensor, norm: Option<(&Tensor, f64)>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if Input::of(x, norm.map(|norm| norm.0)).rows(x.elem_count()) == RowPath::Cuda {
            let scale = norm.map(|(weight, _)| Table::one(weight)).transpose()?;
            let (norm, rope) = (norm.map(|(_, eps)| (Norm::Rms, eps)), self.rope);
            if norm.is_none() && rope.is_none() {
                return Ok(x.clone());
            }
            return super::cuda::norm_act(x, RowOps { norm, scale: scale.as_ref(), rope, ..RowOps::default() });
        }
        let x = match norm {
            Some((weight, eps)) => rms_norm(x, Some(weight), eps)?,
            None => x.clone(),
        };
        self.rope.map_or(Ok(x.clone()), |rope| rope.apply(&x))
    }

    /// Scores, their shares and what they take of the values, some heads and some queries at a time.
    /// - `q`: (b, n, heads, head_dim). `k`, `v`: (b, m, heads, head_dim). Returns (b, n, heads, head_dim).
    fn in_groups(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (b, n, ..) = q.dims4()?;
        let m = k.dim(1)?;
        let [q, k, v] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?]; // (b, heads, n or m, head_dim)
        let bias = self.bias.map(|bias| bias.broadcast_as((b, self.heads, n, m))).transpose()?;
        let head_group = (SCORES / (b * n * m).max(1)).clamp(1, self.heads);
        let query_group = (SCORES / (b * head_group * m).max(1)).clamp(1, n);
        let mut by_head = vec![];
        for h in (0..self.heads).step_by(head_group) {
            let group = head_group.min(self.heads - h);
            let k = k.narrow(1, h, group)?.t()?.contiguous()?;
            let v = v.narrow(1, h, group)?.contiguous()?;
            let mut by_query = vec![];
            for i in (0..n).step_by(query_group) {
                let count = query_group.min(n - i);
                let q = (q.narrow(1, h, group)?.narrow(2, i, count)?.contiguous()? * self.scale)?;
                let scores = q.matmul(&k)?; // (b, group, count, m)
                let scores = match &bias {
                    Some(bias) => scores.add(&bias.narrow(1, h, group)?.narrow(2, i, count)?)?,
                    None => scores,
                };
                by_query.push(softmax(&scores)?.matmul(&v)?);
            }
            by_head.push(join(by_query, 2)?);
        }
        join(by_head, 1)?.transpose(1, 2)
    }
}

fn join(mut parts: Vec<Tensor>, axis: usize) -> Result<Tensor> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, axis) }
}

/// The CPU form.
struct Fused<'a> {
    how: &'a Attention<'a>,
    bias: Option<Tensor>,
    int8: bool,
}

impl CustomOp3 for Fused<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qs: &CpuStorage,
        ql: &Layout,
        ks: &CpuStorage,
        kl: &Layout,
        vs: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (Some((Lines::F32(q), _)), Some((Lines::F32(k), _))) = (lines(qs, ql), lines(ks, kl)) else {
            bail!("attention: expected rows of f32")
        };
        let Some((v, v_stride)) = lines(vs, vl) else { bail!("attention: expected rows of values") };
        let (_, n, d) = ql.shape().dims3()?;
        let (_, m, dk) = kl.shape().dims3()?;
        if dk != d || vl.dims() != kl.dims() || d == 0 || !d.is_multiple_of(self.how.heads) {
            bail!("attention: {:?}, {:?} and {:?} in {} heads", ql.dims(), kl.dims(), vl.dims(), self.how.heads)
        }
        let [q_norm, k_norm] = self.how.norms;
        let (q_norm, k_norm) = (read(q_norm)?, read(k_norm)?);
        let (q_norm, k_norm) = (slice(&q_norm)?, slice(&k_norm)?);
        if [q_norm, k_norm].iter().flatten().any(|(weight, _)| weight.len() != d) {
            bail!("attention: a norm of another width than {d}")
        }
        let rope =
            self.how.rope.map(|rope| Ok::<_, candle_core::Error>((Read::new(&rope.cos)?, Read::new(&rope.sin)?)));
        let rope = rope.transpose()?;
        let angles = match &rope {
            Some((cos, sin)) => Some(Angles { cos: cos.slice()?, sin: sin.slice()? }),
            None => None,
        };
        if angles.is_some_and(|a| n != m || a.cos.len() != n * (d / 2) || a.sin.len() != a.cos.len() || d % 2 != 0) {
            bail!("attention: rotary positions for another number of tokens or channels")
        }
        let bias = self.bias.as_ref().map(Read::new).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.slice()).transpose()?;
        let half = kernel::is_half(self.how.math);
        let row_stride = kernel::row_stride(d, if half { 2 } else { 4 });
        let scale = self.how.scale as f32;
        let job = Run {
            q: (&q[..n * d], q_norm),
            k: (&k[..m * d], k_norm),
            v,
            v_stride,
            angles,
            bias,
            heads: self.how.heads,
            d,
            n,
            m,
            scale,
            half,
            int8: self.int8,
            row_stride,
        };
        Ok((kernel::dispatch(self.how.math, job), Shape::from((1, n, row_stride))))
    }
}

/// A norm's weight and what it adds.
fn read(norm: Option<(&Tensor, f64)>) -> Result<Option<(Read<'_>, f32)>> {
    norm.map(|(weight, eps)| Ok((Read::new(weight)?, eps as f32))).transpose()
}

fn slice<'a>(norm: &'a Option<(Read<'_>, f32)>) -> Result<Option<(&'a [f32], f32)>> {
    norm.as_ref().map(|(weight, eps)| Ok((weight.slice()?, *eps))).transpose()
}

struct Run<'a> {
    q: (&'a [f32], Option<(&'a [f32], f32)>),
    k: (&'a [f32], Option<(&'a [f32], f32)>),
    v: Lines<'a>,
    v_stride: usize,
    angles: Option<Angles<'a>>,
    bias: Option<&'a [f32]>,
    heads: usize,
    d: usize,
    n: usize,
    m: usize,
    scale: f32,
    half: bool,
    int8: bool,
    row_stride: usize,
}

impl Job for Run<'_> {
    type Done = CpuStorage;

    fn run<K: Kernel>(self) -> CpuStorage {
        if self.int8 { self.scored::<K, K::Int8Scores>() } else { self.scored::<K, K>() }
    }
}

impl Run<'_> {
    fn scored<K: Kernel, S: Scores<Kernel = K>>(self) -> CpuStorage {
        let head_dim = self.d / self.heads;
        let to = attend::head_stride::<K>(head_dim);
        let stride = kernel::row_stride(self.heads * to, size_of::<K::Elem>());
        let split = |x: &[f32], rows: usize, norm, by, centred| {
            let write =
                |y: &mut [MaybeUninit<_>]| heads::<K>(x, self.d, norm, self.angles, by, head_dim, to, stride, y);
            // SAFETY: all of it is written.
            S::rows(unsafe { filled(rows * stride, write) }, self.heads, head_dim, stride, centred)
        };
        let (q, q_stride) = split(self.q.0, self.n, self.q.1, self.scale * LOG2_E, false);
        let (k, k_stride) = split(self.k.0, self.m, self.k.1, 1.0, true);
        // values are read from the second cache by one row at a time, so their distance does not matter
        with_operand::<K, _>(self.v, self.v_stride, self.m, self.d, |v, v_stride| {
            let heads = Heads::<S> {
                heads: self.heads,
                head_dim,
                q_stride,
                k_stride,
                v_stride,
                q: &q,
                k: &k,
                v,
                n: self.n,
                m: self.m,
                bias: self.bias,
            };
            let size = self.n * self.row_stride;
            if self.half {
                // SAFETY: all of it is written.
                CpuStorage::BF16(unsafe { filled(size, |y| attend::attend::<K, S, _>(&heads, y, self.row_stride)) })
            } else {
                // SAFETY: as above.
                CpuStorage::F32(unsafe { filled(size, |y| attend::attend::<K, S, _>(&heads, y, self.row_stride)) })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;

    /// The two forms sum in another order.
    const LIMIT: f32 = 2e-6;

    #[test]
    fn fast_form_equals_plain_form() -> Result<()> {
        let (n, m, heads, d) = (29, 29, 3, 30);
        let x = |seed, rows: usize| values(&[1, rows, d], seed);
        let (q, k, v) = (x(1, n)?, x(2, m)?, x(3, m)?);
        let norms = (values(&[d], 4)?, values(&[d], 5)?);
        let coords: Vec<[f32; 3]> = (0..n).map(|i| [0.1 * i as f32, 0.3, 0.05 * i as f32]).collect();
        let rope = Rope::new(&coords, d, 10_000.0, q.device())?;
        let bias = values(&[1, heads, n, m], 6)?;
        let bare = Attention {
            heads,
            scale: 0.3,
            norms: [None; 2],
            rope: None,
            bias: None,
            math: MatmulType::F32,
            int8: false,
        };
        let full = Attention {
            norms: [Some((&norms.0, 1e-5)), Some((&norms.1, 1e-5))],
            rope: Some(&rope),
            bias: Some(&bias),
            ..bare
        };
        for how in [bare, full] {
            assert!(distance(&how.forward(&q, &k, &v)?, &how.plain(&q, &k, &v)?)? < LIMIT);
        }
        let (k, v) = (k.narrow(1, 0, 7)?, v.narrow(1, 0, 7)?);
        assert!(distance(&bare.forward(&q, &k, &v)?, &bare.plain(&q, &k, &v)?)? < LIMIT);
        Ok(())
    }

    /// What FlashAttention's kernels stand in for, by its definition (`candle_flash_attn::flash_attn`), one head at a time.
    fn by_definition(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
        let (b, _, heads, _) = q.dims4()?;
        let head = |i: usize, h: usize| {
            let [q, k, v] = [q, k, v].map(|x| x.get(i)?.narrow(1, h, 1)?.squeeze(1)?.contiguous());
            softmax(&(q?.matmul(&k?.t()?)? * scale)?)?.matmul(&v?)
        };
        let one = |i: usize| Tensor::stack(&(0..heads).map(|h| head(i, h)).collect::<Result<Vec<_>>>()?, 1);
        Tensor::stack(&(0..b).map(one).collect::<Result<Vec<_>>>()?, 0)
    }

    /// Norms, positions and heads as FlashAttention's kernels are handed them; self-attention and a prompt's keys, two at a time.
    #[test]
    fn heads_apart_equal_plain_form() -> Result<()> {
        let (n, heads, d) = (13, 3, 24);
        let x = |seed, rows: usize| values(&[2, rows, d], seed);
        let norms = (values(&[d], 4)?, values(&[d], 5)?);
        let coords: Vec<[f32; 3]> = (0..n).map(|i| [0.1 * i as f32, 0.3, 0.05 * i as f32]).collect();
        let rope = Rope::new(&coords, d, 10_000.0, norms.0.device())?;
        let bare = Attention {
            heads,
            scale: 0.3,
            norms: [None; 2],
            rope: None,
            bias: None,
            math: MatmulType::F32,
            int8: false,
        };
        let own = Attention { norms: [Some((&norms.0, 1e-5)), Some((&norms.1, 1e-5))], rope: Some(&rope), ..bare };
        let prompt = Attention { norms: [Some((&norms.0, 1e-5)), None], ..bare };
        for (how, m) in [(own, n), (prompt, 7), (bare, 5)] {
            let (q, k, v) = (x(1, n)?, x(2, m)?, x(3, m)?);
            let got = how.over_heads(&q, &k, &v, |q, k, v| {
                assert_eq!((q.dims(), k.dims()), (&[2, n, heads, d / heads][..], &[2, m, heads, d / heads][..]));
                assert!([q, k, v].iter().all(|x| x.is_contiguous())); // no copies are made for it
                by_definition(q, k, v, how.scale)
            })?;
            assert!(distance(&got, &how.plain(&q, &k, &v)?)? < LIMIT);
        }
        Ok(())
    }

    #[test]
    fn a_key_with_a_large_negative_bias_changes_nothing() -> Result<()> {
        let (q, k, v) = (values(&[1, 5, 30], 7)?, values(&[1, 8, 30], 8)?, values(&[1, 8, 30], 9)?);
        let bias = Tensor::new(&[0f32, 0., 0., 0., 0., 0., -10_000., -10_000.], q.device())?;
        let how = Attention {
            heads: 3,
            scale: 0.3,
            norms: [None; 2],
            rope: None,
            bias: None,
            math: MatmulType::F32,
            int8: false,
        };
        let masked = Attention { bias: Some(&bias), ..how }.forward(&q, &k, &v)?;
        let dropped = how.forward(&q, &k.narrow(1, 0, 6)?, &v.narrow(1, 0, 6)?)?;
        assert!(distance(&masked, &dropped)? < 1e-6); // the same sums with zeros added
        Ok(())
    }
}
