//! What a server can do wrong, one test each.

use super::server::{COMMIT, Reply, Server, sha256, well_behaved};
use super::*;
use reel::hub::catalogue::Kind;
use reel::platform::cancel::Cancelled;
use reel::platform::progress::Mode;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Instant;

/// Larger than one read, and no multiple of anything.
const LEN: usize = 700_001;

/// The path of [`FILE`] as a server knows it.
const SERVED: &str = "weights%20one.bin";

fn hub(bytes: &[u8], twist: impl Fn(&server::Request, usize, Reply) -> Reply + Send + Sync + 'static) -> Server {
    Server::hub(&[(SERVED, bytes)], twist)
}

/// A twist of the GETs alone.
fn gets(
    twist: impl Fn(usize, Reply) -> Reply + Send + Sync,
) -> impl Fn(&server::Request, usize, Reply) -> Reply + Send + Sync {
    move |request, before, reply| if request.method == "GET" { twist(before, reply) } else { reply }
}

fn starts(server: &Server) -> Vec<usize> {
    server.requests("GET").iter().map(|r| r.from()).collect()
}

#[test]
fn a_good_server_needs_one_request_each() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let server = hub(&bytes, |_, _, reply| reply);
    pull(&scratch.store(&server), &entry("x", Some(&bytes))).unwrap();
    scratch.assert_whole(&bytes);
    let head = &server.requests("HEAD")[0];
    assert_eq!(head.path, format!("/{REPO}/resolve/main/sub/{SERVED}"));
    assert_eq!(head.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    // the bytes are those of the commit that was asked about, whatever `main` is by now
    assert_eq!(server.requests("GET")[0].path, format!("/{REPO}/resolve/{COMMIT}/sub/{SERVED}"));
    pull(&scratch.store(&server), &entry("x", Some(&bytes))).unwrap();
    assert_eq!((server.requests("HEAD").len(), server.requests("GET").len()), (1, 1));
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_was() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let server = hub(&bytes, gets(|before, reply| if before < 5 { reply.cut(100_003) } else { reply }));
    pull(&scratch.store(&server), &entry("x", Some(&bytes))).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&server), [0, 100_003, 200_006, 300_009, 400_012, 500_015]);
}

#[test]
fn what_had_come_is_kept_for_the_next_pull() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let broken = hub(&bytes, gets(|before, reply| reply.cut(if before == 0 { 300_007 } else { 0 })));
    let error = pull(&scratch.store(&broken), &entry("x", None)).unwrap_err();
    assert_words(&error, &["4 times over", "300 kB of 700 kB are kept", "same command"]);
    scratch.assert_nothing();
    assert!(std::fs::read(scratch.partial(&bytes)).unwrap() == bytes[..300_007]);
    let good = hub(&bytes, |_, _, reply| reply);
    pull(&scratch.store(&good), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&good), [300_007]);
}

#[test]
fn wrong_bytes_are_never_given_a_name() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let other = [&bytes[..LEN - 1], &[bytes[LEN - 1] ^ 1]].concat();
    let body = other.clone();
    let server = hub(&bytes, gets(move |_, reply| Reply { body: body.clone(), ..reply }));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["wrong bytes", &short(&bytes), &short(&other)]);
    assert!(!error.contains(&sha256(&bytes)), "the whole hash is for those who ask: {error}");
    assert_eq!(server.requests("GET").len(), 1, "a whole wrong file is not fetched over and over");
    scratch.assert_nothing();
    assert!(!scratch.partial(&bytes).exists(), "nothing of it can be gone on from");
    assert!(!any_file(&scratch.0.join("data")), "not even a record");
}

/// What was pulled before keeps the record that it had.
#[test]
fn a_pull_that_fails_leaves_the_record_of_before() {
    let (scratch, bytes, newer) = (Scratch::new(), content(LEN), content(LEN + 2));
    let good = hub(&bytes, |_, _, reply| reply);
    pull(&scratch.store(&good), &entry("x", None)).unwrap();
    let record = scratch.0.join("data/weights/x.json");
    let before = std::fs::read(&record).unwrap();
    std::fs::remove_file(scratch.pointer()).unwrap();
    let gone = hub(&newer, gets(|_, _| Reply::status(404)));
    pull(&scratch.store(&gone), &entry("x", None)).unwrap_err();
    assert_eq!(std::fs::read(&record).unwrap(), before);
    // of what broke off the record says whose it is
    let broken = hub(&newer, gets(|before, reply| reply.cut(if before == 0 { 300_007 } else { 0 })));
    pull(&scratch.store(&broken), &entry("x", None)).unwrap_err();
    assert!(scratch.partial(&newer).exists());
    assert!(std::fs::read_to_string(&record).unwrap().contains(&sha256(&newer)));
}

