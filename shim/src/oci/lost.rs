//! What of one JSON value is missing in another: what a spec says and its reader did not take.

use serde_json::Value;

/// What `had` says and `has` doesn't, as JSON pointers (RFC 6901); null and empty are as good as absent.
///
/// Lists are compared item by item when they are of one length, and named as a whole when they are not.
pub fn lost(had: &Value, has: &Value) -> Vec<String> {
    let mut pointers = Vec::new();
    compare(had, Some(has), &mut String::new(), &mut pointers);
    pointers
}

fn compare(had: &Value, has: Option<&Value>, at: &mut String, lost: &mut Vec<String>) {
    let Some(has) = has else {
        if !is_empty(had) {
            lost.push(at.clone());
        }
        return;
    };
    let mut step = |key: &str, had: &Value, has: Option<&Value>| {
        let length = at.len();
        at.push('/');
        at.push_str(&key.replace('~', "~0").replace('/', "~1"));
        compare(had, has, at, lost);
        at.truncate(length);
    };
    match (had, has) {
        (Value::Object(had), Value::Object(has)) => {
            had.iter().for_each(|(key, value)| step(key, value, has.get(key)));
        }
        (Value::Array(had), Value::Array(has)) if had.len() == has.len() => {
            let pairs = had.iter().zip(has).enumerate();
            pairs.for_each(|(i, (had, has))| step(&i.to_string(), had, Some(has)));
        }
        (Value::Array(had), Value::Array(has)) if had.len() > has.len() => lost.push(at.clone()),
        (had, Value::Null) if !is_empty(had) => lost.push(at.clone()),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_gets_lost_is_named_wherever_it_stood() {
        let had =
            json!({"a": {"b/c": 1, "d": null, "e": []}, "l": [{"x": 1}, {"y": 2}], "m": [1, 2]});
        let has = json!({"a": {}, "l": [{"x": 1}, {}], "m": [1]});
        assert_eq!(lost(&had, &has), ["/a/b~1c", "/l/1/y", "/m"]);
        assert!(lost(&had, &had).is_empty());
    }
}
