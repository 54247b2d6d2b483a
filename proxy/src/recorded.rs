//! [`Recorded`]: a body that is counted on its way to the client, and written down when it has ended.

use crate::access::Ending;
use crate::idle::{self, Activity, Moving};
use crate::labels::Cut;
use crate::metrics::Traffic;
use crate::{Body, BoxError};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body that is counted on its way to the client.
pub(crate) struct Recorded {
    body: Moving<Body>,
    /// How many bytes make it complete, where that is known: hyper drops a body that it takes for complete without asking
    /// for its end.
    expected: Option<u64>,
    traffic: Traffic,
    ending: Option<Ending>,
}

impl Recorded {
    /// `body`, with which `ending` is written down. A `bodiless` answer is complete without any of it.
    pub(crate) fn body(body: Body, bodiless: bool, ending: Ending) -> Body {
        Self {
            expected: if bodiless { Some(0) } else { body.size_hint().exact() },
            body: Activity::current().body(idle::Kind::Answer, body),
            traffic: Traffic::default(),
            ending: Some(ending),
        }
        .boxed_unsync()
    }

    fn end(&mut self, cut: Option<Cut>, error: Option<&BoxError>) {
        let Some(mut ending) = self.ending.take() else { return };
        self.traffic.cut = cut;
        self.traffic.first_byte.get_or_insert_with(|| ending.record.elapsed());
        ending.note = error.map(ToString::to_string).or(ending.note);
        ending.write(self.traffic);
    }
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(ending) = &this.ending {
                    this.traffic.first_byte.get_or_insert_with(|| ending.record.elapsed());
                }
                this.traffic.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(Err(error)) => this.end(Some(Cut::Upstream), Some(error)),
            None => this.end(None, None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let complete = self.body.is_end_stream() || self.expected.is_some_and(|it| self.traffic.sent >= it);
        match self.body.verdict() {
            Some(quiet) if !complete => self.end(Some(Cut::Idle), Some(&quiet.to_string().into())),
            _ => {
                let cut = self.ending.as_ref().filter(|_| !complete).map(|ending| ending.record.cut_by());
                self.end(cut, None);
            }
        }
    }
}
