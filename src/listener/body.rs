//! Following the body of an HTTP/1 request, to know where the next one begins.

use crate::http::{Chunks, Piece};

/// A body under way.
#[derive(Debug)]
pub(super) enum Body {
    /// So many bytes more.
    Length(u64),
    /// In chunks.
    Chunked(Chunks),
}

/// What some bytes did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// They are all of the body, and it goes on.
    More,
    /// The body ends after so many of them.
    End(usize),
    /// They are not a body.
    Malformed,
}

impl Body {
    pub(super) const fn of_length(length: u64) -> Self {
        Self::Length(length)
    }

    pub(super) const fn in_chunks() -> Self {
        Self::Chunked(Chunks::new())
    }

    pub(super) fn follow(&mut self, bytes: &[u8]) -> After {
        match self {
            Self::Length(left) => match usize::try_from(*left).ok().filter(|left| *left <= bytes.len()) {
                Some(here) => After::End(here),
                None => {
                    *left -= bytes.len() as u64;
                    After::More
                }
            },
            Self::Chunked(chunks) => follow_chunks(chunks, bytes),
        }
    }
}

fn follow_chunks(chunks: &mut Chunks, bytes: &[u8]) -> After {
    let mut at = 0;
    loop {
        at += match chunks.next(bytes.get(at..).unwrap_or_default()) {
            Piece::More => return After::More,
            Piece::Data(range) => range.end,
            Piece::Last(length) => length,
            Piece::End(length) => return After::End(at + length),
            Piece::Malformed => return After::Malformed,
        };
    }
}
