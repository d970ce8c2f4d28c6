//! What is asked of the hub: what a file is, and its bytes from some place on. The token goes to the hub's own address alone.

use crate::hub::catalogue::{Remote, is_sha256};
use crate::hub::store::check::{is_commit, is_etag};
use crate::hub::store::settings::Settings;
use crate::platform::files;
use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::{Repo, RepoType};
use httpdate::parse_http_date;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};
use ureq::http::{Method, Response, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Redirects that one answer may take.
const MOST_HOPS: usize = 10;
/// Bytes of a file with certificates, at most.
const MOST_CERTIFICATES: u64 = 16 << 20;
/// The longest that `Retry-After` is obeyed.
const LONGEST_REST: Duration = Duration::from_secs(300);

pub struct Hub<'a> {
    agent: Agent,
    settings: &'a Settings,
}

/// What the hub says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Names the content; the blob's name in the cache. Of large files their SHA-256.
    pub etag: String,
    pub bytes: Option<u64>,
}

impl Meta {
    pub fn sha256(&self) -> Option<&str> {
        Some(self.etag.as_str()).filter(|etag| is_sha256(etag))
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum FetchError {
    /// Worth another attempt: after so long, where the server says.
    Retry(String, Option<Duration>),
    /// There is no way to the server at all, which seldom mends itself in a minute.
    Away(String),
    /// The file is another one than when it was asked about.
    Modified,
    Fatal(anyhow::Error),
}

/// An answer with what the way to it said.
struct Answer {
    response: Response<Body>,
    /// Headers of all hops, last first: a redirect says what its target does not.
    commit: Option<String>,
    linked_etag: Option<String>,
    linked_bytes: Option<u64>,
    /// Whether the last hop was at the hub's own address.
    at_hub: bool,
}

impl<'a> Hub<'a> {
    /// - Errors when the environment stands against asking at all, or names a file of certificates that holds none.
    pub fn new(settings: &'a Settings) -> Result<Self> {
        if let Some(trouble) = &settings.trouble {
            bail!("{trouble}");
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0) // followed here, where the token is taken off
            .user_agent(concat!("reel/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // lengths and ranges are those of the file
            .timeout_resolve(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout))
            .timeout_recv_response(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout));
        let config = if settings.proxies { config } else { config.proxy(None) };
        let config = match &settings.certificates {
            Some(path) => config.tls_config(TlsConfig::builder().root_certs(trusted(path)?).build()),
            None => config,
        };
        Ok(Self { agent: config.build().new_agent(), settings })
    }

    /// What `remote` is now.
    pub fn meta(&self, remote: &Remote) -> Result<Meta, FetchError> {
        let answer = self.ask(Method::HEAD, &address(&self.settings.endpoint, remote), None)?;
        self.judge(&answer, remote)?;
        let text = |name: &str| answer.response.headers().get(name).and_then(|v| v.to_str().ok());
        let redirected = answer.response.status().is_redirection();
        let etag = answer.linked_etag.clone().or_else(|| text("etag").filter(|_| !redirected).map(normalised));
        let bytes = answer.linked_bytes.or_else(|| {
            // of a redirect it is the length of the redirect
            text("content-length").filter(|_| !redirected).and_then(|n| n.parse().ok())
        });
        let (Some(commit), Some(etag)) = (answer.commit, etag) else {
            return Err(FetchError::Fatal(anyhow!(
                "`{}` answers without a commit or an etag: it is no Hugging Face hub\n  fix: check HF_ENDPOINT",
                self.settings.shown_endpoint()
            )));
        };
        // both become names of files
        if !is_commit(&commit) || !is_etag(&etag) {
            let cut = |text: &str| text.chars().take(80).collect::<String>();
            return Err(FetchError::Fatal(anyhow!(
                "`{}` answers with a commit `{}` and an etag `{}` that cannot be names of files\n  fix: check HF_ENDPOINT",
                self.settings.shown_endpoint(),
                cut(&commit),
                cut(&etag)
            )));
        }
        Ok(Meta { commit, etag, bytes })
    }

    /// The bytes of a file from `from` on, as the server chooses to give them: status 206, 200 (from the start) or 416.
    pub fn bytes(&self, remote: &Remote, meta: &Meta, from: u64) -> Result<Response<Body>, FetchError> {
        let at_commit = Remote { revision: &meta.commit, ..*remote };
        let answer = self.ask(Method::GET, &address(&self.settings.endpoint, &at_commit), Some(from))?;
        if answer.response.status() != 416 {
            self.judge(&answer, remote)?;
        }
        let own = answer.response.headers().get("etag").and_then(|v| v.to_str().ok()).map(normalised);
        // a store behind the hub has etags of its own
        let now = answer.linked_etag.or_else(|| own.filter(|_| answer.at_hub));
        if now.is_some_and(|now| now != meta.etag) {
            return Err(FetchError::Modified);
        }
        Ok(answer.response)
    }

    /// Sends a request and follows redirects. A HEAD that has been told all that the hub knows goes no further.
    fn ask(&self, method: Method, address: &str, from: Option<u64>) -> Result<Answer, FetchError> {
        let hub = origin(address).map_err(FetchError::Fatal)?;
        let mut address = address.to_string();
        let (mut commit, mut linked_etag, mut linked_bytes) = (None, None, None);
        for _ in 0..MOST_HOPS {
            let at_hub = origin(&address).map_err(FetchError::Fatal)? == hub;
            let mut request = ureq::http::Request::builder().method(method.clone()).uri(&address);
            if let Some(token) = self.settings.token.as_ref().filter(|_| at_hub) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
            }
            if let Some(from) = from.filter(|from| *from > 0) {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let request = request.body(()).map_err(|e| FetchError::Fatal(e.into()))?;
            let response = self.agent.run(request).map_err(|e| self.unanswered(e, &address))?;
            let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            commit = text("x-repo-commit").map(str::to_string).or(commit);
            linked_etag = text("x-linked-etag").map(normalised).or(linked_etag);
            linked_bytes = text("x-linked-size").and_then(|n| n.parse().ok()).or(linked_bytes);
            let told = method == Method::HEAD && commit.is_some() && linked_etag.is_some();
            let target = text("location").filter(|_| response.status().is_redirection() && !told);
            let Some(target) = target.map(str::to_string) else {
                return Ok(Answer { response, commit, linked_etag, linked_bytes, at_hub });
            };
            let next = joined(&address, &target).map_err(FetchError::Fatal)?;
            if address.starts_with("https:") && !next.starts_with("https:") {
                return Err(FetchError::Fatal(anyhow!(
                    "`{}` redirects to an address without encryption\n  fix: check HF_ENDPOINT",
                    host(&address)
                )));
            }
            address = next;
        }
        Err(FetchError::Fatal(anyhow!(
            "`{}` redirects without end\n  fix: check HF_ENDPOINT",
            self.settings.shown_endpoint()
        )))
    }

    /// A request that brought no answer.
    fn unanswered(&self, error: ureq::Error, address: &str) -> FetchError {
        use ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
        use ureq::Error::*;
        let host = host(address);
        let proxy =
            self.agent.config().proxy().map(|proxy| format!(" through the proxy `{}:{}`", proxy.host(), proxy.port()));
        let proxy = proxy.unwrap_or_default();
        let unknown = || FetchError::Away(format!("`{host}` cannot be found{proxy}: no network, or no such name"));
        match error {
            Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                FetchError::Away(format!("no connection to `{host}`{proxy} in {:?}", self.settings.timeout))
            }
            Timeout(_) => FetchError::Retry(format!("`{host}` did not answer in {:?}", self.settings.timeout), None),
            HostNotFound => unknown(),
            Rustls(e) => FetchError::Fatal(unsafe_connection(&host, &e)),
            Io(e) if e.kind() == ErrorKind::InvalidData => {
                let rustls = e.get_ref().and_then(|e| e.downcast_ref());
                FetchError::Fatal(match rustls {
                    Some(rustls) => unsafe_connection(&host, rustls),
                    None => anyhow!("`{host}` answers what cannot be read: {e}\n  fix: check HF_ENDPOINT"),
                })
            }
            // the standard library has no kind of its own for it
            Io(e) if e.to_string().starts_with("failed to lookup address") => unknown(),
            Io(e) if matches!(e.kind(), ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable) => {
                FetchError::Away(format!("no connection to `{host}`{proxy}: {e}"))
            }
            Io(e) => FetchError::Retry(format!("no connection to `{host}`{proxy}: {e}"), None),
            ConnectionFailed | Protocol(_) => FetchError::Retry(format!("`{host}` broke off: {error}"), None),
            error => FetchError::Fatal(anyhow!(
                "cannot ask `{host}`: {error}\n  fix: check HF_ENDPOINT and the proxy settings"
            )),
        }
    }

    /// What a status that is no success means.
    fn judge(&self, answer: &Answer, remote: &Remote) -> Result<(), FetchError> {
        let response = &answer.response;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let Remote { repo, revision, file } = remote;
        let hub = host(&self.settings.endpoint);
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let known = self.settings.token.is_some();
        match status.as_u16() {
            // an address that was signed for a while; the hub gives another
            401 | 403 if !answer.at_hub => {
                Err(FetchError::Retry(format!("the store behind `{hub}` answers {status}"), None))
            }
            401 | 403 => {
                let fix = match (code, known) {
                    ("GatedRepo", _) => format!("accept its licence at {}/{repo}, and set HF_TOKEN", self.settings.shown_endpoint()),
                    (_, true) => "check HF_TOKEN: it is expired, or has no right to read this repository".to_string(),
                    (_, false) => "set HF_TOKEN, if the repository needs one; else the entry in weights.toml names a repository that is not there".to_string(),
                };
                Err(FetchError::Fatal(anyhow!("`{hub}` refuses `{file}` of {repo} ({status})\n  fix: {fix}")))
            }
            404 => Err(FetchError::Fatal(anyhow!(
                "`{hub}` has no `{file}` in {repo} at revision `{revision}` ({status})\n  fix: correct the entry in a weights.toml of your own (see the README)"
            ))),
            408 | 425 | 429 | 500..=599 => {
                let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
                let rest = text(header::RETRY_AFTER).and_then(|after| wait(after, text(header::DATE)));
                let why = format!("`{hub}` answers {status}");
                match rest {
                    Some(rest) if rest > LONGEST_REST => Err(FetchError::Fatal(anyhow!(
                        "{why} and asks to wait {} s\n  fix: try again then{}",
                        rest.as_secs(),
                        if known { "" } else { ", or set HF_TOKEN, which has higher limits" }
                    ))),
                    rest => Err(FetchError::Retry(why, rest)),
                }
            }
            _ => Err(FetchError::Fatal(anyhow!(
                "`{hub}` answers {status} for `{file}` of {repo}\n  fix: check HF_ENDPOINT"
            ))),
        }
    }
}

/// Where a hub has a file.
pub fn address(endpoint: &str, remote: &Remote) -> String {
    let repo = Repo::with_revision(remote.repo.to_string(), RepoType::Model, remote.revision.to_string());
    // hf-hub's own address of a file leaves its name as it is, blanks and all
    let (repo, revision, file) = (repo.url(), repo.url_revision(), escaped(remote.file));
    format!("{endpoint}/{repo}/resolve/{revision}/{file}")
}

/// The file's own name, without its folders.
pub fn last_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// How long `Retry-After` asks to wait: seconds, or a date, which is past where the wait is none.
/// - `now`: the server's `Date`, whose clock the date is by; else this machine's.
fn wait(after: &str, now: Option<&str>) -> Option<Duration> {
    let after = after.trim();
    let date = || {
        let now = now.and_then(|now| parse_http_date(now).ok()).unwrap_or_else(SystemTime::now);
        Some(parse_http_date(after).ok()?.duration_since(now).unwrap_or_default())
    };
    after.parse().ok().map(Duration::from_secs).or_else(date)
}

/// Why a connection is not encrypted to whom it should be, and what to do.
fn unsafe_connection(host: &str, error: &rustls::Error) -> anyhow::Error {
    use rustls::{CertificateError::*, Error::*};
    let (what, fix) = match error {
        InvalidCertificate(UnknownIssuer) => (
            format!("the certificate of `{host}` is by nobody who is trusted here"),
            "where a network has certificates of its own, set SSL_CERT_FILE to them",
        ),
        InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) => (
            format!("the certificate of `{host}` is out of date, by this machine's clock"),
            "set the clock, if it is wrong; else only the host's owner can mend it",
        ),
        InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => (
            format!("`{host}` shows the certificate of another host"),
            "check HF_ENDPOINT; a network that wants a login first does this too",
        ),
        InvalidCertificate(e) if e.to_string().contains("CaUsedAsEndEntity") => (
            format!("`{host}` shows an authority's certificate in place of its own, as self-signed ones are"),
            "give the host a certificate that the authority signed, and set SSL_CERT_FILE to the authority's",
        ),
        InvalidMessage(_) => (
            format!("`{host}` answers without encryption where https asks for it"),
            "where that is meant, begin HF_ENDPOINT with http://; else check the address and the proxy settings",
        ),
        other => (
            format!("no safe connection to `{host}`: {other}"),
            "where a network has certificates of its own, set SSL_CERT_FILE to them",
        ),
    };
    anyhow!("{what}\n  fix: {fix}")
}

