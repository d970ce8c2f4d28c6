//! Guidance: what is made of the velocities for a prompt, for its negative, and with self-attention left out. Knows no model.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// One value for all steps, or one for each of the noise levels that [`Plan::timesteps`] names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ByLevel<T> {
    All(T),
    Each(Vec<T>),
}

impl<T> ByLevel<T> {
    /// All values that a run may meet.
    pub fn values(&self) -> &[T] {
        match self {
            ByLevel::All(value) => std::slice::from_ref(value),
            ByLevel::Each(values) => values,
        }
    }

    fn at(&self, place: usize) -> &T {
        match self {
            ByLevel::All(value) => value,
            ByLevel::Each(values) => &values[place],
        }
    }
}

/// How a run is guided, at every noise level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Noise levels, falling: what a list holds at place i counts from the i-th level down to the next.
    pub timesteps: Vec<f64>,
    pub scale: ByLevel<f64>,
    pub rescale: ByLevel<f64>,
    pub star: bool,
    pub stg: ByLevel<f64>,
    pub stg_blocks: ByLevel<Vec<usize>>,
}

impl Plan {
    /// - Errors when a list is not as long as `timesteps`.
    pub fn check(&self) -> Result<()> {
        let levels = self.timesteps.len();
        let fits = |each: Option<usize>| each.is_none_or(|n| n == levels && n > 0);
        let length = |list: &ByLevel<f64>| matches!(list, ByLevel::Each(_)).then(|| list.values().len());
        let blocks = matches!(self.stg_blocks, ByLevel::Each(_)).then(|| self.stg_blocks.values().len());
        ensure!(
            [length(&self.scale), length(&self.rescale), length(&self.stg), blocks].into_iter().all(fits),
            "lists of guidance have to be as long as `guidance_timesteps`, {levels}"
        );
        Ok(())
    }

    /// What holds at a step: the lists' values at the first level that is not above `sigma`, else their last ones.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__` (`guidance_mapping`), at 5260738. Levels are
    ///   compared in f32 there, and steps fall exactly on them.
    pub fn at(&self, sigma: f64) -> Guidance<'_> {
        let place = self.timesteps.iter().position(|&level| level as f32 <= sigma as f32);
        let place = place.unwrap_or(self.timesteps.len().saturating_sub(1));
        Guidance {
            scale: *self.scale.at(place),
            rescale: *self.rescale.at(place),
            star: self.star,
            stg: *self.stg.at(place),
            stg_blocks: self.stg_blocks.at(place),
        }
    }

    /// Whether the negative prompt is evaluated at some level.
    pub fn needs_negative(&self) -> bool {
        self.scale.values().iter().any(|&scale| scale > 1.0)
    }

    /// Whether some step is evaluated without self-attention.
    pub fn needs_stg(&self) -> bool {
        self.stg.values().iter().any(|&stg| stg > 0.0)
    }
}

/// Guidance of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance<'a> {
    /// How strongly the prompt is followed against the negative one, which is evaluated above 1 only.
    pub scale: f64,
    /// Share of the guided velocity that is brought back to the deviation of the prompt's own.
    pub rescale: f64,
    /// CFG-star: the negative velocity is first scaled to its nearest to the positive one.
    pub star: bool,
    /// Spatio-temporal guidance: how strongly away from the velocity that comes without self-attention in `stg_blocks`.
    pub stg: f64,
    pub stg_blocks: &'a [usize],
}

