//! From the times of a clip's frames to its rate, and to the frames that a steady rate shows.

/// What a clip's times amount to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Frames a second; where the rate varies, those of the clip that shows every picture.
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
        None => Pace { fps: highest(starts, end, tick), variable: true },
    };
    RATES.contains(&pace.fps).then_some(pace)
}

/// Rates that clips are made at, for times that a clock has rounded.
const USUAL: [f64; 12] = [10.0, 12.0, 12.5, 15.0, 20.0, 24.0, 25.0, 30.0, 50.0, 60.0, 90.0, 120.0];

/// The fastest that footage of a varying rate is brought to, and how many frames it may become for each that it has.
const FASTEST: f64 = 120.0;
const MOST_REPEATS: f64 = 10.0;

/// The rate that shows every picture of a clip whose rate varies: that of the shortest ones. Where that is out of all
/// proportion, that of nine in ten of them, or else the mean.
fn highest(starts: &[f64], end: Option<f64>, tick: f64) -> f64 {
    let (last, n) = (starts.last().copied().unwrap_or(0.0), starts.len() as f64);
    let mut stands: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).filter(|&stands| stands > 0.0).collect();
    stands.sort_by(f64::total_cmp);
    let mean = n / end.filter(|&end| end > last).unwrap_or(last + last / (n - 1.0).max(1.0));
    let rate = |from: usize| {
        let shortest = *stands.get(from)?;
        let alike: Vec<f64> = stands[from..].iter().copied().take_while(|&s| s <= shortest + 2.0 * tick).collect();
        let stands = alike.iter().sum::<f64>() / alike.len() as f64;
        let off = |rate: &f64| (1.0 / rate - stands).abs();
        let usual = USUAL.into_iter().filter(|rate| off(rate) <= tick).min_by(|a, b| off(a).total_cmp(&off(b)));
        Some(usual.unwrap_or(1.0 / stands))
    };
    let fits = |&rate: &f64| rate <= FASTEST && last * rate <= MOST_REPEATS * n;
    [rate(0), rate(stands.len() / 10)].into_iter().flatten().find(fits).unwrap_or(mean)
}

/// For each frame of a steady clip as long as this one, the source frame on screen in its middle. A frame that stands long is
/// repeated, one that is too short is left out.
pub fn steady(starts: &[f64], end: f64, fps: f64) -> Vec<usize> {
    let count = ((end * fps).round() as usize).max(1);
    let mut source = 0;
    let mut chosen = Vec::with_capacity(count);
    for k in 0..count {
        let middle = (k as f64 + 0.5) / fps;
        while starts.get(source + 1).is_some_and(|&next| next < middle - 1e-9) {
            source += 1;
        }
        chosen.push(source);
    }
    chosen
}

/// How many of the source's frames are not among those chosen.
pub fn left_out(chosen: &[usize], frames: usize) -> usize {
    frames - chosen.chunk_by(|a, b| a == b).count()
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
    fn a_variable_rate_is_brought_to_its_highest() {
        let starts = [0.0, 0.1, 0.2, 0.6, 0.7];
        let pace = pace(&starts, Some(1.0), 0.001).expect("a rate");
        assert_eq!(pace, Pace { fps: 10.0, variable: true });
        let chosen = steady(&starts, 1.0, pace.fps);
        assert_eq!(chosen, [0, 1, 2, 2, 2, 2, 3, 4, 4, 4]);
        assert_eq!(left_out(&chosen, 5), 0);
        assert_eq!(steady(&rounded(9, 24.0, 0.01), 9.0 / 24.0, 24.0), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_screen_recording_loses_nothing_and_one_short_frame_counts_for_little() {
        // 30 a second, then one in seven, then 30 again, in a clock of milliseconds
        let at = (0..10).chain((10..50).step_by(7)).chain(50..60);
        let starts: Vec<f64> = at.map(|i| (f64::from(i) / 30.0 * 1000.0).round() / 1000.0).collect();
        let fast = pace(&starts, Some(2.0), 0.001).expect("a rate");
        assert_eq!(fast, Pace { fps: 30.0, variable: true });
        let chosen = steady(&starts, 2.0, 30.0);
        assert_eq!((chosen.len(), left_out(&chosen, starts.len())), (60, 0));
        let slides = [0.0, 3.0, 6.0, 6.002, 9.0, 12.0];
        let slow = pace(&slides, Some(15.0), 0.001).expect("a rate");
        assert!(slow.variable && slow.fps < 1.0, "{slow:?}");
        assert_eq!(left_out(&steady(&slides, 15.0, slow.fps), 6), 1);
    }
}