#[test]
fn small_files_are_checked_by_gits_hash() {
    // printf 'hello\n' | git hash-object --stdin
    const HELLO: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    let small = |said: &'static [u8]| {
        Server::hub(&[(SERVED, said)], |_, _, mut reply| {
            reply.headers.retain(|(name, _)| !name.starts_with("x-linked"));
            reply.with("etag", format!("\"{HELLO}\""))
        })
    };
    let scratch = Scratch::new();
    let error = pull(&scratch.store(&small(b"hallo\n")), &entry("x", None)).unwrap_err();
    assert_words(&error, &["wrong bytes", "git's hash", &HELLO[..12]]);
    scratch.assert_nothing();
    pull(&scratch.store(&small(b"hello\n")), &entry("x", None)).unwrap();
    assert_eq!(std::fs::read(scratch.pointer()).unwrap(), b"hello\n");
    assert!(scratch.folder().join("blobs").join(HELLO).exists());
}

#[test]
fn wrong_bytes_of_an_earlier_pull_are_fetched_anew() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    for left in [200_001, LEN, LEN + 5] {
        scratch.leave(&bytes, &vec![7; left]);
        let server = hub(&bytes, |_, _, reply| reply);
        pull(&scratch.store(&server), &entry("x", None)).unwrap();
        scratch.assert_whole(&bytes);
        let expected: &[usize] = if left < LEN { &[left, 0] } else { &[0] };
        assert_eq!(starts(&server), expected, "{left}");
        std::fs::remove_dir_all(scratch.folder()).unwrap();
    }
    // what is there may be all of it: a process that was killed before the rename
    scratch.leave(&bytes, &bytes);
    let server = hub(&bytes, |_, _, reply| reply);
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
    assert!(starts(&server).is_empty());
}

#[test]
fn a_wrong_length_is_an_error() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    // said to be shorter, and so
    let server = hub(&bytes, gets(|_, reply| Reply { body: reply.body[..LEN - 3].to_vec(), ..reply }));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["has 700001 bytes", "sends 699998"]);
    // longer, without saying so
    let server =
        hub(&bytes, gets(|_, reply| Reply { body: [&reply.body[..], b"more"].concat(), length: Some(None), ..reply }));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["sends more than the 700001 bytes"]);
    scratch.assert_nothing();
}

#[test]
fn no_length_at_all_is_no_trouble() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let server = hub(
        &bytes,
        gets(|before, reply| {
            let reply = Reply { length: Some(None), ..reply };
            if before == 0 { reply.cut(123_457) } else { reply }
        }),
    );
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&server), [0, 123_457]);
    // not even in the hub's answer
    let scratch = Scratch::new();
    let server = hub(&bytes, |_, _, mut reply| {
        reply.headers.retain(|(name, _)| name != "x-linked-size");
        Reply { length: Some(None), ..reply }
    });
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
}

#[test]
fn the_token_stays_with_the_hub() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let body = bytes.clone();
    // another port is another host; its etag is its own
    let far = Server::start(move |request, before| {
        let reply = Reply { headers: vec![], ..well_behaved(request, &body) };
        let (from, len) = (request.from(), body.len());
        let reply =
            reply.with("etag", "\"of-the-store\"").with("content-range", format!("bytes {from}-{}/{len}", len - 1));
        if before == 0 { reply.cut(50_000) } else { reply }
    });
    let target = format!("{}/signed?for=a-while", far.address);
    let near = hub(&bytes, move |request, _, reply| match request.path.as_str() {
        path if path.starts_with("/moved/") => Reply { status: 302, body: vec![], ..reply }.with("location", &target),
        // a redirect on the hub itself first
        path => Reply::status(307).with("location", format!("/moved{path}")),
    });
    pull(&scratch.store(&near), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&far), [0, 50_000]);
    for request in far.requests("GET").iter().chain(&far.requests("HEAD")) {
        assert_eq!(request.header("authorization"), None);
        assert!(!format!("{request:?}").contains(TOKEN));
    }
    let asked: Vec<_> = near.requests("HEAD").into_iter().chain(near.requests("GET")).collect();
    assert!(asked.len() > 4 && asked.iter().all(|r| r.header("authorization").is_some()));
    assert!(far.requests("HEAD").is_empty(), "the hub has said all there is to know");
}

