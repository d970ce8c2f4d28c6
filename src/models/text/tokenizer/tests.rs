//! The built-in tokenizer and files, right and damaged.

use crate::models::text::tokenizer::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::sync::LazyLock;

const T5_JSON: &[u8] = include_bytes!("../t5-tokenizer.json");

static T5: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::builtin_t5().unwrap());

/// Ids of transformers' `T5Tokenizer`.
static GOLDEN: LazyLock<Json> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../../tests/goldens/tokenizer.json")).unwrap());

fn ids(value: &Json) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn assert_golden(tokenizer: &Tokenizer) {
    let cases = GOLDEN["cases"].as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text, 256).unwrap();
        assert_eq!(got, Encoded { ids: ids(&case["ids"]), unread: None }, "{text:?}");
    }
}

fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn piece(name: &str, score: f32, kind: u64) -> Vec<u8> {
    let score = [varint(2 << 3 | 5), score.to_le_bytes().to_vec()].concat();
    // The kind of plain text is the default and not written.
    let kind = if kind == 1 { Vec::new() } else { number(3, kind) };
    field(1, &[field(1, name.as_bytes()), score, kind].concat())
}

/// A model file as SentencePiece writes it.
fn spiece(pieces: &[(&str, f32, u64)], model_type: u64, charsmap: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = pieces.iter().flat_map(|&(name, score, kind)| piece(name, score, kind)).collect();
    // Fields of every wire type that reel has no use for are in between.
    let fixed64 = [varint(90 << 3 | 1), vec![7; 8]].concat();
    bytes.extend(field(2, &[number(3, model_type), number(4, 32000), number(41, u64::MAX), fixed64].concat()));
    bytes.extend(field(3, &[field(1, b"nmt_nfkc"), field(2, charsmap), number(3, 1), number(4, 1)].concat()));
    bytes
}

/// The SentencePiece model that T5's `tokenizer.json` was made from.
fn t5_spiece(pieces: usize) -> Vec<u8> {
    let json: Json = serde_json::from_slice(T5_JSON).unwrap();
    let vocab: Vec<(String, f32)> = serde_json::from_value(json["model"]["vocab"].clone()).unwrap();
    let kind = |i| [3, 3, 2].get(i).copied().unwrap_or(1);
    let vocab = vocab.iter().take(pieces).enumerate();
    let vocab: Vec<_> = vocab.map(|(i, (name, score))| (name.as_str(), *score, kind(i))).collect();
    let charsmap = &json["normalizer"]["normalizers"][0]["precompiled_charsmap"];
    spiece(&vocab, 1, &STANDARD.decode(charsmap.as_str().unwrap()).unwrap())
}

/// The smallest model that reads as T5's.
fn tiny_spiece() -> Vec<u8> {
    let pieces = [("<pad>", 0.0, 3), (EOS, 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1), ("▁a", -1.0, 1), ("b", -3.0, 1)];
    spiece(&pieces, 1, b"")
}

fn error(result: Result<Tokenizer>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn builtin_equals_transformers() {
    assert_eq!(T5.vocab_size(), 32_100);
    assert_golden(&T5);
}

/// With and without the extra ids in the file; they end up in the same places.
#[test]
fn spiece_equals_transformers() {
    for pieces in [32_000, 32_100] {
        let bytes = t5_spiece(pieces);
        let tokenizer = Tokenizer::from_spiece(&bytes, "spiece.model").unwrap();
        assert_eq!(tokenizer.vocab_size(), 32_100);
        for (token, id) in [("<extra_id_0>", 32_099), ("<extra_id_99>", 32_000), (EOS, 1)] {
            assert_eq!(tokenizer.inner.token_to_id(token), Some(id));
        }
        assert_golden(&tokenizer);
    }
}

#[test]
fn cuts_as_transformers_and_tells_what() {
    for case in GOLDEN["cut"].as_array().unwrap() {
        let (text, max) = (case["text"].as_str().unwrap(), case["max_tokens"].as_u64().unwrap() as usize);
        let got = T5.encode(text, max).unwrap();
        assert_eq!(got.ids, ids(&case["ids"]), "{max} of {text:?}");
        assert_eq!(got.ids.last(), Some(&1));
        let whole = T5.encode(text, 10_000).unwrap();
        assert_eq!(got.unread.is_some(), whole.ids.len() > max);
    }
    assert!(T5.encode("A cat.", 0).is_err());
}

#[test]
fn unread_is_the_text_as_typed() {
    let cases = [
        ("A cat.", 4, None),
        ("A cat.", 3, Some(".")),
        ("A cat.", 1, Some("A cat.")),
        ("  A   cat, a  dog \n", 4, Some("a  dog")),
        // Characters that normalising joins, widens or drops, before and after the cut.
        ("A ﬁne ｃａｔ, ½ of a ﬁlm… ", 5, Some("½ of a ﬁlm…")),
        ("A cat\u{200b} 東京タワー dog", 4, Some("東京タワー dog")),
        ("e\u{301}cole e\u{301}cole", 3, Some("e\u{301}cole")),
    ];
    for (text, max, unread) in cases {
        let got = T5.encode(text, max).unwrap();
        assert_eq!(got.unread.as_deref(), unread, "{max} of {text:?}: {:?}", got.ids);
    }
    // An offset into a character quotes the whole character.
    assert_eq!(tail("aé", 2), "é");
    assert_eq!(tail("aé", 9), "");
}

/// A file may carry another run's padding and limit, and no rule that appends `</s>`.
#[test]
fn limits_and_frame_of_a_file_are_not_taken() {
    let mut json: Json = serde_json::from_slice(T5_JSON).unwrap();
    let pad = json!({"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    let cut = json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    (json["padding"], json["truncation"], json["post_processor"]) = (pad, cut, Json::Null);
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "tokenizer.json").unwrap();
    assert_golden(&tokenizer);
}

/// The shape of the tiny model's tokenizer: lower case, single bytes for unknown characters.
fn bytes_json() -> Json {
    let special = ["<pad>", EOS, "<unk>"].map(|name| (name.to_owned(), 0.0));
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0));
    let words = ["▁", "▁a", "▁red", "▁ball", "b"].map(|name| (name.to_owned(), -1.0));
    let vocab: Vec<(String, f64)> = special.into_iter().chain(bytes).chain(words).collect();
    let added: Vec<Json> = (0..3)
        .map(|id| json!({"id": id, "content": vocab[id].0, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
        "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": true},
    })
}

