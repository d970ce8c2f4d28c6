//! Text for a person, as wide as the terminal: whole words, never cut.

use crate::platform::shown;

/// Breaks text between words, each line behind `indent`.
/// - `columns`: the widest that a line may be, indent included.
pub fn wrapped(text: &str, indent: &str, columns: usize) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let broken = shown::wrapped(&words, 0, columns.saturating_sub(indent.chars().count()));
    broken.lines().map(|line| format!("{indent}{line}\n")).collect()
}

/// A label, and text beside it; further lines stand below the text.
pub fn labelled(label: &str, text: &str, columns: usize) -> String {
    const LABEL: usize = 12;
    let indent = " ".repeat(LABEL);
    let lines = wrapped(text, &indent, columns);
    format!("{label:<LABEL$}{}", lines.strip_prefix(&indent).unwrap_or(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("one two three", "  ", 9), "  one two\n  three\n");
        assert_eq!(wrapped("one two three", "", 8), "one two\nthree\n");
        assert_eq!(wrapped("a-word-that-is-wide x", "", 8), "a-word-that-is-wide\nx\n");
        assert_eq!(wrapped(" ", "  ", 9), "");
        assert_eq!(labelled("licence", "one two three", 20), "licence     one two\n            three\n");
    }
}
