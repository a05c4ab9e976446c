//! JSON as Go's encoder writes it, byte for byte: members in the order of the type, `<`, `>` and `&` escaped.

use anyhow::Result;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;

/// In one line, without its end.
pub(crate) fn line(value: &impl Serialize) -> Result<String> {
    Ok(escaped(&serde_json::to_string(value)?))
}

/// In many lines, without the end of the last.
pub(crate) fn pretty(value: &impl Serialize, indent: &str) -> Result<String> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    value.serialize(&mut Serializer::with_formatter(&mut text, formatter))?;
    Ok(escaped(&String::from_utf8(text)?))
}

/// Outside of strings none of these can be.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_gos_encoder_writes() {
        let value = [("b", "<&>"), ("a", "\u{2028}")];
        assert_eq!(line(&value).unwrap(), r#"[["b","\u003c\u0026\u003e"],["a","\u2028"]]"#);
        assert_eq!(pretty(&["x"], "  ").unwrap(), "[\n  \"x\"\n]");
    }
}
