//! Lists of processors or memory nodes as the kernel and the OCI runtime-spec write them: `0-3,5`.

use std::num::IntErrorKind;

/// The highest number that runc takes.
const HIGHEST: u32 = 64 * 1024;

/// Which numbers are in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberList(
    /// First and last of each range; they are sorted and don't meet.
    Vec<(u32, u32)>,
);

impl NumberList {
    /// Reads one as runc does: blanks and commas too many are no matter, and no text at all is no number.
    ///
    /// # Errors
    /// What is no number in it, or more than runc takes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let ranges = text.split(',').map(str::trim).filter(|range| !range.is_empty());
        let mut all = ranges.map(range).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() && !text.is_empty() {
            return Err(format!("no members found in set {text:?}"));
        }
        all.sort_unstable();
        let mut apart: Vec<(u32, u32)> = Vec::new();
        for (first, last) in all {
            match apart.last_mut().filter(|before| first <= before.1 + 1) {
                Some(before) => before.1 = before.1.max(last),
                None => apart.push((first, last)),
            }
        }
        Ok(Self(apart))
    }

    /// How many numbers are in it.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether all of another's are in it.
    pub fn has_all(&self, other: &Self) -> bool {
        let has = |&(first, last)| self.0.iter().any(|range| range.0 <= first && last <= range.1);
        other.0.iter().all(has)
    }
}

fn range(text: &str) -> Result<(u32, u32), String> {
    let number = |digits: &str| match digits.parse::<u32>() {
        Ok(number) if number <= HIGHEST => Ok(number),
        Err(error) if *error.kind() != IntErrorKind::PosOverflow => {
            Err(format!("{digits:?} is no number"))
        }
        _ => Err(format!("values larger than {HIGHEST} are not supported")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err(format!("invalid range: {text}")) } else { Ok((first, last)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_runc_reads_them() {
        for (text, count) in [
            ("", 0),
            ("0", 1),
            ("0-7", 8),
            (" 3,, 0-1,1-2 ,", 4),
            ("7,5-6,0", 4),
            ("0-65536", 65537),
        ] {
            assert_eq!(NumberList::parse(text).unwrap().count(), count, "{text:?}");
        }
        assert_eq!(NumberList::parse("0-2,3"), NumberList::parse("3,1,2,0"));
        for text in ["x", "-1", "1-", "0-9876543210", "65537", "3-1", " ", ",", "1 - 2"] {
            assert!(NumberList::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn one_list_has_all_of_another_or_not() {
        let list = |text| NumberList::parse(text).unwrap();
        assert!(list("0-3").has_all(&list("0,2-3")) && list("1").has_all(&list("")));
        assert!(list("2-3,0,1").has_all(&list("0-3")));
        assert!(!list("0").has_all(&list("0-1")) && !list("0,2").has_all(&list("0-2")));
    }
}
