//! Every error answer of the contract, each beside the request that is let through.

use std::time::{Duration, Instant};

use firkin::{
    id::{OsEntropy, SandboxId},
    runtime::registry::NotRunning,
};

use super::rig::{DOMAIN, Rig, host, within};

const BROWSER: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/130.0";

#[tokio::test]
async fn an_open_port_answers_by_host_and_by_headers() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let id = rig.sandbox().await;
    let answer = rig.get(&host(8000, id), "/a?b=c", &[]).await;
    assert_eq!((answer.status, answer.json()["uri"].as_str().unwrap()), (200, "/a?b=c"));
    let fields = [format!("E2b-Sandbox-Id: {id}"), "E2b-Sandbox-Port: 8000".to_owned()];
    for base in ["localhost:3000", "127.0.0.1", "sandbox.e2b.app", DOMAIN] {
        let answer = rig.get(base, "/", &[&fields[0], &fields[1]]).await;
        assert_eq!((answer.status, answer.told("host")), (200, vec![base.to_owned()]), "{base}");
        let answer = rig.get(base, "/health", &[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "the routes"), "{base}");
    }
}

#[tokio::test]
async fn hosts_that_mean_nobody_are_plain_400() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let answer = rig.get("localhost", "/", &["E2b-Sandbox-Port: 49983"]).await;
    assert_eq!((answer.status, answer.body.as_str()), (400, "missing header"));
    for (host, text) in [
        (format!("nodash.{DOMAIN}"), "Invalid host"),
        (format!("x-{id}.{DOMAIN}"), "Invalid sandbox port"),
        (format!("80-a_b.{DOMAIN}"), "Invalid sandbox ID"),
        ("a@b".to_owned(), "Invalid host"),
    ] {
        let answer = rig.get(&host, "/", &[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (400, text), "{host}");
        assert!(answer.head.contains("text/plain"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_closed_port_is_502_after_about_a_second() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let begin = Instant::now();
    let answer = rig.get(&host(8000, id), "/", &[]).await;
    assert!(begin.elapsed() >= Duration::from_millis(950), "user ports are tried five times");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(
        answer.body,
        format!(
            "{{\"sandboxId\":\"{id}\",\"message\":\"The sandbox is running but port is not open\",\"port\":8000,\"code\":502}}"
        )
    );
    assert_eq!(answer.status, 502);
    assert!(answer.head.contains("content-type: application/json; charset=utf-8"), "{answer:?}");
    assert!(answer.head.contains("access-control-allow-origin: *"), "{answer:?}");
}

#[tokio::test]
async fn a_port_that_opens_late_is_reached() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let name = host(8000, id);
    let asking = rig.get(&name, "/", &[]);
    let opening = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        rig.tell(8000);
    };
    let (answer, ()) = tokio::join!(asking, opening);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_port_that_does_not_speak_http_is_502() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        use tokio::io::AsyncWriteExt as _;
        let _ = stream.write_all(b"SSH-2.0-nonsense\r\n").await;
    });
    let answer = rig.get(&host(8000, id), "/", &[]).await;
    assert_eq!((answer.status, answer.json()["port"].as_u64()), (502, Some(8000)), "{answer:?}");
}

#[tokio::test]
async fn who_is_not_running_is_502_or_409() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    assert_eq!(rig.get(&host(49_983, id), "/health", &[]).await.status, 204);

    let stranger = SandboxId::generate(&OsEntropy);
    let answer = rig.get(&host(49_983, stranger), "/health", &[]).await;
    let text =
        format!("{{\"sandboxId\":\"{stranger}\",\"message\":\"The sandbox was not found\",\"code\":502}}");
    assert_eq!((answer.status, answer.body), (502, text));
    let answer = rig.get(&format!("49983-abc.{DOMAIN}"), "/health", &[]).await;
    assert_eq!((answer.status, answer.json()["sandboxId"].as_str()), (502, Some("abc")));

    rig.becomes(id, NotRunning::Transitioning);
    let answer = rig.get(&host(49_983, id), "/health", &[]).await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.json()["message"], "The sandbox is still transitioning. Try again in a moment.");

    rig.kill(id);
    assert_eq!(rig.get(&host(49_983, id), "/health", &[]).await.status, 502);
}

#[tokio::test]
async fn browsers_that_navigate_get_a_page() {
    let rig = Rig::start().await;
    let id = SandboxId::generate(&OsEntropy);
    let name = host(8000, id);
    for fields in [
        vec![BROWSER],
        vec![BROWSER, "Sec-Fetch-Mode: navigate", "X-Requested-With: XMLHttpRequest"],
        vec![BROWSER, "Accept: text/html,application/json"],
    ] {
        let answer = rig.get(&name, "/", &fields).await;
        assert_eq!(answer.status, 502);
        assert!(answer.head.contains("text/html; charset=utf-8"), "{answer:?}");
        assert!(answer.body.starts_with("<html") && answer.body.trim_end().ends_with("</html>"));
        assert!(answer.body.contains(&id.to_string()) && answer.body.contains("8000"));
        assert!(answer.body.contains("The sandbox was not found"));
    }
    for fields in [
        vec![],
        vec!["User-Agent: e2b-python-sdk/2.63.0"],
        vec![BROWSER, "Sec-Fetch-Mode: cors"],
        vec![BROWSER, "Sec-Fetch-Mode: websocket"],
        vec![BROWSER, "Accept: application/json"],
        vec![BROWSER, "X-Requested-With: XMLHttpRequest"],
    ] {
        let answer = rig.get(&name, "/", &fields).await;
        assert_eq!(answer.json()["code"], 502, "{fields:?}");
    }
}

