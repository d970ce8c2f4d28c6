//! The passes a run makes down the noise levels: one, or two with the upscaler between them. What was asked for, filled up from
//! the model's entry in the catalogue.

use crate::hub::catalogue::{PassDefaults, RunDefaults};
use crate::job::recipe::Recipe;
use crate::job::request::Request;
use crate::models::Family;
use crate::sampling::guidance::{ByLevel, Plan};
use crate::sampling::solver::{Levels, Schedule};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// One way down the noise levels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    pub levels: Levels,
    pub guidance: Plan,
    /// Compression of its latents' tones, should they be decoded.
    pub tone_map: f64,
}

/// What stands between two passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upscaling {
    /// Sides of the first pass, of the whole; the second has twice the first one's.
    pub downscale: f64,
    /// How far the upscaled latents are brought to the first pass's mean and deviation.
    pub adain: f64,
}

impl Upscaling {
    pub fn decide(request: &Request, model: &RunDefaults, family: Family) -> Self {
        Self { downscale: model.downscale.unwrap_or(family.defaults().downscale), adain: request.adain.unwrap_or(1.0) }
    }
}

/// Whether the run is to make two passes, as far as the request and the model's entry say.
pub fn are_two(request: &Request, model: &RunDefaults) -> bool {
    request.upscaler.as_deref().map_or(model.in_two_passes(), |path| path != "none")
}

/// What passes are decided from.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub request: &'a Request,
    /// Run defaults of the model's entry.
    pub model: &'a RunDefaults,
    pub family: Family,
    pub recipe: Recipe,
    /// Noise levels that the checkpoint itself names.
    pub allowed: Option<&'a [f64]>,
    /// Whether there is an upscaler to go between two passes.
    pub two: bool,
}

/// The model's own value where a pass has none.
fn own<T: Clone>(pass: &Option<T>, model: &Option<T>) -> Option<T> {
    pass.clone().or(model.clone())
}

