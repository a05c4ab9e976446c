use super::*;

fn profile(json: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

/// Runs `body` in a thread under the profile.
fn under<T: Send>(json: serde_json::Value, body: impl FnOnce() -> T + Send) -> T {
    let programs = compile(&profile(json)).unwrap().filters;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: prctl with these arguments touches no memory.
                unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                for program in &programs {
                    install(program).unwrap();
                }
                body()
            })
            .join()
            .unwrap()
    })
}

fn errno_of(number: i64, argument: i64) -> i32 {
    // SAFETY: the calls below take plain numbers and touch no memory of ours.
    match unsafe { libc::syscall(number, argument, 0, 0, 0, 0, 0) } {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

#[test]
fn a_deny_list_denies_and_lets_the_rest_through() {
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["getppid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }]
    });
    under(json, || {
        assert_eq!(errno_of(libc::SYS_getppid, 0), 38);
        assert_eq!(errno_of(libc::SYS_getpid, 0), 0);
    });
}

#[test]
fn an_allow_list_with_a_second_error_answers_three_ways() {
    let all: Vec<String> = [
        "getpid",
        "futex",
        "munmap",
        "mmap",
        "mprotect",
        "madvise",
        "exit",
        "rt_sigprocmask",
        "sigaltstack",
        "write",
        "seccomp",
        "rseq",
        "set_robust_list",
    ]
    .map(String::from)
    .into();
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "syscalls": [
            { "names": all, "action": "SCMP_ACT_ALLOW" },
            { "names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
        ]
    });
    let answers = under(json, || {
        [libc::SYS_getpid, libc::SYS_getuid, libc::SYS_getppid].map(|call| errno_of(call, 0))
    });
    assert_eq!(answers, [0, 38, libc::EPERM]);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let eq = |value: u64| serde_json::json!({ "index": 0, "value": value, "op": "SCMP_CMP_EQ" });
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                       "args": [eq(0), eq(1)] }]
    });
    under(json, || {
        assert_eq!(errno_of(libc::SYS_getpgid, 0), 7);
        assert_eq!(errno_of(libc::SYS_getpgid, 1), 7);
        assert_ne!(errno_of(libc::SYS_getpgid, 2), 7);
    });
}

#[test]
fn a_masked_condition_takes_the_mask_first() {
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                       "args": [{ "index": 0, "value": 0xf0, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ" }] }]
    });
    under(json, || {
        assert_eq!(errno_of(libc::SYS_personality, 0x11), 7);
        assert_ne!(errno_of(libc::SYS_personality, 0xffff_ffff), 7);
    });
}

#[test]
fn an_unconditional_rule_wins_over_a_conditional_one_in_any_order() {
    let always =
        serde_json::json!({ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7 });
    let sometimes = serde_json::json!({ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
        "args": [{ "index": 0, "value": 99, "op": "SCMP_CMP_EQ" }] });
    for rules in [[always.clone(), sometimes.clone()], [sometimes, always]] {
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
        under(json, || assert_eq!(errno_of(libc::SYS_getpgid, 0), 7));
    }
}

/// 0 when the child under the profile got `errno` from `call`; the signal that ended it otherwise.
fn in_a_child(json: serde_json::Value, call: i64, argument: i64, errno: i32) -> i32 {
    let filters = compile(&profile(json)).unwrap().filters;
    // SAFETY: the child makes system calls only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: neither call touches memory of ours.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let installed = filters.iter().all(|filter| install(filter).is_ok());
        let got = errno_of(call, argument);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(if installed && got == errno { 0 } else { 100 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

#[test]
fn each_action_does_what_it_says() {
    let rule = |action: &str| {
        serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["getppid"], "action": action, "errnoRet": 7 }] })
    };
    for (action, expected) in [
        ("SCMP_ACT_KILL", libc::SIGSYS),
        ("SCMP_ACT_KILL_THREAD", libc::SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", libc::SIGSYS),
        ("SCMP_ACT_TRAP", libc::SIGSYS),
    ] {
        assert_eq!(in_a_child(rule(action), libc::SYS_getppid, 0, 0), expected, "{action}");
    }
    // Without a tracer SCMP_ACT_TRACE is ENOSYS.
    for (action, errno) in [
        ("SCMP_ACT_ERRNO", 7),
        ("SCMP_ACT_TRACE", libc::ENOSYS),
        ("SCMP_ACT_LOG", 0),
        ("SCMP_ACT_ALLOW", 0),
    ] {
        assert_eq!(in_a_child(rule(action), libc::SYS_getppid, 0, errno), 0, "{action}");
    }
}

#[test]
fn every_comparison_compares() {
    for (operator, matching, other) in [
        ("SCMP_CMP_NE", [4, 6], 5),
        ("SCMP_CMP_LT", [0, 4], 5),
        ("SCMP_CMP_LE", [4, 5], 6),
        ("SCMP_CMP_EQ", [5, 5], 6),
        ("SCMP_CMP_GE", [5, 6], 4),
        ("SCMP_CMP_GT", [6, 1 << 40], 5),
    ] {
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99,
                           "args": [{ "index": 0, "value": 5, "op": operator }] }] });
        under(json, || {
            for argument in matching {
                assert_eq!(errno_of(libc::SYS_getpgid, argument), 99, "{operator} {argument}");
            }
            assert_ne!(errno_of(libc::SYS_getpgid, other), 99, "{operator} {other}");
        });
    }
}

