//! Which text encoder a model of the catalogue is run with, where the user names none: of those that are here the best one whose
//! stage fits the memory; where none is here, of all that can be fetched.

use crate::hub::catalogue::{self, Entry};
use crate::models::text;
use crate::models::text::open::open_text_encoder;
use crate::models::text::t5::T5Config;
use crate::nn::kernel::MatmulType;
use crate::nn::path::Product;
use crate::planning::weights::Weights;
use crate::planning::work::product_of;
use crate::planning::{Budget, of_text};
use crate::platform::device::Compute;
use crate::platform::progress::human_bytes;
use std::path::{Path, PathBuf};

/// The one taken.
#[derive(Clone, Debug)]
pub struct Encoder {
    pub entry: &'static Entry,
    /// Whether it is here.
    pub here: bool,
    /// Why it is not the model's own; `None`: it is.
    pub why: Option<String>,
}

impl Encoder {
    /// As plans and remarks have it.
    pub fn describe(&self) -> String {
        let why = self.why.as_deref().unwrap_or("the model's own");
        format!("`{}` ({why})", self.entry.name)
    }
}

/// Chooses for a model of the catalogue.
/// - `prompts`: tokens of each, the negative one included. `find`: where an entry's file is, if it is here. `None` where the model
///   takes no text encoder by name.
pub fn encoder(
    model: &Entry,
    prompts: &[usize],
    find: impl Fn(&Entry) -> Option<PathBuf>,
    budget: Budget,
    compute: &Compute,
) -> Option<Encoder> {
    let all = catalogue::text_encoders(model);
    let here: Vec<(&Entry, PathBuf)> = all.iter().filter_map(|entry| Some((*entry, find(entry)?))).collect();
    let own = all.first()?;
    let need = |entry: &Entry| match here.iter().find(|(other, _)| other.name == entry.name) {
        Some((_, path)) => of_file(path, prompts, compute),
        None => of_entry(entry, prompts, compute),
    };
    let among: Vec<&'static Entry> = match here.len() {
        0 => all.clone(),
        _ => here.iter().map(|(entry, _)| *entry).collect(),
    };
    let (entry, why) = best(own, &among, budget, need)?;
    Some(Encoder { entry, here: !here.is_empty(), why })
}

/// The first of `among` that fits, else the last, and why it is not `own`.
fn best(
    own: &Entry,
    among: &[&'static Entry],
    budget: Budget,
    need: impl Fn(&Entry) -> Option<u64>,
) -> Option<(&'static Entry, Option<String>)> {
    let (first, last) = (*among.first()?, *among.last()?);
    let absent = (first.name != own.name).then(|| format!("`{}` is not here", own.name));
    let (most, allowed) = match budget {
        Budget::Asked(bytes) => (bytes, format!("--memory allows {}", human_bytes(bytes))),
        Budget::Free(bytes) => (bytes, format!("{} are free", human_bytes(bytes))),
        Budget::Unknown => return Some((first, absent)),
    };
    // what cannot be read says so when it is opened
    let fits = |entry: &Entry| need(entry).is_none_or(|bytes| bytes <= most);
    let entry = among.iter().copied().find(|entry| fits(entry)).unwrap_or(last);
    if entry.name == first.name {
        return Some((entry, absent));
    }
    let large = human_bytes(need(first).unwrap_or_default());
    let why = format!("encoding the prompt with `{}` takes {large} of memory, and {allowed}", first.name);
    Some((entry, Some(why)))
}

/// What the stage takes with a file that is here.
fn of_file(path: &Path, prompts: &[usize], compute: &Compute) -> Option<u64> {
    let (config, tensors) = open_text_encoder(path).ok()?;
    let weights = Weights::of_text(&tensors, config.layers, compute);
    let product = product_of(&tensors, compute, false);
    Some(of_text(&config, &weights, product, prompts, 0, compute).memory())
}

/// What it takes with one that is not, by its size: all in the catalogue are T5-XXL.
fn of_entry(entry: &Entry, prompts: &[usize], compute: &Compute) -> Option<u64> {
    let size = text::sizes::t5_xxl();
    let config = T5Config::parse(&size.config, size.name).ok()?;
    let weights = Weights::even(entry.size()?, config.layers);
    let product = Product::plain(MatmulType::F32);
    Some(of_text(&config, &weights, product, prompts, 0, compute).memory())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::device::{self, Dtype};

    const PROMPTS: [usize; 2] = [23, 11];

    fn compute() -> Compute {
        device::open("cpu", Dtype::Auto).unwrap()
    }

    fn chosen(here: &[&str], budget: Budget) -> Encoder {
        let model = catalogue::find("ltx-2b-0.9.5").unwrap();
        // no such file: its size is not known, so it fits
        let find = |entry: &Entry| here.contains(&entry.name.as_str()).then(|| PathBuf::from("/nowhere"));
        encoder(model, &PROMPTS, find, budget, &compute()).unwrap()
    }

    #[test]
    fn the_best_that_is_here_or_of_all() {
        let plenty = Budget::Asked(8 << 30);
        let own = chosen(&[], plenty);
        assert_eq!((own.entry.name.as_str(), own.here, own.why), ("t5-xxl-fp16", false, None));
        let here = chosen(&["t5-xxl-q6_k", "t5-xxl-q8_0"], plenty);
        assert_eq!((here.entry.name.as_str(), here.here), ("t5-xxl-q8_0", true));
        assert_eq!(here.describe(), "`t5-xxl-q8_0` (`t5-xxl-fp16` is not here)");
        assert_eq!(chosen(&["t5-xxl-q6_k"], Budget::Unknown).entry.name, "t5-xxl-q6_k");
        assert_eq!(chosen(&["t5-xxl-fp16"], plenty).describe(), "`t5-xxl-fp16` (the model's own)");
    }

    #[test]
    fn less_memory_takes_a_smaller_one() {
        let all = catalogue::text_encoders(catalogue::find("ltx-2b-0.9.5").unwrap());
        let needs: Vec<u64> = all.iter().map(|entry| of_entry(entry, &PROMPTS, &compute()).unwrap()).collect();
        assert!(needs.is_sorted_by(|a, b| a > b), "{needs:?}");
        for (i, need) in needs.iter().enumerate() {
            let found = chosen(&[], Budget::Free(*need));
            assert_eq!((found.entry.name.as_str(), found.here), (all[i].name.as_str(), false));
            assert_eq!(found.why.is_some(), i > 0);
        }
        let found = chosen(&[], Budget::Asked(needs[2]));
        assert!(
            found.describe().contains("`t5-xxl-fp16` takes") && found.describe().contains("--memory allows"),
            "{found:?}"
        );
        // none fits: the smallest, and the plan refuses it
        assert_eq!(chosen(&[], Budget::Asked(1 << 20)).entry.name, all[all.len() - 1].name);
    }
}
