//! `firkin sandbox snapshot`: makes a template of a running sandbox.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    client::{Client, escaped},
    print,
};

/// Flags of `firkin sandbox snapshot`.
#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    /// The sandbox; it stands still for a moment and then goes on
    id: String,
    /// What the snapshot is called: a new name, or a new build of a known one
    #[arg(long, short, value_name = "NAME[:TAG]")]
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Made {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
}

/// Prints what `create` takes as a template.
pub(super) async fn run(args: SnapshotArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let path = format!("/sandboxes/{}/snapshots", escaped(&args.id));
    let body = args.name.map_or_else(|| json!({}), |name| json!({ "name": name }));
    let made = client.call::<Made>(Method::POST, &path, Some(&body)).await?;
    print(&made.body.snapshot_id)?;
    Ok(ExitCode::SUCCESS)
}
