//! 32-bit programs: they run, and a seccomp profile holds for them as on the host.

use crate::bundle::{Bundle, config};
use crate::command;
use crate::context::Context;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

crate::cases!(
    crate::Scope::Once;
    a_profile_holds_for_programs_of_32_bits;
    crate::Scope::AllOnce;
    a_program_of_32_bits_runs,
    it_runs_in_an_image_under_the_profile_that_this_gets,
);

/// `getppid` of i386.
const GETPPID: u32 = 64;

/// `getpgrp` of i386, which runc does not need itself. On `x86_64` that is the number of `semop`.
const GETPGRP: u32 = 65;

/// `socketcall(SYS_SOCKET, …)` of i386.
const SOCKETCALL: u32 = 102;

/// Where the program is in memory.
const BASE: u32 = 0x0804_8000;

/// Makes a static i386 program that makes a call with a first argument, and ends with the error as its status.
fn program(call: u32, argument: u32) -> Vec<u8> {
    let code = [
        &[0xbb][..], // mov ebx, argument
        &argument.to_le_bytes(),
        &[0xb8], // mov eax, call
        &call.to_le_bytes(),
        &[0xcd, 0x80],       // int 0x80
        &[0xf7, 0xd8],       // neg eax
        &[0x89, 0xc3],       // mov ebx, eax
        &[0xb8, 1, 0, 0, 0], // mov eax, exit
        &[0xcd, 0x80],       // int 0x80
    ]
    .concat();
    let (header, segment) = (52_u16, 32_u16);
    let size = u32::from(header + segment) + code.len() as u32;
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let halves =
        |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<_>>();
    [
        b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        halves(&[2, 3]), // an executable, for the 80386
        words(&[1, BASE + u32::from(header + segment), u32::from(header), 0, 0]),
        halves(&[header, segment, 1, 0, 0, 0]),
        words(&[1, 0, BASE, BASE, size, size, 5, 0x1000]), // one segment: all of the file, to be read and executed
        code,
    ]
    .concat()
}

/// How a program ends that makes a call under a profile.
fn status(bundle: &Bundle, call: u32, seccomp: Value) -> Result<i32> {
    let path = bundle.0.join("rootfs/program");
    fs::write(&path, program(call, 1))?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    let mut spec = config(&["/program"]);
    spec["linux"]["seccomp"] = seccomp;
    bundle.write_config(&spec)?;
    let (here, there) = (bundle.run()?.code, bundle.run_on_the_host("runc")?.code);
    if here != there {
        bail!("{here} in the guest, {there} with runc");
    }
    Ok(here)
}

fn a_program_of_32_bits_runs(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    match status(&bundle, GETPPID, Value::Null)? {
        0 => Ok(()),
        code => bail!("it ended with {code}"),
    }
}

fn a_profile_holds_for_programs_of_32_bits(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let profile = |architectures: &[&str]| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{"names": ["getpgrp", "socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]})
    };
    let both = || profile(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    let killed = 128 + 31;
    for (call, profile, expected) in [
        (GETPGRP, both(), 38),
        (SOCKETCALL, both(), 38),
        (GETPGRP, profile(&["SCMP_ARCH_X86_64"]), killed),
        (GETPGRP, profile(&[]), killed),
    ] {
        let code = status(&bundle, call, profile.clone())?;
        if code != expected {
            bail!("call {call} under {profile}: {code}, not {expected}");
        }
    }
    Ok(())
}

fn it_runs_in_an_image_under_the_profile_that_this_gets(context: &Context) -> Result<()> {
    let bundle = Bundle::new(context, &[])?;
    let path = bundle.0.join("program");
    // `mount`, which the profile refuses with EPERM, and a call that it leaves alone.
    for (call, expected) in [(GETPPID, 0), (21, 1)] {
        fs::write(&path, program(call, 1))?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        let volume = format!("{}:/program", path.display());
        let mut run = Command::new("/usr/bin/kata-like");
        run.args(["run", "--net=none", "--volume", &volume, lab::containerd::IMAGE_ARCHIVE]);
        command::output(run.arg("/program"))?.expect_code(expected)?;
    }
    Ok(())
}
