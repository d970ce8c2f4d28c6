//! What is wrong with a file of the cache, as far as its kind, its length and its header show. Hashes are not taken here: this runs
//! each time a file is looked for.

use crate::platform::files;
use crate::weights::open::Tensors;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

/// The longest file of a few words that is read: a reference, a record, a token.
const LONGEST_NOTE: u64 = 1 << 16;

/// Whether a text can name a commit: hex, as git writes it.
pub fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a text can name a blob: an etag of the hub, without a path or a hidden name in it.
pub fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// How long a file has to be, and whose word that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Of this very file, at its download.
    Recorded(u64),
    /// Of the file that the catalogue knows.
    Catalogued(u64),
    Unknown,
}

/// What is wrong with a file that is there.
/// - `name`: what the file is called in its repository, which says what it is a file of.
pub fn fault(path: &Path, name: &str, length: Length) -> Option<String> {
    let at = match path.metadata() {
        Ok(at) => at,
        Err(e) => return Some(format!("`{}` cannot be read: {e}", path.display())),
    };
    if let Some(kind) = no_plain_file(&at) {
        return Some(format!("`{}` is {kind}, and a file belongs there", path.display()));
    }
    if at.len() == 0 {
        return Some(format!("`{}` is empty", path.display()));
    }
    let other_length = |right: u64| Some(format!("`{}` has {} bytes, and {right} are right", path.display(), at.len()));
    if is_git_pointer(path, at.len()) {
        return Some(format!("`{}` is a pointer of Git LFS, not the file itself", path.display()));
    }
    match length {
        Length::Recorded(right) | Length::Catalogued(right) if right == at.len() => None,
        Length::Recorded(right) => other_length(right),
        Length::Catalogued(right) => match Header::of(path, name) {
            // whole, and another file than the catalogue knows
            Header::Fits => None,
            _ => other_length(right),
        },
        Length::Unknown => match Header::of(path, name) {
            Header::Wrong(what) => Some(what),
            _ => None,
        },
    }
}

/// What a header that tells the whole length says of a file.
enum Header {
    /// Files of that name have none.
    Absent,
    Fits,
    Wrong(String),
}

impl Header {
    fn of(path: &Path, name: &str) -> Self {
        let name = name.to_lowercase();
        if !name.ends_with(".safetensors") && !name.ends_with(".gguf") {
            return Self::Absent;
        }
        match Tensors::open(&[path.to_path_buf()]) {
            Ok(_) => Self::Fits,
            // the message names the file; its fix is another one here
            Err(error) => Self::Wrong(first_line(&error)),
        }
    }
}

/// What something is that is no plain file.
pub fn no_plain_file(at: &Metadata) -> Option<&'static str> {
    match at.file_type() {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_symlink() => Some("a link"),
        _ => Some("a pipe or a device"),
    }
}

/// Whether a file is the few lines that git keeps in place of a large file.
fn is_git_pointer(path: &Path, bytes: u64) -> bool {
    const BEGINNING: &[u8] = b"version https://git-lfs";
    let mut first = [0; BEGINNING.len()];
    bytes < 1024 && File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *BEGINNING
}

/// The text of a small file of ours or of Python's; `None` where there is none.
/// - Errors say in one line what is wrong with it, and name it.
pub fn read_note(path: &Path) -> Result<Option<String>, String> {
    match files::read_small_text(path, LONGEST_NOTE) {
        Ok(text) => Ok(Some(text)),
        Err(error) if files::is_missing(&error) => Ok(None),
        Err(error) => Err(first_line(&error)),
    }
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_commits_and_blobs_are_told_from_paths() {
        assert!(is_commit(&"0a1b2c3d".repeat(5)) && is_commit("0123456"));
        for wrong in ["", "main", "../../0123456", "0123456/..", "0123456\n", "\u{1b}[2J012345"] {
            assert!(!is_commit(wrong), "{wrong:?}");
        }
        assert!(is_etag("abc-12_3") && is_etag(&"f".repeat(64)));
        for wrong in ["", "..", "a/b", "a.b", "a b", "\u{1b}", &"f".repeat(129)] {
            assert!(!is_etag(wrong), "{wrong:?}");
        }
    }
}
