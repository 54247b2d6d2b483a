//! [`Section`]: one mapping of the file, read key by key.
//!
//! The code that reads a section is its schema: each key is asked for once, with the function that checks its value. What
//! was asked for is remembered, and when the section is dropped every key that nobody asked for is reported as unknown. So
//! there is no second table of keys that could say something else.

use std::fmt::Display;
use std::path::PathBuf;

use super::problem::{Findings, Position};
use super::suggest;
use super::value;
use super::yaml::{Data, Entry, Node};

/// One mapping of the file, or one that is not there: then every key is absent.
pub(super) struct Section<'a> {
    findings: &'a Findings,
    /// From the top, like `proxy.proxies[2]`; empty for the top itself.
    path: String,
    /// Where it stands; where the one around it begins, when it is not there.
    at: Position,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
}

/// One item of a list of single values.
pub(super) struct Item<T> {
    /// Where it stands.
    pub(super) at: Position,
    /// Its path, like `proxy.registryMirror.certs[0]`.
    pub(super) key: String,
    pub(super) value: T,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn top(root: &'a Node, findings: &'a Findings) -> Self {
        Self::of(root, String::new(), findings)
    }

    /// The mappings of a file that is a list of them.
    pub(super) fn top_list(root: &'a Node, findings: &'a Findings) -> Vec<Section<'a>> {
        let items = match &root.data {
            Data::List(items) => items.as_slice(),
            _ if root.is_null() => &[],
            _ => {
                let text = format!("expected a list (lines that start with `- `), found {}", root.kind());
                findings.error(root.at, "", text);
                &[]
            }
        };
        let sections = items.iter().enumerate();
        sections.map(|(i, item)| Self::of(item, format!("[{i}]"), findings)).collect()
    }

    /// The mapping under `key`.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let path = self.path_of(key);
        match self.entry(key) {
            Some(entry) => Self::of(&entry.value, path, self.findings),
            None => {
                Section { findings: self.findings, path, at: self.first(), entries: &[], asked: Vec::new() }
            }
        }
    }

    /// The list of mappings under `key`; empty when it is absent.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let (path, findings) = (self.path_of(key), self.findings);
        let items = self.list(key).iter().enumerate();
        items.map(|(i, item)| Self::of(item, format!("{path}[{i}]"), findings)).collect()
    }

    /// The value under `key` as `read` understands it. `None` when it is absent, or wrong (which is then reported).
    pub(super) fn value<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        self.read(&entry.value, &self.path_of(key), read)
    }

    /// Like [`Self::value`], and an empty text (`''`) means the same as an absent key.
    pub(super) fn filled<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        if matches!(&entry.value.data, Data::Scalar { text, .. } if text.is_empty()) {
            return None;
        }
        self.read(&entry.value, &self.path_of(key), read)
    }

    /// The file (or folder) named under `key`, which is read with the configuration: when it changes, so does that. `None`
    /// when nothing is named.
    pub(super) fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.filled(key, value::path)?;
        self.findings.source(&path);
        Some(path)
    }

    /// Two files that are of use together alone, such as a certificate and its key: see [`Self::file`]. One without the other
    /// is reported, with `reason` behind it.
    pub(super) fn pair(&mut self, keys: [&'static str; 2], reason: &str) -> Option<(PathBuf, PathBuf)> {
        let [first, second] = keys;
        let (there, missing) = match (self.file(first), self.file(second)) {
            (Some(one), Some(other)) => return Some((one, other)),
            (Some(_), None) => (first, second),
            (None, Some(_)) => (second, first),
            (None, None) => return None,
        };
        // What is there and cannot be read has been reported.
        if !self.has(missing) {
            self.error(there, format!("needs {missing} beside it{reason}"));
        }
        None
    }

    /// The files named in the list under `key`: see [`Self::file`].
    pub(super) fn files(&mut self, key: &'static str) -> Vec<Item<PathBuf>> {
        let files = self.values(key, value::path);
        files.iter().for_each(|file| self.findings.source(&file.value));
        files
    }

    /// The list of single values under `key`, without the wrong ones (which are reported); empty when it is absent.
    pub(super) fn values<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<Item<T>> {
        let path = self.path_of(key);
        let items = self.list(key).iter().enumerate();
        items
            .filter_map(|(i, item)| {
                let key = format!("{path}[{i}]");
                let value = self.read(item, &key, &read)?;
                Some(Item { at: item.at, key, value })
            })
            .collect()
    }

    /// The single values of the mapping under `key`, whose own keys are the operator's to choose; empty when it is absent.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<(String, String)> {
        let path = self.path_of(key);
        let entries = match self.entry(key).map(|entry| &entry.value) {
            None => &[],
            Some(Node { data: Data::Map(entries), .. }) => entries.as_slice(),
            Some(other) => {
                let text = format!("expected a mapping (key: value), found {}", other.kind());
                self.findings.error(other.at, &path, text);
                &[]
            }
        };
        let text = |entry: &Entry| {
            let key = format!("{path}.{}", entry.key);
            let value = self.read(&entry.value, &key, |text| Ok::<_, String>(text.to_owned()))?;
            Some((entry.key.clone(), value))
        };
        entries.iter().filter_map(text).collect()
    }

    /// `key` is known and changes nothing: a warning when something is written there. `reason` completes "has no effect".
    pub(super) fn no_effect(&mut self, key: &'static str, reason: &str) {
        let Some(entry) = self.entry(key) else { return };
        if !is_empty(&entry.value) {
            self.findings.warning(entry.at, &self.path_of(key), format!("has no effect: {reason}"));
        }
    }

    /// Like [`Self::no_effect`] for a single value, which is still checked.
    pub(super) fn unused<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
        reason: &str,
    ) {
        if self.filled(key, read).is_some() {
            self.no_effect(key, reason);
        }
    }

    /// `key` is known, and what it can be set to is what happens anyway: a warning when something else is written.
    /// `reason` says what happens.
    pub(super) fn always<T: PartialEq, E: Display>(
        &mut self,
        key: &'static str,
        ours: T,
        read: impl FnOnce(&str) -> Result<T, E>,
        reason: &str,
    ) {
        let Some(at) = self.at(key) else { return };
        if self.value(key, read).is_some_and(|value| value != ours) {
            self.findings.warning(at, &self.path_of(key), format!("has no effect: {reason}"));
        }
    }

    /// Reports `text` about the value under `key`, where that stands; about the section itself when it is absent.
    pub(super) fn error(&self, key: &str, text: impl Into<String>) {
        self.findings.error(self.place_of(key), &self.path_of(key), text);
    }

    /// Like [`Self::error`], for what works and may surprise.
    pub(super) fn warning(&self, key: &str, text: impl Into<String>) {
        self.findings.warning(self.place_of(key), &self.path_of(key), text);
    }

    /// Whether the value under `key` is a mapping, for keys that can be written in two ways.
    pub(super) fn is_mapping(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key && matches!(entry.value.data, Data::Map(_)))
    }

    /// Whether anything is written under `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key && !is_empty(&entry.value))
    }

    /// Where it stands, like `proxy.listeners[0]`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where it begins.
    pub(super) fn start(&self) -> Position {
        self.first()
    }

    /// Where problems go, for a caller that checks several keys against each other.
    pub(super) fn findings(&self) -> &'a Findings {
        self.findings
    }

    fn of(node: &'a Node, path: String, findings: &'a Findings) -> Self {
        let entries = match &node.data {
            Data::Map(entries) => entries.as_slice(),
            _ if node.is_null() => &[],
            _ => {
                findings.error(
                    node.at,
                    &path,
                    format!("expected a mapping (key: value), found {}", node.kind()),
                );
                &[]
            }
        };
        Self { findings, path, at: node.at, entries, asked: Vec::new() }
    }

    /// The entry of `key`, unless it is absent or null. This is the one place where a key becomes known.
    fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
            #[cfg(test)]
            self.findings.note(&self.path_of(key));
        }
        let entries = self.entries;
        entries.iter().find(|entry| entry.key == key).filter(|entry| !entry.value.is_null())
    }

    fn list(&mut self, key: &'static str) -> &'a [Node] {
        match self.entry(key).map(|entry| &entry.value) {
            None => &[],
            Some(Node { data: Data::List(items), .. }) => items,
            Some(other) => {
                let text = format!("expected a list (lines that start with `- `), found {}", other.kind());
                self.findings.error(other.at, &self.path_of(key), text);
                &[]
            }
        }
    }

    fn read<T, E: Display>(
        &self,
        node: &Node,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let Data::Scalar { text, .. } = &node.data else {
            self.findings.error(node.at, key, format!("expected a single value, found {}", node.kind()));
            return None;
        };
        read(text).map_err(|why| self.findings.error(node.at, key, why.to_string())).ok()
    }

    fn at(&self, key: &str) -> Option<Position> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.at)
    }

    fn place_of(&self, key: &str) -> Position {
        let found = self.entries.iter().find(|entry| entry.key == key);
        found.map_or_else(|| self.first(), |entry| entry.value.at)
    }

    fn first(&self) -> Position {
        self.entries.first().map_or(self.at, |entry| entry.at)
    }

    /// Where the value under `key` stands.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Nothing that says something: null, `''`, `[]`, `{}`.
