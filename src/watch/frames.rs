//! Watches in protobuf come as frames: four bytes of length, then so many bytes.

use std::error::Error;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use kube::client::Body;

/// No object comes near: etcd takes 1.5 MiB. What claims more is no frame.
const LARGEST: usize = 64 << 20;

/// The frames of an answer's body.
pub struct Frames<B = Body> {
    body: B,
    /// What came after the last whole frame.
    rest: BytesMut,
}

impl<B> Frames<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub fn of(body: B) -> Frames<B> {
        Frames { body, rest: BytesMut::new() }
    }

    /// None when the server ended it, be it within a frame. Loses nothing when it is dropped before it is done.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.split()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(part)) => part.into_data().iter().for_each(|data| self.rest.extend_from_slice(data)),
                Some(Err(error)) => return ended(error.into()).map(|()| None),
                None => return Ok(None),
            }
        }
    }

    fn split(&mut self) -> io::Result<Option<Bytes>> {
        let Some(header) = self.rest.first_chunk() else { return Ok(None) };
        let len = u32::from_be_bytes(*header) as usize;
        if len > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
        }
        if self.rest.len() - header.len() < len {
            return Ok(None);
        }
        self.rest.advance(size_of::<u32>());
        Ok(Some(self.rest.split_to(len).freeze()))
    }
}

/// A server that goes away in the middle of its answer has ended it, too.
fn ended(error: Box<dyn Error + Send + Sync>) -> io::Result<()> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(each) = cause {
        let is_end =
            each.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof);
        if is_end || each.to_string().contains("unexpected EOF during chunk") {
            return Ok(());
        }
        cause = each.source();
    }
    Err(io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::FutureExt;

    use super::*;

    /// Each part, then the end.
    struct Parts(VecDeque<Result<Bytes, io::Error>>);

    impl http_body::Body for Parts {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
            Poll::Ready(self.0.pop_front().map(|part| part.map(http_body::Frame::data)))
        }
    }

    fn frames(parts: impl IntoIterator<Item = io::Result<Bytes>>) -> io::Result<Vec<Bytes>> {
        let mut frames = Frames::of(Parts(parts.into_iter().collect()));
        let mut all = Vec::new();
        while let Some(frame) = frames.next().now_or_never().expect("all parts are there")? {
            all.push(frame);
        }
        Ok(all)
    }

    const TWO: &[u8] = b"\0\0\0\x03abc\0\0\0\0\0\0\0\x02de";

    #[test]
    fn wherever_it_is_cut_it_is_the_same_frames() {
        for size in 1..=TWO.len() {
            let parts = TWO.chunks(size).map(|part| Ok(Bytes::from_static(part)));
            assert_eq!(frames(parts).unwrap(), ["abc", "", "de"], "parts of {size} bytes");
        }
    }

    #[test]
    fn an_end_within_a_frame_is_an_end() {
        assert_eq!(frames([Ok(Bytes::from_static(&TWO[..9]))]).unwrap(), ["abc"]);
        let eof = || Err(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(frames([Ok(Bytes::from_static(&TWO[..9])), eof()]).unwrap(), ["abc"]);
        assert!(frames([Err(io::ErrorKind::ConnectionReset.into())]).is_err());
    }

    #[test]
    fn what_is_no_frame_is_invalid() {
        let error = frames([Ok(Bytes::from_static(b"<html>"))]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
