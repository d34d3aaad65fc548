use http::Request;
use proptest::prelude::*;

use super::*;

const ID: &str = "i0123456789abcdefghij";

fn ask(host: &str, fields: &[(&str, &str)]) -> Result<Destination, HostError> {
    let mut request = Request::builder().uri("/").header(HOST, host);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    Hosts::new("firkin.localhost:3000").destination(&request.body(()).unwrap().into_parts().0)
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what `ask` returns")]
fn sandbox(id: &str, port: u16) -> Result<Destination, HostError> {
    Ok(Destination::Sandbox(Address { id: id.to_owned(), port }))
}

#[test]
fn sandbox_hosts_name_port_and_id() {
    for host in [
        format!("8000-{ID}.firkin.localhost:3000"),
        format!("8000-{ID}.firkin.localhost"),
        format!("8000-{ID}-6532622b.firkin.localhost"),
        format!("8000-{ID}-a-b-c.firkin.localhost"),
        format!("8000-{ID}.any.other.domain"),
        format!("8000-{ID}.localhost:80"),
        format!("8000-{ID}.FIRKIN.Localhost.:3000"),
        format!("8000-{}.x", ID.to_ascii_uppercase()),
        format!("8000-{ID}.xn--bcher-kva.example"),
    ] {
        assert_eq!(ask(&host, &[]), sandbox(ID, 8000), "{host}");
    }
    // An id that is not of our form may only be meant as one below our own domain.
    assert_eq!(ask("80-abc.firkin.localhost", &[]), sandbox("abc", 80));
    assert_eq!(ask("80-abc.company.example", &[]), Ok(Destination::Routes));
}

#[test]
fn routing_headers_are_ignored_on_sandbox_hosts() {
    let other = [("e2b-sandbox-id", "other"), ("e2b-sandbox-port", "1")];
    assert_eq!(ask(&format!("8000-{ID}.firkin.localhost"), &other), sandbox(ID, 8000));
    assert_eq!(ask(&format!("8000-{ID}.elsewhere"), &other[..1]), sandbox(ID, 8000));
}

#[test]
fn base_hosts_belong_to_the_control_plane_or_to_the_headers() {
    for host in [
        "localhost",
        "LOCALHOST:3000",
        "127.0.0.1:3000",
        "10.1.2.3",
        "[::1]:3000",
        "[::ffff:127.0.0.1]",
        "sandbox.e2b.app",
        "sandbox.firkin.localhost",
        "api.firkin.localhost",
        "firkin.localhost:3000",
        "firkin.localhost.",
        "firkin",
        "3000-workspace.codespaces.example",
        "xn--80ak6aa92e.com",
    ] {
        assert_eq!(ask(host, &[]), Ok(Destination::Routes), "{host}");
        let both = [("E2b-Sandbox-Id", ID), ("E2b-Sandbox-Port", "49983")];
        assert_eq!(ask(host, &both), sandbox(ID, 49_983), "{host}");
        assert_eq!(ask(host, &both[..1]), Err(HostError::MissingHeader), "{host}");
        assert_eq!(ask(host, &both[1..]), Err(HostError::MissingHeader), "{host}");
    }
}

#[test]
fn routing_headers_are_checked() {
    assert_eq!(
        ask("localhost", &[("e2b-sandbox-id", "abc1"), ("e2b-sandbox-port", "80")]),
        sandbox("abc1", 80)
    );
    for id in ["", "ABC", "a-b", "a.b", "../x", "a b", "\u{e9}"] {
        let headers = [("e2b-sandbox-id", id), ("e2b-sandbox-port", "80")];
        assert_eq!(ask("localhost", &headers), Err(HostError::Id), "{id}");
    }
    for port in ["", "0", "080", "+80", "-1", "65536", "8 0", "x", "80,81"] {
        let headers = [("e2b-sandbox-id", "abc"), ("e2b-sandbox-port", port)];
        assert_eq!(ask("localhost", &headers), Err(HostError::Port), "{port}");
    }
    let twice = [("e2b-sandbox-id", "abc"), ("e2b-sandbox-id", "abd"), ("e2b-sandbox-port", "80")];
    assert_eq!(ask("localhost", &twice), Err(HostError::Id));
}

#[test]
fn mistakes_below_the_own_domain_have_the_contracts_answers() {
    assert_eq!(ask("nodash.firkin.localhost", &[]), Err(HostError::Host));
    assert_eq!(ask("8000-a_b.firkin.localhost", &[]), Err(HostError::Id));
    assert_eq!(ask("8000-.firkin.localhost", &[]), Err(HostError::Id));
    assert_eq!(ask(&format!("port-{ID}.firkin.localhost"), &[]), Err(HostError::Port));
    assert_eq!(ask(&format!("0-{ID}.firkin.localhost"), &[]), Err(HostError::Port));
    assert_eq!(ask(&format!("65536-{ID}.firkin.localhost"), &[]), Err(HostError::Port));
    assert_eq!(ask("xn--abc.firkin.localhost", &[]), Err(HostError::Id));
}

#[test]
fn malformed_hosts_are_refused() {
    let long_label = "a".repeat(64);
    let long_name = vec!["abcdefgh"; 30].join(".");
    for host in [
        "",
        ".",
        "a..b",
        ".a",
        "user@localhost",
        "user:pass@localhost",
        "localhost:x",
        "localhost:99999",
        "localhost:80:80",
        "[::1",
        "[::1]x",
        "[nonsense]",
        "::1",
        "a b",
        "a/b",
        "a%2eb",
        "a,b",
        &format!("{long_label}.example"),
        &format!("8000-{long_label}.firkin.localhost"),
        &long_name,
    ] {
        assert_eq!(ask(host, &[]), Err(HostError::Host), "{host}");
    }
    let fits = "a".repeat(63);
    assert_eq!(ask(&format!("{fits}.example"), &[]), Ok(Destination::Routes));
}

#[test]
fn one_host_is_named_once() {
    let hosts = Hosts::new("firkin.localhost");
    let parts = |request: http::request::Builder| request.body(()).unwrap().into_parts().0;
    let twice = Request::builder().uri("/").header(HOST, "localhost").header(HOST, "localhost");
    assert_eq!(hosts.destination(&parts(twice)), Err(HostError::Host));
    let none = Request::builder().uri("/");
    assert_eq!(hosts.destination(&parts(none)), Err(HostError::Host));
    let none = Request::builder().uri("/").version(Version::HTTP_10);
    assert_eq!(hosts.destination(&parts(none)), Ok(Destination::Routes));

    let absolute = format!("http://8000-{ID}.firkin.localhost/x");
    let alone = Request::builder().uri(&absolute).version(Version::HTTP_2);
    assert_eq!(hosts.destination(&parts(alone)), sandbox(ID, 8000));
    let agreeing = Request::builder().uri(&absolute).header(HOST, format!("8000-{ID}.firkin.localhost"));
    assert_eq!(hosts.destination(&parts(agreeing)), sandbox(ID, 8000));
    let other = Request::builder().uri(&absolute).header(HOST, "localhost");
    assert_eq!(hosts.destination(&parts(other)), Err(HostError::Host));
}

proptest! {
    #[test]
    fn any_text_has_an_answer(host in "[ -~]{0,80}") {
        let _ = ask(&host, &[]);
    }

    #[test]
    fn whole_ids_are_found_whatever_the_spelling(
        id in "i[a-z0-9]{20}", port in 1_u16.., suffix in "[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{0,8}){0,3}",
        client in "(-[a-z0-9]{1,8}){0,2}", dot in "\\.?", at in "(:[1-9][0-9]{0,3})?",
    ) {
        let host = format!("{port}-{id}{client}.{suffix}{dot}{at}");
        prop_assert_eq!(ask(&host, &[]), sandbox(&id, port));
        prop_assert_eq!(ask(&host.to_ascii_uppercase(), &[]), sandbox(&id, port));
    }

    #[test]
    fn nothing_but_a_label_of_the_shape_names_a_sandbox(host in "[a-z0-9.-]{1,60}") {
        if let Ok(Destination::Sandbox(address)) = ask(&host, &[]) {
            let expected = format!("{}-{}", address.port, address.id);
            prop_assert!(host.starts_with(&expected));
        }
    }
}