fn is_empty(node: &Node) -> bool {
    match &node.data {
        Data::Scalar { text, .. } => text.is_empty() || node.is_null(),
        Data::List(items) => items.is_empty(),
        Data::Map(entries) => entries.is_empty(),
    }
}

impl Drop for Section<'_> {
    /// Reports every key that nobody asked for.
    fn drop(&mut self) {
        let unknown = self.entries.iter().filter(|entry| !self.asked.contains(&entry.key.as_str()));
        for entry in unknown {
            let text = match suggest::nearest(&entry.key, self.asked.iter().copied()) {
                Some(name) => format!("unknown key; did you mean `{name}`?"),
                None => "unknown key".to_owned(),
            };
            self.findings.error(entry.at, &self.path_of(&entry.key), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;
    use std::path::Path;

    fn number(text: &str) -> Result<u32, String> {
        text.parse().map_err(|_| format!("`{text}` is no number"))
    }

    fn text(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    fn read(source: &str, reader: impl FnOnce(&mut Section<'_>)) -> String {
        let findings = Findings::default();
        let root = yaml::parse(source, &findings).unwrap();
        reader(&mut Section::top(&root, &findings));
        findings.into_report(Path::new("f")).to_string()
    }

    #[test]
    fn what_nobody_asks_for_is_unknown() {
        let report = read("nmber: 1\na:\n  b: 2\n  xyz: 3\n", |top| {
            assert_eq!(top.value("number", number), None);
            assert_eq!(top.section("a").value("b", number), Some(2));
        });
        assert_eq!(report, "f:1:1: nmber: unknown key; did you mean `number`?\nf:4:3: a.xyz: unknown key");
    }

    #[test]
    fn a_wrong_value_is_reported_where_it_stands_and_reads_as_absent() {
        let report = read("a:\n  - b: x\n  - b: 7\n", |top| {
            let mut items = top.sections("a");
            assert_eq!(items[0].value("b", number), None);
            assert_eq!(items[1].value("b", number), Some(7));
        });
        assert_eq!(report, "f:2:8: a[0].b: `x` is no number");
    }

    #[test]
    fn a_wrong_shape_is_reported_with_what_is_there() {
        let report = read("a: 1\nb: {}\nc: [1]\n", |top| {
            top.section("a");
            top.sections("b");
            top.value("c", number);
        });
        assert_eq!(
            report,
            "f:1:4: a: expected a mapping (key: value), found a single value\n\
             f:2:4: b: expected a list (lines that start with `- `), found a mapping\n\
             f:3:4: c: expected a single value, found a list"
        );
    }

    #[test]
    fn absent_and_null_are_the_same_and_an_empty_text_is_by_choice() {
        let report = read("a:\nb: null\nc: ''\n", |top| {
            assert_eq!(top.value("a", number), None);
            assert!(top.values("b", number).is_empty());
            assert_eq!(top.value("c", text), Some(String::new()));
            assert_eq!(top.filled("c", text), None);
            assert_eq!(top.section("d").value("e", number), None);
        });
        assert_eq!(report, "");
    }

    #[test]
    fn keys_without_effect_warn_only_when_they_say_something() {
        let report = read("a: ''\nb: 1\nc: {x: {y: 1}}\nd: 5\ne: 6\nf: []\ng: x\nh: 1", |top| {
            top.unused("g", number, "there is no such thing");
            top.unused("h", number, "there is no such thing");
            for key in ["a", "b", "c", "f"] {
                top.no_effect(key, "there is no such thing");
            }
            top.always("d", 5, number, "it is 5");
            top.always("e", 5, number, "it is 5");
        });
        assert_eq!(
            report,
            "f:2:1: warning: b: has no effect: there is no such thing\n\
             f:3:1: warning: c: has no effect: there is no such thing\n\
             f:5:1: warning: e: has no effect: it is 5\n\
             f:8:1: warning: h: has no effect: there is no such thing\n\
             f:7:4: g: `x` is no number"
        );
    }

    #[test]
    fn items_of_a_list_keep_their_place() {
        let report = read("a: [1, x, 3]", |top| {
            let items = top.values("a", number);
            let found: Vec<_> = items.iter().map(|item| (item.value, item.key.as_str())).collect();
            assert_eq!(found, [(1, "a[0]"), (3, "a[2]")]);
        });
        assert_eq!(report, "f:1:8: a[1]: `x` is no number");
    }
}
