//! The test images: one layer of busybox, as an OCI archive.

use crate::containerd::{IMAGE, PAUSE_IMAGE};
use crate::root::run;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Raised when what is written below changes.
pub const RECIPE: &[u8] = b"image 3";

/// Commands of the image's busybox.
const APPLETS: &str = "[ arch ash awk base64 basename cat chmod chown cksum clear cmp comm cp cut date dd df \
    dirname dmesg du echo ed egrep env expr false fgrep find fold free getopt grep groups gunzip gzip head \
    hexdump hostname id ifconfig install ip kill killall less ln ls md5sum mkdir mkfifo mknod mktemp more mount \
    mv nc nice nl nohup nproc nslookup od paste pgrep ping pkill printenv printf ps pwd readlink realpath \
    renice reset rm rmdir route sed seq setsid sh sha1sum sha256sum shuf sleep sort split stat strings stty su \
    sync sysctl tac tail tar tee test time timeout top touch tr true truncate tty umount uname uniq unlink \
    uptime usleep vi watch wc wget which who whoami xargs xxd yes zcat";

/// What holds a pod's namespaces: it collects orphans, and ends when it is told to.
/// Nothing in it is called as what is looked for in pods.
const PAUSE: &str = "trap 'exit 0' TERM INT; while :; do busybox sleep 1000000 & wait $!; done";

/// Writes an archive that holds the images [`IMAGE`] and [`PAUSE_IMAGE`], made from a static busybox.
///
/// # Errors
/// When a file can't be read or written.
pub fn write_busybox(busybox: &Path, archive: &Path) -> Result<()> {
    let work = archive.with_extension("work");
    let rootfs = work.join("rootfs");
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
        std::fs::create_dir_all(rootfs.join(name))?;
    }
    std::fs::set_permissions(rootfs.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    std::fs::copy(busybox, rootfs.join("bin/busybox")).context("busybox")?;
    for applet in APPLETS.split_whitespace() {
        symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    let layer = work.join("layer.tar");
    tar(&rootfs, &layer)?;
    let layout = work.join("layout");
    let env = ["PATH=/bin"];
    let images = [
        (IMAGE, json!({ "Env": env, "Cmd": ["sh"] })),
        (PAUSE_IMAGE, json!({ "Env": env, "Entrypoint": ["sh", "-c", PAUSE] })),
    ];
    write_layout(&layout, &[layer], &images)?;
    tar(&layout, archive)?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

/// An OCI image layout of images of the same uncompressed layers, the lowest first; an image is its name and its
/// configuration.
///
/// # Errors
/// When a file can't be read or written.
pub fn write_layout(layout: &Path, layers: &[PathBuf], images: &[(&str, Value)]) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let layer =
        |tar| write_blob(&blobs, &std::fs::read(tar)?, "application/vnd.oci.image.layer.v1.tar");
    let layers = layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
    let digests: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
    let mut manifests = Vec::new();
    for (name, config) in images {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": digests },
        });
        let media_type = "application/vnd.oci.image.config.v1+json";
        let config = write_blob(&blobs, config.to_string().as_bytes(), media_type)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config,
            "layers": layers });
        let mut manifest = write_blob(&blobs, manifest.to_string().as_bytes(), media_type)?;
        manifest["annotations"] = json!({ "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": "lab" });
        manifests.push(manifest);
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Writes one blob and answers its descriptor.
pub(crate) fn write_blob(blobs: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let part: PathBuf = blobs.join("part");
    std::fs::write(&part, bytes)?;
    let output = Command::new("sha256sum").arg(&part).output().context("sha256sum")?;
    let text = String::from_utf8(output.stdout)?;
    let digest = text.split_whitespace().next().context("sha256sum said nothing")?;
    std::fs::rename(&part, blobs.join(digest))?;
    Ok(json!({
        "mediaType": media_type,
        "digest": format!("sha256:{digest}"),
        "size": bytes.len(),
    }))
}

/// A tar archive of a folder, the same for the same contents.
///
/// # Errors
/// `tar`'s.
pub fn tar(folder: &Path, archive: &Path) -> Result<()> {
    run(Command::new("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(folder)
        .arg("-cf")
        .arg(archive)
        .arg("."))
}
