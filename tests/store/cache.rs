//! The cache as Python has it: found, written, verified, freed.

use crate::server::{COMMIT, Server, sha256};
use crate::*;
use reel::weights::store::{State, Verdict};

const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// A cache as Python leaves it: blobs, links to them, the revision's commit. `links`: commit, name, bytes.
fn python(scratch: &Scratch, main: &str, links: &[(&str, &str, &[u8])]) {
    let folder = scratch.folder();
    for (commit, name, bytes) in links {
        let pointer = folder.join("snapshots").join(commit).join(name);
        std::fs::create_dir_all(pointer.parent().unwrap()).unwrap();
        std::fs::create_dir_all(folder.join("blobs")).unwrap();
        std::fs::write(scratch.blob(bytes), bytes).unwrap();
        let up = "../".repeat(name.split('/').count() + 1);
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("{up}blobs/{}", sha256(bytes)), pointer).unwrap();
        #[cfg(not(unix))]
        std::fs::copy(scratch.blob(bytes), pointer).map(|_| drop(up)).unwrap();
    }
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), main).unwrap();
}

fn offline(scratch: &Scratch) -> Store {
    let server = Server::start(|_, _| panic!("asked while offline"));
    Store::new(Settings { offline: true, ..scratch.settings(&server) })
}

#[test]
fn offline_what_is_here_is_used_and_what_is_not_is_said() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let store = offline(&scratch);
    assert_words(&pull(&store, &entry("x", None)).unwrap_err(), &["`x` is not here", "HF_HUB_OFFLINE"]);
    assert_eq!(store.state(&entry("x", None)), State::Absent);
    python(&scratch, COMMIT, &[(COMMIT, FILE, &bytes)]);
    pull(&store, &entry("x", None)).unwrap();
    assert_eq!(store.find(&entry("x", None)), Some(scratch.pointer()));
    assert_eq!(store.verify(&entry("x", None), |_| {}).unwrap(), Verdict::Whole { of: "the hub" });
    assert_eq!(store.state(&entry("x", None)), State::Here { path: scratch.pointer(), bytes: 99 });
}

#[test]
#[cfg(unix)]
fn a_file_of_an_older_commit_is_found() {
    // `main` has moved on, as it does when another file of the repository is pulled
    let (scratch, bytes) = (Scratch::new(), content(99));
    python(&scratch, OTHER, &[(COMMIT, FILE, &bytes), (OTHER, "another.bin", &content(7))]);
    let store = offline(&scratch);
    assert_eq!(store.find(&entry("x", None)), None, "nobody says that it is the right one");
    assert_eq!(store.find(&entry("x", Some(&content(98)))), None, "another file");
    assert_eq!(store.find(&entry("x", Some(&bytes))), Some(scratch.pointer()));
    let pinned = Entry { revision: Some(COMMIT.to_string()), ..entry("x", None) };
    assert_eq!(store.find(&pinned), Some(scratch.pointer()));
}

#[test]
fn a_pull_leaves_what_python_expects() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    let entry = Entry { revision: Some("refs/pr/7".to_string()), ..entry("x", None) };
    pull(&scratch.store(&server), &entry).unwrap();
    assert_eq!(server.requests("HEAD")[0].path, format!("/{REPO}/resolve/refs%2Fpr%2F7/sub/weights%20one.bin"));
    assert_eq!(std::fs::read_to_string(scratch.folder().join("refs/refs/pr/7")).unwrap(), COMMIT);
    if cfg!(unix) {
        let link = std::fs::read_link(scratch.pointer()).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("../../../blobs/{}", sha256(&bytes)));
    }
    // another pull of the same bytes finds the blob
    std::fs::remove_dir_all(scratch.folder().join("snapshots")).unwrap();
    pull(&scratch.store(&server), &entry).unwrap();
    assert_eq!(server.requests("GET").len(), 1);
    scratch.assert_whole(&bytes);
    let record = std::fs::read_to_string(scratch.0.join("data/weights/x.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!((&record["commit"], &record["sha256"]), (&COMMIT.into(), &sha256(&bytes).into()));
    assert_eq!((&record["bytes"], record.as_object().unwrap().len()), (&99.into(), 7));
}

#[test]
fn where_links_are_impossible_the_file_itself_is_there() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    let store = Store::new(Settings { links: false, ..scratch.settings(&server) });
    pull(&store, &entry("x", None)).unwrap();
    assert!(scratch.pointer().symlink_metadata().unwrap().is_file());
    assert!(std::fs::read(scratch.pointer()).unwrap() == bytes && !scratch.blob(&bytes).exists());
    assert_eq!(store.verify(&entry("x", None), |_| {}).unwrap(), Verdict::Whole { of: "the hub at the download" });
    // beside a blob that others use it is a copy
    std::fs::write(scratch.blob(&bytes), &bytes).unwrap();
    std::fs::remove_file(scratch.pointer()).unwrap();
    pull(&store, &entry("x", None)).unwrap();
    assert!(scratch.pointer().symlink_metadata().unwrap().is_file() && scratch.blob(&bytes).exists());
    let removed = store.remove(&entry("x", None)).unwrap();
    assert_eq!((removed.bytes, removed.any), (198, true));
    assert!(!any_file(&scratch.folder()));
}

