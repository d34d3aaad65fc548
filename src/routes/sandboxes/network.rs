//! The network of a sandbox: what may be said, with E2B's refusals (contract/control-plane 3).

use std::net::{IpAddr, Ipv4Addr};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    routes::reply::ApiError,
    sandbox::{ENVD_PORT, NetworkConfig},
};

const ALL_TRAFFIC: &str = "0.0.0.0/0";
/// Stands for the port in `maskRequestHost`.
const PORT_PLACEHOLDER: &str = "${PORT}";
/// Ports of one sandbox that may speak TLS inside.
const MOST_HTTPS_PORTS: usize = 128;
/// Characters of a proxy's user name or password.
const LONGEST_CREDENTIAL: usize = 255;

/// Who may come in and what may be reached, as it arrives.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewNetwork {
    /// False: every port but envd's wants the traffic token.
    pub(super) allow_public_traffic: Option<bool>,
    /// CIDRs, addresses and domains; wins over `denyOut`.
    pub(super) allow_out: Option<Vec<String>>,
    /// CIDRs and addresses.
    pub(super) deny_out: Option<Vec<String>>,
    /// The `Host` that user ports see.
    pub(super) mask_request_host: Option<String>,
    /// Header rules: not available.
    #[schema(value_type = Option<Object>)]
    pub(super) rules: Option<Map<String, Value>>,
    /// Outgoing proxy: not available.
    pub(super) egress_proxy: Option<NewProxy>,
    /// Ports that speak TLS inside, by any certificate.
    pub(super) https_ports: Option<Vec<u16>>,
    /// Name servers: not available.
    pub(super) dns_servers: Option<Vec<String>>,
}

/// A SOCKS5 proxy for all that goes out.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = EgressProxy)]
pub(crate) struct NewProxy {
    /// `host:port`.
    address: String,
    /// Up to 255 characters.
    username: Option<String>,
    /// Up to 255 characters; needs a user name.
    password: Option<String>,
}

/// Checks what was said and keeps what is known. `allow_internet` false stands for denying all.
pub(crate) fn check(
    new: NewNetwork,
    allow_internet: Option<bool>,
    secure: bool,
) -> Result<NetworkConfig, ApiError> {
    well_formed(&new)?;
    refuse_unavailable(&new)?;
    if new.allow_public_traffic == Some(false) && !secure {
        return Err(ApiError::bad_request(
            "You cannot create a sandbox without public access unless you enable secure envd access via \
             'secure' flag.",
        ));
    }
    let (allow_out, deny_out) = (new.allow_out.unwrap_or_default(), new.deny_out.unwrap_or_default());
    if let Some(bad) = deny_out.iter().find(|item| !is_address(item)) {
        return Err(ApiError::bad_request(format!("invalid denied CIDR {bad}")));
    }
    if let Some(bad) = allow_out.iter().find(|item| !is_address(item) && !is_domain(item)) {
        return Err(ApiError::bad_request(format!("invalid allowed address {bad}")));
    }
    let denies_all = allow_internet == Some(false) || deny_out.iter().any(|item| item == ALL_TRAFFIC);
    if !denies_all && allow_out.iter().any(|item| !is_address(item)) {
        return Err(ApiError::bad_request(
            "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic.",
        ));
    }
    if let Some(host) = new.mask_request_host.as_deref().filter(|host| !is_mask(host)) {
        return Err(ApiError::bad_request(format!(
            "invalid maskRequestHost {host:?}: want an ASCII host, perhaps with :port or :{PORT_PLACEHOLDER}"
        )));
    }
    Ok(NetworkConfig {
        allow_public_traffic: new.allow_public_traffic,
        allow_out,
        deny_out,
        mask_request_host: new.mask_request_host,
        https_ports: new.https_ports.unwrap_or_default(),
    })
}

/// What E2B refuses of the parts that are not available here: who sends it wrongly is told so first.
fn well_formed(new: &NewNetwork) -> Result<(), ApiError> {
    if let Some(proxy) = &new.egress_proxy {
        proxy.check()?;
    }
    let ports = new.https_ports.as_deref().unwrap_or_default();
    if ports.len() > MOST_HTTPS_PORTS {
        return Err(ApiError::bad_request(format!("too many httpsPorts: at most {MOST_HTTPS_PORTS}")));
    }
    for (number, port) in ports.iter().enumerate() {
        if *port == 0 || *port == ENVD_PORT || ports[..number].contains(port) {
            return Err(ApiError::bad_request(format!(
                "invalid httpsPorts: {port}: want ports from 1 to 65535, each once, without {ENVD_PORT}"
            )));
        }
    }
    let servers = new.dns_servers.as_deref().unwrap_or_default();
    match servers.iter().find(|server| server.parse::<Ipv4Addr>().is_err()) {
        Some(bad) => Err(ApiError::bad_request(format!("invalid DNS server {bad}: want an IPv4 address"))),
        None => Ok(()),
    }
}

fn refuse_unavailable(new: &NewNetwork) -> Result<(), ApiError> {
    if new.rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
        return Err(ApiError::bad_request("Network transform rules are not available for your team."));
    }
    if new.egress_proxy.is_some() {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "Egress proxy is not available for your team."));
    }
    if new.dns_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
        return Err(ApiError::unbuilt("network.dnsServers"));
    }
    Ok(())
}

// === impl NewProxy ===

