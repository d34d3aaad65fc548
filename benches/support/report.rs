//! Figures: percentiles only where there are samples enough for them, each with its reference.
#![expect(clippy::print_stdout, reason = "figures are what these programs print")]

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::server::storage;

/// Samples of one metric, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Series(Vec<f64>);

/// What is measured, in words: without them a figure says nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) promise: &'static str,
    pub(crate) name: &'static str,
    pub(crate) reference: &'static str,
    pub(crate) start: &'static str,
    pub(crate) end: &'static str,
    pub(crate) excluded: &'static str,
    pub(crate) target: &'static str,
}

/// The rows of the table.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<[String; 6]>,
}

// === impl Series ===

impl Series {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn extend(&mut self, took: impl IntoIterator<Item = Duration>) {
        took.into_iter().for_each(|took| self.add(took));
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// None below the percentile's tier: 30 samples for p50 and p90, 100 for p95, 500 for p99.
    fn percentile(&self, percent: usize) -> Option<f64> {
        let tier = match percent {
            ..=90 => 30,
            91..=95 => 100,
            _ => 500,
        };
        if self.0.len() < tier {
            return None;
        }
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).map(|value| (value * 1e3).round() / 1e3)
    }

    /// What lies between the medians, in milliseconds; none with too few samples for them.
    pub(crate) fn above(&self, reference: &Self) -> Option<f64> {
        Some(self.percentile(50)? - reference.percentile(50)?)
    }

    fn percentiles(&self) -> Map<String, Value> {
        [50, 90, 95, 99]
            .into_iter()
            .filter_map(|percent| Some((format!("p{percent}"), json!(self.percentile(percent)?))))
            .collect()
    }
}

// === impl Report ===

impl Report {
    /// A duration beside its reference.
    pub(crate) fn pair(&mut self, metric: Metric, own: &Series, reference: &Series) {
        let ratio = own
            .percentile(50)
            .zip(reference.percentile(50))
            .map(|(own, reference)| (own / reference * 100.0).round() / 100.0);
        let mut line = json!({
            "promise": metric.promise, "metric": metric.name, "unit": "ms", "n": own.len(),
            "reference": { "metric": metric.reference, "n": reference.len() },
            "ratio_p50": ratio, "target": metric.target,
            "start": metric.start, "end": metric.end, "excluded": metric.excluded, "storage": storage(),
        });
        if let Some(object) = line.as_object_mut() {
            object.extend(own.percentiles());
        }
        if let Some(object) = line["reference"].as_object_mut() {
            object.extend(reference.percentiles());
        }
        println!("{line}");
        self.rows.push([
            metric.promise.to_owned(),
            metric.name.to_owned(),
            shown(own),
            shown(reference),
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            metric.target.to_owned(),
        ]);
    }

    /// A single figure with its target.
    pub(crate) fn figure(&mut self, promise: &str, name: &str, unit: &str, value: f64, target: &str) {
        let line = json!({
            "promise": promise, "metric": name, "unit": unit, "n": 1, "value": value, "target": target,
            "storage": storage(),
        });
        println!("{line}");
        let row = [promise, name, &format!("{value:.2} {unit}"), "", "", target];
        self.rows.push(row.map(str::to_owned));
    }

    /// Everything again, for people.
    pub(crate) fn table(&self) {
        let heads = ["", "metric", "measured", "reference", "ratio", "target"].map(str::to_owned);
        let rows: Vec<&[String; 6]> = std::iter::once(&heads).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        println!();
        for row in rows {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("{}", cells.join("  ").trim_end());
        }
    }
}

fn shown(series: &Series) -> String {
    let figures: Vec<String> = [50, 90, 95, 99]
        .into_iter()
        .filter_map(|percent| Some(format!("p{percent} {:.2}", series.percentile(percent)?)))
        .collect();
    format!("{} ms (n {})", figures.join(" "), series.len())
}
