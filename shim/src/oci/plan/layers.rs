//! A root file system of image layers, as the mounts of containerd's EROFS snapshotter describe it (containerd 2.4).
//!
//! | snapshot | mounts |
//! |---|---|
//! | of a container, with `default_size` | `ext4` of `rwlayer.img`, `erofs` of each `layer.erofs`, `format/mkdir/overlay` of them all |
//! | of a container, without | `erofs` of each layer, `format/mkdir/overlay` of them and directories of the host |
//! | view of several layers | `erofs` of each layer, `format/mkdir/overlay` of them |
//! | view of one layer | `erofs`, alone: a root on a disk like any other |
//!
//! The overlay names the mounts before it by templates: `{{ mount N }}`, and `{{ overlay FROM TO }}` for several. A shim that
//! says of itself that it performs `erofs`, `format` and `mkdir` is given them so; containerd has made the ext4 by then
//! (`mkfs`). Otherwise it mounts the layers on the host, and the shim gets an overlay of what is mounted there.

use super::RootfsMount;
use crate::error::{Error, Result};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Image layers, and what is above them.
#[derive(Debug, PartialEq, Eq)]
pub struct Layers {
    /// The EROFS images, the top one first, each with options of its mount's as in fstab.
    pub images: Vec<(PathBuf, Vec<String>)>,
    /// Where it is written.
    pub upper: Upper,
    /// More options of the overlay.
    pub options: Vec<String>,
}

/// Where what is written above layers goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Upper {
    /// Nowhere: a view.
    None,
    /// An image with ext4.
    Image(PathBuf),
    /// A directory of the host's.
    Directory(PathBuf),
}

impl Layers {
    /// Those that a snapshotter's mounts describe; none: it is another's, or of another kind.
    ///
    /// # Errors
    /// [`Error::Unimplemented`] for what of them the guest can't have, [`Error::InvalidArgument`] for what is not of a form
    /// that is known.
    pub fn of(rootfs: &[RootfsMount]) -> Result<Option<Self>> {
        let Some((overlay, parts)) = rootfs.split_last() else { return Ok(None) };
        if !overlay.fstype.starts_with("format/") {
            return Ok(None);
        }
        let unknown = || {
            let said: Vec<_> =
                rootfs.iter().map(|m| format!("{} {:?}", m.fstype, m.options)).collect();
            let said = said.join(", ");
            Error::InvalidArgument(format!(
                "root file system: mounts of a form that is not known: {said}"
            ))
        };
        if overlay.fstype != "format/mkdir/overlay" {
            return Err(unknown());
        }
        let mut layers = Self { images: Vec::new(), upper: Upper::None, options: Vec::new() };
        for option in &overlay.options {
            match option.split_once('=') {
                Some(("uidmap" | "gidmap", _)) => return Err(unmapped()),
                Some(("lowerdir", below)) => {
                    for index in mounts(below).ok_or_else(unknown)? {
                        let part = parts.get(index).filter(|part| part.fstype == "erofs");
                        layers.images.push(image(part.ok_or_else(unknown)?)?);
                    }
                }
                Some(("upperdir", above)) if above.starts_with('/') => {
                    layers.upper = Upper::Directory(above.into());
                }
                Some(("upperdir", above)) => {
                    let index = above.strip_suffix("/upper").and_then(mounts);
                    let part = index.and_then(|index| parts.get(*index.start()));
                    let part = part.filter(|part| part.fstype == "ext4").ok_or_else(unknown)?;
                    layers.upper = Upper::Image(PathBuf::from(&part.source));
                }
                // The guest's agent makes both.
                Some(("workdir" | "X-containerd.mkdir.path", _)) => {}
                _ if option == "ro" || option == "rw" => {}
                _ => layers.options.push(option.clone()),
            }
        }
        if layers.images.is_empty() {
            return Err(unknown());
        }
        Ok(Some(layers))
    }
}

/// Owners of an overlay are mapped by mounts below it, which would be the guest's.
fn unmapped() -> Error {
    let text = "root file system: layers of the EROFS snapshotter for a container with users of its own (uidmap, gidmap): \
        use another snapshotter for it, as overlayfs";
    Error::Unimplemented(text.into())
}

fn image(mount: &RootfsMount) -> Result<(PathBuf, Vec<String>)> {
    let mut options = Vec::new();
    for option in &mount.options {
        let refused = match option.split_once('=') {
            Some(("X-containerd.dmverity", _)) => {
                "is checked by dm-verity, which the guest does not do: set dmverity_mode \
                = \"off\" for the snapshotter to have it read as it is"
            }
            Some(("device", _)) => "is spread over several devices",
            _ if option == "loop" => continue,
            _ => {
                options.push(option.clone());
                continue;
            }
        };
        let text = format!("root file system: the layer {} {refused}", mount.source);
        return Err(Error::Unimplemented(text));
    }
    Ok((PathBuf::from(&mount.source), options))
}

