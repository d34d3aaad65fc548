//! The handshake of the link: the first line of every byte stream between gateway and guest.
//!
//! ```text
//! gateway                              guest
//!   CONNECT <port>\n            -->
//!                               <--    OK\n | ERR <reason>\n     then raw bytes
//!   CONTROL <generation> <nonce>\n -->
//!                               <--    OK <generation>\n         then control messages
//! ```
//! A line is at most [`MAX_LINE`] bytes with its newline and must arrive within
//! [`HANDSHAKE_TIMEOUT`]. The protocol generation is one number; the lower of both sides wins.

use std::{fmt, time::Duration};

/// The longest handshake line, newline included.
pub const MAX_LINE: usize = 128;
/// How long either side waits for the other's line.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The newest protocol generation that this build speaks. Appended to only.
pub const GENERATION: u32 = 1;
/// Bytes that either end lets the kernel hold for its reader: fewer, longer turns of both.
pub const SEND_BUFFER: usize = 512 << 10;

/// What a stream is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Bytes to and from a port in the machine.
    Connect {
        /// The guest's port.
        port: u16,
    },
    /// The control stream of one attachment.
    Control {
        /// The newest generation that the gateway speaks.
        generation: u32,
        /// Fresh for every attachment: makes the guest drop the state of an earlier one.
        nonce: Nonce,
    },
}

/// Sixteen bytes in lower-case hex, new for each attachment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; 16]);

/// The guest's answer to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Raw bytes follow.
    Ok,
    /// Control messages of this generation follow.
    OkControl {
        /// The lower of both sides' generations.
        generation: u32,
    },
    /// Nothing follows; a short reason for the log.
    Err(String),
}

/// A line that is none of the handshake's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed link handshake: {0}")]
pub struct Malformed(&'static str);

// === impl Malformed ===

impl Malformed {
    /// A well-formed line at the wrong time, or one without end.
    pub const UNEXPECTED: Self = Self("unexpected line");
}

// === impl Nonce ===

impl fmt::Debug for Nonce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

// === impl Malformed ===

impl Malformed {
    /// For those who read the lines: what was wrong.
    pub fn new(what: &'static str) -> Self {
        Self(what)
    }
}

// === impl Hello ===

impl Hello {
    /// The line with its newline.
    pub fn encode(&self) -> String {
        match self {
            Self::Connect { port } => format!("CONNECT {port}\n"),
            Self::Control { generation, nonce } => format!("CONTROL {generation} {nonce:?}\n"),
        }
    }

    /// Reads a line without its newline. Numbers are plain decimal: no sign, no leading zero.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let line = std::str::from_utf8(line).map_err(|_| Malformed("not ASCII"))?;
        let mut words = line.split(' ');
        let hello = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("CONNECT"), Some(port), None, None) => Self::Connect { port: decimal(port)? },
            (Some("CONTROL"), Some(generation), Some(nonce), None) => {
                let mut bytes = [0; 16];
                if nonce.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return Err(Malformed("nonce"));
                }
                hex::decode_to_slice(nonce, &mut bytes).map_err(|_| Malformed("nonce"))?;
                Self::Control { generation: decimal(generation)?, nonce: Nonce(bytes) }
            }
            _ => return Err(Malformed("unknown request")),
        };
        Ok(hello)
    }
}

// === impl Answer ===

impl Answer {
    /// The line with its newline; a reason is cut to fit.
    pub fn encode(&self) -> String {
        match self {
            Self::Ok => "OK\n".to_owned(),
            Self::OkControl { generation } => format!("OK {generation}\n"),
            Self::Err(reason) => {
                let clean: String = reason
                    .chars()
                    .filter(|c| c.is_ascii() && !c.is_ascii_control())
                    .take(MAX_LINE - 6)
                    .collect();
                format!("ERR {clean}\n")
            }
        }
    }

    /// Reads a line without its newline.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let line = std::str::from_utf8(line).map_err(|_| Malformed("not ASCII"))?;
        if line == "OK" {
            Ok(Self::Ok)
        } else if let Some(generation) = line.strip_prefix("OK ") {
            Ok(Self::OkControl { generation: decimal(generation)? })
        } else if let Some(reason) = line.strip_prefix("ERR ") {
            Ok(Self::Err(reason.to_owned()))
        } else {
            Err(Malformed("unknown answer"))
        }
    }
}

fn decimal<T: std::str::FromStr + fmt::Display>(text: &str) -> Result<T, Malformed> {
    let number: T = text.parse().map_err(|_| Malformed("number"))?;
    // Only one spelling of a number is accepted: "+1" and "01" parse, but do not print as such.
    if number.to_string() == text { Ok(number) } else { Err(Malformed("number")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back() {
        for hello in
            [Hello::Connect { port: 49_983 }, Hello::Control { generation: 1, nonce: Nonce([0xab; 16]) }]
        {
            let line = hello.encode();
            assert!(line.len() <= MAX_LINE);
            assert_eq!(Hello::parse(line.trim_end().as_bytes()), Ok(hello));
        }
        for answer in [Answer::Ok, Answer::OkControl { generation: 1 }, Answer::Err("closed".to_owned())] {
            assert_eq!(Answer::parse(answer.encode().trim_end().as_bytes()), Ok(answer));
        }
    }

    #[test]
    fn only_plain_decimal_ports_are_read() {
        assert!(Hello::parse(b"CONNECT 80").is_ok());
        for line in [
            "CONNECT 080",
            "CONNECT +80",
            "CONNECT 65536",
            "CONNECT -1",
            "CONNECT 80 ",
            "CONNECT  80",
            "connect 80",
            "",
        ] {
            assert!(Hello::parse(line.as_bytes()).is_err(), "{line}");
        }
    }
}
