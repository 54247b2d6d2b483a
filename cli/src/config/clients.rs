//! `proxy.clients` and `proxy.perClient`: who may use the proxy by its address, and how much of it.

use std::num::{NonZeroU32, NonZeroUsize};

use darter_proxy::{Clients, PerClient, Rate};

use super::section::Section;
use super::value::{self, Read};

pub(super) fn clients(section: &mut Section<'_>) -> Clients {
    Clients {
        allowed: section.values("clients", value::network).into_iter().map(|item| item.value).collect(),
        per_client: per_client(&mut section.section("perClient")),
    }
}

fn per_client(section: &mut Section<'_>) -> PerClient {
    let connections = section.value("connections", value::count).and_then(NonZeroUsize::new);
    let per_second = section.value("requestsPerSecond", number).flatten();
    let burst = section.value("burst", number).flatten();
    if burst.is_some() && per_second.is_none() {
        section.error("burst", "is how much of requestsPerSecond may come at once, and that is 0 or missing");
    }
    // A second's worth: it asks for no more than the number that the operator has written already.
    let requests = per_second.map(|per_second| Rate { per_second, burst: burst.unwrap_or(per_second) });
    PerClient { connections, requests }
}

/// 0 is none.
fn number(text: &str) -> Read<Option<NonZeroU32>> {
    let number = u32::try_from(value::count(text)?);
    number.map(NonZeroU32::new).map_err(|_| format!("`{text}` is more than can be counted in 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    fn rate(per_second: u32, burst: u32) -> Option<Rate> {
        Some(Rate { per_second: NonZeroU32::new(per_second)?, burst: NonZeroU32::new(burst)? })
    }

    #[test]
    fn nothing_said_is_everybody_without_a_limit() {
        for source in ["", "clients: []\nperClient: {connections: 0, requestsPerSecond: 0, burst: 0}"] {
            let (read, report) = top(source, clients);
            assert_eq!((read.allowed.len(), read.per_client, report.as_str()), (0, PerClient::default(), ""));
        }
    }

    #[test]
    fn a_client_is_a_network_or_an_address_and_a_burst_is_a_second_unless_it_is_said() {
        let source = "clients: [10.1.2.3/8, 192.0.2.1, 'fd00::1', '::ffff:10.0.0.0/104']\n\
                      perClient: {connections: 5, requestsPerSecond: 20}";
        let (read, report) = top(source, clients);
        let nets: Vec<String> = read.allowed.iter().map(ToString::to_string).collect();
        assert_eq!(
            (nets.join(" "), report),
            ("10.0.0.0/8 192.0.2.1/32 fd00::1/128 10.0.0.0/8".into(), "".into())
        );
        assert_eq!(read.per_client, PerClient { connections: NonZeroUsize::new(5), requests: rate(20, 20) });
        let (read, _) = top("perClient: {requestsPerSecond: 20, burst: 100}", clients);
        assert_eq!(read.per_client.requests, rate(20, 100));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let source =
            "clients: [10.0.0.0/33, somewhere]\nperClient: {requestsPerSecond: 5000000000, burst: 3}";
        let (_, report) = top(source, clients);
        assert_eq!(
            report,
            "f:1:11: clients[0]: expected a network such as 10.0.0.0/24, found `10.0.0.0/33`\n\
             f:1:24: clients[1]: expected a network such as 10.0.0.0/24, found `somewhere`\n\
             f:2:32: perClient.requestsPerSecond: `5000000000` is more than can be counted in 32 bits\n\
             f:2:51: perClient.burst: is how much of requestsPerSecond may come at once, and that is 0 or missing"
        );
    }
}
