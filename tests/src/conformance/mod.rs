//! Kubernetes' conformance suite for container runtimes, critest of cri-tools, and the images that it asks for.
//!
//! It runs in the lab, against containerd's CRI. The images have the names that it knows, and are made here of busybox
//! and of programs of Debian's; a registry in the lab serves them.

mod busybox;
pub mod differences;
mod images;
mod registry;
pub mod report;

use crate::cache::{self, Step};
use crate::go::Programs;
use crate::root::{SUITE, mirror, mmdebstrap, packages, run};
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where all of it is in the lab.
pub const DIR: &str = "/lab/conformance";

/// Runs the suite: see the file itself.
pub const RUN: &str = "/lab/conformance/run";

/// The suite.
const CRITEST: Programs = Programs {
    name: "critest",
    step: ("conformance: critest", "2 minutes"),
    go_mod: "module lab/critest\ngo 1.26.6\nrequire sigs.k8s.io/cri-tools v1.37.0\n",
    build: &["test", "-c"],
    packages: &["sigs.k8s.io/cri-tools/cmd/critest"],
    flags: "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=v1.37.0",
    main: None,
};

/// What the images' programs, and the registry, are from.
const PACKAGES: &str = "nginx\napache2-bin\ndocker-registry\n";

const NGINX: &str = include_str!("../../lab/conformance/nginx.conf");
const APACHE: &str = include_str!("../../lab/conformance/apache2.conf");
const EFFECTIVE_UID: &str = include_str!("../../lab/conformance/effective-uid.c");

/// Files beside the registry and the programs.
const FILES: [(&str, &str); 2] = [
    ("run", include_str!("../../lab/conformance/run")),
    ("registry.yml", include_str!("../../lab/conformance/registry.yml")),
];

/// A folder with all of it, for [`DIR`], made if need be.
///
/// # Errors
/// When there is no Go, a package can't be had, or something doesn't build.
pub fn prepare() -> Result<PathBuf> {
    let critest = CRITEST.key().context("the conformance suite is built with Go: install it")?;
    let sources = [
        PACKAGES,
        SUITE,
        NGINX,
        APACHE,
        EFFECTIVE_UID,
        FILES[0].1,
        FILES[1].1,
        include_str!("mod.rs"),
        include_str!("images.rs"),
        include_str!("busybox.rs"),
        include_str!("registry.rs"),
        &critest,
    ];
    let inputs = sources.map(str::as_bytes);
    let dir = cache::dir()?.join(format!("conformance-{}", cache::key(&inputs)));
    cache::once(&dir, |part| make(part, &critest))?;
    Ok(dir)
}

fn make(part: &Path, critest: &str) -> Result<()> {
    let critest = CRITEST.prepare(critest)?;
    let busybox = busybox::prepare()?;
    let step = Step::begin("conformance: images", "half a minute");
    let work = part.join("work");
    std::fs::create_dir(&work)?;
    let debian = work.join("debian");
    let include = format!("--include={}", packages(PACKAGES));
    // Unpacked is enough: single programs are taken out.
    run(mmdebstrap().args(["--variant=extract", &include, SUITE]).arg(&debian).arg(mirror()?))?;
    let effective_uid = work.join("effective-uid");
    std::fs::write(work.join("effective-uid.c"), EFFECTIVE_UID)?;
    run(Command::new("cc")
        .args(["-static", "-Os", "-o"])
        .args([&effective_uid, &work.join("effective-uid.c")]))?;
    let sources = images::Sources {
        debian: &debian,
        busybox: &busybox,
        effective_uid: &effective_uid,
        nginx: NGINX,
        apache: APACHE,
    };
    images::write(&sources, &work, &registry::Registry::at(&part.join("registry")))?;
    registry::write_mirrors(&part.join("certs.d"))?;
    let bin = part.join("bin");
    std::fs::create_dir(&bin)?;
    std::fs::copy(critest.join("critest.test"), bin.join("critest.test"))?;
    std::fs::copy(debian.join("usr/bin/docker-registry"), bin.join("docker-registry"))?;
    for (name, text) in FILES {
        std::fs::write(part.join(name), text)?;
        std::fs::set_permissions(part.join(name), PermissionsExt::from_mode(0o755))?;
    }
    cache::remove(&work)?;
    step.end();
    Ok(())
}
