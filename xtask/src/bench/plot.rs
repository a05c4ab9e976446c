//! `docs/benchmarks.svg`: a start cut into phases, with runc's whole start above it.

use ::lab::bench::Report;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 90.0;
const BAR: f64 = 30.0;
const COLOURS: [&str; 8] =
    ["#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f"];

/// The picture.
pub fn phases(report: &Report) -> String {
    let runc = report
        .rows
        .iter()
        .find(|row| row.runtime == "runc" && row.unit == "ms")
        .map_or(0.0, |row| row.median);
    let ours: f64 = report.phases.iter().map(|(_, ms)| ms.max(0.0)).sum();
    let scale = (WIDTH - LEFT - 70.0) / ours.max(runc).max(1.0);
    let height = 110.0 + 20.0 * report.phases.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    label(&mut svg, 8.0, 30.0, "runc");
    bar(&mut svg, LEFT, 10.0, runc * scale, "#bab0ac");
    label(&mut svg, LEFT + runc * scale + 6.0, 30.0, &format!("{runc:.0} ms"));
    label(&mut svg, 8.0, 75.0, "kata-like");
    let mut at = LEFT;
    for (index, (name, ms)) in report.phases.iter().enumerate() {
        let (ms, colour) = (ms.max(0.0), COLOURS[index % COLOURS.len()]);
        bar(&mut svg, at, 55.0, ms * scale, colour);
        at += ms * scale;
        let line = 108.0 + 20.0 * index as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{:.0}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            line - 11.0
        );
        label(&mut svg, LEFT + 20.0, line, &format!("{name}: {ms:.1} ms"));
    }
    label(&mut svg, at + 6.0, 75.0, &format!("{ours:.0} ms"));
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, x: f64, y: f64, width: f64, colour: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
    );
}

fn label(svg: &mut String, x: f64, y: f64, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\">{text}</text>");
}
