//! The program that libFuzzer drives: `FUZZ_TARGET` names what it fuzzes.
#![no_main]

use fuzz::{scratch, targets};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;
use targets::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
        let _ = TARGET.set(targets::named(&name).expect("a target of this name"));
    },
    |data: &[u8]| {
        // Each time: libFuzzer takes the signal of a file that grows too large for itself.
        scratch::limit_process();
        TARGET.get().expect("it was chosen")(data);
    }
);
