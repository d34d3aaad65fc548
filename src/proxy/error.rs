//! Why a request to a sandbox has no answer from it. [`super::rescue`] alone makes responses of these.

use super::host::HostError;

/// Why a request to a sandbox has no answer from it. The texts are the contract's, word for word
/// (contract/sandbox 7): SDKs read them.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// The request is for nobody.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A path that only the control plane may use.
    #[error(
        "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"
    )]
    Reserved {
        /// The path as the guest would have read it.
        path: String,
    },
    /// Unknown, killed (also while the request was in flight), or paused and not to be woken.
    #[error("The sandbox was not found")]
    NotFound,
    /// On its way from one state to another.
    #[error("The sandbox is still transitioning. Try again in a moment.")]
    Transitioning,
    /// It is paused, and only other credentials may wake it.
    #[error(
        "This sandbox can't be resumed with the credentials provided. Send the sandbox's access token, or its traffic access token."
    )]
    Denied,
    /// It is paused, and the host has no room for it now.
    #[error("The sandbox cannot be resumed now: this server has no capacity left. Try again in a moment.")]
    Full,
    /// User ports want a token and there is none.
    #[error(
        "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
    )]
    TokenMissing,
    /// User ports want a token and it is another.
    #[error(
        "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
    )]
    TokenInvalid,
    /// As many requests as the operator allows are in flight.
    #[error(
        "The sandbox has reached its limit of {limit} simultaneous connections. Close some and try again."
    )]
    TooManyConnections {
        /// The limit.
        limit: u32,
    },
    /// Nothing listens, or what listens does not answer in HTTP.
    #[error("The sandbox is running but port is not open")]
    PortClosed {
        /// For the log only: what the link or the connection said.
        cause: Cause,
    },
    /// `maskRequestHost` makes no valid host of this port.
    #[error("Invalid maskRequestHost")]
    Mask,
}

/// What stood behind a [`ProxyError::PortClosed`].
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

// === impl ProxyError ===

impl ProxyError {
    pub(super) fn closed(cause: impl Into<Cause>) -> Self {
        Self::PortClosed { cause: cause.into() }
    }
}
