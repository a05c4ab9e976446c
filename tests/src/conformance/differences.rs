//! Cases that can't mean the same in a machine.

/// Their names, and why.
pub const ALL: &[(&str, &str)] = &[
    (
        "Container Mount Propagation runtime should support mount propagation mount with 'rshared' should support \
         propagation from host to container and vice versa",
        "what a container mounts is in another kernel",
    ),
    (
        "Security Context NamespaceOption runtime should support HostIpc is true",
        "the IPC objects of the host are in another kernel",
    ),
    (
        "Security Context NamespaceOption runtime should support HostNetwork is true",
        "the host's sockets are in another kernel",
    ),
    (
        "Streaming runtime should support streaming interfaces runtime should support portforward in host network",
        "the host's sockets are in another kernel",
    ),
];

/// Why a case can't pass; none: it has to.
pub fn reason(case: &str) -> Option<&'static str> {
    ALL.iter().find(|(name, _)| *name == case).map(|(_, reason)| *reason)
}
