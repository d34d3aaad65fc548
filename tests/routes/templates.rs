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

fn fields<'a>(answer: &'a super::Answer, name: &str) -> Vec<&'a Value> {
    answer.body.as_array().unwrap().iter().map(|item| &item[name]).collect()
}

#[tokio::test]
async fn the_paged_list_is_newest_first_and_whole() {
    let plane = Plane::new().await;
    for number in 0..4 {
        plane.template(&format!("t{number}"), Some("ours")).await;
    }
    plane.template("hidden", Some("theirs")).await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = plane.call("GET", &format!("/v2/templates?limit=2&nextToken={token}"), None).await;
        assert_eq!(page.status, 200, "{page:?}");
        seen.extend(fields(&page, "names").into_iter().map(|names| names[0].as_str().unwrap().to_owned()));
        let Some(next) = page.headers.get("x-next-token") else { break };
        token = next.to_str().unwrap().replace('=', "%3D");
        assert!(seen.len() < 9, "pages repeat items");
    }
    assert_eq!(seen, ["ours/t3", "ours/t2", "ours/t1", "ours/t0", "base"]);
    for query in ["limit=0", "limit=101", "nextToken=x"] {
        plane.call("GET", &format!("/v2/templates?{query}"), None).await.error(400);
    }
    let whole = plane.call("GET", "/v2/templates", None).await;
    assert_eq!(whole.body.as_array().unwrap().len(), 5);
    assert!(whole.headers.get("x-next-token").is_none());
}

#[tokio::test]
async fn details_have_the_builds_newest_first() {
    let plane = Plane::new().await;
    let id = plane.template("tool", Some("ours")).await;
    plane.template("tool", Some("ours")).await;
    let found = plane.call("GET", &format!("/templates/{id}"), None).await;
    assert_eq!(found.status, 200, "{found:?}");
    assert_eq!(found.body["names"], json!(["ours/tool"]));
    assert_eq!(found.body["buildCount"], 2);
    let builds = found.body["builds"].as_array().unwrap();
    assert_eq!(builds.len(), 2);
    assert_eq!(builds[0]["buildID"], found.body["buildID"], "the newest is what a create uses");
    assert!(builds[0]["createdAt"].as_str() > builds[1]["createdAt"].as_str());
    for build in builds {
        assert_eq!((&build["status"], &build["memoryMB"]), (&json!("ready"), &json!(512)));
    }
    let first = plane.call("GET", &format!("/templates/{id}?limit=1"), None).await;
    let token = first.headers["x-next-token"].to_str().unwrap().replace('=', "%3D");
    let second = plane.call("GET", &format!("/templates/{id}?limit=1&nextToken={token}"), None).await;
    assert_eq!(second.body["builds"], json!([builds[1]]));
    assert!(second.headers.get("x-next-token").is_none());

    for nobodys in ["tool", "ours%2Ftool", "abcdefghij0123456789"] {
        plane.call("GET", &format!("/templates/{nobodys}"), None).await.error(404);
    }
    let foreign = plane.template("hidden", Some("theirs")).await;
    plane.call("GET", &format!("/templates/{foreign}"), None).await.error(403);
}

#[tokio::test]
async fn a_published_template_can_be_used_by_others_until_it_is_taken_back() {
    let plane = Plane::new().await;
    let id = plane.template("tool", Some("ours")).await;
    let create = async || {
        let body = json!({"templateID": "ours/tool"});
        let made = plane.call_with(&plane.other_key, "POST", "/v2/sandboxes", Some(body)).await;
        made.status.as_u16()
    };
    assert_eq!(create().await, 404);
    for (name, public, status) in [("tool", true, 201), (id.as_str(), false, 404), ("ours%2Ftool", true, 201)]
    {
        let path = format!("/v2/templates/{name}");
        let changed = plane.call("PATCH", &path, Some(json!({"public": public}))).await;
        assert_eq!((changed.status.as_u16(), &changed.body), (200, &json!({"names": ["ours/tool"]})));
        assert_eq!(create().await, status, "{name}");
        let shown = plane.call("GET", &format!("/templates/{id}"), None).await;
        assert_eq!(shown.body["public"], public);
    }
    for empty in [None, Some(json!({}))] {
        let same = plane.call("PATCH", "/v2/templates/tool", empty).await;
        assert_eq!(same.status, 200);
    }
    assert_eq!(create().await, 201, "an empty body changes nothing");
    let body = Some(json!({"public": false}));
    plane.call_with(&plane.other_key, "PATCH", "/v2/templates/ours%2Ftool", body.clone()).await.error(403);
    plane.call("PATCH", "/v2/templates/base", body.clone()).await.error(403);
    plane.call("PATCH", "/v2/templates/nope", body).await.error(404);
    plane.call("PATCH", "/v2/templates/tool", Some(json!({"public": "yes"}))).await.error(400);
    assert_eq!(create().await, 201);
}

