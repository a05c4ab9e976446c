use super::limits::{MOST_SHARES, shares};
use super::*;
use oci_spec::runtime::LinuxResources;

#[test]
fn a_path_stays_below_the_root_and_a_relative_one_beside_its_caller() {
    let own = Path::new("/user.slice/session.scope");
    for (path, expected) in [
        ("/default/c1", "/default/c1"),
        ("/../../c1", "/c1"),
        ("c1", "/user.slice/c1"),
        ("a/../../../c1", "/user.slice/c1"),
    ] {
        assert_eq!(below_root(Path::new(path), own), Path::new(expected), "{path}");
    }
    assert_eq!(below_root(Path::new("c1"), Path::new("/")), Path::new("/c1"));
}

#[test]
fn the_form_of_a_path_tells_whose_it_is_unless_the_caller_does() {
    let scope = "kubepods-pod1.slice:cri-containerd:c1";
    assert_eq!(Placement::formed(Path::new(scope), true), Placement::Scope(scope.into()));
    assert_eq!(Placement::formed(Path::new(scope), false), Placement::Path(scope.into()));
    for path in ["/kubepods/pod1/c1", "/a:b:c", "a:b"] {
        assert_eq!(Placement::formed(Path::new(path), true), Placement::Path(path.into()));
    }
    let said = |path: Option<&str>, systemd| Placement::said(path.map(Path::new), "c1", systemd);
    assert_eq!(said(Some(scope), true), Placement::Scope(scope.into()));
    assert_eq!(said(Some(scope), false), Placement::Path(scope.into()));
    assert_eq!(said(None, false), Placement::Path("c1".into()));
    assert_eq!(said(Some(""), true), Placement::Scope("system.slice:kata-like:c1".into()));
}

#[test]
fn a_cgroup_that_is_in_use_or_frozen_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = |procs: &str, freeze: &str| {
        fs::write(dir.path().join("cgroup.procs"), procs).unwrap();
        fs::write(dir.path().join("cgroup.freeze"), freeze).unwrap();
        check_unused(dir.path()).map_err(|e| e.to_string())
    };
    outcome("", "0\n").unwrap();
    assert!(outcome("1\n22\n", "0\n").unwrap_err().contains("not empty: 2 process(es)"));
    assert!(outcome("", "1\n").unwrap_err().contains("frozen"));
}

#[test]
fn limits_as_files_and_as_properties() {
    let limits = Limits {
        memory: Some(7 << 20),
        cpu: Bandwidth { quota: Some(50_000), period: 100_000, burst: 0 },
        weight: Some(100),
        idle: Some(false),
        bounds: Bounds::default(),
    };
    let named = Named::default().and(&limits);
    let as_files = |limits: &Limits| as_files(limits, named);
    let files = as_files(&limits).unwrap().unified().clone().unwrap();
    let file = |name: &str| files[name].as_str();
    assert_eq!((file("memory.max"), file("cpu.max")), ("7340032", "50000 100000"));
    assert_eq!(file("cpu.weight"), "100");
    let idle = |limits: &Limits| as_files(limits).unwrap().cpu().as_ref().unwrap().idle();
    assert_eq!((idle(&limits), idle(&Limits::default())), (Some(0), None));
    let idle = as_files(&Limits { idle: Some(true), ..limits.clone() })
        .unwrap()
        .unified()
        .clone()
        .unwrap();
    assert!(!idle.contains_key("cpu.weight"), "the kernel takes none then");
    let none = as_files(&Limits::default()).unwrap().unified().clone().unwrap();
    assert_eq!((none["memory.max"].as_str(), none["cpu.max"].as_str()), ("max", "max 100000"));
    assert!(!none.contains_key("cpu.weight"));

    let resources = as_resources(&limits).unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(7 << 20));
    let cpu = resources.cpu().clone().unwrap();
    assert_eq!(
        (cpu.quota(), cpu.period(), cpu.shares()),
        (Some(50_000), Some(100_000), Some(shares(100)))
    );
    assert_eq!((cpu.cpus(), cpu.mems()), (&None, &None));
    let to: LinuxResources =
        serde_json::from_str(r#"{"cpu": {"cpus": "0-1", "mems": "0"}}"#).unwrap();
    let bound = Limits { bounds: Bounds::default().changed(&to), ..Limits::default() };
    let cpu = as_resources(&bound).unwrap().cpu().clone().unwrap();
    assert_eq!((cpu.cpus().as_deref(), cpu.mems().as_deref()), (Some("0-1"), Some("0")));
    assert_eq!(as_resources(&Limits::default()).unwrap().memory().unwrap().limit(), Some(-1));
}

