//! `UpdateSandbox`, which the crate with the other methods lacks: a pod's size is changed.

use super::Pod;
use crate::task::convert::rpc_error;
use async_trait::async_trait;
use protobuf::Message;
use protocol::sandbox_update::{UpdateSandboxRequest, UpdateSandboxResponse};
use sandbox::{Error, PodResize, Result};
use serde::Deserialize;
use std::sync::Arc;
use ttrpc::asynchronous::{MethodHandler, TtrpcContext};
use ttrpc::{Code, Request, Response, get_status};

/// Its name.
pub const METHOD: &str = "UpdateSandbox";

/// The extension of a sandbox by which containerd's CRI tells its size, as JSON.
const RESOURCES: &str = "updated-resources";

#[derive(Deserialize)]
struct Updated {
    #[serde(rename = "Resources")]
    resources: Option<Resources>,
}

/// Of a `LinuxContainerResources` what is used here; 0, which JSON leaves out: not specified; below 0: no limit.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    cpu_period: i64,
    cpu_quota: i64,
    memory_limit_in_bytes: i64,
}

/// The method.
pub struct Update(pub Arc<Pod>);

impl Update {
    /// Does what a request says.
    pub async fn answer(&self, payload: &[u8]) -> Result<()> {
        let request = UpdateSandboxRequest::parse_from_bytes(payload)
            .map_err(|e| Error::InvalidArgument(format!("{METHOD}: {e}")))?;
        let sandbox = self.0.sandbox(&request.sandbox_id)?;
        match resize(&request)? {
            Some(change) => sandbox.promise(change).await,
            None => Ok(()),
        }
    }
}

/// The change that a request asks for, if it does.
fn resize(request: &UpdateSandboxRequest) -> Result<Option<PodResize>> {
    let Some(extension) = request.sandbox.extensions.get(RESOURCES) else { return Ok(None) };
    let updated: Updated = serde_json::from_slice(&extension.value)
        .map_err(|e| Error::InvalidArgument(format!("{RESOURCES} of the sandbox: {e}")))?;
    // As containerd has it for a container's.
    let named = |n: i64| (n != 0).then(|| u64::try_from(n).unwrap_or_default());
    Ok(updated.resources.map(|resources| PodResize {
        memory: named(resources.memory_limit_in_bytes),
        cpu_quota: named(resources.cpu_quota),
        cpu_period: named(resources.cpu_period).filter(|&period| period > 0),
    }))
}

#[async_trait]
impl MethodHandler for Update {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        let status = match self.answer(&request.payload).await.map_err(rpc_error) {
            Ok(()) => get_status(Code::OK, ""),
            Err(ttrpc::Error::RpcStatus(status)) => status,
            Err(other) => get_status(Code::UNKNOWN, other.to_string()),
        };
        response.status = Some(status).into();
        // Encoding nothing does not fail.
        response.payload = UpdateSandboxResponse::new().write_to_bytes().unwrap_or_default();
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::well_known_types::any::Any;

    fn asked(name: &str, text: &str) -> Result<Option<PodResize>> {
        let mut request = UpdateSandboxRequest::new();
        let value = Any { value: text.into(), ..Any::default() };
        request.sandbox.mut_or_insert_default().extensions.insert(name.into(), value);
        resize(&request)
    }

    #[test]
    fn a_size_is_in_an_extension_or_there_is_none() {
        let text = r#"{"Overhead":null,"Resources":{"cpu_period":100000,"cpu_quota":200000,
            "memory_limit_in_bytes":1048576,"oom_score_adj":3}}"#;
        let change = PodResize {
            memory: Some(1 << 20),
            cpu_quota: Some(200_000),
            cpu_period: Some(100_000),
        };
        assert_eq!(asked(RESOURCES, text).unwrap(), Some(change));
        assert_eq!(asked(RESOURCES, r#"{"Overhead":{},"Resources":null}"#).unwrap(), None);
        assert_eq!(asked("other", text).unwrap(), None);
        assert!(asked(RESOURCES, "{").unwrap_err().to_string().contains(RESOURCES));
        assert_eq!(resize(&UpdateSandboxRequest::new()).unwrap(), None);
    }

    #[test]
    fn what_is_not_specified_is_no_change_and_what_is_below_zero_no_limit() {
        let of = |text: &str| asked(RESOURCES, text).unwrap().unwrap();
        let none = PodResize::default();
        let cpus = r#"{"Resources":{"cpu_quota":150000,"memory_limit_in_bytes":0}}"#;
        assert_eq!(of(cpus), PodResize { cpu_quota: Some(150_000), ..none });
        let unlimited =
            r#"{"Resources":{"cpu_period":-1,"cpu_quota":-1,"memory_limit_in_bytes":-1}}"#;
        let expected = PodResize { memory: Some(0), cpu_quota: Some(0), cpu_period: None };
        assert_eq!(of(unlimited), expected);
        assert_eq!(of(r#"{"Resources":{}}"#), none);
    }
}
