//! Where a user's files of this program are: the folders of the XDG Base Directory Specification, in a subfolder `reel`.

use std::ffi::OsString;
use std::path::PathBuf;

/// What a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// What can be made again.
    Cache,
    /// What the user writes.
    Config,
    /// What the program has to know again.
    Data,
    /// What the program did.
    State,
}

impl Folder {
    /// The folder, made or not; `None` where the environment says no place for it.
    pub fn path(self) -> Option<PathBuf> {
        self.find(&|name| std::env::var_os(name))
    }

    /// - `var`: the value of a variable. An empty one counts as absent, and so does a relative path, as the specification has it.
    pub fn find(self, var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        let (name, in_home) = match self {
            Folder::Cache => ("XDG_CACHE_HOME", ".cache"),
            Folder::Config => ("XDG_CONFIG_HOME", ".config"),
            Folder::Data => ("XDG_DATA_HOME", ".local/share"),
            Folder::State => ("XDG_STATE_HOME", ".local/state"),
        };
        let named = var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Some(named.or_else(|| Some(home(var)?.join(in_home)))?.join("reel"))
    }
}

/// The user's home folder.
/// - `var`: as for [`Folder::find`].
pub fn home(var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    ["HOME", "USERPROFILE"].iter().find_map(|name| var(name).filter(|value| !value.is_empty())).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn folders_are_where_the_specification_has_them() {
        let find = |folder: Folder, vars: &[(&str, &str)]| {
            folder.find(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
        };
        let is = |path: &str| Some(PathBuf::from(path));
        assert_eq!(find(Folder::Config, &[("HOME", "/h")]), is("/h/.config/reel"));
        assert_eq!(find(Folder::Data, &[("USERPROFILE", "/h")]), is("/h/.local/share/reel"));
        assert_eq!(find(Folder::State, &[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]), is("/s/reel"));
        assert_eq!(find(Folder::State, &[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), is("/h/.local/state/reel"));
        // nothing and a relative path are no folder
        assert_eq!(find(Folder::Cache, &[("HOME", "/h"), ("XDG_CACHE_HOME", "")]), is("/h/.cache/reel"));
        assert_eq!(find(Folder::Cache, &[("HOME", "/h"), ("XDG_CACHE_HOME", "c")]), is("/h/.cache/reel"));
        assert_eq!(find(Folder::Cache, &[("HOME", "")]), None);
    }
}