#[test]
fn lower_case_and_bytes() {
    let tokenizer = Tokenizer::from_json(bytes_json().to_string().as_bytes(), "tokenizer.json").unwrap();
    assert_eq!(tokenizer.vocab_size(), 264);
    assert_eq!(tokenizer.encode("A red BALL", 9).unwrap().ids, [260, 261, 262, 1]);
    let mixed = tokenizer.encode("a É red", 9).unwrap();
    assert_eq!(mixed.ids, [260, 259, 3 + 0xc3, 3 + 0xa9, 261, 1]);
    let cut = tokenizer.encode("a É red", 4).unwrap();
    assert_eq!(cut.unread.as_deref(), Some("É red"));
}

#[test]
fn damaged_json_is_an_error() {
    let table: [(&[u8], &str); 6] = [
        (b"", "EOF"),
        (b"{}", "cannot read tokenizer `x`: "),
        (b"[]", "no JSON object"),
        (b"{\"model\": 3}", "cannot read"),
        (&T5_JSON[..T5_JSON.len() / 2], "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
    ];
    for (bytes, want) in table {
        let got = error(Tokenizer::from_json(bytes, "x"));
        assert!(got.contains(want) && got.contains("fix: "), "{got}");
    }
    let read = |json: &Json| error(Tokenizer::from_json(json.to_string().as_bytes(), "x"));

    let mut no_eos = bytes_json();
    no_eos["model"]["vocab"][1][0] = json!("<eos>");
    no_eos["added_tokens"] = json!([]);
    assert!(read(&no_eos).contains("no `</s>`"), "{}", read(&no_eos));

    let mut framed = bytes_json();
    framed["post_processor"] = json!({
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
    });
    assert!(read(&framed).contains("it adds \"<pad>\" to every prompt"), "{}", read(&framed));

    let text = bytes_json().to_string();
    for n in (0..text.len()).step_by(97) {
        assert!(Tokenizer::from_json(&text.as_bytes()[..n], "x").is_err(), "the first {n} bytes");
    }
    // Wrong parts that reel has no use for, and that `tokenizers` itself would not survive.
    let mut unused = bytes_json();
    unused["decoder"] = json!(3);
    unused["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": EOS}}]});
    let tokenizer = Tokenizer::from_json(unused.to_string().as_bytes(), "x").unwrap();
    assert_eq!(tokenizer.encode("a", 9).unwrap().ids, [260, 1]);

    // A charsmap whose root steps out of its table would end the program at the first prompt.
    let mut mapped = bytes_json();
    for map in ["BAAAAAD///8=", "BAAAAAD///9=", "BAAAAAD///8", "?", ""] {
        mapped["normalizer"]["normalizers"][0] = json!({"type": "Precompiled", "precompiled_charsmap": map});
        assert!(read(&mapped).contains("charsmap"), "{}", read(&mapped));
    }
}

