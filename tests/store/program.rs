//! The commands of `reel models` as a user meets them, and a model by name from nothing to a clip.

use super::server::{COMMIT, Reply, Request, Server, sha256};
use super::*;
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};

/// The built-in model as three files of a repository, with the catalogue that says so.
struct Mini {
    model: Vec<u8>,
    text: Vec<u8>,
    tokenizer: Vec<u8>,
}

const CATALOGUE: &str = r#"
[mini]
about = "a model for tests"
licence = "Apache-2.0"
licence_file = "LICENSE.txt"
repo = "some-one/some-weights"
file = "mini.safetensors"
text_encoder = "mini-t5"
tokenizer = "mini-tokenizer"

[mini.match]
name = "tiny"

[mini.run]
width = 64
height = 64
frames = 9
fps = 8
steps = 2
guidance = 1

[text-encoder.mini-t5]
about = "its text encoder"
licence = "MIT"
repo = "some-one/some-weights"
file = "text/t5.safetensors"

[text-encoder.mini-t5-too]
about = "the same"
licence = "MIT"
variant_of = "mini-t5"
repo = "some-one/some-weights"
file = "text/too.safetensors"

[tokenizer.mini-tokenizer]
about = "its tokenizer"
licence = "MIT"
repo = "some-one/some-weights"
file = "its.tokenizer.json"
"#;

impl Mini {
    fn new() -> Self {
        let file = reel::embedded::TINY;
        let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
        let metadata = header["__metadata__"].clone();
        let part = |of_text: bool| {
            let (mut head, mut body) = (serde_json::Map::new(), vec![]);
            if !of_text {
                let mut metadata = metadata.as_object().unwrap().clone();
                metadata.remove("tokenizer");
                head.insert("__metadata__".to_string(), metadata.into());
            }
            for (name, value) in header.iter().filter(|(name, _)| *name != "__metadata__") {
                let text = name.strip_prefix("text_encoder.");
                if text.is_some() != of_text {
                    continue;
                }
                let range: Vec<usize> = serde_json::from_value(value["data_offsets"].clone()).unwrap();
                let bytes = &file[start + range[0]..start + range[1]];
                let offsets = [body.len(), body.len() + bytes.len()];
                let entry = json!({"dtype": value["dtype"], "shape": value["shape"], "data_offsets": offsets});
                head.insert(text.unwrap_or(name).to_string(), entry);
                body.extend_from_slice(bytes);
            }
            let head = Value::from(head).to_string().into_bytes();
            [&(head.len() as u64).to_le_bytes()[..], &head, &body].concat()
        };
        let tokenizer = metadata["tokenizer"].as_str().unwrap().as_bytes().to_vec();
        Self { model: part(false), text: part(true), tokenizer }
    }

    fn serve(&self, twist: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static) -> Server {
        let files: [(&str, &[u8]); 4] = [
            ("mini.safetensors", &self.model),
            ("text/t5.safetensors", &self.text),
            ("text/too.safetensors", &self.text),
            ("its.tokenizer.json", &self.tokenizer),
        ];
        Server::hub(&files, twist)
    }
}

/// The program in a home of its own, on this hub.
fn command(scratch: &Scratch, server: &Server, args: &[&str]) -> Command {
    let config = scratch.0.join("config/reel/weights.toml");
    if !config.exists() {
        std::fs::create_dir_all(config.parent().unwrap()).unwrap();
        std::fs::write(&config, CATALOGUE).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_reel"));
    command.args(args).current_dir(&scratch.0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("HF_") || n.to_lowercase().ends_with("_proxy")) {
        command.env_remove(name);
    }
    for name in ["REEL_MODEL", "HUGGINGFACE_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_CACHE", scratch.0.join("hub")).env("HF_HOME", scratch.0.join("home"));
    command.env("XDG_CONFIG_HOME", scratch.0.join("config")).env("XDG_DATA_HOME", scratch.0.join("share"));
    // the machine's speed is measured once
    command.env("XDG_STATE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/state"));
    command.env("HF_ENDPOINT", &server.address).env("HF_TOKEN", TOKEN);
    command
}

struct Said {
    code: Option<i32>,
    out: String,
    talk: String,
}

