//! What the environment says about the hub and its cache; the variables mean what they mean to Python's `huggingface_hub`.

use crate::folders::{Folder, home};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

const HUB: &str = "https://huggingface.co";

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
    /// - Errors when it cannot stand in a header.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        ensure!(
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()),
            "the Hugging Face token holds characters that no token has\n  fix: set HF_TOKEN anew, or remove it"
        );
        Ok(Self(text.to_string()))
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
    /// - Errors when there is no home folder and nothing that stands in for it, or the token is none.
    pub fn from_env() -> Result<Self> {
        Self::from(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    /// `var`: the value of a variable; an empty one counts as absent.
    fn from(var: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let path = |name: &str| var(name).map(|text| expanded(&text, var));
        let os = |name: &str| var(name).map(OsString::from);
        let home = || home(&os).context("there is no home folder\n  fix: set HF_HOME to a folder for downloads");
        let hf_home = match (path("HF_HOME"), path("XDG_CACHE_HOME")) {
            (Some(folder), _) => folder,
            (None, Some(cache)) => cache.join("huggingface"),
            (None, None) => home()?.join(".cache/huggingface"),
        };
        let cache =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub"));
        let data = Folder::Data.find(&os).unwrap_or_else(|| hf_home.join("reel"));
        let truth =
            |name: &str| var(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()));
        let file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let token = if truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            let kept = || std::fs::read_to_string(file).ok().filter(|text| !text.trim().is_empty());
            var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(kept)
        };
        let seconds = var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.trim().parse::<f64>().ok());
        let timeout = seconds.filter(|s| s.is_finite() && *s > 0.0 && *s < 1e6).unwrap_or(10.0);
        Ok(Self {
            cache: absolute(cache),
            data: absolute(data),
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| HUB.to_string()).trim_end_matches('/').to_string(),
            token: token.map(|text| Token::new(&text)).transpose()?,
            offline: truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE"),
            timeout: Duration::from_secs_f64(timeout),
            waits: [1, 2, 4, 8, 16].map(Duration::from_secs).to_vec(),
            proxies: true,
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            links: !truth("HF_HUB_DISABLE_SYMLINKS"),
        })
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// A leading `~` and `$NAME` or `${NAME}` anywhere, as Python expands them; an unknown name stays as it is.
fn expanded(text: &str, var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let text = match (text.strip_prefix('~'), home(&|name| var(name).map(OsString::from))) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", home.display()),
        _ => text.to_string(),
    };
    let mut parts = text.split('$');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let plain = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let (name, rest) = match part.strip_prefix('{').and_then(|p| p.split_once('}')) {
            Some(braced) => braced,
            None => part.split_at(plain),
        };
        match var(name) {
            Some(value) if !name.is_empty() => out.extend([value.as_str(), rest]),
            _ => out.extend(["$", part]),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Settings {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
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
        assert!(Token::new("a b").is_err() && Token::new("a\nb").is_err());
    }

    #[test]
    fn truths_and_times() {
        let offline = |value| settings(&[("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", value)]).offline;
        assert!(offline("1") && offline("true") && offline("Yes") && !offline("0") && !offline("no"));
        assert!(settings(&[("HF_HOME", "/hf"), ("TRANSFORMERS_OFFLINE", "on")]).offline);
        let timeout = |value| settings(&[("HF_HOME", "/hf"), ("HF_HUB_DOWNLOAD_TIMEOUT", value)]).timeout;
        assert_eq!((timeout("0.5").as_millis(), timeout("30").as_secs(), timeout("x").as_secs()), (500, 30, 10));
        assert_eq!(settings(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", "http://x:1/")]).endpoint, "http://x:1");
    }
}