impl Given<'_> {
    /// Returns the passes of a run. An explicit flag holds in all of them and at every noise level, but for `--steps` and `--sigmas`,
    /// which are the first one's.
    /// - Errors on levels and lists that do not fit together.
    pub fn passes(&self) -> Result<Vec<Pass>> {
        let none = PassDefaults::default();
        let make = |own: &PassDefaults, levels: Levels| {
            let tone_map = self.request.tone_map.or(own.tone_map).or(self.model.tone_map).unwrap_or(0.0);
            let pass = Pass { levels, guidance: self.guidance(own), tone_map };
            pass.guidance.check().map(|()| pass)
        };
        if !self.two {
            return Ok(vec![make(&none, self.first_levels(&none)?)?]);
        }
        let (first, second) = (self.model.first.as_ref().unwrap_or(&none), self.model.second.as_ref().unwrap_or(&none));
        let levels = self.first_levels(first)?;
        Ok(vec![make(first, levels)?, make(second, self.second_levels(second)?)?])
    }

    fn first_levels(&self, pass: &PassDefaults) -> Result<Levels> {
        let Self { request, model, .. } = self;
        let own = pass.steps.or(model.steps);
        let usual = own.unwrap_or(self.family.defaults().steps);
        Ok(match (request.steps, &request.sigmas) {
            // what is left out stays the same share
            (Some(steps), _) => {
                let share = |skip: Option<usize>| (skip.unwrap_or(0) * steps + usual / 2) / usual;
                Levels::Steps { steps, skip_initial: share(pass.skip_initial), skip_final: share(pass.skip_final) }
            }
            (None, Some(sigmas)) => Levels::Sigmas(sigmas.clone()),
            (None, None) => match (&pass.sigmas, self.allowed, &model.sigmas) {
                (Some(sigmas), ..) => Levels::Sigmas(sigmas.clone()),
                // exact levels before the file's own, which are rounded to four places
                _ if own.is_some() => steps(pass, usual)?,
                (None, Some(sigmas), _) => Levels::Sigmas(sigmas.to_vec()),
                (None, None, Some(sigmas)) => Levels::Sigmas(sigmas.clone()),
                (None, None, None) => steps(pass, usual)?,
            },
        })
    }

    fn second_levels(&self, pass: &PassDefaults) -> Result<Levels> {
        Ok(match (&self.request.second_sigmas, &pass.sigmas, pass.steps.or(self.model.steps)) {
            (Some(sigmas), ..) | (None, Some(sigmas), _) => Levels::Sigmas(sigmas.clone()),
            (None, None, Some(usual)) if pass.skip_initial.is_some() => steps(pass, usual)?,
            _ => Levels::Sigmas(self.family.defaults().refine.to_vec()),
        })
    }

    fn guidance(&self, pass: &PassDefaults) -> Plan {
        let Self { request, model, .. } = self;
        let number = |flag: Option<f64>, pass: &Option<ByLevel<f64>>, model: &Option<ByLevel<f64>>, otherwise: f64| {
            flag.map(ByLevel::All).or_else(|| own(pass, model)).unwrap_or(ByLevel::All(otherwise))
        };
        let blocks = request.stg_blocks.clone().map(ByLevel::All);
        let stg = number(request.stg, &pass.stg, &model.stg, 0.0);
        let mut rescale = number(request.guidance_rescale, &pass.guidance_rescale, &model.guidance_rescale, 0.0);
        if self.recipe.rescales_with_stg_only() && request.guidance_rescale.is_none() {
            rescale = where_stg_is_on(rescale, &stg);
        }
        Plan {
            timesteps: own(&pass.guidance_timesteps, &model.guidance_timesteps).unwrap_or_default(),
            scale: number(request.guidance, &pass.guidance, &model.guidance, self.family.defaults().guidance),
            rescale,
            star: request.cfg_star.or(own(&pass.cfg_star, &model.cfg_star)).unwrap_or(false),
            stg,
            stg_blocks: blocks.or_else(|| own(&pass.stg_blocks, &model.stg_blocks)).unwrap_or(ByLevel::All(vec![])),
        }
    }
}

fn steps(pass: &PassDefaults, steps: usize) -> Result<Levels> {
    let (skip_initial, skip_final) = (pass.skip_initial.unwrap_or(0), pass.skip_final.unwrap_or(0));
    ensure!(skip_initial + skip_final < steps, "of {steps} steps {skip_initial} and {skip_final} cannot be left out");
    Ok(Levels::Steps { steps, skip_initial, skip_final })
}

/// `rescale`, but 0 at the levels where there is no spatio-temporal guidance.
fn where_stg_is_on(rescale: ByLevel<f64>, stg: &ByLevel<f64>) -> ByLevel<f64> {
    let on = |rescale: f64, stg: f64| if stg > 0.0 { rescale } else { 0.0 };
    match (rescale, stg) {
        (rescale, ByLevel::All(stg)) if *stg > 0.0 => rescale,
        (_, ByLevel::All(_)) => ByLevel::All(0.0),
        (ByLevel::All(rescale), ByLevel::Each(stg)) => ByLevel::Each(stg.iter().map(|&stg| on(rescale, stg)).collect()),
        (ByLevel::Each(rescale), ByLevel::Each(stg)) if rescale.len() == stg.len() => {
            ByLevel::Each(rescale.iter().zip(stg).map(|(&rescale, &stg)| on(rescale, stg)).collect())
        }
        (rescale, _) => rescale, // lists of different lengths: `Plan::check` refuses them
    }
}