fn told(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let said = Said { code: output.status.code(), out: text(output.stdout), talk: text(output.stderr) };
    assert!(!said.out.contains(TOKEN) && !said.talk.contains(TOKEN), "the token is shown");
    assert!(!said.talk.contains("panicked"), "{}", said.talk);
    said
}

fn reel(scratch: &Scratch, server: &Server, args: &[&str]) -> Said {
    told(command(scratch, server, args).output().unwrap())
}

fn works(scratch: &Scratch, server: &Server, args: &[&str]) -> Said {
    let said = reel(scratch, server, args);
    assert_eq!(said.code, Some(0), "{args:?}\n{}", said.talk);
    said
}

/// An error of one to three lines with a fix.
fn fails(scratch: &Scratch, server: &Server, args: &[&str], code: i32, words: &[&str]) {
    let said = reel(scratch, server, args);
    assert_eq!(said.code, Some(code), "{args:?}\n{}", said.talk);
    let error = &said.talk[said.talk.find("error: ").unwrap_or_else(|| panic!("{args:?}: no error"))..];
    assert!(error.lines().count() <= 3, "{error}");
    words.iter().for_each(|word| assert!(error.contains(word), "no `{word}` in {error}"));
}

fn state(scratch: &Scratch, server: &Server, name: &str) -> String {
    let list = works(scratch, server, &["models", "list", "--json"]);
    let rows: Vec<Value> = serde_json::from_str(&list.out).unwrap();
    let row = rows.iter().find(|row| row["name"] == name).unwrap();
    row["state"].as_str().unwrap().to_string()
}

#[test]
fn from_nothing_to_a_clip() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let clip = ["generate", "a red ball", "--model", "mini", "--seed", "3", "-o", "a.png"];
    fails(
        &scratch,
        &server,
        &clip,
        2,
        &["`mini` are not here", "licence: Apache-2.0", "`mini-t5`", "models pull mini", "--pull"],
    );
    fails(&scratch, &server, &["models", "path", "mini"], 2, &["`mini` is not here", "models pull mini"]);
    fails(&scratch, &server, &["models", "verify", "mini"], 2, &["`mini` is not here"]);
    assert_eq!(state(&scratch, &server, "mini"), "absent");
    assert!(server.requests("HEAD").is_empty(), "these ask nobody");

    let pulled = works(&scratch, &server, &["models", "pull", "mini"]);
    assert!(pulled.out.is_empty(), "standard output carries data");
    let size = reel::platform::progress::human_bytes(mini.model.len() as u64);
    let words = [
        "licence: Apache-2.0 (http://127.0.0.1",
        "LICENSE.txt)",
        "licence: MIT",
        &size,
        "to fetch: ",
        "hub",
        "`mini` is here",
    ];
    words.iter().for_each(|word| assert!(pulled.talk.contains(word), "no `{word}` in {}", pulled.talk));
    let first = pulled.talk.find("`mini` is here").unwrap();
    assert!(pulled.talk.find("to fetch").unwrap() < first, "sizes come first");
    assert_eq!(state(&scratch, &server, "mini"), "here");
    let path = works(&scratch, &server, &["models", "path", "mini"]).out;
    assert!(path.ends_with(&format!("/snapshots/{COMMIT}/mini.safetensors\n")), "{path}");
    let gets = server.requests("GET").len();
    assert_eq!(gets, 3);
    assert!(works(&scratch, &server, &["models", "pull", "mini"]).talk.contains("`mini` is here: "));

    // from here on without a network, as the built-in model makes it
    let offline = |args: &[&str]| {
        let said = told(command(&scratch, &server, args).env("HF_HUB_OFFLINE", "1").output().unwrap());
        assert_eq!(said.code, Some(0), "{args:?}\n{}", said.talk);
        said
    };
    offline(&clip);
    let own = ["--model", "tiny", "--frames", "9", "--steps", "2", "--guidance", "1", "-o", "b.png"];
    offline(&[&["generate", "a red ball", "--seed", "3"], &own[..]].concat());
    let picture = |name: &str| std::fs::read(scratch.0.join(name)).unwrap();
    assert!(picture("a.png") == picture("b.png"), "another clip than that of the same weights in the program");
    let verified = offline(&["models", "verify"]);
    assert_eq!(verified.out.lines().filter(|line| line.contains("whole (SHA-256 as the hub says)")).count(), 3);
    assert_eq!((server.requests("GET").len(), server.requests("HEAD").len()), (gets, 3));

    // damage, the fix that is named, and the end
    let blob = scratch.folder().join("blobs").join(sha256(&mini.text));
    let mut bytes = mini.text.clone();
    bytes[1000] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    fails(
        &scratch,
        &server,
        &["models", "verify", "mini"],
        1,
        &["1 of 3 files is damaged: mini-t5", "remove mini-t5`, then"],
    );
    let removed = works(&scratch, &server, &["models", "remove", "mini-t5"]);
    assert!(removed.out.contains("freed"), "{}", removed.out);
    works(&scratch, &server, &["models", "pull", "mini-t5"]);
    works(&scratch, &server, &["models", "verify", "mini"]);
    let removed = works(&scratch, &server, &["models", "remove", "mini"]);
    assert!(removed.out.contains(&size) && removed.out.contains("`mini-t5` stays"), "{}", removed.out);
    assert_eq!(state(&scratch, &server, "mini"), "absent");
    assert!(works(&scratch, &server, &["models", "remove", "mini"]).out.contains("nothing of it is here"));
    assert!(path.trim().parse::<std::path::PathBuf>().unwrap().symlink_metadata().is_err());
}

