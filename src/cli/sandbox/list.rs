//! `firkin sandbox list`: a table for people, or the server's own JSON.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{client::Client, filter::FilterArgs, print, printable};
use crate::cli::note;

const HEAD: [&str; 8] = ["SANDBOX", "TEMPLATE", "STATE", "STARTED", "ENDS", "CPU", "MEMORY", "METADATA"];

/// Flags of `firkin sandbox list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    /// Print the API's own objects, as one JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ListArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let found = args.filter.find(client, args.limit).await?;
    if args.json {
        print(&serde_json::to_string_pretty(&found)?)?;
    } else if found.is_empty() {
        note(if args.filter.is_any() { "no sandboxes" } else { "no sandboxes that fit the filters" });
    } else {
        print(&table(&found))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Rows below a head, each column as wide as it must be.
fn table(sandboxes: &[Value]) -> String {
    let rows: Vec<[String; 8]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(sandboxes.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(sandbox: &Value) -> [String; 8] {
    let text = |name: &str| sandbox[name].as_str().map(printable);
    let time = |name: &str| text(name).map_or_else(|| "-".to_owned(), |time| seconds(&time));
    let number = |name: &str, unit: &str| {
        sandbox[name].as_u64().map_or_else(|| "-".to_owned(), |number| format!("{number}{unit}"))
    };
    let metadata = sandbox["metadata"].as_object().into_iter().flatten();
    let metadata = metadata.map(|(name, value)| {
        format!("{}={}", printable(name), printable(value.as_str().unwrap_or_default()))
    });
    [
        text("sandboxID").unwrap_or_default(),
        text("alias").or_else(|| text("templateID")).unwrap_or_default(),
        text("state").unwrap_or_default(),
        time("startedAt"),
        time("endAt"),
        number("cpuCount", ""),
        number("memoryMB", " MiB"),
        metadata.collect::<Vec<_>>().join(" "),
    ]
}

/// A time without its fraction.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_aligned_and_shows_nothing_raw() {
        let sandboxes = [
            json!({
                "sandboxID": "i0123456789abcdefghij", "templateID": "t", "alias": "base", "state": "running",
                "startedAt": "2026-01-02T03:04:05.678901Z", "endAt": "2026-01-02T03:09:05Z",
                "cpuCount": 2, "memoryMB": 1024, "metadata": {"owner": "me", "x": "\u{1b}[1m"},
            }),
            json!({"sandboxID": "i1", "templateID": "a-longer-one", "state": "paused"}),
        ];
        insta::assert_snapshot!(table(&sandboxes), @r"
        SANDBOX                TEMPLATE      STATE    STARTED               ENDS                  CPU  MEMORY    METADATA
        i0123456789abcdefghij  base          running  2026-01-02T03:04:05Z  2026-01-02T03:09:05Z  2    1024 MiB  owner=me x=\u{1b}[1m
        i1                     a-longer-one  paused   -                     -                     -    -
        ");
    }
}
