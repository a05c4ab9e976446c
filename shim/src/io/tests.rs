use super::*;
use nix::sys::stat::Mode;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    path
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

async fn output_io(path: &Path) -> (ProcessIo, UnixStream) {
    let stdio = Stdio { stdout: Endpoint::Path(path.into()), ..Default::default() };
    let (ours, guest) = UnixStream::pair().unwrap();
    let open = OpenIo::open(stdio).await.unwrap();
    (open.join(GuestStreams { stdout: Some(ours), ..Default::default() }), guest)
}

/// Runs `work` where `dir` is the working directory of the thread for blocking calls alone: of a relative path, what is
/// asked on the runtime's own thread is not found.
pub(super) fn only_other_threads_are_in(dir: &Path, work: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    let dir = dir.to_owned();
    runtime.block_on(async {
        let moved = tokio::task::spawn_blocking(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            std::env::set_current_dir(dir).unwrap();
        });
        moved.await.unwrap();
        work.await;
    });
}

#[test]
fn paths_are_opened_on_a_thread_that_may_hang() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "out");
    fifo(dir.path(), "in");
    let mut reader =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    only_other_threads_are_in(dir.path(), async {
        let stdio = Stdio {
            stdin: Endpoint::Path("in".into()),
            stdout: Endpoint::Path("out".into()),
            stderr: Endpoint::Append("made/log".into()),
            ..Default::default()
        };
        let open = OpenIo::open(stdio).await.unwrap();
        let [(stdin, guest_in), (stdout, mut out), (stderr, guest_err)] =
            [(); 3].map(|()| UnixStream::pair().unwrap());
        let io = open.join(GuestStreams {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
        });
        io.begin_input().await.unwrap();
        out.write_all(b"said").await.unwrap();
        drop((out, guest_in, guest_err));
        assert!(io.drained(Duration::from_secs(10)).await);
    });
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "said");
    assert!(dir.path().join("made/log").exists());
}

#[tokio::test]
async fn a_late_and_slow_reader_gets_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "out");
    let read_from = path.clone();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut file = std::fs::File::open(read_from).unwrap();
        let mut all = Vec::new();
        let mut block = [0; 7000];
        loop {
            match file.read(&mut block).unwrap() {
                0 => return all,
                n => all.extend_from_slice(&block[..n]),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    let sent = pattern(1 << 20);
    let (io, mut guest) = output_io(&path).await;
    guest.write_all(&sent).await.unwrap();
    drop(guest);
    assert!(io.drained(Duration::from_secs(5)).await);
    drop(io);
    assert!(reader.join().unwrap() == sent, "bytes differ");
}

#[tokio::test]
async fn a_reader_that_stops_does_not_hold_a_delete_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "out");
    let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let (io, mut guest) = output_io(&path).await;
    tokio::spawn(async move { guest.write_all(&pattern(1 << 20)).await });
    assert!(!io.drained(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn output_to_a_file_is_appended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "before ").unwrap();
    // As containerd names a file that a user wants.
    let stdio =
        Stdio { stdout: Endpoint::Append(dir.path().join("made/log")), ..Default::default() };
    OpenIo::open(stdio).await.unwrap();
    assert!(dir.path().join("made/log").exists());
    let (io, mut guest) = output_io(&path).await;
    guest.write_all(b"after").await.unwrap();
    drop(guest);
    assert!(io.drained(Duration::from_secs(5)).await);
    assert_eq!(std::fs::read(&path).unwrap(), b"before after");
}

#[tokio::test]
async fn a_fifo_that_is_missing_is_an_error_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let stdio = Stdio { stdout: Endpoint::Path(path.clone()), ..Default::default() };
    let error = OpenIo::open(stdio).await.unwrap_err().chain();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("No such file"), "{error}");
    assert!(!path.exists());
}

#[tokio::test]
async fn stdin_survives_its_first_writer_and_ends_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let path = fifo(dir.path(), "in");
    let stdio = Stdio { stdin: Endpoint::Path(path.clone()), ..Default::default() };
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let open = OpenIo::open(stdio).await.unwrap();
    let io = open.join(GuestStreams { stdin: Some(ours), ..Default::default() });
    io.begin_input().await.unwrap();
    let mut got = [0; 3];
    for word in [b"one", b"two"] {
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(word).unwrap();
        drop(writer);
        guest.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, word);
    }
    let mut last = OpenOptions::new().write(true).open(&path).unwrap();
    io.close_stdin();
    last.write_all(b"end").unwrap();
    drop(last);
    let mut rest = Vec::new();
    guest.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"end");
}

#[test]
fn kinds_of_streams() {
    assert!(matches!(parse_endpoint(""), Ok(Endpoint::None)));
    assert!(matches!(parse_endpoint("/a/b"), Ok(Endpoint::Path(p)) if p == Path::new("/a/b")));
    assert!(matches!(parse_endpoint("file:///l"), Ok(Endpoint::Append(p)) if p == Path::new("/l")));
    assert!(matches!(parse_endpoint("binary:///x?y"), Err(Error::Unimplemented(_))));
}
