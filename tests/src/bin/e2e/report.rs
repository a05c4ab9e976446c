//! What a failed test leaves for the person who looks into it.

use crate::context::Context;
use std::fs;
use std::path::Path;

/// Longest reason in one line, characters.
const SHORT: usize = 1000;

/// Prints why a test failed and the ends of the logs; keeps the logs whole under the artifacts directory.
///
/// `mark`: where containerd's log ended when the test began.
pub fn failure(context: &Context, name: &str, error: &anyhow::Error, mark: usize) {
    println!("---- {name}: {error:#}");
    let directory = context.artifacts.join(format!("{}-{name}", context.containerd.name()));
    let _ = fs::create_dir_all(&directory);
    let _ = fs::write(directory.join("error"), format!("{error:?}\n"));
    let log = fs::read(context.containerd.log()).unwrap_or_default();
    let log = String::from_utf8_lossy(log.get(mark..).unwrap_or_default());
    let lines: Vec<&str> = log.lines().collect();
    for line in ours(&lines).iter().rev().take(25).rev() {
        println!("     {line}");
    }
    let _ = fs::write(directory.join("containerd.log"), lines.join("\n"));
    keep_logs(Path::new("/run/kata-like"), &directory);
}

/// Why a test failed, in one line of at most [`SHORT`] characters.
pub fn short(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', "; ").chars().take(SHORT).collect()
}

fn ours<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let words = ["sandbox::", "level=error"];
    let noise = ["guest::log", "cleaning up"];
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    lines.iter().copied().filter(|line| has(line, &words) && !has(line, &noise)).collect()
}

/// Copies the logs of sandboxes that are still there: consoles, VMMs' messages.
fn keep_logs(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && entry.file_name() != "shared" {
            keep_logs(&path, to);
        } else if kind.is_file() && path.extension().is_some_and(|e| e == "log") {
            let name = path.to_string_lossy().trim_start_matches('/').replace('/', "_");
            let _ = fs::copy(&path, to.join(name));
        }
    }
}
