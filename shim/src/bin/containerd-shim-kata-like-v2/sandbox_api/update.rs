//! `UpdateSandbox`, which the crate with the other methods lacks: a pod's size is changed.

use super::{Pod, config};
use crate::task::convert::rpc_error;
use async_trait::async_trait;
use protobuf::Message;
use protocol::cri::LinuxContainerResources;
use protocol::sandbox_update::{UpdateSandboxRequest, UpdateSandboxResponse};
use sandbox::{Error, PodSize, Result};
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

/// Of a `LinuxContainerResources` what is used here.
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
        match size(&request)? {
            Some(size) => sandbox.promise(size).await,
            None => Ok(()),
        }
    }
}

/// The size that a request asks for, if it does.
fn size(request: &UpdateSandboxRequest) -> Result<Option<PodSize>> {
    let Some(extension) = request.sandbox.extensions.get(RESOURCES) else { return Ok(None) };
    let updated: Updated = serde_json::from_slice(&extension.value)
        .map_err(|e| Error::InvalidArgument(format!("{RESOURCES} of the sandbox: {e}")))?;
    Ok(updated.resources.map(|resources| {
        let Resources { cpu_period, cpu_quota, memory_limit_in_bytes } = resources;
        config::size(&LinuxContainerResources {
            cpu_period,
            cpu_quota,
            memory_limit_in_bytes,
            ..Default::default()
        })
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

    #[test]
    fn a_size_is_in_an_extension_or_there_is_none() {
        let asked = |name: &str, text: &str| {
            let mut request = UpdateSandboxRequest::new();
            let value = Any { value: text.into(), ..Any::default() };
            request.sandbox.mut_or_insert_default().extensions.insert(name.into(), value);
            size(&request)
        };
        let text = r#"{"Overhead":null,"Resources":{"cpu_period":100000,"cpu_quota":200000,
            "memory_limit_in_bytes":1048576,"oom_score_adj":3}}"#;
        let size = PodSize { memory: 1 << 20, cpu_quota: 200_000, cpu_period: 100_000 };
        assert_eq!(asked(RESOURCES, text).unwrap(), Some(size));
        assert_eq!(asked(RESOURCES, r#"{"Overhead":{},"Resources":null}"#).unwrap(), None);
        assert_eq!(asked("other", text).unwrap(), None);
        assert!(asked(RESOURCES, "{").unwrap_err().to_string().contains(RESOURCES));
        assert_eq!(super::size(&UpdateSandboxRequest::new()).unwrap(), None);
    }
}
