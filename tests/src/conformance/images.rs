//! The images that the suite asks for.

use super::registry::{Image, Registry};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What they are made of.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Unpacked packages of Debian's.
    pub debian: &'a Path,
    /// A static busybox.
    pub busybox: &'a Path,
    /// A static program that says as whom it runs.
    pub effective_uid: &'a Path,
    /// The web servers' configurations.
    pub nginx: &'a str,
    pub apache: &'a str,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
    default-user:x:1000:1000:default-user:/home/default-user:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\n\
    group-defined-in-image:x:50000:default-user\nnobody:x:65534:\n";

/// The servers, and where each goes: the suite looks for the name that the second has outside of Debian.
const SERVERS: [(&str, &str); 6] = [
    ("usr/sbin/nginx", "usr/sbin/nginx"),
    ("usr/sbin/apache2", "usr/sbin/httpd"),
    ("usr/lib/apache2/modules/mod_mpm_event.so", "usr/lib/apache2/modules/mod_mpm_event.so"),
    ("usr/lib/apache2/modules/mod_authz_core.so", "usr/lib/apache2/modules/mod_authz_core.so"),
    ("usr/lib/apache2/modules/mod_dir.so", "usr/lib/apache2/modules/mod_dir.so"),
    // What ends a thread opens it: without it apache's children are killed, sooner or later.
    ("usr/lib/x86_64-linux-gnu/libgcc_s.so.1", "usr/lib/x86_64-linux-gnu/libgcc_s.so.1"),
];

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

/// Makes them in `work` and adds them to the registry.
pub fn write(sources: &Sources<'_>, work: &Path, registry: &Registry) -> Result<()> {
    let base = registry.add_layer(&base(sources, &work.join("base"))?)?;
    let servers = registry.add_layer(&servers(sources, &work.join("servers"))?)?;
    let (small, large) = ([base.clone()], [base, servers]);
    let add = |layers: &[Value], name: &str, tag: &str, mut config: Value| {
        config["Env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        if config["Cmd"].is_null() {
            config["Cmd"] = json!(["sh"]);
        }
        registry.add_image(&Image { name, tag, layers, config })
    };
    let command = |words: &[&str]| json!({ "Cmd": words });
    add(&small, "e2e-test-images/busybox", "1.29-2", json!({}))?;
    for (name, tag, words) in [
        ("e2e-test-images/nginx", "1.14-2", &["nginx", "-e", "stderr"][..]),
        ("e2e-test-images/httpd", "2.4.39-4", &["httpd", "-D", "FOREGROUND"]),
        ("e2e-test-images/nonewprivs", "1.3", &["effective-uid"]),
        (
            "k8s-staging-cri-tools/hostnet-nginx-amd64",
            "latest",
            &["nginx", "-e", "stderr", "-c", "/etc/nginx/hostnet.conf"],
        ),
    ] {
        add(&large, name, tag, command(words))?;
    }
    let staging = |name: &str| format!("k8s-staging-cri-tools/test-image-{name}");
    for (name, user) in [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:users"),
        ("user-username-group", "www-data:100"),
        ("predefined-group", "1000"),
    ] {
        add(&small, &staging(name), "latest", json!({ "User": user }))?;
    }
    // Each an image of its own, but for the three tags of one.
    for (name, tag) in [
        ("latest", "latest"),
        ("tag", "test"),
        ("tag", "all"),
        ("1", "latest"),
        ("2", "latest"),
        ("3", "latest"),
    ] {
        add(&small, &staging(name), tag, json!({ "Labels": { "test": format!("{name}:{tag}") } }))?;
    }
    for tag in ["1", "2", "3"] {
        add(&small, &staging("tags"), tag, json!({ "Labels": { "test": "tags" } }))?;
    }
    add(&small, "pause", "3.9", json!({ "Labels": { "test": "pause" } }))
}

/// Busybox with all its tools.
fn base(sources: &Sources<'_>, root: &Path) -> Result<PathBuf> {
    for name in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    symlink("../run", root.join("var/run"))?;
    fs::copy(sources.busybox, root.join("bin/busybox"))?;
    let list = Command::new(sources.busybox).arg("--list").output().context("busybox")?;
    for tool in String::from_utf8(list.stdout)?.lines().filter(|name| *name != "busybox") {
        // Files of their own: one that is masked doesn't take the others with it.
        fs::hard_link(root.join("bin/busybox"), root.join("bin").join(tool))?;
    }
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    Ok(root.to_owned())
}

/// The web servers with their libraries, and a program that may become root.
fn servers(sources: &Sources<'_>, root: &Path) -> Result<PathBuf> {
    let mut libraries = BTreeSet::new();
    for (from, to) in SERVERS {
        copy(&sources.debian.join(from), &root.join(to))?;
        libraries.extend(needed(sources.debian, from)?);
    }
    for library in libraries {
        let name = library.file_name().context("a library's name")?;
        copy(&library, &root.join(LIBRARIES).join(name))?;
    }
    copy(&sources.debian.join(LOADER), &root.join("lib64/ld-linux-x86-64.so.2"))?;
    for name in ["var/log/nginx", "var/lib/nginx", "srv", "etc/nginx", "etc/apache2"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::write(root.join("srv/index.html"), "<h1>Welcome</h1>\n")?;
    fs::write(root.join("etc/nginx/nginx.conf"), sources.nginx)?;
    let elsewhere = sources.nginx.replace("listen 80;", "listen 12003;");
    fs::write(root.join("etc/nginx/hostnet.conf"), elsewhere)?;
    fs::write(root.join("etc/apache2/apache2.conf"), sources.apache)?;
    let setuid = root.join("usr/bin/effective-uid");
    copy(sources.effective_uid, &setuid)?;
    fs::set_permissions(&setuid, PermissionsExt::from_mode(0o4755))?;
    Ok(root.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    to.parent().map(fs::create_dir_all).transpose()?;
    fs::copy(from, to).map(drop).with_context(|| from.display().to_string())
}

/// The libraries that a program of the unpacked packages is linked with, by their own loader.
fn needed(debian: &Path, program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new(debian.join(LOADER))
        .arg("--library-path")
        .arg(debian.join(LIBRARIES))
        .arg("--list")
        .arg(debian.join(program))
        .output()
        .context("the unpacked loader")?;
    let text = String::from_utf8(output.stdout)?;
    let paths = text.lines().filter_map(|line| line.split_once("=> ")?.1.split(' ').next());
    Ok(paths.map(PathBuf::from).filter(|path| path.starts_with(debian.join(LIBRARIES))).collect())
}
