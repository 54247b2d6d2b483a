//! [`until`]: the one place that waits by asking again, for what other programs give no event of.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long to wait between two questions.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks `question` until it has an answer.
///
/// # Errors
/// When there is none after `limit`; the error names `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut question: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}
