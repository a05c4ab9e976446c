//! What a process sees of its container, line by line, and without what must differ between two kernels.

/// `/dev/core` is left out: the guest's kernel has no `/proc/kcore`. Run by `sh -c` in the container; each line begins with the name of what it tells.
pub const SCRIPT: &str = r#"
p() { name=$1; shift; "$@" 2>&1 | sed "s|^|$name |"; }
p args echo "$0" "$@"
p cwd pwd
p cwd sh -c ": > made"
p umask umask
p env tr '\0' '\n' < /proc/$$/environ
p status grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/$$/status
p limit sed 1d /proc/$$/limits
p oom cat /proc/$$/oom_score_adj
p sched cut -d ' ' -f 18,19,40,41 /proc/$$/stat
p ioprio ionice -p $$
p host cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname
p uids cat /proc/$$/uid_map
p gids cat /proc/$$/gid_map
p time cat /proc/$$/timens_offsets
p machine uname -m
p shm cat /proc/sys/kernel/shmmax /proc/sys/kernel/shmmni /proc/sys/kernel/msgmax
p cgroup cat /proc/$$/cgroup
cd /sys/fs/cgroup
grep -s . memory.max memory.low memory.high memory.swap.max memory.oom.group pids.max cpu.max cpu.weight cpu.idle \
  hugetlb.2MB.max | sed 's/^/cgroup /; s/:/ /'
cd /
p dev stat -c '%N %F %a %u:%g %t:%T' $(find /dev ! -type d ! -name core)
for device in null zero full random urandom tty; do true < /dev/$device && echo "open $device"; done 2>&1
p mknod mknod /dev/shm/disk b 8 0
p mknod cat /dev/shm/disk
p root touch /made
p mount cat /proc/$$/mountinfo
"#;

/// The lines that a runtime should be judged by.
pub fn normalised(said: &str) -> Vec<String> {
    said.lines()
        .filter_map(|line| match line.split_once(' ')? {
            ("mount", mount) => Some(format!("mount {}", normalised_mount(mount)?)),
            // runc has changed how it makes a weight of shares since the lab's version.
            ("cgroup", limit) if limit.starts_with("cpu.weight ") => None,
            _ => Some(line.split_whitespace().collect::<Vec<_>>().join(" ")),
        })
        .collect()
}

/// Destination, type, options and propagation; where the file system is the host's, its type may differ.
fn normalised_mount(line: &str) -> Option<String> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let filesystem: Vec<&str> = filesystem.split(' ').collect();
    let kind = match filesystem[0] {
        "ext4" | "overlay" | "virtiofs" | "fuse" => "host",
        kind => kind,
    };
    let mut own: Vec<&str> = filesystem.get(2)?.split(',').collect();
    own.retain(|option| {
        let wanted = ["size", "mode", "uid", "gid", "nr_inodes", "ptmxmode"];
        matches!(kind, "tmpfs" | "devpts")
            && option.split_once('=').is_some_and(|(name, _)| wanted.contains(&name))
    });
    own.sort_unstable();
    // What hides a directory holds nothing: newer versions of runc than the lab's, and ours, let it hold no more.
    if own == ["nr_inodes=1", "size=4k"] {
        own.clear();
    }
    let tags: Vec<&str> = mount[6..].iter().filter_map(|tag| tag.split(':').next()).collect();
    let mut options: Vec<&str> = mount.get(5)?.split(',').collect();
    // The host's own choice is not the guest's; and owners are mapped where the guest can't see it.
    options.retain(|option| match kind {
        "host" => !["noatime", "relatime", "idmapped"].contains(option),
        "devtmpfs" => *option != "nosuid",
        _ => true,
    });
    let (to, options) = (mount.get(4)?, options.join(","));
    Some(format!("{to} {kind} {options} {} {}", tags.join(","), own.join(",")))
}