#[test]
fn generate_pulls_where_it_is_told_to() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let clip = ["generate", "a red ball", "--model", "mini", "--pull", "--text-encoder", "mini-t5-too", "-o", "a.gif"];
    fails(&scratch, &server, &[&clip[..], &["--size", "0x0"]].concat(), 2, &["--size", "`0x0`"]);
    assert!(server.requests("HEAD").is_empty(), "a wrong flag is found before anything is fetched");
    works(&scratch, &server, &clip);
    assert!(scratch.0.join("a.gif").exists());
    let paths: Vec<String> = server.requests("GET").into_iter().map(|r| r.path).collect();
    assert!(paths.iter().all(|path| !path.ends_with("t5.safetensors")), "{paths:?}");
    // the variant that is here does for the one that is not
    let said = works(&scratch, &server, &["generate", "a red ball", "--model", "mini", "-o", "b.gif"]);
    assert!(said.talk.contains("text encoder: `mini-t5-too` (`mini-t5` is not here)"), "{}", said.talk);
    let plan = works(&scratch, &server, &["generate", "a red ball", "--model", "mini", "--dry-run", "-o", "c.gif"]);
    assert!(plan.out.contains("encoder   `mini-t5-too` (`mini-t5` is not here)"), "{}", plan.out);
    // and can be chosen for a pull
    fails(&scratch, &server, &["models", "pull", "mini", "--text-encoder", "mini"], 2, &["--text-encoder mini"]);
    fails(&scratch, &server, &["models", "pull", "mimi"], 2, &["did you mean `mini`"]);
    works(&scratch, &server, &["models", "pull", "mini", "--text-encoder", "mini-t5"]);
    assert_eq!(state(&scratch, &server, "mini-t5"), "here");
    // of two that are here the better one, which is the model's own, and nothing is said but in the plan
    let said = works(&scratch, &server, &["generate", "a red ball", "--model", "mini", "-o", "d.gif"]);
    assert!(!said.talk.contains("text encoder"), "{}", said.talk);
    let plan = works(&scratch, &server, &["generate", "a red ball", "--model", "mini", "--dry-run", "-o", "e.gif"]);
    assert!(plan.out.contains("encoder   `mini-t5` (the model's own)"), "{}", plan.out);
}

#[test]
fn progress_is_told_to_programs() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let said = works(&scratch, &server, &["models", "pull", "mini", "--progress", "json"]);
    let events: Vec<Value> = said.talk.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = events.iter().rfind(|e| e["event"] == "progress").unwrap();
    let total = mini.model.len() + mini.text.len() + mini.tokenizer.len();
    assert_eq!((&last["stage"], &last["unit"], &last["total"]), (&"pull".into(), &"bytes".into(), &total.into()));
    assert_eq!(last["done"], last["total"]);
    let said = works(&scratch, &server, &["models", "verify", "--progress", "json", "-q"]);
    assert!(said.talk.is_empty() && said.out.lines().count() == 3, "{}", said.talk);
    fails(&scratch, &server, &["models", "remove", "tiny"], 2, &["part of the program"]);
    fails(&scratch, &server, &["models", "path", "tiny"], 2, &["part of the program"]);
}

