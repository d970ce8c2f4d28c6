//! What a checkpoint says of its noise levels, and the schedule that comes of it.

use crate::job::convention::Convention;
use crate::job::recipe::Recipe;
use crate::models::ltx::config::{LABELS, VaeVersion};
use crate::models::ltx::releases::RELEASES;
use crate::sampling::solver::{Levels, Schedule, Shift};
use crate::weights::config::{Keys, brief, with_fix};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

/// How noise levels are spaced before they are bent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    Uniform,
    LinearQuadratic,
}

/// How a checkpoint's noise schedule is made.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// What Lightricks' form names; diffusers' leaves it to the pipeline.
    pub sampler: Option<Sampler>,
    pub shift: f64,
    /// Shift by the number of tokens: (base shift, max shift, base tokens, max tokens).
    pub dynamic: Option<[f64; 4]>,
    /// The last sigma before 0, which the schedule is stretched to.
    pub terminal: Option<f64>,
}

impl SchedulerConfig {
    /// - Source: diffusers `schedulers/scheduling_flow_match_euler_discrete.py` (defaults), at 58eb52c; LTX-Video
    ///   `schedulers/rf.py`, `RectifiedFlowScheduler`, at 5260738.
    pub fn parse(json: &Value, what: &str) -> Result<Self> {
        Self::read(json, what).map_err(|error| with_fix(error, RELEASES))
    }

    fn read(json: &Value, what: &str) -> Result<Self> {
        let mut keys = Keys::new(json, what)?;
        let class = json["_class_name"].as_str().unwrap_or("missing").to_string();
        keys.ignore(&LABELS);
        keys.only("num_train_timesteps", &[json!(1000)])?;
        let config = match class.as_str() {
            "FlowMatchEulerDiscreteScheduler" => {
                for key in [
                    "invert_sigmas",
                    "stochastic_sampling",
                    "use_beta_sigmas",
                    "use_exponential_sigmas",
                    "use_karras_sigmas",
                ] {
                    keys.only(key, &[json!(false)])?;
                }
                keys.only("time_shift_type", &[json!("exponential")])?;
                let bounds = [
                    keys.or("base_shift", 0.5)?,
                    keys.or("max_shift", 1.15)?,
                    keys.or("base_image_seq_len", 256.0)?,
                    keys.or("max_image_seq_len", 4096.0)?,
                ];
                let [.., few, many] = bounds;
                ensure!(
                    few < many,
                    "{what}: `max_image_seq_len` is {many}, and has to be above `base_image_seq_len`, {few}"
                );
                Self {
                    sampler: None,
                    shift: keys.positive("shift", 1.0)?,
                    dynamic: keys.or("use_dynamic_shifting", false)?.then_some(bounds),
                    terminal: keys.get("shift_terminal")?,
                }
            }
            "RectifiedFlowScheduler" => {
                keys.ignore(&["base_resolution"]);
                keys.only("sampler", &[json!("Uniform"), json!("LinearQuadratic")])?;
                let sampler = match json["sampler"].as_str() {
                    Some("LinearQuadratic") => Sampler::LinearQuadratic,
                    _ => Sampler::Uniform, // the class's default
                };
                keys.only("shifting", &[json!("SD3")])?;
                keys.only("shift", &[json!(1), json!(1.0)])?;
                let terminal = keys.get("target_shift_terminal")?;
                let config = if json["shifting"].is_null() { Self::plain() } else { Self::token_shift() };
                let terminal = config.dynamic.and(terminal);
                Self { sampler: Some(sampler), terminal, ..config }
            }
            other => bail!(
                "{what}: `_class_name` is `{}`, and reel knows `FlowMatchEulerDiscreteScheduler` and `RectifiedFlowScheduler`",
                brief(other)
            ),
        };
        keys.finish(RELEASES)?;
        if let Some(terminal) = config.terminal {
            ensure!(
                (0.0..1.0).contains(&terminal),
                "{what}: `shift_terminal` is {terminal}, and has to be at least 0 and below 1"
            );
        }
        Ok(config)
    }

