//! `darter ca`, and the CA with which a daemon starts: the operator's, or our own in `workHome/ca`.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use darter_certs::{
    AuthorityError, CaFolder, CaRole, CaSet, Leaves, PermittedNames, RotationError, date_text,
};

use rustls::pki_types::CertificateDer;

use crate::args;
use crate::config::{self, Ca, Config, Signing, directories};
use crate::exit::{self, Failure};

/// The CA that a command is about.
struct Meant {
    source: Source,
    /// What the configuration adds for clients to trust.
    publish: Vec<CertificateDer<'static>>,
    /// What a CA of our own is to be made for; `None`: nobody said.
    permitted: Option<PermittedNames>,
}

enum Source {
    /// In two files that the operator keeps, which this configuration names.
    Operator(Ca, PathBuf),
    /// In a folder of our own.
    Own(CaFolder),
}

// === a daemon's start ===

/// What happens where there is no CA of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// One is made: clients know of none yet.
    Made,
    /// That is an error: clients trust the one that was there.
    Error,
}

/// The CAs for intercepted hosts: the operator's, or our own. `None` when no host is intercepted, and it does not sign for the
/// proxy port either.
///
/// # Errors
/// When our own can be neither read nor made.
pub(crate) fn authorities(config: &Config, missing: Missing) -> exit::Result<Option<Ca>> {
    let Signing { ca, permitted, publish, .. } = &config.proxy.signing;
    let ca = match ca {
        Some(ca) => ca.clone(),
        None if !config.proxy.intercepts() && !config.proxy.signs_for_port() => return Ok(None),
        None => {
            let folder = CaFolder::at(&directories::ca(&config.work_home));
            let authorities = match missing {
                Missing::Made => folder.load_or_generate(permitted).map_err(unusable)?,
                Missing::Error => folder.load().map_err(unusable)?,
            };
            Ca { authorities, file: folder.certificate().to_owned() }
        }
    };
    Ok(Some(Ca { authorities: ca.authorities.publishing(publish.iter().cloned()), ..ca }))
}

/// Leaves of these CAs, made as the configuration says.
///
/// # Errors
/// When the system gives no randomness.
pub(crate) fn leaves(ca: &Ca, signing: &Signing) -> exit::Result<Leaves> {
    let leaves = Leaves::new(ca.authorities.clone())
        .map_err(|error| Failure::software(format!("cannot sign for intercepted hosts: {error}")))?;
    Ok(leaves.with(ca.authorities.clone(), signing.options))
}

/// Tells the log which CAs there are, and what is odd about them.
pub(crate) fn tell(ca: &Ca, signing: &Signing) {
    let fingerprint = ca.authorities.signer().fingerprint_sha256();
    tracing::info!(file = %ca.file.display(), %fingerprint, "the CA that clients must trust");
    for other in ca.authorities.view().into_iter().filter(|it| it.role != CaRole::Signs) {
        let role = role(&other.role);
        tracing::info!(fingerprint = other.fingerprint_sha256, role, "a CA that clients are told of, too");
    }
    tell_names(ca, signing);
}

/// Tells the log when the CA is for other names than the configuration says: it says so when one is made.
pub(crate) fn tell_names(ca: &Ca, signing: &Signing) {
    let made_for = ca.authorities.signer().permitted();
    if signing.ca.is_none() && made_for != signing.permitted {
        tracing::warn!(
            "the CA was made for {made_for}, and proxy.hijackHTTPS.nameConstraints says {}; `darter ca rotate` makes another",
            signing.permitted
        );
    }
}

// === the command ===

/// `darter ca show`.
pub(crate) fn show(args: &args::CaPlace) -> exit::Result {
    let Meant { source, publish, .. } = meant(args)?;
    let ca = match source {
        Source::Operator(ca, _) => ca,
        Source::Own(folder) => {
            Ca { authorities: folder.read().map_err(unusable)?, file: folder.certificate().to_owned() }
        }
    };
    let text = description(&ca.authorities.publishing(publish));
    exit::say(io::stdout(), &format!("{}\n{text}", ca.file.display()));
    Ok(())
}