impl Guidance<'_> {
    /// Whether the negative prompt has to be evaluated.
    pub fn needs_negative(&self) -> bool {
        self.scale > 1.0
    }

    /// Whether the prompt has to be evaluated without self-attention in `stg_blocks`.
    pub fn needs_stg(&self) -> bool {
        self.stg > 0.0 && !self.stg_blocks.is_empty()
    }

    /// The velocity to follow.
    /// - `positive`, `negative`, `weakened`: velocities for the prompt, for the negative prompt, and for the prompt with
    ///   self-attention left out, (1, n, c) f32, extra tokens included; what is not needed is `None`.
    /// - With nothing to guide by it is `positive`, untouched.
    /// - Source: LTX-Video `pipelines/pipeline_ltx_video.py`, `__call__`, at 5260738. Its `rescaling_scale` is diffusers'
    ///   `guidance_rescale` (`rescale_noise_cfg`), but that 1 switches it off, as 0 does, and that it waits for STG; here, as
    ///   in diffusers, 0 is off and 1 is whole, with or without STG.
    pub fn combine(&self, positive: &Tensor, negative: Option<&Tensor>, weakened: Option<&Tensor>) -> Result<Tensor> {
        if negative.is_none() && weakened.is_none() {
            return Ok(positive.clone());
        }
        let mut guided = match negative {
            Some(negative) => {
                let negative = if self.star { (negative * projection(positive, negative)?)? } else { negative.clone() };
                (&negative + ((positive - &negative)? * self.scale)?)?
            }
            None => positive.clone(),
        };
        if let Some(weakened) = weakened {
            guided = (guided + ((positive - weakened)? * self.stg)?)?;
        }
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let ratio = deviation(positive)? / deviation(&guided)?;
        Ok((guided * (self.rescale * ratio + 1.0 - self.rescale))?)
    }
}

/// The factor that brings `onto` nearest to `x`.
fn projection(x: &Tensor, onto: &Tensor) -> Result<f64> {
    /// As the source has it: no division by zero.
    const EPS: f64 = 1e-8;
    let [x, onto] = [x, onto].map(|t| t.flatten_all()?.to_vec1::<f32>());
    let (x, onto) = (x?, onto?);
    let dot = x.iter().zip(&onto).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
    Ok(dot / (onto.iter().map(|&b| (b as f64).powi(2)).sum::<f64>() + EPS))
}

/// The sample deviation over all values.
fn deviation(x: &Tensor) -> Result<f64> {
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let mean = values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
    let square = values.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>();
    Ok((square / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::solver::{Schedule, Shift};

    /// The lists of the 13B dev preset.
    fn plan() -> Plan {
        Plan {
            timesteps: vec![1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618],
            scale: ByLevel::Each(vec![1.0, 1.0, 6.0, 8.0, 6.0, 1.0, 1.0]),
            rescale: ByLevel::All(0.0),
            star: true,
            stg: ByLevel::Each(vec![0.0, 0.0, 4.0, 4.0, 4.0, 2.0, 1.0]),
            stg_blocks: ByLevel::Each(vec![vec![], vec![11], vec![22], vec![28], vec![28], vec![29], vec![30]]),
        }
    }

    /// The places that the source's own lookup gives for its 30 steps.
    #[test]
    fn lists_are_looked_up_by_noise_level() {
        let plan = plan();
        plan.check().unwrap();
        let levels = Schedule::linear_quadratic(30, &Shift::NONE).sigmas;
        let scales: Vec<f64> = levels[..30].iter().map(|&sigma| plan.at(sigma).scale).collect();
        // 0.985 is the tenth step's level itself, and 0.9933 just below the fifth's
        let want = [[1.0].repeat(3), [6.0].repeat(2), [8.0].repeat(5), [6.0].repeat(4), [1.0].repeat(16)].concat();
        assert_eq!(scales, want);
        assert_eq!(plan.at(1.0).stg_blocks, Vec::<usize>::new());
        assert_eq!(plan.at(0.7).stg_blocks, [30], "between two levels the lower one holds");
        assert_eq!(plan.at(0.1).stg_blocks, [30], "below all levels the last one holds");
        assert!(!plan.at(1.0).needs_stg() && !plan.at(1.0).needs_negative() && plan.at(0.99).needs_stg());
    }

    #[test]
    fn lists_of_other_lengths_are_refused() {
        assert!(Plan { stg: ByLevel::Each(vec![1.0]), ..plan() }.check().is_err());
        assert!(Plan { timesteps: vec![], ..plan() }.check().is_err());
    }
}
