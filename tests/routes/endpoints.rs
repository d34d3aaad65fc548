//! The table of endpoints in docs/compatibility.md says what answers: each of them is called here.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use super::{Answer, Plane};

/// What this server has and E2B has not.
const OWN: [&str; 4] = [
    "POST /sandboxes/{id}/tickets",
    "GET /sandboxes/{id}/processes",
    "GET /sandboxes/{id}/terminal",
    "GET /sandboxes/{id}/files/watch",
];

/// The rows of the table: the endpoint, and what it says of it.
fn table() -> BTreeMap<String, String> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/compatibility.md");
    let text = fs::read_to_string(document).unwrap();
    let (_, section) = text.split_once("## Control plane\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let (endpoint, class) = (cells.next().unwrap().to_owned(), cells.next().unwrap().to_owned());
        assert!(rows.insert(endpoint.clone(), class).is_none(), "{endpoint} is there twice");
    }
    rows
}

/// A request that the endpoint takes.
async fn call(plane: &Plane, template: &str, endpoint: &str) -> Answer {
    let (method, path) = endpoint.split_once(' ').unwrap();
    let id = if path.contains("sandboxes/{id}") { plane.sandbox().await } else { "x".to_owned() };
    let id = if path.contains("templates/{id}") { template.to_owned() } else { id };
    if endpoint == "POST /sandboxes/{id}/resume" {
        assert_eq!(plane.call("POST", &format!("/sandboxes/{id}/pause"), None).await.status, 204);
    }
    if endpoint == "DELETE /templates/{id}" {
        let sandbox = plane.sandbox().await;
        let made = plane.call("POST", &format!("/sandboxes/{sandbox}/snapshots"), Some(json!({}))).await;
        let snapshot = made.body["snapshotID"].as_str().unwrap().replace(':', "%3A");
        return plane.call("DELETE", &format!("/templates/{snapshot}"), None).await;
    }
    let body: Option<Value> = match endpoint {
        "POST /sandboxes/{id}/snapshots" | "PUT /sandboxes/{id}/network" => Some(json!({})),
        "POST /sandboxes" | "POST /v2/sandboxes" => Some(json!({"templateID": "base"})),
        "POST /sandboxes/{id}/connect" | "POST /sandboxes/{id}/timeout" => Some(json!({"timeout": 60})),
        "POST /templates/tags" => Some(json!({"target": "tool", "tags": ["v1"]})),
        "DELETE /templates/tags" => Some(json!({"name": "tool", "tags": ["v1"]})),
        _ => None,
    };
    let query = if path == "/sandboxes/metrics" { "?sandbox_ids=i0123456789abcdefghij" } else { "" };
    let path = path.replace("{id}", &id).replace("{alias}", "base");
    plane.call(method, &format!("{path}{query}"), body).await
}

#[tokio::test]
async fn each_endpoint_answers_as_the_table_says() {
    let plane = Plane::new().await;
    for (endpoint, class) in table() {
        let template = plane.template("tool", Some("ours")).await;
        let answer = call(&plane, &template, &endpoint).await;
        let found = match answer.status.as_u16() {
            200..=299 => "works",
            501 => {
                assert!(answer.error(501).contains("is not built yet"), "{endpoint}: {answer:?}");
                "501"
            }
            _ => panic!("{endpoint}: {answer:?}"),
        };
        assert_eq!(found, class, "{endpoint}: {answer:?}");
    }
}

#[test]
fn the_table_has_every_route_and_no_other() {
    let document: Value = serde_json::from_str(&firkin::routes::document()).unwrap();
    let short = |path: &str| path.replace("{sandboxID}", "{id}").replace("{templateID}", "{id}");
    let built = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        let path = short(path);
        let methods: Vec<String> = methods.as_object().unwrap().keys().cloned().collect();
        methods.into_iter().map(move |method| (format!("{} {path}", method.to_uppercase()), "works"))
    });
    let unbuilt =
        firkin::routes::unbuilt().map(|(method, path)| (format!("{method} {}", short(path)), "501"));
    let mut routes: BTreeMap<String, String> =
        built.chain(unbuilt).map(|(endpoint, class)| (endpoint, class.to_owned())).collect();
    for own in OWN {
        assert!(routes.remove(own).is_some(), "{own} is no route any more");
    }
    assert_eq!(table(), routes);
}