#[test]
fn redirects_that_lead_nowhere() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let error = |location: &'static str| {
        let server = hub(&bytes, move |_, _, _| Reply::status(302).with("location", location));
        pull(&scratch.store(&server), &entry("x", None)).unwrap_err()
    };
    assert_words(&error("/again"), &["redirects without end"]);
    assert_words(&error("ftp://127.0.0.1/x"), &["no http address"]);
    scratch.assert_nothing();
}

#[test]
fn refusals_are_not_tried_again() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let cases: [(u16, &str, &[&str]); 5] = [
        (401, "", &["refuses", "401", "check HF_TOKEN"]),
        (403, "GatedRepo", &["accept its licence at http://127.0.0.1", REPO]),
        (404, "EntryNotFound", &["has no `sub/weights one.bin`", "revision `main`"]),
        (400, "", &["answers 400"]),
        (204, "", &["no Hugging Face hub", "HF_ENDPOINT"]),
    ];
    for (status, code, words) in cases {
        let server = hub(&bytes, move |_, _, _| Reply::status(status).with("x-error-code", code));
        let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
        assert_words(&error, words);
        assert_eq!(server.requests("HEAD").len(), 1);
    }
    let server = hub(&bytes, |_, _, _| Reply::status(401));
    let nobody = Store::new(Settings { token: None, ..scratch.settings(&server) });
    assert_words(&pull(&nobody, &entry("x", None)).unwrap_err(), &["set HF_TOKEN"]);
    // under way too
    let server = hub(&bytes, gets(|_, _| Reply::status(403)));
    assert_words(&pull(&scratch.store(&server), &entry("x", None)).unwrap_err(), &["refuses"]);
    assert_eq!(server.requests("GET").len(), 1);
    assert!(!any_file(&scratch.folder()));
}

#[test]
fn a_busy_server_is_asked_again() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let server = hub(&bytes, |_, before, reply| match before {
        0 => Reply::status(429).with("retry-after", 0),
        1 => Reply::status(503),
        2 => Reply::status(500),
        _ => reply,
    });
    pull(&scratch.store(&server), &entry("x", Some(&bytes))).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!((server.requests("HEAD").len(), server.requests("GET").len()), (4, 4));
}

#[test]
fn a_server_that_stays_busy_is_given_up() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let server = hub(&bytes, |_, _, _| Reply::status(503));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["answers 503", "4 times over"]);
    assert_eq!(server.requests("HEAD").len(), 4);
    let server = hub(&bytes, gets(|before, reply| if before == 0 { reply.cut(9_999) } else { Reply::status(503) }));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["answers 503", "10.0 kB of 700 kB are kept"]);
    assert_eq!(std::fs::metadata(scratch.partial(&bytes)).unwrap().len(), 9_999);
    // longer than anyone waits
    let server = hub(&bytes, |_, _, _| Reply::status(429).with("retry-after", 86_400));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["asks to wait 86400 s"]);
    assert_eq!(server.requests("HEAD").len(), 1);
}

#[test]
fn a_wait_may_be_said_as_a_date() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let limited = |until: &'static str| {
        hub(&bytes, move |_, before, reply| match before {
            0 => Reply::status(429).with("date", "Fri, 20 Nov 2026 07:28:00 GMT").with("retry-after", until),
            _ => reply,
        })
    };
    let far = limited("Sat, 21 Nov 2026 07:28:00 GMT");
    assert_words(&pull(&scratch.store(&far), &entry("x", None)).unwrap_err(), &["asks to wait 86400 s"]);
    let begun = std::time::Instant::now();
    pull(&scratch.store(&limited("Fri, 20 Nov 2026 07:28:01 GMT")), &entry("x", None)).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "it did not wait");
    scratch.assert_whole(&bytes);
}