/// Starts the program and kills it once `ready` says so.
fn kill_when(mut command: Command, ready: impl Fn() -> bool) {
    let mut child = command.spawn().unwrap();
    while !ready() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
}

#[test]
fn a_killed_pull_goes_on() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let slow = Some(Duration::from_millis(10));
    let dragging = mini.serve(move |_, _, reply| Reply { slow, ..reply });
    let partial = scratch.folder().join("blobs").join(format!("{}.incomplete", sha256(&mini.model)));
    let had = || partial.metadata().map_or(0, |m| m.len());
    // more than once, each time a little further
    for _ in 0..3 {
        let before = had();
        kill_when(command(&scratch, &dragging, &["models", "pull", "mini"]), || had() > before + 20_000);
        assert_eq!(state(&scratch, &dragging, "mini"), "partly");
        scratch.assert_nothing();
    }
    let kept = had();
    assert!(kept > 60_000 && kept < mini.model.len() as u64);
    let good = mini.serve(|_, _, reply| reply);
    let said = works(&scratch, &good, &["models", "pull", "mini"]);
    assert!(said.talk.contains("of it here"), "{}", said.talk);
    assert_eq!(good.requests("GET")[0].from() as u64, kept);
    let verified = works(&scratch, &good, &["models", "verify"]);
    assert_eq!(verified.out.matches("whole").count(), 3);
}

/// What remains is known when the signal comes, and no longer when the pull has stopped.
#[test]
#[cfg(unix)]
fn an_interrupted_pull_says_that_it_goes_on() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let dragging = mini.serve(|_, _, reply| Reply { slow: Some(Duration::from_millis(10)), ..reply });
    let partial = scratch.partial(&mini.model);
    let child = command(&scratch, &dragging, &["models", "pull", "mini"]).spawn().unwrap();
    while partial.metadata().map_or(0, |m| m.len()) < 20_000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let said = told(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{}", said.talk);
    let last = "interrupted; what has come is kept, and the same command continues from there";
    assert_eq!(said.talk.lines().last(), Some(last));
    assert!(!said.talk.contains("error") && said.talk.matches("interrupted").count() == 1, "{}", said.talk);
    let kept = partial.metadata().unwrap().len();
    let good = mini.serve(|_, _, reply| reply);
    works(&scratch, &good, &["models", "pull", "mini"]);
    assert_eq!(good.requests("GET")[0].from() as u64, kept);
}

#[test]
fn a_killed_verify_changes_nothing() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    works(&scratch, &server, &["models", "pull", "mini"]);
    // long enough to be killed in the middle: a file of holes in place of the model
    let blob = scratch.folder().join("blobs").join(sha256(&mini.model));
    std::fs::File::options().write(true).open(&blob).unwrap().set_len(6 << 30).unwrap();
    let record = scratch.0.join("share/reel/weights/mini.json");
    std::fs::remove_file(&record).unwrap(); // it would know the length
    let mut verify = command(&scratch, &server, &["models", "verify", "mini", "--progress", "json"]);
    let mut child = verify.spawn().unwrap();
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut first).unwrap();
    assert!(first.contains("verify"), "{first}");
    assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(blob.metadata().unwrap().len(), 6 << 30);
    std::fs::write(&blob, &mini.model).unwrap();
    assert_eq!(works(&scratch, &server, &["models", "verify"]).out.matches("whole").count(), 3);
}

#[test]
fn two_programs_at_once_fetch_each_file_once() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| Reply { slow: Some(Duration::from_millis(1)), ..reply });
    let both: Vec<_> =
        (0..2).map(|_| command(&scratch, &server, &["models", "pull", "mini"]).spawn().unwrap()).collect();
    for child in both {
        let said = told(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.talk);
    }
    assert_eq!(server.requests("GET").len(), 3);
    assert_eq!(works(&scratch, &server, &["models", "verify"]).out.matches("whole").count(), 3);
}

