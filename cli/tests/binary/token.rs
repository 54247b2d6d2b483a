//! `darter token`, `darter expel`, and what is refused without either.

use crate::process::darter;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn a_token_is_shown_once_listed_without_its_secret_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| darter(&[args, &["--data-dir", dir.path().to_str().unwrap()]].concat());
    assert_eq!(run(&["token", "list"]).code, 74, "there is no CA, and none is made by looking");
    let made = run(&["token", "create", "--uses", "3", "--seed", "--ttl", "2d"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let token = made.stdout.trim();
    let [form, id, secret, _ca] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(form, "darter1");
    let key = std::fs::metadata(dir.path().join("cluster/ca.key")).unwrap().permissions().mode();
    assert_eq!(key & 0o777, 0o600);
    let listed = run(&["token", "list"]).stdout;
    assert!(listed.contains(id) && listed.contains("for 3 nodes, seeds"), "{listed}");
    assert!(!listed.contains(secret));
    assert_eq!(run(&["token", "revoke", token]).code, 0);
    assert_eq!(run(&["token", "revoke", id]).code, 66);
    assert!(!run(&["token", "list"]).stdout.contains(id));
}

#[test]
fn a_node_is_expelled_by_its_id_and_a_name_that_nobody_has_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| darter(&[args, &["--data-dir", dir.path().to_str().unwrap()]].concat());
    assert_eq!(run(&["token", "create"]).code, 0);
    let ended = run(&["expel", "node7"]);
    assert_eq!((ended.code, ended.stderr.lines().count()), (66, 1), "{}", ended.stderr);
    let id = format!("node7-{}", "ab".repeat(16));
    let ended = run(&["expel", &id]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.starts_with(&format!("{id} is expelled")));
    assert!(dir.path().join("cluster/expelled.pem").exists());
}

#[test]
fn a_scheduler_is_insecure_where_others_reach_it_only_when_that_is_said_twice() {
    let listen = ["scheduler", "--listen", "0.0.0.0:0", "--health-listen", "127.0.0.1:0", "--insecure"];
    let ended = darter(&listen);
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("--insecure is refused on 0.0.0.0:0"), "{}", ended.stderr);
}

#[test]
fn a_node_of_a_cluster_without_a_certificate_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("darter.yaml");
    let local = "tcpListen: { listen: 127.0.0.1, port: 0 }";
    let config = format!(
        "workHome: {}\nscheduler: {{ netAddrs: [{{ addr: 'localhost:1' }}] }}\nupload: {{ {local} }}\nhealth: {{ {local} }}\nproxy: {{ {local} }}\n",
        dir.path().display()
    );
    std::fs::write(&file, config).unwrap();
    let ended = darter(&["daemon", "--config", file.to_str().unwrap()]);
    assert_eq!(ended.code, 78);
    let last = ended.stderr.lines().last().unwrap();
    assert!(
        last.contains("has no certificate of the cluster of localhost:1: run `darter token create`"),
        "{last}"
    );
}
