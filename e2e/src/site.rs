//! [`Site`]: a web server for files, package repositories and git, over http and https, under several names.

use crate::ca::Ca;
use crate::net::{Host, Launch};
use crate::nginx::{Hit, Nginx, password_file};
use crate::poll::until;
use crate::process::{Process, run};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Plain files.
pub const FILES: &str = "files.example";
/// Git repositories, by git's own server program: those in `private/` ask for [`CREDENTIALS`].
pub const GIT: &str = "git.example";
/// Packages of apt.
pub const APT: &str = "apt.example";
/// Packages of dnf.
pub const RPM: &str = "rpm.example";
/// Wheels and their simple index.
pub const WHEELS: &str = "wheels.example";
/// Packages of node.
pub const NODE: &str = "npm.example";
/// Crates and their sparse index.
pub const CRATES: &str = "crates.example";
/// What all that lies in a `private/` folder asks for.
pub const CREDENTIALS: &str = "somebody:correct-horse";

/// How long the programs behind the server may take to start or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A running site.
pub struct Site {
    folder: PathBuf,
    ca: Ca,
    front: Nginx,
    _git: Process,
}

impl Site {
    /// The file in a package's folder that answers for the folder itself, as registries of node packages do.
    pub const PACKUMENT: &str = "packument.json";

    /// The names that its host must have.
    pub const NAMES: [&str; 7] = [FILES, GIT, APT, RPM, WHEELS, NODE, CRATES];

    /// Starts it on `host`, with nothing to serve yet.
    pub fn start(host: &Host) -> Result<Self> {
        let folder = host.new_folder("site")?;
        for name in Self::NAMES {
            std::fs::create_dir_all(folder.join("www").join(name))?;
        }
        let ca = Ca::new("site test authority")?;
        ca.write(&folder.join("ca.crt"))?;
        password_file(&[CREDENTIALS], &folder.join("users"))?;
        let git = start_git(host, &folder)?;
        let front = Nginx::start(host, &folder, &ca.issue(&Self::NAMES)?, &servers(&folder)?)?;
        Ok(Self { folder, ca, front, _git: git })
    }

    /// The authority that signed its certificate: a file.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The authority that signed its certificate.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// What is served under one of [`Self::NAMES`].
    pub fn www(&self, name: &str) -> PathBuf {
        self.folder.join("www").join(name)
    }

    /// All requests that have ended.
    pub fn log(&self) -> Result<Vec<Hit>> {
        self.front.log()
    }

    /// Fails unless exactly so many copies of each of these files left so far. A file is named by where it lies below
    /// [`Self::www`].
    pub fn check_copies(&self, name: &str, files: &[impl AsRef<Path>], copies: u64) -> Result<()> {
        ensure!(!files.is_empty(), "no files to look at");
        let log = self.log()?;
        for file in files {
            let path = file.as_ref();
            let size = std::fs::metadata(self.www(name).join(path)).context("no such file")?.len();
            let path = format!("/{}", path.display());
            let hits: Vec<&Hit> =
                log.iter().filter(|hit| hit.host == name && decoded(&hit.path) == path).collect();
            let sent: u64 = hits.iter().filter(|hit| hit.method == "GET").map(|hit| hit.bytes).sum();
            if sent != copies * size {
                let hits: Vec<String> = hits.iter().map(|hit| format!("{hit:?}")).collect();
                bail!(
                    "{sent} bytes of {size} of {name}{path} left, not {copies} copies:\n{}",
                    hits.join("\n")
                );
            }
        }
        Ok(())
    }
}

/// The path of a request target, percent-decoded: apt writes `%2b`, others `+`.
pub(crate) fn decoded(target: &str) -> String {
    let path = target.split('?').next().unwrap_or(target);
    let mut parts = path.split('%');
    let mut plain = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                plain.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                plain.push(b'%');
                plain.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// git's server program speaks CGI, and nginx does not.
fn start_git(host: &Host, folder: &Path) -> Result<Process> {
    let socket = folder.join("git.socket");
    let mut command = host.launch("fcgiwrap", &Launch { family: true, ..Launch::default() });
    command.args(["-c", "4", "-s"]).arg(format!("unix:{}", socket.display()));
    let process = Process::start("fcgiwrap", &mut command, &folder.join("fcgiwrap.log"))?;
    until("fcgiwrap's socket", LIMIT, || socket.exists().then_some(())).with_context(|| process.log())?;
    Ok(process)
}

fn servers(folder: &Path) -> Result<String> {
    let programs = run(std::process::Command::new("git").arg("--exec-path"), LIMIT)?.ok()?.stdout;
    Ok(format!(
        "types {{ text/html html; application/json json; }} default_type application/octet-stream;
         map $uri $realm {{ default off; '~/private/' private; }}
         server {{ listen 80; listen 443 ssl http2; server_name {names}; root {folder}/www/$host;
           auth_basic $realm; auth_basic_user_file {folder}/users;
           location / {{ try_files $uri $uri/index.html $uri/{packument} =404; }} }}
         server {{ listen 80; listen 443 ssl http2; server_name {GIT};
           auth_basic $realm; auth_basic_user_file {folder}/users;
           location / {{ fastcgi_pass unix:{folder}/git.socket; fastcgi_request_buffering on;
             fastcgi_param SCRIPT_FILENAME {programs}/git-http-backend;
             fastcgi_param GIT_PROJECT_ROOT {folder}/www/{GIT}; fastcgi_param GIT_HTTP_EXPORT_ALL 1;
             fastcgi_param REMOTE_USER somebody; fastcgi_param PATH_INFO $uri;
             fastcgi_param REQUEST_METHOD $request_method; fastcgi_param QUERY_STRING $query_string;
             fastcgi_param CONTENT_TYPE $content_type; fastcgi_param CONTENT_LENGTH $content_length;
             fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
             fastcgi_param GIT_PROTOCOL $http_git_protocol; }} }}\n",
        names = [FILES, APT, RPM, WHEELS, NODE, CRATES].join(" "),
        folder = folder.display(),
        programs = programs.trim(),
        packument = Site::PACKUMENT,
    ))
}
