//! What the checks found, for people and for programs.

use serde::Serialize;
use std::io::{self, Write};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Something won't work that not everybody needs.
    Warning,
    /// No container can run.
    Failed,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    what: &'static str,
    verdict: Verdict,
    /// What was found.
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, detail: detail.into(), remedy: None }
    }

    pub(super) fn warning(
        what: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { what, verdict: Verdict::Warning, detail: detail.into(), remedy }
    }

    pub(super) fn failed(
        what: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Failed, ..Self::warning(what, detail, remedy) }
    }

    #[cfg(test)]
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// Whether containers can run.
pub(super) fn is_fit(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Failed)
}

pub(super) fn print_json(findings: &[Finding]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, findings)?;
    writeln!(out)
}

pub(super) fn print_text(findings: &[Finding]) -> io::Result<()> {
    io::stdout().lock().write_all(text(findings).as_bytes())
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, verdict, detail, remedy } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED",
        };
        text += &format!("{verdict:7}  {what:width$}  {detail}\n");
        for line in remedy.iter().flat_map(|remedy| remedy.lines()) {
            text += &format!("{:7}  {:width$}  {line}\n", "", "");
        }
    }
    text += if is_fit(findings) {
        "This host can run kata-like.\n"
    } else {
        "This host can't run kata-like yet: see what is marked FAILED.\n"
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_alone_is_fit_and_a_failure_is_not() {
        let mut findings = vec![Finding::ok("a", "x"), Finding::warning("b", "y", "do z")];
        assert!(is_fit(&findings));
        findings.push(Finding::failed("c", "broken", "mend it"));
        assert!(!is_fit(&findings));
    }

    #[test]
    fn each_line_of_a_remedy_is_beneath_its_finding() {
        let findings = [Finding::failed("KVM", "missing", "first\nsecond")];
        let text = text(&findings);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "FAILED   KVM  missing");
        assert_eq!(lines[1], "              first");
        assert_eq!(lines[2], "              second");
    }

    #[test]
    fn json_has_the_remedy_only_where_there_is_one() {
        let json = serde_json::to_value([Finding::ok("a", "x")]).unwrap();
        assert_eq!(json, serde_json::json!([{"what": "a", "verdict": "ok", "detail": "x"}]));
    }
}
