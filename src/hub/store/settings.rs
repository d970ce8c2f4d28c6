//! What the environment says about the hub and its cache; the variables mean what they mean to Python's `huggingface_hub`.

use crate::hub::store::check::read_note;
use crate::platform::folders::{Folder, home};
use anyhow::{Context, Result, ensure};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub const HUB: &str = "https://huggingface.co";

/// Where files come from and go to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cache that Python shares: `models--owner--name` folders lie in it.
    pub cache: PathBuf,
    /// Our own records of what was pulled.
    pub data: PathBuf,
    /// Address of the hub, without a closing `/`.
    pub endpoint: String,
    pub token: Option<Token>,
    /// Why the hub cannot be asked at all: a token that is none, a variable that is no text. What is here can be used all the same.
    pub trouble: Option<String>,
    /// No network at all.
    pub offline: bool,
    /// The longest wait for a server's next bytes.
    pub timeout: Duration,
    /// Waits between attempts that brought nothing.
    pub waits: Vec<Duration>,
    /// Whether `HTTPS_PROXY` and its like hold.
    pub proxies: bool,
    /// Certificates to trust in place of the built-in ones, as companies have them.
    pub certificates: Option<PathBuf>,
    /// Links in place of copies.
    pub links: bool,
}

/// A secret: sent to the hub alone, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None` where the text cannot stand in a header.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.to_string()))
    }

    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("(secret)")
    }
}

