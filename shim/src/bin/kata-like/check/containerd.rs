//! containerd, and whether it knows this runtime. `kata-like run` needs neither, so these only warn.

use super::report::Finding;
use std::path::Path;
use std::process::Command;
use toml::Value;

const CONFIG: &str = "/etc/containerd/config.toml";
const RUNTIME: &str = "io.containerd.kata-like.v2";

pub(super) fn containerd() -> Vec<Finding> {
    let Some(path) = super::program("containerd") else {
        let remedy = "install it for Kubernetes, ctr and nerdctl; `kata-like run` works without";
        return vec![Finding::warning("containerd", "not found", remedy)];
    };
    let answer = super::output_of(Command::new(&path).arg("--version")).unwrap_or_default();
    let version = version(&answer);
    let known = version.as_deref().unwrap_or("of unknown version");
    vec![
        Finding::ok("containerd", format!("{} {known}", path.display())),
        configuration(Path::new(CONFIG), version.as_deref().unwrap_or_default()),
    ]
}

/// The third word of "containerd github.com/containerd/containerd/v2 v2.1.9 …".
fn version(answer: &str) -> Option<String> {
    answer.split_whitespace().nth(2).map(|word| word.trim_start_matches('v').to_owned())
}

fn configuration(path: &Path, version: &str) -> Finding {
    let what = "containerd's runtimes";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match text.parse::<toml::Table>() {
        Err(error) => {
            let detail = format!("{}: {}", path.display(), error.message());
            Finding::warning(what, detail, "correct the file")
        }
        Ok(table) if names_runtime(&Value::Table(table.clone())) => {
            Finding::ok(what, format!("{} names {RUNTIME}", path.display()))
        }
        Ok(_) => Finding::warning(
            what,
            format!("{} does not name {RUNTIME}", path.display()),
            format!(
                "`ctr run --runtime {RUNTIME}` works as it is; for Kubernetes add this and restart \
                 containerd:\n{}",
                lines_to_add(version)
            ),
        ),
    }
}

/// The plugin's name has changed with containerd 2.0.
fn lines_to_add(version: &str) -> String {
    let plugin = if version.starts_with("1.") {
        "io.containerd.grpc.v1.cri"
    } else {
        "io.containerd.cri.v1.runtime"
    };
    format!("[plugins.\"{plugin}\".containerd.runtimes.kata-like]\n  runtime_type = \"{RUNTIME}\"")
}

fn names_runtime(value: &Value) -> bool {
    match value {
        Value::Table(table) => table.iter().any(|(key, value)| {
            (key == "runtime_type" && value.as_str() == Some(RUNTIME)) || names_runtime(value)
        }),
        Value::Array(values) => values.iter().any(names_runtime),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn both_forms_of_a_version_are_read() {
        let debian = "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6\n";
        assert_eq!(version(debian).as_deref(), Some("1.7.24~ds1"));
        let two = "containerd github.com/containerd/containerd/v2 v2.4.2 abc\n";
        assert_eq!(version(two).as_deref(), Some("2.4.2"));
        assert_eq!(version("what"), None);
    }

    #[test]
    fn what_the_remedy_says_is_what_the_check_looks_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        for version in ["1.7.24", "2.4.2"] {
            std::fs::write(&path, "version = 2\n").unwrap();
            assert_eq!(configuration(&path, version).verdict(), Verdict::Warning);
            std::fs::write(&path, lines_to_add(version)).unwrap();
            assert_eq!(configuration(&path, version).verdict(), Verdict::Ok);
        }
        std::fs::write(&path, "not = [toml").unwrap();
        assert_eq!(configuration(&path, "").verdict(), Verdict::Warning);
    }
}
