//! `darter get` with a daemon and an origin on loopback, as people and scripts use it.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "tests")]

use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, binary, loopback_config, strip_colours};
use darter_e2e::origin::{Origin, Page};
use darter_e2e::poll;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// The user nobody of most systems.
const NOBODY: u32 = 65534;

/// A daemon whose socket every user reaches, an origin, and a folder for files.
struct Lab {
    origin: Origin,
    // Ends before its folder goes.
    _daemon: Daemon,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path());
        let socket = folder.path().join("run/download.sock");
        let config = loopback_config(folder.path(), "").replace(
            "download: {",
            &format!("download: {{ downloadGRPC: {{ unixListen: {{ socket: {} }} }},", socket.display()),
        ) + "storage: { diskGCThresholdPercent: 100 }\n";
        let daemon = Daemon::start("daemon", folder.path(), &config).unwrap();
        // Where nobody can run it.
        // Linked where that can be: a copy that is still open for writing when another test starts a process cannot be run.
        let command = folder.path().join("darter");
        fs::hard_link(binary(), &command).or_else(|_| fs::copy(binary(), &command).map(drop)).unwrap();
        Self { origin: Origin::start(None).unwrap(), folder, _daemon: daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.origin.address())
    }

    /// `darter get` of a path, into a file of this name.
    fn command(&self, path: &str, name: &str, more: &[&str]) -> Command {
        let mut command = Command::new(self.path("darter"));
        command.arg("get").arg(self.url(path)).arg("-O").arg(self.path(name));
        command.arg("--socket").arg(self.path("run/download.sock")).args(more);
        command
    }

    fn get(&self, path: &str, name: &str, more: &[&str]) -> Output {
        self.command(path, name, more).output().unwrap()
    }

    /// The same, which must go well; what it says as JSON.
    fn ok(&self, path: &str, name: &str, more: &[&str]) -> Value {
        let ended = self.get(path, name, &[&["--json"], more].concat());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        serde_json::from_slice(&ended.stdout).unwrap()
    }

    /// Asks again until it comes from this host's disk: whoever got the last byte may be ahead of the flush.
    fn stored(&self, path: &str, name: &str, more: &[&str]) {
        let ask = || Some(self.ok(path, name, more)).filter(|said| said["from"] == "disk");
        poll::until("it to be stored", LIMIT, ask).unwrap();
    }

    fn digest(&self, name: &str) -> String {
        digest_of(fs::File::open(self.path(name)).unwrap()).unwrap()
    }

    /// That it ended with this code and one sentence with these words, and left nothing.
    fn failed(&self, ended: &Output, name: &str, code: i32, words: &str) {
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(stderr.contains(words) && stderr.lines().count() == 1, "{stderr}");
        let left = fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().file_name());
        let left: Vec<_> = left.filter(|file| file.to_string_lossy().starts_with(name)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn open(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn what_was_downloaded_once_comes_from_this_hosts_disk() {
    let lab = Lab::new();
    let content = Content::new(1, 9 * MIB + 7);
    lab.origin.put("/model", Page::content(content));
    let first = lab.ok("/model", "a", &[]);
    assert_eq!((&first["bytes"], &first["from"]), (&(9 * MIB + 7).into(), &"cluster".into()), "{first}");
    lab.stored("/model", "b", &[]);
    assert_eq!((lab.digest("a"), lab.digest("b")), (content.digest(), content.digest()));
    assert_eq!(lab.origin.sent("/model"), 9 * MIB + 7, "one copy from the origin");

    // What has changed at its origin is other content, once what the origin said is half a minute old: another tag asks anew.
    let changed = Content::new(2, MIB);
    lab.origin.put("/model", Page::content(changed));
    lab.ok("/model", "a", &["--tag", "v2"]);
    assert_eq!(lab.digest("a"), changed.digest(), "a file that is there is replaced");
    lab.stored("/model", "a", &["--tag", "v2"]);
    let said = lab.get("/model", "a", &["--tag", "v2"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("from this host's disk"), "{said:?}");
    let quiet = lab.get("/model", "a", &["--quiet"]);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{quiet:?}");
}

#[test]
fn what_says_only_its_length_is_never_taken_for_the_same() {
    let lab = Lab::new();
    let page = |body: &str| Page::Fixed { status: 200, headers: Vec::new(), body: body.to_owned() };
    for body in ["1.2.3", "1.2.4"] {
        lab.origin.put("/latest.txt", page(body));
        lab.ok("/latest.txt", "latest", &[]);
        assert_eq!(fs::read_to_string(lab.path("latest")).unwrap(), body);
    }
}

#[test]
fn content_of_another_digest_leaves_no_file() {
    let lab = Lab::new();
    let content = Content::new(3, 5 * MIB);
    lab.origin.put("/f", Page::content(content));
    let wrong = format!("sha256:{}", "ab".repeat(32));
    let ended = lab.get("/f", "wrong", &["--digest", &wrong]);
    lab.failed(&ended, "wrong", 65, &wrong);
    lab.ok("/f", "right", &["--digest", &content.digest()]);
    assert_eq!(lab.digest("right"), content.digest());
}

#[test]
fn a_killed_command_is_gone_on_with() {
    let lab = Lab::new();
    let content = Content::new(4, 24 * MIB);
    lab.origin.put("/f", Page::Content { content, rate: Some(8 * MIB), ranges: true });
    let digest = content.digest();
    let mut first = lab.command("/f", "f", &["--digest", &digest, "--quiet"]).spawn().unwrap();
    let part = lab.path("f.part");
    let there = || fs::metadata(&part).ok().map(|meta| meta.len()).filter(|length| *length > 2 * MIB);
    poll::until("a part of the file", LIMIT, there).unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(!lab.path("f").exists());
    let have = fs::metadata(&part).unwrap().len();
    let done = lab.ok("/f", "f", &["--digest", &digest]);
    assert_eq!((&done["resumed"], &done["bytes"]), (&have.into(), &(24 * MIB).into()), "{done}");
    assert_eq!(lab.digest("f"), digest);
    assert!(!part.exists() && !lab.path("f.part.json").exists());
}

#[test]
fn a_part_of_content_that_has_changed_is_not_gone_on_with() {
    let lab = Lab::new();
    let (before, after) = (Content::new(5, 8 * MIB), Content::new(6, 8 * MIB));
    lab.origin.put("/f", Page::Content { content: before, rate: Some(4 * MIB), ranges: true });
    let mut first = lab.command("/f", "f", &["-H", "Authorization: x", "--quiet"]).spawn().unwrap();
    let part = lab.path("f.part");
    let there = || fs::metadata(&part).ok().filter(|meta| meta.len() > MIB);
    poll::until("a part of the file", LIMIT, there).unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    // The origin of the lab knows no If-Range, as some others: what it sends as the rest says another ETag.
    lab.origin.put("/f", Page::Content { content: after, rate: None, ranges: true });
    lab.ok("/f", "f", &["-H", "Authorization: x"]);
    assert_eq!(lab.digest("f"), after.digest());
}

#[test]
fn a_part_is_gone_on_with_by_a_strong_validator_or_a_digest_alone() {
    let lab = Lab::new();
    let (before, after) = (Content::new(12, 8 * MIB), Content::new(13, 8 * MIB));
    let part = lab.path("f.part");
    let begin = |content: Content, more: &[&str]| {
        lab.origin.put("/f", Page::Dated { content, rate: Some(4 * MIB) });
        let more = [&["-H", "Authorization: x", "--quiet"], more].concat();
        let mut first = lab.command("/f", "f", &more).spawn().unwrap();
        let there = || fs::metadata(&part).ok().filter(|meta| meta.len() > MIB);
        poll::until("a part of the file", LIMIT, there).unwrap();
        first.kill().unwrap();
        first.wait().unwrap();
    };
    // What changed within a second has the same date.
    begin(before, &[]);
    lab.origin.put("/f", Page::Dated { content: after, rate: None });
    let done = lab.ok("/f", "f", &["-H", "Authorization: x"]);
    assert_eq!((&done["resumed"], lab.digest("f")), (&0.into(), after.digest()), "{done}");

    let digest = after.digest();
    begin(after, &["--digest", &digest]);
    lab.origin.put("/f", Page::Dated { content: after, rate: None });
    let done = lab.ok("/f", "f", &["-H", "Authorization: x", "--digest", &digest]);
    assert!(done["resumed"].as_u64() > Some(0) && lab.digest("f") == digest, "{done}");
}

#[test]
fn no_secret_of_a_url_is_left_beside_the_file_or_said_and_the_access_log_has_a_line() {
    let lab = Lab::new();
    let content = Content::new(14, 8 * MIB);
    lab.origin.put("/f", Page::Content { content, rate: Some(4 * MIB), ranges: true });
    let signed = "/f?X-Amz-Signature=very-secret";
    let mut first = lab.command(signed, "f", &["--quiet"]).spawn().unwrap();
    let note = lab.path("f.part.json");
    let noted = || {
        fs::read_to_string(&note)
            .ok()
            .filter(|_| fs::metadata(lab.path("f.part")).is_ok_and(|it| it.len() > 0))
    };
    let noted = poll::until("a note of the part", LIMIT, noted).unwrap();
    assert!(!noted.contains("secret") && !noted.contains("127.0.0.1"), "{noted}");
    first.kill().unwrap();
    first.wait().unwrap();
    let done = lab.ok(signed, "f", &[]);
    assert!(done["resumed"].as_u64() > Some(0), "it knows its part all the same: {done}");

    let missing = lab.get("/nothing?token=very-secret", "x", &[]);
    lab.failed(&missing, "x", 66, "404");
    assert!(!String::from_utf8_lossy(&missing.stderr).contains("secret"));
    let uid = format!("client=uid:{}", rustix::process::geteuid().as_raw());
    let lines = || {
        let log = strip_colours(&fs::read_to_string(lab.path("daemon.log")).ok()?);
        let of_command = |line: &&str| line.contains("way=command") && line.contains(&uid);
        let lines: Vec<String> = log.lines().filter(of_command).map(str::to_owned).collect();
        let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        let all = has(&["path=\"/f?X-Amz-Signature=*\"", "status=206", "outcome="])
            && has(&["path=\"/f?X-Amz-Signature=*\"", "cut_by=client"])
            && has(&["path=\"/nothing?token=*\"", "status=404"]);
        all.then_some(log)
    };
    let log = poll::until("the lines of the access log", LIMIT, lines).unwrap();
    assert!(!log.contains("secret"));
}

#[test]
fn a_part_of_the_whole_is_asked_for_as_dfget_does() {
    let lab = Lab::new();
    let content = Content::new(7, 6 * MIB);
    lab.origin.put("/f", Page::content(content));
    lab.ok("/f", "whole", &["--limit", "1G"]);
    let whole = fs::read(lab.path("whole")).unwrap();
    for (range, expected) in [
        ("5-9", &whole[5..10]),
        ("6291450-", &whole[6_291_450..]),
        ("-4", &whole[whole.len() - 4..]),
        ("6291454-99999999", &whole[6_291_454..]),
    ] {
        lab.ok("/f", "part", &[&format!("--range={range}")]);
        assert_eq!(fs::read(lab.path("part")).unwrap(), expected, "{range}");
    }
    let outside = lab.get("/f", "outside", &["--range", "99999999-"]);
    lab.failed(&outside, "outside", 65, "range");

    fs::write(lab.path("sparse"), b"0123456789").unwrap();
    lab.ok("/f", "sparse", &["--range", "2-4", "--original-offset"]);
    let expected = [b"01", &whole[2..5], b"56789"].concat();
    assert_eq!(fs::read(lab.path("sparse")).unwrap(), expected);
}

#[test]
fn what_cannot_be_had_is_one_sentence_and_a_code() {
    let lab = Lab::new();
    lab.failed(&lab.get("/nothing", "x", &[]), "x", 66, "404");
    lab.origin.put("/secret", Page::Fixed { status: 401, headers: Vec::new(), body: "go away".to_owned() });
    lab.failed(&lab.get("/secret", "x", &[]), "x", 77, "401");
    let json = lab.get("/nothing", "x", &["--json"]);
    let said: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &said["code"]), (Some(66), &66.into()), "{said}");

    let nobody = Command::new(lab.path("darter"))
        .args(["get", "http://127.0.0.1:1/f", "--socket", "/nonexistent/darter.sock", "-O"])
        .arg(lab.path("x"))
        .output()
        .unwrap();
    lab.failed(&nobody, "x", 69, "no daemon runs here: nobody listens at /nonexistent/darter.sock");
}

#[test]
fn what_a_user_got_with_his_credential_another_gets_with_his_own_alone() {
    let lab = Lab::new();
    let content = Content::new(8, 5 * MIB);
    let (key, digest) = ("Authorization: Bearer of-alice", content.digest());
    lab.origin.put("/private", Page::Private { content, authorization: "Bearer of-alice".to_owned() });
    lab.ok("/private", "alice", &["-H", key, "--digest", &digest]);
    lab.stored("/private", "again", &["-H", key, "--digest", &digest]);

    let as_nobody = |name: &str, path: &str, more: &[&str]| {
        let mut command = lab.command(path, name, &[&["--digest", digest.as_str()], more].concat());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().unwrap()
    };
    lab.failed(&as_nobody("bob", "/private", &[]), "bob", 77, "401");
    lab.failed(&as_nobody("bob", "/private", &["-H", "Authorization: Bearer of-bob"]), "bob", 77, "401");
    // Who knows the digest gets nothing by naming it at an address of his own, which says the right length.
    lab.origin.put("/of-bob", Page::content(Content::new(9, 5 * MIB)));
    lab.failed(&as_nobody("bob", "/of-bob", &[]), "bob", 65, &digest);
    let carol = as_nobody("carol", "/private", &["-H", key]);
    assert_eq!(carol.status.code(), Some(0), "{carol:?}");
    assert_eq!(lab.digest("carol"), digest);
    assert_eq!(lab.origin.sent("/private"), 5 * MIB, "one copy for both");

    // Without a digest it is for whoever asks, and for him alone.
    let alone = lab.ok("/private", "alone", &["-H", key]);
    assert_eq!(alone["from"], "origin", "{alone}");
}

#[test]
fn the_files_of_an_index_are_downloaded_with_its_folders() {
    let lab = Lab::new();
    let page = |body: &str| Page::Fixed { status: 200, headers: Vec::new(), body: body.to_owned() };
    lab.origin.put(
        "/pub/",
        page(
            "<a href=\"../\">../</a><a href=\"?C=M\">x</a><a href=\"a%20b.txt\">a</a><a href=\"sub/\">s</a>\
              <a href=\"/etc/passwd\">p</a><a href=\"skip.iso\">k</a>",
        ),
    );
    lab.origin.put("/pub/sub/", page("<a href='c.bin'>c</a><a href='..%2f..%2fevil'>e</a>"));
    lab.origin.put("/pub/a%20b.txt", page("of a"));
    let content = Content::new(10, 2 * MIB);
    lab.origin.put("/pub/sub/c.bin", Page::content(content));
    let listed = lab.get("/pub/", "tree", &["--recursive", "--list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names: Vec<_> = listed.lines().map(|line| line.rsplit_once('/').unwrap().1).collect();
    assert_eq!(names, ["a%20b.txt", "skip.iso", "c.bin"]);
    assert!(!lab.path("tree").exists());

    let ended = lab.get("/pub", "tree", &["-r", "--reject-regex", "[.]iso$", "--json"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stdout).lines().count(), 2, "{ended:?}");
    assert_eq!(fs::read(lab.path("tree/a b.txt")).unwrap(), b"of a");
    assert_eq!(lab.digest("tree/sub/c.bin"), content.digest());
    assert!(!lab.path("evil").exists() && !lab.path("tree/evil").exists());

    // All others are downloaded when one is missing, and the command does not end well.
    let ended = lab.get("/pub/", "most", &["-r", "--level", "0"]);
    assert_eq!(ended.status.code(), Some(66), "{ended:?}");
    assert!(lab.path("most/a b.txt").exists() && !lab.path("most/sub").exists());
}

#[test]
fn the_binary_is_dfget_by_that_name() {
    let lab = Lab::new();
    let content = Content::new(11, MIB);
    lab.origin.put("/f", Page::content(content));
    symlink(lab.path("darter"), lab.path("dfget")).unwrap();
    let ended = Command::new(lab.path("dfget"))
        .args([
            "-u",
            &lab.url("/f"),
            "--header",
            "X-Of: a test",
            "-f",
            "a&b",
            "--timeout",
            "60s",
            "--console",
            "-O",
        ])
        .arg(lab.path("f"))
        .arg("--endpoint")
        .arg(lab.path("run/download.sock"))
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let warned = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(warned.starts_with("warning: --console has no effect"), "{warned}");
    lab.failed(&lab.get("/f", "x", &["--disable-back-source"]), "x", 64, "the scheduler says for all");
    assert_eq!(lab.digest("f"), content.digest());
    let asked = lab.origin.asked("/f");
    assert!(asked.iter().any(|asked| asked.header("x-of") == Some("a test")), "{asked:?}");
}
