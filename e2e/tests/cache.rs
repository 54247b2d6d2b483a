//! `darter cache` with daemons and a scheduler on loopback: what one host imports, others export, until it is deleted.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "tests")]

use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, Scheduler, binary, loopback_config};
use darter_e2e::poll;
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// The user nobody of most systems, and another that nobody is.
const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 65533;

/// A daemon, and a folder for files.
struct Node {
    // Ends before its folder goes.
    daemon: Daemon,
    folder: tempfile::TempDir,
}

impl Node {
    fn start(scheduler: Option<&Scheduler>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let socket = folder.path().join("run/download.sock");
        let mut config = loopback_config(folder.path(), "").replace(
            "download: {",
            &format!("download: {{ downloadGRPC: {{ unixListen: {{ socket: {} }} }},", socket.display()),
        ) + "storage: { diskGCThresholdPercent: 100 }\n";
        if let Some(scheduler) = scheduler {
            config.push_str(&format!("scheduler: {{ netAddrs: [{{ addr: '{}' }}] }}\n", scheduler.address));
            config.push_str("security: { insecure: true }\n");
        }
        let daemon = Daemon::start("daemon", folder.path(), &config).unwrap();
        // Where nobody can run it.
        // Linked where that can be: a copy that is still open for writing when another test starts a process cannot be run.
        let command = folder.path().join("darter");
        fs::hard_link(binary(), &command).or_else(|_| fs::copy(binary(), &command).map(drop)).unwrap();
        Self { folder, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file with this content.
    fn file(&self, name: &str, content: Content) -> String {
        let path = self.path(name);
        std::io::copy(&mut content.reader(0), &mut fs::File::create(&path).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("darter"));
        command.arg("cache").args(args).arg("--socket").arg(self.path("run/download.sock"));
        command
    }

    fn cache(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The same, which must go well; what it says as JSON.
    fn ok(&self, args: &[&str]) -> Value {
        let ended = self.cache(&[args, &["--json"]].concat());
        assert_eq!(ended.status.code(), Some(0), "{args:?}: {ended:?}");
        serde_json::from_slice(&ended.stdout).unwrap()
    }

    fn by(&self, user: u32, args: &[&str]) -> Output {
        self.command(args).uid(user).gid(user).output().unwrap()
    }

    fn export(&self, id: &str, more: &[&str]) -> String {
        let output = self.path("exported");
        self.ok(&[&["export", id, "-O", output.to_str().unwrap()], more].concat());
        digest_of(fs::File::open(output).unwrap()).unwrap()
    }
}

fn failed(ended: &Output, code: i32, words: &str) {
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{ended:?}");
    assert!(stderr.contains(words) && stderr.lines().count() == 1, "{stderr}");
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn what_was_imported_is_found_exported_and_deleted() {
    let node = Node::start(None);
    let content = Content::new(1, 9 * MIB + 5);
    let file = node.file("model.bin", content);
    let imported = node.ok(&["import", &file]);
    assert_eq!((&imported["id"], number(&imported["bytes"])), (&"model.bin".into(), 9 * MIB + 5));
    assert_eq!(node.ok(&["import", &file])["unchanged"], true, "once more is the same");
    let is = node.ok(&["stat", "model.bin", "--local"]);
    assert_eq!((&is["here"], number(&is["bytes"])), (&true.into(), 9 * MIB + 5));
    // What happens to the file does not happen to what was imported.
    fs::write(&file, "something else").unwrap();
    assert_eq!(node.export("model.bin", &["--local"]), content.digest());
    failed(&node.cache(&["stat", "model.bin", "--tag", "v2"]), 66, "model.bin is not on this host");

    let other = node.file("other.bin", Content::new(2, 5 * MIB));
    node.ok(&["import", &other, "--cid", "model.bin"]);
    assert_eq!(node.export("model.bin", &[]), Content::new(2, 5 * MIB).digest(), "it takes the place");
    assert_eq!(node.ok(&["delete", "model.bin"])["here"], true);
    failed(&node.cache(&["stat", "model.bin"]), 66, "model.bin is not on this host");
    let gone = node.cache(&["export", "model.bin", "-O", node.path("gone").to_str().unwrap()]);
    failed(&gone, 66, "it is not on this host");
    assert!(!node.path("gone").exists() && !node.path("gone.part").exists());
    let left: Vec<_> = walk(&node.path("content/content"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_pinned_is_shown_and_unpinned_by_its_name_or_its_task() {
    let node = Node::start(None);
    let file = node.file("model.bin", Content::new(6, 3 * MIB));
    failed(&node.cache(&["pin", "model.bin"]), 66, "not all of it is on this host");
    assert_eq!(node.ok(&["import", &file, "--pin"])["pinned"], true);
    assert_eq!(node.ok(&["stat", "model.bin", "--local"])["pinned"], true);
    assert_eq!(node.ok(&["unpin", "model.bin"])["pinned"], false);
    failed(&node.cache(&["unpin", "model.bin"]), 66, "it is not pinned on this host");
    assert_eq!(node.ok(&["stat", "model.bin", "--local"])["pinned"], false);
    let files = walk(&node.path("content/content"));
    let task = files[0].file_name().unwrap().to_str().unwrap();
    let pinned = node.ok(&["pin", "--task", task]);
    assert_eq!((number(&pinned["pinnedTasks"]), number(&pinned["pinnedBytes"])), (1, 3 * MIB));
    assert_eq!(node.ok(&["stat", "model.bin", "--local"])["pinned"], true);
    failed(&node.by(NOBODY, &["unpin", "--task", task]), 77, "only root may name a task");
    assert_eq!(node.ok(&["delete", "model.bin"])["here"], true);
    failed(&node.cache(&["unpin", "--task", task]), 66, "it is not pinned on this host");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn what_cannot_be_imported_is_one_sentence() {
    let node = Node::start(None);
    failed(&node.cache(&["import", "/nonexistent/file"]), 66, "cannot read /nonexistent/file");
    failed(&node.cache(&["import", "/dev/zero"]), 64, "only a regular file can be imported");
    let pipe = node.path("pipe").to_str().unwrap().to_owned();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Nobody will ever write into it.
    failed(&node.cache(&["import", &pipe]), 64, "only a regular file can be imported");
    let folder = node.path("run");
    failed(&node.cache(&["import", folder.to_str().unwrap()]), 64, "only a regular file can be imported");
}

#[test]
fn one_user_does_not_take_the_socket_from_the_others() {
    let node = Node::start(None);
    let connect = || {
        let mut stream = UnixStream::connect(node.path("run/download.sock")).unwrap();
        // The beginning of HTTP/2, and SETTINGS without any.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        stream
    };
    // As many as one user may have; each has its place once it is answered.
    let held: Vec<UnixStream> = (0..256).map(|_| connect()).collect();
    held.iter().for_each(|mut stream| stream.read_exact(&mut [0; 9]).unwrap());
    failed(&node.cache(&["stat", "x"]), 69, "the daemon hung up");
    failed(&node.by(NOBODY, &["stat", "x"]), 66, "x is not on this host");
    drop(held);
    let again = || (node.cache(&["stat", "x"]).status.code() == Some(66)).then_some(());
    poll::until("places to be free again", LIMIT, again).unwrap();
}

#[test]
fn as_many_of_a_users_exports_run_at_once_as_he_starts() {
    const AT_ONCE: usize = 40;
    let node = Node::start(None);
    let content = Content::new(9, 3 * MIB);
    let file = node.file("many", content);
    for user in [0, NOBODY] {
        let ended = node.by(user, &["import", &file]);
        assert!(ended.status.success(), "{ended:?}");
        let folder = node.path(&format!("of {user}"));
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(user), Some(user)).unwrap();
        let start = |number: usize| {
            let output = folder.join(number.to_string());
            let mut command = node.command(&["export", "many", "-O", output.to_str().unwrap()]);
            (command.uid(user).gid(user).spawn().unwrap(), output)
        };
        for (mut export, output) in (0..AT_ONCE).map(start).collect::<Vec<_>>() {
            assert!(export.wait().unwrap().success());
            assert_eq!(digest_of(fs::File::open(output).unwrap()).unwrap(), content.digest());
        }
    }
}

#[test]
fn another_user_has_names_of_his_own() {
    let node = Node::start(None);
    let (of_nobody, of_somebody) = (Content::new(3, 2 * MIB), Content::new(4, 2 * MIB));
    let file = node.file("secret", of_nobody);
    assert_eq!(node.by(NOBODY, &["import", &file, "--id", "x"]).status.code(), Some(0));
    // A file that only root may read is not read for somebody else.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    failed(&node.by(NOBODY, &["import", &file, "--id", "y"]), 77, "cannot read");

    let output = node.path("stolen").to_str().unwrap().to_owned();
    let somebody = |args: &[&str]| node.by(SOMEBODY, args);
    failed(&somebody(&["stat", "x"]), 66, "x is not on this host");
    failed(&somebody(&["export", "x", "-O", &output]), 66, "it is not on this host");
    let owner = NOBODY.to_string();
    for args in [
        &["stat", "x", "--owner", &owner][..],
        &["export", "x", "--owner", &owner, "-O", &output],
        &["delete", "x", "--owner", &owner],
    ] {
        failed(&somebody(args), 77, "is for that user and root");
    }
    assert!(!Path::new(&output).exists());
    let own = node.file("own", of_somebody);
    assert_eq!(somebody(&["import", &own, "--id", "x"]).status.code(), Some(0));
    assert_eq!(somebody(&["delete", "x"]).status.code(), Some(0));
    assert_eq!(
        node.export("x", &["--owner", &owner]),
        of_nobody.digest(),
        "root may, and nobody's is untouched"
    );
    failed(&node.cache(&["stat", "x"]), 66, "x is not on this host");
}

#[test]
fn what_one_host_imports_others_export_and_whoever_deletes_it_deletes_it_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(folder.path(), 0).unwrap();
    let (first, second) = (Node::start(Some(&scheduler)), Node::start(Some(&scheduler)));
    let content = Content::new(5, 13 * MIB);
    let file = first.file("f", content);
    first.ok(&["import", &file]);
    poll::until("the scheduler to know both", LIMIT, || {
        second.cache(&["stat", "f"]).status.success().then_some(())
    })
    .unwrap();
    let is = second.ok(&["stat", "f"]);
    assert_eq!((&is["here"], number(&is["others"]), number(&is["bytes"])), (&false.into(), 1, 13 * MIB));
    failed(&second.cache(&["stat", "f", "--local"]), 66, "f is not on this host");
    assert_eq!(second.export("f", &[]), content.digest());
    let both = || Some(second.ok(&["stat", "f"])).filter(|is| is["here"] == true && is["others"] == 1);
    poll::until("both hosts to have it", LIMIT, both).unwrap();

    let deleted = second.ok(&["delete", "f", "--local"]);
    assert_eq!((&deleted["here"], number(&deleted["others"])), (&true.into(), 0));
    assert_eq!(first.ok(&["stat", "f", "--local"])["here"], true, "only there");
    assert_eq!(second.export("f", &[]), content.digest());
    poll::until("both hosts to have it again", LIMIT, both).unwrap();

    let deleted = second.ok(&["delete", "f"]);
    assert_eq!((&deleted["here"], number(&deleted["others"])), (&true.into(), 1));
    for node in [&first, &second] {
        poll::until("the content to be gone", LIMIT, || {
            (node.cache(&["stat", "f"]).status.code() == Some(66)).then_some(())
        })
        .unwrap();
        assert!(walk(&node.path("content/content")).is_empty());
    }
}

#[test]
fn other_bytes_by_a_name_take_the_place_on_every_host() {
    let folder = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(folder.path(), 0).unwrap();
    let nodes = [(); 3].map(|()| Node::start(Some(&scheduler)));
    let [first, second, third] = &nodes;
    wait_for(&nodes);
    let (before, after) = (Content::new(7, 9 * MIB), Content::new(8, 9 * MIB));
    first.ok(&["import", &first.file("f", before)]);
    assert_eq!(second.export("f", &[]), before.digest());
    let both = || Some(first.ok(&["stat", "f"])).filter(|is| is["others"] == 1);
    poll::until("both hosts to have it", LIMIT, both).unwrap();

    first.ok(&["import", &first.file("f", after)]);
    assert_eq!(third.export("f", &[]), after.digest());
    assert_eq!(second.export("f", &[]), after.digest(), "what it had is gone");
}

#[test]
fn as_many_hosts_hold_it_as_was_asked_for_or_the_command_says_how_many_do() {
    let folder = tempfile::tempdir().unwrap();
    let scheduler = Scheduler::start(folder.path(), 0).unwrap();
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::start(Some(&scheduler))).collect();
    wait_for(&nodes);
    let contents = [(1, 21 * MIB + 3), (2, 5)].map(|(seed, length)| Content::new(20 + seed, length));
    for (number, content) in contents.into_iter().enumerate() {
        let (id, file) = (format!("c{number}"), nodes[0].file("f", content));
        let said = nodes[0].ok(&["import", &file, "--id", &id, "--replicas", "3"]);
        assert_eq!(said["replicas"], 3, "{said}");
        for node in &nodes {
            assert_eq!(node.export(&id, &["--local"]), content.digest());
        }
        let again = nodes[0].ok(&["import", &file, "--id", &id, "--replicas", "3"]);
        assert_eq!((&again["replicas"], &again["unchanged"]), (&3.into(), &true.into()), "{again}");
    }

    let file = nodes[0].file("f", Content::new(30, MIB));
    let more = nodes[0].cache(&["import", &file, "--id", "more", "--replicas", "9", "--json"]);
    failed(&more, 75, "3 of 9 hosts hold more: no other host can take it");
    let said: Value = serde_json::from_slice(&more.stdout).unwrap();
    assert_eq!(said["replicas"], 3, "{said}");
    nodes.truncate(1);
    let gone =
        || (nodes[0].cache(&["stat", "more"]).status.success()).then(|| nodes[0].ok(&["stat", "more"]));
    poll::until("the others to be gone", LIMIT, || gone().filter(|is| is["others"] == 0)).unwrap();
    let alone = nodes[0].cache(&["import", &file, "--id", "alone", "--replicas", "2"]);
    failed(&alone, 75, "1 of 2 hosts hold alone: no other host can take it");
    let (node, _) = (Node::start(None), nodes);
    let file = node.file("f", Content::new(31, MIB));
    failed(
        &node.cache(&["import", &file, "--replicas", "2"]),
        75,
        "1 of 2 hosts hold f: no scheduler is configured",
    );
}

/// Until the scheduler knows all of them.
fn wait_for(nodes: &[Node]) {
    for node in nodes {
        let joined = || node.daemon.metric("darter_p2p_schedulers_up").ok().filter(|up| *up >= 1.0);
        poll::until("a daemon to join", LIMIT, joined).unwrap();
    }
}

#[test]
fn the_binary_is_dfcache_by_that_name() {
    let node = Node::start(None);
    symlink(node.path("darter"), node.path("dfcache")).unwrap();
    let file = node.file("f", Content::new(6, MIB));
    let output = node.path("out");
    for args in [
        &["import", "-i", "cid", "-t", "tag", "-I", &file][..],
        &["stat", "-i", "cid", "-t", "tag", "-l"],
        &["export", "-i", "cid", "-t", "tag", "-O", output.to_str().unwrap(), "-l", "--timeout", "60s"],
        &["delete", "-i", "cid", "-t", "tag", "--console"],
    ] {
        let mut command = Command::new(node.path("dfcache"));
        let ended = command.args(args).arg("--socket").arg(node.path("run/download.sock")).output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{args:?}: {ended:?}");
    }
    assert_eq!(digest_of(fs::File::open(output).unwrap()).unwrap(), Content::new(6, MIB).digest());
}
