//! Programs of others, built from their Go modules where Go is at hand; the tests use them, `make run` doesn't.

use crate::cache::{self, Step};
use crate::root::run;
use anyhow::Result;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Some programs, and what they are built from.
#[derive(Debug)]
pub struct Programs {
    /// Begins the name of their folder in the cache.
    pub name: &'static str,
    /// What is told of the building, and how long it usually takes.
    pub step: (&'static str, &'static str),
    /// The throw-away module that requires theirs.
    pub go_mod: &'static str,
    /// What Go is to do with their packages: build programs, or tests.
    pub build: &'static [&'static str],
    /// Their packages.
    pub packages: &'static [&'static str],
    /// What is passed on to the linker.
    pub flags: &'static str,
    /// A program of ours in the throw-away module; it needs no name of a package but `.`.
    pub main: Option<&'static str>,
}

impl Programs {
    /// What they are built from, for the keys of what holds them; none without Go.
    pub fn key(&self) -> Option<String> {
        let mut go = Command::new("go");
        go.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
        let has_go = go.status().is_ok_and(|status| status.success());
        let inputs = [self.go_mod.as_bytes(), self.flags.as_bytes()];
        let inputs = inputs.into_iter().chain(self.packages.iter().map(|p| p.as_bytes()));
        let inputs = inputs.chain(self.main.map(str::as_bytes));
        has_go.then(|| cache::key(&inputs.collect::<Vec<_>>()))
    }

    /// A folder with the programs, built if need be.
    ///
    /// # Errors
    /// When a module can't be had or doesn't build.
    pub fn prepare(&self, key: &str) -> Result<PathBuf> {
        let dir = cache::dir()?.join(format!("{}-{key}", self.name));
        cache::once(&dir, |part| {
            let step = Step::begin(self.step.0, self.step.1);
            let module = part.join("module");
            std::fs::create_dir_all(&module)?;
            std::fs::write(module.join("go.mod"), self.go_mod)?;
            self.main.map(|text| std::fs::write(module.join("main.go"), text)).transpose()?;
            run(Command::new("go")
                .args(self.build)
                .args(["-mod=mod", "-trimpath", "-ldflags", self.flags])
                .args(["-o", "../bin/"])
                .args(self.packages)
                .env("CGO_ENABLED", "0")
                .current_dir(&module))?;
            cache::remove(&module)?;
            step.end();
            Ok(())
        })?;
        Ok(dir.join("bin"))
    }
}

/// The newest containerd, with ctr and the runc shim.
pub const NEWEST_CONTAINERD: Programs = Programs {
    name: "containerd-v2.4.2",
    step: ("lab: containerd 2.4", "1 to 4 minutes"),
    go_mod: "module lab/containerd\ngo 1.26.6\nrequire github.com/containerd/containerd/v2 v2.4.2\n",
    build: &["build"],
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/ctr",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    ],
    flags: "-s -w -X github.com/containerd/containerd/v2/version.Version=2.4.2",
    main: None,
};

/// A client of the CRI, and what gives pods a network.
pub const FOR_PODS: Programs = Programs {
    name: "pods",
    step: ("lab: crictl and CNI plugins", "1 minute"),
    go_mod: "module lab/pods\ngo 1.26.6\nrequire (\nsigs.k8s.io/cri-tools v1.37.0\n\
             github.com/containernetworking/plugins v1.9.1\n)\n",
    build: &["build"],
    packages: &[
        "sigs.k8s.io/cri-tools/cmd/crictl",
        "github.com/containernetworking/plugins/plugins/ipam/host-local",
        "github.com/containernetworking/plugins/plugins/main/bridge",
        "github.com/containernetworking/plugins/plugins/main/loopback",
        "github.com/containernetworking/plugins/plugins/meta/portmap",
    ],
    flags: "-s -w",
    main: None,
};
