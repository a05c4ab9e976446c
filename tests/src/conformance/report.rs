//! What the suite reports of a run.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As the suite wants it.
    Passed,
    /// With these words of the suite's.
    Failed(String),
    /// What it is about is not there, as these words say.
    Skipped(String),
    /// A benchmark: the suite runs these only where it is asked for them alone.
    LeftOut,
}

/// What the suite leaves out has in its name, whichever cases it is asked for.
const BENCHMARK: &str = "benchmark";

/// The cases of a run, by their names: what they are part of, and the case's own words.
pub type Report = BTreeMap<String, Outcome>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    /// Null of what is run before the cases.
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Reads the report that ginkgo wrote as JSON, of the cases that were asked for, and of those that are never run.
///
/// # Errors
/// When it can't be read, or has no case.
pub fn read(file: &Path) -> Result<Report> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    let suites: Vec<Suite> = serde_json::from_slice(&text).context("the suite's report")?;
    let specs = suites.into_iter().flat_map(|suite| suite.spec_reports);
    let cases = specs.filter(|spec| spec.leaf_node_type == "It").filter_map(|spec| {
        // One that was not asked for is skipped without a word.
        let unasked = spec.state == "skipped" && spec.failure.message.is_empty();
        let mut words = spec.container_hierarchy_texts.unwrap_or_default();
        words.push(spec.leaf_node_text);
        let name = words.join(" ").replace("[k8s.io] ", "").replace(" [Conformance]", "");
        let outcome = match &*spec.state {
            _ if unasked && name.contains(BENCHMARK) => Outcome::LeftOut,
            _ if unasked => return None,
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped(spec.failure.message),
            _ => Outcome::Failed(spec.failure.message),
        };
        Some((name, outcome))
    });
    let report: Report = cases.collect();
    let ran = report.values().any(|outcome| *outcome != Outcome::LeftOut);
    anyhow::ensure!(ran, "the suite reports no case");
    Ok(report)
}

/// Keeps a report.
///
/// # Errors
/// The file system's answer.
pub fn save(report: &Report, file: &Path) -> Result<()> {
    std::fs::write(file, serde_json::to_vec_pretty(report)?)
        .with_context(|| file.display().to_string())
}

/// Reads one that was kept.
///
/// # Errors
/// When it can't be read.
pub fn load(file: &Path) -> Result<Report> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_cases_that_were_asked_for_are_read() {
        let spec = |words: &[&str], case: &str, state: &str, why: &str| {
            json!({"ContainerHierarchyTexts": words, "LeafNodeType": "It", "LeafNodeText": case,
                "State": state, "Failure": {"Message": why}})
        };
        let before = json!({"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite",
            "LeafNodeText": "", "State": "passed"});
        let specs = [
            before,
            spec(&["[k8s.io] Pod", "with"], "a case [Conformance]", "passed", ""),
            spec(&["[k8s.io] Pod"], "another", "failed", "why"),
            spec(&["[k8s.io] Pod"], "not here", "skipped", "no AppArmor"),
            spec(&["[k8s.io] Pod"], "not asked for", "skipped", ""),
            spec(&["[k8s.io] Pod"], "benchmark about pods", "skipped", ""),
        ];
        let file = std::env::temp_dir().join(format!("lab-report-{}", std::process::id()));
        std::fs::write(&file, json!([{ "SpecReports": specs }]).to_string()).unwrap();
        let report = read(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        let expected = [
            ("Pod with a case".to_owned(), Outcome::Passed),
            ("Pod another".to_owned(), Outcome::Failed("why".into())),
            ("Pod not here".to_owned(), Outcome::Skipped("no AppArmor".into())),
            ("Pod benchmark about pods".to_owned(), Outcome::LeftOut),
        ];
        assert_eq!(report, expected.into());
    }
}
