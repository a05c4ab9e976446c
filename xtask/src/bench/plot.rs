//! Pictures of bars, and `docs/benchmarks.svg`: a start cut into phases, with runc's whole start above it.

use ::lab::bench::Report;
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const BAR: f64 = 30.0;
const COLOURS: [&str; 8] =
    ["#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f"];

/// An SVG picture of bars, of milliseconds where nothing else is said, with names at their left.
pub struct Drawing {
    svg: String,
    left: f64,
    scale: f64,
}

impl Drawing {
    /// Of that height, with `left` for the names, and room for `most` ms.
    pub fn new(height: f64, left: f64, most: f64) -> Self {
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        Self { svg, left, scale: (WIDTH - left - 70.0) / most.max(1.0) }
    }

    /// A bar of `ms` from `at` ms on.
    pub fn bar(&mut self, at: f64, y: f64, ms: f64, colour: usize) {
        let (x, width) = (self.left + at * self.scale, ms * self.scale);
        let colour = COLOURS[colour % COLOURS.len()];
        // Writing to a String does not fail.
        let _ = writeln!(
            self.svg,
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
        );
    }

    /// The name of a bar.
    pub fn label(&mut self, text: &str, y: f64) {
        self.text(8.0, y, text);
    }

    /// What a bar that ends at `at` ms amounts to.
    pub fn value(&mut self, at: f64, y: f64, ms: f64) {
        self.figure(at, y, &format!("{ms:.0} ms"));
    }

    /// What stands behind a bar that ends at `at`.
    pub fn figure(&mut self, at: f64, y: f64, text: &str) {
        self.text(self.left + at * self.scale + 6.0, y, text);
    }

    /// What a colour means.
    pub fn legend(&mut self, y: f64, colour: usize, text: &str) {
        let (x, top, colour) = (self.left, y - 11.0, COLOURS[colour % COLOURS.len()]);
        let _ = writeln!(
            self.svg,
            "<rect x=\"{x}\" y=\"{top:.0}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        self.text(x + 20.0, y, text);
    }

    fn text(&mut self, x: f64, y: f64, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.svg, "<text x=\"{x:.1}\" y=\"{y}\">{text}</text>");
    }

    /// The whole picture.
    pub fn end(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

/// The picture of a start.
pub fn phases(report: &Report) -> String {
    let runc = report
        .rows
        .iter()
        .find(|row| row.runtime == "runc" && row.unit == "ms")
        .map_or(0.0, |row| row.median);
    let ours: f64 = report.phases.iter().map(|(_, ms)| ms.max(0.0)).sum();
    let height = 110.0 + 20.0 * report.phases.len() as f64;
    let mut drawing = Drawing::new(height, 90.0, ours.max(runc));
    drawing.label("runc", 30.0);
    drawing.bar(0.0, 10.0, runc, 7);
    drawing.value(runc, 30.0, runc);
    drawing.label("kata-like", 75.0);
    let mut at = 0.0;
    for (index, (name, ms)) in report.phases.iter().enumerate() {
        let ms = ms.max(0.0);
        drawing.bar(at, 55.0, ms, index);
        at += ms;
        drawing.legend(108.0 + 20.0 * index as f64, index, &format!("{name}: {ms:.1} ms"));
    }
    drawing.value(at, 75.0, ours);
    drawing.end()
}
