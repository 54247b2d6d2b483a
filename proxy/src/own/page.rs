//! [`Page`]: what people read of this proxy, as HTML or as text.

use super::address::Address;
use super::recipes::{RECIPES, Recipe};
use crate::Settings;
use http::header::{ACCEPT, HeaderMap};

/// How a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Html,
    Text,
}

impl Form {
    /// Browsers ask for HTML by name; curl and wget take anything.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        if values.any(|value| value.to_ascii_lowercase().contains("text/html")) {
            Self::Html
        } else {
            Self::Text
        }
    }
}

/// What a page is about.
pub(super) struct Page<'a> {
    pub(super) address: &'a Address,
    pub(super) settings: &'a Settings,
}

/// A piece of a page.
enum Part {
    Heading(String),
    Says(String),
    /// Lines to paste.
    Commands(String),
    /// A page of ours, and what it is.
    Link(&'static str, &'static str),
}

impl Page<'_> {
    /// What this is, and where to go on.
    pub(super) fn index(&self, form: Form) -> String {
        let mut parts = vec![Part::Says(format!(
            "This is Darter at {}, a proxy for registries: image layers and packages are fetched once and then shared by the \
             nodes of its cluster.",
            self.address
        ))];
        parts.extend([
            Part::Link("/setup", "what to paste for each client"),
            Part::Link("/setup.sh", "a script that makes this host trust the CA"),
            Part::Link("/setup/systemd", "the same, and dockerd uses the proxy"),
            Part::Link("/ca.crt", "the CA's certificate, PEM"),
            Part::Link("/ca.der", "the same, DER"),
            Part::Link("/healthy", "200 while the proxy serves"),
        ]);
        written(form, "Darter", &parts)
    }

    /// What to paste for each client.
    pub(super) fn setup(&self, form: Form) -> String {
        let mut parts = vec![Part::Says(self.about_ca())];
        if self.settings.basic_auth.is_some() {
            parts.push(Part::Says(
                "This proxy asks for a user name and a password: in proxy URLs write NAME:PASSWORD@ before the host.".to_owned(),
            ));
        }
        let has_ca = self.settings.leaves.is_some();
        for Recipe { client, says, commands } in RECIPES {
            let about_ca_alone = commands.contains("/setup.sh") || commands.contains("/setup/systemd");
            if about_ca_alone && !has_ca {
                continue;
            }
            parts.push(Part::Heading((*client).to_owned()));
            parts.push(Part::Says((*says).to_owned()));
            parts.push(Part::Commands(commands.replace("{proxy}", &self.address.to_string())));
        }
        written(form, &format!("Clients of the proxy at {}", self.address), &parts)
    }

    fn about_ca(&self) -> String {
        match &self.settings.leaves {
            Some(leaves) => format!(
                "SHA-256 fingerprint of its CA: {}. Over plain HTTP anybody on the way could hand out another: compare it with what \
                 the proxy's operator sees (`darter ca show`), or give it to the script: sh -s -- --fingerprint HEX.",
                leaves.authority().fingerprint_sha256()
            ),
            None => "This proxy intercepts nothing: there is no CA to trust.".to_owned(),
        }
    }
}

fn written(form: Form, title: &str, parts: &[Part]) -> String {
    match form {
        Form::Html => html(title, parts),
        Form::Text => text(title, parts),
    }
}

fn text(title: &str, parts: &[Part]) -> String {
    let mut text = format!("{title}\n");
    for part in parts {
        text.push_str(&match part {
            Part::Heading(heading) => format!("\n== {heading}\n"),
            Part::Says(sentence) => format!("{sentence}\n"),
            Part::Commands(lines) => lines.lines().map(|line| format!("    {line}\n")).collect(),
            Part::Link(path, what) => format!("  {path:16} {what}\n"),
        });
    }
    text
}

fn html(title: &str, parts: &[Part]) -> String {
    let title = escaped(title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title>\n<style>body{{font:16px/1.5 sans-serif;max-width:52em;margin:2em auto;padding:0 1em}}\
         pre{{background:#eee;padding:.6em;overflow-x:auto}}</style>\n<h1>{title}</h1>\n"
    );
    for part in parts {
        html.push_str(&match part {
            Part::Heading(heading) => format!("<h2>{}</h2>\n", escaped(heading)),
            Part::Says(sentence) => format!("<p>{}</p>\n", escaped(sentence)),
            Part::Commands(lines) => format!("<pre>{}</pre>\n", escaped(lines)),
            Part::Link(path, what) => {
                let (path, what) = (escaped(path), escaped(what));
                format!("<p><a href=\"{path}\">{path}</a> {what}</p>\n")
            }
        });
    }
    html
}

/// As the text of an element or the value of an attribute in quotes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn browsers_get_html_and_others_text() {
        let wanted = |accept: &'static str| {
            Form::wanted(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert_eq!(wanted("text/html,application/xhtml+xml,*/*;q=0.8"), Form::Html);
        assert_eq!(wanted("*/*"), Form::Text);
        assert_eq!(Form::wanted(&HeaderMap::new()), Form::Text);
    }

    #[test]
    fn nothing_in_a_page_is_markup_that_is_not_ours() {
        let parts =
            [Part::Heading("<a>".into()), Part::Says("b & 'c'".into()), Part::Commands("\"d\"".into())];
        let html = written(Form::Html, "<script>", &parts);
        for found in [
            "<title>&lt;script&gt;</title>",
            "<h2>&lt;a&gt;</h2>",
            "b &amp; &#39;c&#39;",
            "<pre>&quot;d&quot;</pre>",
        ] {
            assert!(html.contains(found), "{found}: {html}");
        }
    }

    #[test]
    fn every_command_is_one_that_a_shell_understands() {
        for Recipe { client, commands, .. } in RECIPES {
            if commands.starts_with('{') {
                continue;
            }
            let commands = commands.replace("{proxy}", "http://proxy.example:65001");
            assert!(!commands.contains("{proxy}"), "{client}");
            let checked = std::process::Command::new("sh").args(["-n", "-c", &commands]).status().unwrap();
            assert!(checked.success(), "{client}: {commands}");
        }
    }
}
