//! The same for people: a paragraph of numbers, and tables.

use std::time::Duration;

use indicatif::{BinaryBytes, FormattedDuration};

use super::ask::{Answer, Cluster, Host, Task, View};

/// So much of a task's id is shown: enough to tell a hundred thousand apart.
const SHORT_ID: usize = 12;

/// All that a scheduler said.
pub(super) fn scheduler(answer: &Answer) -> String {
    let title = format!("scheduler {}", answer.scheduler);
    match (&answer.view, &answer.error) {
        (Some(view), _) => format!("{title}, {}", self::view(view)),
        (None, why) => format!("{title}: {}\n", why.as_deref().unwrap_or_default()),
    }
}

fn view(view: &View) -> String {
    let mut text = cluster(&view.cluster);
    for (title, table, shown, of) in [
        (
            "quarantine",
            suspects(&view.quarantine),
            view.quarantine.len(),
            view.cluster.quarantined + view.cluster.on_probation,
        ),
        ("hosts", hosts(&view.hosts), view.hosts.len(), view.cluster.hosts),
    ] {
        if shown > 0 {
            text += &format!("\n{title}{}\n{table}", more(shown, of));
        }
    }
    for (title, tasks, with_lease) in [
        ("swarms", Some(&view.swarms), false),
        ("leases", Some(&view.leases), true),
        ("tasks", view.tasks.as_ref(), false),
    ] {
        if let Some(tasks) = tasks.filter(|tasks| !tasks.is_empty()) {
            let table = if with_lease { leases(tasks) } else { self::tasks(tasks) };
            text += &format!("\n{title}\n{table}");
        }
    }
    text
}

fn more(shown: usize, of: u64) -> String {
    if shown as u64 >= of { String::new() } else { format!(" ({shown} of {of}; --limit shows more)") }
}

fn cluster(of: &Cluster) -> String {
    let Cluster { hosts, seeds, draining, quarantined, on_probation, tasks, .. } = of;
    let all = of.bytes_from_origin.saturating_add(of.bytes_from_peers);
    let saved = if all == 0 {
        String::new()
    } else {
        format!(" ({:.1} %)", of.bytes_from_peers as f64 * 100.0 / all as f64)
    };
    format!(
        "version {}, up {}
hosts      {hosts}: {seeds} seeds, {draining} draining, {quarantined} quarantined, {on_probation} on probation
tasks      {tasks}: held complete {} times, in part {} times; {} downloads
leases     {} granted, {} expired; {} registrations
ended      {} from origins, {} from peers{saved}
",
        clean(&of.version),
        time(of.uptime_seconds),
        of.complete,
        of.partial,
        of.downloading,
        of.leases_granted,
        of.leases_expired,
        of.registrations,
        BinaryBytes(of.bytes_from_origin),
        BinaryBytes(of.bytes_from_peers),
    )
}

fn hosts(hosts: &[Host]) -> String {
    let head = ["host", "address", "zone", "version", "state", "tasks", "down", "up", "served", "since"];
    let rows = hosts.iter().map(|host| {
        let seed = if host.seed { " (seed)" } else { "" };
        let zone = [host.idc.as_str(), host.location.as_str()];
        let free = host
            .free_uploads
            .map_or("?".to_owned(), |free| host.upload_slots.saturating_sub(free).to_string());
        vec![
            format!("{}{seed}", host.id),
            address(host),
            zone.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"),
            host.version.clone(),
            host.state.to_owned(),
            host.tasks.to_string(),
            host.downloads.to_string(),
            format!("{free}/{}", host.upload_slots),
            BinaryBytes(host.served_bytes).to_string(),
            time(host.seconds),
        ]
    });
    table(&head, rows)
}

fn suspects(hosts: &[Host]) -> String {
    let head = ["host", "address", "state", "reason", "left", "times"];
    let rows = hosts.iter().map(|host| {
        let left = if host.seconds_left > 0 { time(host.seconds_left) } else { String::new() };
        let (state, reason) = (host.state.to_owned(), host.reason.clone());
        vec![host.id.clone(), address(host), state, reason, left, host.quarantines.to_string()]
    });
    table(&head, rows)
}

fn tasks(tasks: &[Task]) -> String {
    let head = ["task", "size", "complete", "part", "downloads", "progress", "origin"];
    let rows = tasks.iter().map(|task| {
        let origin = if task.unshareable { "everybody for himself" } else { task.lease_holder.as_str() };
        vec![
            short(task),
            size(task),
            task.complete.to_string(),
            task.partial.to_string(),
            task.downloading.to_string(),
            task.progress.map_or(String::new(), |part| format!("{:.0} %", part * 100.0)),
            origin.to_owned(),
        ]
    });
    table(&head, rows)
}

fn leases(tasks: &[Task]) -> String {
    let head = ["task", "size", "holder", "fetched", "stalls in"];
    let rows = tasks.iter().map(|task| {
        let fetched = BinaryBytes(task.lease_bytes).to_string();
        vec![short(task), size(task), task.lease_holder.clone(), fetched, time(task.lease_seconds_left)]
    });
    table(&head, rows)
}

fn address(host: &Host) -> String {
    if host.ip.contains(':') {
        format!("[{}]:{}", host.ip, host.piece_port)
    } else {
        format!("{}:{}", host.ip, host.piece_port)
    }
}

fn short(task: &Task) -> String {
    task.id.chars().take(SHORT_ID).collect()
}

fn size(task: &Task) -> String {
    task.length.map_or("?".to_owned(), |length| BinaryBytes(length).to_string())
}

fn time(seconds: u64) -> String {
    FormattedDuration(Duration::from_secs(seconds)).to_string()
}

/// Columns as wide as they must be, two spaces apart.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> =
        std::iter::once(head).chain(rows).map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// What a host says of itself must not steer the terminal of whoever looks at it.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "long".to_owned()], vec!["bcd".to_owned(), String::new()]];
        assert_eq!(table(&["x", "y"], rows.into_iter()), "  x    y\n  a    long\n  bcd\n");
    }

    #[test]
    fn what_a_host_says_does_not_steer_the_terminal() {
        assert_eq!(clean("\x1b[2Jnode\n\u{9b}1m"), "?[2Jnode??1m");
    }

    #[test]
    fn what_is_not_shown_is_said() {
        assert_eq!((more(20, 20).as_str(), more(20, 21).as_str()), ("", " (20 of 21; --limit shows more)"));
    }
}
