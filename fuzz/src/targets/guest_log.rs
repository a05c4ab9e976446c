//! Lines of the guest and the helpers on their way to the log. Checks that they are short and printable.

use sandbox::guest_log::{Tail, forward, lines};
use tokio::runtime::Builder;

/// A line's bytes; one that is no UTF-8 takes three for each.
const LONGEST: usize = 3 * 1024;

/// Takes one input.
pub fn take(data: &[u8]) {
    let tail = Tail::default();
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(forward("guest", "id", data, tail.clone()));
    for line in tail.lines().into_iter().chain(lines(data)) {
        assert!(line.len() <= LONGEST && !line.contains(|c: char| c.is_control() && c != '\t'));
    }
    let _ = tail.panic();
}
