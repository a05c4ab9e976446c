//! The resolv.conf of a container whose network is pasta's.

use std::net::IpAddr;

/// Where pasta hears queries for the host's first resolver, which may be at the host's localhost.
pub(super) const FORWARDER: &str = "169.254.1.1";

/// What becomes of the host's: pasta's forwarder first, then the resolvers that are not at the host's localhost.
pub(super) fn of_container(hosts: &str) -> String {
    let mut text = format!("nameserver {FORWARDER}\n");
    for line in hosts.lines() {
        let mut words = line.split_whitespace();
        let kept = match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => address
                .parse::<IpAddr>()
                .is_ok_and(|address| !address.is_loopback() && !address.is_unspecified()),
            (Some("search" | "domain" | "options" | "sortlist"), Some(_)) => true,
            _ => false,
        };
        if kept {
            text.push_str(line.trim());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_localhost_is_left_out() {
        let hosts = "# a comment\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\n\
            nameserver fe80::1%eth0\nsearch example.org\noptions edns0 trust-ad\nnonsense\n";
        let expected = "nameserver 169.254.1.1\nnameserver 192.0.2.1\nsearch example.org\n\
            options edns0 trust-ad\n";
        assert_eq!(of_container(hosts), expected);
        assert_eq!(of_container(""), "nameserver 169.254.1.1\n");
    }
}
