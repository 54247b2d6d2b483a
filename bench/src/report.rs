//! [`Report`]: medians of what was measured, beside what we want to reach.

use crate::goals::{Goal, Target};
use std::fmt::Write;

/// Whose figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Nginx,
    Darter,
}

/// Rows of figures, in the order in which they first came.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

struct Row {
    goal: Goal,
    nginx: Vec<f64>,
    darter: Vec<f64>,
}

impl Report {
    /// Adds what one run gave.
    pub(crate) fn add(&mut self, goal: Goal, who: Who, value: f64) {
        let index = self.rows.iter().position(|row| row.goal == goal).unwrap_or_else(|| {
            self.rows.push(Row { goal, nginx: Vec::new(), darter: Vec::new() });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        match who {
            Who::Nginx => row.nginx.push(value),
            Who::Darter => row.darter.push(value),
        }
    }

    /// All of it as a table.
    pub(crate) fn show(&mut self) -> String {
        let mut text = String::from(
            "| | | nginx | darter | target | | darter : nginx | target : nginx then |\n|---|---|---|---|---|---|---|---|\n",
        );
        for Row { goal, nginx, darter } in &mut self.rows {
            let (nginx, darter) = (median(nginx), median(darter));
            let line = format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                goal.what,
                goal.unit,
                shown(nginx),
                shown(darter),
                goal.target.map_or(String::new(), say),
                goal.target.zip(darter).map_or(String::new(), |(target, value)| judge(target, value)),
                ratio(darter, nginx),
                ratio(goal.target.map(Target::value), goal.nginx_then),
            );
            writeln!(text, "{line}").expect("a string takes everything");
        }
        text
    }
}

fn say(target: Target) -> String {
    match target {
        Target::AtMost(most) => format!("<= {most}"),
        Target::AtLeast(least) => format!(">= {least}"),
    }
}

fn judge(target: Target, value: f64) -> String {
    let ratio = match target {
        Target::AtMost(most) => value / most,
        Target::AtLeast(least) => least / value,
    };
    if ratio <= 1.0 { "met".to_owned() } else { format!("missed by {:.0} %", (ratio - 1.0) * 100.0) }
}

fn ratio(of: Option<f64>, to: Option<f64>) -> String {
    of.zip(to).map_or(String::new(), |(of, to)| format!("{:.2}", of / to))
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Three or more digits that count.
fn shown(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}
