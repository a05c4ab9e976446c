//! The table in `docs/compatibility.md`.

use super::{Column, RUNC};
use ::lab::conformance::differences;
use ::lab::conformance::report::Outcome;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Around the table.
const BEGIN: &str = "<!-- conformance: written by `make conformance` -->\n";
const END: &str = "<!-- end of conformance -->";

/// Replaces what is between the marks.
pub fn write(file: &Path, columns: &[Column]) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let text =
        replace(&text, &table(columns)).context("docs/compatibility.md has lost its marks")?;
    Ok(std::fs::write(file, text)?)
}

fn replace(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

fn table(columns: &[Column]) -> String {
    let mut text = String::new();
    for column in columns {
        let count = |is: fn(&Outcome) -> bool| column.report.values().filter(|o| is(o)).count();
        let _ = writeln!(
            text,
            "- {} on containerd {}, at {}: {} passed, {} failed, {} skipped",
            column.handler,
            column.containerd.name(),
            column.tree,
            count(|outcome| *outcome == Outcome::Passed),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        );
    }
    let all: BTreeMap<_, _> = columns.iter().flat_map(|column| &column.report).collect();
    let left_out = all.values().filter(|outcome| ***outcome == Outcome::LeftOut).count();
    let _ = writeln!(
        text,
        "\nThe suite has {} cases. {left_out} are benchmarks, which it leaves out unless it is asked for them alone: \
         no count has them.",
        all.len()
    );
    let heads =
        columns.iter().map(|column| format!(" {}: {} |", column.containerd.name(), column.handler));
    let _ = write!(text, "\n| Case |{}\n|---|", heads.collect::<String>());
    let _ = writeln!(text, "{}", "---|".repeat(columns.len()));
    let ran = all.iter().filter(|(_, outcome)| ***outcome != Outcome::LeftOut);
    for (case, _) in ran {
        let _ = write!(text, "| {} |", case.replace('|', "\\|"));
        for column in columns {
            let _ = write!(text, " {} |", word(case, column));
        }
        text.push('\n');
    }
    text
}

fn word(case: &str, column: &Column) -> String {
    let known = || differences::reason(case).filter(|_| column.handler != RUNC);
    match column.report.get(case) {
        Some(Outcome::Passed) => "passed".to_owned(),
        Some(Outcome::Failed(_)) => {
            known().map_or("failed".to_owned(), |why| format!("can't: {why}"))
        }
        Some(Outcome::Skipped(_)) => "skipped".to_owned(),
        Some(Outcome::LeftOut) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::lab::containerd::Version;

    #[test]
    fn the_table_replaces_the_one_before() {
        let report = [("a|b".to_owned(), Outcome::Passed), ("c".to_owned(), Outcome::LeftOut)];
        let columns = [Column {
            containerd: Version::V2_4,
            handler: RUNC.to_owned(),
            tree: "abc".to_owned(),
            report: report.into(),
        }];
        let text = format!("before\n{BEGIN}old{END}\nafter");
        let text = replace(&text, &table(&columns)).unwrap();
        assert!(
            text.contains("- runc on containerd 2.4, at abc: 1 passed, 0 failed, 0 skipped\n"),
            "{text}"
        );
        assert!(text.contains("The suite has 2 cases. 1 are") && !text.contains("| c |"), "{text}");
        assert!(text.contains("| Case | 2.4: runc |\n|---|---|\n| a\\|b | passed |\n"), "{text}");
        assert!(text.starts_with("before") && text.ends_with("after") && !text.contains("old"));
        assert_eq!(replace(&text, "same"), replace(&replace(&text, "other").unwrap(), "same"));
    }
}
