//! KVM: there, of which kind, and able to run a guest kernel.
//!
//! The VMM is asked to run its tiny guest: that is the program, and the way, in which it will be used.

use super::report::Finding;
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The modules that implement KVM, and what they are.
const KINDS: [(&str, &str); 3] = [
    ("kvm_intel", "kvm_intel (VT-x)"),
    ("kvm_amd", "kvm_amd (AMD-V)"),
    ("kvm_pvm", "kvm_pvm (software; runs no guest kernel)"),
];

/// What `kata-like-vmm --probe` prints.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Probe {
    Fit {
        max_vcpus: u64,
        /// What it is too old for.
        #[serde(default)]
        lacks: Vec<String>,
    },
    Unfit {
        error: String,
        remedy: String,
    },
}

pub(super) fn kvm(vmm: &Path) -> Finding {
    let kind = kind();
    let answer = super::output_of(Command::new(vmm).arg("--probe"));
    match answer.map(|json| serde_json::from_str(&json)) {
        Ok(Ok(Probe::Fit { max_vcpus, lacks })) => {
            let fit = format!("{kind}; a test guest ran; up to {max_vcpus} vCPUs");
            if lacks.is_empty() {
                return Finding::ok("KVM", fit);
            }
            let detail = format!("{fit}; too old for {}", lacks.join(", "));
            Finding::warning("KVM", detail, "use a newer kernel")
        }
        Ok(Ok(Probe::Unfit { error, remedy })) => {
            Finding::failed("KVM", format!("{kind}: {error}"), remedy)
        }
        Ok(Err(_)) => Finding::failed(
            "KVM",
            format!("{kind}; {} gave no answer", vmm.display()),
            "install a VMM of the same version as this program",
        ),
        Err(error) => Finding::failed(
            "KVM",
            format!("{kind}; not tried: {}: {error}", vmm.display()),
            "install the VMM first",
        ),
    }
}

fn kind() -> String {
    let modules = KINDS.iter().filter(|(module, _)| Path::new("/sys/module").join(module).exists());
    let names: Vec<_> = modules.map(|(_, name)| *name).collect();
    let mut kind = if names.is_empty() { "no KVM module".into() } else { names.join(", ") };
    let nested = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| is_virtual(&text));
    if nested {
        kind += ", this host is itself a virtual machine";
    }
    kind
}

fn is_virtual(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_verdict_is_the_probes() {
        let directory = tempfile::tempdir().unwrap();
        let vmm = directory.path().join("vmm");
        for (answer, verdict) in [
            (r#"{"max_vcpus": 64, "lacks": []}"#, Verdict::Ok),
            (r#"{"max_vcpus": 64}"#, Verdict::Ok),
            (r#"{"max_vcpus": 64, "lacks": ["this (Linux 9)"]}"#, Verdict::Warning),
            (r#"{"error": "no", "remedy": "yes"}"#, Verdict::Failed),
            ("nonsense", Verdict::Failed),
        ] {
            fs::write(&vmm, format!("#!/bin/sh\n[ \"$1\" = --probe ] && echo '{answer}'\n"))
                .unwrap();
            fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(kvm(&vmm).verdict(), verdict, "{answer}");
        }
        assert_eq!(kvm(&directory.path().join("missing")).verdict(), Verdict::Failed);
    }

    #[test]
    fn only_the_flag_makes_a_host_virtual() {
        assert!(is_virtual("model name: hypervisor\nflags\t\t: fpu hypervisor lahf_lm\n"));
        assert!(!is_virtual("model name: hypervisor\nflags\t\t: fpu vme\n"));
    }
}
