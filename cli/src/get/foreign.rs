//! [`Foreign`]: flags of Dragonfly's dfget and dfcache, from 1.0 to 2.3, that stand in scripts and have no meaning of their
//! own here. Those that change nothing that its user could miss are named in a warning; those that ask for something that he
//! would miss end the command with a sentence. None stands in the help.

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::exit::{self, Failure};

/// A flag.
struct Flag {
    name: &'static str,
    takes_value: bool,
    verdict: Verdict,
}

/// What becomes of it.
#[derive(Clone, Copy)]
enum Verdict {
    /// Nothing, because of this.
    NoEffect(&'static str),
    /// The command ends, with this.
    Refused(&'static str),
}

use Verdict::{NoEffect, Refused};

const OF_DAEMON: &str = "the daemon's configuration says that";
const OF_LOG: &str = "--log-level and standard error are the log of a command";
const ALWAYS: &str = "it is always so";
const STORAGE: &str = "only http:// and https:// URLs are downloaded";
const TRUST: &str = "whom to trust at an origin, the daemon's configuration says (upstream.hosts)";
const TO_SOURCE: &str =
    "who goes to the origin, the scheduler says for all: no command can keep the daemon from it";

const FLAGS: [Flag; 34] = [
    flag("piece-length", true, NoEffect("it follows from the content's length")),
    flag("pattern", true, NoEffect("there is one way to download")),
    flag("callsystem", true, NoEffect("--application says for whom it is")),
    flag("workhome", true, NoEffect(OF_DAEMON)),
    flag("datadir", true, NoEffect(OF_DAEMON)),
    flag("cachedir", true, NoEffect(OF_DAEMON)),
    flag("home", true, NoEffect(OF_DAEMON)),
    flag("alivetime", true, NoEffect(OF_DAEMON)),
    flag("expiretime", true, NoEffect(OF_DAEMON)),
    flag("ttl", true, NoEffect(OF_DAEMON)),
    flag("totallimit", true, NoEffect(OF_DAEMON)),
    flag("minrate", true, NoEffect("nobody is given less than there is")),
    flag("clientqueue", true, NoEffect(OF_DAEMON)),
    flag("node", true, NoEffect("the daemon knows its schedulers")),
    flag("ip", true, NoEffect(OF_DAEMON)),
    flag("port", true, NoEffect(OF_DAEMON)),
    flag("dfdaemon", false, NoEffect("it changes nothing who calls")),
    flag("log-dir", true, NoEffect(OF_LOG)),
    flag("logdir", true, NoEffect(OF_LOG)),
    flag("log-max-files", true, NoEffect(OF_LOG)),
    flag("console", false, NoEffect(OF_LOG)),
    flag("verbose", false, NoEffect(OF_LOG)),
    flag("no-progress", false, NoEffect("--quiet shows none")),
    flag("overwrite", false, NoEffect(ALWAYS)),
    flag("transfer-from-dfdaemon", false, NoEffect(ALWAYS)),
    flag(
        "force-hard-link",
        false,
        Refused("no link into the store is given away: whoever has it could change what others get"),
    ),
    flag("disable-back-source", false, Refused(TO_SOURCE)),
    flag("disable-back-to-source", false, Refused(TO_SOURCE)),
    flag("notbs", false, Refused(TO_SOURCE)),
    flag("md5", true, Refused("MD5 proves nothing; say --digest sha256:HEX")),
    flag("cacerts", true, Refused(TRUST)),
    flag("insecure", false, Refused(TRUST)),
    flag("storage-endpoint", true, Refused(STORAGE)),
    flag(
        "content-for-calculating-task-id",
        true,
        Refused("a name that a caller makes up is nobody's; say --tag"),
    ),
];

const fn flag(name: &'static str, takes_value: bool, verdict: Verdict) -> Flag {
    Flag { name, takes_value, verdict }
}

/// Those of them that were given.
#[derive(Debug, Default)]
pub(crate) struct Foreign(Vec<&'static str>);

impl clap::Args for Foreign {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| {
            let arg = Arg::new(flag.name).long(flag.name).hide(true).global(true);
            command.arg(match flag.takes_value {
                true => arg.action(ArgAction::Append).allow_hyphen_values(true),
                // As `--console=true`, too.
                false => arg
                    .action(ArgAction::Set)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Foreign {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |flag: &&Flag| {
            let values = matches.try_get_many::<String>(flag.name).ok().flatten();
            // `--console=false` is as good as nothing.
            values.is_some_and(|mut values| flag.takes_value || values.any(|value| value != "false"))
        };
        Ok(Self(FLAGS.iter().filter(given).map(|flag| flag.name).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Foreign {
    /// A warning for each that has no effect.
    ///
    /// # Errors
    /// When one of them asks for what cannot be done.
    pub(crate) fn judge(&self) -> exit::Result<Vec<String>> {
        let mut warnings = Vec::new();
        for flag in FLAGS.iter().filter(|flag| self.0.contains(&flag.name)) {
            match flag.verdict {
                NoEffect(why) => warnings.push(format!("warning: --{} has no effect: {why}", flag.name)),
                Refused(why) => return Err(Failure::usage_because(format!("--{}: {why}", flag.name))),
            }
        }
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    fn judged(args: &[&str]) -> Result<Vec<String>, String> {
        let command = Foreign::augment_args(Command::new("dfget").arg(Arg::new("url")));
        let matches = command.try_get_matches_from([&["dfget"], args].concat()).unwrap();
        Foreign::from_arg_matches(&matches).unwrap().judge().map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_has_no_effect_is_named_and_what_would_be_missed_refused() {
        let said = judged(&["--piece-length", "3", "--console", "http://a/b", "--verbose=false"]).unwrap();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("--piece-length has no effect") && said[1].contains("--console"));
        assert_eq!(judged(&["http://a/b"]).unwrap(), [""; 0]);
        for (refused, word) in [("--disable-back-source", "scheduler"), ("--md5=x", "sha256")] {
            assert!(judged(&[refused]).unwrap_err().contains(word), "{refused}");
        }
    }
}
