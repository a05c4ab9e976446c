//! Between containerd's messages and the sandbox's types.

use containerd_shim_protos::api::{CreateTaskRequest, Status};
use containerd_shim_protos::events::task::TaskIO;
use protobuf::well_known_types::timestamp::Timestamp;
use sandbox::io::{Logger, Stdio, parse_endpoint};
use sandbox::plan::RootfsMount;
use sandbox::{Error, Phase, Result, lenient};
use std::time::{SystemTime, UNIX_EPOCH};

/// A time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanos) = (since.as_secs() as i64, since.subsec_nanos() as i32);
    Timestamp { seconds, nanos, ..Default::default() }
}

/// A phase as containerd calls it.
pub fn status(phase: Phase) -> Status {
    match phase {
        Phase::Reserved => Status::UNKNOWN,
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused { .. } => Status::PAUSED,
        Phase::Stopped(_) => Status::STOPPED,
    }
}

/// For answering a call.
#[allow(clippy::needless_pass_by_value)] // The form that `map_err` takes.
pub fn rpc_error(error: Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.chain()))
}

/// A process's streams as containerd names them.
///
/// # Errors
/// A kind that is not supported.
pub fn stdio(named: &TaskIO, id: &str, namespace: &str) -> Result<Stdio> {
    let TaskIO { stdin, stdout, stderr, terminal, .. } = named;
    let stdin = parse_endpoint(stdin)?;
    // One program reads both outputs: containerd names it twice.
    if let Some(logger) = Logger::parse(stdout, id, namespace)? {
        let logger = Some(logger.with_terminal(*terminal));
        return Ok(Stdio { stdin, logger, ..Default::default() });
    }
    Ok(Stdio {
        stdin,
        stdout: parse_endpoint(stdout)?,
        stderr: parse_endpoint(if *terminal { "" } else { stderr })?,
        ..Stdio::default()
    })
}

/// The mounts that make a container's root file system.
pub fn rootfs(request: &CreateTaskRequest) -> Vec<RootfsMount> {
    let mount = |m: &containerd_shim_protos::api::Mount| RootfsMount {
        fstype: m.type_.clone(),
        source: m.source.clone(),
        target: m.target.clone(),
        options: m.options.clone(),
    };
    request.rootfs.iter().map(mount).collect()
}

/// The JSON of an exec's `process`, with what the request says.
///
/// # Errors
/// It is not a `process`.
pub fn exec_process(json: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let invalid =
        |error: serde_json::Error| Error::InvalidArgument(format!("process of the exec: {error}"));
    let mut process = lenient::parse(json).map_err(invalid)?;
    lenient::process(&mut process);
    let members = process.as_object_mut();
    let members = members.ok_or_else(|| Error::InvalidArgument("process of the exec".into()))?;
    members.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&process).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_says_whether_an_exec_has_a_terminal() {
        let json = br#"{"Terminal":false,"cwd":"/","args":["a"],"apparmorProfile":"p"}"#;
        let out = exec_process(json, true).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&value["terminal"], &value["apparmorProfile"]), (&true.into(), &"p".into()));
        assert!(exec_process(b"[]", false).is_err());
    }
}
