//! Text that others wrote - names in files, headers, prompts, paths - as it may reach a terminal: nothing in it moves the cursor,
//! sets a title, turns the direction of writing, begins a line of its own or fills the screen.

use std::borrow::Cow;
use std::fmt::Write;

/// Characters of one value that are shown.
const VALUE: usize = 200;
/// Characters of one line that are shown.
const LINE: usize = 1000;

/// Whether a terminal obeys a character, or shows nothing for it: control characters of ASCII and Unicode, what turns the
/// direction of writing, breaks lines or has no width. (The joiners of Persian and of emoji stay.)
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Makes hidden characters visible, as JSON writes them: `\n`, `\u001b`.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_hidden(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(shown, "\\u{unit:04x}"); // a string takes all
                }
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// A value of somebody's file, to be put between backticks: visible, without backticks of its own, and cut in the middle.
pub fn value(text: &str) -> String {
    cut(&visible(text).replace('`', "'"), VALUE)
}

/// The first `most` words of a text, on one line.
pub fn beginning(text: &str, most: usize) -> String {
    let mut words = text.split_whitespace();
    let mut first = words.by_ref().take(most).collect::<Vec<_>>().join(" ");
    if words.next().is_some() {
        first.push_str(" …");
    }
    cut(&first, VALUE)
}

/// One line for a person: visible, each quoted value cut to about 200 characters and the line to about 1000.
pub fn line(text: &str) -> String {
    let text = visible(text);
    if text.chars().nth(VALUE).is_none() {
        return text.into_owned();
    }
    let mut parts: Vec<String> = text.split('`').map(String::from).collect();
    parts.iter_mut().skip(1).step_by(2).for_each(|value| *value = cut(value, VALUE));
    cut(&parts.join("`"), LINE)
}

/// Several lines for a person, each as [`line()`].
pub fn lines(text: &str) -> String {
    let mut shown: String = text.lines().map(|text| line(text) + "\n").collect();
    if !text.ends_with('\n') {
        shown.pop();
    }
    shown
}

/// Breaks a line between words; a value in backticks only where it fits no line of its own. What is wider than a line stays one word.
/// - `indent`: of the lines after the first. `columns`: the widest that a line may be.
pub fn wrapped(text: &str, indent: usize, columns: usize) -> String {
    let indent = if indent * 3 < columns { indent } else { 0 };
    let mut words: Vec<String> = vec![];
    let (mut quoted, mut begun) = (false, 0);
    for word in text.split(' ') {
        if !quoted {
            begun = words.len();
        }
        words.push(word.to_string());
        quoted ^= !word.matches('`').count().is_multiple_of(2);
        let value = words[begun..].join(" ");
        if !quoted && value.chars().count() <= columns - indent {
            words.splice(begun.., [value]);
        }
    }
    let (mut out, mut width) = (String::new(), 0);
    for (i, word) in words.iter().enumerate() {
        let count = word.chars().count();
        if i > 0 && width + 1 + count > columns && !out.trim().is_empty() {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            width = indent;
        } else if i > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += count;
    }
    out
}

/// Leaves out the middle of what is longer than `most` characters: both ends say what it is.
fn cut(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_string();
    }
    let (head, tail) = (most * 2 / 3, most / 3);
    let head: String = text.chars().take(head).collect();
    let tail: String = text.chars().skip(count - tail).collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        let hostile = "\x1b]0;pwned\x07\x1b[2K\r\u{9b}31m\u{202e}gnp\u{2066}\u{200b}\n\tx\u{e0041}";
        let shown = visible(hostile);
        assert_eq!(shown, "\\u001b]0;pwned\\u0007\\u001b[2K\\r\\u009b31m\\u202egnp\\u2066\\u200b\\n\\tx\\udb40\\udc41");
        assert!(!shown.chars().any(is_hidden));
        // as JSON has it, so that a string of JSON stays the same string
        let json = format!("\"{shown}\"");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
        for plain in ["a red ball", "Größe 64×64 …", "赤いボール", "👩‍👩‍👧 می‌خواهم", "no-break\u{a0}space"]
        {
            assert!(matches!(visible(plain), Cow::Borrowed(_)), "{plain}");
        }
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("one two three", 2, 13), "one two three");
        assert_eq!(wrapped("one two three", 2, 9), "one two\n  three");
        // what stands between backticks is copied as one
        assert_eq!(wrapped("try `a b c` now", 2, 9), "try\n  `a b c`\n  now");
        assert_eq!(wrapped("try `aa bb cc dd`", 2, 9), "try `aa\n  bb cc\n  dd`");
        // spaces stay, and nothing breaks what has none
        assert_eq!(wrapped("  fix: `a  b` c", 7, 80), "  fix: `a  b` c");
        assert_eq!(wrapped("a-word-that-is-wide x", 0, 8), "a-word-that-is-wide\nx");
        assert_eq!(wrapped("  fix: a-word-that-is-wide", 7, 24), "  fix:\n       a-word-that-is-wide");
        assert_eq!((wrapped("", 2, 9), wrapped("x y", 7, 1)), (String::new(), "x\ny".to_string()));
    }

    #[test]
    fn long_values_and_lines_are_cut_in_the_middle() {
        let long = "x".repeat(5000);
        let shown = line(&format!("cannot read `/{long}/end.png`: gone"));
        assert!(shown.starts_with("cannot read `/xxx") && shown.ends_with("x/end.png`: gone"), "{shown}");
        assert!(shown.chars().count() < 240, "{}", shown.len());
        assert!(line(&long).chars().count() <= LINE + 1 && line(&format!("`{long}")).chars().count() <= 210);
        assert_eq!(value("a`b\nc"), "a'b\\nc");
        assert_eq!(lines("a\x07\nb\n"), "a\\u0007\nb\n");
        assert_eq!(beginning("one  two\nthree four", 3), "one two three …");
        assert!(beginning(&long, 3).chars().count() <= VALUE + 1);
    }
}
