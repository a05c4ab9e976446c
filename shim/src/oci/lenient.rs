//! What Go's JSON takes: `config.json` is written for runc, whose reader forgives what `oci-spec`'s doesn't.
//!
//! - A member that is null is as good as absent, and names are the same in any case.
//! - What is missing is empty: `user`, `cwd`, the names of a seccomp rule and the numbers of its arguments.
//! - A seccomp section without an action and without rules is none.
//! - Capabilities that are not known are ignored, with a warning, as runc does.
//! - Scheduling flags that `oci-spec` spells in its own way have the runtime-spec's names.
//! - An item that is null is the empty value of what its list holds.
//! - A limit of huge pages that is more than `oci-spec` takes is no limit, as the kernel has it.
//! - Text that is no UTF-8, halves of surrogate pairs, members that are there twice, and what follows the value.
//!
//! A wrong value of a known name stays an error, as it is one to runc: a type of namespace, a seccomp action.

use oci_spec::runtime::Capability;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Names in the runtime-spec that have an upper-case letter, or that a caller may give one.
const NAMES: [&str; 151] = [
    "access",
    "action",
    "additionalGids",
    "algorithm",
    "allow",
    "ambient",
    "annotations",
    "apparmorProfile",
    "architectures",
    "args",
    "blockIO",
    "bounding",
    "burst",
    "capabilities",
    "cgroupsPath",
    "class",
    "classID",
    "closID",
    "consoleSize",
    "containerID",
    "cpu",
    "cpus",
    "createContainer",
    "createRuntime",
    "cwd",
    "deadline",
    "defaultAction",
    "defaultErrnoRet",
    "destination",
    "devices",
    "disableOOMKiller",
    "domain",
    "domainname",
    "effective",
    "enableMonitoring",
    "env",
    "errnoRet",
    "execCPUAffinity",
    "fileMode",
    "final",
    "flags",
    "gid",
    "gidMappings",
    "hard",
    "hcaHandles",
    "hcaObjects",
    "height",
    "hooks",
    "hostID",
    "hostname",
    "hugepageLimits",
    "idle",
    "index",
    "inheritable",
    "initial",
    "intelRdt",
    "ioPriority",
    "kernel",
    "kernelTCP",
    "l3CacheSchema",
    "leafWeight",
    "limit",
    "linux",
    "listenerMetadata",
    "listenerPath",
    "major",
    "maskedPaths",
    "memBwSchema",
    "memory",
    "memoryPolicy",
    "mems",
    "minor",
    "mode",
    "monotonic",
    "mountLabel",
    "mounts",
    "name",
    "names",
    "namespaces",
    "netDevices",
    "network",
    "nice",
    "noNewPrivileges",
    "nodes",
    "ociVersion",
    "offset",
    "oomScoreAdj",
    "op",
    "options",
    "pageSize",
    "path",
    "period",
    "permitted",
    "personality",
    "pids",
    "policy",
    "poststart",
    "poststop",
    "prestart",
    "priorities",
    "priority",
    "process",
    "quota",
    "rate",
    "rdma",
    "readonly",
    "readonlyPaths",
    "realtimePeriod",
    "realtimeRuntime",
    "reservation",
    "resources",
    "rlimits",
    "root",
    "rootfsPropagation",
    "runtime",
    "schemata",
    "scheduler",
    "seccomp",
    "secs",
    "selinuxLabel",
    "shares",
    "size",
    "soft",
    "source",
    "startContainer",
    "swap",
    "swappiness",
    "syscalls",
    "sysctl",
    "terminal",
    "throttleReadBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice",
    "timeOffsets",
    "timeout",
    "type",
    "uid",
    "uidMappings",
    "umask",
    "unified",
    "useHierarchy",
    "user",
    "username",
    "value",
    "valueTwo",
    "weight",
    "weightDevice",
    "width",
    "checkBeforeUpdate",
    "nanosecs",
];

/// Whose members have names of the user's.
const MAPS: [&str; 6] = ["annotations", "sysctl", "unified", "rdma", "netDevices", "timeOffsets"];

/// For other kinds of guests and hosts: of no effect, so nothing in them can be wrong.
const OF_OTHERS: [&str; 4] = ["vm", "solaris", "windows", "zos"];

/// Scheduling flags by their names in the runtime-spec, and as `oci-spec` spells them.
const SCHEDULING_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Lists of texts, of which none has the name of another list.
const TEXT_LISTS: [&str; 14] = [
    "ambient",
    "architectures",
    "args",
    "bounding",
    "effective",
    "env",
    "flags",
    "inheritable",
    "maskedPaths",
    "names",
    "options",
    "permitted",
    "readonlyPaths",
    "schemata",
];

/// Reads the first JSON value of a text.
///
/// # Errors
/// There is none.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    let text = whole_surrogates(&String::from_utf8_lossy(text));
    Value::deserialize(&mut serde_json::Deserializer::from_str(&text))
}

