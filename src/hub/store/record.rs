//! What was pulled, one small file a name: the commit that the revision stood for, and the hub's own hash, which later checks go
//! by. No times: no file of ours carries a clock.

use crate::hub::catalogue::{Entry, Remote, is_sha256};
use crate::hub::store::check::{is_commit, is_etag, read_note};
use crate::platform::files;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub repo: String,
    pub revision: String,
    pub file: String,
    /// The commit that `revision` stood for.
    pub commit: String,
    /// The blob's name in the cache.
    pub etag: String,
    pub bytes: Option<u64>,
    /// As the hub or the catalogue says.
    pub sha256: Option<String>,
    /// As the finished download had it, where nobody else says what it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_sha256: Option<String>,
}

fn path(data: &Path, name: &str) -> PathBuf {
    data.join("weights").join(format!("{name}.json"))
}

impl Record {
    /// The record of `entry`; none where the entry names another file by now.
    /// - Errors say what is wrong with a record that nobody can go by, its path first.
    pub fn read(data: &Path, entry: &Entry) -> Result<Option<Record>, String> {
        let path = path(data, &entry.name);
        let Some(text) = read_note(&path)? else { return Ok(None) };
        let record: Record = serde_json::from_str(&text)
            .map_err(|_| format!("`{}` is no record of a download, and is left aside", path.display()))?;
        let hashes = [&record.sha256, &record.own_sha256].into_iter().flatten().all(|hash| is_sha256(hash));
        // they become names of files, and stand in what is shown
        if !hashes || !is_commit(&record.commit) || !is_etag(&record.etag) {
            return Err(format!(
                "`{}` holds a commit, an etag or a hash that is none, and is left aside",
                path.display()
            ));
        }
        let of = Remote { repo: &record.repo, revision: &record.revision, file: &record.file };
        let is_this = Some(of) == entry.remote();
        Ok(is_this.then(|| record.sorted(entry)))
    }

    /// A hash that neither the hub's etag nor the catalogue backs is the download's own: records of earlier versions did not tell
    /// the two apart.
    fn sorted(mut self, entry: &Entry) -> Self {
        if self.sha256.is_some() && self.sha256.as_ref() != Some(&self.etag) && self.sha256 != entry.sha256 {
            self.own_sha256 = self.sha256.take();
        }
        self
    }

    pub fn write(&self, data: &Path, name: &str) -> Result<()> {
        files::write(&path(data, name), format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes(), true)
    }

    pub fn forget(data: &Path, name: &str) {
        let _ = std::fs::remove_file(path(data, name)); // where it stays, it is only out of date
    }
}
