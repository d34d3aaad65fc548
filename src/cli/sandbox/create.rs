//! `firkin sandbox create`: makes a sandbox and prints its id.

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;
use http::Method;
use serde::{Deserialize, Serialize};

use super::{client::Client, pair, print, terminal};

/// Flags of `firkin sandbox create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// What it is made of: a template's name or id
    #[arg(default_value = "base")]
    template: String,
    /// Seconds until its deadline
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(i32).range(1..))]
    timeout: i32,
    /// A label; can be given again
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// A variable of all its processes; can be given again
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Open a terminal in it
    #[arg(long)]
    pub(super) connect: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NewSandbox<'a> {
    #[serde(rename = "templateID")]
    template_id: &'a str,
    timeout: i32,
    metadata: BTreeMap<String, String>,
    env_vars: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Made {
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
}

pub(super) async fn run(args: CreateArgs, client: &Client) -> anyhow::Result<ExitCode> {
    if args.connect {
        terminal::check()?;
    }
    let wanted = NewSandbox {
        template_id: &args.template,
        timeout: args.timeout,
        metadata: args.metadata.into_iter().collect(),
        env_vars: args.env.into_iter().collect(),
    };
    let made = client.call::<Made>(Method::POST, "/v2/sandboxes", Some(&wanted)).await?;
    print(&made.body.sandbox_id)?;
    if args.connect {
        return terminal::shell(client, &made.body.sandbox_id).await;
    }
    Ok(ExitCode::SUCCESS)
}
