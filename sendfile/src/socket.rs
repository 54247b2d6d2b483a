//! [`Socket`]: a TCP connection that sends regions by sendfile(2).

use crate::region;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A TCP connection. What is written to it and is of a [`region`](crate::region()) is sent from the file.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Socket {
    /// Sends over `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// The connection itself.
    pub fn tcp(&self) -> &TcpStream {
        &self.0
    }

    /// Sends the first of `bytes`, if they are a region's.
    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Option<Poll<io::Result<usize>>> {
        let (file, offset) = region::find(bytes)?;
        loop {
            match self.0.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
            let mut offset = offset;
            let send = || Ok(rustix::fs::sendfile(&self.0, file.as_fd(), Some(&mut offset), bytes.len())?);
            return match self.0.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // A file system that cannot: what can be read can be written.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => None,
                Ok(0) => Some(Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))),
                sent => Some(Poll::Ready(sent)),
            };
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().position(|buf| !buf.is_empty()).unwrap_or(0);
        let bufs = bufs.get(first..).unwrap_or_default();
        if let Some(sent) = bufs.first().and_then(|buf| self.poll_send(cx, buf)) {
            return Poll::Ready(ready!(sent));
        }
        // At least the first: a region that cannot be sent is written.
        let rest = bufs.iter().skip(1);
        let plain = 1 + rest.take_while(|buf| region::find(buf).is_none()).count();
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs.get(..plain).unwrap_or(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Buf as _, Bytes};
    use std::fs::File;
    use std::io::Write as _;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const LENGTH: usize = 3 << 20;

    fn file() -> (Arc<File>, Vec<u8>) {
        let content: Vec<u8> = (0..LENGTH).map(|at| (at / 5) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (Arc::new(file), content)
    }

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (there, here) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Socket::new(here.unwrap().0), there.unwrap())
    }

    /// How much of what stands at these addresses is in this process's memory, in KiB.
    fn in_memory(bytes: &[u8]) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", bytes.as_ptr().addr());
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[tokio::test]
    async fn regions_arrive_between_other_bytes_and_were_never_in_memory() {
        let (file, content) = file();
        let (mut here, mut there) = pair().await;
        let part = region(&file, 0, LENGTH).unwrap().unwrap();
        let (head, tail) = (Bytes::from_static(b"head"), Bytes::from_static(b"tail"));
        let mut all = head.chain(part.clone()).chain(tail);
        let write = async {
            here.write_all_buf(&mut all).await.unwrap();
            here.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(write, there.read_to_end(&mut got));
        read.unwrap();
        assert!(got == [b"head", content.as_slice(), b"tail"].concat());
        assert_eq!(in_memory(&part), 0);
        assert_eq!(part[..5], content[..5]);
        assert_ne!(in_memory(&part), 0, "the measurement sees nothing");
    }

    #[tokio::test]
    async fn what_was_cut_off_is_an_error() {
        let (file, _) = file();
        let (mut here, mut there) = pair().await;
        let mut part = region(&file, 0, LENGTH).unwrap().unwrap();
        file.set_len(10).unwrap();
        let (sent, got) = tokio::join!(
            async {
                let sent = here.write_all_buf(&mut part).await;
                here.shutdown().await.unwrap();
                sent
            },
            async {
                let mut got = Vec::new();
                there.read_to_end(&mut got).await.unwrap();
                got.len()
            }
        );
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(got, 10);
    }
}
