//! The files that an HTTP index names: the pages that nginx (autoindex), Apache (mod_autoindex), Caddy, lighttpd and
//! Python's http.server make of a folder. All of them are links; a link that ends with a slash is a folder.
//!
//! A page is a stranger's word: only links below itself on the same host count, each at most once, to a bounded depth and
//! number, and a name that is no plain file's name is passed over.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use super::Below;
use super::part::cannot_write;
use super::show::Show;
use super::transfer::{Job, Transfer};
use crate::exit::{self, Failure};

/// Folders and files of one download. More is a site that makes links without end.
const MAX_LINKS: usize = 1_000_000;

/// The characters of HTML that may stand in a link's value in other words.
const ENTITIES: [(&str, &str); 5] =
    [("&quot;", "\""), ("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")];

/// Downloads every file below the index at `url` into `folder`.
///
/// # Errors
/// When the index cannot be read; when any file cannot be had, after all the others, with the first of the reasons.
pub(super) async fn download(
    transfer: &mut Transfer,
    url: &Url,
    folder: &Path,
    below: &Below,
    show: &Show,
) -> exit::Result {
    let mut top = url.clone();
    top.set_fragment(None);
    if !top.path().ends_with('/') {
        top.set_path(&format!("{}/", url.path()));
    }
    let mut folders = vec![(top.clone(), folder.to_owned(), 0)];
    let (mut seen, mut failed) = (HashSet::from([top]), None);
    while let Some((index, folder, depth)) = folders.pop() {
        for link in links(&transfer.page(&index).await?, &index) {
            let Some(name) = last_name(&link) else { continue };
            if seen.len() >= MAX_LINKS {
                return Err(Failure::not_now(format!("{url} names more than {MAX_LINKS} files")));
            }
            if !seen.insert(link.clone()) {
                continue;
            }
            if link.path().ends_with('/') {
                if depth < below.level {
                    folders.push((link, folder.join(name), depth + 1));
                }
            } else if below.means(&link) {
                if below.list {
                    show.url(link.as_str());
                } else if let Err(failure) = one(transfer, &link, (&folder, &name), show).await {
                    show.failed(link.as_str(), &failure);
                    failed.get_or_insert(failure);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn one(transfer: &mut Transfer, url: &Url, (folder, name): (&Path, &str), show: &Show) -> exit::Result {
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    let output: PathBuf = folder.join(name);
    let job = Job { url: url.to_string(), output, range: None, in_place: false };
    let outcome = transfer.run(&job, show).await;
    show.file(&job, outcome)
}

impl Below {
    fn means(&self, url: &Url) -> bool {
        let accepted = self.accept_regex.as_ref().is_none_or(|regex| regex.is_match(url.as_str()));
        accepted && !self.reject_regex.as_ref().is_some_and(|regex| regex.is_match(url.as_str()))
    }
}

/// The links of a page that lead right below it, in their order.
fn links(page: &[u8], index: &Url) -> Vec<Url> {
    let page = String::from_utf8_lossy(page);
    let mut links = Vec::new();
    let mut rest: &str = &page;
    while let Some((value, behind)) = next_href(rest) {
        rest = behind;
        let value = ENTITIES.iter().fold(value.to_owned(), |text, (entity, is)| text.replace(entity, is));
        let Ok(link) = index.join(value.trim()) else { continue };
        let is_here = link.origin() == index.origin() && link.query().is_none() && link.fragment().is_none();
        let below =
            link.path().strip_prefix(index.path()).map(|below| below.strip_suffix('/').unwrap_or(below));
        if is_here && below.is_some_and(|below| !below.is_empty() && !below.contains('/')) {
            links.push(link);
        }
    }
    links
}

/// The value of the next `href`, and what stands behind it.
fn next_href(text: &str) -> Option<(&str, &str)> {
    let mut from = 0;
    loop {
        let at = from + find_ignoring_case(&text[from..], "href")?;
        let behind = text[at + 4..].trim_start();
        let Some(value) = behind.strip_prefix('=').map(str::trim_start) else {
            from = at + 4;
            continue;
        };
        return Some(match value.chars().next().filter(|quote| matches!(quote, '"' | '\'')) {
            Some(quote) => value[1..].split_once(quote)?,
            None => {
                let end = value.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(value.len());
                value.split_at(end)
            }
        });
    }
}

/// `word` is of ASCII.
fn find_ignoring_case(text: &str, word: &str) -> Option<usize> {
    text.as_bytes().windows(word.len()).position(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

fn last_name(url: &Url) -> Option<String> {
    let path = url.path().strip_suffix('/').unwrap_or(url.path());
    file_name(path.rsplit('/').next()?)
}

/// The name of a file that a part of a URL's path stands for; `None` when that is none, or leads elsewhere.
pub(super) fn file_name(part: &str) -> Option<String> {
    let name = percent_decode_str(part).decode_utf8().ok()?.into_owned();
    let is_plain = !matches!(name.as_str(), "" | "." | "..")
        && !name.contains('/')
        && !name.contains(char::is_control)
        && name.len() <= 240;
    is_plain.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str) -> Vec<String> {
        let index: Url = "http://a.example/pub/x/".parse().unwrap();
        links(page.as_bytes(), &index).iter().map(|link| link.path().to_owned()).collect()
    }

    #[test]
    fn the_pages_of_nginx_and_apache_are_understood() {
        let nginx = "<h1>Index of /pub/x/</h1><hr><pre><a href=\"../\">../</a>\n<a href=\"sub/\">sub/</a>  -\n\
                     <a href=\"a%20b.tar\">a b.tar</a> 5\n</pre>";
        assert_eq!(found(nginx), ["/pub/x/sub/", "/pub/x/a%20b.tar"]);
        let apache = "<tr><th><a href=\"?C=N;O=D\">Name</a></th></tr><tr><td><A HREF='/pub/'>Parent Directory</A></td></tr>\
                      <tr><td><a href=\"c&amp;d.iso\">c&amp;d.iso</a></td></tr><a href=e.txt>e</a>";
        assert_eq!(found(apache), ["/pub/x/c&d.iso", "/pub/x/e.txt"]);
    }

    #[test]
    fn what_leads_elsewhere_is_passed_over() {
        for elsewhere in [
            "http://b.example/pub/x/f",
            "https://a.example/pub/x/f",
            "//b.example/f",
            "/etc/f",
            "../f",
            "f?x",
            "f#x",
            "sub/f",
            "",
            ".",
            "javascript:f",
        ] {
            assert_eq!(found(&format!("<a href=\"{elsewhere}\">")), [""; 0], "{elsewhere}");
        }
        assert_eq!(found("href"), [""; 0]);
        assert_eq!(found("<a href=\"unclosed"), [""; 0]);
        for name in ["..", "%2e%2e", "a%2fb", "%00", "a%1b[2J", "a%0a", "%c2%9b", ""] {
            assert_eq!(file_name(name), None, "{name}");
        }
    }
}
