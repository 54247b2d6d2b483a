//! [`Dial`]: connections to other daemons, by host and address.
//!
//! The HTTP client keeps connections by the authority of a URL. There the host stands as the user, so that a connection
//! that was made to one host is never used for another that has got its address, and so that it is known here who must
//! be at the other end.

use darter_enrol::{Expected, Membership, Secured};
use http::Uri;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

/// How long dialling another daemon may take, TLS included: it is near, or it is not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Dials as a member of the cluster.
#[derive(Clone)]
pub(super) struct Dial {
    membership: Membership,
}

impl Dial {
    pub(super) fn new(membership: &Membership) -> Self {
        Self { membership: membership.clone() }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Secured>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let membership = self.membership.clone();
        Box::pin(async move {
            let (host, address) = parse(&uri).ok_or(io::ErrorKind::InvalidInput)?;
            let dialled = membership.connect(address, &host);
            let stream = tokio::time::timeout(DIAL_TIMEOUT, dialled).await;
            Ok(TokioIo::new(stream.map_err(|_| io::ErrorKind::TimedOut)??))
        })
    }
}

/// `HOST@ADDRESS`.
fn parse(uri: &Uri) -> Option<(Expected, SocketAddr)> {
    let (host, address) = uri.authority()?.as_str().split_once('@')?;
    Some((Expected::Host(host.parse().ok()?), address.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_dialled_stands_in_the_authority() {
        for address in ["10.0.0.1:65002", "[fd00::1]:7"] {
            let uri: Uri = format!("http://a_b-1.c@{address}/tasks/x").parse().unwrap();
            let expected = (Expected::Host("a_b-1.c".parse().unwrap()), address.parse().unwrap());
            assert_eq!(parse(&uri), Some(expected));
        }
        assert_eq!(parse(&"http://10.0.0.1:65002/".parse().unwrap()), None);
    }
}
