//! What a request would meet, step by step, for `darter explain`. Nothing is fetched, and no origin is asked: the steps are
//! those of the pipeline, with what is known at this moment. What only a real request shows (a body, a wish to switch
//! protocols, a password for the proxy, whether the host proves itself) is left out.

use crate::Proxy;
use crate::entitle::Asker;
use crate::refusal::Refusal;
use crate::tasks;
use darter_p2p::{ClusterStat, LocalStat, TaskStat};
use darter_protocol::TaskId;
use darter_rules::{Decision, Explanation, Host, Request as Seen, Step, Target, Way};
use http::{HeaderMap, Method, Uri};
use std::net::IpAddr;
use std::time::SystemTime;

/// A request that nobody has sent.
#[derive(Debug)]
pub struct Inquiry {
    /// Its method.
    pub method: Method,
    /// What is asked for: an `http://` URL (to the forward proxy), an `https://` URL (inside CONNECT), or a path (to the
    /// mirror).
    pub uri: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Who asks, where that is known.
    pub client: Option<IpAddr>,
}

impl Proxy {
    /// Every step that this request would go. No sentence holds a header's value.
    pub async fn explain(&self, inquiry: &Inquiry) -> Vec<Step> {
        let settings = self.settings();
        let mut steps = Vec::new();
        let mut say = |subject, text: String| steps.push(Step { subject, text });

        if let Some(client) = inquiry.client {
            say("client", self.explain_client(client, &settings));
        }
        let connected = connected(&inquiry.uri);
        let way = match &connected {
            Some((host, port)) => {
                let entry = settings.rules.intercept.entry_for(host, *port);
                say(
                    "tunnel",
                    match (entry, &settings.leaves) {
                        (Some(entry), Some(_)) => format!(
                            "CONNECT {host}:{port} is opened up: proxy.hijackHTTPS.hosts[{entry}] matches"
                        ),
                        (Some(_), None) => {
                            format!("CONNECT {host}:{port} stays closed: there is no CA to sign for it")
                        }
                        (None, _) => format!(
                            "CONNECT {host}:{port} stays closed: no proxy.hijackHTTPS.hosts matches, so what is inside is not seen and the rest is what would be if it were"
                        ),
                    },
                );
                Way::Intercepted { host, port: *port }
            }
            None if inquiry.uri.authority().is_some() => Way::Forward,
            None => Way::Mirror,
        };
        let seen = Seen { method: &inquiry.method, way, uri: &inquiry.uri, headers: &inquiry.headers };
        let Explanation { decision, steps: told } = settings.rules.explain(&seen);
        steps.extend(told);
        if let Decision::Direct { target, .. } | Decision::Peers { target, .. } = &decision {
            let way = self.upstream.way(&target.host().to_string(), target.port());
            steps.push(Step { subject: "origin", text: format!("{} is reached {way}", target.authority()) });
        }
        if let Decision::Peers { target, mut identity, settled, .. } = decision {
            let account = settings.accounts.of(&target, &inquiry.method, &inquiry.headers);
            if let Some((index, _)) = account {
                let text = format!("proxy.accounts[{index}] is lent, unless the registry answers everybody");
                steps.push(Step { subject: "account", text });
            }
            let asker = Asker { headers: &inquiry.headers, account: account.map(|(_, login)| login) };
            let caller = self.gate.explain(&target, &mut identity, asker);
            steps.push(Step { subject: "caller", text: caller });
            if settled {
                let task = tasks::task(&identity, &target, asker, self.operator(&settings, &target));
                steps.extend(self.whereabouts(task).await);
            } else {
                let text = "its name holds the version that the origin is asked for first, so what is stored is not known here";
                steps.push(Step { subject: "stored", text: text.to_owned() });
            }
        }
        steps
    }

    async fn whereabouts(&self, task: Result<TaskId, Refusal>) -> Vec<Step> {
        let task = match task {
            Ok(task) => task,
            Err(refusal) => return vec![Step { subject: "task", text: refusal.to_string() }],
        };
        let mut steps = vec![Step { subject: "task", text: task.to_string() }];
        match self.engine.stat(task).await {
            Ok(TaskStat { local, cluster }) => {
                steps.push(Step { subject: "stored", text: here(&local) });
                steps.push(Step { subject: "peers", text: elsewhere(&cluster) });
            }
            Err(error) => steps
                .push(Step { subject: "stored", text: format!("the content store cannot be read: {error}") }),
        }
        steps
    }
}

/// Where a client would have connected to for an https URL.
fn connected(uri: &Uri) -> Option<(Host, u16)> {
    (uri.scheme_str() == Some("https")).then_some(())?;
    let target = Target::parse(&uri.to_string()).ok()?;
    Some((target.host().clone(), target.port()))
}

fn here(stat: &LocalStat) -> String {
    match stat {
        LocalStat::Absent => "not on this host".to_owned(),
        LocalStat::Complete { length, file, since, pinned } => {
            let age = SystemTime::now().duration_since(*since).unwrap_or_default().as_secs();
            let pinned = if *pinned { ", pinned" } else { "" };
            format!("all {length} bytes on this host since {age} s, in {}{pinned}", file.display())
        }
        LocalStat::Stale => "on this host, but so old that the origin is asked anew".to_owned(),
        LocalStat::Partial => "in part on this host; the next request goes on with it".to_owned(),
        LocalStat::Fetching { length: None, .. } => "being asked for at this moment".to_owned(),
        LocalStat::Fetching { length: Some(length), have, pieces } => {
            format!("being fetched at this moment: {have} of {pieces} pieces of {length} bytes are here")
        }
    }
}

fn elsewhere(stat: &ClusterStat) -> String {
    match stat {
        ClusterStat::Alone => "no scheduler is configured: this daemon is a cluster of its own".to_owned(),
        ClusterStat::Unreachable => "no scheduler can be reached: content comes from the origin".to_owned(),
        ClusterStat::Failed(why) => format!("the scheduler did not answer: {why}"),
        ClusterStat::Known { scheduler, stat } => {
            let mut text = format!(
                "the scheduler {scheduler} knows {} hosts that have all of it and {} that download it",
                stat.complete, stat.downloading
            );
            if !stat.lease_holder.is_empty() {
                text.push_str(&format!("; {} may go to the origin", stat.lease_holder));
            }
            for holder in &stat.holders {
                let what = if holder.complete { "all" } else { "some" };
                text.push_str(&format!("\n{} ({}): {what}", holder.hostname, holder.ip));
            }
            text
        }
    }
}
