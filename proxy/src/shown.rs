//! What of a request may stand in a log: bounded, on one line, and without a secret.

use http::Version;
use http::header::{HeaderMap, USER_AGENT};

/// As much of a path or a query is shown, in characters: any that a registry makes, and far less than a client may send.
const MAX_URL: usize = 1024;
/// As much of a User-Agent. Docker's has about 200 characters.
const MAX_AGENT: usize = 256;
/// As much of a parameter's name.
const MAX_NAME: usize = 64;

/// Parameters whose values say what is asked for, and never who asks. Any other value is hidden: presigned URLs have their
/// secrets under names that their makers choose.
const PLAIN: [&str; 12] = [
    "artifacttype",
    "client_id",
    "digest",
    "from",
    "go-get",
    "last",
    "mount",
    "n",
    "ns",
    "scope",
    "service",
    "tag",
];

/// The path and the query, with `*` for what may be a secret.
pub(crate) fn path(path: &str, query: Option<&str>) -> String {
    let mut shown = cut(path, MAX_URL);
    if let Some(query) = query {
        let parameters: Vec<String> = query.split('&').map(parameter).collect();
        shown.push('?');
        shown.push_str(&cut(&parameters.join("&"), MAX_URL));
    }
    shown
}

fn parameter(text: &str) -> String {
    match text.split_once('=') {
        // What has no value may be one.
        None => (if text.is_empty() { "" } else { "*" }).to_owned(),
        Some((name, _)) if name.len() > MAX_NAME => "*=*".to_owned(),
        Some((name, value)) if PLAIN.contains(&name.to_ascii_lowercase().as_str()) => {
            format!("{name}={value}")
        }
        Some((name, _)) => format!("{name}=*"),
    }
}

/// Who the client says that it is.
pub(crate) fn user_agent(headers: &HeaderMap) -> Option<String> {
    let agent = headers.get(USER_AGENT)?;
    Some(cut(&String::from_utf8_lossy(agent.as_bytes()), MAX_AGENT))
}

/// The version of HTTP, as ALPN and people call it.
pub(crate) fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn of_a_query_only_what_is_asked_for_is_shown() {
        for (uri, shown) in [
            ("/v2/", "/v2/"),
            ("/v2/a/tags/list?n=10&last=b", "/v2/a/tags/list?n=10&last=b"),
            (
                "/b?ns=docker.io&X-Amz-Signature=hunter2&sig=hunter2",
                "/b?ns=docker.io&X-Amz-Signature=*&sig=*",
            ),
            ("/b?hunter2", "/b?*"),
            ("/b?", "/b?"),
            ("/b?token=hunter2=&&NS=a", "/b?token=*&&NS=a"),
        ] {
            let (before, query) =
                uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
            assert_eq!(path(before, query), shown);
        }
        let hidden = path("/", Some(&format!("{}=1", "hunter2".repeat(10))));
        assert_eq!(hidden, "/?*=*");
    }

    #[test]
    fn what_is_long_is_cut() {
        let shown = path(&"a".repeat(5000), Some(&format!("n={}", "1".repeat(5000))));
        assert_eq!(shown.len(), 2 * (MAX_URL + 3) + 1);
        let agent = HeaderValue::from_bytes("\u{e9}".repeat(300).as_bytes()).unwrap();
        let shown = user_agent(&HeaderMap::from_iter([(USER_AGENT, agent)])).unwrap();
        assert_eq!(shown.chars().count(), MAX_AGENT + 3);
        assert_eq!(user_agent(&HeaderMap::new()), None);
    }
}
