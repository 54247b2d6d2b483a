//! `security`: whether the hosts of the cluster prove to each other who they are. They do, unless an operator says twice that
//! they need not where others reach them.

use std::path::PathBuf;

use super::section::Section;
use super::value;
use super::{Listen, listen};

/// How this node speaks with schedulers and other daemons.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Nobody is asked who he is, and nothing is encrypted.
    pub(crate) insecure: bool,
    /// Where the join token stands that is used when there is no certificate.
    pub(crate) join_token_file: Option<PathBuf>,
}

/// Reads the section. `pieces` is where other daemons reach this one.
pub(super) fn cluster(section: &mut Section<'_>, pieces: &Listen) -> Cluster {
    let issued = "schedulers always issue certificates, to hosts with a join token";
    section.unused("autoIssueCert", value::boolean, issued);
    for key in ["caCert", "cacert", "tlsPolicy", "certSpec"] {
        section.no_effect(key, issued);
    }
    let mutual =
        "every connection between hosts is verified by both sides, unless insecure: true says that none is";
    section.always("tlsVerify", true, value::boolean, mutual);
    let insecure = section.value("insecure", value::boolean).unwrap_or(false);
    let on_networks = section.value("insecureOnNetworks", value::boolean).unwrap_or(false);
    if insecure && !on_networks && !pieces.ip.is_loopback() {
        section.error(
            "insecure",
            format!(
                "refused: other daemons reach this one on {} (upload.tcpListen), and whoever reaches it could read all content and pass for any host: leave it out and join with a token (docs/cluster.md), or write insecureOnNetworks: true beside it",
                pieces.ip
            ),
        );
    }
    if on_networks && !insecure {
        section.warning("insecureOnNetworks", "has no effect: it belongs to insecure: true");
    }
    Cluster { insecure, join_token_file: section.filled("joinTokenFile", value::path) }
}

/// Reads `security` of a server that is secured with the whole cluster, or not.
pub(super) fn by_cluster(section: &mut Section<'_>) {
    let mut security = section.section("security");
    for key in ["insecure", "tlsVerify"] {
        security.value(key, value::boolean);
    }
    let reason = "daemons show each other certificates that the schedulers issue: see security";
    for key in ["cacert", "caCert", "cert", "key", "tlsConfig"] {
        security.no_effect(key, reason);
    }
}

/// Where pieces are served.
pub(super) fn pieces(section: &mut Section<'_>, port: u16) -> Listen {
    by_cluster(section);
    listen::tcp_listen(section, port)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use std::path::Path;

    fn errors(source: &str) -> String {
        parse(Path::new("f"), source).map_or_else(|report| report.to_string(), |_| String::new())
    }

    #[test]
    fn that_certificates_are_not_to_be_verified_has_no_effect_and_is_said() {
        let said = |source| parse(Path::new("f"), source).unwrap().report.to_string();
        let warned = said("security: {tlsVerify: false}");
        assert!(warned.contains("security.tlsVerify: has no effect: every connection"), "{warned}");
        assert_eq!(said("security: {tlsVerify: true}"), "");
    }

    #[test]
    fn what_is_not_secured_must_be_said_twice_where_others_reach_it() {
        assert!(errors("security: {insecure: true}").starts_with("f:1:22: security.insecure: refused: "));
        for ok in [
            "",
            "security: {insecure: false}",
            "security: {insecure: true, insecureOnNetworks: true}",
            "security: {insecure: true}\nupload: {tcpListen: {listen: 127.0.0.1}}",
            "security: {insecure: true}\nupload: {tcpListen: {listen: '::1'}}",
        ] {
            assert_eq!(errors(ok), "", "{ok}");
        }
        let config = |source| parse(Path::new("f"), source).unwrap().config;
        assert!(!config("").cluster.insecure, "nothing said is not insecure");
        assert!(!config("upload: {security: {insecure: true}}").cluster.insecure, "Dragonfly's shipped file");
    }
}
