//! What is said of flags that do nothing, or less than they might.

use crate::embedded;
use crate::hub::catalogue::Entry;
use crate::job::request::Request;
use crate::models::bundle::Checkpoint;
use crate::planning::settings::{Settings, default_size};
use crate::platform::device::Quantize;
use crate::platform::progress::Progress;
use crate::platform::shown;

/// What `--quantize` leaves as it is.
pub fn log_quantised(checkpoint: &Checkpoint, quantize: Quantize, progress: &Progress) {
    let parts = [&checkpoint.transformer, &checkpoint.text.1];
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
    if !checkpoint.config.decoder_takes_timestep() {
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

/// What a model of a small world is asked for beyond it: words that mean nothing to it, and a size far from its own. Neither is
/// known of other models.
/// - `size`: where one was asked for. `entry`: the model's.
pub fn beyond_world(settings: &Settings, size: Option<(usize, usize)>, entry: Option<&Entry>) -> Vec<String> {
    /// Words that are named.
    const MOST: usize = 6;
    let Some((entry, world)) = entry.and_then(|entry| Some((entry, entry.world()?))) else { return vec![] };
    let called = match entry.name == embedded::NAME {
        true => "the built-in model".to_string(),
        false => format!("the built-in model `{}`", entry.name),
    };
    let mut notes = vec![];
    let mut words: Vec<&str> = vec![];
    for word in settings.scenes.iter().flat_map(|scene| world.unknown(&scene.prompt)) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if !words.is_empty() {
        let named: Vec<String> = words.iter().take(MOST).map(|word| format!("`{}`", shown::value(word))).collect();
        let more = if words.len() > MOST { format!(" and {} more words", words.len() - MOST) } else { String::new() };
        notes.push(format!(
            "{called} does not know {}{more}; it knows {} (`reel models list` has others)",
            named.join(", "),
            world.short
        ));
    }
    let (own_width, own_height) = default_size(&entry.run, settings.family);
    if let Some((width, height)) = size {
        let share = (width * height) as f64 / (own_width * own_height) as f64;
        let what = format!("{called} was trained at {own_width}x{own_height}, and");
        if share > 1.5 {
            let times = (width.min(height) / own_width).clamp(2, 8);
            notes.push(format!(
                "{what} larger sizes fall apart: leave out --size, and --scale {times} enlarges the clip"
            ));
        } else if share < 0.3 {
            notes.push(format!("{what} smaller sizes come to little: leave out --size"));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::catalogue;
    use crate::job::convention::Convention;
    use crate::models::Family;
    use crate::planning::settings::Given;

    #[test]
    fn only_the_built_in_models_have_a_small_world() {
        let said = |model: &str, prompt: &str, size: Option<(usize, usize)>| {
            let entry = catalogue::find(model).unwrap();
            let request = Request { prompt: prompt.to_string(), size, ..Default::default() };
            let settings = Settings::decide(&Given {
                request: &request,
                model: &entry.run,
                allowed: None,
                family: Family::ALL[0],
                convention: Convention::Condition,
                size: None,
                two: false,
                seed: 1,
            })
            .unwrap();
            beyond_world(&settings, size, Some(entry))
        };
        let words = said("tiny", "a cat sleeps on a sofa", None);
        assert!(
            words.len() == 1 && words[0].contains("does not know `cat`, `sleeps`, `sofa`; it knows a coloured ball")
        );
        assert!(said("tiny", "a b c d e f g h i", None)[0].contains("`g` and 2 more words"));
        assert!(said("tiny", "a red ball bounces on green grass", Some((64, 64))).is_empty());
        assert!(said("tiny", "", Some((96, 64))).is_empty() && said("tiny", "", Some((40, 40))).is_empty());
        assert!(said("tiny", "a red ball", Some((512, 512)))[0].contains("--scale 8"));
        for small in [(16, 16), (32, 32)] {
            assert!(said("tiny", "a red ball", Some(small))[0].contains("trained at 64x64, and smaller"), "{small:?}");
        }
        let other = said("tiny-128", "a cat and a rocket", Some((512, 512)));
        assert!(
            other[0].contains("the built-in model `tiny-128` does not know `cat`; it knows one or two"),
            "{other:?}"
        );
        assert!(other[1].contains("`tiny-128` was trained at 128x128") && other[1].contains("--scale 4"), "{other:?}");
        assert!(said("tiny-128", "a rocket in the snow", Some((192, 128))).is_empty());
        assert!(said("ltx-2b-0.9.5", "a cat sleeps on a sofa", Some((64, 64))).is_empty());
        let hostile = said("tiny", "\u{1b}]0;x\u{7}", None).join("");
        assert!(!hostile.contains('\u{1b}'), "{hostile}");
    }
}
