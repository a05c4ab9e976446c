//! Every input that is kept of a target is still taken, with the checks of a debug build.

use fuzz::{scratch, targets};
use std::fs;
use std::path::Path;

#[test]
fn every_target_takes_its_corpus() {
    scratch::limit_process();
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, take) in targets::ALL {
        let corpus = corpora.join(name);
        let entries = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut inputs = 0;
        for entry in entries {
            let path = entry.expect("an entry").path();
            // Which one it was is told by what was said last.
            println!("{}", path.display());
            take(&fs::read(&path).expect("an input"));
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no input in {}", corpus.display());
    }
    let kept = fs::read_dir(&corpora).expect("the corpora").count();
    assert_eq!(kept, targets::ALL.len(), "each corpus has a target");
}
