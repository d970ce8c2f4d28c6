//! Runs that stop and go on, and several runs with the same networks.

use crate::common::{Scratch, golden_path, numbers};
use anyhow::{Result, anyhow};
use candle_core::{Device, Tensor};
use reel::job::host::Host;
use reel::job::request::{Keyframe, Request, Scene};
use reel::job::windows::Direction;
use reel::pipeline::Prepared;
use reel::pipeline::cursor::{Cursor, Position};
use reel::pipeline::session::{Keep, Session};
use reel::platform::progress::Progress;
use std::sync::Arc;

fn silent() -> Progress {
    Progress::silent()
}

fn bits(all: &[Tensor]) -> Vec<u32> {
    all.iter().flat_map(|x| numbers(x).into_iter().map(f32::to_bits)).collect()
}

fn prepared(session: &Arc<Session>, request: &Request) -> Result<Prepared> {
    let mut prepared = Prepared::new(session, request, None, &[], Direction::Forward, &silent())?;
    prepared.forecast.watch(); // else its times go into the machine's history
    Ok(prepared)
}

/// Two scenes, the first in windows, with a still held in each, fresh noise at each step, and two passes: everything that a run's
/// position can hold.
fn long(scratch: &Scratch) -> Request {
    let still = scratch.path("still.png");
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 3) as u8, (y * 3) as u8, 90])).save(&still).unwrap();
    let held = |frame| Keyframe { file: still.clone().into(), frame, strength: 0.8 };
    Request {
        prompt: "a ball".to_string(),
        model: Some(golden_path("pipeline_095").to_str().unwrap().to_string()),
        size: Some((64, 64)),
        frames: Some(34),
        fps: Some(8.0),
        steps: Some(2),
        second_sigmas: Some(vec![0.9, 0.4]),
        upscaler: Some(golden_path("upscaler").to_str().unwrap().to_string()),
        window: Some(17),
        guidance: Some(2.0),
        stochastic: Some(true),
        prompt_at: vec![Scene { at: 3.125, prompt: "a lamp".to_string() }],
        keyframe: vec![held(0), held(30)],
        seed: Some(5),
        ..Request::default()
    }
}

/// Wherever a run stops, its position on disk is all that it takes to go on: the same bytes come out.
#[test]
fn a_run_that_stops_goes_on_as_if_it_had_not() -> Result<()> {
    let scratch = Scratch::new("cursor");
    let request = long(&scratch);
    let session = Session::open(&request, &Host::default(), Keep::Networks, &silent())?;
    let mut positions: Vec<Vec<u8>> = vec![];
    let mut keep = |cursor: &Cursor| {
        positions.push(cursor.to_bytes()?);
        Ok(())
    };
    let whole = prepared(&session, &request)?.latents_from(None, &mut keep, &silent())?;
    let places: Vec<_> =
        positions.iter().map(|bytes| Cursor::from_bytes(bytes, &Device::Cpu).unwrap().position).collect();
    let windows = places.iter().map(|place| place.window).max().unwrap();
    assert!(places.len() == 2 * 2 * (windows + 1) && windows >= 2, "passes, windows and steps: {places:?}");
    assert_eq!(whole.len(), 2, "scenes");
    for (i, bytes) in positions.iter().enumerate() {
        let from = Cursor::from_bytes(bytes, &Device::Cpu)?;
        let mut steps = 0;
        let mut count = |_: &Cursor| {
            steps += 1;
            Ok(())
        };
        let rest = prepared(&session, &request)?.latents_from(Some(from), &mut count, &silent())?;
        assert_eq!(steps, positions.len() - 1 - i, "steps after {:?}", places[i]);
        assert!(bits(&rest) == bits(&whole), "other bytes after {:?}", places[i]);
    }
    let mut elsewhere = Cursor::from_bytes(&positions[0], &Device::Cpu)?;
    for place in [Position { window: 99, ..elsewhere.position }, Position { step: 99, ..elsewhere.position }] {
        elsewhere.position = place;
        let refused = prepared(&session, &request)?.latents_from(Some(elsewhere.clone()), &mut |_| Ok(()), &silent());
        assert!(refused.unwrap_err().to_string().contains("another run"), "{place:?}");
    }
    Ok(())
}

/// What is called after each step can end the run.
#[test]
fn an_error_after_a_step_ends_the_run() -> Result<()> {
    let scratch = Scratch::new("stopped");
    let request = long(&scratch);
    let session = Session::open(&request, &Host::default(), Keep::Nothing, &silent())?;
    let mut steps = 0;
    let mut stop = |_: &Cursor| {
        steps += 1;
        if steps == 3 { Err(anyhow!("enough")) } else { Ok(()) }
    };
    let stopped = prepared(&session, &request)?.latents_from(None, &mut stop, &silent());
    assert_eq!((stopped.unwrap_err().to_string().as_str(), steps), ("enough", 3));
    Ok(())
}

/// Networks that are kept make what networks that are freed make, run after run, and are loaded once.
#[test]
fn kept_networks_make_the_same_clips() -> Result<()> {
    let scratch = Scratch::new("kept");
    let first = long(&scratch);
    let second =
        Request { prompt: "a box".to_string(), seed: Some(6), upscaler: None, keyframe: vec![], ..first.clone() };
    let other = Request { vae: Some("elsewhere".into()), ..first.clone() };
    let run = |session: &Arc<Session>, request: &Request| -> Result<(Vec<u32>, Vec<u8>)> {
        let prepared = prepared(session, request)?;
        let latents = prepared.latents(&silent())?;
        let mut rgb = vec![];
        prepared.decode(&latents, &silent(), |frame| {
            rgb.extend(frame.rgb);
            Ok(())
        })?;
        Ok((bits(&latents), rgb))
    };
    let kept = Session::open(&first, &Host::default(), Keep::Networks, &silent())?;
    let loads = |session: &Session| -> Result<[usize; 4]> {
        Ok([
            Arc::as_ptr(&session.text(&silent())?).addr(),
            Arc::as_ptr(&session.encoder()?).addr(),
            Arc::as_ptr(&session.decoder(&silent())?).addr(),
            Arc::as_ptr(&session.transformer(kept.checkpoint.config.blocks(), false, &silent())?).addr(),
        ])
    };
    let before = loads(&kept)?;
    for request in [&first, &second, &first] {
        assert!(kept.serves(request));
        let alone = run(&Session::open(request, &Host::default(), Keep::Nothing, &silent())?, request)?;
        assert!(run(&kept, request)? == alone, "{}", request.prompt);
    }
    assert_eq!(loads(&kept)?, before, "a network was loaded again");
    assert!(!kept.serves(&other));
    let refused = Prepared::new(&kept, &other, None, &[], Direction::Forward, &silent());
    assert!(refused.err().unwrap().to_string().contains("another model"));
    // and the plan counts what stays
    let memory = |keep| {
        Ok::<_, anyhow::Error>(
            prepared(&Session::open(&first, &Host::default(), keep, &silent())?, &first)?.forecast.plan.memory(),
        )
    };
    assert!(memory(Keep::Networks)? > memory(Keep::Nothing)?);
    Ok(())
}