impl Pass {
    /// - Errors on blocks that the transformer does not have, on guidance by blocks that nobody names, and on levels that do
    ///   not fall.
    pub fn check(&self, blocks: usize) -> Result<()> {
        let guidance = &self.guidance;
        let named = || guidance.stg_blocks.values().iter().flatten();
        if let Some(block) = named().find(|&&block| block >= blocks) {
            anyhow::bail!(
                "--stg-blocks {block}: this model has the blocks 0 to {}\n  fix: name one in the middle or later, such as --stg-blocks {}",
                blocks - 1,
                blocks * 2 / 3
            );
        }
        ensure!(
            !guidance.needs_stg() || named().next().is_some(),
            "--stg: nobody says in which blocks, and this model's entry neither\n  fix: name them with --stg-blocks, one in the middle or later, such as {}",
            blocks * 2 / 3
        );
        if let Levels::Sigmas(sigmas) = &self.levels {
            Schedule::explicit(sigmas)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::catalogue;
    use crate::job::convention::Convention;
    use crate::models::Config;

    fn given<'a>(request: &'a Request, model: &'a RunDefaults, recipe: Recipe, two: bool) -> Given<'a> {
        Given { request, model, family: Family::ALL[0], recipe, allowed: None, two }
    }

    fn passes(model: &str, request: &Request, two: bool) -> Vec<Pass> {
        let run = &catalogue::find(model).unwrap().run;
        given(request, run, Recipe::decide(request.convention, run.recipe), two).passes().unwrap()
    }

    #[test]
    fn the_13b_dev_recipe_is_its_preset() {
        let passes = passes("ltx-13b-0.9.8-dev", &Request::default(), true);
        assert_eq!(passes[0].levels, Levels::Steps { steps: 30, skip_initial: 0, skip_final: 3 });
        assert_eq!(passes[1].levels, Levels::Steps { steps: 30, skip_initial: 17, skip_final: 0 });
        let at = |pass: usize, sigma: f64| {
            let g = passes[pass].guidance.at(sigma);
            (g.scale, g.stg, g.rescale, g.stg_blocks.to_vec(), g.star)
        };
        assert_eq!(at(0, 0.994), (6.0, 4.0, 0.5, vec![22, 35, 39], true));
        assert_eq!(at(0, 0.999), (1.0, 0.0, 0.0, vec![11, 25, 35, 39], true));
        assert_eq!(at(1, 0.7), (1.0, 1.0, 0.0, vec![27], true));
        let tones = |model, two| self::passes(model, &Request::default(), two).last().unwrap().tone_map;
        assert_eq!([tones("ltx-13b-0.9.8-distilled", true), tones("ltx-13b-0.9.8-distilled", false)], [0.6, 0.0]);
        assert_eq!(tones("ltx-13b-0.9.7-distilled", true), 0.0, "tones came with 0.9.8");
    }

    #[test]
    fn flags_replace_lists_whole_and_in_both_passes() {
        let request = Request { guidance: Some(2.5), steps: Some(10), stg: Some(0.0), ..Default::default() };
        let passes = passes("ltx-13b-0.9.8-dev", &request, true);
        for pass in &passes {
            assert!(pass.guidance.scale == ByLevel::All(2.5) && !pass.guidance.needs_stg());
        }
        assert_eq!(passes[0].levels, Levels::Steps { steps: 10, skip_initial: 0, skip_final: 1 });
        assert_eq!(passes[1].levels, Levels::Steps { steps: 30, skip_initial: 17, skip_final: 0 });
    }

    /// Rescale waits for STG in the entry, and not in diffusers or where it is asked for.
    #[test]
    fn rescale_goes_with_stg() {
        let rescale = |request: Request| passes("ltx-2b-0.9.5", &request, false)[0].guidance.rescale.clone();
        let without = Request { stg: Some(0.0), ..Default::default() };
        assert_eq!(rescale(Request::default()), ByLevel::All(0.7));
        assert_eq!(rescale(without.clone()), ByLevel::All(0.0));
        assert_eq!(rescale(Request { guidance_rescale: Some(0.4), ..without.clone() }), ByLevel::All(0.4));
        assert_eq!(rescale(Request { convention: Some(Convention::Condition), ..without }), ByLevel::All(0.7));
        let each = |values: &[f64]| ByLevel::Each(values.to_vec());
        assert_eq!(where_stg_is_on(ByLevel::All(0.7), &each(&[0.0, 4.0])), each(&[0.0, 0.7]));
        assert_eq!(where_stg_is_on(each(&[0.5, 0.6, 0.7]), &each(&[1.0, 0.0, 2.0])), each(&[0.5, 0.0, 0.7]));
    }

    /// A number of steps in the entry makes exact levels, whatever list the file has; a file's list goes before the entry's.
    #[test]
    fn exact_levels_go_before_rounded_ones() {
        let rounded = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219];
        let levels = |model: &str, allowed: &[f64]| {
            let run = &catalogue::find(model).unwrap().run;
            Given { allowed: Some(allowed), ..given(&Request::default(), run, Recipe::Lightricks, false) }
                .passes()
                .unwrap()
                .remove(0)
                .levels
        };
        let exact = levels("ltx-2b-0.9.6-distilled", &rounded);
        let config = Config::of_entry(catalogue::find("ltx-2b-0.9.6-distilled").unwrap()).unwrap();
        let exact = config.schedule(&exact, Convention::Condition, Recipe::Lightricks, 640).unwrap();
        let want = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0];
        assert_eq!(exact.sigmas, want.map(|sigma: f64| sigma as f32 as f64));
        assert_eq!(levels("ltx-2b-0.9.8-distilled", &[0.5]), Levels::Sigmas(vec![0.5]));
    }

