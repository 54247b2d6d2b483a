//! How the process ends: [`Failure`], and the exit codes of `sysexits.h` that service managers and scripts know.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// The process cannot go on.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// What a person reads, on standard error. Empty when it was said already.
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The end of a command.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

/// What stands about exit codes in `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  ended as asked (also after SIGTERM or SIGINT)
   64  the command line is wrong
   65  what is there does not fit what was asked for (a digest, a range)
   66  what was asked for is not there
   69  something is not available (an address, the daemon, an origin, nft)
   70  a part of the process failed
   74  a file or folder cannot be used
   75  done in part: here, and not on as many other hosts as was asked for
   77  the origin, or the daemon, does not let you have it
   78  the configuration is wrong
  130  a second SIGINT ended it at once (143: SIGTERM)";

impl Failure {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// The command line is wrong, and that was said already (EX_USAGE).
    pub(crate) fn usage() -> Self {
        Self { code: 64, message: String::new() }
    }

    /// What the command line asks for makes no sense (EX_USAGE).
    pub(crate) fn usage_because(message: impl Into<String>) -> Self {
        Self { code: 64, message: message.into() }
    }

    /// What was asked for does not fit what is there, like the next step of something that was not begun (EX_DATAERR).
    pub(crate) fn not_now(message: impl Into<String>) -> Self {
        Self { code: 65, message: message.into() }
    }

    /// What was asked for is not there (EX_NOINPUT).
    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self { code: 66, message: message.into() }
    }

    /// Whoever has it does not give it to this caller (EX_NOPERM).
    pub(crate) fn not_permitted(message: impl Into<String>) -> Self {
        Self { code: 77, message: message.into() }
    }

    /// Something that must be had from this machine is not to be had, like a port (EX_UNAVAILABLE).
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// A part of the process failed (EX_SOFTWARE).
    pub(crate) fn software(message: impl Into<String>) -> Self {
        Self { code: 70, message: message.into() }
    }

    /// A file or folder cannot be used (EX_IOERR).
    pub(crate) fn own_files(message: impl Into<String>) -> Self {
        Self { code: 74, message: message.into() }
    }

    /// What was asked for was done in part, and may be tried again (EX_TEMPFAIL).
    pub(crate) fn partial(message: impl Into<String>) -> Self {
        Self { code: 75, message: message.into() }
    }

    /// The configuration is wrong (EX_CONFIG).
    pub(crate) fn configuration(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }

    /// A signal that came a second time ended the process, as a shell reports it.
    pub(crate) fn signal(number: u8) -> Self {
        Self { code: 128 + number, message: "stopped at once by a second signal".to_owned() }
    }
}

/// Writes a line for a person. When nobody reads it any more (`darter up | head -1`) that is no reason to stop.
pub(crate) fn say(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

/// Says what is to be said, and gives the process's exit code.
pub(crate) fn report(result: Result) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            if !message.is_empty() {
                say(io::stderr(), &message);
            }
            ExitCode::from(code)
        }
    }
}
