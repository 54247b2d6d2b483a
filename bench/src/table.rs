//! [`Table`]: medians of what was measured.

use crate::client::Measured;
use std::fmt::Write;

/// Rows of measurements, in the order in which they first came.
pub(crate) struct Table {
    rate: &'static str,
    cost: &'static str,
    rows: Vec<(String, Vec<Measured>)>,
}

impl Table {
    pub(crate) fn new(rate: &'static str, cost: &'static str) -> Self {
        Self { rate, cost, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: &str, measured: Measured) {
        match self.rows.iter_mut().find(|(name, _)| name == row) {
            Some((_, all)) => all.push(measured),
            None => self.rows.push((row.to_owned(), vec![measured])),
        }
    }

    pub(crate) fn by_bytes(&self) -> String {
        self.show(
            |it| it.gigabytes() * 1000.0 / it.wall.as_secs_f64(),
            |it| it.cpu.as_secs_f64() / it.gigabytes(),
        )
    }

    pub(crate) fn by_requests(&self) -> String {
        self.show(
            |it| it.requests as f64 / it.wall.as_secs_f64(),
            |it| it.cpu.as_secs_f64() * 1e6 / it.requests as f64,
        )
    }

    fn show(&self, rate: impl Fn(&Measured) -> f64, cost: impl Fn(&Measured) -> f64) -> String {
        let mut text = format!("| | {} | {} |\n|---|---|---|\n", self.rate, self.cost);
        for (name, all) in &self.rows {
            let (rate, cost) = (median(all, &rate), median(all, &cost));
            writeln!(text, "| {name} | {rate:.0} | {cost:.3} |").expect("a string takes everything");
        }
        text
    }
}

fn median(all: &[Measured], value: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = all.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
