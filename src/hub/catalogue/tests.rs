//! The built-in catalogue, and how catalogues are read.

use crate::hub::catalogue::*;
use crate::job::request::Request;
use crate::models::Family;
use crate::planning::passes::Given;

const STEPS: [f64; 8] = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219];

fn facts(vae: &str, big: bool, distilled: bool) -> Facts<'_> {
    let (layers, head_dim) = if big { (48, 128) } else { (28, 64) };
    let allowed_steps = distilled.then_some(&STEPS[..]);
    Facts { name: None, vae, layers, heads: 32, head_dim, allowed_steps, bytes: None, called: None }
}

fn name(facts: &Facts) -> Option<&'static str> {
    matching(facts).map(|entry| &*entry.name)
}

#[test]
fn parses_in_order() {
    let names: Vec<&str> = models().map(|entry| &*entry.name).collect();
    assert_eq!(
        names,
        [
            "tiny",
            "tiny-128",
            "ltx-2b-0.9.0",
            "ltx-2b-0.9.1",
            "ltx-2b-0.9.5",
            "ltx-2b-0.9.6-dev",
            "ltx-2b-0.9.6-distilled",
            "ltx-2b-0.9.8-distilled",
            "ltx-13b-0.9.7-dev",
            "ltx-13b-0.9.7-distilled",
            "ltx-13b-0.9.8-dev",
            "ltx-13b-0.9.8-distilled",
        ]
    );
}