#[test]
fn a_limit_that_nobody_has_named_is_left_as_it_is() {
    let set = |limits: &Limits, named: Named| -> Vec<String> {
        let files = as_files(limits, named).unwrap().unified().clone().unwrap_or_default();
        let mut files: Vec<_> =
            files.into_iter().map(|(name, value)| name + "=" + &value).collect();
        files.sort();
        files
    };
    let none = Limits::default();
    let named = Named::default().and(&none);
    assert_eq!(set(&none, named), [""; 0]);
    let of_burst = Limits { cpu: Bandwidth { burst: 1, ..Bandwidth::default() }, ..none.clone() };
    let with_burst = named.and(&of_burst);
    assert!(!named.burst && with_burst.burst && with_burst.and(&none).burst);
    assert_eq!(set(&of_burst, with_burst), [""; 0]);
    let of_period = Limits { cpu: Bandwidth { period: 50_000, ..none.cpu }, ..none.clone() };
    assert_eq!(set(&of_period, named.and(&of_period)), ["cpu.max=max 50000"]);
    let of_memory = Limits { memory: Some(4096), ..none.clone() };
    let named = named.and(&of_memory);
    assert_eq!(set(&of_memory, named), ["memory.max=4096"]);
    assert_eq!(set(&none, named.and(&none)), ["memory.max=max"], "it was ours");
}

#[test]
fn shares_and_weights_lead_to_each_other() {
    assert_eq!([0, 1, 2, 1024, 262_144, u64::MAX].map(weight), [0, 1, 1, 100, 10_000, 10_000]);
    for wanted in 1..=10_000 {
        assert_eq!(weight(shares(wanted)), wanted);
    }
    assert_eq!(shares(u64::MAX), MOST_SHARES);
}

#[test]
fn what_was_made_is_removed_with_the_last_below_it_and_nothing_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made { directory: dir.path().join("a/b/c1"), scope: None };
    let above = missing(&made.directory);
    assert_eq!(above[1..], [dir.path().join("a/b"), dir.path().join("a")]);
    made.remove().unwrap();
    fs::create_dir_all(&made.directory).unwrap();
    mark(&above[1..]);
    let second = Made { directory: dir.path().join("a/b/c2"), scope: None };
    assert_eq!(missing(&second.directory).len(), 1);
    fs::create_dir(&second.directory).unwrap();
    let marked: Vec<_> = marked_above(&second.directory).collect();
    assert_eq!(marked, [dir.path().join("a/b"), dir.path().join("a")]);
    made.remove().unwrap();
    assert!(second.directory.exists());
    fs::create_dir(second.directory.join("somebodys")).unwrap();
    assert!(second.remove().is_err(), "a cgroup below it is somebody's");
    fs::remove_dir(second.directory.join("somebodys")).unwrap();
    second.remove().unwrap();
    assert!(!dir.path().join("a").exists() && dir.path().exists());
}

#[test]
fn the_least_that_is_above_is_the_ceiling() {
    let dir = tempfile::tempdir().unwrap();
    let [pods, pod, own] = ["pods", "pods/pod", "pods/pod/own"].map(|name| dir.path().join(name));
    fs::create_dir_all(&own).unwrap();
    let memory = |of: &Path| ceiling(dir.path(), of).memory;
    assert_eq!(ceiling(dir.path(), &own), Ceiling::default());
    for (directory, limit) in [(&pods, "1000\n"), (&pod, "max\n"), (&own, "10\n")] {
        fs::write(directory.join("memory.max"), limit).unwrap();
    }
    assert_eq!(memory(&own), Some(1000));
    fs::write(pod.join("memory.max"), "500\n").unwrap();
    assert_eq!(memory(&own), Some(500));
    assert_eq!(memory(&pods), None, "its own is no matter");
    for (directory, limit) in [(&pods, "250000 100000\n"), (&pod, "max 100000\n")] {
        fs::write(directory.join("cpu.max"), limit).unwrap();
    }
    let cpus = || ceiling(dir.path(), &own).cpus;
    assert_eq!(cpus(), Some(3), "a part of one is one");
    fs::write(pod.join("cpu.max"), "100000 100000\n").unwrap();
    assert_eq!(cpus(), Some(1));
}
