//! [`Origins`]: which origins want to be left alone, and until when.
//!
//! What an origin says to one download holds for all of this host: a hundred downloads that each try again at their own pace
//! are what a registry that has had enough does not need. Plain state behind a lock, `now` passed in.

use crate::Backoff;
use crate::origin::{self, Answer, Ask, OriginError, Source};
use darter_upstream::{InTurn, Upstream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use url::{Origin, Url};

/// An origin is not left alone for longer, whatever it says: clients wait.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

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

#[derive(Debug, Clone, Copy)]
struct Pause {
    began: Instant,
    until: Instant,
    /// Refusals in a row, each after the pause of the one before.
    times: u32,
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
        self.wait(&source.url, patience.pause).await;
        let asked = Instant::now();
        let answer = origin::fetch(upstream, source, asks, patience.turn).await?;
        let times = (asked, Instant::now());
        match &answer {
            // Another origin's word: the next time this one may lead to another.
            Answer::Other { elsewhere: true, .. } => {}
            Answer::Other { response, .. } => {
                self.handle_answer(&source.url, response.status(), response.headers(), times);
            }
            Answer::Content { .. } | Answer::Outside { .. } => {
                self.handle_answer(&source.url, StatusCode::OK, &HeaderMap::new(), times);
            }
        }
        Ok(answer)
    }

    /// An origin has answered what it was `asked`, `now`: with what it can give (no pause is left then), that it cannot, or
    /// something else.
    fn handle_answer(
        &self,
        url: &Url,
        status: StatusCode,
        headers: &HeaderMap,
        (asked, now): (Instant, Instant),
    ) {
        let mut pauses = self.lock();
        let before = pauses.get(&url.origin()).copied();
        // What was on its way when the pause began does not end it.
        let is_news = before.is_some_and(|before| asked > before.began || before.until <= now);
        if is_news && (status.is_success() || status.is_redirection()) {
            pauses.remove(&url.origin());
        }
        if !is_busy(status) {
            return;
        }
        // Those that were on their way when the pause began say nothing new.
        let times = before.map_or(0, |before| before.times + u32::from(before.until <= now));
        let own = self.backoff.first.saturating_mul(1 << times.min(16)).min(self.backoff.most);
        let pause = retry_after(headers).unwrap_or(own).min(LONGEST);
        let until = before.map_or(now + pause, |before| before.until.max(now + pause));
        let began = before.filter(|before| before.until > now).map_or(now, |before| before.began);
        if pauses.len() >= MAX_ORIGINS {
            pauses.retain(|_, pause| pause.until > now);
        }
        if pauses.len() < MAX_ORIGINS || before.is_some() {
            pauses.insert(url.origin(), Pause { began, until, times });
        }
    }

    /// When an origin may be asked; `None` for now.
    fn due_at(&self, url: &Url, now: Instant) -> Option<Instant> {
        self.lock().get(&url.origin()).map(|pause| pause.until).filter(|until| *until > now)
    }

    /// Waits until an origin may be asked, for so long at most.
    async fn wait(&self, url: &Url, most: Duration) {
        let latest = Instant::now() + most;
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

/// What says something about the origin, not about what it was asked for.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
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

    fn after(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))])
    }

    #[test]
    fn what_one_download_is_told_holds_for_all_and_for_no_other_origin() {
        let (origins, now) = (Origins::new(BACKOFF), Instant::now());
        origins.handle_answer(
            &url("https://a.example/1"),
            StatusCode::TOO_MANY_REQUESTS,
            &after("7"),
            (now, now),
        );
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
                origins.handle_answer(&url, StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), (now, now));
            }
            let due = origins.due_at(&url, now).unwrap();
            assert_eq!(due - now, Duration::from_millis(expected));
            now = due;
        }
        origins.handle_answer(&url, StatusCode::NOT_FOUND, &HeaderMap::new(), (now, now));
        origins.handle_answer(&url, StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), (now, now));
        let due = origins.due_at(&url, now).unwrap();
        assert_eq!(due - now, Duration::from_secs(3), "a 404 is no recovery");
        now = due;
        origins.handle_answer(&url, StatusCode::OK, &HeaderMap::new(), (now, now));
        assert_eq!(origins.due_at(&url, now), None);
        origins.handle_answer(&url, StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), (now, now));
        assert_eq!(origins.due_at(&url, now).unwrap() - now, BACKOFF.first);
    }

    #[test]
    fn what_was_on_its_way_does_not_end_a_pause() {
        let (origins, url, asked) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        let at = |seconds| asked + Duration::from_secs(seconds);
        let tell = |status, times| origins.handle_answer(&url, status, &after("7"), times);
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
        origins.handle_answer(&url, StatusCode::TOO_MANY_REQUESTS, &after("10"), (began, began));
        let grow = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let times = (began, Instant::now());
            origins.handle_answer(&url, StatusCode::TOO_MANY_REQUESTS, &after("15"), times);
        };
        tokio::join!(origins.wait(&url, Duration::from_secs(60)), grow);
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
            origins.handle_answer(&url, StatusCode::TOO_MANY_REQUESTS, &after(value), (now, now));
            assert_eq!(
                origins.due_at(&url, now).map_or(Duration::ZERO, |due| due - now),
                expected,
                "{value}"
            );
        }
        for n in 0..2 * MAX_ORIGINS {
            let url = url(&format!("http://n{n}.example/"));
            origins.handle_answer(&url, StatusCode::TOO_MANY_REQUESTS, &after("9"), (now, now));
        }
        assert_eq!(origins.lock().len(), MAX_ORIGINS);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_may_not_wait_that_long_asks_before() {
        let (origins, url, began) = (Origins::new(BACKOFF), url("http://a.example/"), Instant::now());
        origins.handle_answer(&url, StatusCode::TOO_MANY_REQUESTS, &after("30"), (began, began));
        origins.wait(&url, Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        origins.wait(&url, Duration::from_secs(60)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(30));
        origins.wait(&url, Duration::from_secs(60)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(30));
    }
}
