//! Specs at random: any two fields may stand together.

use super::fields::LIMITS;
use crate::bundle::Bundle;
use anyhow::Result;
use serde_json::{Value, json};

/// How many specs a run compares; a run with `KATA_LIKE_SEED` compares that one.
const SPECS: u64 = 12;

/// The seeds of this run: the same each time, so that a failure is one for everybody.
pub fn seeds() -> Result<Vec<u64>> {
    match std::env::var("KATA_LIKE_SEED") {
        Ok(seed) => Ok(vec![seed.parse()?]),
        Err(_) => Ok((1..=SPECS).collect()),
    }
}

/// xorshift64*: small, and good enough to choose.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        of.iter().filter(|_| self.coin()).cloned().collect()
    }
}

const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETPCAP",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];

/// The spec of a seed.
pub fn spec(seed: u64, mut spec: Value, bundle: &Bundle) -> Value {
    let random = &mut Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    process(random, &mut spec["process"]);
    spec["root"]["readonly"] = json!(random.coin());
    if random.coin() {
        spec["hostname"] = json!(random.one(&["a", "host-7", "host.domain"]));
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        for destination in random.some(&["/volume", "/link", "/new/one", "/copied", "/tmp"]) {
            mounts.push(mount(random, destination, bundle));
        }
    }
    linux(random, &mut spec["linux"]);
    spec
}

fn process(random: &mut Random, process: &mut Value) {
    process["user"] = json!({
        "uid": random.one(&[0, 0, 1, 65534]), "gid": random.one(&[0, 5, 70000]),
        "additionalGids": random.some(&[0, 5, 6, 1000]),
        "umask": random.one(&[0, 18, 63]),
    });
    process["cwd"] = json!(random.one(&["/", "/tmp", "/proc", "/proc/sys/kernel", "/bin"]));
    let env = random.some(&["A=1", "EMPTY=", "B=x=y", "C=two words", "A=2", "HOME=/tmp"]);
    process["env"] = json!([&["PATH=/bin"], env.as_slice()].concat());
    process["noNewPrivileges"] = json!(random.coin());
    process["oomScoreAdj"] = json!(random.one(&[0, 7, 1000]));
    let limits: Vec<Value> = random
        .some(&LIMITS)
        .into_iter()
        .filter(|(kind, _)| !matches!(*kind, "RLIMIT_AS" | "RLIMIT_DATA" | "RLIMIT_CPU"))
        .map(|(kind, _)| {
            let hard = 50_000_000 + random.below(100) as u64;
            let (soft, hard) = if kind == "RLIMIT_NOFILE" { (200, 300) } else { (hard - 7, hard) };
            json!({"type": kind, "soft": soft, "hard": hard})
        })
        .collect();
    process["rlimits"] = json!(limits);
    if random.coin() {
        let bounding = random.some(&CAPABILITIES);
        let permitted = random.some(&bounding);
        let inheritable = random.some(&permitted);
        process["capabilities"] = json!({
            "effective": random.some(&permitted), "ambient": random.some(&inheritable),
            "bounding": bounding, "permitted": permitted, "inheritable": inheritable,
        });
    }
}

fn mount(random: &mut Random, destination: &str, bundle: &Bundle) -> Value {
    let mut options = random
        .some(&["ro", "nosuid", "nodev", "noexec"])
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    options.extend(
        random.coin().then(|| random.one(&["noatime", "relatime", "nodiratime"]).to_owned()),
    );
    if random.coin() {
        options.push(random.one(&["bind", "rbind"]).to_owned());
        let source = random.one(&["host", "host/one"]);
        json!({"destination": destination, "type": "bind", "source": bundle.0.join(source), "options": options})
    } else {
        options.extend(
            random
                .some(&["size=2m", "mode=711", "uid=9", "gid=10", "tmpcopyup"])
                .into_iter()
                .map(str::to_owned),
        );
        json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
    }
}

fn linux(random: &mut Random, linux: &mut Value) {
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        let keep = random.some(&["ipc", "network"]);
        namespaces.retain(|n| {
            let kind = n["type"].as_str().unwrap_or_default();
            !["ipc", "network"].contains(&kind) || keep.contains(&kind)
        });
        if keep.contains(&"ipc") {
            linux["sysctl"] = json!({"kernel.msgmax": random.one(&["1234", "8191"])});
        }
    }
    linux["maskedPaths"] =
        json!(random.some(&["/proc/interrupts", "/masked", "/hidden", "/proc/fs", "/none"]));
    linux["readonlyPaths"] = json!(random.some(&["/proc/sys", "/proc/bus", "/bin", "/none"]));
    let resources = &mut linux["resources"];
    if random.coin() {
        resources["memory"] = json!({"limit": random.one(&[40 << 20, 64 << 20, -1])});
    }
    if random.coin() {
        resources["memory"]["reservation"] = json!(random.one(&[10 << 20, 20 << 20]));
    }
    if random.coin() {
        resources["pids"] = json!({"limit": random.one(&[-1, 40, 500])});
    }
    if random.coin() {
        resources["cpu"] = json!({"quota": random.one(&[-1, 50000, 90000]), "period": random.one(&[100_000, 50000])});
    }
    if random.coin() {
        resources["unified"] = json!({"memory.high": random.one(&["50331648", "max"])});
    }
    let allowed = [
        json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}),
        json!({"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}),
        json!({"allow": false, "type": "b", "access": "rw"}),
        json!({"allow": true, "type": "c", "access": "m"}),
        json!({"allow": true, "access": "rwm"}),
    ];
    if let Some(devices) = resources["devices"].as_array_mut() {
        devices.extend(random.some(&allowed));
    }
    if random.coin() {
        let action = random.one(&[
            "SCMP_ACT_ERRNO",
            "SCMP_ACT_LOG",
            "SCMP_ACT_TRAP",
            "SCMP_ACT_KILL_PROCESS",
        ]);
        linux["seccomp"] = json!({
            "defaultAction": random.one(&["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"]),
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": random.some(&["mknod", "mknodat", "sync", "sethostname"]), "action": action}],
        });
        let rules = &mut linux["seccomp"]["syscalls"];
        if rules[0]["names"].as_array().is_none_or(Vec::is_empty) {
            *rules = json!([]);
        }
    }
}