#[test]
fn nobody_there() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = hub(&bytes, |_, _, reply| reply);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
    let nobody = Store::new(Settings { endpoint: format!("http://{free}"), ..scratch.settings(&server) });
    assert_words(&pull(&nobody, &entry("x", None)).unwrap_err(), &["no connection to `127.0.0.1:", "2 times over"]);
    let nonsense = Store::new(Settings { endpoint: "nonsense".to_string(), ..scratch.settings(&server) });
    assert_words(&pull(&nonsense, &entry("x", None)).unwrap_err(), &["no http address", "HF_ENDPOINT"]);
    // no resolver knows names of this ending (RFC 6761)
    let unknown = Store::new(Settings { endpoint: "http://hub.invalid".to_string(), ..scratch.settings(&server) });
    assert_words(&pull(&unknown, &entry("x", None)).unwrap_err(), &["`hub.invalid` cannot be found", "2 times over"]);
    // a server that knows no encryption answers what it does not understand as it can
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"); // the other end may be gone
            let _ = stream.read_to_end(&mut vec![]);
        }
    });
    let plain = Store::new(Settings { endpoint, ..scratch.settings(&server) });
    assert_words(&pull(&plain, &entry("x", None)).unwrap_err(), &["without encryption", "HF_ENDPOINT with http://"]);
}

#[test]
fn a_server_without_ranges_loses_nothing() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    scratch.leave(&bytes, &bytes[..250_001]);
    let body = bytes.clone();
    let server = hub(
        &bytes,
        gets(move |before, reply| {
            let headers = reply.headers.into_iter().filter(|(name, _)| name != "content-range").collect();
            let whole = Reply { status: 200, body: body.clone(), headers, ..Reply::default() };
            // the first answers do not even reach what is here
            if before < 2 {
                whole.cut(100_000 + before)
            } else if before == 2 {
                whole.cut(400_000)
            } else {
                whole
            }
        }),
    );
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&server), [250_001, 250_001, 250_001, 400_000]);
}

#[test]
fn a_range_that_is_refused_or_another_is_no_end() {
    let bytes = content(LEN);
    for status in [416, 206] {
        let scratch = Scratch::new();
        scratch.leave(&bytes, &bytes[..250_001]);
        let server = hub(&bytes, move |request, _, reply| match request.from() {
            0 => reply,
            _ if status == 416 => Reply::status(416).with("content-range", format!("bytes */{LEN}")),
            _ => Reply { status, ..reply }.with("content-range", format!("bytes 250009-{}/{LEN}", LEN - 1)),
        });
        pull(&scratch.store(&server), &entry("x", None)).unwrap();
        scratch.assert_whole(&bytes);
        assert_eq!(starts(&server), [250_001, 0]);
    }
    // a part that begins earlier is as good
    let (scratch, body) = (Scratch::new(), bytes.clone());
    scratch.leave(&bytes, &bytes[..250_001]);
    let server = hub(
        &bytes,
        gets(move |_, reply| {
            Reply { body: body[200_000..].to_vec(), ..reply }
                .with("content-range", format!("bytes 200000-{}/{LEN}", LEN - 1))
        }),
    );
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    scratch.assert_whole(&bytes);
}

#[test]
fn a_file_that_changes_meanwhile_is_asked_about_again() {
    let (scratch, old, new) = (Scratch::new(), content(LEN), content(LEN + 1000)[1000..].to_vec());
    // the old one until some of it has been sent
    let changing = || {
        let (now, later) = (Mutex::new(old.clone()), new.clone());
        Server::start(move |request, before| {
            let mut now = now.lock().unwrap();
            let reply = well_behaved(request, &now);
            if request.method == "GET" && before == 0 {
                *now = later.clone();
                return reply.cut(100_001);
            }
            reply
        })
    };
    let server = changing();
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    scratch.assert_whole(&new);
    // what had come of the old one stays its own
    assert_eq!(std::fs::metadata(scratch.partial(&old)).unwrap().len(), 100_001);
    assert_eq!(starts(&server), [0, 100_001, 0]);

    // where the catalogue knows the old one, the new one is not simply taken
    let scratch = Scratch::new();
    let server = changing();
    let error = pull(&scratch.store(&server), &entry("x", Some(&old))).unwrap_err();
    assert_words(&error, &[&short(&old), &short(&new), "--accept-hash"]);
    scratch.assert_nothing();
}