#[test]
fn a_catalogue_of_ones_own() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let list = works(&scratch, &server, &["models", "list"]).out;
    let after = |name: &str| list.lines().skip_while(|line| !line.starts_with(name)).nth(1).unwrap().to_string();
    assert!(after("mini ").ends_with("; of your own weights.toml"), "{list}");
    assert!(!after("ltx-2b-0.9.0 ").contains("own weights.toml"), "{list}");
    let path = scratch.0.join("config/reel/weights.toml");
    std::fs::write(&path, format!("{CATALOGUE}colour = 'red'\n")).unwrap();
    let line = format!("line {}", CATALOGUE.lines().count() + 1);
    for args in [&["models", "list"][..], &["generate", "x", "-o", "a.gif"], &["bench"]] {
        fails(&scratch, &server, args, 2, &["config/reel/weights.toml`", &line, "unknown field `colour`"]);
    }
    works(&scratch, &server, &["licenses"]);
}

#[test]
fn hub_errors_reach_the_user() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let gated = mini.serve(|_, _, _| Reply::status(403).with("x-error-code", "GatedRepo"));
    fails(&scratch, &gated, &["models", "pull", "mini"], 1, &["refuses `mini.safetensors`", "accept its licence"]);
    let offline =
        told(command(&scratch, &gated, &["models", "pull", "mini"]).env("HF_HUB_OFFLINE", "yes").output().unwrap());
    assert_eq!(offline.code, Some(1));
    assert_words(&offline.talk, &["`mini` and `mini-t5` and `mini-tokenizer` are not here", "HF_HUB_OFFLINE"]);
    // a server that hangs, with Python's own variable for how long to wait
    let silent = mini.serve(|request, before, reply| match (request.method.as_str(), before) {
        ("HEAD", 0) => Reply { hang: Some(Duration::from_secs(60)), ..reply },
        _ => reply,
    });
    let mut pull = command(&scratch, &silent, &["models", "pull", "mini"]);
    let said = told(pull.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.3").output().unwrap());
    assert_eq!(said.code, Some(0), "{}", said.talk);
    assert!(said.talk.contains("did not answer in 300ms; trying again in 1 s"), "{}", said.talk);
}

#[test]
#[cfg(unix)]
fn a_disk_that_takes_no_more_keeps_what_it_took() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    // files of at most 64 blocks: the write that goes beyond comes back short, then fails, as on a full disk
    let full = "trap '' XFSZ; ulimit -f 64; exec \"$0\" models pull mini";
    let reel = command(&scratch, &server, &[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", full, env!("CARGO_BIN_EXE_reel")]).current_dir(&scratch.0).stdin(Stdio::null());
    reel.get_envs().for_each(|(name, value)| match value {
        Some(value) => drop(shell.env(name, value)),
        None => drop(shell.env_remove(name)),
    });
    let said = told(shell.output().unwrap());
    assert_eq!(said.code, Some(1), "{}", said.talk);
    let whole = reel::platform::progress::human_bytes(mini.model.len() as u64);
    assert_words(
        &said.talk,
        &[".incomplete`", "takes no file so long", &format!(" of {whole} are kept, and "), " are free"],
    );
    let kept = std::fs::metadata(scratch.partial(&mini.model)).unwrap().len();
    assert!(kept > 0 && kept < mini.model.len() as u64, "{kept}");
    works(&scratch, &server, &["models", "pull", "mini"]);
    let again = server.requests("GET").iter().map(Request::from).nth(1);
    assert_eq!(again, Some(kept as usize), "it continues from what was kept");
}

#[test]
fn without_a_network_sizes_come_first_and_addresses_last() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
    let pull = ["models", "pull", "ltx-2b-0.9.8-distilled"];
    let flags = ["generate", "x", "--model", "ltx-2b-0.9.8-distilled", "--pull", "--memory", "64GiB", "-o", "a.gif"];
    for (args, encoder) in [(&pull[..], "t5xxl_fp16.safetensors"), (&flags, "")] {
        let begun = std::time::Instant::now();
        let away =
            told(command(&scratch, &server, args).env("HF_ENDPOINT", format!("http://{free}")).output().unwrap());
        assert_eq!(away.code, Some(1), "{}", away.talk);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let (before, error) = away.talk.split_once("error: ").unwrap();
        let licence = "licence: LTX-Video Open Weights 0.X (http";
        for word in ["ltx-2b-0.9.8-distilled: 6.34 GB", licence, "ltx-spatial-upscaler-0.9.8: 505 MB", "in all: "] {
            assert!(before.contains(word), "no `{word}` in {before}");
        }
        assert!(before.find("6.34 GB").unwrap() < before.find("trying again").unwrap(), "{before}");
        assert_eq!((before.matches("trying again").count(), error.lines().count()), (1, 3), "{}", away.talk);
        for word in [
            "2 times over",
            "https://huggingface.co/Lightricks/LTX-Video/resolve/main/ltxv-2b-0.9.8-distilled.safetensors",
            "--model ltxv-2b-0.9.8-distilled.safetensors --text-encoder ",
            encoder,
            "--upscaler ltxv-spatial-upscaler-0.9.8.safetensors",
            "HTTPS_PROXY",
            "HF_ENDPOINT",
        ] {
            assert!(error.contains(word), "no `{word}` in {error}");
        }
    }
    assert!(!any_file(&scratch.0.join("hub")));
}

