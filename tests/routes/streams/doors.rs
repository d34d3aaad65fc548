//! Who may open a stream: keys and tickets, foreign sandboxes, pages of other origins.

use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use super::{Rig, within};

const EVIL: &str = "http://evil.example";

#[tokio::test]
async fn a_ticket_opens_one_connection_of_its_kind_to_its_sandbox() {
    let rig = Rig::start().await;
    let good = rig.ticket("terminal").await;
    let path = rig.path(&format!("terminal?ticket={good}"));
    let mut socket = rig.open(&path, &[]).await.unwrap();
    let shell = rig.envd.opened("process.Process/Start").await;
    assert_eq!(shell.asked["process"]["cmd"], "/bin/bash");
    assert_eq!(socket.next().await["type"], "attached");
    assert_eq!(rig.open(&path, &[]).await.err(), Some(401), "used");

    let other = rig.ticket("files").await;
    assert_eq!(rig.open(&rig.path(&format!("terminal?ticket={other}")), &[]).await.err(), Some(401));
    let watch = rig.path(&format!("files/watch?path=/tmp&ticket={other}"));
    assert_eq!(rig.open(&watch, &[]).await.err(), Some(401), "a wrong try uses a ticket up");

    let neighbour = rig.plane.sandbox().await;
    let foreign = rig.ticket("terminal").await;
    let path = format!("/sandboxes/{neighbour}/terminal?ticket={foreign}");
    assert_eq!(rig.open(&path, &[]).await.err(), Some(401));
    assert_eq!(rig.open(&rig.path("terminal?ticket=made-up"), &[]).await.err(), Some(401));
    assert_eq!(rig.open(&rig.path("terminal"), &[]).await.err(), Some(401), "neither key nor ticket");
}

#[tokio::test]
async fn a_ticket_expires() {
    let rig = Rig::start().await;
    let (first, second) = (rig.ticket("terminal").await, rig.ticket("terminal").await);
    rig.plane.clock.jump(jiff::SignedDuration::from_secs(29));
    assert!(rig.open(&rig.path(&format!("terminal?ticket={first}")), &[]).await.is_ok());
    rig.plane.clock.jump(jiff::SignedDuration::from_secs(1));
    assert_eq!(rig.open(&rig.path(&format!("terminal?ticket={second}")), &[]).await.err(), Some(401));
}

#[tokio::test]
async fn another_teams_sandbox_is_as_unknown_as_one_that_never_was() {
    let rig = Rig::start().await;
    let never = "i00000000000000000000";
    for rest in ["processes", "processes?pid=1", "terminal", "files/watch?path=/tmp"] {
        let ours = rig.path(rest);
        assert!(rig.open(&ours, &[("x-api-key", &rig.plane.key)]).await.is_ok(), "{rest}");
        let theirs = [("x-api-key", rig.plane.other_key.as_str())];
        assert_eq!(rig.open(&ours, &theirs).await.err(), Some(404), "{rest}");
        let unknown = format!("/sandboxes/{never}/{rest}");
        assert_eq!(rig.open(&unknown, &[("x-api-key", &rig.plane.key)]).await.err(), Some(404), "{rest}");
    }
    for rest in ["processes?pid=1", "files/watch?path=/tmp"] {
        let mut texts = Vec::new();
        for (key, id) in [(&rig.plane.other_key, rig.sandbox.as_str()), (&rig.plane.key, never)] {
            let path = format!("/sandboxes/{id}/{rest}");
            let answer = rig.plane.call_with(key, "GET", &path, None).await;
            texts.push(answer.error(404).replace(id, never));
        }
        assert_eq!(texts[0], texts[1]);
    }
    let ticket = json!({ "kind": "files" });
    let answer = rig.plane.call_with(&rig.plane.other_key, "POST", &rig.path("tickets"), Some(ticket)).await;
    answer.error(404);
}

#[tokio::test]
async fn only_pages_of_allowed_origins_open_websockets() {
    let rig = Rig::start().await;
    let own = format!("http://{}", rig.address);
    for origin in [own.as_str(), "https://firkin.test:3000", "https://ide.example.com"] {
        let ticket = rig.ticket("terminal").await;
        let path = rig.path(&format!("terminal?ticket={ticket}"));
        assert_eq!(rig.open(&path, &[("origin", EVIL)]).await.err(), Some(403));
        assert!(
            rig.open(&path, &[("origin", origin)]).await.is_ok(),
            "{origin}: a refused page uses no ticket"
        );
        let path = rig.path("terminal");
        let key = ("x-api-key", rig.plane.key.as_str());
        assert_eq!(rig.open(&path, &[key, ("origin", EVIL)]).await.err(), Some(403));
        assert!(rig.open(&path, &[key, ("origin", origin)]).await.is_ok(), "{origin}");
    }
}

#[tokio::test]
async fn only_pages_of_allowed_origins_get_events() {
    let rig = Rig::start().await;
    let path = rig.path("files/watch?path=/tmp");
    let key = ("x-api-key", rig.plane.key.as_str());
    let own = format!("http://{}", rig.address);
    assert_eq!(rig.events(&path, &[key]).await.status, 200, "programs send no origin");
    assert_eq!(rig.events(&path, &[key, ("origin", &own)]).await.status, 200);
    assert_eq!(rig.events(&path, &[key, ("origin", "https://ide.example.com")]).await.status, 200);
    assert_eq!(rig.events(&path, &[key, ("origin", EVIL)]).await.status, 403);
    assert_eq!(rig.events(&path, &[key, ("origin", "null")]).await.status, 403);
    let ticket = rig.ticket("files").await;
    let path = rig.path(&format!("files/watch?path=/tmp&ticket={ticket}"));
    assert_eq!(rig.events(&path, &[("origin", EVIL)]).await.status, 403);
    assert_eq!(rig.events(&path, &[("origin", &own)]).await.status, 200);
}

#[tokio::test]
async fn over_http2_an_origin_is_compared_with_the_authority() {
    let rig = Rig::start().await;
    let socket = TcpStream::connect(rig.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let own = format!("http://{}", rig.address);
    let mut status = async |origin: &str| {
        let request = Request::get(format!("{own}{}", rig.path("files/watch?path=/tmp")))
            .header("x-api-key", &rig.plane.key)
            .header("origin", origin)
            .body(Empty::<bytes::Bytes>::new())
            .unwrap();
        within(client.send_request(request)).await.unwrap().status().as_u16()
    };
    assert_eq!(status(&own).await, 200);
    assert_eq!(status("http://firkin.test:3000").await, 200);
    assert_eq!(status(EVIL).await, 403);
}
