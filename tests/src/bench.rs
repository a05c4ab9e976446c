//! What the benchmark in the lab hands to the host, which writes it down.

use serde::{Deserialize, Serialize};

/// All that one run measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The machine it ran on, a name and a value a line.
    pub machine: Vec<(String, String)>,
    /// How often each thing was measured; one run more, the first, is thrown away.
    pub runs: usize,
    /// The figures.
    pub rows: Vec<Row>,
    /// What holds on any machine: how often a guest of ours left to the host, and told a device of requests, while it did
    /// what the row of that name does; the unit says which. In all, or where that row is a rate, for a thousand.
    pub exits: Vec<Row>,
    /// A start of ours, cut into phases, in their order: name and median, ms.
    pub phases: Vec<(String, f64)>,
    /// What did not get through.
    pub failures: Vec<Failure>,
}

/// A run without a figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// What was to be measured.
    pub name: String,
    /// On what.
    pub runtime: String,
    /// How it ended.
    pub said: String,
}

/// What the index is made of, as UnixBench's is: names of rows of `inside`, in their order.
pub const INDEX: [&str; 12] = [
    "integers",
    "floating point",
    "execl",
    "processes made",
    "pipe",
    "pipe, two processes",
    "system calls, five",
    "file copied by 256 bytes",
    "file copied by 1024 bytes",
    "file copied by 4096 bytes",
    "one shell script",
    "8 shell scripts",
];

/// The name of a row of so many copies at once.
pub fn of_copies(name: &str, copies: u32) -> String {
    if copies == 1 { name.to_owned() } else { format!("{name}, {copies} copies") }
}

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// `ms` or `MiB`.
    pub unit: String,
    /// The runtime's name, as `runc`.
    pub runtime: String,
    /// Median.
    pub median: f64,
    /// Distance between the first and the third quartile.
    pub spread: f64,
    /// Median divided by runc's, where runc has one.
    pub ratio: Option<f64>,
}

impl Row {
    /// A row of samples; `None` when there are none.
    pub fn of(name: &str, unit: &str, runtime: &str, samples: &[f64]) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            runtime: runtime.to_owned(),
            median: quantile(samples, 0.5)?,
            spread: quantile(samples, 0.75)? - quantile(samples, 0.25)?,
            ratio: None,
        })
    }
}

/// Sets every row's ratio to the row of the same name with runtime `runc`.
pub fn compare_to_runc(rows: &mut [Row]) {
    let base: Vec<(String, f64)> = rows
        .iter()
        .filter(|row| row.runtime == "runc")
        .map(|row| (row.name.clone(), row.median))
        .collect();
    for row in rows {
        let runc = base.iter().find(|(name, _)| *name == row.name).map(|(_, median)| *median);
        row.ratio = runc.filter(|m| *m > 0.0).map(|m| row.median / m);
    }
}

/// The value below which a share `q` of the samples lies, interpolated; `None` without samples.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let (low, high) = (*sorted.get(below)?, *sorted.get(above)?);
    Some(low + (high - low) * (place - place.floor()))
}

/// Reads a report.
///
/// # Errors
/// When it is none.
pub fn parse(json: &[u8]) -> serde_json::Result<Report> {
    serde_json::from_slice(json)
}

/// The figures for programs: one row a line.
///
/// # Errors
/// Never for numbers that a clock gives.
pub fn rows_json(report: &Report) -> serde_json::Result<String> {
    let rows = report.rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("[\n  {}\n]\n", rows.join(",\n  ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.75), Some(3.0));
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), Some(2.5));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), Some(2.0));
    }

    #[test]
    fn ratios_are_to_the_row_of_the_same_name() {
        let row = |name, runtime, value: f64| Row::of(name, "ms", runtime, &[value]).unwrap();
        let mut rows =
            [row("run", "runc", 4.0), row("run", "kata-like", 6.0), row("x", "kata-like", 1.0)];
        compare_to_runc(&mut rows);
        assert_eq!(rows.map(|r| r.ratio), [Some(1.0), Some(1.5), None]);
    }
}
