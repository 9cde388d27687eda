//! Where one frame of a WebSocket ends and the next begins (RFC 6455 §5.2): only there a closing frame can be put.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Follows the frames that are written to a stream.
pub(super) struct Frames<S> {
    pub(super) stream: S,
    place: Place,
}

/// How far a frame has come.
#[derive(Default)]
struct Place {
    head: [u8; 14],
    have: usize,
    left: u64,
}

/// Closing, because a rule is broken: 1008 (RFC 6455 §7.4.1).
pub(super) const POLICY_VIOLATION: [u8; 4] = [0x88, 0x02, 0x03, 0xF0];

impl<S> Frames<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, place: Place::default() }
    }

    /// Takes note of what was written elsewhere.
    pub(super) fn wrote(&mut self, bytes: &[u8]) {
        self.place.advance(bytes);
    }

    /// Whether the last frame is whole.
    pub(super) const fn is_between(&self) -> bool {
        self.place.have == 0 && self.place.left == 0
    }
}

impl Place {
    fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= here as u64;
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.head.get_mut(self.have) {
                *place = first;
            }
            self.have += 1;
            bytes = rest;
            if let Some(length) = self.length() {
                (self.have, self.left) = (0, length);
            }
        }
    }

    /// The length of what follows, once the head is there.
    fn length(&self) -> Option<u64> {
        let [_, second, rest @ ..] = self.head;
        let mask = if second & 0x80 != 0 { 4 } else { 0 };
        let [a, b, c, d, e, f, g, h, ..] = rest;
        let (needed, length) = match second & 0x7F {
            126 => (4, u64::from(u16::from_be_bytes([a, b]))),
            127 => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            short => (2, u64::from(short)),
        };
        (self.have >= 2 && self.have == needed + mask).then_some(length)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.place.advance(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_are_told_apart_however_they_are_cut() {
        let frame = |length: usize, masked: bool| {
            let mask = if masked { 0x80 } else { 0 };
            let mut frame = vec![0x82];
            match length {
                0..=125 => frame.push(mask | length as u8),
                126..=65535 => {
                    frame.push(mask | 126);
                    frame.extend_from_slice(&(length as u16).to_be_bytes());
                }
                _ => {
                    frame.push(mask | 127);
                    frame.extend_from_slice(&(length as u64).to_be_bytes());
                }
            }
            frame.extend(vec![0x88; length + if masked { 4 } else { 0 }]);
            frame
        };
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            for masked in [false, true] {
                let whole = [frame(length, masked), frame(3, false)].concat();
                let first = whole.len() - 5;
                for step in [1, 2, 3, 7, 1000, whole.len()] {
                    let mut place = Place::default();
                    let mut ends = Vec::new();
                    let mut at = 0;
                    for piece in whole.chunks(step) {
                        place.advance(piece);
                        at += piece.len();
                        if place.have == 0 && place.left == 0 {
                            ends.push(at);
                        }
                    }
                    assert_eq!(ends.last(), Some(&whole.len()), "{length} {masked} {step}");
                    let every = [first, whole.len()];
                    assert!(step > 1 || ends == every, "{length} {masked}: {ends:?}");
                }
            }
        }
    }
}
