//! Large content.

use super::Round;
use crate::client::{Load, Measured, at};
use crate::cpu::Serves;
use crate::goals::{self, Bulk};
use crate::report::{Report, Who};
use crate::servers::{Blob, Kind};
use crate::stage::Stage;
use crate::way::Way;
use anyhow::Result;
use std::io::Write;

/// What the daemon has, and nginx as files.
pub(crate) fn warm(stage: &Stage, clients: usize) -> Result<Round<'_>> {
    let goals = if clients == 1 { goals::WARM_1 } else { goals::WARM_16 };
    from_disk(stage, clients, goals, false)
}

/// The same over intercepted TLS.
pub(crate) fn warm_tls(stage: &Stage, clients: usize) -> Result<Round<'_>> {
    let goals = if clients == 1 { goals::TLS_1 } else { goals::TLS_8 };
    from_disk(stage, clients, goals, true)
}

fn from_disk(stage: &Stage, clients: usize, goals: Bulk, tls: bool) -> Result<Round<'_>> {
    let (nginx, darter, blob) = (stage.to_nginx(tls)?, stage.to_darter(tls)?, stage.large()?);
    Ok(Box::new(move |report, _| {
        add(report, goals, Who::Nginx, &read(&nginx, blob, clients, &stage.origin)?);
        add(report, goals, Who::Darter, &read(&darter, blob, clients, &stage.darter)?);
        Ok(())
    }))
}

/// What nobody has seen before, with its digest in its name.
pub(crate) fn cold(stage: &Stage) -> Result<Round<'_>> {
    from_origin(stage, Kind::Named, goals::COLD, false)
}

/// The same over intercepted TLS, and by TLS from the origin.
pub(crate) fn cold_tls(stage: &Stage) -> Result<Round<'_>> {
    from_origin(stage, Kind::Named, goals::COLD_TLS, true)
}

/// The same without a digest.
pub(crate) fn cold_unnamed(stage: &Stage) -> Result<Round<'_>> {
    from_origin(stage, Kind::Unnamed, goals::COLD_UNNAMED, false)
}

fn from_origin(stage: &Stage, kind: Kind, goals: Bulk, tls: bool) -> Result<Round<'_>> {
    Ok(Box::new(move |report, run| {
        let blob = stage.blob(kind, 1000 + run, stage.size.bytes)?;
        touch(stage)?;
        let timed = kind == Kind::Named && !tls;
        let mut add = |who, measured: Measured| {
            add(report, goals, who, &measured);
            if timed {
                report.add(goals::COLD_FIRST, who, at(&measured.first, 0.0).as_secs_f64() * 1e3);
            }
        };
        add(Who::Nginx, read(&stage.to_caching(tls)?, &blob, 1, &stage.caching)?);
        stage.caching.forget()?;
        let darter = stage.fresh("cold")?;
        let way = if tls { darter.tls()? } else { darter.plain() };
        touch(stage)?;
        add(Who::Darter, read(&way, &blob, 1, &darter)?);
        Ok(())
    }))
}

/// What no daemon keeps.
pub(crate) fn direct(stage: &Stage) -> Result<Round<'_>> {
    passed(stage, goals::DIRECT, false)
}

/// The same over intercepted TLS, and by TLS from the origin.
pub(crate) fn direct_tls(stage: &Stage) -> Result<Round<'_>> {
    passed(stage, goals::DIRECT_TLS, true)
}

fn passed(stage: &Stage, goals: Bulk, tls: bool) -> Result<Round<'_>> {
    let blob = stage.blob(Kind::Direct, 3 + u64::from(tls), stage.size.bytes)?;
    let (nginx, darter) = (stage.to_caching(tls)?, stage.to_darter(tls)?);
    Ok(Box::new(move |report, _| {
        add(report, goals, Who::Nginx, &read(&nginx, &blob, 1, &stage.caching)?);
        add(report, goals, Who::Darter, &read(&darter, &blob, 1, &stage.darter)?);
        Ok(())
    }))
}

fn read(way: &Way, blob: &Blob, clients: usize, serving: &dyn Serves) -> Result<Measured> {
    Load { clients, requests: clients, paths: &[blob.path()], way }.run(&[serving])
}

pub(super) fn add(report: &mut Report, goals: Bulk, who: Who, measured: &Measured) {
    report.add(goals.0, who, measured.megabytes_per_second());
    report.add(goals.1, who, measured.seconds_per_gigabyte());
}

/// Has the system own as much memory as a cold run fills: a virtual machine's may have been taken back, and whoever writes
/// into it first would pay for that.
pub(super) fn touch(stage: &Stage) -> Result<()> {
    let path = stage.folder().join("touched");
    let (mut file, zeros) = (std::fs::File::create(&path)?, vec![0; 1 << 20]);
    for _ in 0..stage.size.bytes >> 20 {
        file.write_all(&zeros)?;
    }
    drop(file);
    Ok(std::fs::remove_file(path)?)
}
