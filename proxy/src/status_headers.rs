//! What docker-registry-proxy says of an answer, for scripts that were written for it: `X-Docker-Registry-Proxy-Cache-Type`,
//! what was asked for, and `X-Docker-Registry-Proxy-Cache-Upstream-Status`, where the answer comes from. As there, only
//! answers to requests for manifests and blobs have them, and only good ones. Cache-Status (RFC 9211) says more.

use crate::labels::Outcome;
use http::{HeaderName, HeaderValue, Response};

const TYPE: HeaderName = HeaderName::from_static("x-docker-registry-proxy-cache-type");
const STATUS: HeaderName = HeaderName::from_static("x-docker-registry-proxy-cache-upstream-status");

/// What a path at a registry asks for, in docker-registry-proxy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind(&'static str);

impl Kind {
    /// `None`: nothing that it would cache.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let (repository, last) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
        let by_digest = last.starts_with("sha256:");
        Some(Self(match repository.rsplit_once('/')? {
            (_, "blobs") if by_digest => "blob-by-digest",
            (_, "blobs") => "blob-mutable",
            (_, "manifests") if by_digest => "manifest-by-digest",
            // What it says while its cache of manifests is off: a tag is always asked for.
            (_, "manifests") => "manifest-default-disabled",
            _ => return None,
        }))
    }

    /// Says it.
    pub(crate) fn say<B>(self, response: &mut Response<B>, outcome: Outcome) {
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return;
        }
        let came = match outcome {
            Outcome::Hit => "HIT",
            Outcome::Miss | Outcome::Relayed | Outcome::Direct => "MISS",
            Outcome::Bypass => "BYPASS",
            _ => return,
        };
        response.headers_mut().insert(TYPE, HeaderValue::from_static(self.0));
        response.headers_mut().insert(STATUS, HeaderValue::from_static(came));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn what_is_asked_for_has_its_name_there() {
        for (path, kind) in [
            ("/v2/library/alpine/blobs/sha256:ab", Some("blob-by-digest")),
            ("/v2/a/b/c/manifests/sha256:ab", Some("manifest-by-digest")),
            ("/v2/a/manifests/latest", Some("manifest-default-disabled")),
            ("/v2/a/blobs/uploads", Some("blob-mutable")),
            ("/v2/a/tags/list", None),
            ("/v2/", None),
            ("/token", None),
            ("/v2/blobs/sha256:ab", None),
        ] {
            assert_eq!(Kind::of(path).map(|it| it.0), kind, "{path}");
        }
    }

    #[test]
    fn good_answers_say_where_they_come_from() {
        let said = |status, outcome| {
            let mut response = Response::new(());
            *response.status_mut() = status;
            Kind("blob-by-digest").say(&mut response, outcome);
            response.headers().get(STATUS).map(|it| it.to_str().unwrap().to_owned())
        };
        assert_eq!(said(StatusCode::OK, Outcome::Hit).as_deref(), Some("HIT"));
        assert_eq!(said(StatusCode::PARTIAL_CONTENT, Outcome::Miss).as_deref(), Some("MISS"));
        assert_eq!(said(StatusCode::NOT_FOUND, Outcome::Direct), None);
        assert_eq!(said(StatusCode::OK, Outcome::Own), None);
    }
}