impl NewProxy {
    fn check(&self) -> Result<(), ApiError> {
        let placed = self
            .address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        if !placed {
            return Err(ApiError::bad_request(format!(
                "invalid egressProxy.address {:?}: want host:port",
                self.address
            )));
        }
        if self.password.is_some() && self.username.is_none() {
            return Err(ApiError::bad_request("egressProxy.password requires egressProxy.username"));
        }
        for (name, value) in [("username", &self.username), ("password", &self.password)] {
            if value.as_ref().is_some_and(|value| value.chars().count() > LONGEST_CREDENTIAL) {
                return Err(ApiError::bad_request(format!(
                    "egressProxy.{name} is longer than {LONGEST_CREDENTIAL} characters"
                )));
            }
        }
        Ok(())
    }
}

/// An address or CIDR. Unspecified addresses are refused, but for the one that means everything.
fn is_address(text: &str) -> bool {
    if text == ALL_TRAFFIC {
        return true;
    }
    let (address, prefix) =
        text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix_fits = prefix.is_none_or(|prefix| {
        prefix.parse::<u8>().is_ok_and(|bits| bits <= longest && bits.to_string() == prefix)
    });
    prefix_fits && !address.is_unspecified()
}

/// `*`, `*.x` or a host name that no one can take for an address.
fn is_domain(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    text == "*" || (is_host(name) && name.rsplit('.').next().is_some_and(|top| top.parse::<u64>().is_err()))
}

fn is_mask(text: &str) -> bool {
    let plain = text.replace(PORT_PLACEHOLDER, "1");
    let (host, port) =
        plain.split_once(':').map_or((plain.as_str(), None), |(host, port)| (host, Some(port)));
    is_host(host) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_host(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(body: Value) -> Option<String> {
        let new: NewNetwork = serde_json::from_value(body).unwrap();
        check(new, None, true).err().map(|error| error.body())
    }

    #[test]
    fn addresses_and_domains_are_told_apart() {
        for good in ["1.2.3.4", "10.0.0.0/8", "0.0.0.0/0", "::1", "fc00::/7"] {
            assert_eq!(refusal(json!({"denyOut": [good]})), None, "{good}");
        }
        for bad in ["0.0.0.0", "::/0", "1.2.3.4/33", "1.2.3", "example.com", "", "1.2.3.4/+8"] {
            assert!(
                refusal(json!({"denyOut": [bad]})).unwrap().contains(&format!("invalid denied CIDR {bad}"))
            );
        }
        for bad in ["1.2.3.256", "-x", "a b", "0.0.0.0/8", "*.*.x"] {
            let text = refusal(json!({"allowOut": [bad], "denyOut": ["0.0.0.0/0"]})).unwrap();
            assert!(text.contains(&format!("invalid allowed address {bad}")), "{bad}: {text}");
        }
    }

    #[test]
    fn allowed_domains_want_the_rest_denied() {
        for domain in ["example.com", "*.example.com", "*"] {
            assert_eq!(refusal(json!({"allowOut": [domain], "denyOut": ["0.0.0.0/0"]})), None);
            assert!(refusal(json!({"allowOut": [domain]})).unwrap().contains("'ALL_TRAFFIC'"));
        }
        assert_eq!(refusal(json!({"allowOut": ["1.1.1.1"]})), None);
        let new = NewNetwork { allow_out: Some(vec!["example.com".to_owned()]), ..NewNetwork::default() };
        assert!(check(new, Some(false), true).is_ok(), "no internet access denies all");
    }

    #[test]
    fn private_traffic_wants_a_secured_sandbox() {
        let new = NewNetwork { allow_public_traffic: Some(false), ..NewNetwork::default() };
        assert!(check(new.clone(), None, true).is_ok());
        assert_eq!(check(new, None, false).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn masks_are_hosts() {
        for good in ["localhost", "localhost:${PORT}", "a.b:80", "${PORT}.example.com"] {
            assert_eq!(refusal(json!({"maskRequestHost": good})), None, "{good}");
        }
        for bad in ["", "a b", "ä.example", "a:b", "a:0", "a:1:2", "a\r\nX: y"] {
            assert!(refusal(json!({"maskRequestHost": bad})).unwrap().contains("maskRequestHost"), "{bad}");
        }
    }

    #[test]
    fn ports_that_speak_tls_are_kept_in_their_order() {
        let new: NewNetwork = serde_json::from_value(json!({"httpsPorts": [8443, 443]})).unwrap();
        assert_eq!(check(new, None, false).unwrap().https_ports, [8443, 443]);
    }

    #[test]
    fn what_is_not_available_is_named() {
        assert_eq!(refusal(json!({"rules": {}, "httpsPorts": [], "dnsServers": []})), None);
        assert!(refusal(json!({"rules": {"x": []}})).unwrap().contains("transform rules"));
        assert!(refusal(json!({"egressProxy": {"address": "x:1"}})).unwrap().contains("403"));
        assert!(refusal(json!({"dnsServers": ["1.1.1.1"]})).unwrap().contains("501"));
    }

    #[test]
    fn what_is_not_available_and_wrong_is_wrong_first() {
        let long = "x".repeat(256);
        for (body, text) in [
            (json!({"egressProxy": {"address": "x"}}), "egressProxy.address"),
            (json!({"egressProxy": {"address": "x:0"}}), "egressProxy.address"),
            (json!({"egressProxy": {"address": "x:1", "password": "p"}}), "egressProxy.username"),
            (json!({"egressProxy": {"address": "x:1", "username": long}}), "longer than 255"),
            (json!({"httpsPorts": [0]}), "httpsPorts"),
            (json!({"httpsPorts": [443, 443]}), "httpsPorts"),
            (json!({"httpsPorts": [49_983]}), "httpsPorts"),
            (json!({"httpsPorts": (1..=129).collect::<Vec<u16>>()}), "at most 128"),
            (json!({"dnsServers": ["::1"]}), "invalid DNS server ::1"),
        ] {
            let refused = refusal(body.clone()).unwrap();
            assert!(refused.contains("400") && refused.contains(text), "{body}: {refused}");
        }
    }
}
