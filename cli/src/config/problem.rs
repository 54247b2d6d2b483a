//! What is wrong with a configuration file, and where: [`Problem`], [`Report`] and the [`Findings`] they are gathered in.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in the file. Both count from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// One sentence about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `None`: in the configuration file itself.
    pub(crate) file: Option<Arc<Path>>,
    /// `None`: about the file as a whole.
    pub(crate) at: Option<Position>,
    /// The key's path from the top, like `proxy.proxies[2].regx`. Empty: about no key.
    pub(crate) key: String,
    /// What is wrong. One line.
    pub(crate) text: String,
}

/// Gathers problems while a file is read, so that all of them are reported together.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The file that is read, as rules name it to people.
    file: Arc<str>,
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    /// Every file and folder that the configuration names and that is read with it.
    sources: RefCell<Vec<PathBuf>>,
    /// Every key that was asked for, for the test that the example names them all.
    #[cfg(test)]
    asked: RefCell<std::collections::BTreeSet<String>>,
}

/// All that is to be said about one file, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) file: PathBuf,
    /// The file cannot be used when there is one.
    pub(crate) errors: Vec<Problem>,
    /// Keys that are accepted and change nothing.
    pub(crate) warnings: Vec<Problem>,
}

impl Problem {
    fn at(at: Position, key: &str, text: impl Into<String>) -> Self {
        Self { file: None, at: Some(at), key: key.to_owned(), text: text.into() }
    }
}

// === impl Findings ===

impl Findings {
    /// For problems of `file`.
    pub(super) fn of(file: &Path) -> Self {
        Self { file: file.display().to_string().into(), ..Self::default() }
    }

    /// The file that is read; empty when it is none.
    pub(super) fn file(&self) -> Arc<str> {
        Arc::clone(&self.file)
    }

    pub(super) fn error(&self, at: Position, key: &str, text: impl Into<String>) {
        self.errors.borrow_mut().push(Problem::at(at, key, text));
    }

    pub(super) fn warning(&self, at: Position, key: &str, text: impl Into<String>) {
        self.warnings.borrow_mut().push(Problem::at(at, key, text));
    }

    /// Takes over what was found in another file that this one names.
    pub(super) fn adopt(&self, file: &Path, found: Self) {
        let file: Arc<Path> = file.into();
        let there = |problem: Problem| Problem { file: Some(Arc::clone(&file)), ..problem };
        self.errors.borrow_mut().extend(found.errors.into_inner().into_iter().map(there));
        self.warnings.borrow_mut().extend(found.warnings.into_inner().into_iter().map(there));
    }

    /// Notes that `path` is read with the configuration.
    pub(super) fn source(&self, path: &Path) {
        self.sources.borrow_mut().push(path.to_owned());
    }

    /// What was read with the configuration.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        self.sources.borrow().clone()
    }

    /// Notes that somebody reads `key`.
    #[cfg(test)]
    pub(super) fn note(&self, key: &str) {
        self.asked.borrow_mut().insert(super::general(key));
    }

    /// The keys that were asked for, items of lists as `[]`.
    #[cfg(test)]
    pub(super) fn asked(&self) -> std::collections::BTreeSet<String> {
        self.asked.borrow().clone()
    }

    pub(super) fn into_report(self, file: &Path) -> Report {
        let in_order = |found: RefCell<Vec<Problem>>| {
            let mut found = found.into_inner();
            found.sort_by(|a, b| (&a.file, a.at).cmp(&(&b.file, b.at)));
            found
        };
        Report { file: file.to_owned(), errors: in_order(self.errors), warnings: in_order(self.warnings) }
    }
}

// === impl Report ===

impl Report {
    /// A report about a file that could not be read at all.
    pub(super) fn unreadable(file: &Path, text: impl Into<String>) -> Self {
        let problem = Problem { file: None, at: None, key: String::new(), text: text.into() };
        Self { file: file.to_owned(), errors: vec![problem], warnings: Vec::new() }
    }

    /// One line per warning: `file:line:column: warning: key: sentence`.
    pub(crate) fn warning_lines(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().map(|problem| self.line(problem, "warning: "))
    }

    /// One line per error: `file:line:column: key: sentence`.
    pub(crate) fn error_lines(&self) -> impl Iterator<Item = String> {
        self.errors.iter().map(|problem| self.line(problem, ""))
    }

    fn line(&self, problem: &Problem, kind: &str) -> String {
        let mut line = problem.file.as_deref().unwrap_or(&self.file).display().to_string();
        if let Some(Position { line: number, column }) = problem.at {
            line.push_str(&format!(":{number}:{column}"));
        }
        line.push_str(": ");
        line.push_str(kind);
        let key = if problem.key.is_empty() { String::new() } else { format!("{}: ", problem.key) };
        // Both may hold what the operator wrote: keep it on its line.
        let on_one_line = |c: char| if c.is_control() { ' ' } else { c };
        line.extend(key.chars().chain(problem.text.chars()).map(on_one_line));
        line
    }
}

impl fmt::Display for Report {
    /// Warnings and errors, one a line, without a final newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.warning_lines().chain(self.error_lines()).collect();
        f.write_str(&lines.join("\n"))
    }
}