/// The certificates of a PEM file.
fn trusted(path: &Path) -> Result<RootCerts> {
    let pem = files::read_small(path, MOST_CERTIFICATES).with_context(|| {
        format!("cannot read the certificates `{}`\n  fix: check SSL_CERT_FILE and REQUESTS_CA_BUNDLE", path.display())
    })?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = items.collect();
    ensure!(
        !found.is_empty(),
        "`{}` holds no certificate in PEM form\n  fix: check SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
        path.display()
    );
    Ok(found.into())
}

/// An etag as the hub means it, without quotes and marks of weakness.
fn normalised(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_string()
}

/// A path with what has no place in an address escaped.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Scheme, host and port: what may see the token.
fn origin(address: &str) -> Result<(String, String, u16)> {
    let uri: Option<Uri> = address.parse().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?.to_lowercase(), uri.host()?.to_lowercase(), uri)));
    match parts {
        Some((scheme, host, uri)) if scheme == "http" || scheme == "https" => {
            let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
            Ok((scheme, host, port))
        }
        _ => bail!("`{address}` is no http address\n  fix: check HF_ENDPOINT"),
    }
}

fn host(address: &str) -> String {
    let uri: Option<Uri> = address.parse().ok();
    uri.and_then(|uri| Some(uri.authority()?.as_str().rsplit('@').next()?.to_string()))
        .unwrap_or_else(|| address.to_string())
}

