//! Which accesses through a bind mount are noted. The file server's are those of the guest's processes, so what the
//! options of the mount say of it holds for the mount that the file server sees, as on runc for the container's.

/// A change of how a mount notes accesses, in attributes of `mount_setattr(2)`. By default it stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccessTimes {
    /// To be set.
    pub set: u64,
    /// To be cleared before.
    pub clear: u64,
}

impl AccessTimes {
    /// By the options for the mount itself: if one asks for something, all is as they say.
    pub(super) fn of_mount(options: &[String]) -> Self {
        let said = Said::by(options, "");
        let asked = [said.never, said.always, said.relatively, said.no_directories];
        if !asked.contains(&Some(true)) {
            return Self::default();
        }
        let clear = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
        Self { set: said.attributes(), clear }
    }

    /// By those for the mounts below it as well: only what is spoken of changes.
    pub(super) fn of_all(options: &[String]) -> Self {
        let said = Said::by(options, "r");
        let of_files = [said.never, said.always, said.relatively].iter().any(Option::is_some);
        let files = if of_files { libc::MOUNT_ATTR__ATIME } else { 0 };
        let directories = said.no_directories.map_or(0, |_| libc::MOUNT_ATTR_NODIRATIME);
        Self { set: said.attributes(), clear: files | directories }
    }
}

/// The last word on each flag.
#[derive(Default)]
struct Said {
    never: Option<bool>,
    always: Option<bool>,
    relatively: Option<bool>,
    no_directories: Option<bool>,
}

impl Said {
    fn by(options: &[String], prefix: &str) -> Self {
        let mut said = Self::default();
        for option in options.iter().filter_map(|option| option.strip_prefix(prefix)) {
            let (flag, on) = match option {
                "noatime" => (&mut said.never, true),
                "atime" => (&mut said.never, false),
                "strictatime" => (&mut said.always, true),
                "nostrictatime" => (&mut said.always, false),
                "relatime" => (&mut said.relatively, true),
                "norelatime" => (&mut said.relatively, false),
                "nodiratime" => (&mut said.no_directories, true),
                "diratime" => (&mut said.no_directories, false),
                _ => continue,
            };
            *flag = Some(on);
        }
        said
    }

    /// As the kernel takes flags that are there together; relatime is the zero.
    fn attributes(&self) -> u64 {
        let files = match (self.always, self.never) {
            (Some(true), _) => libc::MOUNT_ATTR_STRICTATIME,
            (_, Some(true)) => libc::MOUNT_ATTR_NOATIME,
            _ => libc::MOUNT_ATTR_RELATIME,
        };
        let directories =
            if self.no_directories == Some(true) { libc::MOUNT_ATTR_NODIRATIME } else { 0 };
        files | directories
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::{
        MOUNT_ATTR__ATIME as MODE, MOUNT_ATTR_NOATIME as NEVER, MOUNT_ATTR_NODIRATIME as NO_DIRS,
        MOUNT_ATTR_STRICTATIME as ALWAYS,
    };

    fn said(options: &str) -> [(u64, u64); 2] {
        let options: Vec<String> = options.split(',').map(str::to_owned).collect();
        [AccessTimes::of_mount(&options), AccessTimes::of_all(&options)]
            .map(|times| (times.set, times.clear))
    }

    #[test]
    fn options_of_the_mount_are_all_or_nothing() {
        for (options, set) in [
            ("bind,noatime", NEVER),
            ("bind,relatime", 0),
            ("strictatime,noatime", ALWAYS),
            ("noatime,atime,nodiratime", NO_DIRS),
            ("nodiratime,noatime,ro", NEVER | NO_DIRS),
        ] {
            assert_eq!(said(options), [(set, MODE | NO_DIRS), (0, 0)], "{options}");
        }
        for options in ["rbind,ro,nosuid", "atime,diratime,norelatime", ""] {
            assert_eq!(said(options), [(0, 0); 2], "{options}");
        }
    }

    #[test]
    fn options_for_all_below_change_what_they_speak_of() {
        for (options, set, clear) in [
            ("rbind,rnoatime", NEVER, MODE),
            ("rbind,ratime", 0, MODE),
            ("rstrictatime", ALWAYS, MODE),
            ("rnostrictatime", 0, MODE),
            ("rrelatime", 0, MODE),
            ("rnorelatime", 0, MODE),
            ("rnodiratime", NO_DIRS, NO_DIRS),
            ("rnodiratime,rdiratime", 0, NO_DIRS),
            ("rnoatime,rnodiratime", NEVER | NO_DIRS, MODE | NO_DIRS),
        ] {
            assert_eq!(said(options), [(0, 0), (set, clear)], "{options}");
        }
    }
}
