//! A whole run, stage by stage, and the writing of its file.

use super::load::MathInfo;
use super::{Cell, Row, StageRow, Timed, Timer, Weights};
use crate::job::geometry::Extent;
use crate::job::host::Host;
use crate::job::request::Request;
use crate::job::windows::Direction;
use crate::nn::kernel::MatmulType;
use crate::pipeline::Prepared;
use crate::pipeline::session::{Keep, Session};
use crate::planning::forecast::Watched;
use crate::platform::device::Compute;
use crate::platform::files::Scratch;
use crate::platform::machine::peak_memory;
use crate::platform::progress::Progress;
use crate::sampling::noise::Noise;
use crate::video::Frame;
use crate::video::resize::Fit;
use crate::video::write::{Target, Writer};
use anyhow::{Result, bail};

/// The whole way, with everything that a user waits for but the file.
pub fn whole(timer: &Timer, cell: &Cell, compute: &Compute, stages: &mut Vec<StageRow>) -> Result<Timed> {
    let Weights::Model(model) = &cell.weights else { bail!("a whole run needs a model") };
    let silent = Progress::silent();
    let request = Request {
        prompt: "a red ball bounces on green grass".to_string(),
        model: Some(model.clone()),
        text_encoder: cell.text_encoder.clone(),
        vae: cell.vae.clone(),
        quantize: cell.quantize,
        size: Some((cell.clip.width, cell.clip.height)),
        frames: Some(cell.clip.frames),
        steps: cell.steps,
        seed: Some(7),
        fit: Fit::default(),
        upscaler: Some("none".to_string()),
        ..Request::default()
    };
    let host = Host { memory: cell.memory, ..Host::default() };
    let mut sum = MathInfo { math: MatmulType::F32, blocks: None, int8: true };
    let timed = timer.time(|| {
        let session = Session::open_on(compute.clone(), &request, &host, Keep::Nothing, &silent)?;
        sum = MathInfo::of(&session.checkpoint.transformer, compute);
        let mut prepared = Prepared::new(&session, &request, None, &[], Direction::Forward, &silent)?;
        prepared.forecast.fits()?;
        prepared.forecast.watch();
        let latents = prepared.latents(&silent)?;
        prepared.decode(&latents, &silent, |_| Ok(()))?;
        let row = |Watched { stage, seconds, memory }| {
            let planned = prepared.forecast.plan.need(stage)?.memory();
            Some(StageRow { stage, planned, memory, seconds })
        };
        *stages = prepared.forecast.watched().into_iter().filter_map(row).collect();
        Ok(())
    })?;
    Ok((timed, sum))
}

/// A clip with something going on in it, into an MP4.
pub fn mux(timer: &Timer, cell: &Cell) -> Result<Row> {
    let Extent { width, height, frames } = cell.clip;
    let scratch = Scratch::create("reel-bench")?;
    let target = Target::parse(scratch.path().join("clip.mp4"))?;
    let noise = Noise::new(6).normal(width * height + frames * 64);
    let clip: Vec<Frame> = (0..frames)
        .map(|i| {
            let value =
                |at: usize| 128.0 + 8.0 * noise[at / 3 + i * 64] + 60.0 * ((at % (3 * width)) as f32 / 90.0).sin();
            Frame { width, height, rgb: (0..width * height * 3).map(|at| value(at) as u8).collect() }
        })
        .collect();
    let (seconds, _) = timer.time(|| {
        let mut writer = Writer::create(&target, width, height, 25.0, frames, 75, true)?;
        clip.iter().try_for_each(|frame| writer.push(frame))?;
        writer.finish()
    })?;
    let threads = rayon::current_num_threads();
    let peak_memory = peak_memory();
    Ok(Row {
        cell: cell.clone(),
        threads,
        dtype: "u8",
        blocks: None,
        tokens: None,
        seconds,
        operations: None,
        peak: None,
        peak_memory,
        stages: vec![],
    })
}
