//! The cache as Python has it: found, written, verified, freed.

use super::server::{COMMIT, Reply, Server, sha256};
use super::*;
use reel::hub::store::{State, Verdict};

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
    assert_eq!(store.verify(&entry("x", None), |_| Ok(())).unwrap(), Verdict::Whole { of: "the hub" });
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
    assert_eq!(store.verify(&entry("x", None), |_| Ok(())).unwrap(), Verdict::Whole { of: "the hub at the download" });
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
        match store.verify(&x, |_| Ok(())).unwrap() {
            Verdict::Damaged { what, .. } => what,
            other => panic!("{other:?}"),
        }
    };
    let flipped = [&bytes[..50], &[bytes[50] ^ 4], &bytes[51..]].concat();
    let what = damaged(&flipped);
    assert!(what.contains(&short(&flipped)) && what.contains(&short(&bytes)), "{what}");
    assert!(damaged(&bytes[..98]).contains("has 98 bytes, and 99 are right"));
    // found there and never pulled by us: the catalogue's hash is the next best, and none the last
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.pointer().parent().unwrap()).unwrap();
    std::fs::write(scratch.pointer(), &bytes).unwrap();
    std::fs::create_dir_all(scratch.folder().join("refs")).unwrap();
    std::fs::write(scratch.folder().join("refs/main"), COMMIT).unwrap();
    let store = scratch.store(&server);
    assert_eq!(store.verify(&entry("x", Some(&bytes)), |_| Ok(())).unwrap(), Verdict::Whole { of: "the catalogue" });
    assert_eq!(store.verify(&x, |_| Ok(())).unwrap(), Verdict::Unknown { sha256: sha256(&bytes) });
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
    // a snapshot that is a link to a folder of others
    std::fs::remove_dir_all(scratch.folder().join("snapshots")).unwrap();
    let others = scratch.0.join("others");
    std::fs::create_dir_all(others.join("sub")).unwrap();
    std::fs::write(others.join(FILE), &bytes).unwrap();
    std::fs::create_dir_all(scratch.folder().join("snapshots")).unwrap();
    std::os::unix::fs::symlink(&others, scratch.folder().join("snapshots").join(COMMIT)).unwrap();
    assert!(!offline(&scratch).remove(&entry("x", None)).unwrap().any);
    assert!(others.join(FILE).exists());
    std::fs::remove_file(scratch.folder().join("snapshots").join(COMMIT)).unwrap();
    std::fs::create_dir_all(scratch.pointer().parent().unwrap()).unwrap();
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

/// Pulls [`FILE`], then does something to what is there.
fn pulled(
    bytes: &[u8],
    twist: impl Fn(&super::server::Request, usize, Reply) -> Reply + Send + Sync + 'static,
) -> (Scratch, Server, Store) {
    let scratch = Scratch::new();
    let server = Server::hub(&[("weights%20one.bin", bytes)], twist);
    let store = scratch.store(&server);
    pull(&store, &entry("x", None)).unwrap();
    (scratch, server, store)
}

