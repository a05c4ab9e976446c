//! Ports of the host's that lead to ports of the container's, as docker and podman write them.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    /// Of the host; any if there is none.
    address: Option<IpAddr>,
    host: NonZeroU16,
    container: NonZeroU16,
    pub(super) udp: bool,
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, udp) = match text.rsplit_once('/') {
            None => (text, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some((_, other)) => return Err(format!("{other:?} is neither tcp nor udp")),
        };
        let Some((before, container)) = ports.rsplit_once(':') else {
            return Err("name a port of the host's, too: HOSTPORT:PORT".into());
        };
        let (address, host) = match before.rsplit_once(':') {
            None => (None, before),
            Some((address, host)) => (Some(self::address(address)?), host),
        };
        Ok(Self { address, host: port(host)?, container: port(container)?, udp })
    }
}

impl Published {
    /// As pasta's options `-t` and `-u` have it.
    pub(super) fn for_pasta(&self) -> String {
        let ports = format!("{}:{}", self.host, self.container);
        match self.address {
            Some(address) => format!("{address}/{ports}"),
            None => ports,
        }
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let parsed = match inner {
        Some(v6) => v6.parse().map(IpAddr::V6),
        None => text.parse().map(IpAddr::V4),
    };
    parsed.map_err(|_| format!("{text:?} is no address: 127.0.0.1 and [::1] are"))
}

fn port(text: &str) -> Result<NonZeroU16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = text.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| format!("{text:?} is no port: 1 to 65535 are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_written_as_docker_has_them() {
        for (text, pasta, udp) in [
            ("8080:80", "8080:80", false),
            ("8080:80/tcp", "8080:80", false),
            ("5353:53/udp", "5353:53", true),
            ("127.0.0.1:8080:80", "127.0.0.1/8080:80", false),
            ("0.0.0.0:8080:80", "0.0.0.0/8080:80", false),
            ("[::1]:8080:80/udp", "::1/8080:80", true),
        ] {
            let published: Published = text.parse().unwrap();
            assert_eq!((published.for_pasta().as_str(), published.udp), (pasta, udp), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("80", "HOSTPORT:PORT"),
            ("", "HOSTPORT:PORT"),
            ("0:80", "\"0\" is no port"),
            ("80:65536", "\"65536\" is no port"),
            ("+80:80", "\"+80\" is no port"),
            ("80:", "\"\" is no port"),
            ("8000-8010:80", "\"8000-8010\" is no port"),
            ("127.0.0.1::80", "\"\" is no port"),
            ("localhost:80:80", "\"localhost\" is no address"),
            ("::1:80:80", "\"::1\" is no address"),
            ("80:80/sctp", "\"sctp\" is neither"),
        ] {
            let error = text.parse::<Published>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
