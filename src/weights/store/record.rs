//! What was pulled, one small file a name: the commit that the revision stood for, and the hub's own hash, which later checks go
//! by. No times: no file of ours carries a clock.

use crate::platform::files;
use crate::weights::catalogue::{Entry, Remote};
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
    /// As the hub says, or as the finished download had it where the hub says nothing.
    pub sha256: Option<String>,
}

fn path(data: &Path, name: &str) -> PathBuf {
    data.join("weights").join(format!("{name}.json"))
}

impl Record {
    /// The record of `entry`; none where the entry names another file by now.
    pub fn read(data: &Path, entry: &Entry) -> Option<Record> {
        let text = std::fs::read_to_string(path(data, &entry.name)).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        let of = Remote { repo: &record.repo, revision: &record.revision, file: &record.file };
        (Some(of) == entry.remote()).then_some(record)
    }

    pub fn write(&self, data: &Path, name: &str) -> Result<()> {
        files::write(&path(data, name), format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes(), true)
    }

    pub fn forget(data: &Path, name: &str) {
        let _ = std::fs::remove_file(path(data, name)); // where it stays, it is only out of date
    }
}