fn damage(store: &Store, entry: &Entry) -> String {
    match store.state(entry) {
        State::Damaged { what, .. } => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cut_blob_is_not_the_file_and_is_gone_on_from() {
    let bytes = content(9_999);
    let (scratch, server, store) = pulled(&bytes, |_, _, reply| reply);
    let x = entry("x", None);
    for (cut, from) in [(7_001, 7_001), (0, 0)] {
        std::fs::write(scratch.blob(&bytes), &bytes[..cut]).unwrap();
        let what = damage(&store, &x);
        assert!(what.contains(&scratch.pointer().display().to_string()), "{what}");
        assert!(what.contains(if cut == 0 { "is empty" } else { "has 7001 bytes, and 9999 are right" }), "{what}");
        assert_eq!(store.find(&x), None);
        assert_words(&store.lack(&x), &["`x` is damaged", "reel models pull x"]);
        assert_words(&format!("{:#}", store.sound(&x).unwrap_err()), &["`x` is damaged"]);
        assert!(matches!(store.verify(&x, |_| Ok(())).unwrap(), Verdict::Damaged { .. }));
        pull(&store, &x).unwrap();
        scratch.assert_whole(&bytes);
        assert_eq!(server.requests("GET").last().unwrap().from(), from);
    }
    // of the right length, and never linked: its name is no proof
    std::fs::write(scratch.blob(&bytes), vec![7; 9_999]).unwrap();
    std::fs::remove_file(scratch.pointer()).unwrap();
    pull(&store, &x).unwrap();
    scratch.assert_whole(&bytes);
}

#[test]
#[cfg(unix)]
fn a_cut_file_that_python_left_is_found_by_the_catalogue_or_its_header() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    python(&scratch, COMMIT, &[(COMMIT, FILE, &bytes)]);
    std::fs::write(scratch.blob(&bytes), &bytes[..50]).unwrap();
    let store = offline(&scratch);
    assert!(damage(&store, &entry("x", Some(&bytes))).contains("has 50 bytes, and 99 are right"));
    assert!(store.find(&entry("x", None)).is_some(), "nobody says how long it is");
    // a file of weights says so itself, whatever the catalogue knows
    let header = br#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#;
    let whole = [&(header.len() as u64).to_le_bytes()[..], header, &[7; 9]].concat();
    let weights = |known| Entry { file: Some("a.safetensors".to_string()), ..entry("y", known) };
    python(&scratch, COMMIT, &[(COMMIT, "a.safetensors", &whole)]);
    assert!(store.find(&weights(None)).is_some());
    let older = Entry { sha256: None, ..weights(Some(&bytes)) };
    assert!(store.find(&older).is_some(), "another one than the catalogue knows, and whole");
    for cut in [whole.len() - 1, 20, 5] {
        std::fs::write(scratch.blob(&whole), &whole[..cut]).unwrap();
        let what = damage(&store, &weights(None));
        assert!(what.contains("a.safetensors") && what.contains("is not a whole safetensors"), "{what}");
        assert!(damage(&store, &older).contains("and 99 are right"));
    }
    // what `git clone` leaves without LFS
    std::fs::write(
        scratch.blob(&whole),
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 9\n", sha256(&whole)),
    )
    .unwrap();
    assert!(damage(&store, &weights(None)).contains("pointer of Git LFS"));
}

#[test]
#[cfg(unix)]
fn references_and_commits_that_are_none_lead_nowhere() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let store = offline(&scratch);
    let x = entry("x", Some(&bytes));
    let outside = scratch.0.join("outside/sub");
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("weights one.bin"), &bytes).unwrap();
    for main in ["../../../outside", "", "main", "\u{1b}[2J", &"f".repeat(100_000)] {
        python(&scratch, main, &[]);
        let found = store.look(&x);
        assert_eq!(found.state, State::Absent, "{main:?}");
        let said = found.remarks.join("\n");
        assert!(said.contains("refs/main`") && said.len() < 400 && !said.contains('\u{1b}'), "{said:?}");
    }
    // a folder that no commit names holds nobody's files
    python(&scratch, COMMIT, &[("main", FILE, &bytes), ("x\u{1b}[2J", FILE, &bytes)]);
    assert_eq!(store.find(&x), None);
    // and a pull mends the reference
    python(&scratch, "../..", &[]);
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    pull(&scratch.store(&server), &x).unwrap();
    assert_eq!(std::fs::read_to_string(scratch.folder().join("refs/main")).unwrap(), COMMIT);
    assert!(store.look(&x).remarks.is_empty());
}

