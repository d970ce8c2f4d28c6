//! RMS and layer norm over the last axis; the variance is taken in f32.

use super::{fast, rows};
use candle_core::{D, DType, Result, Tensor};

/// Divides each row by its root mean square, then multiplies by `weight` (d) where there is one.
/// - `x`: (..., d). `eps` is added to the mean square.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let y = if fast(x) && weight.is_none_or(|w| !w.track_op()) {
        rows::map_rows("rms-norm", x, move |x, y| {
            let scale = (mean(x.iter().map(|x| x * x), x.len()) + eps as f32).sqrt().recip();
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale);
        })?
    } else {
        let wide = x.to_dtype(DType::F32)?; // squares overflow f16 and lose digits in bf16
        let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        wide.broadcast_div(&(square + eps)?.sqrt()?)?.to_dtype(x.dtype())?
    };
    match weight {
        Some(weight) => y.broadcast_mul(weight),
        None => Ok(y),
    }
}

/// Takes each row's mean off and divides by its deviation; the affine step, where there is one, is the caller's.
/// - `x`: (..., d). `eps` is added to the variance.
pub fn layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    if fast(x) {
        return rows::map_rows("layer-norm", x, move |x, y| {
            let mid = mean(x.iter().copied(), x.len());
            let scale = (mean(x.iter().map(|x| (x - mid) * (x - mid)), x.len()) + eps as f32).sqrt().recip();
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mid) * scale);
        });
    }
    let wide = x.to_dtype(DType::F32)?; // as above
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())
}

/// x (1 + scale) + shift, the adaptive norm's second half.
/// - `x`: (b, n, d). `shift`, `scale`: (b, n, d) or (b, 1, d).
pub fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

/// The mean in eight running sums, which the compiler can keep in one vector register.
fn mean(values: impl Iterator<Item = f32>, n: usize) -> f32 {
    let mut sums = [0f32; 8];
    values.enumerate().for_each(|(i, v)| sums[i % 8] += v);
    sums.iter().sum::<f32>() / n as f32
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use super::*;
    use candle_core::Var;

    /// The two forms sum in another order.
    const LIMIT: f32 = 1e-6;

    #[test]
    fn fast_forms_equal_plain_forms() -> Result<()> {
        let x = (values(&[2, 5, 37], 2)? + 0.3)?;
        let weight = values(&[37], 3)?;
        let tracked = Var::from_tensor(&x)?;
        assert!(distance(&rms_norm(&x, Some(&weight), 1e-5)?, &rms_norm(&tracked, Some(&weight), 1e-5)?)? < LIMIT);
        assert!(distance(&layer_norm(&x, 1e-6)?, &layer_norm(&tracked, 1e-6)?)? < LIMIT);
        Ok(())
    }

    #[test]
    fn plain_forms_have_gradients() -> Result<()> {
        let x = Var::from_tensor(&values(&[2, 5], 4)?)?;
        let grads = (rms_norm(&x, None, 1e-6)? + layer_norm(&x, 1e-6)?)?.sqr()?.sum_all()?.backward()?;
        assert!(grads.get(&x).is_some());
        Ok(())
    }
}
