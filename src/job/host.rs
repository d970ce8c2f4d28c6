//! What belongs to the machine and not to the job: where it is computed, how much memory that may take, where things are put.

use crate::job::ranges;
use anyhow::{Result, anyhow};
use std::path::PathBuf;

/// A host's settings for a run. The same job gives the same clip on another host, to rounding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Host {
    /// `auto`, `cpu`, `cuda`, `metal`, or one of several such as `cuda:1`; `auto` where it is absent.
    pub device: Option<String>,
    /// Bytes, the most to use.
    pub memory: Option<u64>,
    /// A folder to keep what was quantised in.
    pub quantize_cache: Option<PathBuf>,
    /// A folder for what is quantised and does not stay in memory, while the program runs.
    pub quantize_scratch: Option<PathBuf>,
    /// Where the clip goes.
    pub out: Option<PathBuf>,
    /// Whether it may replace what is there.
    pub force: bool,
}

impl Host {
    /// The device that was asked for.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or("auto")
    }

    /// Checks every value that can be judged without the machine.
    /// - Errors name the flag, what it was given and what it takes.
    pub fn check(&self) -> Result<()> {
        let Some(memory) = self.memory.map(|bytes| bytes as f64) else { return Ok(()) };
        ranges::check("memory", memory).map_err(|e| anyhow!("--memory {memory}: {e}"))
    }
}
