//! GELU and SiLU.

use super::{fast, rows};
use candle_core::{Result, Tensor};

/// GELU by the tanh formula (`gelu_new`, `gelu-approximate`). Any shape.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if !fast(x) {
        return x.gelu();
    }
    rows::map_rows("gelu-tanh", x, |x, y| {
        for (y, &x) in y.iter_mut().zip(x) {
            // 0.5 (1 + tanh u) = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)
            let u = 0.797_884_6 * (x + 0.044_715 * x * x * x);
            *y = x / (1.0 + rows::exp(-2.0 * u));
        }
    })
}

/// x times sigmoid(x). Any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if !fast(x) {
        return x.silu();
    }
    rows::map_rows("silu", x, |x, y| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x / (1.0 + rows::exp(-x));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{distance, values};
    use candle_core::Result;

    /// The two forms differ by a few roundings of f32.
    const LIMIT: f32 = 1e-6;

    #[test]
    fn fast_forms_equal_plain_forms() -> Result<()> {
        let x = (values(&[3, 7, 37], 1)? * 3.0)?;
        assert!(distance(&super::gelu_tanh(&x)?, &x.gelu()?)? < LIMIT);
        assert!(distance(&super::silu(&x)?, &x.silu()?)? < LIMIT);
        Ok(())
    }
}
