//! Every input that is kept of a target is still taken, with the checks of a debug build.

use fuzz::{scratch, targets};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One at a time: they have files of the same names.
static TURN: Mutex<()> = Mutex::new(());

fn takes_its_corpus(name: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    scratch::limit_process();
    let take = targets::named(name).expect("a target of this name");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut inputs = 0;
    for entry in entries {
        let path = entry.expect("an entry").path();
        let input = fs::read(&path).expect("an input");
        // Told where the test fails; of a signal or a hang `--test-threads=1 --nocapture` tells.
        println!("{}", path.display());
        take(&input);
        inputs += 1;
    }
    assert!(inputs > 0, "{name} has no input in {}", corpus.display());
}

macro_rules! corpora {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            takes_its_corpus(stringify!($name));
        })+

        #[test]
        fn each_target_has_a_test_and_each_corpus_a_target() {
            let tested = [$(stringify!($name)),+];
            assert_eq!(tested, targets::ALL.map(|(name, _)| name));
            let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
            assert_eq!(fs::read_dir(corpora).expect("the corpora").count(), tested.len());
        }
    };
}

corpora!(
    agent_answers,
    balloon,
    blk,
    config_json,
    console,
    fs_front,
    fuse,
    guest_log,
    image_layer,
    image_manifest,
    kernel,
    mmio,
    net,
    rng,
    vhost_user,
    vsock,
    vsock_connection,
);