/// The same JSON with U+FFFD for each half of a surrogate pair that stands alone.
fn whole_surrogates(text: &str) -> String {
    const LENGTH: usize = "\\uXXXX".len();
    let unit = |at: usize| {
        let digits = text.get(at..at + LENGTH)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut whole = String::with_capacity(text.len());
    let (mut done, mut at) = (0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        let Some(first) = unit(at) else {
            // Whatever is escaped, it may be a backslash.
            at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8);
            continue;
        };
        let is_pair =
            |first, second| char::decode_utf16([first, second]).next().is_some_and(|c| c.is_ok());
        if !(0xd800..0xe000).contains(&first) {
            at += LENGTH;
        } else if unit(at + LENGTH).is_some_and(|second| is_pair(first, second)) {
            at += 2 * LENGTH;
        } else {
            whole.push_str(&text[done..at]);
            whole.push_str("\\ufffd");
            at += LENGTH;
            done = at;
        }
    }
    whole.push_str(&text[done..]);
    whole
}

/// Makes a `config.json` one that `oci-spec` reads.
pub fn spec(spec: &mut Value) {
    names(spec);
    let Some(members) = spec.as_object_mut() else { return };
    members.retain(|name, _| !OF_OTHERS.contains(&&**name));
    if let Some(value) = members.get_mut("process") {
        complete_process(value);
    }
    if let Some(linux) = members.get_mut("linux").and_then(Value::as_object_mut) {
        complete_linux(linux);
    }
}

/// The same for an OCI `process` alone.
pub fn process(process: &mut Value) {
    names(process);
    complete_process(process);
}

/// The same for `linux.resources` alone.
pub fn resources(resources: &mut Value) {
    names(resources);
    complete_resources(resources);
}

/// Known names in the spec's own case, and no nulls.
fn names(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(names),
        Value::Object(members) => {
            for (name, mut value) in std::mem::take(members) {
                let known = NAMES.iter().find(|known| known.eq_ignore_ascii_case(&name));
                let name = known.map_or(name, |known| (*known).to_owned());
                if value.is_null() {
                    continue;
                }
                for item in value.as_array_mut().into_iter().flatten().filter(|item| item.is_null())
                {
                    *item = empty_item(&name);
                }
                match value.as_object_mut().filter(|_| MAPS.contains(&&*name)) {
                    Some(map) => of_users(map),
                    None => names(&mut value),
                }
                members.insert(name, value);
            }
        }
        _ => {}
    }
}

/// What null stands for in a list of this name.
fn empty_item(list: &str) -> Value {
    match list {
        "additionalGids" => json!(0),
        list if TEXT_LISTS.contains(&list) => json!(""),
        _ => json!({}),
    }
}

/// A map of the user's: null is the empty value of what it holds; objects in it are the spec's again.
fn of_users(map: &mut Map<String, Value>) {
    let holds_objects = map.values().any(Value::is_object);
    for value in map.values_mut() {
        match value {
            Value::Null => *value = if holds_objects { json!({}) } else { json!("") },
            other => names(other),
        }
    }
}

fn complete(object: &mut Value, name: &str, empty: Value) {
    if let Some(members) = object.as_object_mut() {
        members.entry(name).or_insert(empty);
    }
}

fn complete_process(process: &mut Value) {
    complete(process, "user", json!({ "uid": 0, "gid": 0 }));
    complete(process, "cwd", json!(""));
    let flags = process.get_mut("scheduler").and_then(|s| s.get_mut("flags")?.as_array_mut());
    for flag in flags.into_iter().flatten() {
        if let Some((_, theirs)) = SCHEDULING_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = json!(theirs);
        }
    }
    let unknown = take_unknown_capabilities(process);
    if !unknown.is_empty() {
        let names = unknown.into_iter().collect::<Vec<_>>().join(" ");
        tracing::warn!("ignoring unknown or unavailable capabilities: [{names}]");
    }
}

/// Takes those out that are none, of all sets; any other value is left for whoever reads on.
fn take_unknown_capabilities(process: &mut Value) -> BTreeSet<String> {
    let mut unknown = BTreeSet::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for list in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut)
    {
        list.retain(|name| {
            let unknown_name = name.as_str().filter(|_| Capability::deserialize(name).is_err());
            unknown.extend(unknown_name.map(str::to_owned));
            unknown_name.is_none()
        });
    }
    unknown
}

fn complete_linux(linux: &mut Map<String, Value>) {
    if let Some(resources) = linux.get_mut("resources") {
        complete_resources(resources);
    }
    let empty = |value: Option<&Value>| match value {
        None => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    let is_none =
        |s: &Value| s.is_object() && empty(s.get("defaultAction")) && empty(s.get("syscalls"));
    if linux.get("seccomp").is_some_and(is_none) {
        linux.remove("seccomp");
    }
    let rules = linux.get_mut("seccomp").and_then(|s| s.get_mut("syscalls")?.as_array_mut());
    for rule in rules.into_iter().flatten() {
        complete(rule, "names", json!([]));
        for argument in rule.get_mut("args").and_then(Value::as_array_mut).into_iter().flatten() {
            complete(argument, "index", json!(0));
            complete(argument, "value", json!(0));
        }
    }
}

/// A rule for devices of no type is for all of them.
fn complete_resources(resources: &mut Value) {
    let pages = resources.get_mut("hugepageLimits").and_then(Value::as_array_mut);
    for limit in pages.into_iter().flatten().filter_map(|pages| pages.get_mut("limit")) {
        if limit.as_u64().is_some_and(|bytes| i64::try_from(bytes).is_err()) {
            *limit = json!(i64::MAX);
        }
    }
    let rules = resources.get_mut("devices").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
        if rule.get("type").is_some_and(|kind| kind == "") {
            rule.remove("type");
        }
    }
}

#[cfg(test)]
mod tests;
