//! How a download ends before its content was known, and whom of those who wait that concerns.
//!
//! Who joined a download wants the same content, but maybe from another mirror, with another token, or with another priority. An
//! end is passed on only to who would come to the same one: what it hangs on is compared with his own request. Everybody else
//! tries for himself, and one of them is the next first caller.

use crate::schedule::Claim;
use crate::unshareable::Question;
use crate::{OpenError, OpenRequest, Opened};
use darter_upstream::UpstreamError;
use std::sync::Arc;
use url::{Origin, Url};

/// A download that ended before its content was known.
pub(super) struct Ended {
    pub(super) answer: Result<Opened, OpenError>,
    pub(super) for_others: Option<Word>,
}

/// What some of those get who waited for a download.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    error: OpenError,
    to: Whom,
}

/// Whom it concerns.
#[derive(Debug, Clone)]
enum Whom {
    /// Everybody: it has nothing to do with any request.
    All,
    /// Whose content would come from this origin.
    Of(Origin),
    /// Of whose requests a scheduler's rules say the same.
    Claiming(Claim),
    /// Who would ask an origin the same.
    Asking(Question),
}

// === impl Ended ===

impl Ended {
    /// An answer for the first caller alone.
    pub(super) fn answered(answer: Result<Opened, OpenError>) -> Self {
        Self { answer, for_others: None }
    }

    /// The same error for everybody.
    pub(super) fn failed(error: OpenError) -> Self {
        Self::with(error, Whom::All)
    }

    /// Refused by rules that went by this claim; or lets who makes it past the engine, which rules were to allow.
    pub(super) fn of_claim(error: OpenError, claim: &Claim) -> Self {
        Self::with(error, Whom::Claiming(claim.clone()))
    }

    /// The origin could not be asked. Where it led to another host, and that is the one that failed, others may be led elsewhere.
    pub(super) fn unreachable(error: Arc<UpstreamError>, url: &Url, question: Question) -> Self {
        let itself = is_of(&error, url);
        let to = if itself { Whom::Of(url.origin()) } else { Whom::Asking(question) };
        Self::with(OpenError::Upstream(error), to)
    }

    /// The origin's answer to this question can be used by nobody.
    pub(super) fn useless(error: OpenError, question: Question) -> Self {
        Self::with(error, Whom::Asking(question))
    }

    /// The answer to this question is the first caller's; who asks the same gets one of his own past the engine.
    pub(super) fn unshareable(answer: Result<Opened, OpenError>, question: Question) -> Self {
        Self { answer, ..Self::with(OpenError::NotShareable, Whom::Asking(question)) }
    }

    fn with(error: OpenError, to: Whom) -> Self {
        Self { answer: Err(error.clone()), for_others: Some(Word { error, to }) }
    }
}

/// Whether what failed is the host that `url` names.
fn is_of(error: &UpstreamError, url: &Url) -> bool {
    let host = url.host_str().map(|host| host.trim_matches(['[', ']']));
    host == Some(error.host.as_str()) && url.port_or_known_default() == Some(error.port)
}

// === impl Word ===

impl Word {
    /// What it says to who waited with this request; `None` when it does not concern him.
    pub(crate) fn to(&self, request: &OpenRequest) -> Option<OpenError> {
        let concerned = match &self.to {
            Whom::All => true,
            Whom::Of(origin) => request.url.origin() == *origin,
            Whom::Claiming(claim) => Claim::of(request) == *claim,
            Whom::Asking(question) => Question::of(request) == *question,
        };
        concerned.then(|| self.error.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use darter_protocol::{Priority, TaskId};
    use darter_upstream::Kind;

    fn request(url: &str) -> OpenRequest {
        OpenRequest { url: url.parse().unwrap(), ..OpenRequest::imported(TaskId::from([1; 32])) }
    }

    fn tells(ended: &Ended, request: &OpenRequest) -> bool {
        ended.for_others.as_ref().and_then(|word| word.to(request)).is_some()
    }

    fn gone(host: &str, port: u16, first: &OpenRequest) -> Ended {
        let kind = Kind::Resolve { reason: "no such host".to_owned() };
        let error = UpstreamError { host: host.to_owned(), port, kind };
        Ended::unreachable(Arc::new(error), &first.url, Question::of(first))
    }

    #[test]
    fn an_origin_that_is_gone_is_gone_for_those_who_would_go_there() {
        for (host, url) in [("a.example", "https://a.example/x"), ("::1", "https://[::1]/x")] {
            let first = request(url);
            let ended = gone(host, 443, &first);
            assert!(tells(&ended, &first));
            assert!(tells(&ended, &OpenRequest { url: first.url.join("/other").unwrap(), ..first.clone() }));
            for other in ["https://b.example/x", "http://a.example/x", "https://a.example:444/x", "imported:"]
            {
                assert!(!tells(&ended, &request(other)), "{other}");
            }
        }
        // It was led there, and others may be led elsewhere.
        let first = request("https://a.example/x");
        let ended = gone("cdn.example", 443, &first);
        assert!(tells(&ended, &first) && !tells(&ended, &request("https://a.example/other")));
    }

    #[test]
    fn a_refusal_is_for_those_of_whom_the_rules_say_the_same() {
        let first = request("https://a.example/x?1");
        let refused = OpenError::Refused { for_good: true, reason: "no".to_owned() };
        let ended = Ended::of_claim(refused, &Claim::of(&first));
        assert!(tells(&ended, &request("https://a.example/x?2")));
        assert!(!tells(&ended, &request("https://a.example/y")));
        assert!(!tells(&ended, &request("https://b.example/x?1")));
        let urgent = OpenRequest { priority: Priority::level(6).unwrap(), ..first };
        assert!(!tells(&ended, &urgent));
    }

    #[test]
    fn nobody_has_imported_content_is_said_to_all_who_ask_for_it() {
        let first = request("imported:");
        let nobody = OpenError::Origin("nobody has it".to_owned());
        let ended = Ended::useless(nobody, Question::of(&first));
        assert!(tells(&ended, &first) && !tells(&ended, &request("https://a.example/x")));
    }
}