#[test]
fn a_server_that_falls_silent_is_left() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let long = Some(Duration::from_secs(20));
    let server = hub(&bytes, move |request, before, reply| match (request.method.as_str(), before) {
        ("HEAD", 0) => Reply { hang: long, ..reply },
        ("GET", 0) => Reply { hang: long, ..reply.cut(200_003) },
        _ => reply,
    });
    let begun = std::time::Instant::now();
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(19), "it waited for the server");
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&server), [0, 200_003]);
    let (scratch, server) = (Scratch::new(), hub(&bytes, gets(move |_, reply| Reply { hang: long, ..reply.cut(0) })));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["4 times over", "0 B of 700 kB"]);
    assert!(!scratch.partial(&bytes).exists());
}

#[test]
fn two_hashes_are_shown_and_one_is_chosen() {
    let (scratch, bytes, other) = (Scratch::new(), content(LEN), content(99));
    let server = hub(&bytes, |_, _, reply| reply);
    let store = scratch.store(&server);
    let known = entry("x", Some(&other));
    let error = pull(&store, &known).unwrap_err();
    assert_words(&error, &[&short(&other), "99 bytes", &short(&bytes), "700001 bytes", "--accept-hash"]);
    assert!(!error.contains(&sha256(&bytes)), "{error}");
    let loud = Progress::new(Mode::None, true, true);
    let error = store.pull(&[&known], false, &loud).unwrap_err().to_string();
    assert_words(&error, &[&sha256(&other), &sha256(&bytes)]);
    assert!(server.requests("GET").is_empty());
    // another length alone is as good a reason
    let error = pull(&store, &Entry { sha256: None, ..known.clone() }).unwrap_err();
    assert_words(&error, &["99 bytes", "700001 bytes", "--accept-hash"]);
    // where the hash is right the length was the catalogue's slip
    let slip = Entry { sha256: Some(sha256(&bytes)), ..known.clone() };
    pull(&store, &slip).unwrap();
    scratch.assert_whole(&bytes);
    store.remove(&slip).unwrap();

    store.pull(&[&known], true, &Progress::silent()).unwrap();
    scratch.assert_whole(&bytes);
    // from now on the hub's word holds, here and offline
    let verdict = store.verify(&known, |_| Ok(())).unwrap();
    assert!(matches!(verdict, reel::hub::store::Verdict::Whole { .. }), "{verdict:?}");
    pull(&store, &known).unwrap();
}

#[test]
fn a_file_that_no_disk_holds_is_refused_first() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = hub(&bytes, |_, _, reply| reply.with("x-linked-size", 1_u64 << 60));
    let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
    assert_words(&error, &["are needed in", "are free there", "HF_HOME"]);
    assert!(server.requests("GET").is_empty());
    assert!(!any_file(&scratch.0));
}

#[test]
fn names_from_the_server_cannot_leave_the_cache() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let wrong = [
        ("x-linked-etag", "../../../x"),
        ("x-repo-commit", "../../x"),
        ("x-linked-etag", "a/b"),
        ("x-repo-commit", "main"),
    ];
    for (header, value) in wrong {
        let server = hub(&bytes, move |_, _, reply| reply.with(header, value));
        let error = pull(&scratch.store(&server), &entry("x", None)).unwrap_err();
        assert_words(&error, &["cannot be names of files"]);
        assert!(!any_file(&scratch.0));
    }
}

#[test]
fn two_pulls_at_once_fetch_it_once() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let server = hub(&bytes, gets(|_, reply| Reply { slow: Some(Duration::from_millis(2)), ..reply }));
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| pull(&scratch.store(&server), &entry("x", None)))).collect();
        pulls.into_iter().for_each(|pull| pull.join().unwrap().unwrap());
    });
    scratch.assert_whole(&bytes);
    assert_eq!(server.requests("GET").len(), 1);
}

