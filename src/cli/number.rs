//! Numbers on the command line, each held to its flag's range as it is read.

use crate::job::ranges;
use crate::job::tiles::Tiles;

/// Reads whole numbers of a flag.
/// - Errors say what it has to be; the value is quoted by whoever shows them.
pub fn whole<T: TryFrom<i128>>(flag: &'static str) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err("expected a whole number".to_string());
        }
        // too long for any type is out of any range
        let number = text.parse::<i128>().unwrap_or(if text.starts_with('-') { i128::MIN } else { i128::MAX });
        ranges::check(flag, number as f64)?;
        T::try_from(number).map_err(|_| "the number is too large".to_string())
    }
}

/// Reads numbers of a flag.
/// - Errors as [`whole`].
pub fn real(flag: &'static str) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse::<f64>().map_err(|_| "expected a number".to_string())?;
        ranges::check(flag, number).map(|()| number)
    }
}

/// Reads `WxH` of a flag.
pub fn sides(flag: &'static str) -> impl Fn(&str) -> Result<(usize, usize), String> + Clone + Send + Sync {
    move |text| {
        let wrong = || "expected WIDTHxHEIGHT in pixels, such as 704x480".to_string();
        let (width, height) = text.split_once(['x', 'X', '×']).ok_or_else(wrong)?;
        let side = |text: &str| {
            let text = text.trim();
            let read = whole::<usize>(flag)(text);
            read.map_err(|e| if e.starts_with("expected") { wrong() } else { format!("each side: {e} pixels") })
        };
        Ok((side(width)?, side(height)?))
    }
}

/// Reads `--vae-tile`.
pub fn tiles(text: &str) -> Result<Tiles, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Tiles::None);
    }
    let (width, height) = sides("vae-tile")(text).map_err(|e| format!("{e}, or `none`"))?;
    Ok(Tiles::Of(width, height))
}

/// `--seed`: one that is given, or one to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    Drawn,
    Given(u64),
}

/// Reads `--seed`: -1 draws one, as in other programs; other negative numbers are read as two's complement, as torch does.
pub fn seed(text: &str) -> Result<Seed, String> {
    let wide =
        |e: String| if e.starts_with("expected") { e } else { "expected a whole number of at most 64 bits".into() };
    match whole::<i128>("seed")(text).map_err(wide)? {
        -1 => Ok(Seed::Drawn),
        n => u64::try_from(n).or(i64::try_from(n).map(|n| n as u64)).map(Seed::Given).map_err(|_| wide(String::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_as_torch_reads_them() {
        assert_eq!(seed("7"), Ok(Seed::Given(7)));
        assert_eq!(seed("-1"), Ok(Seed::Drawn));
        assert_eq!(seed("-2"), Ok(Seed::Given(u64::MAX - 1)));
        assert_eq!(seed("18446744073709551615"), Ok(Seed::Given(u64::MAX)));
        for bad in ["18446744073709551616", "-9223372036854775809", "1e3", "", "-", "x", "7.0"] {
            assert!(seed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sides_are_two_numbers() {
        assert_eq!(sides("size")("704x480"), Ok((704, 480)));
        assert_eq!(sides("size")("704×480"), Ok((704, 480)));
        for bad in ["", "x", "64", "64x", "0x64", "64x16385", "-1x5", "axb", "1x2x3", "99999999999999999999x64"] {
            assert!(sides("size")(bad).is_err(), "{bad}");
        }
    }
}
