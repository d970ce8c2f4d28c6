//! The store of weights against a hub that misbehaves: every failure ends in a finished, verified file, or in a clear error with
//! what had come kept.

mod cache;
mod failures;
mod program;
mod server;

use reel::hub::catalogue::Entry;
use reel::hub::store::Store;
use reel::hub::store::settings::{Settings, Token};
use reel::platform::progress::Progress;
use server::{COMMIT, Server, sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const REPO: &str = "some-one/some-weights";
const FILE: &str = "sub/weights one.bin";
/// Sent to the hub; nobody else may see it.
const TOKEN: &str = "hf_NobodyElseMaySeeThis";

/// Bytes that are nowhere alike. An odd number of them.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A folder of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("reel-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn settings(&self, server: &Server) -> Settings {
        Settings {
            cache: self.0.join("hub"),
            data: self.0.join("data"),
            endpoint: server.address.clone(),
            token: Token::new(TOKEN),
            trouble: None,
            offline: false,
            timeout: Duration::from_millis(400),
            waits: [1, 3, 5].map(Duration::from_millis).to_vec(),
            proxies: false,
            certificates: None,
            links: true,
        }
    }

    fn store(&self, server: &Server) -> Store {
        Store::new(self.settings(server))
    }

    fn folder(&self) -> PathBuf {
        self.0.join("hub/models--some-one--some-weights")
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.folder().join("blobs").join(sha256(bytes))
    }

    fn partial(&self, bytes: &[u8]) -> PathBuf {
        self.folder().join("blobs").join(format!("{}.incomplete", sha256(bytes)))
    }

    fn pointer(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT).join(FILE)
    }

    /// What an earlier pull that broke off left.
    fn leave(&self, of: &[u8], bytes: &[u8]) {
        std::fs::create_dir_all(self.folder().join("blobs")).unwrap();
        std::fs::write(self.partial(of), bytes).unwrap();
    }

    /// The file is here, whole, under its names alone.
    fn assert_whole(&self, bytes: &[u8]) {
        assert!(std::fs::read(self.pointer()).unwrap() == bytes, "other bytes");
        assert!(!self.partial(bytes).exists(), "a partial file is left");
        assert!(std::fs::read(self.blob(bytes)).unwrap() == bytes);
    }

    /// Nothing has the name of a finished file.
    fn assert_nothing(&self) {
        assert!(!self.folder().join("snapshots").exists(), "a snapshot");
        let blobs = std::fs::read_dir(self.folder().join("blobs")).into_iter().flatten().flatten();
        let names: Vec<_> = blobs.map(|e| e.file_name().into_string().unwrap()).collect();
        assert!(names.iter().all(|name| name.ends_with(".incomplete")), "{names:?}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An entry for [`FILE`]. `of`: bytes whose size and hash the catalogue knows.
fn entry(name: &str, of: Option<&[u8]>) -> Entry {
    Entry {
        name: name.to_string(),
        about: "a test".to_string(),
        licence: "Apache-2.0".to_string(),
        repo: Some(REPO.to_string()),
        file: Some(FILE.to_string()),
        bytes: of.map(|bytes| bytes.len() as u64),
        sha256: of.map(sha256),
        ..Entry::default()
    }
}

/// Pulls; the error as it would be shown.
fn pull(store: &Store, entry: &Entry) -> Result<(), String> {
    store.pull(&[entry], false, &Progress::silent()).map_err(|e| format!("{e:#}"))
}

fn assert_words(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
    assert!(!error.contains(TOKEN), "{error}");
    assert!(error.contains("\n  fix: "), "{error}");
}

/// The beginning of the SHA-256, as errors show it.
fn short(bytes: &[u8]) -> String {
    format!("{}…", &sha256(bytes)[..12])
}

/// Whether a folder or anything below it is a file.
fn any_file(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|e| {
        let path = e.path();
        if path.is_dir() { any_file(&path) } else { true }
    })
}