    #[test]
    fn one_pass_leaves_nothing_out() {
        let dev = passes("ltx-13b-0.9.8-dev", &Request::default(), false);
        assert_eq!(dev.len(), 1);
        assert_eq!(dev[0].levels, Levels::Steps { steps: 30, skip_initial: 0, skip_final: 0 });
        let Levels::Sigmas(sigmas) = &passes("ltx-2b-0.9.8-distilled", &Request::default(), false)[0].levels else {
            panic!()
        };
        assert_eq!(sigmas.len(), 8);
        let two = passes("ltx-2b-0.9.8-distilled", &Request::default(), true);
        let sigmas = |pass: &Pass| match &pass.levels {
            Levels::Sigmas(sigmas) => sigmas.clone(),
            steps => panic!("{steps:?}"),
        };
        assert_eq!(sigmas(&two[0]).last(), Some(&0.725));
        assert_eq!(sigmas(&two[1]), Family::ALL[0].defaults().refine);
    }

    #[test]
    fn a_model_without_a_recipe_is_refined_as_distilled_ones_are() {
        let run = RunDefaults::default();
        let two = given(&Request::default(), &run, Recipe::Diffusers, true).passes().unwrap();
        assert_eq!(
            two[0].levels,
            Levels::Steps { steps: Family::ALL[0].defaults().steps, skip_initial: 0, skip_final: 0 }
        );
        assert_eq!(two[1].levels, Levels::Sigmas(Family::ALL[0].defaults().refine.to_vec()));
        let own = Request { second_sigmas: Some(vec![0.5]), ..Default::default() };
        let second = given(&own, &run, Recipe::Diffusers, true).passes().unwrap().remove(1);
        assert_eq!(second.levels, Levels::Sigmas(vec![0.5]));
    }

    #[test]
    fn blocks_have_to_be_there() {
        let request = Request { stg: Some(1.0), ..Default::default() };
        let run = RunDefaults::default();
        let pass = |request: &Request| given(request, &run, Recipe::Diffusers, false).passes().unwrap().remove(0);
        assert!(pass(&request).check(8).unwrap_err().to_string().contains("--stg-blocks"));
        let some = |blocks: &[usize]| Request { stg_blocks: Some(blocks.to_vec()), ..request.clone() };
        assert!(pass(&some(&[8])).check(8).unwrap_err().to_string().contains("0 to 7"));
        assert!(pass(&some(&[7])).check(8).is_ok());
    }
}
