//! `state`: the OCI runtime-spec's "State", with what runc adds.

use crate::monitor::call::{self, Status};
use crate::record::{Home, Record};
use anyhow::Result;
use serde_json::{Value, json};

pub(crate) fn main(home: &Home) -> Result<u8> {
    println!("{}", serde_json::to_string_pretty(&of(home, &home.load()?))?);
    Ok(0)
}

/// A container's state as JSON.
pub(crate) fn of(home: &Home, record: &Record) -> Value {
    let status = call::status(home, record);
    let pid = if status == Status::Stopped { 0 } else { record.monitor.pid };
    json!({
        "ociVersion": record.oci_version,
        "id": home.id(),
        "pid": pid,
        "status": status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        // Only root can run machines.
        "owner": "root",
    })
}
