//! `update`: a container's limits, from a file or from options.

use crate::Globals;
use crate::monitor::call::{self, Call};
use crate::record::Home;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::io::Read as _;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Change a container's limits
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File with the linux.resources object of the OCI runtime-spec; - is standard input
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    /// Name of the container
    id: String,
}

#[derive(Debug, Args)]
struct Limits {
    /// Memory, bytes, or with a suffix k, m, g; -1 for no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory that is left to the container when the guest is short of it
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// CPU time against other containers'
    #[arg(long, alias = "cpu-shares", value_name = "NUMBER")]
    cpu_share: Option<u64>,
    /// CPU time in a period, microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// A period, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time that may be saved for later, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<u64>,
    /// 1: run only when no other wants to
    #[arg(long, value_name = "0|1", allow_negative_numbers = true)]
    cpu_idle: Option<i64>,
    /// A period of real-time scheduling; refused, since the guest has none
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// Real-time CPU time in a period; refused, since the guest has none
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// Which CPUs; refused, since they are the machine's
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Which memory nodes; refused, since they are the machine's
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Number of processes
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Weight against other containers' on block devices, 10 to 1000
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u16>,
    /// Ignored, as runc does
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    /// Ignored, as runc does
    #[arg(long, hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Refused: the guest has no cache that it could divide
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Refused: the guest has no memory bandwidth that it could divide
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
}

pub(crate) fn main(arguments: &Arguments, globals: &Globals) -> Result<u8> {
    let home = Home::new(globals.root(), &arguments.id)?;
    let resources = match &arguments.resources {
        Some(file) if file.as_os_str() == "-" => {
            let mut text = Vec::new();
            std::io::stdin().lock().read_to_end(&mut text)?;
            text
        }
        Some(file) => std::fs::read(file).with_context(|| file.display().to_string())?,
        None => serde_json::to_vec(&of_options(&arguments.limits)?)?,
    };
    let file = super::memory_file(&resources)?;
    call::ask(&home, &Call::Update, &[file.as_fd()]).map(|_| 0)
}

fn of_options(limits: &Limits) -> Result<Value> {
    if limits.l3_cache_schema.is_some() {
        bail!("Intel RDT/CAT: l3 cache schema is not enabled");
    }
    if limits.mem_bw_schema.is_some() {
        bail!("Intel RDT/MBA: memory bandwidth schema is not enabled");
    }
    if limits.kernel_memory.is_some() || limits.kernel_memory_tcp.is_some() {
        tracing::warn!("Kernel memory settings are ignored and will be removed");
    }
    let mut resources = json!({
        "memory": {
            "limit": limits.memory,
            "reservation": limits.memory_reservation,
            "swap": limits.memory_swap,
        },
        "cpu": {
            "shares": limits.cpu_share,
            "quota": limits.cpu_quota,
            "period": limits.cpu_period,
            "burst": limits.cpu_burst,
            "idle": limits.cpu_idle,
            "realtimePeriod": limits.cpu_rt_period,
            "realtimeRuntime": limits.cpu_rt_runtime,
            "cpus": limits.cpuset_cpus,
            "mems": limits.cpuset_mems,
        },
        "pids": { "limit": limits.pids_limit },
        "blockIO": { "weight": limits.blkio_weight },
    });
    if let Some(groups) = resources.as_object_mut() {
        for limits in groups.values_mut().filter_map(Value::as_object_mut) {
            limits.retain(|_, value| !value.is_null());
        }
        groups.retain(|_, limits| limits.as_object().is_some_and(|limits| !limits.is_empty()));
    }
    Ok(resources)
}

/// Bytes as docker and runc read them: -1, or a number, with a fraction if it likes, and k, m, g, t or p after it
/// (powers of 1024).
fn bytes(text: &str) -> Result<i64, String> {
    let text = text.trim().to_ascii_lowercase();
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        other => return Err(format!("unknown unit {other:?}")),
    };
    let digits = digits.trim_end();
    if let Ok(number) = digits.parse::<i64>() {
        let fits = (number >= 0).then(|| number.checked_mul(1 << shift)).flatten();
        return fits.ok_or_else(|| "that is too much, or too little".into());
    }
    match digits.parse::<f64>() {
        Ok(number) if (0.0..f64::from(1 << 20)).contains(&number) => {
            Ok((number * (1_i64 << shift) as f64) as i64)
        }
        _ => Err(format!("{digits:?} is no number of bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parsed::parsed;

    fn resources(words: &[&str]) -> Result<Value> {
        of_options(&parsed::<Arguments>(&[words, &["id"]].concat())?.limits)
    }

    #[test]
    fn options_become_the_specs_resources() {
        let said = resources(&["--memory", "64m", "--cpu-quota", "-1", "--pids-limit", "9"]);
        let expected = serde_json::json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": -1},
            "pids": {"limit": 9}});
        assert_eq!(said.unwrap(), expected);
        assert_eq!(resources(&[]).unwrap(), serde_json::json!({}));
        let share = resources(&["--cpu-share", "7", "--cpu-rt-runtime", "5"]).unwrap();
        assert_eq!(share, serde_json::json!({"cpu": {"shares": 7, "realtimeRuntime": 5}}));
        for (option, words) in [("--l3-cache-schema", "RDT/CAT"), ("--mem-bw-schema", "RDT/MBA")] {
            let error = resources(&[option, "x"]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes("1"), Ok(1));
        assert_eq!(bytes("2Ki"), Ok(2048));
        assert_eq!(bytes("1gb"), Ok(1 << 30));
        assert_eq!(bytes("-1"), Ok(-1));
        assert_eq!(bytes("1.5k"), Ok(1536));
        assert_eq!(bytes("32 MB"), Ok(32 << 20));
        for bad in ["", "x", "1q", "9999999999999g", "-2", "1e30k", "nan"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