/// The line and the words of what is wrong with a file of the user's own.
fn wrong(own: &str) -> String {
    let folder =
        std::env::temp_dir().join(format!("reel-catalogue-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("weights.toml");
    std::fs::write(&path, own).unwrap();
    let error = read::with_own(&path).err().map(|e| e.to_string());
    std::fs::remove_dir_all(folder).unwrap();
    error.unwrap_or_default()
}

const GOOD: &str = "[x]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\n";

#[test]
fn what_is_wrong_is_said_with_its_line() {
    assert_eq!(wrong(GOOD), "");
    let cases = [
        ("colour = 'red'\n", 6, "unknown field `colour`"),
        ("bytes = 'many'\n", 6, "invalid type"),
        ("[x.run]\nguidence = 3\n", 7, "unknown field `guidence`"),
        ("[x.match]\nvea = '0.9.0'\n", 7, "unknown field `vea`"),
        (GOOD, 6, "duplicate key"),
        ("[x.run]\nsteps = 3\nsigmas = [1.0]\n", 7, "say the same thing"),
        ("[x.run]\nsigmas = [0.5, 0.7]\n", 7, "have to fall"),
        ("[x.run]\nsigmas = []\n", 7, "have to fall"),
        ("[x.run]\nsigmas = [1.0, 0.0]\n", 7, "to above 0"),
        ("[x.run.second]\nsigmas = [0.5, 0.7]\n", 7, "`run.second.sigmas` have to fall"),
        ("[x.run]\nguidance = [3.0, -1.0]\n", 7, "`run.guidance`: it has to be 0 to 1000, not -1"),
        ("[x.run]\nconvention = 'new'\n", 7, "`text` or `condition`"),
        ("[x.run]\nrecipe = 'new'\n", 7, "`lightricks` or `diffusers`"),
        ("[x.match]\nname = 'x'\n\nlayers = 4000000000\n", 9, "`match.layers` is 4000000000: it has to be 1 to 1024"),
        (
            "[x.match]\nvae = '0.9.5'\nlayers = 3\nheads = 5\nhead_dim = 7\n",
            9,
            "`match.heads` is 5 and `match.head_dim` 7: their product has to be even and at most 16384, not 35",
        ),
        ("[x.match]\nname = 'x'\nvae = '0.9'\n", 8, "`match.vae` is `0.9`, and has to be 0.9.0"),
        ("bytes = 2000000000000000\n", 6, "`bytes` is 2000000000000000: it has to be"),
        ("[x.match]\nvae = '0.9.5'\n", 6, "`match` needs"),
        ("bytes = 1\nabout_bytes = 1\n", 6, "say the same thing"),
        ("sha256 = 'ABC'\n", 6, "64 digits"),
        ("revision = '../x'\n", 6, "not a branch"),
        ("embedded = true\n", 1, "only `tiny` and `tiny-128` are"),
        ("text_encoder = 'nothing'\n", 1, "no [text-encoder.nothing]"),
        ("upscaler = 't5-xxl-fp16'\n", 1, "no [upscaler.t5-xxl-fp16]"),
        ("variant_of = 't5-xxl-fp16'\n", 6, "key of text encoders"),
        ("[text-encoder.y]\nabout = 'a'\nlicence = 'l'\nrepo = 'a'\nfile = 'c'\n", 9, "not owner/name"),
        ("[tokenizer.y]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = '../c'\n", 10, "not a path inside"),
        ("[upscaler.y]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\n", 9, "`repo` and `file` are needed"),
        (
            "[upscaler.y]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\nrun = { steps = 3 }\n",
            6,
            "keys of models",
        ),
        ("[Y]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\n", 6, "a name is made of"),
        ("[tokenizer.x]\nabout = 'a'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\n", 1, "taken twice"),
        ("=\n", 6, "key"),
    ];
    for (more, line, words) in cases {
        let error = wrong(&format!("{GOOD}{more}"));
        assert!(error.contains(&format!("weights.toml`, line {line}: ")) && error.contains(words), "{more}: {error}");
        assert!(error.lines().count() == 2 && error.contains("\n  fix: "), "{error}");
    }
    let alike = "[x.match]\nvae = '0.9.5'\nlayers = 3\nheads = 5\nhead_dim = 14\n[x.run]\nsteps = 3\n";
    let two = format!(
        "{GOOD}{alike}{}",
        format!("{GOOD}{alike}").replace("x]", "y]").replace("x.", "y.").replace("3\n", "4\n")
    );
    // other layers: told apart
    assert_eq!(wrong(&two), "");
    assert!(wrong(&two.replace("layers = 4", "layers = 3")).contains("cannot tell the two apart"));
}

/// Every number of an entry is held to the range of the flag that it stands in for.
#[test]
fn numbers_of_an_entry_have_ranges() {
    let numbers = [
        "width",
        "height",
        "frames",
        "window",
        "fps",
        "steps",
        "guidance",
        "guidance_rescale",
        "stg",
        "tone_map",
        "downscale",
        "decode_timestep",
        "decode_noise",
        "image_noise",
        "image_crf",
    ];
    let lists = ["sigmas", "guidance_timesteps", "stg_blocks", "guidance", "guidance_rescale", "stg"];
    let of_passes = ["steps", "skip_initial", "skip_final", "guidance", "tone_map"];
    let whole =
        ["width", "height", "frames", "window", "steps", "image_crf", "stg_blocks", "skip_initial", "skip_final"];
    let bad = |key: &str| {
        let range = crate::job::ranges::of(key).unwrap();
        let mut bad =
            vec![format!("{:.0}", range.high + 1.0), "4294967296".to_string(), "9223372036854775807".to_string()];
        if range.low >= 1.0 {
            bad.push("0".to_string());
        }
        if !whole.contains(&key) {
            bad.extend([&format!("{:?}", range.low - 1.0), "nan", "inf", "1e300"].map(String::from));
        }
        bad
    };
    let refused = |table: &str, key: &str, value: &str| {
        let error = wrong(&format!("{GOOD}[x.{table}]\n{key} = {value}\n"));
        // beyond its type a number is refused as it is read
        let said = error.contains(&format!("`{table}.{key}`")) || error.contains("invalid value");
        assert!(error.contains(", line 7: ") && said, "{key} = {value}: {error}");
    };
    for key in numbers {
        bad(key).iter().for_each(|value| refused("run", key, value));
    }
    for key in lists {
        bad(key).iter().for_each(|value| refused("run", key, &format!("[{value}]")));
    }
    for key in of_passes {
        bad(key).iter().for_each(|value| refused("run.first", key, value));
    }
    assert_eq!(wrong(&format!("{GOOD}[x.run]\nwidth = 16384\nimage_crf = 51\nguidance = 0\nfps = 0.1\n")), "");
}

#[test]
fn own_entries_are_added_or_replace() {
    let own = format!("{GOOD}[\"ltx-2b-0.9.5\"]\nabout = 'mine'\nlicence = 'l'\nrepo = 'a/b'\nfile = 'c'\n");
    let merged = read::merge(built_in().entries, read::parse(&own).unwrap()).unwrap().entries;
    assert_eq!(merged.len(), built_in().entries.len() + 1);
    let mine: Vec<&Entry> = merged.iter().filter(|e| e.own).collect();
    assert_eq!(mine.iter().map(|e| &*e.name).collect::<Vec<_>>(), ["ltx-2b-0.9.5", "x"]);
    // whole: nothing of the old entry is left
    assert_eq!((mine[0].about.as_str(), mine[0].bytes, &mine[0].matches), ("mine", None, &None));
    assert!(merged[0].embedded && merged[1].embedded && !merged[2].embedded, "the built-in models stay first");
    assert!(read::with_own(Path::new("no/such/weights.toml")).unwrap().is_none());
}

#[test]
fn every_entry_is_complete() {
    for e in entries() {
        assert!(e.about.len() <= 70, "{}", e.name);
        assert!(e.embedded || e.bytes.is_some() != e.about_bytes.is_some(), "{}", e.name);
    }
    for e in models() {
        assert!(e.embedded || e.licence_file.is_some(), "{}", e.name);
        assert!(e.matches.is_some(), "{}", e.name);
    }
    let embedded: Vec<&str> = entries().iter().filter(|e| e.embedded).map(|e| &*e.name).collect();
    assert_eq!(embedded, crate::embedded::MODELS.each_ref().map(|model| model.name));
    for name in ["fp16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_s"] {
        assert_eq!(named(&format!("t5-xxl-{name}")).unwrap().kind, Kind::TextEncoder);
    }
    let encoders = text_encoders(find("ltx-2b-0.9.5").unwrap());
    assert!(encoders.len() == 7 && encoders[0].name == "t5-xxl-fp16" && encoders[6].name == "t5-xxl-q3_k_s");
}

#[test]
fn run_defaults_are_legal() {
    for Entry { name, run, matches, upscaler, .. } in models() {
        let (w, h, f) = (run.width.unwrap(), run.height.unwrap(), run.frames.unwrap());
        assert!(w % 32 == 0 && h % 32 == 0 && f % 8 == 1 && run.fps.unwrap() > 0.0, "{name}");
        assert!(run.steps.is_some() != run.sigmas.is_some(), "{name}");
        if let Some(sigmas) = &run.sigmas {
            assert!(
                sigmas[0] <= 1.0 && sigmas.windows(2).all(|w| w[0] > w[1]) && sigmas[sigmas.len() - 1] > 0.0,
                "{name}"
            );
        }
        assert!(run.guidance.as_ref().unwrap().values().iter().all(|&scale| scale >= 1.0), "{name}");
        let layers = matches.as_ref().and_then(|m| m.layers).unwrap_or(usize::MAX);
        for two in [false, true] {
            let passes = {
                let (request, family, recipe) = (&Request::default(), Family::ALL[0], Recipe::Lightricks);
                Given { request, model: run, family, recipe, allowed: None, two }.passes().unwrap()
            };
            assert!(passes.iter().all(|pass| pass.check(layers).is_ok()), "{name}");
        }
        assert_eq!(run.in_two_passes(), upscaler.is_some() && run.downscale.is_some(), "{name}");
        assert_eq!(run.recipe, (!name.starts_with("tiny")).then_some(Recipe::Lightricks), "{name}");
    }
}

#[test]
fn entries_that_look_alike_run_alike() {
    for a in models() {
        for b in models().filter(|b| b.matches == a.matches) {
            let told_apart = a.bytes.is_some() && b.bytes.is_some() && a.bytes != b.bytes;
            assert!(a.run == b.run || told_apart, "{} and {}", a.name, b.name);
        }
    }
}

#[test]
fn a_header_finds_its_family() {
    assert_eq!(name(&facts("0.9.0", false, false)), Some("ltx-2b-0.9.0"));
    assert_eq!(name(&facts("0.9.1", false, false)), Some("ltx-2b-0.9.1"));
    assert_eq!(name(&facts("0.9.5", false, false)), Some("ltx-2b-0.9.6-dev"));
    assert_eq!(name(&facts("0.9.5", false, true)), Some("ltx-2b-0.9.8-distilled"));
    assert_eq!(name(&facts("0.9.5", true, false)), Some("ltx-13b-0.9.8-dev"));
    assert_eq!(name(&facts("0.9.5", true, true)), Some("ltx-13b-0.9.8-distilled"));
    // No such model: another VAE, other sizes.
    assert_eq!(name(&facts("0.9.1", true, false)), None);
    assert_eq!(name(&facts("", false, false)), None);
    assert_eq!(name(&Facts { layers: 27, ..facts("0.9.5", false, false) }), None);
    assert_eq!(name(&Facts { heads: 31, ..facts("0.9.5", false, false) }), None);
    assert_eq!(name(&Facts { head_dim: 65, ..facts("0.9.5", false, false) }), None);
    // An empty list of steps says nothing; an unknown name neither.
    assert_eq!(name(&Facts { allowed_steps: Some(&[]), ..facts("0.9.5", false, true) }), Some("ltx-2b-0.9.6-dev"));
    assert_eq!(name(&Facts { name: Some("mine"), ..facts("0.9.0", false, false) }), Some("ltx-2b-0.9.0"));
}

#[test]
fn a_version_in_the_files_name_tells_twins_apart() {
    let distilled = |called| Facts { called: Some(called), ..facts("0.9.5", false, true) };
    let both = ["ltxv-2b-0.9.6-distilled-04-25-Q8_0.gguf", "LTXV_2B_v0.9.8_distilled.q4_k.gguf"].map(distilled);
    assert_eq!(both.map(|facts| name(&facts).unwrap()), ["ltx-2b-0.9.6-distilled", "ltx-2b-0.9.8-distilled"]);
    assert!(both.iter().all(|facts| doubles(matching(facts).unwrap(), facts).is_empty()));
    // another version, a longer one and none tell nothing: the newest, which may be the other
    for called in ["ltxv-0.9.7-distilled.gguf", "ltxv-10.9.6.gguf", "ltxv-0.9.60.gguf", "distilled.gguf"] {
        let facts = distilled(called);
        assert_eq!(name(&facts), Some("ltx-2b-0.9.8-distilled"), "{called}");
        assert_eq!(doubles(matching(&facts).unwrap(), &facts).len(), 1, "{called}");
    }
    // the length of a file that is known goes before what it is called
    let other = named("ltx-2b-0.9.8-distilled").unwrap();
    assert_eq!(name(&Facts { bytes: other.bytes, ..both[0] }), Some(&*other.name));
}

#[test]
fn a_built_in_model_is_known_by_its_name_alone() {
    let tiny = Facts { name: Some("tiny"), layers: 8, heads: 4, head_dim: 48, ..facts("0.9.5", false, false) };
    assert_eq!(name(&tiny), Some("tiny"));
    assert_eq!(name(&Facts { name: None, ..tiny }), None);
    assert_eq!(name(&Facts { name: Some("tiny"), ..facts("0.9.5", true, false) }), Some("tiny"));
    assert_eq!(name(&Facts { name: Some("tiny-128"), ..tiny }), Some("tiny-128"));
}

#[test]
fn every_entry_matches_an_equal_run() {
    for e in models() {
        let m = e.matches.as_ref().unwrap();
        let facts = Facts {
            name: m.name.as_deref(),
            vae: m.vae.as_deref().unwrap_or(""),
            layers: m.layers.unwrap_or(0),
            heads: m.heads.unwrap_or(0),
            head_dim: m.head_dim.unwrap_or(0),
            allowed_steps: m.distilled.then_some(&STEPS),
            bytes: e.bytes,
            called: None,
        };
        assert_eq!(matching(&facts).map(|found| &found.run), Some(&e.run), "{}", e.name);
        let (same, found) = (Facts { bytes: None, ..facts }, matching(&facts).unwrap());
        let run_alike = models().all(|other| other.matches != e.matches || other.run == e.run);
        assert!(doubles(found, &facts).is_empty() && doubles(e, &same).is_empty() == run_alike, "{}", e.name);
    }
}

#[test]
fn an_unknown_name_lists_the_choices() {
    assert_eq!(find("tiny").unwrap().name, "tiny");
    let error = find("ltx-2b-0.9.6-distiled").unwrap_err().to_string();
    assert!(
        error.starts_with("unknown model `ltx-2b-0.9.6-distiled`; did you mean `ltx-2b-0.9.6-distilled`?"),
        "{error}"
    );
    assert!(error.contains("models: `ltx-2b-0.9.6-distilled`, `ltx-2b-0.9.8-distilled`"), "{error}");
    assert!(models().all(|e| error.contains(&format!("`{}`", e.name))), "{error}");
    assert!(error.contains("path"), "{error}");
    // of several that hold what was asked for the newest distilled one, the oldest of which nobody wants
    for (asked, newest) in [
        ("ltx", "ltx-2b-0.9.8-distilled"),
        ("ltx-2b", "ltx-2b-0.9.8-distilled"),
        ("LTX-13B", "ltx-13b-0.9.8-distilled"),
        ("13b-0.9.7", "ltx-13b-0.9.7-distilled"),
        ("0.9.8-dev", "ltx-13b-0.9.8-dev"),
    ] {
        for error in [find(asked).unwrap_err(), find_any(asked).unwrap_err()] {
            assert!(error.to_string().contains(&format!("did you mean `{newest}`?")), "{asked}: {error}");
        }
    }
    assert!(find_any("t5-xxl").unwrap_err().to_string().contains("did you mean `t5-xxl-fp16`?"));
    assert!(find("TINY").unwrap_err().to_string().contains("did you mean `tiny`?"));
    for nonsense in ["", "x", "stable-diffusion-xl"] {
        let error = find(nonsense).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
    assert!(find("t5-xxl-fp16").unwrap_err().to_string().contains("--text-encoder"));
    assert_eq!(find_any("t5-xxl-fp16").unwrap().kind, Kind::TextEncoder);
    assert!(find_any("t5-xxl-q6").unwrap_err().to_string().contains("did you mean `t5-xxl-q6_k`?"));
}

#[test]
fn sizes_are_said() {
    let said = |name: &str| named(name).unwrap().size_text();
    assert_eq!(said("tiny"), "built in");
    assert_eq!(said("ltx-2b-0.9.5"), "6.34 GB");
    assert_eq!(said("t5-xxl-bf16"), "about 9.53 GB");
}

#[test]
fn distance_counts_edits() {
    assert_eq!(distance("kitten", "sitting"), 3);
    assert_eq!(distance("", "abc"), 3);
    assert_eq!(distance("Tiny", "tiny"), 0);
}
