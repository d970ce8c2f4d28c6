//! Whether files fit a model, before the first weight is loaded: its constructor is run over the headers alone.

use super::entry::Type;
use super::forms;
use super::open::Tensors;
use crate::nn::vars::{Source, Vars};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Shape, Tensor};
use std::sync::{Arc, Mutex};

impl Tensors {
    /// Runs a model's constructor over the headers alone and lists what does not fit, so that every error comes before the
    /// first weight is loaded; then looks for damage among the weights.
    pub fn check<T>(&self, build: impl FnOnce(Vars) -> candle_core::Result<T>) -> Result<()> {
        self.check_form()?;
        let faults = Arc::new(Mutex::new(vec![]));
        let asked = Arc::new(Mutex::new(vec![]));
        let checker = Checker { tensors: self.clone(), asked: asked.clone(), faults: faults.clone() };
        let built = build(Vars::new(checker, DType::F32, Device::Cpu));
        let faults = faults.lock().map(|f| f.clone()).unwrap_or_default();
        if faults.is_empty() {
            built.with_context(|| format!("{} cannot be read as a model", self.what()))?;
            return self.check_numbers(&asked.lock().map(|names| names.clone()).unwrap_or_default());
        }
        if let Some((name, dtype)) = faults.iter().find_map(Fault::unread) {
            bail!("{} has weights of type {dtype} (`{name}`), which reel does not read\n  {}", self.what(), forms::FIX)
        }
        const SHOWN: usize = 4;
        let more = faults.len().saturating_sub(SHOWN);
        let shown: Vec<String> = faults.iter().take(SHOWN).map(Fault::to_string).collect();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        bail!(
            "{} does not fit its configuration: {}{more}\n  fix: use weights and configuration of one checkpoint",
            self.what(),
            shown.join("; ")
        )
    }

    /// Errors when they are quantised in a form that reel does not read.
    pub fn check_form(&self) -> Result<()> {
        match forms::unread(&self.entries) {
            Some((form, name)) => {
                bail!(
                    "{} is quantised in a form that reel does not read: {form} (`{name}`)\n  {}",
                    self.what(),
                    forms::FIX
                )
            }
            None => Ok(()),
        }
    }
}

/// With so many faults the rest need not be looked at.
const MOST_FAULTS: usize = 100;

/// What is wrong with a tensor that a model's constructor asked for.
#[derive(Clone)]
enum Fault {
    Missing { name: String },
    Shape { name: String, own: Vec<usize>, expected: Vec<usize> },
    Unread { name: String, dtype: Type },
}

impl Fault {
    /// The name and the type of a tensor of a type that reel does not read.
    fn unread(&self) -> Option<(&str, Type)> {
        if let Self::Unread { name, dtype } = self { Some((name, *dtype)) } else { None }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "the tensor `{name}` is missing"),
            Self::Shape { name, own, expected } => write!(f, "`{name}` has shape {own:?}, expected {expected:?}"),
            Self::Unread { name, dtype } => write!(f, "`{name}` has element type {dtype}"),
        }
    }
}

struct Checker {
    tensors: Tensors,
    /// Names of all tensors that were asked for.
    asked: Arc<Mutex<Vec<String>>>,
    faults: Arc<Mutex<Vec<Fault>>>,
}

impl Source for Checker {
    fn get(&self, shape: &Shape, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let name = || name.to_string();
        let fault = match self.tensors.entries.get(&name()) {
            None => Some(Fault::Missing { name: name() }),
            Some(e) if e.shape != shape.dims() => {
                Some(Fault::Shape { name: name(), own: e.shape.clone(), expected: shape.dims().to_vec() })
            }
            Some(e) if e.dtype.kind().is_none() => Some(Fault::Unread { name: name(), dtype: e.dtype }),
            Some(_) => None,
        };
        if let Ok(mut asked) = self.asked.lock() {
            asked.push(name());
        }
        if let (Some(fault), Ok(mut faults)) = (fault, self.faults.lock()) {
            faults.push(fault);
            if faults.len() == MOST_FAULTS {
                candle_core::bail!("it is another model")
            }
        }
        // a stand-in: the right shape over one element
        Tensor::zeros((), dtype, device)?.broadcast_as(shape.clone())
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.entries.contains_key(name)
    }
}