#[tokio::test]
async fn the_traffic_token_guards_every_port_but_envds() {
    let rig = Rig::start().await;
    rig.tell(8000);
    rig.tell(49_999);
    let id = rig.sandbox().await;
    assert_eq!(rig.get(&host(8000, id), "/", &[]).await.status, 200);
    rig.change(id, |target| target.traffic_access_token = Some("secret".into()));
    assert_eq!(rig.get(&host(49_983, id), "/health", &[]).await.status, 204);
    for port in [8000, 49_999] {
        let name = host(port, id);
        let answer = rig.get(&name, "/", &["E2B-Traffic-Access-Token: secret"]).await;
        assert_eq!(
            (answer.status, answer.told("e2b-traffic-access-token")),
            (200, vec!["secret".to_owned()])
        );
        let answer = rig.get(&name, "/", &[]).await;
        assert_eq!(answer.status, 403);
        assert_eq!(
            answer.json()["message"],
            "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
        );
        for wrong in [vec!["E2B-Traffic-Access-Token: secreT"], vec!["E2B-Traffic-Access-Token: secret"; 2]] {
            let answer = rig.get(&name, "/", &wrong).await;
            assert_eq!(answer.status, 403);
            assert_eq!(
                answer.json()["message"],
                "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
            );
        }
        let answer = rig.get(&name, "/", &[BROWSER]).await;
        assert!(answer.status == 403 && answer.body.starts_with("<html"), "{answer:?}");
    }
}

#[tokio::test]
async fn reserved_paths_are_404_before_the_look_up() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    assert_eq!(rig.get(&host(49_983, id), "/health", &[]).await.status, 204);
    let stranger = SandboxId::generate(&OsEntropy);
    for (id, path) in [(id, "/init"), (id, "//%69nit/"), (stranger, "/x/../freeze")] {
        let page = rig.get(&host(49_983, id), path, &[BROWSER]).await;
        assert_eq!(page.status, 404);
        let text = &page.body;
        assert!(text.starts_with("<html") && text.contains("reserved for the E2B control plane"), "{text}");
        let answer = rig.get(&host(49_983, id), path, &[]).await;
        assert_eq!(answer.status, 404);
        let told = answer.json();
        assert_eq!(
            told["message"],
            "This endpoint is reserved for the E2B control plane and is not reachable through the sandbox URL"
        );
        assert_eq!(told["code"], 404);
        assert!(told["path"] == "/init" || told["path"] == "/freeze");
        assert!(told.get("sandboxId").is_none());
    }
    rig.tell(8000);
    assert_eq!(rig.get(&host(8000, id), "/init", &[]).await.status, 200);
}

#[tokio::test]
async fn the_limit_of_a_sandbox_is_its_own() {
    let rig = Rig::with(|settings| settings.sandbox_connections = Some(1)).await;
    rig.listen(8000, |mut stream| async move {
        super::rig::read_head(&mut stream).await;
        std::future::pending::<()>().await;
    });
    let (one, other) = (rig.sandbox().await, rig.sandbox().await);
    let mut held = rig.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(8000, one));
    tokio::io::AsyncWriteExt::write_all(&mut held, request.as_bytes()).await.unwrap();
    let refused = within(async {
        loop {
            let answer = rig.get(&host(49_983, one), "/health", &[]).await;
            if answer.status != 204 {
                return answer;
            }
        }
    })
    .await;
    assert_eq!((refused.status, refused.json()["connectionLimit"].as_u64()), (429, Some(1)));
    assert_eq!(rig.get(&host(49_983, other), "/health", &[]).await.status, 204);
    drop(held);
    within(async { while rig.get(&host(49_983, one), "/health", &[]).await.status != 204 {} }).await;
}

#[tokio::test]
async fn preflights_reach_envd() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.tell(49_983);
    let request = format!(
        "OPTIONS /process.Process/Start HTTP/1.1\r\nHost: {}\r\nOrigin: https://x.example\r\n\
         Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n",
        host(49_983, id)
    );
    let answer = super::rig::Answer::read(&rig.raw(request).await);
    assert_eq!((answer.status, answer.json()["method"].as_str()), (200, Some("OPTIONS")));
}

#[tokio::test]
async fn preflights_that_no_sandbox_can_answer_are_allowed() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let private = rig.sandbox().await;
    rig.change(private, |target| target.traffic_access_token = Some("secret".into()));
    let stranger = SandboxId::generate(&OsEntropy);
    let asked = "Origin: https://x.example\r\nAccess-Control-Request-Method: PURGE\r\n\
                 Access-Control-Request-Headers: e2b-traffic-access-token\r\n";
    let ask = async |host: &str, path: &str, fields: &str| {
        let request = format!("OPTIONS {path} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n");
        super::rig::Answer::read(&rig.raw(request).await)
    };
    for name in
        [host(8000, private), host(8000, stranger), host(49_983, stranger), format!("nodash.{DOMAIN}")]
    {
        let answer = ask(&name, "/x", asked).await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{name}");
        for field in [
            "access-control-allow-origin: *",
            "access-control-allow-methods: PURGE",
            "access-control-allow-headers: e2b-traffic-access-token",
        ] {
            assert!(answer.head.contains(field), "{answer:?}");
        }
        assert!(!answer.head.contains("access-control-max-age"), "{answer:?}");
        // Without the question it is an OPTIONS like any other.
        assert!(ask(&name, "/x", "Origin: https://x.example\r\n").await.status >= 400, "{name}");
    }
    assert_eq!(ask(&host(49_983, private), "/init", asked).await.status, 404);
}