/// Which mounts a template stands for: `{{ mount 1 }}`, `{{ overlay 1 3 }}`.
fn mounts(template: &str) -> Option<RangeInclusive<usize>> {
    let words = template.strip_prefix("{{")?.strip_suffix("}}")?;
    let number = |word: &str| word.parse::<usize>().ok();
    match words.split_whitespace().collect::<Vec<_>>()[..] {
        ["mount", one] => number(one).map(|one| one..=one),
        ["overlay", from, to] => {
            Some(number(from)?..=number(to)?).filter(|range| !range.is_empty())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: &str, source: &str, options: &[&str]) -> RootfsMount {
        RootfsMount {
            fstype: fstype.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Default::default()
        }
    }

    /// As the snapshotter has it with `default_size`; `change` comes before containerd's own options.
    fn of_block_mode(change: &[&str]) -> Vec<RootfsMount> {
        let options = [
            change,
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ overlay 1 2 }}",
            ],
        ];
        vec![
            mount("ext4", "/s/3/rwlayer.img", &["rw", "loop"]),
            mount("erofs", "/s/2/layer.erofs", &["ro", "loop"]),
            mount("erofs", "/s/1/layer.erofs", &["ro", "loop"]),
            mount("format/mkdir/overlay", "overlay", &options.concat()),
        ]
    }

    fn images(paths: &[&str]) -> Vec<(PathBuf, Vec<String>)> {
        paths.iter().map(|path| (path.into(), vec!["ro".to_owned()])).collect()
    }

    #[test]
    fn each_form_of_the_snapshotters_is_understood() {
        let layers = Layers::of(&of_block_mode(&["index=off"])).unwrap().unwrap();
        assert_eq!(layers.images, images(&["/s/2/layer.erofs", "/s/1/layer.erofs"]));
        assert_eq!(layers.upper, Upper::Image("/s/3/rwlayer.img".into()));
        assert_eq!(layers.options, ["index=off"]);
        let of_host = ["workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir={{ mount 0 }}"];
        let one = mount("erofs", "/s/1/layer.erofs", &["ro", "loop"]);
        let layers = Layers::of(&[one.clone(), mount("format/mkdir/overlay", "overlay", &of_host)]);
        let layers = layers.unwrap().unwrap();
        assert_eq!(layers.images, images(&["/s/1/layer.erofs"]));
        assert_eq!(layers.upper, Upper::Directory("/s/3/fs".into()));
        let mut view = of_block_mode(&[]).split_off(1);
        view[2].options = vec!["lowerdir={{ overlay 0 1 }}".into()];
        assert_eq!(Layers::of(&view).unwrap().unwrap().upper, Upper::None);
    }

    #[test]
    fn other_snapshotters_roots_are_left_alone() {
        let overlay = mount("overlay", "overlay", &["lowerdir=/a:/b", "upperdir=/c", "workdir=/d"]);
        let one = mount("erofs", "/s/1/layer.erofs", &["ro", "loop"]);
        for rootfs in [vec![], vec![overlay], vec![one]] {
            assert_eq!(Layers::of(&rootfs).unwrap(), None);
        }
    }

    #[test]
    fn what_the_guest_can_not_have_is_named() {
        let refused = |rootfs: &[RootfsMount]| Layers::of(rootfs).unwrap_err();
        let error = refused(&of_block_mode(&["uidmap=0:65536:65536"]));
        assert!(matches!(&error, Error::Unimplemented(text) if text.contains("uidmap")), "{error}");
        for (option, words) in [
            ("X-containerd.dmverity=/s/2/layer.erofs.dmverity", "dmverity_mode"),
            ("device=/s/1/layer.erofs", "several devices"),
        ] {
            let mut rootfs = of_block_mode(&[]);
            rootfs[1].options.push(option.into());
            let error = refused(&rootfs).to_string();
            assert!(error.contains(words) && error.contains("/s/2/layer.erofs"), "{error}");
        }
    }

    #[test]
    fn templates_that_lead_nowhere_are_refused() {
        for (option, of) in [
            ("lowerdir={{ overlay 1 3 }}", 4),
            ("lowerdir={{ overlay 2 1 }}", 4),
            ("lowerdir={{ overlay 0 1 }}", 4),
            ("lowerdir={{ mount 99999999999999999999 }}", 4),
            ("lowerdir={{ mount -1 }}", 4),
            ("lowerdir=/etc", 4),
            ("lowerdir=", 4),
            ("upperdir={{ mount 1 }}/upper", 3),
            ("upperdir={{ mount 7 }}/upper", 3),
            ("upperdir={{ mount 0 }}/../..", 3),
        ] {
            let mut rootfs = of_block_mode(&[]);
            rootfs[3].options[of] = option.into();
            let error = Layers::of(&rootfs).unwrap_err().to_string();
            assert!(error.contains("not known"), "{option}: {error}");
        }
        let mut rootfs = of_block_mode(&[]);
        rootfs[3].fstype = "format/bind".into();
        assert!(Layers::of(&rootfs).is_err());
        assert!(Layers::of(&rootfs[3..]).is_err());
    }
}
