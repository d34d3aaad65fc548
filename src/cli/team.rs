//! `firkin team`: teams of the running server.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;

use crate::{
    cli::{admin, say},
    config::Config,
    routes::admin::{NewTeam, TeamView},
};

/// What can be done with teams.
#[derive(Debug, Subcommand)]
pub(super) enum TeamCommand {
    /// Make a team; give it keys with `firkin key create --team SLUG`
    Create {
        /// Its namespace in template names: lower-case letters, digits, `-` and `_`
        slug: String,
        /// For people
        #[arg(long)]
        name: Option<String>,
    },
    /// List teams: id, slug, name
    List,
}

pub(super) fn run(command: TeamCommand, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        TeamCommand::Create { slug, name } => {
            let wanted = NewTeam { slug, name };
            let team: TeamView = admin::request(config, Method::POST, "/teams", Some(&wanted))?;
            say(&format!("{}  {}", team.id, team.slug));
        }
        TeamCommand::List => {
            let teams: Vec<TeamView> = admin::request(config, Method::GET, "/teams", None::<&()>)?;
            for team in teams {
                say(&format!("{}  {}  {}", team.id, team.slug, team.name));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
