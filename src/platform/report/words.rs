//! Numbers as a person reads them.

/// Writes a count: `1 frame`, `17 frames`.
/// - `unit`: in the plural, with an `s`.
pub fn counted(n: usize, unit: &str) -> String {
    format!("{n} {}", if n == 1 { singular(unit) } else { unit })
}

/// Returns the singular of a unit.
pub(super) fn singular(unit: &str) -> &str {
    match unit {
        "matrices" => "matrix",
        _ => unit.strip_suffix('s').unwrap_or(unit),
    }
}

/// Rounds seconds to the milliseconds that a program is told.
pub(super) fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Writes seconds: `0.42 s`, `12.3 s`, `3 min 07 s`, `2 h 05 min`.
pub fn human_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
        s => format!("{} h {:02} min", s as u64 / 3600, s as u64 % 3600 / 60),
    }
}

/// Writes bytes in decimal units with three digits, as download pages show them: `6.34 GB`.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let decimals = match value {
                _ if unit == "B" => 0,
                v if v < 9.995 => 2,
                v if v < 99.95 => 1,
                _ => 0,
            };
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

/// Writes seconds as [`human_seconds`], without fractions, which would only flicker.
pub(super) fn whole_seconds(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.0} s") } else { human_seconds(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_a_singular() {
        assert_eq!(["frames", "matrices"].map(|unit| counted(1, unit)), ["1 frame", "1 matrix"]);
        assert_eq!(counted(17, "frames"), "17 frames");
    }

    #[test]
    fn sizes_read_well() {
        let said = [0, 999, 1000, 999_499, 999_500, 9_995_000, 28_579_183_340, 2_000_000_000_000].map(human_bytes);
        assert_eq!(said, ["0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "10.0 MB", "28.6 GB", "2.00 TB"]);
    }
}
