//! From the times of a clip's frames to its rate, and to the frames that a steady rate shows.

/// What a clip's times amount to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Frames a second, on average.
    pub fps: f64,
    pub variable: bool,
}

/// Rates that television divides by 1.001.
const TELEVISION: [f64; 5] = [24.0, 30.0, 48.0, 60.0, 120.0];

/// The slowest and fastest that are believed.
const RATES: std::ops::RangeInclusive<f64> = 0.01..=1000.0;

/// - `starts`: seconds, ascending, the first 0. `end`: when the last frame goes, if the file says.
/// - `tick`: the file's clock; times are rounded to it, so a rate that fits within it is taken to be meant.
/// - None when the times say nothing: one frame without an end, or all at once.
pub fn pace(starts: &[f64], end: Option<f64>, tick: f64) -> Option<Pace> {
    let (last, n) = (*starts.last()?, starts.len());
    if n == 1 || last <= 0.0 {
        let fps = n as f64 / end.filter(|&end| end > 0.0)?;
        return RATES.contains(&fps).then_some(Pace { fps, variable: false });
    }
    let fps = (n - 1) as f64 / last;
    let strays = |rate: f64| starts.iter().enumerate().map(|(i, t)| (t - i as f64 / rate).abs()).fold(0.0, f64::max);
    let television = TELEVISION.map(|rate| rate * 1000.0 / 1001.0);
    let round = [fps.round(), (fps * 2.0).round() / 2.0];
    // A GIF's hundredths cannot tell 29.97 from 30, and nobody makes GIFs for television.
    let television = television.into_iter().filter(|_| tick < 0.005);
    let meant = television.chain(round).filter(|&rate| rate > 0.0).map(|rate| (rate, strays(rate)));
    let meant = meant.filter(|&(_, strays)| strays <= tick * 1.01 + 1e-9);
    let pace = match meant.min_by(|a, b| a.1.total_cmp(&b.1)) {
        Some((fps, _)) => Pace { fps, variable: false },
        // A camera's clock trembles; a tenth of a frame is no change of rate.
        None if strays(fps) <= (1.5 * tick).max(0.1 / fps) => Pace { fps, variable: false },
        None => Pace { fps: n as f64 / end.filter(|&end| end > last).unwrap_or(last + 1.0 / fps), variable: true },
    };
    RATES.contains(&pace.fps).then_some(pace)
}

/// For each frame of a steady clip as long as `starts`, the source frame on screen in its middle. A trembling clock
/// changes nothing, a frame that stands long is repeated, one that is too short is left out.
pub fn steady(starts: &[f64], fps: f64) -> Vec<usize> {
    let mut source = 0;
    let mut chosen = Vec::with_capacity(starts.len());
    for k in 0..starts.len() {
        let middle = (k as f64 + 0.5) / fps;
        while starts.get(source + 1).is_some_and(|&next| next < middle - 1e-9) {
            source += 1;
        }
        chosen.push(source);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(n: usize, fps: f64, tick: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 / fps / tick).round() * tick).collect()
    }

    #[test]
    fn rates_survive_coarse_clocks() {
        for (fps, tick) in
            [(24.0, 0.01), (30.0, 0.01), (29.97002997, 0.001), (12.5, 0.001), (23.976023976, 1.0 / 90000.0)]
        {
            let pace = pace(&rounded(120, fps, tick), None, tick).expect("a rate");
            assert!((pace.fps - fps).abs() < 1e-6 && !pace.variable, "{fps}: {pace:?}");
        }
        let odd = pace(&rounded(50, 17.3, 0.001), None, 0.001).expect("a rate");
        assert!((odd.fps - 17.3).abs() < 0.01 && !odd.variable, "{odd:?}");
        assert_eq!(pace(&rounded(15, 30.0, 0.001), None, 0.001), Some(Pace { fps: 30.0, variable: false }));
        assert_eq!(pace(&[0.0], Some(0.125), 0.001), Some(Pace { fps: 8.0, variable: false }));
        assert_eq!(pace(&[0.0], None, 0.001), None);
        assert_eq!(pace(&[0.0; 4], None, 0.001), None);
        assert_eq!(pace(&[], None, 0.001), None);
    }

    #[test]
    fn a_variable_rate_is_resampled_to_its_mean() {
        let starts = [0.0, 0.1, 0.2, 0.6, 0.7];
        let pace = pace(&starts, Some(1.0), 0.001).expect("a rate");
        assert_eq!(pace, Pace { fps: 5.0, variable: true });
        assert_eq!(steady(&starts, pace.fps), [0, 2, 2, 3, 4]);
        assert_eq!(steady(&rounded(9, 24.0, 0.01), 24.0), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
