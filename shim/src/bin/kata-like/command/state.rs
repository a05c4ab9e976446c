//! `state`: the OCI runtime-spec's "State", with what runc adds.

use crate::command::{json, out};
use crate::monitor::call::{self, CallError, Status};
use crate::record::{Home, Record};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A container's state, its members in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    oci_version: String,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// Of a list only.
    pub(super) owner: &'static str,
}

pub(crate) fn main(home: &Home) -> Result<u8> {
    let record = home.load()?;
    let status = call::status(home, &record)?;
    // Neither with a line's end after it, as runc's.
    out::print(&json::pretty(&of(home, record, Some(status), ""), "  ")?)?;
    Ok(0)
}

/// What a list shows of a container, of one that can't be asked as well; then why not.
pub(super) fn listed(home: &Home, record: Record) -> (State, Option<CallError>) {
    let (status, error) = match call::status(home, &record) {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error)),
    };
    // Only root can run machines.
    (of(home, record, status, "root"), error)
}

fn of(home: &Home, record: Record, status: Option<Status>, owner: &'static str) -> State {
    State {
        oci_version: record.oci_version,
        id: home.id().to_owned(),
        pid: if status == Some(Status::Stopped) { 0 } else { record.monitor.pid },
        status: status.map_or("unknown", Status::as_str),
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created,
        annotations: record.annotations.into_iter().collect(),
        owner,
    }
}