#[tokio::test]
async fn tags_name_builds_and_move_between_them() {
    let plane = Plane::new().await;
    plane.template("tool", Some("ours")).await;
    let tag = async |target: &str, tags: Value| {
        plane.call("POST", "/templates/tags", Some(json!({"target": target, "tags": tags}))).await
    };
    let listed = async || {
        let listed = plane.call("GET", "/templates/ours%2Ftool/tags", None).await;
        assert_eq!(listed.status, 200, "{listed:?}");
        let tags = listed.body.as_array().unwrap().clone();
        tags.into_iter()
            .map(|tag| (tag["tag"].as_str().unwrap().to_owned(), tag["buildID"].clone()))
            .collect::<Vec<_>>()
    };
    let first = tag("tool", json!(["V1.0", "stable"])).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(first.body["tags"], json!(["v1.0", "stable"]), "lower-cased");
    let old = first.body["buildID"].clone();
    plane.template("tool", Some("ours")).await;
    let moved = tag("tool", json!(["stable"])).await;
    let new = moved.body["buildID"].clone();
    assert_ne!(new, old);
    assert_eq!(tag("ours/tool:v1.0", json!(["first"])).await.body["buildID"], old, "by another tag");
    let pair = |name: &str, build: &Value| (name.to_owned(), build.clone());
    assert_eq!(
        listed().await,
        [pair("default", &new), pair("first", &old), pair("stable", &new), pair("v1.0", &old)]
    );
    for (name, status) in [("tool:v1.0", 201), ("tool:stable", 201), ("tool", 201), ("tool:v2", 404)] {
        let made = plane.call("POST", "/v2/sandboxes", Some(json!({"templateID": name}))).await;
        assert_eq!(made.status, status, "{name}: {made:?}");
    }
    assert_eq!(plane.call("GET", "/templates/aliases/tool%3Av1.0", None).await.status, 200);

    let remove = async |name: &str, tags: Value| {
        plane.call("DELETE", "/templates/tags", Some(json!({"name": name, "tags": tags}))).await
    };
    assert_eq!(remove("tool", json!(["first", "never-there"])).await.status, 204);
    assert_eq!(listed().await.len(), 3);
    plane.call("GET", "/templates/aliases/tool%3Afirst", None).await.error(404);
    remove("tool", json!(["default"])).await.error(400);
    remove("tool:v1.0", json!(["stable"])).await.error(400);
    remove("tool", json!([])).await.error(400);
    remove("nope", json!(["v1.0"])).await.error(404);
    remove("base", json!(["v1.0"])).await.error(403);

    for (target, tags, status) in [
        ("tool", json!([]), 400),
        ("tool", json!(["a b"]), 400),
        ("tool", json!(["6d1f7f3e-3b0c-4b8e-9d1f-0123456789ab"]), 400),
        ("tool", json!("v2"), 400),
        ("tool:v9", json!(["v2"]), 404),
        ("nope", json!(["v2"]), 404),
        ("base", json!(["v2"]), 403),
    ] {
        tag(target, tags).await.error(status);
    }
    let body = Some(json!({"target": "ours/tool", "tags": ["x"]}));
    plane.call_with(&plane.other_key, "POST", "/templates/tags", body).await.error(403);
    plane.call_with(&plane.other_key, "GET", "/templates/ours%2Ftool/tags", None).await.error(403);
    assert_eq!(listed().await.len(), 3, "what was refused changed nothing");
    let everybodys = plane.call("GET", "/templates/base/tags", None).await;
    assert_eq!(fields(&everybodys, "tag"), [&json!("default")]);
}
