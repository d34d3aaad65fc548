//! Logs: to stderr, one line an event, with dotted fields. Never tokens, bodies or environments.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?}: {reason}")]
pub struct LogError {
    filter: String,
    reason: String,
}

/// Starts logging for the whole process. Once.
pub fn start(log: &Log) -> Result<(), LogError> {
    let failed = |reason: String| LogError { filter: log.filter.clone(), reason };
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| failed(error.to_string()))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Whoever took the lines may have gone; that is no reason to complain to him.
    let lines = lines.log_internal_errors(false);
    match log.format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|error| failed(error.to_string()))
}
