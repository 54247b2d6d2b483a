//! `darter setup transparent`: the rules of the packet filter that turn connections to other hosts to a transparent listener.
//!
//! They stand in a table of their own, which is replaced as a whole: applying them twice changes nothing, and undoing them
//! leaves nothing behind. What the daemon itself sends is left out, by the mark that it puts on its connections to origins
//! ([`mark`]), or by the user that it runs as: otherwise its own requests would come back to it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

use crate::args::Transparent;
use crate::exit::{self, Failure};

/// The mark (SO_MARK) of connections to origins while there is a transparent listener. Only in the lowest byte, where
/// neither kube-proxy (0x4000, 0x8000) nor Cilium (0x0f00), Calico (0xffff0000), Istio (0x539) or Tailscale (0xff0000) look.
const MARK: u32 = 0xda;

/// How long the listener on this host may take to answer, and to be there at all: `ExecStartPost=` of the daemon's unit runs
/// this while the daemon still reads its configuration.
const PROBE: Duration = Duration::from_secs(10);

/// After how long it is asked again.
const PROBE_AGAIN: Duration = Duration::from_millis(50);

/// What removes the table, whether or not it is there.
const REMOVE: &str = "table inet darter\ndelete table inet darter\n";

/// The mark for connections to origins, if this process may set one. Without it the packet filter must know our user.
pub(crate) fn mark() -> Option<u32> {
    let allowed = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.set_mark(MARK));
    match allowed {
        Ok(()) => Some(MARK),
        Err(error) => {
            tracing::warn!(
                %error,
                "connections to origins cannot be marked (that takes CAP_NET_ADMIN or CAP_NET_RAW); so that the packet filter does not turn \
                 them back to us, give `darter setup transparent` the user of this process by --uid"
            );
            None
        }
    }
}

/// Prints, applies or removes the rules.
pub(crate) fn run(args: &Transparent) -> exit::Result {
    if args.undo {
        return nft(REMOVE);
    }
    let rules = rules(args)?;
    if !args.apply {
        exit::say(std::io::stdout(), rules.trim_end());
        return Ok(());
    }
    check_listener(args.to)?;
    nft(&rules)
}

/// Rules that lead nowhere would cut this host off.
fn check_listener(port: u16) -> exit::Result {
    let listener = SocketAddr::from(([127, 0, 0, 1], port));
    let connect = |left| TcpStream::connect_timeout(&listener, left).map(drop);
    within(PROBE, PROBE_AGAIN, connect).map_err(|error| {
        Failure::unavailable(format!(
            "nobody listens at {listener} ({error}): start a daemon with `listeners: [{{port: {port}, transparent: true}}]` first, \
             or name its port with --to"
        ))
    })
}

/// Tries again and again, until it works or all the time is over. `attempt` is told how much of it is left.
fn within<T, E>(
    time: Duration,
    pause: Duration,
    mut attempt: impl FnMut(Duration) -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + time;
    loop {
        let done = attempt(end.saturating_duration_since(Instant::now()).max(pause));
        if done.is_ok() || Instant::now() + pause >= end {
            return done;
        }
        std::thread::sleep(pause);
    }
}

/// Gives rules to nft, which takes all of them or none.
fn nft(rules: &str) -> exit::Result {
    let failed = |error: std::io::Error| {
        Failure::unavailable(format!("cannot run nft, which comes with the package nftables: {error}"))
    };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // One that ends early says why.
        let _ = input.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(Failure::unavailable(format!(
        "nft refused the rules; nothing has changed:\n{}",
        complaint.trim_end()
    )))
}

