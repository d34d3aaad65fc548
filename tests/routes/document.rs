//! The OpenAPI document is a locked file.

use std::{fs, path::Path};

use axum::body::Body;

use super::{Plane, request};

#[test]
fn the_document_in_the_tree_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/control.json");
    let rendered = firkin::routes::document();
    if std::env::var_os("FIRKIN_RENDER").is_some() {
        fs::write(&path, &rendered).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == rendered,
        "openapi/control.json is stale: run this test with FIRKIN_RENDER=1 and look at the difference"
    );
}

#[tokio::test]
async fn it_is_served_to_anybody_and_names_every_built_route() {
    let plane = Plane::new().await;
    let served = plane.send(request("GET", "/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!(served.status, 200);
    assert_eq!(served.body, serde_json::from_str::<serde_json::Value>(&firkin::routes::document()).unwrap());
    let create = &served.body["paths"]["/v2/sandboxes"]["post"];
    assert!(create["responses"].get("201").is_some());
    assert!(served.body["components"]["securitySchemes"].get("ApiKeyAuth").is_some());
}
