//! What a number may be: one table for the flags, the entries of the catalogue, requests as JSON and the bench. A number that
//! no row bounds reaches nothing that counts, allocates or divides.

/// Bounds of a number, both included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The flag without its dashes; keys of `weights.toml` are spelled with `_` for `-`.
    pub name: &'static str,
    pub low: f64,
    pub high: f64,
}

/// The most frames of a clip; longer ones are typing errors, as are larger sides.
pub const MOST_FRAMES: usize = 100_000;
const FRAMES: f64 = MOST_FRAMES as f64;
/// The longest side of a picture.
pub const MOST_PIXELS: usize = 16_384;
const SIDE: f64 = MOST_PIXELS as f64;
/// A day, in seconds.
const DAY: f64 = 86_400.0;

const fn range(name: &'static str, low: f64, high: f64) -> Range {
    Range { name, low, high }
}

/// Every number that is asked for.
pub const RANGES: &[Range] = &[
    // the clip
    range("size", 1.0, SIDE), // each side
    range("width", 1.0, SIDE),
    range("height", 1.0, SIDE),
    range("frames", 1.0, FRAMES),
    range("seconds", 0.001, DAY),
    range("fps", 0.1, 1000.0),
    range("prompt-at", 0.0, DAY),
    range("seed", i64::MIN as f64, u64::MAX as f64),
    // sampling
    range("steps", 1.0, 1000.0),
    range("skip-initial", 0.0, 1000.0),
    range("skip-final", 0.0, 1000.0),
    range("sigmas", 0.0, 1.0),
    range("second-sigmas", 0.0, 1.0),
    range("guidance", 0.0, 1000.0),
    range("guidance-rescale", 0.0, 1.0),
    range("guidance-timesteps", 0.0, 1.0),
    range("stg", 0.0, 1000.0),
    range("stg-blocks", 0.0, 10_000.0),
    range("downscale", 0.0625, 1.0),
    range("adain", 0.0, 1.0),
    range("tone-map", 0.0, 1.0),
    range("image-noise", 0.0, 1.0),
    range("image-crf", 0.0, 51.0),
    range("decode-timestep", 0.0, 1.0),
    range("decode-noise", 0.0, 1.0),
    range("window", 2.0, FRAMES),   // one frame alone carries no motion on
    range("lora", -1000.0, 1000.0), // its scale
    // stills and clips
    range("keyframe", -FRAMES, FRAMES), // its frame
    range("strength", 0.0, 1.0),
    range("context", 1.0, FRAMES),
    // output and machine
    range("scale", 1.0, 16.0),
    range("quality", 1.0, 100.0),
    range("memory", 1_048_576.0, 1e18), // bytes
    range("vae-tile", 1.0, SIDE),
    range("vae-overlap", 0.0, SIDE),
    range("threads", 1.0, 1024.0),
    // a model's own sizes
    range("layers", 1.0, 1024.0),
    range("heads", 1.0, 1024.0),
    range("head-dim", 1.0, 8192.0),
    range("bytes", 0.0, 1e15), // of a file
    range("about-bytes", 0.0, 1e15),
    // bench
    range("tokens", 1.0, 4096.0),
    range("warmup", 0.0, 10_000.0),
    range("repeat", 1.0, 10_000.0),
];

/// The range of a flag or a key.
pub fn of(name: &str) -> Option<&'static Range> {
    let alike = |range: &&Range| range.name.bytes().eq(name.bytes().map(|b| if b == b'_' { b'-' } else { b }));
    RANGES.iter().find(alike)
}

/// Holds a number to the range of its flag or key.
/// - Errors say what it has to be, without name and number.
pub fn check(name: &str, value: f64) -> Result<(), String> {
    let Some(Range { low, high, .. }) = of(name) else { return Err(format!("`{name}` has no range")) };
    if (low..=high).contains(&&value) { Ok(()) } else { Err(format!("it has to be {low} to {high}")) }
}

/// Holds each number of a list to the range of its flag or key, and the list to a length that a run can use.
/// - Errors as [`check`].
pub fn check_list(name: &str, values: impl ExactSizeIterator<Item = f64>) -> Result<(), String> {
    const MOST: usize = 1000;
    if values.len() > MOST {
        return Err(format!("a list of {} is too long: {MOST} at most", values.len()));
    }
    for value in values {
        check(name, value).map_err(|e| format!("{e}, not {value}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_inside_and_nothing_else_is() {
        for &Range { name, low, high } in RANGES {
            assert!(low < high, "{name}");
            assert!(check(name, low).is_ok() && check(name, high).is_ok(), "{name}");
            let beside = [low - low.abs().max(1.0) * 1e-3, high + high.abs() * 1e-3];
            for bad in [beside[0], beside[1], f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
                assert!(check(name, bad).is_err(), "{name} {bad}");
            }
            assert_eq!(of(&name.replace('-', "_")).unwrap().name, name);
            assert_eq!(RANGES.iter().filter(|range| range.name == name).count(), 1, "{name} twice");
        }
        assert_eq!(check("quality", 0.0), Err("it has to be 1 to 100".to_string()));
        assert!(check("no-such", 1.0).is_err());
    }

    #[test]
    fn lists_are_bounded() {
        assert!(check_list("sigmas", [1.0, 0.5].into_iter()).is_ok());
        assert!(check_list("sigmas", [1.0, f64::NAN].into_iter()).is_err());
        assert!(check_list("sigmas", vec![0.5; 1001].into_iter()).is_err());
    }
}
