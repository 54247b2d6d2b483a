//! Small content, and first bytes.

use super::Round;
use crate::client::{Load, Measured, at};
use crate::cpu::Serves;
use crate::goals::{self, Goal};
use crate::report::Who;
use crate::servers::{Blob, Kind};
use crate::stage::Stage;
use crate::way::Way;
use anyhow::Result;

/// Of one row; the system's page.
const SMALL: u64 = 4096;
/// Objects that are new in each run.
const NEW: usize = 1000;
/// Objects of which the first byte counts.
const FIRSTS: usize = 50;
/// Clients at once where requests per second are counted.
const CLIENTS: usize = 16;

/// What the daemon has, over and over, with and without TLS.
pub(crate) fn warm(stage: &Stage) -> Result<Round<'_>> {
    let blob = stage.tiny()?;
    let mut ways = Vec::new();
    for (tls, goals) in [(false, goals::SMALL), (true, goals::SMALL_TLS)] {
        ways.push((stage.to_nginx(tls)?, stage.to_darter(tls)?, goals));
    }
    Ok(Box::new(move |report, _| {
        for (nginx, darter, goals) in &ways {
            let mut add = |who, way: &Way, serving: &dyn Serves| -> Result<()> {
                let load =
                    Load { clients: CLIENTS, requests: stage.size.requests, paths: &[blob.path()], way };
                let measured = load.run(&[serving])?;
                report.add(goals.0, who, measured.requests_per_second());
                report.add(goals.1, who, measured.micros_each());
                Ok(())
            };
            add(Who::Nginx, nginx, &stage.origin)?;
            add(Who::Darter, darter, &stage.darter)?;
        }
        Ok(())
    }))
}

/// What nobody has seen before, and both keep; one after the other on one connection.
pub(crate) fn new(stage: &Stage) -> Result<Round<'_>> {
    Ok(Box::new(move |report, run| {
        let blobs = blobs(stage, run, NEW, SMALL)?;
        let mut add = |who, measured: Measured| {
            let micros = |share| at(&measured.whole, share).as_secs_f64() * 1e6;
            let [p50, p99, each] = goals::SMALL_NEW;
            report.add(p50, who, micros(0.5));
            report.add(p99, who, micros(0.99));
            report.add(each, who, measured.micros_each());
        };
        add(Who::Nginx, one_by_one(&stage.to_caching(false)?, &blobs, &stage.caching)?);
        stage.caching.forget()?;
        let darter = stage.fresh("new")?;
        add(Who::Darter, one_by_one(&darter.plain(), &blobs, &darter)?);
        Ok(())
    }))
}

/// What nobody keeps; one after the other on one connection.
pub(crate) fn direct(stage: &Stage) -> Result<Round<'_>> {
    let blob = stage.blob(Kind::Direct, 5, SMALL)?;
    let mut ways = Vec::new();
    for (tls, goals) in [(false, goals::SMALL_DIRECT), (true, goals::SMALL_DIRECT_TLS)] {
        ways.push((stage.to_caching(tls)?, stage.to_darter(tls)?, goals));
    }
    Ok(Box::new(move |report, _| {
        for (nginx, darter, [p50, each]) in &ways {
            let mut add = |who, way: &Way, serving: &dyn Serves| -> Result<()> {
                let requests = stage.size.requests / 8;
                let measured = Load { clients: 1, requests, paths: &[blob.path()], way }.run(&[serving])?;
                report.add(*p50, who, at(&measured.whole, 0.5).as_secs_f64() * 1e6);
                report.add(*each, who, measured.micros_each());
                Ok(())
            };
            add(Who::Nginx, nginx, &stage.caching)?;
            add(Who::Darter, darter, &stage.darter)?;
        }
        Ok(())
    }))
}

/// How soon the first byte of something larger comes: of what nobody has seen, and again when it is there.
pub(crate) fn first_byte(stage: &Stage) -> Result<Round<'_>> {
    Ok(Box::new(move |report, run| {
        let blobs = blobs(stage, run + 500, FIRSTS, 1 << 20)?;
        let darter = stage.fresh("first")?;
        let mut add = |goal: Goal, who, way: &Way, serving: &dyn Serves| -> Result<()> {
            let measured = one_by_one(way, &blobs, serving)?;
            report.add(goal, who, at(&measured.first, 0.5).as_secs_f64() * 1e6);
            Ok(())
        };
        for goal in [goals::FIRST_COLD, goals::FIRST_WARM] {
            add(goal, Who::Nginx, &stage.to_caching(false)?, &stage.caching)?;
            add(goal, Who::Darter, &darter.plain(), &darter)?;
        }
        stage.caching.forget()
    }))
}

fn blobs(stage: &Stage, run: u64, count: usize, length: u64) -> Result<Vec<Blob>> {
    let seeds = (1_000_000 * (run + 1)..).take(count);
    seeds.map(|seed| stage.blob(Kind::Named, seed, length)).collect()
}

fn one_by_one(way: &Way, blobs: &[Blob], serving: &dyn Serves) -> Result<Measured> {
    let paths: Vec<&str> = blobs.iter().map(Blob::path).collect();
    Load { clients: 1, requests: paths.len(), paths: &paths, way }.run(&[serving])
}
