//! Which sandboxes are meant: filters of `list` and `kill --all`, and the pages they come in.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    client::{Client, escaped},
    pair,
};

/// Which sandboxes.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct FilterArgs {
    /// Only those in this state; both can be given, with a comma or twice
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(super) state: Vec<State>,
    /// Only those with this label; all that are given must be there
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) metadata: Vec<(String, String)>,
    /// Only those made of this template
    #[arg(long, value_name = "TEMPLATE")]
    pub(super) template: Option<String>,
}

/// The states that a sandbox shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum State {
    /// It runs
    Running,
    /// It is kept, but does not run
    Paused,
}

// === impl FilterArgs ===

impl FilterArgs {
    /// Whether anything is left out.
    pub(super) fn is_any(&self) -> bool {
        self.state.is_empty() && self.metadata.is_empty() && self.template.is_none()
    }

    /// Reads every page, newest first, or as many as it takes for `limit` sandboxes.
    pub(super) async fn find(&self, client: &Client, limit: Option<usize>) -> anyhow::Result<Vec<Value>> {
        let mut found: Vec<Value> = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let wanted = limit.map(|limit| limit.saturating_sub(found.len()));
            if wanted == Some(0) {
                return Ok(found);
            }
            let path = self.path(wanted, next.as_deref());
            let mut page = client.get::<Vec<Value>>(&path).await?;
            let token = page.headers.remove("x-next-token");
            found.append(&mut page.body);
            next = token.and_then(|token| token.to_str().ok().map(str::to_owned));
            if next.as_deref().is_none_or(str::is_empty) {
                return Ok(found);
            }
        }
    }

    fn path(&self, limit: Option<usize>, next: Option<&str>) -> String {
        let mut query = Vec::new();
        if !self.state.is_empty() {
            let states: Vec<_> = self.state.iter().map(|state| state.name()).collect();
            query.push(format!("state={}", states.join(",")));
        }
        if !self.metadata.is_empty() {
            // Each part is escaped, the whole again, and then it is a part of a URL.
            let pairs =
                self.metadata.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
            query.push(format!("metadata={}", escaped(&escaped(&pairs.collect::<Vec<_>>().join("&")))));
        }
        if let Some(template) = &self.template {
            query.push(format!("template={}", escaped(template)));
        }
        query.push(format!("limit={}", limit.unwrap_or(PAGE).min(PAGE)));
        if let Some(next) = next {
            query.push(format!("nextToken={}", escaped(next)));
        }
        format!("/v2/sandboxes?{}", query.join("&"))
    }
}

/// The most sandboxes of one page.
const PAGE: usize = 100;

// === impl State ===

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_as_the_sdks_do_and_pages_are_bounded() {
        let filter = FilterArgs {
            state: vec![State::Running, State::Paused],
            metadata: vec![("a b".to_owned(), "=".to_owned()), ("c".to_owned(), "&".to_owned())],
            template: Some("team/base".to_owned()),
        };
        assert_eq!(
            filter.path(Some(7), Some("x==")),
            "/v2/sandboxes?state=running,paused&metadata=a%252520b%253D%25253D%2526c%253D%252526&template=team%2Fbase\
             &limit=7&nextToken=x%3D%3D"
        );
        assert!(!filter.is_any());
        assert!(FilterArgs::default().is_any());
        assert_eq!(FilterArgs::default().path(Some(1000), None), "/v2/sandboxes?limit=100");
    }
}
