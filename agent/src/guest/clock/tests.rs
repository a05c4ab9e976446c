use super::*;

/// Of a guest whose first PTP clock is called so, for one test; the device is a file, which is no clock.
fn clock(test: &str, name: &str) -> HostsClock {
    let dir = std::env::temp_dir().join(format!("clock-{test}-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("clock_name"), format!("{name}\n")).unwrap();
    fs::write(dir.join("ptp0"), "").unwrap();
    let clock = HostsClock::find(&dir.join("clock_name"), &dir.join("ptp0"));
    fs::remove_dir_all(&dir).unwrap();
    clock
}

/// So far ahead of the guest's clock.
fn ahead(by: Duration) -> u64 {
    u64::try_from(now().unwrap()).unwrap() + u64::try_from(by.as_nanos()).unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);
const HOUR_NS: i64 = 3_600_000_000_000;

/// How long a test may be held up between two looks at the clock, ns.
const HELD_UP: i64 = 60_000_000_000;

fn is_an_hour(correction: &Correction) -> bool {
    matches!(correction, Correction::Step(ns) if (ns - HOUR_NS).abs() < HELD_UP)
}

#[test]
fn small_differences_are_left_middling_ones_slewed_large_ones_stepped() {
    for (milliseconds, wanted) in [
        (0, Correction::Nothing),
        (-1, Correction::Nothing),
        (20, Correction::Slew(20_000)),
        (-499, Correction::Slew(-499_000)),
        (500, Correction::Step(500_000_000)),
        (-86_400_000, Correction::Step(-86_400_000_000_000)),
    ] {
        assert_eq!(correction(milliseconds * 1_000_000), wanted);
    }
}

#[test]
fn a_guest_with_kvms_clock_follows_it_and_leaves_the_hosts_word() {
    let clock = clock("followed", NAME.1);
    assert!(clock.is_followed());
    assert!(is_an_hour(&clock.look(|_| Ok(now()? + HOUR_NS))));
    assert_eq!(clock.told(ahead(HOUR)).unwrap(), Correction::Nothing);
}

#[test]
fn a_guest_without_it_or_with_anothers_goes_by_the_hosts_word() {
    let anothers = clock("anothers", "ptp_vmw");
    let none = HostsClock::find(Path::new("/nonexistent"), Path::new("/dev/null"));
    for clock in [anothers, none] {
        assert!(!clock.is_followed());
        assert_eq!(clock.look(|_| panic!("nothing to read")), Correction::Nothing);
        assert!(is_an_hour(&clock.told(ahead(HOUR)).unwrap()));
    }
}

#[test]
fn while_kvms_clock_can_not_be_read_the_hosts_word_counts() {
    let clock = clock("unreadable", NAME.1);
    assert_eq!(clock.look(read), Correction::Nothing, "a plain file has no time");
    assert!(!clock.is_followed());
    assert!(is_an_hour(&clock.told(ahead(HOUR)).unwrap()));

    assert!(is_an_hour(&clock.look(|_| Ok(now()? + HOUR_NS))));
    assert!(clock.is_followed(), "as soon as it can be read again");
    assert_eq!(clock.told(ahead(HOUR)).unwrap(), Correction::Nothing);
}

#[test]
fn a_time_that_no_clock_can_show_is_refused() {
    let clock = HostsClock { device: None, failed: AtomicBool::new(false) };
    assert_eq!(clock.told(u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_clock_is_compared_with_the_middle_of_what_reading_it_took() {
    let began = now().unwrap();
    let slow = || {
        std::thread::sleep(Duration::from_millis(40));
        Ok(began)
    };
    let behind = -difference_by(slow).unwrap();
    let took = now().unwrap() - began;
    assert!((20_000_000..=took).contains(&behind), "{behind} of {took}");
}