#[test]
fn a_token_that_is_none_stops_no_run_of_what_is_here() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    works(&scratch, &server, &["models", "pull", "mini"]);
    let odd = |args: &[&str]| told(command(&scratch, &server, args).env("HF_TOKEN", "a b").output().unwrap());
    let clip = odd(&["generate", "a red ball", "--model", "mini", "-o", "a.gif"]);
    assert_eq!(clip.code, Some(0), "{}", clip.talk);
    assert_eq!(odd(&["models", "verify"]).code, Some(0));
    works(&scratch, &server, &["models", "remove", "mini"]);
    let pull = odd(&["models", "pull", "mini"]);
    assert_eq!(pull.code, Some(1));
    assert_words(&pull.talk, &["the Hugging Face token of HF_TOKEN"]);
}

#[test]
fn what_is_damaged_is_said_and_a_pull_mends_it() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    works(&scratch, &server, &["models", "pull", "mini"]);
    let blob = scratch.folder().join("blobs").join(sha256(&mini.model));
    std::fs::write(&blob, &mini.model[..1001]).unwrap();
    let whole = format!("mini.safetensors` has 1001 bytes, and {} are right", mini.model.len());
    for args in [&["generate", "x", "--model", "mini", "-o", "a.gif"][..], &["models", "path", "mini"]] {
        fails(&scratch, &server, args, 2, &["`mini` is damaged: `", &whole, "reel models pull mini"]);
    }
    assert_eq!(state(&scratch, &server, "mini"), "damaged");
    fails(&scratch, &server, &["models", "verify"], 1, &["1 of 3 files is damaged: mini"]);
    let said = works(&scratch, &server, &["models", "pull", "mini"]);
    assert!(said.talk.contains("`mini` is damaged (") && said.talk.contains(&whole), "{}", said.talk);
    let verified = works(&scratch, &server, &["models", "verify"]);
    assert_eq!(verified.out.matches("whole (SHA-256 as the hub says)").count(), 3, "{}", verified.out);
}

#[test]
fn what_nobody_vouches_for_is_called_so() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, mut reply| {
        reply.headers.retain(|(name, _)| !name.starts_with("x-linked"));
        reply.with("etag", "\"of-a-mirror\"")
    });
    let said = works(&scratch, &server, &["models", "pull", "mini-t5"]);
    assert!(said.talk.contains("mini-t5: nobody vouches for these bytes"), "{}", said.talk);
    let verified = works(&scratch, &server, &["models", "verify", "mini-t5"]).out;
    let words = "mini-t5: as downloaded on this machine; nobody else vouches for it (SHA-256 ";
    assert!(verified.starts_with(words) && !verified.contains("whole"), "{verified}");
    assert!(verified.contains(&short(&mini.text)) && !verified.contains(&sha256(&mini.text)), "{verified}");
    let loud = works(&scratch, &server, &["models", "verify", "mini-t5", "-v"]).out;
    assert!(loud.contains(&sha256(&mini.text)), "{loud}");
}

