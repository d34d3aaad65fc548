//! `firkin sandbox kill`: ends sandboxes by id, or all that fit a filter.

use std::process::ExitCode;

use clap::Args;
use http::Method;

use super::{
    client::{Client, escaped, is_missing},
    filter::FilterArgs,
    print,
};
use crate::cli::complain;

/// Flags of `firkin sandbox kill`.
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// The sandboxes
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with_all = ["all", "state", "metadata", "template"])]
    ids: Vec<String>,
    /// End every sandbox of the key's team that fits the filters, or every one without filters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Prints the id of each that was ended; 1 when one of them could not be.
pub(super) async fn run(args: KillArgs, client: &Client) -> anyhow::Result<ExitCode> {
    let ids = if args.all {
        let found = args.filter.find(client, None).await?;
        found.iter().filter_map(|sandbox| sandbox["sandboxID"].as_str()).map(str::to_owned).collect()
    } else {
        args.ids
    };
    let mut failed = false;
    for id in ids {
        let path = format!("/sandboxes/{}", escaped(&id));
        match client.call::<()>(Method::DELETE, &path, None::<&()>).await {
            Ok(_) => print(&id)?,
            // It ended by itself since it was listed.
            Err(error) if args.all && is_missing(&error) => {}
            Err(error) if error.is::<super::client::Refused>() => {
                complain(&error);
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
