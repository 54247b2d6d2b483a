//! [`RequestId`]: the name of one request, in its answer, in its line of the log and in its trace.
//!
//! A client that has a name for it (X-Request-Id) keeps that. What the client has sent goes on to the origin, as every
//! end-to-end header does; a name that was made here does not: registries expect none, and a header that no client sent tells
//! an origin that there is a proxy, which is the operator's to decide (`proxy.via`, `proxy.forwarded`). An origin's own
//! X-Request-Id comes back as it is: it is what its operator asks for.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// The header.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest name that is taken over, in bytes. A UUID has 36, a trace header of a load balancer about 70.
const MAX_LENGTH: usize = 128;

/// Drawn at each start, so that names of one start are not those of another, or of another host.
static START: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0) >> 16);

/// How many were made.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The name of one request. Clones are cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(Arc<str>);

impl RequestId {
    /// What the client calls it, or a new name.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(X_REQUEST_ID).iter();
        match (values.next(), values.next()) {
            (Some(only), None) => only
                .to_str()
                .ok()
                .filter(|name| is_sane(name))
                .map_or_else(Self::new, |name| Self(name.into())),
            _ => Self::new(),
        }
    }

    /// A new name: 12 hexadecimal digits of this start, and which request of it this is.
    pub(crate) fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        Self(format!("{:012x}-{count}", *START).into())
    }

    /// Says it in the headers of an answer.
    pub(crate) fn say(&self, headers: &mut HeaderMap) {
        let value = HeaderValue::try_from(&*self.0).expect("made of what `is_sane` lets through");
        headers.insert(X_REQUEST_ID, value);
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the usual makers of such names use, and nothing that a log or a shell reads as something else.
fn is_sane(name: &str) -> bool {
    (1..=MAX_LENGTH).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:+/=@~;".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(values: &[&'static str]) -> String {
        let headers = values.iter().map(|value| (X_REQUEST_ID, HeaderValue::from_static(value)));
        RequestId::of(&headers.collect()).to_string()
    }

    #[test]
    fn a_sane_name_is_kept_and_any_other_replaced() {
        for sane in
            ["a", "4f1c7b9e-8d3a-4f0e-9a51-6d2b1c0e7f42", "Root=1-67891233-abcdef012345678912345678;x"]
        {
            assert_eq!(named(&[sane]), sane);
        }
        let long: &'static str = Box::leak("x".repeat(MAX_LENGTH + 1).into_boxed_str());
        for other in [&[][..], &[""], &["a b"], &["a\"b"], &["a,b"], &[long], &["a", "a"]] {
            let made = named(other);
            assert!(is_sane(&made) && !other.contains(&made.as_str()), "{other:?}: {made}");
        }
    }

    #[test]
    fn no_two_requests_have_the_same_name() {
        assert_ne!(RequestId::new(), RequestId::new());
    }
}