/// `darter ca rotate`.
pub(crate) fn rotate(args: &args::Rotate) -> exit::Result {
    let Meant { source, permitted, .. } = meant(&args.place)?;
    let folder = match source {
        Source::Own(folder) => folder,
        Source::Operator(_, config) => {
            return Err(Failure::not_now(format!(
                "{} names the CA (proxy.hijackHTTPS.cert), so it is yours to make: put its successor's certificate under \
                 proxy.hijackHTTPS.publish until every client trusts it, then let cert and key name the successor and publish \
                 the old one, then take that out",
                config.display()
            )));
        }
    };
    // Nothing is made where no daemon has ever been: that would be another folder than the one that is meant.
    let set = folder.read().map_err(unusable)?;
    let (set, said) = if args.activate {
        (folder.activate(), "the successor signs; clients are still told of its predecessor")
    } else if args.finish {
        (folder.finish(), "the predecessor is forgotten; clients can take it out of what they trust")
    } else if args.back {
        (folder.back(), "one step back")
    } else {
        let from = args.after.map(|after| SystemTime::now() + after);
        let permitted = permitted.unwrap_or_else(|| set.signer().permitted());
        (folder.announce(&permitted, from), "a successor is made; let every client trust it before it signs")
    };
    let set = set.map_err(refused)?;
    let mut text = format!("{said}\n");
    if !(args.activate || args.finish || args.back) {
        // A String takes everything.
        let _ = writeln!(text, "for other nodes with the same CA: copy {}", folder.successor().display());
    }
    exit::say(io::stdout(), &(text + &description(&set)));
    Ok(())
}

fn meant(place: &args::CaPlace) -> exit::Result<Meant> {
    let Some(file) = &place.config else {
        let home = place.data_dir.clone().unwrap_or_else(directories::work_home);
        return Ok(Meant { source: Source::Own(own(&home)), publish: Vec::new(), permitted: None });
    };
    let loaded = config::load(file).map_err(|report| Failure::configuration(report.to_string()))?;
    let Signing { ca, permitted, publish, .. } = loaded.config.proxy.signing;
    let source = match ca {
        Some(ca) => Source::Operator(ca, file.clone()),
        None => Source::Own(own(&loaded.config.work_home)),
    };
    Ok(Meant { source, publish, permitted: Some(permitted) })
}

fn own(work_home: &Path) -> CaFolder {
    CaFolder::at(&directories::ca(work_home))
}

fn unusable(error: impl Into<AuthorityError>) -> Failure {
    Failure::own_files(format!("cannot use the CA of this host: {}", error.into()))
}

fn refused(error: RotationError) -> Failure {
    match error {
        RotationError::Authority(error) => unusable(error),
        other => Failure::not_now(other.to_string()),
    }
}

/// What there is, for people.
fn description(set: &CaSet) -> String {
    let mut text = String::new();
    for ca in set.view() {
        // A String takes everything.
        let _ = write!(
            text,
            "\n{}, {}\n  SHA-256 {}\n  until {}, for {}\n",
            ca.subject,
            role(&ca.role),
            ca.fingerprint_sha256,
            date_text(ca.not_after),
            ca.permitted
        );
    }
    text.truncate(text.trim_end().len());
    text
}

fn role(role: &CaRole) -> String {
    match role {
        CaRole::Signs => "signs".to_owned(),
        CaRole::Next(Some(from)) => format!("announced, signs from {}", date_text(*from)),
        CaRole::Next(None) => "announced, signs when it is activated".to_owned(),
        CaRole::Published => "published, signs nothing".to_owned(),
    }
}

/// How long a successor is announced: a length of time, in days, too.
pub(crate) fn overlap(text: &str) -> Result<Duration, String> {
    const DAY: u32 = 86_400;
    // A CA lives for ten years, its successor for no longer.
    const MOST: Duration = Duration::from_secs(3650 * DAY as u64);
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    let time = match days {
        Some(days) => Duration::from_secs(u64::from(days) * u64::from(DAY)),
        None => {
            config::value::duration(text).map_err(|why| why.replace("such as 30s", "such as 14d, 30s"))?
        }
    };
    if time > MOST { Err(format!("`{text}` is longer than a CA lives")) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_told_in_days_too() {
        assert_eq!(overlap("14d"), Ok(Duration::from_secs(14 * 86_400)));
        assert_eq!(overlap("36h"), Ok(Duration::from_secs(36 * 3600)));
        assert!(overlap("soon").unwrap_err().contains("such as 14d"));
        assert!(overlap("4000d").unwrap_err().contains("longer than a CA lives"));
        assert!(overlap("99999999999d").is_err());
    }

    #[test]
    fn our_own_ca_is_made_as_the_configuration_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config::defaults();
        config.keep_in(dir.path().to_owned());
        assert!(authorities(&config, Missing::Made).unwrap().is_none(), "nothing is intercepted");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        config.proxy.intercept_everything();
        config.proxy.signing.permitted = PermittedNames::new(["example.org".parse().unwrap()]);
        assert!(authorities(&config, Missing::Error).is_err());
        let ca = authorities(&config, Missing::Made).unwrap().unwrap();
        assert_eq!(ca.authorities.signer().permitted(), config.proxy.signing.permitted);
        let text = description(&ca.authorities);
        assert!(text.contains(", signs\n  SHA-256 ") && text.ends_with(", for example.org"), "{text}");
    }
}
