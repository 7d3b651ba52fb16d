//! Who is at the other end, and ranges of network addresses, as settings name them.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::HeaderValue;

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its network address.
    pub address: IpAddr,
    /// What program it is, as it says (`User-Agent`).
    pub program: Option<HeaderValue>,
}

/// A range of addresses in CIDR notation, such as `10.0.0.0/8`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let masked = |value: u128, width: u8| {
            if self.bits == 0 { 0 } else { value >> (width - self.bits) }
        };
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                masked(u32::from(base).into(), 32) == masked(u32::from(address).into(), 32)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => masked(base.into(), 128) == masked(address.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits.parse::<u8>().map_err(|_| ())?)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| ())?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then_some(Self { base, bits }).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_in_cidr_notation() {
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/x"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        let everything: Network = "0.0.0.0/0".parse().unwrap();
        assert!(everything.contains("198.51.100.1".parse().unwrap()));
        assert!(!everything.contains("2a00::1".parse().unwrap()));
    }
}
