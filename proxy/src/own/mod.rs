//! What the proxy serves under its own name: requests in origin form on the proxy port, for exactly these paths.
//!
//! | path | answer |
//! |---|---|
//! | `/` | what this is, and where to go on: HTML for browsers, text for others |
//! | `/ca.crt` | the certificate of our CA, PEM, and of those before and after it while one takes another's place; 404 when nothing is intercepted |
//! | `/ca.der` | the one that signs, DER |
//! | `/healthy` | 200 |
//! | `/setup` | what to paste for each client, with this proxy's address as the client reached it: HTML or text |
//! | `/setup.sh` | a script that makes a host trust the CA, and its clients use the proxy where it is asked to |
//! | `/setup/systemd` | the same for dockerd as a systemd service, at docker-registry-proxy's path: it needs no word more |
//!
//! A request that names a registry (`?ns=`, `X-Dragonfly-Registry`) is for the mirror whatever its path, and so is every
//! other path, but for those below `/setup/` and beside `/ca.`, which no registry has. None needs `proxy.basicAuth`: a client
//! must be able to fetch the certificate before it can do anything.

mod address;
mod page;
mod recipes;
mod script;

use crate::refusal::Refusal;
use crate::{Body, Settings, full};
use address::Address;
use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, Uri};
use page::{Form, Page};

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// A name of the proxy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    Index,
    Ca,
    CaDer,
    Healthy,
    Setup,
    SetupScript,
    SetupSystemd,
    /// A name like these that is none.
    Unknown,
}

impl Own {
    /// What a request in origin form asks of us ourselves.
    pub(crate) fn of(uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        if uri.query().is_some() || headers.contains_key("x-dragonfly-registry") {
            return None;
        }
        match uri.path() {
            "/" => Some(Self::Index),
            "/ca.crt" => Some(Self::Ca),
            "/ca.der" => Some(Self::CaDer),
            "/healthy" => Some(Self::Healthy),
            "/setup" => Some(Self::Setup),
            "/setup.sh" => Some(Self::SetupScript),
            "/setup/systemd" => Some(Self::SetupSystemd),
            path if path.starts_with("/setup/") || path.starts_with("/ca.") => Some(Self::Unknown),
            _ => None,
        }
    }

    /// The answer. `secure`: the client has reached us over TLS.
    ///
    /// # Errors
    /// When there is nothing to give, or the request does not say where it has reached us.
    pub(crate) fn answer<B>(
        self,
        request: &Request<B>,
        secure: bool,
        settings: &Settings,
    ) -> Result<Response<Body>, Refusal> {
        if self != Self::Unknown && request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Refusal::method("GET, HEAD"));
        }
        let no_ca = || Refusal::not_found("this proxy intercepts nothing, so it has no CA");
        let address = || Address::of(request, secure);
        let (content_type, body): (_, Bytes) = match self {
            Self::Ca => ("application/x-x509-ca-cert", settings.ca_pem().ok_or_else(no_ca)?),
            Self::CaDer => {
                let leaves = settings.leaves.as_ref().ok_or_else(no_ca)?;
                // RFC 2585 section 4.1.
                ("application/pkix-cert", leaves.authority().certificate_der().to_vec().into())
            }
            Self::SetupScript | Self::SetupSystemd => {
                settings.leaves.as_ref().ok_or_else(no_ca)?;
                let words = if self == Self::SetupSystemd { script::FOR_DOCKERD } else { "" };
                (TEXT, script::script(&address()?, words).into())
            }
            Self::Index | Self::Setup => {
                let page = Page { address: &address()?, settings };
                let form = Form::wanted(request.headers());
                let text = if self == Self::Index { page.index(form) } else { page.setup(form) };
                (if form == Form::Html { HTML } else { TEXT }, text.into())
            }
            Self::Healthy => (TEXT, Bytes::from_static(b"ok\n")),
            Self::Unknown => {
                let sentence = "this proxy has no such page; it has /, /ca.crt, /ca.der, /healthy, /setup, /setup.sh and /setup/systemd";
                return Err(Refusal::not_found(sentence));
            }
        };
        let mut response = Response::new(full(body));
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, content_type),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // Nothing here runs a script or loads anything, whatever somebody might smuggle into it.
            (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if matches!(self, Self::Index | Self::Setup) {
            headers.insert(VARY, HeaderValue::from(ACCEPT));
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_that_name_no_registry_are_ours() {
        let own = |uri: &str| Own::of(&uri.parse().unwrap(), &HeaderMap::new());
        assert_eq!(own("/"), Some(Own::Index));
        assert_eq!(own("/ca.crt"), Some(Own::Ca));
        assert_eq!(own("/healthy"), Some(Own::Healthy));
        assert_eq!(own("/setup/systemd"), Some(Own::SetupSystemd));
        for unknown in ["/ca.pem", "/ca.crt/", "/setup/", "/setup/docker", "/setup/systemd/"] {
            assert_eq!(own(unknown), Some(Own::Unknown), "{unknown}");
        }
        for other in
            ["/?ns=docker.io", "//", "/CA.crt", "/ca.crt?ns=docker.io", "/v2/healthy", "/setups", "/v2/"]
        {
            assert_eq!(own(other), None, "{other}");
        }
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-dragonfly-registry"),
            HeaderValue::from_static("a.example"),
        )]);
        assert_eq!(Own::of(&"/ca.crt".parse().unwrap(), &headers), None);
    }
}
