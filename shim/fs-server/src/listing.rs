//! What the guest is told of a directory's names besides the names.
//!
//! It always asks for all (READDIRPLUS, FUSE's protocol 7.21), and all is a look-up of each name here, with an open file and
//! a number that is kept. Who only wants names and their kinds, as `find`, a shell or a completion, would wait for that in
//! vain. So a file is left out (its node is 0: "not told") where those who list directories do not look at their files
//! afterwards, which is found out as it goes; where they do, as `tar` and `ls -l`, the next directories come with all, and
//! every [`PROBE`]th without, to see whether that is still so. Directories are told in either way: who lists one goes on
//! with them. Below bind mounts nothing is told, for there the guest may keep nothing and would ask again.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec;
use virtiofsd::filesystem::{DirEntry, DirectoryIterator};

/// Bytes that take an entry of a directory with the longest name.
pub const ONE_NAME: u32 = 512;

/// How many files of a directory are looked at before that is more than chance.
const ENOUGH: u32 = 2;

/// Of so many directories that come with all, one does not.
const PROBE: u32 = 16;

/// What an answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Everything.
    All,
    /// What is a directory.
    Directories,
    /// Names and kinds only.
    Names,
}

impl Told {
    fn leaves_out(self, kind: u8) -> bool {
        match self {
            Self::All => false,
            // What the host's file system doesn't know may be one.
            Self::Directories => !matches!(kind, libc::DT_DIR | libc::DT_UNKNOWN),
            Self::Names => true,
        }
    }
}

thread_local! {
    /// Whether the name that this thread was given last is left out; virtiofsd looks each up right after.
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// Whether this look-up is of a name in a listing that is left out; the next is not.
pub fn is_left_out() -> bool {
    LEFT_OUT.take()
}

/// The names of a directory, as they are handed out.
pub struct Names {
    rest: vec::IntoIter<Name>,
    /// The one that was handed out last.
    current: Option<Name>,
    told: Told,
}

struct Name {
    inode: u64,
    offset: u64,
    kind: u32,
    text: CString,
}

impl Name {
    /// What it takes of an answer that tells everything, bytes: `fuse_direntplus`, a multiple of 8.
    fn length(&self) -> usize {
        const ATTRIBUTES_AND_ENTRY: usize = 128 + 24;
        ATTRIBUTES_AND_ENTRY + self.text.as_bytes().len().next_multiple_of(8)
    }
}

impl Names {
    /// Which tell everything.
    pub fn new(mut names: impl DirectoryIterator) -> Self {
        let mut all = Vec::new();
        while let Some(DirEntry { ino: inode, offset, type_: kind, name }) = names.next() {
            all.push(Name { inode, offset, kind, text: name.to_owned() });
        }
        Self { rest: all.into_iter(), current: None, told: Told::All }
    }

    pub fn telling(mut self, told: Told) -> Self {
        self.told = told;
        self
    }

    /// Where the directory goes on after these, if there are any.
    pub fn end(&self) -> Option<u64> {
        self.rest.as_slice().last().map(|name| name.offset)
    }

    /// With a name of no length as the last, by which the guest knows that there are no more after `end`. As they were, if
    /// all that would not fit into an answer of so many bytes.
    pub fn ended(mut self, end: u64, room: usize) -> Result<Self, Self> {
        let last = Name { inode: 0, offset: end, kind: 0, text: CString::default() };
        let names = self.rest.as_slice().iter().chain([&last]);
        if names.map(Name::length).sum::<usize>() > room {
            return Err(self);
        }
        let names: Vec<_> = std::mem::take(&mut self.rest).chain([last]).collect();
        self.rest = names.into_iter();
        Ok(self)
    }
}

impl DirectoryIterator for Names {
    fn next(&mut self) -> Option<DirEntry<'_>> {
        let entry = self.current.insert(self.rest.next()?);
        let name: &CStr = &entry.text;
        // The directory itself and its parent are not looked up; nothing is, by no name.
        let left_out = match name.to_bytes() {
            b"." | b".." => false,
            b"" => true,
            _ => self.told.leaves_out(entry.kind as u8),
        };
        LEFT_OUT.set(left_out);
        Some(DirEntry { ino: entry.inode, offset: entry.offset, type_: entry.kind, name })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        LEFT_OUT.set(false);
    }
}

/// What those who list directories look at.
#[derive(Default)]
pub struct Habit(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// Whether they look at files.
    files: bool,
    /// Directories listed.
    listings: u32,
    /// The last one, how many files of it were left out, and how many of its files were looked at.
    directory: u64,
    left_out: u32,
    looked_at: u32,
}

impl Habit {
    /// What is told of this directory, whose listing begins here, or goes on.
    pub fn lists(&self, directory: u64, begins: bool) -> Told {
        let mut seen = self.seen();
        if begins {
            if seen.left_out >= ENOUGH && seen.looked_at < ENOUGH {
                seen.files = false;
            }
            seen.listings = seen.listings.wrapping_add(1);
            (seen.directory, seen.left_out, seen.looked_at) = (directory, 0, 0);
        }
        let probe = begins && seen.listings.is_multiple_of(PROBE);
        if seen.files && !probe { Told::All } else { Told::Directories }
    }

    /// A file of this directory was left out.
    pub fn left_out(&self, directory: u64) {
        let mut seen = self.seen();
        if seen.directory == directory {
            seen.left_out = seen.left_out.saturating_add(1);
        }
    }

    /// A file of this directory is looked at.
    pub fn looked_at(&self, directory: u64) {
        let mut seen = self.seen();
        if seen.directory == directory {
            seen.looked_at = seen.looked_at.saturating_add(1);
            seen.files |= seen.looked_at >= ENOUGH;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing but numbers: they are whole at all times.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists a directory of four files and says whether they came with all; then looks at so many of them.
    fn list(habit: &Habit, directory: u64, looks: u32) -> bool {
        let told = habit.lists(directory, true);
        for _ in 0..4 {
            if told.leaves_out(libc::DT_REG) {
                habit.left_out(directory);
            }
        }
        // What the guest was told it need not look up.
        for _ in 0..if told == Told::All { 0 } else { looks } {
            habit.looked_at(directory);
        }
        told == Told::All
    }

    #[test]
    fn files_are_told_while_they_are_looked_at() {
        let habit = Habit::default();
        assert!((1..100).all(|directory| !list(&habit, directory, 0)), "nobody wants to know");
        assert!((100..110).all(|directory| !list(&habit, directory, 1)), "one is chance");
        assert!(!list(&habit, 110, 4));
        let all = (200..360).filter(|directory| list(&habit, *directory, 4)).count();
        assert_eq!(all, 150, "all but every sixteenth");
        let all = (400..500).filter(|directory| list(&habit, *directory, 0)).count();
        assert!(all < PROBE as usize, "{all} directories came with what nobody wanted");
    }

    #[test]
    fn a_probe_that_shows_no_file_proves_nothing() {
        let habit = Habit::default();
        list(&habit, 1, 4);
        for directory in 2..100 {
            habit.lists(directory, true);
        }
        assert_eq!(habit.lists(100, true), Told::All);
    }

    #[test]
    fn the_rest_of_a_long_directory_comes_as_is_wanted_by_then() {
        let habit = Habit::default();
        assert_eq!(habit.lists(1, true), Told::Directories);
        assert_eq!(habit.lists(1, false), Told::Directories);
        habit.looked_at(1);
        habit.looked_at(7);
        assert_eq!(habit.lists(1, false), Told::Directories, "another directory's don't count");
        habit.looked_at(1);
        assert_eq!(habit.lists(1, false), Told::All);
    }
}