/// Where a redirect leads.
fn joined(base: &str, target: &str) -> Result<String> {
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    Ok(match target {
        t if t.starts_with("http://") || t.starts_with("https://") => t.to_string(),
        t if t.starts_with("//") => format!("{scheme}:{t}"),
        t if t.starts_with('/') => format!("{scheme}://{authority}{t}"),
        t if !t.contains("://") => {
            let path = rest.split('?').next().unwrap_or_default();
            let folder = path.rsplit_once('/').map_or(authority, |(folder, _)| folder);
            format!("{scheme}://{folder}/{t}")
        }
        t => bail!("a redirect to `{t}`, which is no http address\n  fix: check HF_ENDPOINT"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let to = |target| joined("https://a.b:1/c/d?e", target).unwrap();
        assert_eq!(to("http://x/y"), "http://x/y");
        assert_eq!(to("//x/y"), "https://x/y");
        assert_eq!(to("/x?y"), "https://a.b:1/x?y");
        assert_eq!(to("x"), "https://a.b:1/c/x");
        assert!(joined("https://a/b", "ftp://x").is_err());
    }

    #[test]
    fn another_port_or_scheme_is_another_place() {
        let hub = origin("https://Hub.example/x").unwrap();
        assert_eq!(origin("https://hub.example:443/y").unwrap(), hub);
        for other in
            ["http://hub.example/x", "https://hub.example:444/x", "https://x.hub.example/x", "https://hub.example.x/"]
        {
            assert_ne!(origin(other).unwrap(), hub);
        }
        // what stands before an @ is no host
        assert_ne!(origin("https://hub.example@evil.example/x").unwrap(), hub);
        assert!(origin("file:///x").is_err() && origin("x").is_err());
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let date = Some("Wed, 21 Oct 2015 07:27:00 GMT");
        assert_eq!(wait(" 7 ", date), Some(Duration::from_secs(7)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:01 GMT", date), Some(Duration::from_secs(61)));
        assert_eq!(wait("Wednesday, 21-Oct-15 07:28:01 GMT", date), Some(Duration::from_secs(61)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:26:00 GMT", date), Some(Duration::ZERO));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:01 GMT", None), Some(Duration::ZERO)); // by this machine's clock
        assert_eq!((wait("soon", date), wait("-1", date)), (None, None));
    }

    #[test]
    fn certificates_that_do_not_do_are_told_apart() {
        use rustls::{CertificateError::*, Error::InvalidCertificate};
        let said = |error| unsafe_connection("hub.example", &InvalidCertificate(error)).to_string();
        assert!(said(UnknownIssuer).contains("nobody who is trusted") && said(UnknownIssuer).contains("SSL_CERT_FILE"));
        assert!(said(Expired).contains("out of date") && said(NotValidForName).contains("another host"));
        assert!(said(BadSignature).contains("no safe connection to `hub.example`"));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a b/c#ä.x"), "a%20b/c%23%C3%A4.x");
        assert_eq!(normalised("W/\"abc\""), "abc");
    }
}