#[test]
#[cfg(unix)]
fn a_link_out_of_the_cache_is_used_and_said() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    python(&scratch, COMMIT, &[]);
    let outside = scratch.0.join("outside.bin");
    std::fs::write(&outside, &bytes).unwrap();
    std::fs::create_dir_all(scratch.pointer().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&outside, scratch.pointer()).unwrap();
    let store = offline(&scratch);
    let found = store.look(&entry("x", Some(&bytes)));
    assert_eq!(found.state, State::Here { path: scratch.pointer(), bytes: 99 });
    assert!(found.remarks[0].contains("leads out of the cache") && found.remarks[0].contains("outside.bin"));
    std::fs::write(&outside, b"another file").unwrap();
    assert!(damage(&store, &entry("x", Some(&bytes))).contains("99 are right"));
    std::fs::remove_file(&outside).unwrap();
    assert!(damage(&store, &entry("x", None)).contains("cannot be read"));
}

#[test]
#[cfg(unix)]
fn what_stands_where_a_download_writes_is_named_before_it() {
    let bytes = content(99);
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    for i in 0..6 {
        let scratch = Scratch::new();
        let outside = scratch.0.join("outside.bin");
        std::fs::write(&outside, "precious").unwrap();
        let lock = scratch.0.join("hub/.locks/models--some-one--some-weights").join(format!("{}.lock", sha256(&bytes)));
        let reference = scratch.folder().join("refs/main");
        let places = [
            scratch.blob(&bytes),
            scratch.partial(&bytes),
            scratch.pointer(),
            reference,
            lock,
            scratch.partial(&bytes),
        ];
        std::fs::create_dir_all(places[i].parent().unwrap()).unwrap();
        match i {
            5 => std::os::unix::fs::symlink(&outside, &places[i]).unwrap(),
            _ => std::fs::create_dir(&places[i]).unwrap(),
        }
        let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
        let kind = if i == 5 { "is a link" } else { "is a directory" };
        assert_words(&error, &[&places[i].display().to_string(), kind, "move it away"]);
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
    }
    assert!(server.requests("GET").is_empty(), "it was fetched first");
}

#[test]
fn a_record_that_is_none_is_left_aside() {
    let bytes = content(99);
    let (scratch, _server, store) = pulled(&bytes, |_, _, reply| reply);
    let x = entry("x", None);
    let precious = scratch.0.join("precious");
    std::fs::write(&precious, "precious").unwrap();
    let record = scratch.0.join("data/weights/x.json");
    let right = std::fs::read_to_string(&record).unwrap();
    let with = |from: &str, to: &str| right.replace(from, to);
    let wrong = [
        "not JSON".to_string(),
        "x".repeat(100_000),
        with(&format!("\"etag\": \"{}\"", sha256(&bytes)), "\"etag\": \"../../../precious\""),
        with(COMMIT, "../../../../outside"),
        with(COMMIT, "\\u001b[2J0123456"),
        with(&format!("\"sha256\": \"{}\"", sha256(&bytes)), "\"sha256\": \"\\u001b\""),
    ];
    for text in wrong {
        assert_ne!(text, right);
        std::fs::write(&record, text).unwrap();
        let found = store.look(&x);
        assert_eq!(found.state, State::Here { path: scratch.pointer(), bytes: 99 });
        let said = found.remarks.join("\n");
        assert!(said.contains("x.json`") && !said.contains('\u{1b}'), "{said:?}");
        #[cfg(unix)]
        assert_eq!(store.verify(&x, |_| Ok(())).unwrap(), Verdict::Whole { of: "the hub" });
    }
    std::fs::write(&record, with(&sha256(&bytes), "../../../precious")).unwrap();
    store.remove(&x).unwrap();
    assert_eq!(std::fs::read_to_string(precious).unwrap(), "precious");
}

