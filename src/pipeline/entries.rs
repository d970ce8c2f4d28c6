//! What the catalogue's models take on this machine, for `reel models list` and `info`.

use crate::hub::catalogue::{Entry, Kind};
use crate::job::geometry::Extent;
use crate::job::host::Host;
use crate::job::request::Request;
use crate::job::windows::Direction;
use crate::pipeline::absent::Known;
use crate::planning::forecast::{Forecast, Speeds, encoder};
use crate::planning::{self, Budget, Choices, Need, Stage, Time};
use crate::platform::device::{self, Compute};
use anyhow::Result;

/// What the catalogue's models take on this machine, with the clip that each makes by default.
pub struct Entries {
    compute: Compute,
    speeds: Speeds,
}

/// What one stage of them takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageForecast {
    pub stage: Stage,
    /// Bytes, as a run is cut to what is free now.
    pub memory: u64,
    pub time: Time,
}

/// What one of them takes.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryForecast {
    pub clip: Extent,
    /// Bytes at the most, with all that is used more than once kept in memory.
    pub memory: u64,
    /// Bytes at the most, where memory is short: layers are opened at each step, which takes longer.
    pub least_memory: u64,
    /// Whether that can be had here; `None` where that is not known.
    pub fits: Option<bool>,
    pub time: Time,
    pub stages: Vec<StageForecast>,
}

impl Entries {
    /// Opens the device that runs take by default, and the machine's history. What is not known of its speed is measured once,
    /// in a second or two.
    pub fn new() -> Result<Self> {
        Ok(Self { compute: device::open("auto", Default::default())?, speeds: Speeds::of_machine(true) })
    }

    /// - `None` for what is no model, and for one whose sizes the catalogue does not know.
    pub fn of(&mut self, entry: &'static Entry) -> Option<EntryForecast> {
        /// As long as people write them for these models.
        const PROMPT: &str = "A woman with long brown hair walks along a beach at sunset, waves roll in behind her, and the camera follows her from the side";
        if entry.kind != Kind::Model {
            return None;
        }
        let host = Host::default();
        let request = Request { prompt: PROMPT.to_string(), model: Some(entry.name.clone()), ..Request::default() };
        let encoder = encoder(&request, &host, &self.compute).ok()?;
        let known = Known::of(&request, &host, entry, encoder, &self.compute).ok()?;
        let sketch = known.sketch(&request, None, &[], Direction::Forward).ok()?;
        let forecast = Forecast::new(known.model, sketch, &request, &host, &self.compute).ok()?;
        let Forecast { plan, model, .. } = &forecast;
        let most = |choices: &Choices| {
            let needs = planning::needs(model, &plan.task, choices, &self.compute);
            needs.iter().map(Need::memory).max().unwrap_or(0)
        };
        let times = forecast.times(&plan.needs, &mut self.speeds);
        let stages = plan.needs.iter().zip(&times).map(|(need, time)| StageForecast {
            stage: need.stage,
            memory: need.memory(),
            time: *time,
        });
        Some(EntryForecast {
            clip: plan.task.clip,
            memory: most(&Choices::plenty(model, &plan.task, None, &self.compute)),
            least_memory: most(&Choices::least(None)),
            fits: (plan.budget != Budget::Unknown).then_some(forecast.refusal.is_none()),
            time: Time::sum(&times),
            stages: stages.collect(),
        })
    }
}
