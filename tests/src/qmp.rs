//! QEMU's monitor (QMP).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to one monitor.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as the socket is there, at most `limit` from now.
    ///
    /// # Errors
    /// When it isn't there in time or doesn't speak QMP.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > end => {
                    return Err(e).context("QEMU's monitor did not come up");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.read()?; // the greeting
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Runs one command and answers its result; events in between are dropped.
    ///
    /// # Errors
    /// When QEMU refuses it or ends.
    pub fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{request}")?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or("?"));
            }
        }
    }

    /// Asks `query` until the `status` in its answer is `wanted`, at most `limit`.
    ///
    /// # Errors
    /// When it never is, or becomes `failed`.
    pub fn wait_status(&mut self, query: &str, wanted: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let answer = self.call(query, &json!({}))?;
            match answer["status"].as_str() {
                Some(status) if status == wanted => return Ok(()),
                Some("failed") => bail!("QEMU: {answer}"),
                _ if Instant::now() > end => bail!("QEMU never got {wanted}: {answer}"),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Lets the guest's memory stay in its file when the machine is saved or loaded.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn keep_memory_in_file(&mut self) -> Result<()> {
        let on = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.call("migrate-set-capabilities", &on).map(drop)
    }

    /// Plugs in a disk that is only read.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn plug(&mut self, disk: &Path, slot: &str) -> Result<()> {
        let file = json!({ "driver": "file", "filename": disk, "read-only": true });
        let node =
            json!({ "driver": "raw", "node-name": "plugged", "read-only": true, "file": file });
        self.call("blockdev-add", &node)?;
        let device = json!({ "driver": "virtio-blk-pci", "drive": "plugged", "bus": slot });
        self.call("device_add", &device).map(drop)
    }
}
