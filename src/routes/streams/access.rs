//! Who may open a stream: an API key in `X-API-Key`, or a one-time ticket in the query; and from
//! which pages: a browser sends its `Origin`, and lets every page open a `WebSocket` to anywhere.

use std::{marker::PhantomData, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderMap, StatusCode, Uri, Version, header, request::Parts};

use super::{Connection, Streams, message::Refusal, ticket::Kind};
use crate::{
    hold::Hold,
    id::SandboxId,
    routes::{
        auth::{self, Actor},
        extract::{Query, SandboxPath},
        reply::ApiError,
        state::{AppState, Settings},
    },
    store::Team,
};

/// Somebody who may open a stream of this kind.
#[derive(Debug)]
pub(crate) struct Visitor<D> {
    pub(super) team: Arc<Team>,
    pub(super) sandbox: SandboxId,
    pub(super) query: Query,
    hold: Option<Hold>,
    shared: bool,
    door: PhantomData<D>,
}

/// A stream's route, as a type.
pub(crate) trait Door: Send {
    /// What a ticket must say.
    const KIND: Kind;
}

// === impl Visitor ===

impl<D: Door> FromRequestParts<AppState> for Visitor<D> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await?;
        check_origin(&parts.headers, &parts.uri, &state.settings)?;
        let sandbox = SandboxPath::from_request_parts(parts, state).await?;
        let (team, sandbox) = match query.get("ticket") {
            None => {
                let Actor(team) = Actor::from_request_parts(parts, state).await?;
                (team, sandbox.id()?)
            }
            Some(secret) => {
                let sandbox = sandbox.id()?;
                let tickets = state.streams.tickets();
                let slug = tickets.redeem(secret, sandbox, D::KIND, state.clock.now());
                let slug = slug.and_then(|slug| state.keys.team(&slug)).ok_or_else(|| {
                    ApiError::unauthorized("the ticket is unknown, used, expired or for something else")
                })?;
                let Actor(team) = auth::acting(slug)?;
                (team, sandbox)
            }
        };
        let hold = parts.extensions.get().cloned();
        let shared = parts.version == Version::HTTP_2;
        Ok(Self { team, sandbox, query, hold, shared, door: PhantomData })
    }
}

impl<D> Visitor<D> {
    /// A share of the bound on connections.
    pub(super) fn connection(&self, streams: &Streams) -> Result<Connection, Refusal> {
        streams.connection(self.hold.clone(), self.shared)
    }
}

/// Refuses a page that is neither this server's own, nor of the configured domain, nor one of
/// `allowed-origins`. Programs that are no browsers send no origin.
pub(super) fn check_origin(headers: &HeaderMap, uri: &Uri, settings: &Settings) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    // HTTP/2 names the host in `:authority`, which is the URI's.
    let host = match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(header::HOST).and_then(|host| host.to_str().ok()),
    };
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    let ours = authority.is_some_and(|authority| {
        host.is_some_and(|host| authority.eq_ignore_ascii_case(host))
            || authority.eq_ignore_ascii_case(&settings.domain)
    });
    if ours || settings.allowed_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
        Ok(())
    } else {
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("pages of the origin {origin:?} may not open streams here: add it to allowed-origins"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Resources;

    #[test]
    fn pages_of_other_origins_are_refused() {
        let settings = Settings {
            domain: "firkin.test:3000".into(),
            max_timeout: None,
            default_resources: Resources { cpu_count: 1, memory_mb: 128, disk_mb: 128 },
            allowed_origins: ["https://ide.example.com".to_owned()].into(),
        };
        let ask = |origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:3000".parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            check_origin(&headers, &Uri::from_static("/"), &settings).map_err(|error| error.status().as_u16())
        };
        for good in [
            None,
            Some("http://127.0.0.1:3000"),
            Some("http://firkin.test:3000"),
            Some("https://FIRKIN.test:3000"),
            Some("https://ide.example.com"),
        ] {
            assert_eq!(ask(good), Ok(()), "{good:?}");
        }
        for bad in [
            "null",
            "",
            "http://evil.example",
            // A page that a sandbox itself serves.
            "http://3000-i0123456789abcdefghij.firkin.test:3000",
            "http://127.0.0.1:3001",
            "http://ide.example.com",
            "https://ide.example.com.evil.example",
        ] {
            assert_eq!(ask(Some(bad)), Err(403), "{bad}");
        }
    }
}
