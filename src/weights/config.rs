//! Reading a checkpoint's JSON strictly: a key that reel does not know is an error, never ignored.

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Values of a JSON text, at most: umT5's vocabulary has 770,000. Each takes some ten times the bytes that it has in the text.
const MOST_VALUES: usize = 2_000_000;

/// Reads JSON of somebody's file.
/// - Errors on what is no JSON, and before reading it on what has far more values than any file of a checkpoint.
pub fn json(text: &[u8]) -> Result<Value> {
    let values = text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    ensure!(values <= MOST_VALUES, "it has {values} values, too many for a file of a checkpoint");
    Ok(serde_json::from_slice(text)?)
}

/// A text of a file, short enough for an error.
pub fn brief(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// Adds a way out to what is wrong with a configuration, where there is none.
/// - `taken`: what reel takes, such as a family and its releases.
pub fn with_fix(error: anyhow::Error, taken: &str) -> anyhow::Error {
    // below the first line stand backtraces, where the environment asks for them
    let said = error.chain().map(|cause| cause.to_string());
    if said.clone().any(|cause| cause.contains("\n  fix:")) {
        return error;
    }
    let said = said.map(|cause| cause.lines().next().unwrap_or_default().to_string()).collect::<Vec<_>>().join(": ");
    anyhow::anyhow!("{said}\n  fix: correct it there, or fetch the file again; reel takes {taken}")
}

/// The keys of one JSON object, crossed off as they are read.
pub struct Keys {
    what: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Keys {
    /// - `what` names the object in errors. Errors when `json` is not an object.
    pub fn new(json: &Value, what: &str) -> Result<Self> {
        let Value::Object(left) = json else { bail!("{what} is not a JSON object") };
        Ok(Self { what: what.to_string(), left: left.clone(), known: vec![] })
    }

    /// The value of `key`; `None` when it is absent or null.
    pub fn get<T: DeserializeOwned>(&mut self, key: &'static str) -> Result<Option<T>> {
        self.known.push(key);
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone()).map(Some).map_err(|e| {
                let (value, why) = (brief(&value.to_string()), brief(&e.to_string()));
                anyhow::anyhow!("{}: `{key}` is {value}, which does not fit: {why}", self.what)
            }),
        }
    }

    /// The value of `key`, or `default` when it is absent or null.
    pub fn or<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// The value of `key`, which has to be there.
    pub fn need<T: DeserializeOwned>(&mut self, key: &'static str) -> Result<T> {
        let what = self.what.clone();
        self.get(key)?.with_context(|| format!("{what}: the key `{key}` is missing"))
    }

    /// The size `key`, or `default`.
    /// - Errors when it is 0 or above `most`: no checkpoint has it, and arithmetic with it would go wrong.
    pub fn size(&mut self, key: &'static str, default: usize, most: usize) -> Result<usize> {
        let n = self.or(key, default)?;
        self.within(key, &[n], 1, most)?;
        Ok(n)
    }

    /// The list of sizes `key`, or `default`; each of them `least` to `most`.
    pub fn sizes(&mut self, key: &'static str, default: &[usize], least: usize, most: usize) -> Result<Vec<usize>> {
        let list = self.or(key, default.to_vec())?;
        self.within(key, &list, least, most)?;
        Ok(list)
    }

    fn within(&self, key: &str, values: &[usize], least: usize, most: usize) -> Result<()> {
        match values.iter().find(|n| !(least..=most).contains(n)) {
            Some(n) => bail!("{}: `{key}` has the value {n}, and reel takes {least} to {most}", self.what),
            None => Ok(()),
        }
    }

    /// The number `key`, or `default`; above 0 and finite.
    pub fn positive(&mut self, key: &'static str, default: f64) -> Result<f64> {
        let x = self.or(key, default)?;
        if x > 0.0 && x.is_finite() { Ok(x) } else { bail!("{}: `{key}` is {x}, and has to be above 0", self.what) }
    }

    /// Checks that `key`, if it is there, has one of the values that reel's code is written for.
    pub fn only(&mut self, key: &'static str, allowed: &[Value]) -> Result<()> {
        let what = self.what.clone();
        match self.get::<Value>(key)? {
            Some(value) if !allowed.contains(&value) => {
                let allowed: Vec<String> = allowed.iter().map(|v| format!("`{v}`")).collect();
                bail!(
                    "{what}: `{key}` is `{}`, and reel knows only {}",
                    brief(&value.to_string()),
                    allowed.join(" or ")
                )
            }
            _ => Ok(()),
        }
    }

    /// Crosses off keys that say nothing about the computation.
    pub fn ignore(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.left.remove(*key);
        }
    }

    /// Errors when a key was not read.
    /// - `taken`: what reel takes, such as a family and its releases.
    pub fn finish(mut self, taken: &str) -> Result<()> {
        const SHOWN: usize = 4;
        let mut unknown: Vec<String> = self.left.keys().take(SHOWN).map(|k| format!("`{}`", brief(k))).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        if self.left.len() > SHOWN {
            unknown.push(format!("and {} more", self.left.len() - SHOWN));
        }
        self.known.sort_unstable();
        bail!(
            "{}: unknown key {}, which may change what the model computes\n  known: {}\n  fix: use a checkpoint of {taken}",
            self.what,
            unknown.join(", "),
            self.known.join(", ")
        )
    }
}

/// Channels of a layer beyond which no checkpoint goes.
pub const MOST_CHANNELS: usize = 16_384;

/// Holds the width of the residual stream to what reel can compute.
/// - Errors say what it has to be, without names and numbers.
pub fn check_width(heads: usize, head_dim: usize) -> std::result::Result<(), String> {
    let width = heads.saturating_mul(head_dim);
    if (2..=MOST_CHANNELS).contains(&width) && width.is_multiple_of(2) {
        return Ok(());
    }
    Err(format!("their product has to be even and at most {MOST_CHANNELS}, not {width}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some bytes each in the text, and many in memory.
    #[test]
    fn texts_of_too_many_values_are_not_read() {
        assert!(json(format!("[{}1]", "1,".repeat(MOST_VALUES - 2)).as_bytes()).is_ok());
        let error = json(format!("[{}[]]", "[],".repeat(MOST_VALUES)).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("too many"), "{error}");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(brief("short"), "short");
        assert_eq!(brief(&"\u{e9}".repeat(500)), format!("{}…", "\u{e9}".repeat(80)));
    }
}