fn rules(args: &Transparent) -> exit::Result<String> {
    let ports = args.port.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let turn = format!("tcp dport {{ {ports} }} redirect to :{}", args.to);
    let family = if args.ipv6 { "" } else { "        meta nfproto != ipv4 accept\n" };
    let mut except = String::new();
    for (address, nets) in [("ip", nets(args, true)), ("ip6", nets(args, false))] {
        if !nets.is_empty() {
            let _ = writeln!(except, "        {address} daddr {{ {nets} }} accept");
        }
    }
    let mut own = format!("        meta mark {MARK:#x} accept\n");
    for user in &args.uid {
        let _ = writeln!(own, "        meta skuid {} accept", user_of(user)?);
    }
    Ok(format!(
        "# Turns connections to ports {ports} of other hosts to darter's transparent listener at port {to}.\n\
         # Applied by `darter setup transparent --apply`, removed by `darter setup transparent --undo`.\n\
         {REMOVE}\
         table inet darter {{\n\
         \x20   # What other hosts, virtual machines and containers send through this one.\n\
         \x20   chain prerouting {{\n\
         \x20       type nat hook prerouting priority dstnat; policy accept;\n\
         {family}\
         \x20       fib daddr type != unicast accept\n\
         {except}\
         \x20       {turn}\n\
         \x20   }}\n\
         \n\
         \x20   # What this host sends itself, but for the daemon.\n\
         \x20   chain output {{\n\
         \x20       type nat hook output priority -100; policy accept;\n\
         {family}\
         {own}\
         \x20       fib daddr type != unicast accept\n\
         {except}\
         \x20       {turn}\n\
         \x20   }}\n\
         }}\n",
        to = args.to,
    ))
}

fn nets(args: &Transparent, v4: bool) -> String {
    let nets = args.except.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4);
    nets.map(|net| net.trunc().to_string()).collect::<Vec<_>>().join(", ")
}

/// A user as nft takes it: a number as it is, a name in quotes.
fn user_of(text: &str) -> exit::Result<String> {
    if text.parse::<u32>().is_ok() {
        return Ok(text.to_owned());
    }
    // What useradd(8) takes, and what directory services make.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-@$".contains(&b);
    if text.is_empty() || text.starts_with('-') || !text.bytes().all(plain) {
        return Err(Failure::usage_because(format!("--uid: `{text}` is no name or number of a user")));
    }
    Ok(format!("\"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &[&str]) -> Transparent {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Transparent,
        }
        let line = std::iter::once(&"transparent").chain(line);
        <Line as clap::Parser>::try_parse_from(line).unwrap().args
    }

    #[test]
    fn the_rules_leave_out_the_daemon_and_this_host_itself() {
        let rules = rules(&args(&[])).unwrap();
        assert!(
            rules.contains("table inet darter\ndelete table inet darter\ntable inet darter {\n"),
            "{rules}"
        );
        for line in
            ["meta mark 0xda accept", "meta nfproto != ipv4 accept", "fib daddr type != unicast accept"]
        {
            let at = rules.rfind(line).unwrap_or_else(|| panic!("{line}: {rules}"));
            assert!(at < rules.rfind("redirect to").unwrap(), "{line} comes too late: {rules}");
        }
        assert_eq!(rules.matches("tcp dport { 80, 443 } redirect to :65010").count(), 2, "{rules}");
    }

    #[test]
    fn the_rules_say_what_was_asked_for() {
        let line = ["--port", "443,5000", "--to", "7", "--uid", "darter", "--uid", "998", "--ipv6"];
        let except = ["--except", "10.1.2.3/8", "--except", "fd00::/8"];
        let rules = rules(&args(&[&line[..], &except].concat())).unwrap();
        for part in [
            "tcp dport { 443, 5000 } redirect to :7",
            "meta skuid \"darter\" accept",
            "meta skuid 998 accept",
            "ip daddr { 10.0.0.0/8 } accept",
            "ip6 daddr { fd00::/8 } accept",
        ] {
            assert!(rules.contains(part), "{part}: {rules}");
        }
        assert!(!rules.contains("nfproto"), "{rules}");
    }

    #[test]
    fn a_listener_that_is_not_there_yet_is_waited_for() {
        let mut left = 3;
        let mut attempt = |_| {
            left -= 1;
            if left == 0 { Ok(()) } else { Err(left) }
        };
        assert_eq!(within(Duration::from_secs(3600), Duration::ZERO, &mut attempt), Ok(()));
        assert_eq!(within(Duration::ZERO, Duration::ZERO, |_| Err::<(), _>("nobody")), Err("nobody"));
    }

    #[test]
    fn no_user_adds_a_rule_of_its_own() {
        for user in ["", "a b", "a\" accept; drop", "-x", "a\nb"] {
            let failed = rules(&Transparent { uid: vec![user.to_owned()], ..args(&[]) }).unwrap_err();
            assert!(format!("{failed:?}").contains("code: 64"), "{user}: {failed:?}");
        }
    }
}
