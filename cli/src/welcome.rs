//! What `darter up` prints: where everything is, and commands to try that work when they are pasted.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

/// What there is to say.
pub(crate) struct Welcome<'a> {
    /// The addresses by which programs on this machine reach the listeners.
    pub(crate) proxy: SocketAddr,
    pub(crate) scheduler: SocketAddr,
    pub(crate) pieces: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) data: &'a Path,
    /// Our CA's certificate.
    pub(crate) ca: &'a Path,
    /// As openssl prints it.
    pub(crate) fingerprint: &'a str,
    /// Whether this user may set up the machine's clients without sudo.
    pub(crate) root: bool,
}

impl fmt::Display for Welcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proxy, scheduler, pieces, health, fingerprint, .. } = self;
        let ca = quoted(self.ca);
        writeln!(f, "Darter is up.\n")?;
        writeln!(f, "  proxy        http://{proxy}")?;
        writeln!(f, "  scheduler    {scheduler}")?;
        writeln!(f, "  pieces       {pieces}")?;
        writeln!(f, "  health       http://{health}/healthy, metrics at http://{health}/metrics")?;
        writeln!(f, "  content      {}", self.data.display())?;
        writeln!(f, "  CA           {}", self.ca.display())?;
        writeln!(f, "  fingerprint  SHA-256 {fingerprint}")?;
        writeln!(f, "\nIs it healthy? Which CA is it?\n")?;
        writeln!(f, "    curl http://{health}/healthy")?;
        writeln!(f, "    curl -o darter-ca.crt http://{proxy}/ca.crt")?;
        writeln!(f, "\nAsk a registry through it; the CA is what makes HTTPS visible to it:\n")?;
        writeln!(f, "    curl --proxy http://{proxy} --cacert {ca} https://registry-1.docker.io/v2/")?;
        writeln!(f, "\nLet dockerd on this machine pull through it (Debian, Ubuntu):\n")?;
        for line in dockerd(*proxy, &ca) {
            writeln!(f, "    {}", if self.root { line } else { format!("sudo sh -c {}", quote(&line)) })?;
        }
        write!(f, "\nStop it with Ctrl-C.")
    }
}

/// The CA into the system's store, the proxy into dockerd's environment, and a restart that reads both.
fn dockerd(proxy: SocketAddr, ca: &str) -> [String; 3] {
    let drop_in = "/etc/systemd/system/docker.service.d";
    let environment = format!("Environment=HTTP_PROXY=http://{proxy} HTTPS_PROXY=http://{proxy}");
    [
        format!("cp {ca} /usr/local/share/ca-certificates/darter.crt && update-ca-certificates"),
        format!("mkdir -p {drop_in} && printf '[Service]\\n{environment}\\n' > {drop_in}/darter.conf"),
        "systemctl daemon-reload && systemctl restart docker".to_owned(),
    ]
}

fn quoted(path: &Path) -> String {
    quote(&path.display().to_string())
}

/// As one word of a shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(ca: &Path, root: bool) -> String {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (proxy, scheduler, pieces, health) = (at(1), at(2), at(3), at(4));
        let (data, fingerprint) = (Path::new("/d"), "AB:CD");
        Welcome { proxy, scheduler, pieces, health, data, ca, fingerprint, root }.to_string()
    }

    #[test]
    fn it_names_what_was_bound_and_what_was_made() {
        let text = welcome(Path::new("/w/ca.crt"), true);
        for words in [
            "http://127.0.0.1:1\n",
            "127.0.0.1:2\n",
            "127.0.0.1:3\n",
            "127.0.0.1:4/healthy",
            "AB:CD",
            "/w/ca.crt",
            "/d\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn paths_are_one_word_of_the_shell() {
        assert_eq!(quote("/var/lib/darter/ca.crt"), "/var/lib/darter/ca.crt");
        assert_eq!(quote("/a b/it's"), r"'/a b/it'\''s'");
        let text = welcome(Path::new("/a b/ca.crt"), false);
        assert!(text.contains("--cacert '/a b/ca.crt' https"), "{text}");
        assert!(text.contains(r"sudo sh -c 'cp '\''/a b/ca.crt'\'' /usr"), "{text}");
    }

    #[test]
    fn every_command_is_one_that_a_shell_understands() {
        for root in [true, false] {
            let text = welcome(Path::new("/a b/ca.crt"), root);
            let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
            assert_eq!(commands.len(), 6);
            for command in commands {
                let checked = std::process::Command::new("sh").args(["-n", "-c", command]).status().unwrap();
                assert!(checked.success(), "{command}");
            }
        }
    }
}
