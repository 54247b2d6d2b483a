//! [`PortTls`]: TLS on the proxy port itself, for clients whose proxy URL begins with https://.

use crate::Settings;
use crate::access;
use crate::intercept::Opened;
use crate::labels::Misplaced;
use crate::pipeline::Downstream;
use crate::request_id::RequestId;
use crate::sniff::Rewound;
use crate::socket::Socket;
use darter_certs::LeafName;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use std::io;
use std::sync::Arc;
use tokio_rustls::LazyConfigAcceptor;

/// The certificate of the proxy port.
#[derive(Debug, Clone)]
pub enum PortTls {
    /// The operator's. Its ALPN list says which HTTP is spoken.
    Certificate(Arc<ServerConfig>),
    /// A leaf of the CA for intercepted hosts, which clients trust already.
    OwnCa {
        /// The names by which clients may call this host, beside the address that they connect to. Only these are signed
        /// for: a certificate of any other host has no business on this port. A client that calls by another is shown the
        /// first, and says that this is not whom it called.
        names: Vec<LeafName>,
    },
}

/// Ends a client's TLS as this one of [`Settings::port_tls`] says at the moment. `None`: that failed, and has been reported.
pub(crate) async fn handshake(
    number: usize,
    client: Rewound<Socket>,
    downstream: &Downstream,
) -> Option<Opened<Rewound<Socket>>> {
    let settings = downstream.proxy.settings();
    let after = settings.limits.handshake_timeout;
    let _prompted = downstream.slot.prompt.on();
    let accept = async {
        let tls = settings.port_tls.get(number).ok_or("the proxy port has no certificate")?;
        tls.accept(client, &settings).await
    };
    let problem = match tokio::time::timeout(after, accept).await {
        Ok(Ok(client)) => return Some(client),
        Ok(Err(problem)) => problem,
        Err(_) => format!("it did not finish the TLS handshake within {after:?}"),
    };
    access::no_request(&RequestId::new(), downstream, Misplaced::Handshake, &problem);
    tracing::info!(client = %downstream.peer, "a client's TLS connection to the proxy port failed: {problem}");
    None
}

impl PortTls {
    async fn accept(
        &self,
        client: Rewound<Socket>,
        settings: &Settings,
    ) -> Result<Opened<Rewound<Socket>>, String> {
        let of_client = |error: io::Error| darter_certs::describe_downstream(&error);
        let address =
            client.get_ref().tcp().local_addr().map_err(|error| error.to_string())?.ip().to_canonical();
        let start = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(of_client)?;
        let config = match self {
            Self::Certificate(config) => config.clone(),
            Self::OwnCa { names } => {
                let called = match start.client_hello().server_name() {
                    Some(name) => name.parse::<LeafName>().ok().filter(|name| names.contains(name)),
                    None => address.to_string().parse().ok(),
                };
                let name = called.as_ref().or(names.first()).ok_or("the proxy port has no name")?;
                let leaves = settings.leaves.as_ref().ok_or("there is no CA")?;
                leaves.config_for(name).await.map_err(|error| error.to_string())?
            }
        };
        start.into_stream(config).await.map(Box::new).map_err(of_client)
    }
}
