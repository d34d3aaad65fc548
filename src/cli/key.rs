//! `firkin key`: API keys of the running server.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;

use crate::{
    cli::{admin, say},
    config::Config,
    id::KeyId,
    routes::admin::{IssuedKeyView, KeyView, NewKey},
};

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key and print it; it is never shown again
    Create {
        /// What the key is for
        #[arg(long, default_value = "unnamed")]
        name: String,
        /// The team that the key belongs to [default: the oldest team]
        #[arg(long, value_name = "SLUG")]
        team: Option<String>,
    },
    /// List keys: id, masked key, last use, name
    List,
    /// Take a key back; refused from the next request on
    Revoke {
        /// The key's id, as `list` prints it
        id: KeyId,
    },
}

pub(super) fn run(command: KeyCommand, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        KeyCommand::Create { name, team } => {
            let wanted = NewKey { team, name };
            let issued: IssuedKeyView = admin::request(config, Method::POST, "/keys", Some(&wanted))?;
            say(&issued.key);
        }
        KeyCommand::List => {
            let keys: Vec<KeyView> = admin::request(config, Method::GET, "/keys", None::<&()>)?;
            for key in keys {
                let used = key.last_used.map_or_else(|| "never".to_owned(), |at| at.to_string());
                say(&format!("{}  {}  {used}  {}", key.id, key.mask, key.name));
            }
        }
        KeyCommand::Revoke { id } => {
            admin::request::<serde_json::Value>(config, Method::DELETE, &format!("/keys/{id}"), None::<&()>)?;
            say(&format!("revoked {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
