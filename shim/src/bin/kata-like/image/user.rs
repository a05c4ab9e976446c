//! The `USER` of an image: names and numbers, looked up in the image's own files.

use super::root::Root;
use anyhow::{Context, Result};

/// Longest `/etc/passwd` or `/etc/group`, bytes.
const MAX_LEN: u64 = 1 << 20;

/// Who runs a container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Resolves `user`, `user:group`, with names or numbers; empty is root.
pub(crate) fn account(root: &Root, user: &str) -> Result<Account> {
    let passwd = root.read("/etc/passwd", MAX_LEN)?.unwrap_or_default();
    let group = root.read("/etc/group", MAX_LEN)?.unwrap_or_default();
    resolve(&passwd, &group, user)
}

fn resolve(passwd: &str, group: &str, user: &str) -> Result<Account> {
    let (user, group_name) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().map(fields).find(|entry| entry[0] == user || entry[2] == user);
    let (name, uid, gid, home) = match &entry {
        Some(entry) => (entry[0], entry[2].parse()?, entry[3].parse()?, entry[5]),
        None => {
            let uid = user.parse().with_context(|| format!("the image has no user {user:?}"))?;
            (user, uid, 0, "/")
        }
    };
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    let Some(wanted) = group_name else {
        return Ok(Account { uid, gid, groups: memberships(group, name), home });
    };
    // A group that is named is the only one.
    let entry = group.lines().map(fields).find(|entry| entry[0] == wanted || entry[2] == wanted);
    let gid = match entry {
        Some(entry) => entry[2].parse()?,
        None => wanted.parse().with_context(|| format!("the image has no group {wanted:?}"))?,
    };
    Ok(Account { uid, gid, groups: Vec::new(), home })
}

/// The groups that have this member.
fn memberships(group: &str, name: &str) -> Vec<u32> {
    group
        .lines()
        .map(fields)
        .filter(|entry| entry[3].split(',').any(|member| member == name))
        .filter_map(|entry| entry[2].parse().ok())
        .collect()
}

/// The fields of a line, empty where there are too few.
fn fields(line: &str) -> [&str; 7] {
    let mut fields = [""; 7];
    for (field, text) in fields.iter_mut().zip(line.split(':')) {
        *field = text;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbroken\nx:x:y:z\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:70:web,other\n";

    #[test]
    fn names_and_numbers_are_the_same_account() {
        let web = Account { uid: 33, gid: 34, groups: vec![70], home: "/srv".into() };
        assert_eq!(resolve(PASSWD, GROUP, "web").unwrap(), web);
        assert_eq!(resolve(PASSWD, GROUP, "33").unwrap(), web);
        let other_group = Account { gid: 70, groups: vec![], ..web };
        assert_eq!(resolve(PASSWD, GROUP, "web:logs").unwrap(), other_group);
        assert_eq!(resolve(PASSWD, GROUP, "33:70").unwrap(), other_group);
    }

    #[test]
    fn numbers_need_no_entry_and_names_do() {
        let account = resolve(PASSWD, GROUP, "1000:1001").unwrap();
        assert_eq!((account.uid, account.gid, account.home.as_str()), (1000, 1001, "/"));
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
        for bad in ["nobody", "web:nogroup", "x", "-1", "4294967296"] {
            assert!(resolve(PASSWD, GROUP, bad).is_err(), "{bad}");
        }
    }
}