#[test]
fn a_hub_out_of_reach_leaves_the_addresses_and_what_to_do_with_the_files() {
    let scratch = Scratch::new();
    let server = hub(b"x", |_, _, reply| reply);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
    let waits = vec![Duration::from_millis(1), Duration::from_secs(60)];
    let away = Store::new(Settings { endpoint: format!("http://{free}"), waits, ..scratch.settings(&server) });
    let own = |entry| Entry { own: true, ..entry };
    let encoder = Entry { kind: Kind::TextEncoder, file: Some("t5/t5.gguf".to_string()), ..entry("t5", None) };
    let error =
        away.pull(&[&own(entry("x", None)), &own(encoder)], false, &Progress::silent()).unwrap_err().to_string();
    let address = format!("http://{free}/{REPO}/resolve/main/sub/{SERVED}");
    let words = ["`x` and `t5` are not here", "2 times over", &address, "/resolve/main/t5/t5.gguf"];
    assert_words(&error, &words);
    assert_words(&error, &["--model \"weights one.bin\"", "--text-encoder t5.gguf", "HTTPS_PROXY"]);
    assert_words(&error, &[&format!("correct HF_ENDPOINT, which is `http://{free}`"), "unset it"]);
    assert!(!error.contains("mirror"), "the mirror that is set is the one that is away: {error}");
    assert_eq!(error.lines().count(), 3, "{error}");
    // what the catalogue knows is at the hub itself, whatever mirror is set
    let error = pull(&away, &entry("x", None)).unwrap_err();
    assert_words(&error, &[&format!("https://huggingface.co/{REPO}/resolve/main/sub/{SERVED}")]);
}

#[test]
fn a_file_of_no_bytes_is_no_file() {
    let (scratch, server) = (Scratch::new(), hub(b"", |_, _, reply| reply));
    assert_words(&pull(&scratch.store(&server), &entry("x", None)).unwrap_err(), &["`x`", "of no bytes"]);
    scratch.assert_nothing();
}

#[test]
fn a_token_that_is_none_stops_pulls_alone() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let server = hub(&bytes, |_, _, reply| reply);
    pull(&scratch.store(&server), &entry("x", None)).unwrap();
    let trouble = Some("the token is none\n  fix: another".to_string());
    let store = Store::new(Settings { trouble, ..scratch.settings(&server) });
    assert_eq!(store.find(&entry("x", None)), Some(scratch.pointer()));
    pull(&store, &entry("x", None)).unwrap();
    assert_words(
        &pull(&store, &Entry { file: Some("other".to_string()), ..entry("y", None) }).unwrap_err(),
        &["token"],
    );
}

#[test]
fn a_pull_that_is_stopped_keeps_what_had_come() {
    let (scratch, bytes) = (Scratch::new(), content(LEN));
    let (progress, x) = (Progress::silent(), entry("x", Some(&bytes)));
    let cancel = progress.cancel().clone();
    let stop = move |before, reply| {
        if before == 0 {
            cancel.cancel();
        }
        reply
    };
    let server = hub(&bytes, gets(stop));
    let error = scratch.store(&server).pull(&[&x], false, &progress).unwrap_err();
    assert!(Cancelled::caused(&error), "{error:#}");
    scratch.assert_nothing();
    let kept = scratch.partial(&bytes).metadata().unwrap().len() as usize;
    assert!((1..LEN).contains(&kept), "{kept}");
    pull(&scratch.store(&server), &x).unwrap();
    scratch.assert_whole(&bytes);
    assert_eq!(starts(&server), [0, kept]);
    // and so does the hash of what is here
    assert!(Cancelled::caused(&scratch.store(&server).verify(&x, |_| Err(Cancelled)).unwrap_err()));
}

/// For another attempt, and for another process.
#[test]
fn a_pull_that_is_stopped_waits_no_longer() {
    let (scratch, bytes) = (Scratch::new(), content(99));
    let stopped = |server: &Server, progress: &Progress| {
        let store = Store::new(Settings { waits: vec![Duration::from_secs(600)], ..scratch.settings(server) });
        let begun = Instant::now();
        let error = store.pull(&[&entry("x", None)], false, progress).unwrap_err();
        assert!(Cancelled::caused(&error), "{error:#}");
        assert!(begun.elapsed() < Duration::from_secs(60));
    };
    for method in ["HEAD", "GET"] {
        let progress = Progress::silent();
        let cancel = progress.cancel().clone();
        let stop = move |request: &server::Request, _, reply| {
            if request.method != method {
                return reply;
            }
            cancel.cancel();
            Reply::status(503)
        };
        stopped(&hub(&bytes, stop), &progress);
        assert!(!scratch.partial(&bytes).exists());
    }
    let path = scratch.0.join("hub/.locks/models--some-one--some-weights").join(format!("{}.lock", sha256(&bytes)));
    let lock = std::fs::File::create(&path).unwrap();
    lock.lock().unwrap();
    let (progress, server) = (Progress::silent(), hub(&bytes, |_, _, reply| reply));
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| stopped(&server, &progress));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!pull.is_finished(), "it did not wait");
        progress.cancel().cancel();
        pull.join().unwrap();
    });
}
