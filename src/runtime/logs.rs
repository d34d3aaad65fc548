//! The last lines of one guest's log, bounded in number and in bytes.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use parking_lot::Mutex;

/// The most lines that are kept.
pub const MAX_LINES: usize = 1000;
/// The most bytes that the kept lines hold together.
pub const MAX_BYTES: usize = 512 * 1024;
/// The longest line; what is longer is cut.
pub const MAX_LINE: usize = 8 * 1024;
/// What a line takes beside its text, about.
const LINE_BYTES: usize = 256;

/// One line of a guest's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// debug, info, warn or error.
    pub level: String,
    /// envd, process or filesystem; firkin for lines of the gateway's own.
    pub logger: String,
    /// The text.
    pub message: String,
    /// Further fields.
    pub fields: BTreeMap<String, String>,
    /// When, in nanoseconds since 1970, by the guest's clock.
    pub unix_ns: i64,
}

/// The kept lines; the oldest make room.
#[derive(Debug, Default)]
pub struct LogRing(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

// === impl LogRing ===

impl LogRing {
    /// The kept lines, oldest first.
    pub fn lines(&self) -> Vec<LogLine> {
        self.0.lock().lines.iter().cloned().collect()
    }

    /// Bytes that the kept lines take, about.
    pub(super) fn held(&self) -> usize {
        let kept = self.0.lock();
        kept.bytes + kept.lines.len() * LINE_BYTES
    }

    /// A line of the gateway's own, for the sandbox's owner.
    pub(super) fn note(&self, level: &str, message: &str, now: Timestamp) {
        self.push(LogLine {
            level: level.to_owned(),
            logger: "firkin".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::new(),
            unix_ns: i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
        });
    }

    pub(super) fn push(&self, mut line: LogLine) {
        line.trim();
        let mut kept = self.0.lock();
        kept.bytes += line.size();
        kept.lines.push_back(line);
        while kept.lines.len() > MAX_LINES || kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.size();
        }
    }
}

// === impl LogLine ===

impl LogLine {
    fn size(&self) -> usize {
        let fields: usize = self.fields.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.level.len() + self.logger.len() + self.message.len() + fields
    }

    fn trim(&mut self) {
        cut(&mut self.level, 16);
        cut(&mut self.logger, 64);
        cut(&mut self.message, MAX_LINE);
        if self.size() > 2 * MAX_LINE {
            self.fields.clear();
        }
    }
}

fn cut(text: &mut String, longest: usize) {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: String) -> LogLine {
        LogLine {
            level: "info".to_owned(),
            logger: "envd".to_owned(),
            message,
            fields: BTreeMap::new(),
            unix_ns: 0,
        }
    }

    #[test]
    fn the_oldest_lines_make_room() {
        let ring = LogRing::default();
        for number in 0..=MAX_LINES {
            ring.push(line(number.to_string()));
        }
        let lines = ring.lines();
        assert_eq!(lines.len(), MAX_LINES);
        assert_eq!(lines[0].message, "1");
    }

    #[test]
    fn long_lines_are_cut_and_the_sum_is_bounded() {
        let ring = LogRing::default();
        for _ in 0..200 {
            ring.push(line("ä".repeat(1 << 19)));
        }
        let lines = ring.lines();
        assert!(lines.iter().all(|line| line.message.len() <= MAX_LINE));
        assert!(lines.iter().map(LogLine::size).sum::<usize>() <= MAX_BYTES);
        assert!(lines.len() > 10);
    }
}
