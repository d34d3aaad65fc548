//! `firkin sandbox pause` and `resume`: puts sandboxes to rest and wakes them.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::{
    client::{Client, Refused, escaped},
    print,
};
use crate::cli::complain;

/// Flags of `firkin sandbox pause`.
#[derive(Debug, Args)]
pub(super) struct PauseArgs {
    /// The sandboxes
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Keep the disk alone: processes end, and the next run starts anew
    #[arg(long)]
    disk_only: bool,
}

/// Flags of `firkin sandbox resume`.
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// The sandboxes; for one that runs it only puts the deadline off
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Seconds until the deadline; one that is later already stays
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(i32).range(1..))]
    timeout: i32,
}

pub(super) async fn pause(args: PauseArgs, client: &Client) -> anyhow::Result<ExitCode> {
    each(client, args.ids, "pause", &json!({ "memory": !args.disk_only })).await
}

pub(super) async fn resume(args: ResumeArgs, client: &Client) -> anyhow::Result<ExitCode> {
    each(client, args.ids, "connect", &json!({ "timeout": args.timeout })).await
}

/// Prints the id of each that obeyed; 1 when one of them did not.
async fn each(client: &Client, ids: Vec<String>, verb: &str, body: &Value) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let path = format!("/sandboxes/{}/{verb}", escaped(&id));
        match client.call::<Value>(Method::POST, &path, Some(body)).await {
            Ok(_) => print(&id)?,
            Err(error) if error.is::<Refused>() => {
                complain(&error);
                code = ExitCode::FAILURE;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}
