//! [`Written`]: what stands in a configuration file, key by key, to say what is different in the next one.

use std::collections::BTreeMap;
use std::fmt;

use super::yaml::{Data, Node};

/// The text of every single value, by its key's path, like `proxy.proxies[2].regx`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Written(BTreeMap<String, String>);

impl Written {
    pub(super) fn of(root: &Node) -> Self {
        let mut values = BTreeMap::new();
        gather(root, String::new(), &mut values);
        Self(values)
    }

    /// The keys whose values are not the same in both, in order. Only the keys: a value may be a password.
    pub(crate) fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let gone = self.0.keys().filter(|key| !other.0.contains_key(*key));
        let other_or_new = other.0.iter().filter(|(key, value)| self.0.get(*key) != Some(value));
        let mut keys: Vec<&str> = gone.chain(other_or_new.map(|(key, _)| key)).map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The path of a key with `[]` for each item of a list, like `proxy.proxies[].regx`.
pub(crate) fn general(key: &str) -> String {
    let mut parts = key.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |general, part| general + "[" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn gather(node: &Node, path: String, values: &mut BTreeMap<String, String>) {
    match &node.data {
        _ if node.is_null() => {}
        Data::Scalar { text, .. } => {
            values.insert(path, text.clone());
        }
        Data::List(items) => {
            for (index, item) in items.iter().enumerate() {
                gather(item, format!("{path}[{index}]"), values);
            }
        }
        Data::Map(entries) => {
            for entry in entries {
                let dot = if path.is_empty() { "" } else { "." };
                gather(&entry.value, format!("{path}{dot}{}", entry.key), values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Findings;
    use super::super::yaml;
    use super::*;

    fn written(source: &str) -> Written {
        Written::of(&yaml::parse(source, &Findings::default()).unwrap())
    }

    #[test]
    fn what_is_gone_new_or_different_is_named() {
        let old = written("a: 1\nb: {c: x, d: y}\ne: [1, 2]\nf:\n");
        let new = written("a: 1\nb: {c: z}\ne: [1, 2, 3]\ng: true\n");
        assert_eq!(old.differences(&new), ["b.c", "b.d", "e[2]", "g"]);
        assert!(old.differences(&old).is_empty());
    }

    #[test]
    fn a_key_in_general_counts_no_items() {
        assert_eq!(general("proxy.hijackHTTPS.hosts[17].certs[0]"), "proxy.hijackHTTPS.hosts[].certs[]");
        assert_eq!(general("proxy.via"), "proxy.via");
    }

    #[test]
    fn values_are_not_shown() {
        let written = written("proxy: {basicAuth: {password: hunter2}}");
        assert_eq!(format!("{written:?}"), r#"{"proxy.basicAuth.password"}"#);
    }
}