    /// What a release without a word on it is sampled with.
    pub fn of_release(vae: VaeVersion) -> Self {
        match vae {
            VaeVersion::V090 | VaeVersion::V091 => Self::token_shift(),
            VaeVersion::V095 => Self::plain(),
        }
    }

    /// What 0.9.5 and later are sampled with.
    pub fn plain() -> Self {
        Self { sampler: None, shift: 1.0, dynamic: None, terminal: None }
    }

    /// What 0.9.0 and 0.9.1 are sampled with.
    /// - Source: LTX-Video `schedulers/rf.py`, `sd3_resolution_dependent_timestep_shift`, at 5260738.
    pub fn token_shift() -> Self {
        Self { sampler: None, shift: 1.0, dynamic: Some([0.95, 2.05, 1024.0, 4096.0]), terminal: Some(0.1) }
    }
}

/// Returns the noise levels of a pass over a video of `tokens`.
/// - `config`: what the checkpoint says of its schedule.
/// - Errors on levels that do not fall, and when all steps are left out.
pub fn schedule(
    levels: &Levels,
    config: &SchedulerConfig,
    convention: Convention,
    recipe: Recipe,
    tokens: usize,
) -> Result<Schedule> {
    let (n, skip_initial, skip_final) = match levels {
        Levels::Sigmas(sigmas) => return Schedule::explicit(sigmas),
        Levels::Steps { steps, skip_initial, skip_final } => (*steps, *skip_initial, *skip_final),
    };
    let fixed = Shift { shift: config.shift, terminal: config.terminal };
    let by_tokens = config.dynamic.map(|bounds| Shift::by_tokens(tokens, bounds, config.terminal));
    let header = config.sampler.filter(|_| recipe.follows_header());
    let (sampler, shift) = match (header, convention) {
        (Some(sampler), _) => (sampler, by_tokens.unwrap_or(fixed)),
        (None, Convention::Text) => (Sampler::Uniform, by_tokens.unwrap_or(fixed)),
        // the shift by tokens belongs to the other convention
        (None, Convention::Condition) => {
            (Sampler::LinearQuadratic, if by_tokens.is_some() { Shift::NONE } else { fixed })
        }
    };
    let whole = match sampler {
        Sampler::Uniform => Schedule::linear(n, &shift),
        Sampler::LinearQuadratic => Schedule::linear_quadratic(n, &shift),
    };
    whole.without(skip_initial, skip_final)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with a sampler is followed by models of the catalogue; without one, and in diffusers, the convention decides.
    #[test]
    fn the_schedule_is_the_headers() {
        use Convention::{Condition, Text};
        let steps = Levels::Steps { steps: 5, skip_initial: 0, skip_final: 0 };
        let header = SchedulerConfig { sampler: Some(Sampler::Uniform), ..SchedulerConfig::token_shift() };
        let quadratic = SchedulerConfig { sampler: Some(Sampler::LinearQuadratic), ..SchedulerConfig::plain() };
        let sigmas = |config: &SchedulerConfig, convention, recipe| {
            schedule(&steps, config, convention, recipe, 2688).unwrap().sigmas
        };
        let uniform = sigmas(&header, Text, Recipe::Diffusers);
        let plain = sigmas(&SchedulerConfig::plain(), Condition, Recipe::Lightricks);
        assert_ne!(uniform, plain);
        assert_eq!(sigmas(&header, Condition, Recipe::Lightricks), uniform);
        assert_eq!(sigmas(&header, Condition, Recipe::Diffusers), plain);
        assert_eq!(sigmas(&quadratic, Text, Recipe::Lightricks), plain);
        assert_eq!(
            sigmas(&SchedulerConfig::token_shift(), Condition, Recipe::Lightricks),
            plain,
            "no header, as its VAE"
        );
    }
}
