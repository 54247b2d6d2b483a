//! [`Alarm`]: that the disk takes nothing is said once, and once that it does again.

use prometheus_client::metrics::gauge::Gauge;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Whether the disk takes content. Cheap to clone; clones are one alarm.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alarm(Gauge);

impl Alarm {
    /// 1 while the disk takes nothing, for the metrics.
    pub(crate) fn gauge(&self) -> Gauge {
        self.0.clone()
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.get() != 0
    }

    /// Takes what the disk has said to something that had to be written to `dir`.
    pub(super) fn hear(&self, dir: &Path, written: Result<(), &io::Error>) {
        match written {
            Ok(()) if self.0.inner().swap(0, Ordering::Relaxed) != 0 => {
                tracing::info!(dir = %dir.display(), "the content store can be written again");
            }
            Err(error) if self.0.inner().swap(1, Ordering::Relaxed) == 0 => tracing::error!(
                dir = %dir.display(),
                %error,
                "the content store cannot be written: until it can, content is streamed past it, and none is shared"
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_until_something_was_written() {
        let (alarm, dir) = (Alarm::default(), Path::new("/x"));
        let shown = alarm.gauge();
        alarm.hear(dir, Ok(()));
        assert_eq!((alarm.is_raised(), shown.get()), (false, 0));
        for _ in 0..2 {
            alarm.hear(dir, Err(&io::ErrorKind::StorageFull.into()));
            assert_eq!((alarm.is_raised(), shown.get()), (true, 1));
        }
        alarm.hear(dir, Ok(()));
        assert_eq!((alarm.is_raised(), shown.get()), (false, 0));
    }
}
