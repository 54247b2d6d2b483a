//! YAML text as a tree that knows where each part stands.
//!
//! Scalars keep their text: what a value means is decided by who reads the key, so that a tag `1.10` stays `1.10`.
//! Anchors, aliases and merge keys (`<<`) are resolved here. Depth and size of the tree are bounded, whatever the file
//! holds.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::problem::{Findings, Position};

/// How deep mappings and lists may nest. The deepest known key stands at 6.
const MAX_DEPTH: usize = 32;

/// How many nodes a file may have after its aliases are resolved: ten times the largest rule list that is planned for,
/// and a bound on what nested aliases can blow up to.
const MAX_NODES: usize = 500_000;

/// One value of the file.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) data: Data,
}

#[derive(Debug, Clone)]
pub(super) enum Data {
    Scalar {
        text: String,
        /// Written without quotes: only then `null`, `~` and nothing mean "not given".
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` of a mapping.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) value: Node,
}

/// Reads `text`. `None`: it is no YAML, and `findings` says where. Keys that stand twice are reported too.
pub(super) fn parse(text: &str, findings: &Findings) -> Option<Node> {
    let mut builder = Builder { findings, open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    while let Some(event) = parser.next_event() {
        // The parser's own loop recurses with the file's nesting; this one does not.
        let step = event.and_then(|(event, span)| builder.event(event, span.start));
        if let Err(error) = step {
            findings.error(position(*error.marker()), "", format!("not valid YAML: {}", error.info()));
            return None;
        }
    }
    let root = builder.root.unwrap_or_else(|| Node::null(Position { line: 1, column: 1 }));
    report_doubles(&root, "", findings);
    Some(root)
}

impl Node {
    /// Nothing was written, or `null` or `~`: the same as a key that is not there.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for a sentence.
    pub(super) fn kind(&self) -> &'static str {
        match self.data {
            Data::Scalar { .. } => "a single value",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }

    fn null(at: Position) -> Self {
        Self { at, data: Data::Scalar { text: String::new(), plain: true } }
    }

    fn count(&self) -> usize {
        match &self.data {
            Data::Scalar { .. } => 1,
            Data::List(items) => items.iter().map(Self::count).sum::<usize>() + 1,
            Data::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum::<usize>() + 1,
        }
    }
}

/// A list or mapping whose end has not come yet.
enum Open {
    List { at: Position, anchor: usize, items: Vec<Node> },
    Map { at: Position, anchor: usize, entries: Vec<Entry>, key: Option<(String, Position)> },
}

struct Builder<'a> {
    findings: &'a Findings,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, mark: Marker) -> Result<(), ScanError> {
        let at = position(mark);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => Err(ScanError::new_str(
                mark,
                "a second document starts here; a configuration is one document",
            )),
            Event::DocumentStart(_) => Ok(()),
            Event::Scalar(text, style, anchor, _) => {
                let data = Data::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                self.complete(Node { at, data }, anchor, mark)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(ScanError::new_str(mark, "this alias stands inside what it names"));
                };
                let (node, count) = (node.clone(), node.count());
                self.nodes += count;
                self.complete(node, 0, mark)
            }
            Event::SequenceStart(anchor, _) => self.start(Open::List { at, anchor, items: Vec::new() }, mark),
            Event::MappingStart(anchor, _) => {
                self.start(Open::Map { at, anchor, entries: Vec::new(), key: None }, mark)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { at, anchor, items }) => {
                    self.complete(Node { at, data: Data::List(items) }, anchor, mark)
                }
                Some(Open::Map { at, anchor, entries, .. }) => {
                    let entries = self.merged(entries);
                    self.complete(Node { at, data: Data::Map(entries) }, anchor, mark)
                }
                None => Err(ScanError::new_str(mark, "an end without a start")),
            },
        }
    }

    fn start(&mut self, open: Open, mark: Marker) -> Result<(), ScanError> {
        if self.open.len() == MAX_DEPTH {
            return Err(ScanError::new(mark, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.open.push(open);
        Ok(())
    }

    /// `node` has come to its end: it goes where it belongs.
    fn complete(&mut self, node: Node, anchor: usize, mark: Marker) -> Result<(), ScanError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(ScanError::new(mark, format!("more than {MAX_NODES} values")));
        }
        // The parser numbers anchors from 1; 0 stands for none.
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match (key.take(), node.data) {
                (Some((key, at)), data) => entries.push(Entry { key, at, value: Node { at: node.at, data } }),
                (None, Data::Scalar { text, .. }) => *key = Some((text, node.at)),
                (None, _) => return Err(ScanError::new_str(mark, "a key is a single value")),
            },
        }
        Ok(())
    }

    /// Resolves `<<`: the keys of the mappings that it names, where the mapping has no such key of its own.
    fn merged(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let (merges, mut kept): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| entry.key == "<<");
        for merge in merges {
            let sources = match merge.value.data {
                Data::List(items) => items,
                data => vec![Node { at: merge.value.at, data }],
            };
            for source in sources {
                let Data::Map(entries) = source.data else {
                    self.findings.error(source.at, "<<", "expected an alias of a mapping, or a list of them");
                    continue;
                };
                let own: HashSet<String> = kept.iter().map(|entry| entry.key.clone()).collect();
                kept.extend(entries.into_iter().filter(|entry| !own.contains(&entry.key)));
            }
        }
        kept
    }
}

/// Reports every key that stands twice in one mapping. The first one counts.
fn report_doubles(node: &Node, path: &str, findings: &Findings) {
    match &node.data {
        Data::Scalar { .. } => {}
        Data::List(items) => {
            for (i, item) in items.iter().enumerate() {
                report_doubles(item, &format!("{path}[{i}]"), findings);
            }
        }
        Data::Map(entries) => {
            let mut seen: HashMap<&str, Position> = HashMap::new();
            for entry in entries {
                let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                if let Some(first) = seen.get(entry.key.as_str()) {
                    let text = format!("stands here a second time; the first is in line {}", first.line);
                    findings.error(entry.at, &path, text);
                } else {
                    seen.insert(&entry.key, entry.at);
                }
                report_doubles(&entry.value, &path, findings);
            }
        }
    }
}

fn position(mark: Marker) -> Position {
    Position { line: mark.line(), column: mark.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parsed(text: &str) -> (Option<Node>, Vec<String>) {
        let findings = Findings::default();
        let node = parse(text, &findings);
        (node, findings.into_report(Path::new("f")).error_lines().collect())
    }

    /// The tree on one line, with positions of scalars.
    fn show(node: &Node) -> String {
        match &node.data {
            Data::Scalar { text, .. } => format!("{text}@{}:{}", node.at.line, node.at.column),
            Data::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Data::Map(entries) => {
                let entry = |entry: &Entry| format!("{}={}", entry.key, show(&entry.value));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn shown(text: &str) -> String {
        let (node, errors) = parsed(text);
        assert_eq!(errors, Vec::<String>::new());
        show(&node.unwrap())
    }

    #[test]
    fn every_value_knows_its_place() {
        assert_eq!(shown("a: 1\nb:\n  - x\n  - c: 'y'\n"), "{a=1@1:4 b=[x@3:5 {c=y@4:8}]}");
    }

    #[test]
    fn an_empty_file_and_one_of_comments_are_null() {
        for text in ["", "# nothing\n", "---\n", "~", "\u{feff}"] {
            assert!(parsed(text).0.unwrap().is_null(), "{text:?}");
        }
        assert!(!parsed("''").0.unwrap().is_null());
        assert!(!parsed("'null'").0.unwrap().is_null());
    }

    #[test]
    fn aliases_and_merge_keys_are_resolved() {
        assert_eq!(shown("a: &x [1]\nb: *x"), "{a=[1@1:8] b=[1@1:8]}");
        assert_eq!(
            shown("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3\n"),
            "{a={p=1@1:11 q=2@1:17} b={q=3@4:6 p=1@1:11}}"
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error_with_both_places() {
        let (node, errors) = parsed("a: 1\nb: {c: 2, 'c': 3}\na: 3\n");
        assert!(node.is_some(), "the rest of the file is still checked");
        assert_eq!(
            errors,
            [
                "f:2:11: b.c: stands here a second time; the first is in line 2",
                "f:3:1: a: stands here a second time; the first is in line 1"
            ]
        );
    }

    #[test]
    fn what_is_no_yaml_is_one_error_with_its_place() {
        for (text, place) in [
            ("a: [1, 2\nb: 3", "f:2:2: "),
            ("a: b: c", "f:1:5: "),
            ("a: 1\n---\nb: 2\n", "f:2:1: "),
            ("? [a]\n: 1\n", "f:1:5: "),
            ("a: *nobody", "f:1:4: "),
            ("a: &x [*x]", "f:1:8: "),
        ] {
            let (node, errors) = parsed(text);
            assert!(node.is_none(), "{text:?}");
            assert_eq!(errors.len(), 1, "{text:?}");
            assert!(errors[0].starts_with(place), "{text:?}: {errors:?}");
        }
    }

    #[test]
    fn neither_depth_nor_aliases_can_exhaust_the_process() {
        let deep = "- ".repeat(200_000);
        let flow = "[".repeat(100_000);
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let last = i - 1;
            laughs.push_str(&format!("a{i}: &a{i} [{}]\n", format!("*a{last}, ").repeat(10)));
        }
        for text in [deep, flow, laughs] {
            let (node, errors) = parsed(&text);
            assert!(node.is_none());
            assert_eq!(errors.len(), 1);
        }
    }
}