#[test]
fn the_list_fits_a_terminal_and_says_where_to_start() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let list = works(&scratch, &server, &["models", "list"]).out;
    let about = reel::hub::catalogue::entries().iter().map(|entry| entry.about.clone());
    let about = about.chain(reel::embedded::MODELS.iter().map(|model| model.world.short.clone()));
    let words: Vec<String> = about.flat_map(|text| text.split(' ').map(String::from).collect::<Vec<_>>()).collect();
    let shown: Vec<&str> = list.split_whitespace().map(|word| word.trim_end_matches(';')).collect();
    for word in words.iter().map(|word| word.trim_end_matches(';')) {
        assert!(shown.contains(&word), "`{word}` is cut in {list}");
    }
    assert!(list.lines().all(|line| line.chars().count() <= 80), "{list}");
    let row = |name: &str| list.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_string();
    for column in ["model", "download", "memory", "time", "fits", "here"] {
        assert!(row("model").contains(column), "{list}");
    }
    // with T5 and the upscaler
    assert!(row("ltx-2b-0.9.8-distilled").contains(" 16.6 GB "), "{list}");
    for built_in in &reel::embedded::MODELS {
        let row = row(built_in.name);
        assert!(row.contains(" built in ") && row.ends_with(" yes"), "{list}");
    }
    let last = list.lines().rev().take(3).collect::<Vec<_>>().join(" ");
    assert!(last.contains("start with"), "{list}");
    let json: Vec<Value> = serde_json::from_str(&works(&scratch, &server, &["models", "list", "--json"]).out).unwrap();
    let row = json.iter().find(|row| row["name"] == "ltx-2b-0.9.8-distilled").unwrap();
    assert_eq!(row["download"], 6_340_744_492_u64 + 9_787_841_024 + 505_024_432);
    assert!(row["memory"].as_u64() >= row["least_memory"].as_u64() && row["least_memory"].as_u64() > Some(1 << 30));
    assert!(row["seconds"].as_f64() > Some(1.0), "{row}");
}

#[test]
fn info_says_all_that_is_known_of_a_name() {
    let (scratch, mini) = (Scratch::new(), Mini::new());
    let server = mini.serve(|_, _, reply| reply);
    let said = |name: &str| {
        let out = works(&scratch, &server, &["models", "info", name]).out;
        // an address stays in one piece
        let is_long = |line: &str| line.split(' ').any(|word| word.chars().count() > 60);
        assert!(out.lines().all(|line| line.chars().count() <= 80 || is_long(line)), "{out}");
        out.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let ltx = said("ltx-2b-0.9.8-distilled");
    for words in [
        "repository Lightricks/LTX-Video, revision main",
        "ltxv-2b-0.9.8-distilled.safetensors, 6.34 GB (6340744492 bytes)",
        "76aa8c4786af752fa6f951947129d5290c3c6c0b2fadcadea6b5e114ae2cad8f",
        "/Lightricks/LTX-Video/blob/main/LTX-Video-Open-Weights-License-0.X.txt",
        "https://huggingface.co/Lightricks/LTX-Video/resolve/main/ltxv-2b-0.9.8-distilled.safetensors",
        "encoder t5-xxl-fp16 (9.79 GB); or, with --text-encoder, t5-xxl-bf16",
        "upscaler ltx-spatial-upscaler-0.9.8 (505 MB)",
        "16.6 GB in all; nothing of it is here",
        "width 1216, height 704, frames 121",
        "for 1216x704, 121 frames",
        "denoise ",
        "here no; `reel models pull ltx-2b-0.9.8-distilled`",
    ] {
        assert!(ltx.contains(words), "no `{words}` in {ltx}");
    }
    let part = said("t5-xxl-q8_0");
    assert!(part.contains("used by ltx-2b-0.9.0, ltx-2b-0.9.1") && !part.contains("memory "), "{part}");
    for model in &reel::embedded::MODELS {
        let said = said(model.name);
        assert!(said.contains(&format!("knows {}", model.world.about)), "{said}");
    }
    fails(&scratch, &server, &["models", "info", "ltx-2b"], 2, &["did you mean `ltx-2b-0.9.8-distilled`?"]);

    works(&scratch, &server, &["models", "pull", "mini-t5"]);
    assert!(said("mini-t5").contains("here yes, ") && said("mini").contains("mini-t5 (size unknown, here)"));
    let json: Value =
        serde_json::from_str(&works(&scratch, &server, &["models", "info", "mini", "--json"]).out).unwrap();
    assert_eq!((&json["state"], &json["run"]["frames"]), (&"absent".into(), &9.into()));
    assert_eq!(
        (&json["text_encoders"][0]["state"], &json["text_encoders"][1]["state"]),
        (&"here".into(), &"absent".into())
    );
    let fields = ["repo", "revision", "url", "licence", "licence_url", "tokenizer", "memory", "stages", "to_fetch"];
    fields.iter().for_each(|field| assert!(json.get(field).is_some(), "{field}"));
}
