//! The guest's log lines on their way to the gateway: a short queue that drops the oldest.
//!
//! Lines never carry output, environment or tokens: the gateway keeps them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::wire::control::FromGuest;

/// Lines kept while no gateway is attached.
const MAX_LINES: usize = 512;

/// The queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logs(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<VecDeque<FromGuest>>,
    more: Notify,
}

// === impl Logs ===

impl Logs {
    /// Adds one line at info level.
    pub(crate) fn info(
        &self,
        now: Timestamp,
        logger: &str,
        message: String,
        fields: BTreeMap<String, String>,
    ) {
        let line = FromGuest::Log {
            level: "info".to_owned(),
            logger: logger.to_owned(),
            message,
            fields,
            unix_ns: i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
        };
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
        drop(lines);
        self.0.more.notify_one();
    }

    /// The oldest line, when there is one.
    pub(crate) async fn next(&self) -> FromGuest {
        loop {
            if let Some(line) = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return line;
            }
            self.0.more.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_lines_give_way() {
        let logs = Logs::default();
        for number in 0..=MAX_LINES {
            logs.info(Timestamp::UNIX_EPOCH, "envd", number.to_string(), BTreeMap::new());
        }
        let FromGuest::Log { message, .. } = logs.next().await else { panic!("a line") };
        assert_eq!(message, "1");
    }
}
