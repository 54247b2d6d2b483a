//! [`script`]: the script that sets up a host, with the address of this proxy in it.
//!
//! It is docker/trust-ca.sh itself, with words before those of its command line: so there is one script, whichever way it
//! gets to a host. All of it is functions, up to the last line: what is piped into a shell and ends early does nothing.

use super::address::Address;

const SCRIPT: &str = include_str!("../../../docker/trust-ca.sh");

/// How it begins to do anything.
const LAST_LINE: &str = "main \"$@\"\n";

/// dockerd uses the proxy, and is restarted: what docker-registry-proxy's script does.
pub(super) const FOR_DOCKERD: &str = " --use docker --restart";

/// The script for a host that reaches us at `address`. `words`: what else stands on its command line.
pub(super) fn script(address: &Address, words: &str) -> String {
    let functions = SCRIPT.strip_suffix(LAST_LINE).unwrap_or(SCRIPT);
    // One word: an address holds no quote.
    format!("{functions}main --proxy '{address}'{words} \"$@\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn it_is_the_script_of_the_repository_with_words_of_its_own() {
        let request = Request::get("/setup.sh").header("host", "proxy.example:65001").body(()).unwrap();
        let text = script(&Address::of(&request, false).unwrap(), FOR_DOCKERD);
        let (functions, last) = text.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(last, "main --proxy 'http://proxy.example:65001' --use docker --restart \"$@\"");
        assert_eq!(format!("{functions}\n{LAST_LINE}"), SCRIPT);
        assert_eq!(SCRIPT.matches(LAST_LINE).count(), 1);
    }
}
