//! What a network of a guest's takes of the host.

use super::report::Finding;
use sandbox::network_probe as probe;
use std::error::Error;

pub(super) fn network(vhost_net: bool) -> Vec<Finding> {
    let vhost = vhost_net.then(|| {
        let remedy = "modprobe vhost_net, or leave network.vhost_net out of the configuration";
        finding("vhost-net", "serves guests' interfaces, as configured", probe::vhost_net(), remedy)
    });
    let always = [
        finding(
            "network",
            "taps, and redirection to them",
            probe::taps(),
            "for containers with a network: modprobe -a tun sch_ingress cls_u32 act_mirred",
        ),
        finding(
            "port-forwarding",
            "programs for socket lookup",
            probe::localhost(),
            "for kubectl port-forward: use Linux 5.9 or newer with CONFIG_BPF_SYSCALL, not locked down",
        ),
    ];
    always.into_iter().chain(vhost).collect()
}

fn finding<E: Error>(
    what: &'static str,
    has: &str,
    probed: Result<(), E>,
    remedy: &str,
) -> Finding {
    match probed {
        Ok(()) => Finding::ok(what, has),
        Err(error) => {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(cause) = next {
                text = format!("{text}: {cause}");
                next = cause.source();
            }
            Finding::warning(what, text, remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Verdict;

    #[test]
    fn what_lacks_is_said_with_its_cause() {
        assert_eq!(
            finding("network", "taps", Ok::<_, std::io::Error>(()), "").verdict(),
            Verdict::Ok
        );
        let lacks = std::io::Error::from_raw_os_error(libc::ENODEV);
        let warned = finding("network", "taps", Err(lacks), "modprobe");
        assert_eq!(warned.verdict(), Verdict::Warning);
    }
}
