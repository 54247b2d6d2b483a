//! [`Origins`]: which origins want to be left alone, and until when.
//!
//! What an origin says to one download holds for all of this host: a hundred downloads that each try again at their own pace
//! are what a registry that has had enough does not need. Plain state behind a lock, `now` passed in.

use crate::Backoff;
use crate::origin::{self, Answer, Ask, OriginError, Source};
use darter_upstream::{InTurn, Incoming, Kind, Stage, Upstream, UpstreamError};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use url::{Origin, Url};

/// An origin is not left alone for longer, whatever it says: clients wait.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// So many errors of an origin in a row are a reason to leave it alone. Fewer may be the fault of what it was asked for: whoever asks for that again
/// and again must not hold up all others.
const ERRORS: u32 = 3;

/// Origins that are remembered. More fail at once only when the network does.
const MAX_ORIGINS: usize = 1024;

/// How long somebody waits until an origin is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For an origin that wants to be left alone.
    pub(crate) pause: Duration,
    /// For one that has as many requests as it may have.
    pub(crate) turn: InTurn,
}

/// Which origins want to be left alone.
#[derive(Debug)]
pub(crate) struct Origins {
    backoff: Backoff,
    pauses: Mutex<HashMap<Origin, Pause>>,
}

/// Why an origin is left alone, or nearly.
#[derive(Debug, Clone, Copy)]
struct Pause {
    began: Instant,
    until: Instant,
    /// Pauses in a row, this one among them: each after a refusal when the one before was over.
    times: u32,
    /// Errors of its own in a row, for whatever it was asked.
    errors: u32,
}

/// What an origin's answer says about the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// It gives what it has, or says where that is.
    Gives,
    /// It wants to be left alone, as long as it says; or cannot be reached.
    Busy(Option<Duration>),
    /// It failed at what it was asked for. That may be at fault, and only several in a row say that it is the origin.
    Failed,
    /// Nothing.
    Neutral,
}

/// One fetch, and those to which it is led: each origin is asked when it may be, or when patience ends.
pub(crate) struct Asking<'a> {
    pub(crate) upstream: &'a Upstream,
    origins: &'a Origins,
    latest: Instant,
    turn: InTurn,
}

impl Asking<'_> {
    /// Sends a request to the origin of `url`. What comes of it holds for all who ask there.
    pub(crate) async fn send(
        &self,
        url: &Url,
        request: Request<darter_upstream::Body>,
    ) -> Result<Response<Incoming>, Arc<UpstreamError>> {
        self.origins.wait(url, self.latest).await;
        let asked = Instant::now();
        let answer = self.upstream.send_in_turn(request, self.turn).await;
        let news = match &answer {
            Ok(response) => of_answer(response.status(), response.headers()),
            Err(error) => of_error(error),
        };
        self.origins.hear(url, news, (asked, Instant::now()));
        answer.map_err(Arc::new)
    }
}

