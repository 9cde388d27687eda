//! Following the body of an HTTP/1 request, to know where the next one begins.

/// A body under way.
#[derive(Debug)]
pub(super) enum Body {
    /// So many bytes more.
    Length(u64),
    /// In chunks, after a carriage return or not.
    Chunked(Chunk, bool),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Chunk {
    /// In the line that says how long a chunk is.
    Size { size: u64, digits: u8, extension: bool },
    /// In a chunk, its line end included.
    Data(u64),
    /// In the fields after the last chunk.
    Trailer { empty: bool },
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
        Self::Chunked(Chunk::Size { size: 0, digits: 0, extension: false }, false)
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
            Self::Chunked(chunk, carriage) => follow_chunks(chunk, carriage, bytes),
        }
    }
}

fn follow_chunks(chunk: &mut Chunk, carriage: &mut bool, bytes: &[u8]) -> After {
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match chunk {
            Chunk::Data(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= here as u64;
                at += here;
                if *left == 0 {
                    *chunk = Chunk::Size { size: 0, digits: 0, extension: false };
                }
                continue;
            }
            Chunk::Size { size, digits, extension } => match (byte, *carriage) {
                (b'\n', true) if *digits > 0 => {
                    *carriage = false;
                    *chunk = match *size {
                        0 => Chunk::Trailer { empty: true },
                        // The chunk's own line end counts as part of it.
                        size => Chunk::Data(size.saturating_add(2)),
                    };
                }
                (b'\n', _) | (_, true) => return After::Malformed,
                (b'\r', false) => *carriage = true,
                _ if *extension => {}
                (b';' | b' ' | b'\t', false) => *extension = true,
                (byte, false) => {
                    let Some(digit) = (byte as char).to_digit(16) else { return After::Malformed };
                    *digits += 1;
                    if *digits > 15 {
                        return After::Malformed;
                    }
                    *size = *size << 4 | u64::from(digit);
                }
            },
            Chunk::Trailer { empty } => match (byte, *carriage) {
                (b'\n', true) => {
                    *carriage = false;
                    if *empty {
                        return After::End(at + 1);
                    }
                    *chunk = Chunk::Trailer { empty: true };
                }
                (b'\n', _) | (_, true) => return After::Malformed,
                (b'\r', false) => *carriage = true,
                _ => *empty = false,
            },
        }
        at += 1;
    }
    After::More
}
