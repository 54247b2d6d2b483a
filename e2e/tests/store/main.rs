//! The content store of a real daemon, and what befalls it: killed at any point, on a disk that is full, on one that breaks,
//! with files that cannot be read.
//!
//! Whatever it is, every byte that a client gets is right, and nothing has to be done by hand for the store to work again.
#![forbid(unsafe_code)]

mod disks;
mod kills;
mod stuck;

use anyhow::Result;
use darter_e2e::suite::{self, Scene};
use std::process::ExitCode;

const MIB: u64 = 1 << 20;

struct Nothing;

impl Scene for Nothing {
    fn logs(&self) -> String {
        String::new()
    }
}

fn main() -> ExitCode {
    if let Err(error) = darter_e2e::disk::alone() {
        println!("{error:#}");
        return ExitCode::FAILURE;
    }
    suite::run(
        || Ok(Nothing),
        &[
            ("killed_at_any_point_it_keeps_what_was_complete", |_| kills::what_was_complete_is_kept()),
            ("killed_while_it_evicts_it_serves_right_bytes", |_| kills::evictions_and_kills()),
            ("a_full_disk_costs_no_client_a_byte", |_| both(disks::a_disk_that_others_fill)),
            ("a_disk_that_fills_on_the_way_costs_no_client_a_byte", |_| both(disks::a_disk_that_fills)),
            ("a_disk_that_fills_under_a_download_cuts_nobody", |_| {
                disks::a_disk_that_fills_under_a_download()
            }),
            ("a_disk_that_breaks_is_used_again_when_it_was_replaced", |_| disks::a_disk_that_breaks()),
            ("a_dead_file_system_holds_up_nobody", |_| stuck::a_dead_file_system_holds_up_nobody()),
            ("a_daemon_starts_on_a_full_disk", |_| both(disks::a_start_on_a_full_disk)),
        ],
    )
}

fn both(test: impl Fn(darter_e2e::disk::Kind) -> Result<()>) -> Result<()> {
    use anyhow::Context as _;
    use darter_e2e::disk::Kind;
    [Kind::Tmpfs, Kind::Ext4].into_iter().try_for_each(|kind| test(kind).with_context(|| format!("{kind:?}")))
}
