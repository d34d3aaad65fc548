//! Machines from nothing to nothing, and what a warden's end leaves of them.

use firkin::{
    id::BuildId,
    runtime::engine::{Engine, EngineError},
};

use super::server::{Data, spec};
use crate::support::host::Host;

#[tokio::test]
async fn a_server_without_machines_leaves_nothing() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    assert!(server.scope.look().instance);
    assert!(server.client.machines().await.unwrap().is_empty());
    server.client.shutdown(false).await.unwrap();
    server.client.closed().await;
    server.scope.settles_as(&Host::default());
}

#[tokio::test]
async fn a_gateway_that_vanishes_ends_its_warden() {
    let Some(data) = Data::new() else { return };
    let (socket, scope, ..) = data.fork();
    drop(socket);
    scope.settles_as(&Host::default());
    // The next one has the directory to itself.
    let again = data.serve().await;
    again.client.shutdown(true).await.unwrap();
    scope.settles_as(&Host::default());
}

#[tokio::test]
async fn an_unknown_build_makes_no_machine() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    assert!(server.client.machines().await.unwrap().is_empty());
    let before = server.scope.look();
    let spec = spec(BuildId(uuid::Uuid::from_u128(7)));
    assert!(matches!(server.engine.create(spec).await, Err(EngineError::NoImage(_))));
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}
