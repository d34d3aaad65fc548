//! Templates: the list, and what a name stands for.

use serde_json::{Value, json};

use super::Plane;

#[tokio::test]
async fn the_list_has_the_teams_own_and_everybodys() {
    let plane = Plane::new().await;
    plane.template("mine", Some("ours")).await;
    plane.template("hidden", Some("theirs")).await;
    let listed = plane.call("GET", "/templates", None).await;
    assert_eq!(listed.status, 200);
    let items = listed.body.as_array().unwrap();
    let names: Vec<&Value> = items.iter().map(|item| &item["names"]).collect();
    assert_eq!(names, [&json!(["base"]), &json!(["ours/mine"])]);
    assert_eq!(items[1]["aliases"], json!(["mine"]));
    for always_there in ["createdBy", "lastSpawnedAt"] {
        assert_eq!(items[1].get(always_there), Some(&Value::Null));
    }
    let own = plane.team.id;
    assert_eq!(plane.call("GET", &format!("/templates?teamID={own}"), None).await.status, 200);
    let other = plane.other_team.id;
    plane.call("GET", &format!("/templates?teamID={other}"), None).await.error(400);
}

#[tokio::test]
async fn aliases_are_one_segment_with_their_slashes_and_colons() {
    let plane = Plane::new().await;
    let mine = plane.template("mine", Some("ours")).await;
    plane.template("hidden", Some("theirs")).await;
    for alias in ["mine", "ours%2Fmine", "ours%2fmine%3Adefault", "MINE", mine.as_str()] {
        let found = plane.call("GET", &format!("/templates/aliases/{alias}"), None).await;
        assert_eq!(found.body, json!({"templateID": mine, "public": false}), "{alias}");
    }
    assert_eq!(plane.call("GET", "/templates/aliases/base", None).await.status, 200);
    plane.call("GET", "/templates/aliases/nope", None).await.error(404);
    plane.call("GET", "/templates/aliases/mine%3Av1", None).await.error(404);
    plane.call("GET", "/templates/aliases/theirs%2Fhidden", None).await.error(400);
    plane.call("GET", "/templates/aliases/a%20b", None).await.error(400);
    plane.call("GET", "/templates/aliases/ours/mine", None).await.error(404);
    let listed = plane.call_with(&plane.other_key, "GET", "/templates", None).await;
    let foreign = listed.body[1]["templateID"].as_str().unwrap();
    plane.call("GET", &format!("/templates/aliases/{foreign}"), None).await.error(403);
}

#[tokio::test]
async fn private_templates_of_others_cannot_be_used() {
    let plane = Plane::new().await;
    plane.template("tool", Some("theirs")).await;
    let body = json!({"templateID": "theirs/tool"});
    let theirs = plane.call_with(&plane.other_key, "POST", "/v2/sandboxes", Some(body.clone())).await;
    assert_eq!(theirs.status, 201);
    let ours = plane.call("POST", "/v2/sandboxes", Some(body)).await;
    assert_eq!(ours.error(404), "template 'theirs/tool' not found");
}
