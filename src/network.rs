//! The client of a request, and ranges of network addresses (CIDR) as used in settings.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::HeaderValue;

/// The client of a request.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// Its `User-Agent` header.
    pub user_agent: Option<HeaderValue>,
}

/// A range of addresses in CIDR notation, such as `10.0.0.0/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let masked = |value: u128, width: u8| {
            if self.bits == 0 {
                0
            } else {
                value >> (width - self.bits)
            }
        };
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                masked(u32::from(base).into(), 32) == masked(u32::from(address).into(), 32)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                masked(base.into(), 128) == masked(address.into(), 128)
            }
            _ => false,
        }
    }
}

/// Whether these networks together cover all of IPv4 or all of IPv6.
pub fn cover_all_addresses(networks: &[Network]) -> bool {
    let of = |is_v4: bool, width: u8| {
        let same = networks
            .iter()
            .filter(|network| network.base.is_ipv4() == is_v4);
        let ranges: Vec<(u128, u8)> = same
            .map(|network| match network.base {
                IpAddr::V4(base) => (u128::from(u32::from(base)) << 96, network.bits),
                IpAddr::V6(base) => (base.into(), network.bits),
            })
            .collect();
        covers(&ranges, 0, 0, width)
    };
    of(true, 32) || of(false, 128)
}

/// Whether the ranges cover the range that begins with the first `bits` bits of `base`. A range is
/// its first address, left-aligned in 128 bits, and its prefix length.
fn covers(ranges: &[(u128, u8)], base: u128, bits: u8, width: u8) -> bool {
    let begins_alike =
        |one: u128, other: u128, bits: u8| bits == 0 || (one ^ other) >> (128 - bits) == 0;
    if ranges
        .iter()
        .any(|(first, prefix)| *prefix <= bits && begins_alike(*first, base, *prefix))
    {
        return true;
    }
    let inside = ranges
        .iter()
        .any(|(first, _)| begins_alike(*first, base, bits));
    inside
        && bits < width
        && covers(ranges, base, bits + 1, width)
        && covers(ranges, base | (1 << (127 - bits)), bits + 1, width)
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

    #[test]
    fn networks_may_have_everything_together() {
        let have = |list: &str| {
            cover_all_addresses(
                &list
                    .split(' ')
                    .map(|item| item.parse().unwrap())
                    .collect::<Vec<_>>(),
            )
        };
        for all in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/8 7.7.7.7/0",
            "0.0.0.0/1 128.0.0.0/1",
            "::/1 8000::/2 c000::/2",
        ] {
            assert!(have(all), "{all}");
        }
        for some in [
            "10.0.0.0/8",
            "0.0.0.0/1 ::/1",
            "0.0.0.0/1 128.0.0.0/2",
            "127.0.0.1",
            "::1 8000::/1",
        ] {
            assert!(!have(some), "{some}");
        }
    }
}