#[test]
fn calls_newer_than_the_profile_are_as_if_not_there() {
    let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["exit_group", "openat2"], "action": "SCMP_ACT_ALLOW" }] });
    let newer = libc::SYS_faccessat2;
    assert_eq!(in_a_child(json.clone(), newer, 0, libc::ENOSYS), 0);
    assert_eq!(in_a_child(json, libc::SYS_getppid, 0, libc::EPERM), 0);
}

#[test]
fn a_profile_that_refuses_nothing_is_a_filter_too() {
    let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    assert_eq!(in_a_child(json, libc::SYS_getppid, 0, 0), 0);
    let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    assert_eq!(compile(&profile(json)).unwrap().filters.len(), 1);
}

#[test]
fn flags_are_kept_and_the_default_is_runcs() {
    let with = |flags: serde_json::Value| {
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_LOG", "flags": flags });
        compile(&profile(json)).unwrap().filters[0].flags
    };
    assert_eq!(with(serde_json::Value::Null), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    assert_eq!(with(serde_json::json!([])), 0);
    let all = ["LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"]
        .map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}"));
    let expected = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    assert_eq!(with(serde_json::json!(all)), expected);
}

#[test]
fn a_listener_and_a_seventh_argument_are_refused() {
    let notify = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" }] });
    assert!(matches!(compile(&profile(notify)), Err(UnsupportedFilter::Notify)));
    let seventh = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_KILL",
                       "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }] });
    assert!(compile(&profile(seventh)).is_err());
}

/// What the kernel would make of a call: the strictest answer of all filters.
fn answer(filters: &[Filter], kind: Kind, number: i64, arguments: [u64; 2]) -> u32 {
    let strictness = |answer: &u32| match answer & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_KILL_PROCESS => 0,
        libc::SECCOMP_RET_KILL_THREAD => 1,
        other => other,
    };
    let answers = filters.iter().map(|filter| run(&filter.program, kind, number, arguments));
    answers.min_by_key(strictness).unwrap()
}

/// One program, as the kernel runs it on `struct seccomp_data`.
fn run(program: &BpfProgram, kind: Kind, number: i64, arguments: [u64; 2]) -> u32 {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (number as u32, kind.audit());
    for (index, argument) in arguments.iter().enumerate() {
        (data[4 + 2 * index], data[5 + 2 * index]) = (*argument as u32, (argument >> 32) as u32);
    }
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

#[test]
fn each_kind_of_program_is_judged_by_its_own_numbers() {
    let rules = |architectures: &[&str]| {
        profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{ "names": ["getppid", "socket", "shmget"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7 }],
        }))
    };
    let both = compile(&rules(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])).unwrap().filters;
    // getppid is 110 and 64, which are iopl and semget for the other kind.
    let long = |number| answer(&both, Kind::X86_64, number, [0, 0]);
    assert_eq!([110, 64].map(long), [errno(7), ALLOW]);
    let short = |number, first| answer(&both, Kind::I386, number, [first, 0]);
    assert_eq!([64, 110, 359].map(|number| short(number, 0)), [errno(7), ALLOW, errno(7)]);
    // socketcall: socket and bind; ipc: shmget of each version, and shmat.
    assert_eq!([1, 2].map(|which| short(102, which)), [errno(7), ALLOW]);
    assert_eq!([23, 0x1_0017, 21].map(|which| short(117, which)), [errno(7), errno(7), ALLOW]);
    for architectures in [&["SCMP_ARCH_X86_64"][..], &[]] {
        let long = compile(&rules(architectures)).unwrap().filters;
        for number in [64, 20, 4] {
            assert_eq!(answer(&long, Kind::I386, number, [0, 0]), KILL);
        }
        assert_eq!(answer(&long, Kind::X86_64, 110, [0, 0]), errno(7));
    }
}

#[test]
fn what_no_rule_names_is_refused_to_both_kinds_and_newer_calls_are_not_there() {
    let compiled = compile(&profile(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            { "names": ["read", "arm_fadvise64_64", "nonsense"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 0xffff_ffff_u32, "op": "SCMP_CMP_EQ" }] },
            { "names": ["faccessat2"], "action": "SCMP_ACT_ALLOW" },
        ],
    })))
    .unwrap();
    assert_eq!(compiled.unknown, ["arm_fadvise64_64", "nonsense"]);
    for (kind, read, write, personality) in [(Kind::X86_64, 0, 1, 135), (Kind::I386, 3, 4, 136)] {
        let answer = |number, first| answer(&compiled.filters, kind, number, [first, 0]);
        assert_eq!([read, write, 440].map(|n| answer(n, 0)), [ALLOW, errno(1), errno(38)]);
        assert_eq!([0xffff_ffff, 8].map(|domain| answer(personality, domain)), [ALLOW, errno(1)]);
    }
    // A register's upper half is not an i386 program's.
    let high = 1 << 32 | 0xffff_ffff;
    assert_eq!(answer(&compiled.filters, Kind::I386, 136, [high, 0]), ALLOW);
    assert_eq!(answer(&compiled.filters, Kind::X86_64, 135, [high, 0]), errno(1));
}

/// Each program is one that the kernel takes, whatever of all calls a profile names.
#[test]
fn a_profile_that_names_every_call_fits() {
    let long = include_str!("x86_64.txt").lines();
    let names = long.chain(include_str!("i386.txt").lines());
    let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
    let compiled = compile(&profile(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
    })))
    .unwrap();
    assert!(compiled.unknown.is_empty());
    assert!(compiled.filters.iter().all(|filter| filter.program.len() <= 4096));
}
