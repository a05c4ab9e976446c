//! The names of what a layer has, as a tree: however deep they are, each is kept once.

use anyhow::{Result, ensure};
use std::collections::HashMap;
use std::rc::Rc;

/// Most names of one layer, directories on the way included.
const MAX_NAMES: usize = 2_000_000;

/// A name in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(usize);

/// The root directory.
pub(super) const ROOT: Id = Id(0);

/// The names; the root is always there.
pub(super) struct Names(Vec<Name>);

struct Name {
    parent: Id,
    last: Rc<[u8]>,
    children: HashMap<Rc<[u8]>, Id>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self(vec![Name { parent: ROOT, last: Rc::default(), children: HashMap::new() }])
    }

    /// The id of the name with these parts; it is added with the directories that it is in.
    pub(super) fn add(&mut self, parts: &[&[u8]]) -> Result<Id> {
        let mut id = ROOT;
        for part in parts {
            id = match self.child(id, part) {
                Some(child) => child,
                None => self.insert(id, part)?,
            };
        }
        Ok(id)
    }

    fn insert(&mut self, parent: Id, part: &[u8]) -> Result<Id> {
        ensure!(self.0.len() <= MAX_NAMES, "more than {MAX_NAMES} files and directories");
        let (id, last) = (Id(self.0.len()), Rc::<[u8]>::from(part));
        self.0[parent.0].children.insert(last.clone(), id);
        self.0.push(Name { parent, last, children: HashMap::new() });
        Ok(id)
    }

    /// What has this name in a directory.
    pub(super) fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        self.0[directory.0].children.get(name).copied()
    }

    /// The whole name.
    pub(super) fn full(&self, mut id: Id) -> Vec<u8> {
        let mut parts = Vec::new();
        while id != ROOT {
            parts.push(&*self.0[id.0].last);
            id = self.0[id.0].parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }
}

/// The parts of a name, without superfluous slashes and dots.
pub(super) fn parts(name: &[u8]) -> Vec<&[u8]> {
    name.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_itself_however_it_is_written() {
        let mut names = Names::new();
        let id = names.add(&parts(b"./a//b/./c")).unwrap();
        assert_eq!((names.full(id), names.0.len()), (b"a/b/c".to_vec(), 4));
        assert_eq!(names.add(&parts(b"/a/b/c/")).unwrap(), id);
        assert_eq!(names.add(&parts(b".")).unwrap(), ROOT);
        let directory = names.add(&parts(b"a/b")).unwrap();
        assert_eq!(names.child(directory, b"c"), Some(id));
        assert_eq!(names.child(directory, b"a"), None);
    }
}
