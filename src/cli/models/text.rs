//! Text for a person, as wide as the terminal: whole words, never cut.

/// Breaks text between words. A word that is wider than a line has a line of its own.
/// - `indent`: what each line begins with. `columns`: the widest that a line may be, indent included.
pub fn wrapped(text: &str, indent: &str, columns: usize) -> String {
    let (mut out, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        let width = indent.chars().count() + line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && width > columns {
            out.push_str(&format!("{indent}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.is_empty() { out } else { out + &format!("{indent}{line}\n") }
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
