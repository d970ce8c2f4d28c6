//! Frames a second as a fraction, so that no form drifts.

use anyhow::{Result, ensure};

/// `num / den` frames a second, in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub num: u32,
    pub den: u32,
}

/// Rates that television writes short: 23.976 means 24000/1001.
const TELEVISION: [u32; 5] = [24, 30, 48, 60, 120];

impl Rate {
    /// The television rate that is meant; else thousandths where they are exact; else the simplest fraction within 0.00005
    /// (8.3333 is 25/3).
    /// - Errors when `fps` is not in 0.01..=1000.
    pub fn new(fps: f64) -> Result<Rate> {
        ensure!((0.01..=1000.0).contains(&fps), "{fps} frames a second is out of range\n  fix: --fps 0.01 to 1000");
        let near = |num: f64, den: f64, tolerance: f64| (fps - num / den).abs() < tolerance;
        if let Some(n) = TELEVISION.into_iter().find(|&n| near(f64::from(n) * 1000.0, 1001.0, 0.005)) {
            return Ok(Rate { num: n * 1000, den: 1001 });
        }
        let num = |den: u32| (fps * f64::from(den)).round();
        let tolerance = if near(num(1000), 1000.0, 1e-9) { 1e-9 } else { 5e-5 };
        let den = (1..1000).find(|&den| near(num(den), f64::from(den), tolerance)).unwrap_or(1000);
        Ok(Rate { num: num(den) as u32, den })
    }

    /// When frame `i` begins, in the nearest whole ticks of 1/`per_second` s.
    pub fn ticks(self, i: usize, per_second: u64) -> u64 {
        let (num, den) = (u64::from(self.num), u64::from(self.den));
        (i as u64 * per_second * den + num / 2) / num
    }

    /// A clock of at least 10000 ticks a second in which a frame lasts a whole number of them: (ticks a second, ticks a
    /// frame). Players round seconds to coarse clocks badly.
    #[cfg_attr(not(feature = "h264"), allow(dead_code, reason = "only MP4 has a clock of its own"))]
    pub fn clock(self) -> (u32, u32) {
        let mut scale = 1;
        while self.num * scale < 10_000 {
            scale *= 2;
        }
        (self.num * scale, self.den * scale)
    }

    /// Frames from one that stands alone to the next: two seconds' worth.
    pub fn gop(self) -> u32 {
        (2 * self.num / self.den).max(1)
    }

    /// A frame's length as a fraction of 16-bit numbers: exact but for rates such as 120000/1001.
    pub fn delay(self) -> (u16, u16) {
        let (mut num, mut den) = (self.den, self.num);
        while num > u32::from(u16::MAX) || den > u32::from(u16::MAX) {
            (num, den) = (num.div_ceil(2), den.div_ceil(2));
        }
        (num as u16, den as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_type() -> Result<()> {
        let cases = [
            (8.0, (8, 1)),
            (25.0, (25, 1)),
            (12.5, (25, 2)),
            (8.3333, (25, 3)),
            (0.5, (1, 2)),
            (23.976, (24000, 1001)),
            (23.98, (24000, 1001)),
            (24000.0 / 1001.0, (24000, 1001)),
            (29.97, (30000, 1001)),
            (59.94, (60000, 1001)),
            (24.123, (24123, 1000)),
            (30.0, (30, 1)),
        ];
        for (fps, (num, den)) in cases {
            assert_eq!(Rate::new(fps)?, Rate { num, den }, "{fps}");
        }
        assert!([0.0, -8.0, f64::NAN, f64::INFINITY, 1001.0].into_iter().all(|fps| Rate::new(fps).is_err()));
        Ok(())
    }

    #[test]
    fn times_do_not_drift() -> Result<()> {
        assert_eq!(Rate::new(24.0)?.ticks(48, 100), 200);
        assert_eq!((0..4).map(|i| Rate { num: 24, den: 1 }.ticks(i, 100)).collect::<Vec<_>>(), [0, 4, 8, 13]);
        assert_eq!(Rate::new(29.97)?.ticks(30000, 1000), 1_001_000);
        assert_eq!(Rate::new(24.0)?.clock(), (12288, 512));
        assert_eq!(Rate::new(23.976)?.clock(), (24000, 1001));
        assert_eq!(Rate::new(0.01)?.clock(), (16384, 1638400));
        assert_eq!(Rate::new(23.976)?.delay(), (1001, 24000));
        assert_eq!(Rate::new(119.88)?.delay(), (501, 60000));
        Ok(())
    }
}
