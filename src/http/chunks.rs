//! The chunked transfer coding (RFC 9112 §7.1), followed byte by byte: where data is, and where it ends.

/// The most bytes of chunk extensions in one body; nobody uses them, so that more is an attack.
const EXTENSIONS: u32 = 16 * 1024;

/// A body in chunks, under way. It keeps no bytes; it is told them in order.
#[derive(Debug)]
pub struct Chunks {
    part: Part,
    /// The last byte was a carriage return that belongs to a line end.
    carriage: bool,
    extensions: u32,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// In the line that says how long a chunk is.
    Size { size: u64, digits: u8, extension: bool },
    /// In a chunk.
    Data(u64),
    /// In the line end after a chunk.
    DataEnd,
    /// In the fields after the last chunk.
    Trailers { empty: bool },
}

/// What comes next in some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// No data in all of them; the body goes on.
    More,
    /// Data in this range; what lies before it is framing.
    Data(std::ops::Range<usize>),
    /// The last chunk ends after so many of them; trailers follow, or the line end that stands for none.
    Last(usize),
    /// The body ends after so many of them.
    End(usize),
    /// They are not a body.
    Malformed,
}

const START: Part = Part::Size { size: 0, digits: 0, extension: false };

impl Chunks {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self { part: START, carriage: false, extensions: 0 }
    }

    /// Reads on, up to the end of the first piece: the next call gets what lies behind it.
    pub fn next(&mut self, bytes: &[u8]) -> Piece {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match &mut self.part {
                Part::Data(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    *left -= here as u64;
                    if *left == 0 {
                        self.part = Part::DataEnd;
                    }
                    return Piece::Data(at..at + here);
                }
                Part::DataEnd => match (byte, self.carriage) {
                    (b'\r', false) => self.carriage = true,
                    (b'\n', true) => {
                        self.carriage = false;
                        self.part = START;
                    }
                    _ => return Piece::Malformed,
                },
                Part::Size { size, digits, extension } => match (byte, self.carriage) {
                    (b'\n', true) if *digits > 0 => {
                        self.carriage = false;
                        if *size == 0 {
                            self.part = Part::Trailers { empty: true };
                            return Piece::Last(at + 1);
                        }
                        self.part = Part::Data(*size);
                    }
                    (b'\n', _) | (_, true) => return Piece::Malformed,
                    (b'\r', false) => self.carriage = true,
                    _ if *extension => {
                        self.extensions += 1;
                        if self.extensions > EXTENSIONS {
                            return Piece::Malformed;
                        }
                    }
                    (b';' | b' ' | b'\t', false) if *digits > 0 => *extension = true,
                    (byte, false) => {
                        let Some(digit) = (byte as char).to_digit(16) else { return Piece::Malformed };
                        *digits += 1;
                        if *digits > 15 {
                            return Piece::Malformed;
                        }
                        *size = *size << 4 | u64::from(digit);
                    }
                },
                Part::Trailers { empty } => match (byte, self.carriage) {
                    (b'\n', true) if *empty => return Piece::End(at + 1),
                    (b'\n', true) => {
                        self.carriage = false;
                        self.part = Part::Trailers { empty: true };
                    }
                    (b'\n', _) | (_, true) => return Piece::Malformed,
                    (b'\r', false) => self.carriage = true,
                    _ => *empty = false,
                },
            }
            at += 1;
        }
        Piece::More
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data of a body that comes in these parts, and how many bytes follow it; `None` for no body or half a one.
    fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Option<(Vec<u8>, usize)> {
        let (mut chunks, mut data, mut end) = (Chunks::new(), Vec::new(), None);
        for part in parts {
            let mut at = 0;
            while end.is_none() {
                match chunks.next(&part[at..]) {
                    Piece::More => break,
                    Piece::Data(range) => {
                        data.extend_from_slice(&part[at..][range.clone()]);
                        at += range.end;
                    }
                    Piece::Last(length) => at += length,
                    Piece::End(length) => {
                        at += length;
                        end = Some(0);
                    }
                    Piece::Malformed => return None,
                }
            }
            if let Some(after) = &mut end {
                *after += part.len() - at;
            }
        }
        Some((data, end?))
    }

    #[test]
    fn data_and_end_are_found() {
        for (body, data, after) in [
            ("0\r\n\r\n", "", 0),
            ("3\r\nabc\r\n0\r\n\r\nGET", "abc", 3),
            ("00A;x=\"y\"\r\n0123456789\r\n1 \r\n!\r\n0\r\nX: y\r\nZ: \r\n\r\n", "0123456789!", 0),
            ("5\r\n\r\n0\r\n\r\n000;\r\n\r\n", "\r\n0\r\n", 0),
        ] {
            assert_eq!(read([body.as_bytes()]), Some((data.into(), after)), "{body:?}");
            assert_eq!(read(body.as_bytes().chunks(1)), Some((data.into(), after)), "{body:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_malformed() {
        for body in [
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabc\r0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "\r\n0\r\n\r\n",
            ";x\r\n\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "-1\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "3;\nx\r\nabc\r\n0\r\n\r\n",
            "3;\rx\r\nabc\r\n0\r\n\r\n",
            "0000000000000003\r\nabc\r\n0\r\n\r\n",
            "fffffffffffffffff\r\n",
            "0\r\n\n",
            "0\r\nX: y\n\r\n",
            "0\r\n\rx\n",
            "g\r\n",
            "3\r\nab",
            "3\r\nabc\r\n",
            "0\r\nX: y\r\n",
        ] {
            assert_eq!(read([body.as_bytes()]), None, "{body:?}");
            assert_eq!(read(body.as_bytes().chunks(1)), None, "{body:?}");
        }
        let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(EXTENSIONS as usize));
        assert!(read([long.as_bytes()]).is_some());
        let longer = format!("1;{}\r\nx\r\n0;y\r\n\r\n", "x".repeat(EXTENSIONS as usize));
        assert!(read([longer.as_bytes()]).is_none());
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_however_it_is_cut(
            data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..5),
            cuts in proptest::collection::vec(1_usize..40, 1..20),
            after in proptest::collection::vec(any::<u8>(), 0..10),
        ) {
            let mut body = Vec::new();
            for chunk in &data {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            body.extend_from_slice(&after);
            let (mut parts, mut rest) = (Vec::new(), &body[..]);
            for cut in cuts {
                let (part, others) = rest.split_at(cut.min(rest.len()));
                parts.push(part);
                rest = others;
            }
            parts.push(rest);
            prop_assert_eq!(read(parts), Some((data.concat(), after.len())));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(bytes.chunks(7));
        }
    }
}
