//! What is said of flags that do nothing, or less than they might.

use crate::checkpoint::Checkpoint;
use crate::device::Quantize;
use crate::progress::Progress;
use crate::request::{Request, Settings};

/// What `--quantize` leaves as it is.
pub fn say_quantized(checkpoint: &Checkpoint, quantize: Quantize, progress: &Progress) {
    let parts = [&checkpoint.transformer.1, &checkpoint.text.1];
    let left: Vec<&str> = parts.iter().flat_map(|part| part.not_quantized()).collect();
    let made: usize = parts.iter().map(|part| part.quantized_count()).sum();
    let (name, values) = (quantize.name(), quantize.blocks().values());
    if parts.iter().any(|part| part.is_kept()) {
        progress.detail("quantised weights: as kept by an earlier run");
    } else if made == 0 && left.is_empty() {
        progress.note(&format!("--quantize {name} has no effect: the weights are quantised already"));
    } else if !left.is_empty() {
        progress.note(&format!(
            "--quantize {name}: {} of {} matrices stay as they are, for their rows do not divide into blocks of {values} (-v lists them)",
            left.len(),
            left.len() + made
        ));
        left.iter().for_each(|name| progress.detail(&format!("not quantised: {name}")));
    }
}

/// Flags that do nothing in this run, a line each.
pub fn idle_flags(request: &Request, settings: &Settings, checkpoint: &Checkpoint, free: bool) -> Vec<String> {
    let mut notes = vec![];
    let plans = || settings.passes.iter().map(|pass| &pass.guidance);
    let scales = plans().flat_map(|plan| plan.scale.values());
    let most = scales.fold(0.0f64, |a, &b| a.max(b));
    let stg = plans().any(|plan| plan.needs_stg());
    if settings.negative.is_none() {
        if request.negative.is_some() {
            notes
                .push(format!("--negative has no effect: guidance is {most}, and the negative prompt is used above 1"));
        }
        if request.cfg_star == Some(true) {
            notes.push(format!("--cfg-star has no effect: guidance is {most}"));
        }
        if request.guidance_rescale.is_some_and(|x| x > 0.0) && !stg {
            notes.push(format!("--guidance-rescale has no effect: guidance is {most}"));
        }
    }
    if request.stg_blocks.is_some() && !stg {
        notes.push("--stg-blocks has no effect: --stg is 0".to_string());
    }
    if request.scale_filter.is_some() && settings.scale == 1 {
        notes.push("--scale-filter has no effect: --scale is 1".to_string());
    }
    if settings.passes.len() == 1 {
        for (given, flag) in
            [(request.second_sigmas.is_some(), "--second-sigmas"), (request.adain.is_some(), "--adain")]
        {
            if given {
                notes.push(format!("{flag} has no effect: there is one pass"));
            }
        }
    }
    if !checkpoint.vae.0.timestep_conditioning {
        for (given, flag) in [(request.decode_timestep, "--decode-timestep"), (request.decode_noise, "--decode-noise")]
        {
            if given.is_some() {
                notes.push(format!("{flag} has no effect: this VAE's decoder takes no timestep"));
            }
        }
    }
    if free {
        for (given, flag) in
            [(request.image_noise.is_some(), "--image-noise"), (request.image_crf.is_some(), "--image-crf")]
        {
            if given {
                notes.push(format!("{flag} has no effect: there is no still or clip to hold"));
            }
        }
    }
    notes
}
