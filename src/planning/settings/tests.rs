//! Requests against their ranges, and what is decided from them.

use super::*;
use crate::sampling::solver::Levels;

#[test]
fn a_request_goes_through_json_unchanged() {
    let request =
        Request { prompt: "a boat".into(), size: Some((96, 64)), sigmas: Some(vec![1.0, 0.5]), ..Default::default() };
    let json = serde_json::to_string(&request).unwrap();
    assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request);
}

#[test]
fn ranges_are_checked() {
    let bad = [
        Request { size: Some((0, 64)), ..Default::default() },
        Request { frames: Some(0), ..Default::default() },
        Request { frames: Some(9), seconds: Some(1.0), ..Default::default() },
        Request { steps: Some(0), ..Default::default() },
        Request { sigmas: Some(vec![0.5, 0.7]), ..Default::default() },
        Request { sigmas: Some(vec![]), ..Default::default() },
        Request { sigmas: Some(vec![1.0, f64::NAN]), ..Default::default() },
        Request { fps: Some(0.0), ..Default::default() },
        Request { fps: Some(f64::INFINITY), ..Default::default() },
        Request { guidance: Some(-1.0), ..Default::default() },
        Request { guidance_rescale: Some(1.5), ..Default::default() },
        Request { decode_timestep: Some(2.0), ..Default::default() },
        Request { quality: Some(0), ..Default::default() },
    ];
    for request in bad {
        assert!(request.check().is_err(), "{request:?}");
    }
    assert!(Request::default().check().is_ok());
}

#[test]
fn flags_win_over_the_catalogue_and_that_over_diffusers() {
    let model = RunDefaults {
        frames: Some(17),
        steps: Some(16),
        decode_timestep: Some(0.05),
        decode_noise: Some(0.025),
        ..Default::default()
    };
    let decide = |request: &Request| {
        Settings::decide(&Given {
            request,
            model: &model,
            allowed: None,
            family: Family::ALL[0],
            convention: Convention::Condition,
            size: None,
            two: false,
            seed: 1,
        })
        .unwrap()
    };
    let plain = decide(&Request::default());
    let levels = Levels::Steps { steps: 16, skip_initial: 0, skip_final: 0 };
    assert_eq!((plain.clip.frames, plain.clip.width, &plain.passes[0].levels), (17, 704, &levels));
    assert_eq!((plain.decode_timestep, plain.decode_noise), (0.05, 0.025));
    let asked = decide(&Request {
        seconds: Some(2.0),
        fps: Some(10.0),
        decode_timestep: Some(0.1),
        guidance: Some(1.0),
        ..Default::default()
    });
    assert_eq!((asked.clip.frames, asked.decode_noise, asked.negative), (20, 0.1, None));
}