#[test]
fn nobody_vouches_for_what_neither_hub_nor_catalogue_hashes() {
    let bytes = content(99);
    let unhashed = |_: &super::server::Request, _, mut reply: Reply| {
        reply.headers.retain(|(name, _)| !name.starts_with("x-linked"));
        reply.with("etag", "\"of-a-mirror\"")
    };
    let (scratch, _server, store) = pulled(&bytes, unhashed);
    let x = entry("x", None);
    assert_eq!(store.verify(&x, |_| Ok(())).unwrap(), Verdict::Own { sha256: sha256(&bytes) });
    let record = scratch.0.join("data/weights/x.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["sha256"], &json["own_sha256"]), (&serde_json::Value::Null, &sha256(&bytes).into()));
    // a record of an earlier version, which did not tell whose the hash is
    let older = text.replace("\"sha256\": null,\n", "").replace("own_sha256", "sha256");
    std::fs::write(&record, older).unwrap();
    assert_eq!(store.verify(&x, |_| Ok(())).unwrap(), Verdict::Own { sha256: sha256(&bytes) });
    // the catalogue's word is one
    let known = entry("x", Some(&bytes));
    assert_eq!(store.verify(&known, |_| Ok(())).unwrap(), Verdict::Whole { of: "the catalogue" });
    std::fs::write(scratch.folder().join("blobs/of-a-mirror"), &content(100)[1..]).unwrap();
    let verdict = store.verify(&x, |_| Ok(())).unwrap();
    assert!(matches!(&verdict, Verdict::Damaged { what, .. } if what.contains("the download says")), "{verdict:?}");
}

#[test]
fn nothing_is_removed_that_is_being_pulled() {
    let bytes = content(99);
    let (scratch, _server, store) = pulled(&bytes, |_, _, reply| reply);
    let lock = scratch.0.join("hub/.locks/models--some-one--some-weights").join(format!("{}.lock", sha256(&bytes)));
    let other = std::fs::File::open(lock).unwrap();
    other.lock().unwrap();
    let error = store.remove(&entry("x", None)).unwrap_err().to_string();
    assert_words(&error, &["being pulled by another process"]);
    scratch.assert_whole(&bytes);
    drop(other);
    assert!(store.remove(&entry("x", None)).unwrap().any);
}

#[test]
#[cfg(unix)]
fn a_lock_whose_file_is_removed_meanwhile_is_taken_anew() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    let path = scratch.0.join("hub/.locks/models--some-one--some-weights").join(format!("{}.lock", sha256(&bytes)));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let first = std::fs::File::create(&path).unwrap();
    first.lock().unwrap();
    std::thread::scope(|scope| {
        let pulls = scope.spawn(|| pull(&scratch.store(&server), &entry("x", None)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!pulls.is_finished(), "it did not wait");
        // as some versions of Python do; whoever comes next locks another file
        std::fs::remove_file(&path).unwrap();
        let second = std::fs::File::create(&path).unwrap();
        second.lock().unwrap();
        drop(first);
        std::thread::sleep(Duration::from_millis(300));
        assert!(!pulls.is_finished(), "it took a lock that nobody else sees");
        drop(second);
        pulls.join().unwrap().unwrap();
    });
    scratch.assert_whole(&bytes);
}

#[test]
fn a_record_is_of_its_own_commit_alone() {
    // pulled here without links, and later another version by another program
    let (scratch, bytes, newer) = (Scratch::new(), content(99), content(70));
    let server = Server::hub(&[("weights%20one.bin", &bytes)], |_, _, reply| reply);
    let store = Store::new(Settings { links: false, ..scratch.settings(&server) });
    let x = entry("x", None);
    pull(&store, &x).unwrap();
    std::fs::remove_dir_all(scratch.folder().join("snapshots").join(COMMIT)).unwrap();
    let path = scratch.folder().join("snapshots").join(OTHER).join(FILE);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &newer).unwrap();
    std::fs::write(scratch.folder().join("refs/main"), OTHER).unwrap();
    assert_eq!(store.state(&x), State::Here { path, bytes: 70 });
    assert_eq!(store.verify(&x, |_| Ok(())).unwrap(), Verdict::Unknown { sha256: sha256(&newer) });
}