#[test]
fn damage_is_found() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    let (store, x) = (scratch.store(&server), entry("x", None));
    pull(&store, &x).unwrap();
    let damaged = |bytes: &[u8]| {
        std::fs::write(scratch.blob(&content(99)), bytes).unwrap();
        match store.verify(&x, |_| {}).unwrap() {
            Verdict::Damaged { what } => what,
            other => panic!("{other:?}"),
        }
    };
    let flipped = [&bytes[..50], &[bytes[50] ^ 4], &bytes[51..]].concat();
    let what = damaged(&flipped);
    assert!(what.contains(&sha256(&flipped)) && what.contains(&sha256(&bytes)), "{what}");
    assert!(damaged(&bytes[..98]).contains("has 98 bytes, and 99 are right"));
    // found there and never pulled by us: the catalogue's hash is the next best, and none the last
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.pointer().parent().unwrap()).unwrap();
    std::fs::write(scratch.pointer(), &bytes).unwrap();
    std::fs::create_dir_all(scratch.folder().join("refs")).unwrap();
    std::fs::write(scratch.folder().join("refs/main"), COMMIT).unwrap();
    let store = scratch.store(&server);
    assert_eq!(store.verify(&entry("x", Some(&bytes)), |_| {}).unwrap(), Verdict::Whole { of: "the catalogue" });
    assert_eq!(store.verify(&x, |_| {}).unwrap(), Verdict::Unknown { sha256: sha256(&bytes) });
}

#[test]
#[cfg(unix)]
fn removing_frees_what_nothing_else_uses() {
    let (scratch, bytes, more) = (Scratch::new(), content(99), content(70));
    let same = "the-same.bin";
    python(&scratch, COMMIT, &[(COMMIT, FILE, &bytes), (OTHER, FILE, &more), (COMMIT, same, &bytes)]);
    let (store, x) = (offline(&scratch), entry("x", None));
    let removed = store.remove(&x).unwrap();
    // its newer bytes go, its older ones are also another file's
    assert_eq!((removed.bytes, removed.used_by), (70, vec![same.to_string()]));
    assert!(scratch.blob(&bytes).exists() && !scratch.blob(&more).exists());
    assert!(scratch.folder().join("snapshots").join(COMMIT).join(same).exists());
    assert!(!scratch.folder().join("snapshots").join(OTHER).exists());
    assert_eq!(store.find(&x), None);
    assert!(!store.remove(&x).unwrap().any);
    let last = Entry { file: Some(same.to_string()), ..x };
    assert_eq!(store.remove(&last).unwrap().bytes, 99);
    assert!(!scratch.folder().exists(), "an empty folder is left");
}

#[test]
#[cfg(unix)]
fn removing_touches_nothing_outside() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let outside = scratch.0.join("outside.bin");
    std::fs::write(&outside, &bytes).unwrap();
    std::fs::create_dir_all(scratch.pointer().parent().unwrap()).unwrap();
    for target in [outside.clone(), "../../../blobs/../../../outside.bin".into(), "../../../blobs/sub/x".into()] {
        std::os::unix::fs::symlink(target, scratch.pointer()).unwrap();
        let removed = offline(&scratch).remove(&entry("x", None)).unwrap();
        assert_eq!((removed.bytes, removed.any), (0, true));
        assert!(scratch.pointer().symlink_metadata().is_err());
        assert!(std::fs::read(&outside).unwrap() == bytes);
        std::fs::create_dir_all(scratch.pointer().parent().unwrap()).unwrap();
    }
    // a blob that is itself a link, as newer versions of Python share them between caches
    std::fs::create_dir_all(scratch.folder().join("blobs")).unwrap();
    std::os::unix::fs::symlink(&outside, scratch.blob(&bytes)).unwrap();
    std::os::unix::fs::symlink(format!("../../../blobs/{}", sha256(&bytes)), scratch.pointer()).unwrap();
    assert!(offline(&scratch).remove(&entry("x", None)).unwrap().any);
    assert!(scratch.blob(&bytes).symlink_metadata().is_err() && outside.exists());
}

#[test]
fn what_broke_off_is_seen_and_can_be_freed() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |request, _, reply| {
        if request.method == "GET" { reply.cut(if request.from() == 0 { 33 } else { 0 }) } else { reply }
    });
    let (store, x) = (scratch.store(&server), entry("x", None));
    pull(&store, &x).unwrap_err();
    assert_eq!(store.state(&x), State::Partly { bytes: 33 });
    assert_eq!(store.find(&x), None);
    assert_eq!(store.remove(&x).unwrap().bytes, 33);
    assert_eq!(store.state(&x), State::Absent);
    assert!(!any_file(&scratch.folder()));
}
