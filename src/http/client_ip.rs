//! Client address of a request: the peer, or the address in `X-Forwarded-For` if the peer is a
//! trusted proxy. The header is ignored from any other peer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use crate::App;
use crate::network::{Client, Network};

impl<S> FromRequestParts<S> for Client
where
    S: Send + Sync,
    Arc<App>: FromRef<S>,
{
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let app = Arc::<App>::from_ref(state);
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        // The accept loop sets this for every connection.
        let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(address)| {
            address.ip()
        });
        let address = resolve(peer, &parts.headers, &app.config.trusted_proxies);
        Ok(Self {
            address,
            user_agent: parts.headers.get(header::USER_AGENT).cloned(),
        })
    }
}

/// The nearest address that is not a trusted proxy, walking back from the peer through the entries
/// that each proxy appended.
pub fn resolve(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let named = headers.get_all("x-forwarded-for");
    for hop in named
        .iter()
        .rev()
        .flat_map(|list| list.as_bytes().rsplit(|byte| *byte == b','))
    {
        if !is_trusted(client) {
            break;
        }
        // A malformed entry was not written by a proxy, so nothing before it can be trusted.
        let Some(address) = std::str::from_utf8(hop)
            .ok()
            .and_then(|hop| parse(hop.trim()))
        else {
            break;
        };
        client = address.to_canonical();
    }
    client
}

/// An address, with or without a port.
fn parse(hop: &str) -> Option<IpAddr> {
    let bare = hop
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(hop);
    bare.parse()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn resolved(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(
                "x-forwarded-for",
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        let trusted: Vec<Network> = trusted
            .iter()
            .map(|network| network.parse().unwrap())
            .collect();
        resolve(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_forged_header_from_elsewhere_changes_nothing() {
        assert_eq!(resolved("192.0.2.1", &["203.0.113.9"], &[]), "192.0.2.1");
        assert_eq!(
            resolved("192.0.2.1", &["203.0.113.9"], &["10.0.0.0/8"]),
            "192.0.2.1"
        );
    }

    #[test]
    fn the_nearest_address_that_no_trusted_proxy_has_is_the_client() {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"];
        assert_eq!(
            resolved("10.1.2.3", &["203.0.113.9"], &trusted),
            "203.0.113.9"
        );
        assert_eq!(
            resolved("::ffff:10.1.2.3", &["203.0.113.9"], &trusted),
            "203.0.113.9"
        );
        assert_eq!(
            resolved("10.1.2.3", &["1.1.1.1, 203.0.113.9, 10.9.9.9"], &trusted),
            "203.0.113.9"
        );
        assert_eq!(
            resolved("10.1.2.3", &["1.1.1.1", "203.0.113.9"], &trusted),
            "203.0.113.9"
        );
        assert_eq!(
            resolved("2001:db8::7", &["[2a00::1]:443"], &trusted),
            "2a00::1"
        );
        assert_eq!(resolved("10.1.2.3", &["nonsense"], &trusted), "10.1.2.3");
        assert_eq!(
            resolved("10.1.2.3", &["\u{e9}, 203.0.113.9"], &trusted),
            "203.0.113.9"
        );
        assert_eq!(
            resolved("10.1.2.3", &["1.1.1.1, \u{e9}, 10.9.9.9"], &trusted),
            "10.9.9.9"
        );
        assert_eq!(resolved("10.1.2.3", &[], &trusted), "10.1.2.3");
    }
}
