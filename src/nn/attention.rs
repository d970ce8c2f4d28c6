//! Scaled dot-product attention, in pieces so that the scores of a long clip never exist all at once.

use super::{fast, rows};
use candle_core::{D, Result, Tensor};

/// Scores held at a time, in elements: 64 Mi (256 MiB in f32).
const SCORES: usize = 1 << 26;

/// softmax(q kᵀ scale + bias) v.
/// - `q`: (b, heads, n, head_dim). `k`, `v`: (b, heads, m, head_dim). `bias`: broadcast to (b, heads, n, m).
/// - Returns (b, heads, n, head_dim).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<&Tensor>) -> Result<Tensor> {
    let (b, heads, n, _) = q.dims4()?;
    let m = k.dim(2)?;
    let bias = bias.map(|bias| bias.broadcast_as((b, heads, n, m))).transpose()?;
    let head_group = (SCORES / (b * n * m).max(1)).clamp(1, heads);
    let query_group = (SCORES / (b * head_group * m).max(1)).clamp(1, n);
    let mut by_head = vec![];
    for h in (0..heads).step_by(head_group) {
        let group = head_group.min(heads - h);
        let k = k.narrow(1, h, group)?.t()?.contiguous()?;
        let v = v.narrow(1, h, group)?.contiguous()?;
        let mut by_query = vec![];
        for i in (0..n).step_by(query_group) {
            let count = query_group.min(n - i);
            let q = (q.narrow(1, h, group)?.narrow(2, i, count)?.contiguous()? * scale)?;
            let scores = q.matmul(&k)?; // (b, group, count, m)
            let scores = match &bias {
                Some(bias) => scores.add(&bias.narrow(1, h, group)?.narrow(2, i, count)?)?,
                None => scores,
            };
            by_query.push(softmax(&scores)?.matmul(&v)?);
        }
        by_head.push(join(by_query, 2)?);
    }
    join(by_head, 1)
}

fn join(mut parts: Vec<Tensor>, axis: usize) -> Result<Tensor> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, axis) }
}

/// Softmax over the last axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if !fast(x) {
        return candle_nn::ops::softmax(x, D::Minus1);
    }
    rows::map_rows("softmax", x, |x, y| {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = rows::exp(x - top));
        let mut sums = [0f32; 8];
        y.iter().enumerate().for_each(|(i, y)| sums[i % 8] += y);
        let scale = sums.iter().sum::<f32>().recip();
        y.iter_mut().for_each(|y| *y *= scale);
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;

    #[test]
    fn softmax_equals_plain_form() -> Result<()> {
        let x = (values(&[2, 3, 5, 37], 6)? * 8.0)?;
        assert!(distance(&softmax(&x)?, &candle_nn::ops::softmax(&x, D::Minus1)?)? < 1e-6); // sums in another order
        Ok(())
    }

    #[test]
    fn a_key_with_a_large_negative_bias_changes_nothing() -> Result<()> {
        let (q, k, v) = (values(&[2, 3, 5, 10], 7)?, values(&[2, 3, 8, 10], 8)?, values(&[2, 3, 8, 10], 9)?);
        let bias = Tensor::new(&[0f32, 0., 0., 0., 0., 0., -10_000., -10_000.], q.device())?;
        let masked = attention(&q, &k, &v, 0.3, Some(&bias))?;
        let dropped = attention(&q, &k.narrow(2, 0, 6)?, &v.narrow(2, 0, 6)?, 0.3, None)?;
        assert!(distance(&masked, &dropped)? < 1e-6); // the same sums with zeros added
        Ok(())
    }
}
