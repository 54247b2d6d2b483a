//! [`TokenService`]: says by signed tokens who may do what in a registry (distribution, "Token Authentication").
//!
//! It stands on a host of its own, as it does for large registries. Its one user is the one of the other registry; whoever shows
//! nothing may pull from [`PUBLIC`] alone.

use crate::ca::{Ca, Identity};
use crate::http::{Exactly, read_headers, read_line};
use crate::net::Host;
use crate::registry::CREDENTIALS;
use crate::secret::note_token;
use crate::site::decoded;
use anyhow::{Context, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The registry that wants its tokens, and what it calls itself there.
pub const SERVICE: &str = "token.example";
/// The host that it is on.
pub const REALM: &str = "auth.example";
/// The repository that everybody may pull from.
pub const PUBLIC: &str = "team/public";

/// A longer form is no form, in bytes.
const MAX_FORM: u64 = 16 << 10;
/// What tokens say of who made them.
const ISSUER: &str = "the test";

/// A running service.
pub struct TokenService {
    signer: Signer,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What makes tokens.
#[derive(Clone)]
pub struct Signer {
    key: Arc<EcdsaKeyPair>,
    /// The certificate of the key, as tokens carry it.
    certificate: String,
    /// The same as a file would hold it.
    pem: String,
}

impl TokenService {
    /// Serves on `host`, which is [`REALM`]; `ca` signs for it.
    pub fn start(host: &Host, ca: &Ca) -> Result<Self> {
        let tls = ca.issue(&[REALM])?.server()?;
        let service = Self { signer: Signer::new()?, asked: Arc::default() };
        let (listener, signer, asked) = (host.listen(443)?, service.signer.clone(), service.asked.clone());
        std::thread::spawn(move || accept(&listener, &tls, &signer, &asked));
        Ok(service)
    }

    /// What a registry's configuration says of it; the file of its authority goes into `folder`.
    pub(crate) fn settings(&self, folder: &Path) -> Result<String> {
        let file = folder.join("issuer.crt");
        std::fs::write(&file, &self.signer.pem)?;
        Ok(format!(
            "auth: {{token: {{realm: 'https://{REALM}/token', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: '{}'}}}}\n",
            file.display()
        ))
    }

    /// What makes its tokens.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The scope of each token that it was asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Signer {
    /// Signs with a key that nobody knows yet.
    pub fn new() -> Result<Self> {
        let ca = Ca::new(ISSUER)?;
        let Identity { certificate, key } = ca.issue(&["issuer.example"])?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der());
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        Ok(Self {
            key: Arc::new(key.context("the key is none of P-256")?),
            certificate: BASE64_STANDARD.encode(certificate),
            pem: ca.pem().to_owned(),
        })
    }

    /// A token that lets its bearer do `actions` in `repository`, and ends so many seconds from now.
    pub fn token(&self, repository: &str, actions: &[&str], seconds: i64) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": "somebody", "aud": SERVICE, "jti": format!("{repository} {now}"),
            "exp": now + seconds, "nbf": now - 600, "iat": now - 600,
            "access": [{ "type": "repository", "name": repository, "actions": actions }],
        });
        let encoded = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = encoded.join(".");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.ok().context("it cannot be signed")?;
        let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
        note_token(&token);
        Ok(token)
    }
}

fn accept(
    listener: &TcpListener,
    tls: &Arc<rustls::ServerConfig>,
    signer: &Signer,
    asked: &Arc<Mutex<Vec<String>>>,
) {
    for stream in listener.incoming().flatten() {
        let (tls, signer, asked) = (tls.clone(), signer.clone(), asked.clone());
        // A client that goes away ends its connection's thread.
        std::thread::spawn(move || -> Result<()> {
            let session = rustls::ServerConnection::new(tls)?;
            let mut stream = BufReader::new(rustls::StreamOwned::new(session, stream));
            while answer(&mut stream, &signer, &asked)? {}
            Ok(())
        });
    }
}

/// Answers one request; whether there may be more.
fn answer<S: Read + Write>(
    stream: &mut BufReader<S>,
    signer: &Signer,
    asked: &Mutex<Vec<String>>,
) -> Result<bool> {
    let Ok(line) = read_line(stream) else { return Ok(false) };
    let headers = read_headers(stream)?;
    let header =
        |name: &str| headers.iter().find(|(have, _)| have == name).map_or("", |(_, value)| value.as_str());
    let target = line.split(' ').nth(1).context("no target")?;
    let mut fields = target.split_once('?').map_or("", |(_, query)| query).to_owned();
    if line.starts_with("POST ") {
        let left = header("content-length").parse()?;
        ensure!(left <= MAX_FORM, "a form of {left} bytes");
        fields.clear();
        Exactly { stream: &mut *stream, left }.read_to_string(&mut fields)?;
    }
    let field = |name: &str| {
        let mut fields = fields.split('&').filter_map(|field| field.split_once('='));
        fields
            .find(|(have, _)| *have == name)
            .map(|(_, value)| decoded(&value.replace('+', " ")))
            .unwrap_or_default()
    };
    let shown = match header("authorization").strip_prefix("Basic ") {
        Some(basic) => String::from_utf8(BASE64_STANDARD.decode(basic)?)?,
        None => format!("{}:{}", field("username"), field("password")),
    };
    let scope = field("scope");
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(scope.clone());
    let repository = scope.split(':').nth(1).unwrap_or_default();
    let granted = match (shown.as_str(), repository) {
        (":", PUBLIC) => vec!["pull"],
        (CREDENTIALS, _) => vec!["pull", "push"],
        _ => Vec::new(),
    };
    let (status, body) = match shown.as_str() {
        ":" | CREDENTIALS => {
            let token = signer.token(repository, &granted, 300)?;
            ("200 OK", json!({ "token": token, "access_token": token, "expires_in": 300 }))
        }
        _ => ("401 Unauthorized", json!({ "details": "incorrect username or password" })),
    };
    let body = body.to_string();
    let out = stream.get_mut();
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    out.flush()?;
    Ok(!header("connection").eq_ignore_ascii_case("close"))
}
