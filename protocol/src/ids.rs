//! Which container, exec and sandbox ids are allowed: they become file names on both sides.

/// Why an id is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "id {id:?} is not allowed: use 1 to 128 of A-Z a-z 0-9 . _ -, starting with a letter or digit"
)]
pub struct BadId {
    id: String,
}

/// Longest id, bytes.
pub const MAX_ID_LEN: usize = 128;

/// Checks an id as containerd does (`identifiers.Validate`), with room up to [`MAX_ID_LEN`].
///
/// # Errors
/// [`BadId`] when the id is empty, too long, or has a character outside the set.
pub fn check(id: &str) -> Result<(), BadId> {
    let ok = !id.is_empty()
        && id.len() <= MAX_ID_LEN
        && id.as_bytes()[0].is_ascii_alphanumeric()
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if ok { Ok(()) } else { Err(BadId { id: id.chars().take(MAX_ID_LEN).collect() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_file_names_pass_and_others_do_not() {
        for good in ["a", "9f8c", "web-1_x.y", &"a".repeat(128)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\0", "é", &"a".repeat(129)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
