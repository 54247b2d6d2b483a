//! What a single value of the file may look like, by kind. Each function takes the text and says in one sentence what it
//! expected when that is not it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use regex::Regex;

/// What a function here gives: the value, or the sentence.
pub(crate) type Read<T> = Result<T, String>;

/// The text as it is.
pub(super) fn text(text: &str) -> Read<String> {
    Ok(text.to_owned())
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Read<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("expected true or false, found `{text}`")),
    }
}

/// A whole number, not negative.
pub(super) fn count(text: &str) -> Read<usize> {
    text.parse().map_err(|_| format!("expected a whole number, not negative, found `{text}`"))
}

/// Any number.
pub(super) fn number(text: &str) -> Read<f64> {
    let value = f64::from_str(text).ok().filter(|value| value.is_finite());
    value.ok_or_else(|| format!("expected a number, found `{text}`"))
}

/// Bytes: a number with an optional unit. `K`, `M`, `G`, `T`, with or without `i`, `B` or `iB` behind, in upper or lower
/// case, are powers of 1024: that is how Dragonfly reads both `200M` and `200Mi`.
pub(crate) fn size(text: &str) -> Read<u64> {
    let wrong = || format!("expected a size such as 50Gi, 200M or plain bytes, found `{text}`");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "ki" | "kib" => 1 << 10,
        "m" | "mb" | "mi" | "mib" => 1 << 20,
        "g" | "gb" | "gi" | "gib" => 1 << 30,
        "t" | "tb" | "ti" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let too_large = || format!("`{text}` is more than can be counted in 64 bits");
    if let Ok(whole) = u64::from_str(number) {
        return whole.checked_mul(factor).ok_or_else(too_large);
    }
    let bytes = f64::from_str(number).map_err(|_| wrong())? * factor as f64;
    // Below 2^53 bytes (8 PiB) a float holds every whole number.
    if bytes < (1u64 << 53) as f64 { Ok(bytes.round() as u64) } else { Err(too_large()) }
}

/// A length of time as Go writes it: numbers with units, like `30s`, `1m0s`, `1.5h`, `100ms`; or `0`.
pub(crate) fn duration(text: &str) -> Read<Duration> {
    let wrong = || format!("expected a length of time such as 30s, 6h or 1m0s, found `{text}`");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let part = f64::from_str(number).map_err(|_| wrong())? * seconds;
        let part = Duration::try_from_secs_f64(part).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

/// Like [`duration`], but not nothing.
pub(super) fn some_time(text: &str) -> Read<Duration> {
    match duration(text)? {
        Duration::ZERO => Err(format!("expected a length of time that is more than 0, found `{text}`")),
        time => Ok(time),
    }
}

/// A length of time where Dragonfly writes a plain number of seconds, such as `0.5`; with a unit it is taken too.
pub(super) fn seconds(text: &str) -> Read<Duration> {
    let plain = f64::from_str(text).ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    plain
        .or_else(|| duration(text).ok())
        .ok_or_else(|| format!("expected a number of seconds, found `{text}`"))
}

/// 0 to 100, with or without `%`.
pub(super) fn percent(text: &str) -> Read<f64> {
    let value =
        f64::from_str(text.trim().trim_end_matches('%')).ok().filter(|value| (0.0..=100.0).contains(value));
    value.ok_or_else(|| format!("expected a percentage from 0 to 100, found `{text}`"))
}

/// A port to listen on; 0 lets the system choose.
pub(super) fn port(text: &str) -> Read<u16> {
    text.parse().map_err(|_| format!("expected a port from 0 to 65535, found `{text}`"))
}

/// A port to connect to.
pub(super) fn remote_port(text: &str) -> Read<u16> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("expected a port from 1 to 65535, found `{text}`"))
}

/// An address, without a port.
pub(super) fn ip(text: &str) -> Read<IpAddr> {
    text.parse().map_err(|_| format!("expected an IP address, found `{text}`"))
}

