//! `tracing`: whether and where traces are sent. The keys are Dragonfly's.

use darter_certs::Secret;

use super::section::Section;
use super::value::{self, Read};

/// Where traces are sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tracing {
    /// `http://host:port` of an OTLP collector that speaks gRPC; `None`: as the environment says.
    pub(crate) endpoint: Option<String>,
    /// Sent along with every batch.
    pub(crate) headers: Vec<(String, Secret)>,
    /// Of the traces that begin here, this part is sent, 0 to 1. Of those that a client began, what it has decided.
    pub(crate) ratio: f64,
    /// What traces call this program.
    pub(crate) service: String,
}

impl Tracing {
    /// `http://host:port`, of a text that may leave out the scheme.
    ///
    /// # Errors
    /// With what was expected.
    pub(crate) fn endpoint_of(text: &str) -> Result<String, String> {
        let bare = match text.split_once("://") {
            None => text,
            Some(("http", bare)) => bare,
            Some(("https", _)) => {
                let text = "expected HOST:PORT or http://HOST:PORT: TLS to a collector is not spoken, so let one listen on this \
                            host or in this network";
                return Err(text.to_owned());
            }
            Some(_) => return Err(format!("expected HOST:PORT or http://HOST:PORT, found `{text}`")),
        };
        let (host, port) = value::host_port(bare.strip_suffix('/').unwrap_or(bare))?;
        Ok(format!("http://{host}:{port}"))
    }
}

pub(super) fn tracing(section: &mut Section<'_>, service: Option<String>) -> Tracing {
    let protocol = section.filled("protocol", protocol);
    let endpoint = section.filled("endpoint", Tracing::endpoint_of);
    section.unused("path", value::text, "gRPC has no path");
    if section.has("endpoint") && !section.has("protocol") {
        section.error("protocol", "needed beside endpoint: grpc");
    }
    if protocol == Some(Protocol::Http) {
        section.warning("protocol", "has no effect: traces are sent by gRPC alone (grpc), so none are sent");
    } else if protocol.is_some() && !section.has("endpoint") {
        section.error("endpoint", "needed beside protocol: HOST:PORT of a collector");
    }
    Tracing {
        endpoint: endpoint.filter(|_| protocol != Some(Protocol::Http)),
        headers: headers(section),
        ratio: section.value("ratio", ratio).unwrap_or(1.0),
        service: service.unwrap_or_else(|| "darter".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

fn protocol(text: &str) -> Read<Protocol> {
    match text {
        "grpc" => Ok(Protocol::Grpc),
        "http" | "https" => Ok(Protocol::Http),
        _ => Err(format!("expected grpc, found `{text}`")),
    }
}

fn ratio(text: &str) -> Read<f64> {
    text.parse::<f64>()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| format!("expected a number from 0 to 1, found `{text}`"))
}

fn headers(section: &mut Section<'_>) -> Vec<(String, Secret)> {
    let mut headers = Vec::new();
    for (name, value) in section.texts("headers") {
        let is_sane =
            http::HeaderName::try_from(&name).is_ok() && http::HeaderValue::try_from(&value).is_ok();
        // gRPC's own, and binary ones, are not for people to write.
        if is_sane && !name.starts_with("grpc-") && !name.ends_with("-bin") {
            headers.push((name.to_ascii_lowercase(), value.into()));
        } else {
            section.error("headers", format!("`{name}` and its value make no header"));
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    fn read(source: &str) -> (Tracing, String) {
        top(source, |section| tracing(section, None))
    }

    #[test]
    fn nothing_is_sent_unless_somebody_says_where() {
        assert_eq!(read("ratio: 0.5").0.endpoint, None);
    }

    #[test]
    fn an_endpoint_may_leave_out_its_scheme_and_its_headers_are_secret() {
        let source =
            "protocol: grpc\nendpoint: collector.example:4317\nheaders: {X-Key: hunter2}\nratio: 0.25";
        let (config, report) = read(source);
        assert_eq!(report, "");
        assert_eq!(config.endpoint.as_deref(), Some("http://collector.example:4317"));
        assert_eq!(
            (config.headers.clone(), config.ratio),
            (vec![("x-key".to_owned(), "hunter2".into())], 0.25)
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(Tracing::endpoint_of("http://[::1]:4317/").unwrap(), "http://[::1]:4317");
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (source, words) in [
            ("protocol: grpc", "endpoint: needed beside protocol"),
            ("endpoint: a:1", "protocol: needed beside endpoint"),
            ("protocol: grpc\nendpoint: https://a:1", "TLS to a collector is not spoken"),
            ("protocol: grpc\nendpoint: a", "endpoint"),
            ("protocol: tcp\nendpoint: a:1", "expected grpc"),
            ("protocol: grpc\nendpoint: a:1\nratio: 2", "from 0 to 1"),
            ("protocol: grpc\nendpoint: a:1\nheaders: {\"a b\": c}", "make no header"),
            ("protocol: http\nendpoint: a:1", "traces are sent by gRPC alone"),
        ] {
            let (_, report) = read(source);
            assert!(report.contains(words), "{source}: {report}");
        }
    }
}
