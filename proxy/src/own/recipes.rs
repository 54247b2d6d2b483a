//! [`RECIPES`]: what to paste for each client. `{proxy}` is this proxy's URL.
//!
//! docs/clients.md says more of each; this is what people need who stand at a host and have nothing but a browser.

/// One client.
pub(super) struct Recipe {
    pub(super) client: &'static str,
    /// A sentence before the commands.
    pub(super) says: &'static str,
    /// Commands, as root where they begin with `sudo`.
    pub(super) commands: &'static str,
}

/// The first makes the others' certificate errors go away.
pub(super) const RECIPES: &[Recipe] = &[
    Recipe {
        client: "This host",
        says: "Trusts the CA: Debian, Ubuntu, Alpine, RHEL, Fedora, SUSE, Arch. `sh -s -- --help` instead of `sh` says what else it \
               can; `--undo` takes it back. Restart programs that run.",
        commands: "curl -sSf --noproxy '*' {proxy}/setup.sh | sudo sh",
    },
    Recipe {
        client: "dockerd",
        says: "Trusts the CA, has dockerd use the proxy for all registries, and restarts it.",
        commands: "curl -sSf --noproxy '*' {proxy}/setup/systemd | sudo sh",
    },
    Recipe {
        client: "dockerd, docker.io alone, without a CA",
        says: "In /etc/docker/daemon.json, and then sudo systemctl restart docker:",
        commands: "{\"registry-mirrors\": [\"{proxy}\"]}",
    },
    Recipe {
        client: "containerd",
        says: "Any registry, without a CA. Needs config_path = \"/etc/containerd/certs.d\" in the CRI registry section of \
               /etc/containerd/config.toml.",
        commands: "sudo mkdir -p /etc/containerd/certs.d/_default\n\
                   printf '[host.\"%s\"]\\ncapabilities = [\"pull\", \"resolve\"]\\n' '{proxy}' | \
                   sudo tee /etc/containerd/certs.d/_default/hosts.toml",
    },
    Recipe {
        client: "podman, skopeo, buildah",
        says: "After \"This host\".",
        commands: "export HTTPS_PROXY={proxy}\nskopeo inspect docker://docker.io/library/alpine",
    },
    Recipe {
        client: "curl",
        says: "By the file, without trusting it anywhere else. Plain http needs --proxy alone.",
        commands: "curl -sSf --noproxy '*' -o darter-ca.crt {proxy}/ca.crt\n\
                   curl --proxy {proxy} --cacert darter-ca.crt https://registry-1.docker.io/v2/",
    },
    Recipe {
        client: "apt",
        says: "Sources with https:// only after \"This host\".",
        commands: "printf 'Acquire::http::Proxy \"%s\";\\nAcquire::https::Proxy \"%s\";\\n' '{proxy}' '{proxy}' | \
                   sudo tee /etc/apt/apt.conf.d/01darter\n\
                   sudo apt-get update",
    },
    Recipe {
        client: "dnf",
        says: "After \"This host\".",
        commands: "echo 'proxy={proxy}' | sudo tee -a /etc/dnf/dnf.conf\nsudo dnf makecache",
    },
    Recipe {
        client: "pip",
        says: "After \"This host\". On RHEL and Fedora the bundle is /etc/pki/tls/certs/ca-bundle.crt, here and below.",
        commands: "pip config set global.proxy {proxy}\n\
                   pip config set global.cert /etc/ssl/certs/ca-certificates.crt",
    },
    Recipe {
        client: "npm",
        says: "After \"This host\".",
        commands: "npm config set proxy {proxy}\n\
                   npm config set https-proxy {proxy}\n\
                   npm config set cafile /etc/ssl/certs/ca-certificates.crt",
    },
    Recipe {
        client: "cargo",
        says: "After \"This host\".",
        commands: "export CARGO_HTTP_PROXY={proxy} CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt\ncargo fetch",
    },
    Recipe {
        client: "git",
        says: "After \"This host\".",
        commands: "git config --global http.proxy {proxy}\n\
                   git config --global http.sslCAInfo /etc/ssl/certs/ca-certificates.crt",
    },
    Recipe {
        client: "Anything else",
        says: "After \"This host\"; then restart it.",
        commands: "export HTTP_PROXY={proxy} HTTPS_PROXY={proxy} http_proxy={proxy} https_proxy={proxy}",
    },
];