/// Parts that T5's files do not have, and numbers far beyond theirs.
#[test]
fn foreign_parts_are_refused() {
    let long = "a".repeat(1000);
    let replace = |pattern: Json, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let nested = (0..9).fold(json!({"type": "NFKC"}), |part, _| json!({"type": "Sequence", "normalizers": [part]}));
    let many = json!({"type": "Sequence", "normalizers": vec![json!({"type": "Strip"}); 40]});
    let bomb = json!({"type": "Sequence", "normalizers": vec![replace(json!({"String": "ab"}), "cccc"); 9]});
    let splits = json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁"});
    let cases: [(&str, Json, &str); 21] = [
        ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "`FixedLength`"),
        ("/pre_tokenizer", splits.clone(), "`Split`"),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [metaspace.clone(), splits]}), "`Split`"),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![metaspace; 99]}), "more than 16 parts"),
        ("/pre_tokenizer", json!({"length": 3}), "`missing`"),
        ("/normalizer", json!({"type": "BertNormalizer"}), "`BertNormalizer`"),
        ("/normalizer", json!({"type": "Prepend", "prepend": "x"}), "`Prepend`"),
        ("/normalizer", replace(json!({"String": "a"}), &long), "1000 times as long"),
        ("/normalizer", bomb, "512 times as long"),
        ("/normalizer", many, "more than 16 parts"),
        ("/normalizer", replace(json!({"String": ""}), "b"), "replaces"),
        ("/normalizer", replace(json!({"Regex": "(a*)*b"}), "b"), "replaces"),
        ("/normalizer/normalizers/0", nested, "cannot read tokenizer"),
        ("/model", json!({"type": "WordLevel", "vocab": {"a": 4_294_967_295u32}, "unk_token": "a"}), "`WordLevel`"),
        ("/model", json!({"type": "BPE", "vocab": {}, "merges": []}), "`BPE`"),
        ("/model/vocab/5/0", json!(long), "1000 bytes"),
        ("/model/vocab/5/1", json!(1e300), "score"),
        ("/model/vocab/5", json!({"a": 1}), "no list of pieces"),
        ("/model/vocab", json!([]), "is empty"),
        ("/added_tokens/1/normalized", json!(true), "after normalising"),
        ("/added_tokens/1/content", json!(""), "added token has 0 bytes"),
    ];
    for (place, part, want) in cases {
        let mut json = bytes_json();
        *json.pointer_mut(place).unwrap() = part;
        if want == "cannot read tokenizer" {
            // within the limits: it is read, or refused without a panic
            _ = Tokenizer::from_json(json.to_string().as_bytes(), "x");
            continue;
        }
        let got = error(Tokenizer::from_json(json.to_string().as_bytes(), "x"));
        assert!(got.contains(want) && got.contains("`x`") && got.len() < 400, "{place}: want {want:?}, got {got}");
    }
    let pieces: Vec<(String, f32, u64)> = (0..40_000).map(|i| (format!("{i:0>100}"), -1.0, 1)).collect();
    let mut named = vec![("<pad>", 0.0, 3), (EOS, 0.0, 3), ("<unk>", 0.0, 2)];
    named.extend(pieces.iter().map(|(name, score, kind)| (name.as_str(), *score, *kind)));
    let got = error(Tokenizer::from_spiece(&spiece(&named, 1, b""), "x"));
    assert!(got.contains("far larger than T5's"), "{got}");
    let got = error(Tokenizer::from_spiece(&spiece(&[named[0], named[1], named[2], (&long, -1.0, 1)], 1, b""), "x"));
    assert!(got.contains("1000 bytes"), "{got}");
}

/// Of an endless prompt the beginning is looked at, and all of the rest is told.
#[test]
fn long_texts_are_cut_before_they_are_read() {
    let text = "a cat and a dog ".repeat(100_000);
    let got = T5.encode(&text, 256).unwrap();
    assert_eq!(got.ids.len(), 256);
    let unread = got.unread.unwrap();
    assert!(text.trim_end().ends_with(&unread) && unread.len() > text.len() - 4096);
    // nothing but white space, and then what nobody looked at
    let blank = format!("{}end", " ".repeat(100_000));
    let got = T5.encode(&blank, 256).unwrap();
    assert_eq!(got.unread.as_deref(), Some("end"));
}

