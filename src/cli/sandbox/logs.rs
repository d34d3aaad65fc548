//! `firkin sandbox logs`: the last lines of the guest's log, and with `-f` those that follow.
//!
//! The API has no stream of lines: following asks again from the last line's millisecond on, and
//! leaves out what was shown.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    client::{Client, escaped, is_missing},
    print, printable,
};
use crate::cli::note;

/// Between two questions for more lines.
const PAUSE: Duration = Duration::from_secs(1);
/// The most lines of one answer, and of a guest's log.
const MOST: u16 = 1000;

/// Flags of `firkin sandbox logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The sandbox
    id: String,
    /// Show new lines until the sandbox ends
    #[arg(long, short)]
    follow: bool,
    /// The last so many lines
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = MOST, value_parser = clap::value_parser!(u16).range(0..=1000))]
    lines: u16,
    /// Lines of this level and above
    #[arg(long, value_enum, default_value_t = Level::Debug)]
    level: Level,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// How serious a line is.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    /// Everything
    Debug,
    /// What happens
    Info,
    /// What may be wrong
    Warn,
    /// What is wrong
    Error,
}

#[derive(Debug, Deserialize)]
struct Logs {
    logs: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    timestamp: Timestamp,
    level: String,
    message: String,
    #[serde(default)]
    fields: BTreeMap<String, String>,
}

/// What was shown of the last millisecond, which is asked for again.
#[derive(Debug, Default)]
struct Shown {
    millisecond: i64,
    lines: VecDeque<Line>,
}

pub(super) async fn run(args: LogsArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let mut shown = Shown::default();
    let mut ended = false;
    let mut lines = read(client, &args, "backward", None, args.lines).await?;
    lines.reverse();
    // With `-n 0` nothing is shown, but what is there counts as shown.
    if args.follow && args.lines == 0 {
        let mut last = read(client, &args, "backward", None, MOST).await?;
        last.reverse();
        shown.fresh(last);
    }
    loop {
        for line in shown.fresh(lines) {
            print(&if args.json { serde_json::to_string(&line)? } else { line.text() })?;
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        if ended {
            note("the sandbox has ended");
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(PAUSE).await;
        // Asked first: the log of an ended sandbox can still be read, and has its last lines.
        ended = !exists(client, &args.id).await?;
        lines = match read(client, &args, "forward", Some(shown.millisecond), MOST).await {
            Err(error) if is_missing(&error) => {
                ended = true;
                Vec::new()
            }
            read => read?,
        };
    }
}

async fn exists(client: &Client, id: &str) -> anyhow::Result<bool> {
    match client.get::<serde::de::IgnoredAny>(&format!("/sandboxes/{}", escaped(id))).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn read(
    client: &Client,
    args: &LogsArgs,
    direction: &str,
    cursor: Option<i64>,
    limit: u16,
) -> anyhow::Result<Vec<Line>> {
    let level = args.level.to_possible_value();
    let level = level.as_ref().map_or("debug", |level| level.get_name());
    let mut path =
        format!("/v2/sandboxes/{}/logs?direction={direction}&limit={limit}&level={level}", escaped(&args.id));
    if let Some(cursor) = cursor {
        write!(path, "&cursor={cursor}")?;
    }
    Ok(client.get::<Logs>(&path).await?.body.logs)
}

// === impl Shown ===

impl Shown {
    /// Those lines, in order of time, that were not shown before; from now on they were.
    fn fresh(&mut self, lines: Vec<Line>) -> Vec<Line> {
        let mut known = self.lines.clone();
        let mut fresh = Vec::new();
        for line in lines {
            let millisecond = line.timestamp.as_millisecond();
            if millisecond < self.millisecond {
                continue;
            }
            if let Some(at) = known.iter().position(|known| *known == line) {
                known.remove(at);
                continue;
            }
            if millisecond > self.millisecond {
                self.millisecond = millisecond;
                self.lines.clear();
            }
            self.lines.push_back(line.clone());
            fresh.push(line);
        }
        fresh
    }
}

// === impl Line ===

impl Line {
    fn text(&self) -> String {
        let mut text = format!(
            "{:.3} {:<5} {}",
            self.timestamp,
            printable(&self.level).to_ascii_uppercase(),
            printable(&self.message)
        );
        for (name, value) in &self.fields {
            // Writing to a string does not fail.
            let _ = write!(text, " {}={}", printable(name), printable(value));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(nanosecond: i128, message: &str) -> Line {
        Line {
            timestamp: Timestamp::from_nanosecond(nanosecond).unwrap(),
            level: "info".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::new(),
        }
    }

    #[test]
    fn a_line_is_shown_once_however_many_share_its_millisecond() {
        let (a, b, c) = (line(1_000_000, "a"), line(1_000_001, "b"), line(2_000_000, "c"));
        let mut shown = Shown::default();
        assert_eq!(
            shown.fresh(vec![a.clone(), a.clone()]),
            [a.clone(), a.clone()],
            "twice the same is twice"
        );
        assert_eq!(shown.fresh(vec![a.clone(), a.clone(), b.clone()]), [b.clone()].as_slice());
        assert_eq!(shown.fresh(vec![a.clone(), a.clone(), b.clone(), c.clone()]), [c.clone()].as_slice());
        assert_eq!(shown.fresh(vec![c.clone()]), [].as_slice());
        assert_eq!(shown.fresh(vec![a, b]), [].as_slice(), "older ones were shown or are too late");
        assert_eq!(shown.lines, [c]);
    }

    #[test]
    fn a_line_is_one_line() {
        let mut line = line(1_500_000_000, "said\nmore");
        line.fields.insert("logger".to_owned(), "process".to_owned());
        assert_eq!(line.text(), "1970-01-01T00:00:01.500Z INFO  said\\nmore logger=process");
    }
}