impl Settings {
    /// The hub's address without the name and password that may stand in it.
    pub fn shown_endpoint(&self) -> String {
        let (scheme, rest) = self.endpoint.split_once("://").unwrap_or(("", &self.endpoint));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{host}{path}"),
            None => self.endpoint.clone(),
        }
    }

    /// - Errors when there is no home folder and nothing that stands in for it, or when a folder is named that cannot be made out.
    pub fn from_env() -> Result<Self> {
        Self::from(&|name| std::env::var_os(name).filter(|value| !value.to_string_lossy().trim().is_empty()))
    }

    /// `os`: the value of a variable; an empty one counts as absent.
    fn from(os: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let trouble = RefCell::new(None);
        let var = |name: &str| {
            let text = os(name)?.into_string();
            let wrong = || format!("{name} is not UTF-8\n  fix: set it anew, or unset it");
            text.inspect_err(|_| _ = trouble.borrow_mut().get_or_insert_with(wrong)).ok()
        };
        let path = |name: &str| os(name).map(|text| expanded(name, &text, os)).transpose();
        let home = || home(os).context("there is no home folder\n  fix: set HF_HOME to a folder for downloads");
        let hf_home = match (path("HF_HOME")?, path("XDG_CACHE_HOME")?) {
            (Some(folder), _) => folder,
            (None, Some(cache)) => cache.join("huggingface"),
            (None, None) => home()?.join(".cache/huggingface"),
        };
        let cache = match (path("HF_HUB_CACHE")?, path("HUGGINGFACE_HUB_CACHE")?) {
            (Some(cache), _) | (None, Some(cache)) => cache,
            (None, None) => hf_home.join("hub"),
        };
        let data = Folder::Data.find(os).unwrap_or_else(|| hf_home.join("reel"));
        let truth =
            |name: &str| var(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()));
        let file = path("HF_TOKEN_PATH")?.unwrap_or_else(|| hf_home.join("token"));
        let token = if truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            let named = |name: &'static str| var(name).map(|text| (text, name.to_string()));
            let kept = || {
                let note = read_note(&file).inspect_err(|what| {
                    trouble
                        .borrow_mut()
                        .get_or_insert_with(|| format!("{what}\n  fix: mend the file of the token, or set HF_TOKEN"));
                });
                let text = note.ok().flatten().filter(|text| !text.trim().is_empty())?;
                Some((text, format!("`{}`", file.display())))
            };
            named("HF_TOKEN").or_else(|| named("HUGGING_FACE_HUB_TOKEN")).or_else(kept)
        };
        let token = token.and_then(|(text, of)| {
            let wrong = || format!("the Hugging Face token of {of} holds characters that no token has\n  fix: set it anew, or remove it");
            let token = Token::new(&text);
            if token.is_none() {
                trouble.borrow_mut().get_or_insert_with(wrong);
            }
            token
        });
        let certificates = match (path("SSL_CERT_FILE")?, path("REQUESTS_CA_BUNDLE")?) {
            (Some(file), _) => Some(file),
            (None, bundle) => bundle,
        };
        let seconds = var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.trim().parse::<f64>().ok());
        let timeout = seconds.filter(|s| s.is_finite() && *s > 0.0 && *s < 1e6).unwrap_or(10.0);
        Ok(Self {
            cache: absolute(cache),
            data: absolute(data),
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| HUB.to_string()).trim_end_matches('/').to_string(),
            token,
            offline: truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE"),
            timeout: Duration::from_secs_f64(timeout),
            waits: [1, 2, 4, 8, 16].map(Duration::from_secs).to_vec(),
            proxies: true,
            certificates,
            links: !truth("HF_HUB_DISABLE_SYMLINKS"),
            trouble: trouble.take(),
        })
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// A leading `~` and `$NAME` or `${NAME}` anywhere, as Python expands them; an unknown name stays as it is.
/// - Errors where a path that is not UTF-8 holds what would have to be expanded.
fn expanded(variable: &str, text: &OsStr, var: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let Some(plain) = text.to_str() else {
        let bytes = text.as_encoded_bytes();
        ensure!(
            !bytes.starts_with(b"~") && !bytes.contains(&b'$'),
            "{variable} holds `~` or `$` and is not UTF-8\n  fix: write the folder out"
        );
        return Ok(text.into());
    };
    let mut out = match (plain.strip_prefix('~'), home(var)) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => home.into_os_string(),
        _ => OsString::new(),
    };
    let rest = if out.is_empty() { plain } else { &plain[1..] };
    let mut parts = rest.split('$');
    out.push(parts.next().unwrap_or_default());
    for part in parts {
        let plain = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = match part.strip_prefix('{').and_then(|p| p.split_once('}')) {
            Some(braced) => braced,
            None => part.split_at(plain),
        };
        match var(name).filter(|_| !name.is_empty()) {
            Some(value) => [value.as_os_str(), rest.as_ref()].iter().for_each(|piece| out.push(piece)),
            _ => ["$", part].iter().for_each(|piece| out.push(piece)),
        }
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Settings {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        Settings::from(&var).unwrap()
    }

    #[test]
    #[cfg(unix)]
    fn folders_are_those_of_python() {
        let cache = |vars: &[(&str, &str)]| settings(&[&[("HOME", "/h")], vars].concat()).cache.display().to_string();
        assert_eq!(cache(&[]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c")]), "/c/huggingface/hub");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c"), ("HF_HOME", "~/hf")]), "/h/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "$HOME/x/${HF_HOME}y$Z")]), "/h/x/hfy$Z");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        let data = |vars: &[(&str, &str)]| settings(vars).data.display().to_string();
        assert_eq!(data(&[("HOME", "/h")]), "/h/.local/share/reel");
        assert_eq!(data(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]), "/d/reel");
        assert_eq!(data(&[("HF_HOME", "/hf")]), "/hf/reel");
        assert!(Settings::from(&|_| None).is_err_and(|e| e.to_string().contains("HF_HOME")));
    }

    #[test]
    fn a_token_is_found_and_not_shown() {
        let home = std::env::temp_dir().join(format!("reel-token-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("token"), "hf_file\n").unwrap();
        let home = home.to_str().unwrap();
        let token = |vars: &[(&str, &str)]| settings(&[&[("HF_HOME", home)], vars].concat()).token;
        assert_eq!(token(&[]).unwrap().secret(), "hf_file");
        assert_eq!(token(&[("HF_TOKEN", " hf_var\r\n")]).unwrap().secret(), "hf_var");
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert!(!format!("{:?}", token(&[])).contains("hf_file"));
        std::fs::remove_dir_all(home).unwrap();
        assert_eq!(token(&[]), None);
    }

    #[test]
    fn what_stands_against_asking_stops_nothing_else() {
        let set = settings(&[("HF_HOME", "/hf"), ("HF_TOKEN", "a b\nc")]);
        let trouble = set.trouble.unwrap();
        assert!(set.token.is_none() && trouble.contains("token of HF_TOKEN") && !trouble.contains("a b"), "{trouble}");
        assert_eq!(settings(&[("HF_HOME", "/hf"), ("HF_TOKEN", "hf_x")]).trouble, None);
    }

    #[test]
    #[cfg(unix)]
    fn variables_need_not_be_utf_8_where_they_are_paths() {
        use std::os::unix::ffi::OsStringExt;
        let odd = |text: &[u8]| OsString::from_vec([text, b"/\xff"].concat());
        let of = |name: &'static str, value: OsString| {
            let home = (name != "HF_HOME").then(|| OsString::from("/hf"));
            Settings::from(&|n| if n == name { Some(value.clone()) } else { home.clone().filter(|_| n == "HF_HOME") })
        };
        assert_eq!(of("HF_HOME", odd(b"/odd")).unwrap().cache, PathBuf::from(odd(b"/odd")).join("hub"));
        assert!(of("HF_HUB_CACHE", odd(b"$HF_HOME")).is_err_and(|e| e.to_string().contains("HF_HUB_CACHE")));
        for name in ["HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"] {
            let trouble = of(name, odd(b"x")).unwrap().trouble.unwrap();
            assert!(trouble.contains(&format!("{name} is not UTF-8")), "{trouble}");
        }
    }

    #[test]
    fn truths_and_times() {
        let offline = |value| settings(&[("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", value)]).offline;
        assert!(offline("1") && offline("true") && offline("Yes") && !offline("0") && !offline("no"));
        assert!(settings(&[("HF_HOME", "/hf"), ("TRANSFORMERS_OFFLINE", "on")]).offline);
        let timeout = |value| settings(&[("HF_HOME", "/hf"), ("HF_HUB_DOWNLOAD_TIMEOUT", value)]).timeout;
        assert_eq!((timeout("0.5").as_millis(), timeout("30").as_secs(), timeout("x").as_secs()), (500, 30, 10));
        let hub = |address| settings(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", address)]);
        assert_eq!(hub("http://x:1/").endpoint, "http://x:1");
        assert_eq!(hub("http://x:1/a@b/").shown_endpoint(), "http://x:1/a@b");
        assert_eq!(hub("https://me:secret@x:1/a").shown_endpoint(), "https://x:1/a");
    }
}