/// A network, or an address, which is a network of one. IPv4 in IPv6's clothes (`::ffff:10.0.0.0/104`) is IPv4.
pub(super) fn network(text: &str) -> Read<IpNet> {
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let net = net.map(|net| match (net.addr().to_canonical(), net.prefix_len()) {
        (IpAddr::V4(v4), length @ 96..) if net.addr().is_ipv6() => {
            Ipv4Net::new(v4, length - 96).map_or(net, IpNet::from)
        }
        _ => net,
    });
    net.map(|net| net.trunc())
        .ok_or_else(|| format!("expected a network such as 10.0.0.0/24, found `{text}`"))
}

/// A path; a relative one is meant from the working directory.
pub(super) fn path(text: &str) -> Read<PathBuf> {
    std::path::absolute(text).map_err(|error| format!("`{text}` is no usable path: {error}"))
}

/// A regular expression, compiled.
pub(super) fn regex(text: &str) -> Read<Regex> {
    Regex::new(text).map_err(|error| match error {
        // The library's message is a picture of several lines; its last line is the reason.
        regex::Error::Syntax(picture) => {
            let reason = picture.lines().rev().find_map(|line| line.strip_prefix("error: "));
            format!("not a regular expression: {}", reason.unwrap_or("it cannot be parsed"))
        }
        regex::Error::CompiledTooBig(limit) => {
            format!("the regular expression is larger than {limit} bytes when compiled")
        }
        other => other.to_string().replace('\n', " "),
    })
}

/// `host:port`, an IPv6 address in brackets.
pub(super) fn host_port(text: &str) -> Read<(String, u16)> {
    let wrong = || format!("expected HOST:PORT, found `{text}`");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = host == bare
        && !bare.is_empty()
        && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let is_v6 = host.starts_with('[') && bare.parse::<std::net::Ipv6Addr>().is_ok();
    if is_name || is_v6 { Ok((host.to_owned(), port)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("50Gi", 50 << 30),
            ("1024Mi", 1 << 30),
            ("200M", 200 << 20),
            ("60m", 60 << 20),
            ("10 KB", 10 << 10),
            ("1.5GiB", 3 << 29),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "Gi", "-1", "5X", "1e3", "50 Gi Gi", "99999999T", "18446744073709551616", "."] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000),
            ("6h", 6 * 3_600_000),
            ("1m0s", 60_000),
            ("1h2m3.5s", 3_723_500),
            ("100ms", 100),
            ("1.5h", 5_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "-5s", "5 s", "5d", "1.2.3s", "9e99h", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(some_time("0s").is_err());
    }

    #[test]
    fn plain_numbers_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("3"), Ok(Duration::from_secs(3)));
        assert_eq!(seconds("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "-1", "NaN", "inf", "1x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(percent("80"), Ok(80.0));
        assert_eq!(percent("0.6"), Ok(0.6));
        assert_eq!(percent("80%"), Ok(80.0));
        for text in ["", "101", "-1", "NaN", "many"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_regular_expression_that_is_wrong_says_why_on_one_line() {
        let why = regex("blobs/(sha256").unwrap_err();
        assert_eq!(why, "not a regular expression: unclosed group");
        let why = regex("(?:a{1000}){1000}").unwrap_err();
        assert!(why.contains("larger than") && !why.contains('\n'), "{why}");
        assert!(regex("(?=x)").unwrap_err().contains("look-around"));
    }

    #[test]
    fn hosts_with_ports() {
        for text in ["10.0.0.1:8002", "scheduler:1", "a.b-c_d.example:65535", "[::1]:8002"] {
            assert!(host_port(text).is_ok(), "{text}");
        }
        for text in ["", "scheduler", ":8002", "h:0", "h:65536", "::1:8002", "http://h:1", "a b:1", "[zz]:1"]
        {
            assert!(host_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert!(ip("10.0.0.1").is_ok() && ip("::1").is_ok());
        assert!(ip("10.0.0.1:80").is_err() && ip("localhost").is_err());
    }

    #[test]
    fn the_rest() {
        assert_eq!(boolean("True"), Ok(true));
        assert!(boolean("yes").is_err());
        assert!(count("-1").is_err() && count("3") == Ok(3));
        assert!(number("-1").is_ok() && number("nan").is_err());
        assert!(port("65536").is_err() && port("0") == Ok(0) && remote_port("0").is_err());
        assert!(path("a/b").unwrap().is_absolute() && path("").is_err());
    }
}