impl Origins {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, pauses: Mutex::default() }
    }

    /// Asks for content when its origin may be asked, or when patience ends.
    pub(crate) async fn fetch(
        &self,
        upstream: &Upstream,
        source: &Source,
        asks: (Ask, Option<&HeaderValue>),
        patience: Patience,
    ) -> Result<Answer, OriginError> {
        let latest = Instant::now() + patience.pause;
        origin::fetch(&Asking { upstream, origins: self, latest, turn: patience.turn }, source, asks).await
    }

    /// Something is known of an origin, which was `asked`, `now`.
    fn hear(&self, url: &Url, news: News, (asked, now): (Instant, Instant)) {
        let mut pauses = self.lock();
        let origin = url.origin();
        // What is long past says nothing about now.
        let before = pauses.get(&origin).copied().filter(|before| before.until + LONGEST > now);
        // What was on its way when the pause began does not end it.
        let is_news = before.is_some_and(|before| asked > before.began || before.until <= now);
        let errors = before.map_or(0, |before| before.errors) + u32::from(news == News::Failed);
        let asked_for = match news {
            News::Neutral => return,
            News::Gives => {
                if is_news {
                    pauses.remove(&origin);
                }
                return;
            }
            News::Busy(asked_for) => asked_for,
            News::Failed => None,
        };
        let paused = before.filter(|before| before.times > 0 && before.until > now);
        let pause = if news == News::Failed && errors < ERRORS {
            let none = Pause { began: now, until: now, times: 0, errors };
            before.map_or(none, |before| Pause { errors, ..before })
        } else {
            // Those that were on their way when the pause began say nothing new.
            let times = before.map_or(0, |before| before.times) + u32::from(paused.is_none());
            let own = self.backoff.first.saturating_mul(1 << (times - 1).min(16)).min(self.backoff.most);
            let until = now + asked_for.unwrap_or(own).min(LONGEST);
            Pause {
                began: paused.map_or(now, |paused| paused.began),
                until: paused.map_or(until, |paused| paused.until.max(until)),
                times,
                errors,
            }
        };
        if pauses.len() >= MAX_ORIGINS {
            pauses.retain(|_, pause| pause.until > now);
        }
        if pauses.len() < MAX_ORIGINS || pauses.contains_key(&origin) {
            pauses.insert(origin, pause);
        }
    }

    /// When an origin may be asked; `None` for now.
    fn due_at(&self, url: &Url, now: Instant) -> Option<Instant> {
        self.lock().get(&url.origin()).map(|pause| pause.until).filter(|until| *until > now)
    }

    /// Waits until an origin may be asked, and no longer than until `latest`.
    async fn wait(&self, url: &Url, latest: Instant) {
        // Others may be refused meanwhile, and the pause grow.
        while let Some(due) = self.due_at(url, Instant::now())
            && Instant::now() < latest
        {
            tokio::time::sleep_until(due.min(latest)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Pause>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_answer(status: StatusCode, headers: &HeaderMap) -> News {
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => News::Busy(retry_after(headers)),
        StatusCode::INTERNAL_SERVER_ERROR => News::Failed,
        // A range that lies outside has been looked up, too.
        StatusCode::RANGE_NOT_SATISFIABLE => News::Gives,
        _ if status.is_success() || status.is_redirection() => News::Gives,
        _ => News::Neutral,
    }
}

fn of_error(error: &UpstreamError) -> News {
    match error.kind {
        // The line is this host's.
        Kind::Timeout { stage: Stage::Turn, .. } => News::Neutral,
        Kind::Resolve { .. } | Kind::Connect { .. } | Kind::Timeout { .. } | Kind::Closed { .. } => {
            News::Busy(None)
        }
        _ => News::Neutral,
    }
}

/// How long an origin wants to be left alone, by its answer's headers: seconds, or a date (RFC 9110 section 10.2.3).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Some(seconds) = crate::http_range::number(value) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(500), most: Duration::from_secs(3), attempts: 3 };

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    /// An origin has answered what it was asked, then, with this status, and this Retry-After if it is not empty.
    fn tell(
        origins: &Origins,
        url: &Url,
        status: StatusCode,
        after: &'static str,
        times: (Instant, Instant),
    ) {
        let after = Some(HeaderValue::from_static(after)).filter(|after| !after.is_empty());
        let headers = after.map(|after| (header::RETRY_AFTER, after)).into_iter().collect();
        origins.hear(url, of_answer(status, &headers), times);
    }

    #[test]
    fn what_one_download_is_told_holds_for_all_and_for_no_other_origin() {
        let (origins, now) = (Origins::new(BACKOFF), Instant::now());
        tell(&origins, &url("https://a.example/1"), StatusCode::TOO_MANY_REQUESTS, "7", (now, now));
        assert_eq!(origins.due_at(&url("https://a.example/2"), now), Some(now + Duration::from_secs(7)));
        assert_eq!(origins.due_at(&url("https://a.example:444/2"), now), None);
        assert_eq!(origins.due_at(&url("https://a.example/"), now + Duration::from_secs(7)), None);
    }

    #[test]
    fn without_a_word_the_pauses_grow_until_it_gives_again() {
        let (origins, url) = (Origins::new(BACKOFF), url("http://a.example/"));
        let mut now = Instant::now();
        for expected in [500, 1000, 2000, 3000, 3000] {
            // A hundred that were refused together are one refusal.
            for _ in 0..100 {
                tell(&origins, &url, StatusCode::SERVICE_UNAVAILABLE, "", (now, now));
            }
            let due = origins.due_at(&url, now).unwrap();
            assert_eq!(due - now, Duration::from_millis(expected));
            now = due;
        }
        tell(&origins, &url, StatusCode::NOT_FOUND, "", (now, now));
        tell(&origins, &url, StatusCode::SERVICE_UNAVAILABLE, "", (now, now));
        let due = origins.due_at(&url, now).unwrap();
        assert_eq!(due - now, Duration::from_secs(3), "a 404 is no recovery");
        now = due;
        tell(&origins, &url, StatusCode::OK, "", (now, now));
        assert_eq!(origins.due_at(&url, now), None);
        tell(&origins, &url, StatusCode::SERVICE_UNAVAILABLE, "", (now, now));
        assert_eq!(origins.due_at(&url, now).unwrap() - now, BACKOFF.first);
    }

    #[test]
    fn an_error_is_its_requests_fault_and_three_in_a_row_the_origins() {
        let (origins, url, now) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        let fail = |now| tell(&origins, &url, StatusCode::INTERNAL_SERVER_ERROR, "", (now, now));
        for _ in 0..10 {
            fail(now);
            fail(now);
            assert_eq!(origins.due_at(&url, now), None);
            tell(&origins, &url, StatusCode::NOT_MODIFIED, "", (now, now));
        }
        (0..3).for_each(|_| fail(now));
        assert_eq!(origins.due_at(&url, now), Some(now + BACKOFF.first));
        let due = now + BACKOFF.first;
        fail(due);
        assert_eq!(origins.due_at(&url, due), Some(due + 2 * BACKOFF.first));
    }

    #[test]
    fn an_origin_that_cannot_be_reached_is_left_alone() {
        let (origins, url, now) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        let hear = |kind| {
            let error = UpstreamError { host: "a.example".to_owned(), port: 80, kind };
            origins.hear(&url, of_error(&error), (now, now));
        };
        hear(Kind::Tls { reason: "expired".to_owned() });
        assert_eq!(origins.due_at(&url, now), None, "to wait does not make it right");
        hear(Kind::Timeout { stage: Stage::Turn, after: Duration::from_secs(1) });
        assert_eq!(origins.due_at(&url, now), None, "the line is ours");
        hear(Kind::Connect { attempts: Vec::new() });
        assert_eq!(origins.due_at(&url, now), Some(now + BACKOFF.first));
    }

    #[test]
    fn what_is_heard_out_of_order_is_counted_all_the_same() {
        let (origins, url, now) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        let later = now + Duration::from_millis(1);
        tell(&origins, &url, StatusCode::INTERNAL_SERVER_ERROR, "", (now, later));
        tell(&origins, &url, StatusCode::SERVICE_UNAVAILABLE, "", (now, now));
        assert_eq!(origins.due_at(&url, now), Some(now + BACKOFF.first));
    }

    #[test]
    fn what_was_on_its_way_does_not_end_a_pause() {
        let (origins, url, asked) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        let at = |seconds| asked + Duration::from_secs(seconds);
        let tell = |status, times| tell(&origins, &url, status, "7", times);
        tell(StatusCode::TOO_MANY_REQUESTS, (asked, at(1)));
        tell(StatusCode::OK, (asked, at(2)));
        assert_eq!(origins.due_at(&url, at(2)), Some(at(8)));
        // Whoever could not wait has asked in the pause, and was given.
        tell(StatusCode::OK, (at(3), at(4)));
        assert_eq!(origins.due_at(&url, at(4)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_grows_is_waited_for() {
        let (origins, url, began) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        tell(&origins, &url, StatusCode::TOO_MANY_REQUESTS, "10", (began, began));
        let grow = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let times = (began, Instant::now());
            tell(&origins, &url, StatusCode::TOO_MANY_REQUESTS, "15", times);
        };
        tokio::join!(origins.wait(&url, Instant::now() + Duration::from_secs(60)), grow);
        assert_eq!(began.elapsed(), Duration::from_secs(20));
    }

    #[test]
    fn what_an_origin_asks_for_is_bounded() {
        let (origins, now) = (Origins::new(BACKOFF), Instant::now());
        for (value, expected) in [
            ("86400", LONGEST),
            ("18446744073709551616", BACKOFF.first),
            ("soon", BACKOFF.first),
            ("0", Duration::ZERO),
            ("Fri, 31 Dec 1999 23:59:59 GMT", Duration::ZERO),
            ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST),
        ] {
            let url = url(&format!("http://{}.example/", value.len()));
            tell(&origins, &url, StatusCode::TOO_MANY_REQUESTS, value, (now, now));
            assert_eq!(
                origins.due_at(&url, now).map_or(Duration::ZERO, |due| due - now),
                expected,
                "{value}"
            );
        }
        for n in 0..2 * MAX_ORIGINS {
            let url = url(&format!("http://n{n}.example/"));
            tell(&origins, &url, StatusCode::TOO_MANY_REQUESTS, "9", (now, now));
        }
        assert_eq!(origins.lock().len(), MAX_ORIGINS);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_may_not_wait_that_long_asks_before() {
        let (origins, url, began) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        tell(&origins, &url, StatusCode::TOO_MANY_REQUESTS, "30", (began, began));
        origins.wait(&url, Instant::now() + Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        origins.wait(&url, Instant::now() + Duration::from_secs(60)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(30));
        origins.wait(&url, Instant::now() + Duration::from_secs(60)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(30));
    }
}
