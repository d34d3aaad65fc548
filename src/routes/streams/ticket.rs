//! One-time tickets: `POST /sandboxes/{sandboxID}/tickets`. A browser cannot send headers with a
//! WebSocket, and an API key does not belong in a page: whoever has the key gets a ticket, and the
//! page opens one stream with it.

use std::{collections::HashMap, fmt, sync::Arc};

use axum::extract::State;
use http::{HeaderMap, StatusCode, Uri};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::access;
use crate::{
    id::{Entropy, SandboxId},
    routes::{
        auth::Actor,
        extract::{JsonBody, SandboxPath},
        reply::{self, ApiError, ErrorBody},
        state::AppState,
    },
};

/// How long a ticket opens a stream.
const LIFETIME: SignedDuration = SignedDuration::from_secs(30);
/// The most tickets of one team at the same time.
const MAX_OF_TEAM: usize = 256;
/// The most tickets at the same time.
const MAX: usize = 4096;

/// What a ticket opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `/processes`.
    Processes,
    /// `/terminal`.
    Terminal,
    /// `/files/watch`.
    Files,
}

/// The tickets that open something. Of a ticket only its hash is kept.
#[derive(Debug, Default)]
pub(super) struct Tickets(Mutex<HashMap<[u8; 32], Ticket>>);

#[derive(Debug)]
struct Ticket {
    team: Arc<str>,
    sandbox: SandboxId,
    kind: Kind,
    expires_at: Timestamp,
}

/// What the ticket is for.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct NewTicket {
    /// Which stream it opens.
    kind: Kind,
}

/// A ticket.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ticket)]
pub(crate) struct TicketView {
    /// Goes into the query of the stream's URL: `?ticket=...`.
    ticket: String,
    /// Which stream it opens.
    kind: Kind,
    /// When it opens nothing any more.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Makes a ticket that opens one stream of this sandbox, once, within 30 seconds.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/tickets", tag = "streams", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = NewTicket,
    responses((status = 201, body = TicketView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    headers: HeaderMap,
    uri: Uri,
    JsonBody(body): JsonBody<NewTicket>,
) -> Result<axum::response::Response, ApiError> {
    access::check_origin(&headers, &uri, &state.settings)?;
    let sandbox = state.registry.get(team.id, path.id()?).await?.record.id;
    let now = state.clock.now();
    let expires_at = now.saturating_add(LIFETIME).unwrap_or(Timestamp::MAX);
    let ticket = Ticket { team: team.slug.as_str().into(), sandbox, kind: body.kind, expires_at };
    let secret = state.streams.tickets().issue(ticket, now, &*state.entropy)?;
    Ok(reply::json(StatusCode::CREATED, TicketView { ticket: secret, kind: body.kind, expires_at }))
}

// === impl Tickets ===

impl Tickets {
    fn issue(&self, ticket: Ticket, now: Timestamp, entropy: &dyn Entropy) -> Result<String, ApiError> {
        let mut raw = [0; 24];
        entropy.fill(&mut raw);
        let secret = hex::encode(raw);
        let mut kept = self.0.lock();
        kept.retain(|_, ticket| ticket.expires_at > now);
        let of_team = kept.values().filter(|kept| kept.team == ticket.team).count();
        if kept.len() >= MAX || of_team >= MAX_OF_TEAM {
            return Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many unused tickets: use them, or wait until they expire",
            )
            .retry_after(1));
        }
        kept.insert(hash(&secret), ticket);
        Ok(secret)
    }

    /// The slug of the team that a ticket speaks for. Whatever the answer, it opens nothing more.
    pub(super) fn redeem(
        &self,
        secret: &str,
        sandbox: SandboxId,
        kind: Kind,
        now: Timestamp,
    ) -> Option<Arc<str>> {
        let ticket = self.0.lock().remove(&hash(secret))?;
        let fits = ticket.sandbox == sandbox && ticket.kind == kind && ticket.expires_at > now;
        fits.then_some(ticket.team)
    }
}

impl fmt::Debug for TicketView {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TicketView").field("kind", &self.kind).finish_non_exhaustive()
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::OsEntropy;

    fn ticket(team: &str, sandbox: SandboxId, now: Timestamp) -> Ticket {
        Ticket { team: team.into(), sandbox, kind: Kind::Terminal, expires_at: now + LIFETIME }
    }

    #[test]
    fn a_ticket_opens_its_own_stream_once_and_in_time() {
        let (tickets, now) = (Tickets::default(), Timestamp::UNIX_EPOCH);
        let (ours, other) = (SandboxId::generate(&OsEntropy), SandboxId::generate(&OsEntropy));
        let issue = || tickets.issue(ticket("a", ours, now), now, &OsEntropy).unwrap();
        let secret = issue();
        assert_eq!(tickets.redeem(&secret, ours, Kind::Terminal, now).as_deref(), Some("a"));
        assert_eq!(tickets.redeem(&secret, ours, Kind::Terminal, now), None, "used");
        assert_eq!(tickets.redeem(&issue(), other, Kind::Terminal, now), None, "another sandbox");
        assert_eq!(tickets.redeem(&issue(), ours, Kind::Files, now), None, "another stream");
        assert_eq!(tickets.redeem(&issue(), ours, Kind::Terminal, now + LIFETIME), None, "too late");
        assert_eq!(tickets.redeem("", ours, Kind::Terminal, now), None);
    }

    #[test]
    fn tickets_are_bounded_by_team_and_expired_ones_do_not_count() {
        let (tickets, now) = (Tickets::default(), Timestamp::UNIX_EPOCH);
        let sandbox = SandboxId::generate(&OsEntropy);
        let issue = |team, now| tickets.issue(ticket(team, sandbox, now), now, &OsEntropy);
        for _ in 0..MAX_OF_TEAM {
            issue("a", now).unwrap();
        }
        assert_eq!(issue("a", now).unwrap_err().status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(issue("b", now).is_ok(), "another team has its own share");
        assert!(issue("a", now + LIFETIME).is_ok());
    }
}
