//! The options of ps(1). Those that choose processes change nothing: it is the container's that are shown.

use super::columns::{Column, Kind};
use anyhow::{Context as _, Result, bail};

/// Choose processes, or only how wide a line may be.
const WITHOUT_EFFECT: &str = "eAadgrTxwN";

/// The columns that the options ask for.
pub(super) fn columns(options: &[String]) -> Result<Vec<Column>> {
    let mut words = options.iter().map(String::as_str);
    let (mut own, mut style) = (Vec::new(), None);
    let (mut simple, mut bsd) = (false, false);
    while let Some(word) = words.next() {
        let letters = word.strip_prefix('-').unwrap_or(word);
        // Without a minus, and with -x, it is BSD's ps that is meant.
        bsd |= !word.starts_with('-');
        for (at, letter) in letters.char_indices() {
            match letter {
                'o' => {
                    let rest = &letters[at + 1..];
                    let list = if rest.is_empty() { words.next() } else { Some(rest) };
                    own.extend(listed(
                        list.with_context(|| format!("{word}: no list of columns"))?,
                    )?);
                    break;
                }
                'f' if word.starts_with('-') => style = Some(Kind::FULL),
                'l' => style = Some(Kind::LONG),
                'u' if !word.starts_with('-') || letters.len() > 1 => style = Some(Kind::USER),
                'x' => bsd = true,
                letter if WITHOUT_EFFECT.contains(letter) => simple = true,
                _ => bail!("{word}: this option of ps says nothing about a guest's processes"),
            }
        }
    }
    if !own.is_empty() {
        return Ok(own);
    }
    let kinds = match style {
        Some(kinds) => kinds,
        None if bsd => Kind::SHORT,
        None if simple => Kind::SIMPLE,
        None => Kind::FULL,
    };
    Ok(kinds
        .iter()
        .map(|(kind, title)| Column { kind: *kind, title: (*title).to_owned() })
        .collect())
}

/// `name`, or `name=TITLE`, with commas between them.
fn listed(list: &str) -> Result<Vec<Column>> {
    let one = |word: &str| {
        let (name, title) =
            word.split_once('=').map_or((word, None), |(name, title)| (name, Some(title)));
        let (kind, usual) =
            Kind::named(name).with_context(|| format!("ps: there is no column {name:?}"))?;
        Ok(Column { kind, title: title.unwrap_or(usual).to_owned() })
    };
    list.split([',', ' ']).filter(|word| !word.is_empty()).map(one).collect()
}