#[test]
fn damaged_spiece_is_an_error() {
    let pad = ("<pad>", 0.0, 3);
    let (eos, unk) = ((EOS, 0.0, 3), ("<unk>", 0.0, 2));
    let huge = [varint(1 << 3 | 2), varint(u64::MAX), b"x".to_vec()].concat();
    let table = [
        (Vec::new(), "end is missing"),
        (b"not a model at all".to_vec(), "cannot read tokenizer `x`"),
        (vec![0xff; 64], "more than 64 bits"),
        (huge, "ends too early"),
        (vec![0x0b], "unknown kind 3"),
        (piece("<pad>", 0.0, 3), "end is missing"),
        (spiece(&[pad, eos, unk], 2, b""), "BPE"),
        (spiece(&[pad, eos, unk], 9, b""), "model type is 9"),
        (spiece(&[pad, eos], 1, b""), "no piece for unknown text"),
        (spiece(&[pad, unk], 1, b""), "no `</s>`"),
        (spiece(&[pad, eos, unk, pad], 1, b""), "`<pad>` is in it twice"),
        (spiece(&[pad, eos, unk, ("a", f32::NAN, 1)], 1, b""), "score is NaN"),
        (spiece(&[pad, eos, unk, ("", 0.0, 1)], 1, b""), "piece 3 is damaged: it has no text"),
        (spiece(&[pad, eos, unk], 1, b"\x00"), "charsmap"),
        (spiece(&[pad, eos, unk], 1, &[0xff; 1028]), "charsmap"),
        (spiece(&[pad, eos, unk], 1, &[[0, 4, 0, 0].as_slice(), &[0x7f; 1024]].concat()), "charsmap"),
        ([spiece(&[pad, eos, unk], 1, b""), field(1, &field(1, b"\xff"))].concat(), "piece 3 is damaged"),
    ];
    for (bytes, want) in table {
        let got = error(Tokenizer::from_spiece(&bytes, "x"));
        assert!(got.contains(want) && got.contains("fix: "), "want {want:?}, got {got}");
    }
}

#[test]
fn every_cut_of_a_spiece_is_an_error() {
    let bytes = tiny_spiece();
    let tokenizer = Tokenizer::from_spiece(&bytes, "x").unwrap();
    assert_eq!(tokenizer.encode("a b ☃", 9).unwrap().ids, [4, 3, 5, 3, 2, 1]);
    assert_eq!(tokenizer.vocab_size(), 106);
    for n in 0..bytes.len() {
        assert!(Tokenizer::from_spiece(&bytes[..n], "x").is_err(), "the first {n} bytes");
    }
}

/// Whatever single byte is wrong: an error, or a tokenizer that still answers.
#[test]
fn no_wrong_byte_panics() {
    let bytes = tiny_spiece();
    for i in 0..bytes.len() {
        for flip in [0x01, 0x02, 0x08, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[i] ^= flip;
            if let Ok(tokenizer) = Tokenizer::from_spiece(&bytes, "x") {
                assert!(!tokenizer.encode("a b ☃ </s>", 9).unwrap().ids.is_empty());
            }
        }
    }
}

#[test]
fn finds_and_opens_files() {
    let root = std::env::temp_dir().join(format!("reel-tokenizer-{}", std::process::id()));
    for folder in ["model/tokenizer", "model/text_encoder", "alone"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let write = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).unwrap();
    let found = |name: &str| {
        let file = Tokenizer::find(&root.join(name))?;
        Some(file.strip_prefix(&root).unwrap().to_owned())
    };
    write("model/text_encoder/model.safetensors", b"");
    assert_eq!(found("model"), None);
    write("model/tokenizer/spiece.model", &tiny_spiece());
    for from in [
        "model",
        "model/text_encoder",
        "model/text_encoder/model.safetensors",
        "model/tokenizer",
        "model/tokenizer/spiece.model",
    ] {
        assert_eq!(found(from), Some("model/tokenizer/spiece.model".into()), "from {from}");
    }
    assert_eq!(found("alone"), None);
    write("model/tokenizer/tokenizer.json", bytes_json().to_string().as_bytes());
    assert_eq!(found("model"), Some("model/tokenizer/tokenizer.json".into()));
    assert_eq!(found("model/tokenizer/spiece.model"), Some("model/tokenizer/spiece.model".into()));
    // The nearest wins.
    write("model/text_encoder/spiece.model", &tiny_spiece());
    assert_eq!(found("model/text_encoder"), Some("model/text_encoder/spiece.model".into()));

    write("alone/json", bytes_json().to_string().as_bytes());
    write("alone/spiece", &tiny_spiece());
    for (name, size) in [
        ("model/tokenizer/tokenizer.json", 264),
        ("model/tokenizer/spiece.model", 106),
        ("alone/json", 264),
        ("alone/spiece", 106),
    ] {
        assert_eq!(Tokenizer::open(&root.join(name)).unwrap().vocab_size(), size, "{name}");
    }
    assert!(error(Tokenizer::open(&root.join("none.json"))).contains("none.json"));
    let large = std::fs::File::create(root.join("alone/large.model")).unwrap();
    large.set_len(LARGEST_FILE + 1).unwrap();
    assert!(error(Tokenizer::open(&root.join("alone/large.model"))).contains("32 MB are too many"));
    std::fs::remove_dir_all(&root).unwrap();
}
