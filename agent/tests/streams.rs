//! Standard streams: whole, in order, and closed when they are at their end.

mod support;

use protocol::agent::ResizeTerminalRequest;
use protocol::ports::{FORWARD, ForwardPreamble};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;
use support::{Agent, Streams, context, shell, start};

/// Bytes sent through a process in one test.
const TOTAL: usize = 64 << 20;

#[tokio::test]
async fn input_ends_when_the_host_closes_it() {
    let agent = start();
    let streams = Streams::new(&agent.prefix);
    let output = streams.read_stdout();
    let (id, streams) = agent.create_with("c", shell("wc"), json!({}), streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let mut stdin = streams.stdin();
    stdin.write_all(b"one two\nthree\n").unwrap();
    drop(stdin);
    assert_eq!(agent.wait(&id, "").await.exit_status, 0);
    let text = String::from_utf8(output.join().unwrap()).unwrap();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["2", "3", "14"]);
}

#[tokio::test]
async fn stdout_and_stderr_are_apart() {
    let agent = start();
    let streams = Streams::new(&agent.prefix);
    let (out, err) = (streams.read_stdout(), streams.read_stderr());
    let script = shell("echo out; echo err >&2");
    let (id, _streams) = agent.create_with("c", script, json!({}), streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    agent.wait(&id, "").await;
    assert_eq!(out.join().unwrap(), b"out\n");
    assert_eq!(err.join().unwrap(), b"err\n");
}

#[tokio::test]
async fn the_last_words_arrive_whole_a_hundred_times() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    for number in 0..100 {
        let streams = Streams::new(&agent.prefix);
        let output = streams.read_stdout();
        let exec_id = format!("e{number}");
        let script = shell("head -c 100000 /dev/zero; echo last");
        agent.exec(&id, &exec_id, script, &streams).await.unwrap();
        assert_eq!(agent.wait(&id, &exec_id).await.exit_status, 0);
        let bytes = output.join().unwrap();
        assert_eq!(bytes.len(), 100_005);
        assert!(bytes.ends_with(b"last\n"));
    }
}

#[tokio::test]
async fn much_data_goes_through_both_ways_and_a_slow_reader_loses_nothing() {
    let agent = start();
    let (id, _streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let streams = Streams::new(&agent.prefix);
    agent.exec(&id, "cat", shell("exec cat"), &streams).await.unwrap();
    let mut stdin = streams.stdin();
    let mut stdout = streams.connect(streams.stdio.stdout);
    std::thread::spawn(move || {
        let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 253) as u8).collect();
        for _ in 0..TOTAL / block.len() {
            stdin.write_all(&block).unwrap();
        }
    });
    let reading = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_secs(1));
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).unwrap();
        all
    });
    let all = reading.await.unwrap();
    assert_eq!(all.len(), TOTAL);
    assert!(all.chunks(1 << 20).all(|c| c.iter().enumerate().all(|(i, b)| *b == (i % 253) as u8)));
    assert_eq!(agent.wait(&id, "cat").await.exit_status, 0);
}

/// One reader takes a little and no more, one takes nothing, one is fast.
#[tokio::test]
async fn a_process_is_killed_in_the_middle_of_a_flood_of_output() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let agent = start();
    let (id, _streams) = agent.create("c", shell("exec sleep 100")).await.unwrap();
    agent.start_container(&id).await.unwrap();
    let flood = || shell("exec yes");
    let floods = ["stuck", "never", "fast"].map(|name| (name, Streams::new(&agent.prefix)));
    for (name, streams) in &floods {
        let exec = agent.exec(&id, name, flood(), streams);
        tokio::time::timeout(PATIENCE, exec).await.expect(name).unwrap();
    }
    let mut stuck = floods[0].1.connect(floods[0].1.stdio.stdout);
    stuck.read_exact(&mut vec![0; 1 << 20]).unwrap();
    let _never = floods[1].1.connect(floods[1].1.stdio.stdout);
    let fast = floods[2].1.read_stdout();
    // All have filled what there is between the two ends.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (name, _) in &floods {
        tokio::time::timeout(PATIENCE, agent.signal(&id, name, 9)).await.expect(name).unwrap();
        let ended = tokio::time::timeout(PATIENCE, agent.wait(&id, name)).await.expect(name);
        assert_eq!(ended.exit_status, 137, "{name}");
    }
    // What was written before the kill arrives, and its end.
    let mut rest = Vec::new();
    stuck.read_to_end(&mut rest).unwrap();
    for (name, bytes) in [("stuck", rest), ("fast", fast.join().unwrap())] {
        assert!(bytes.len() > 4096, "{name}: {}", bytes.len());
    }
    let other = agent.run("other", "echo still here");
    let (status, text) = tokio::time::timeout(PATIENCE, other).await.expect("another container");
    assert_eq!((status, text.as_str()), (0, "still here\n"));
    tokio::time::timeout(PATIENCE, agent.signal(&id, "", 9)).await.unwrap().unwrap();
    let ended = tokio::time::timeout(PATIENCE, agent.wait(&id, "")).await.expect("init");
    assert_eq!(ended.exit_status, 137);
    tokio::time::timeout(PATIENCE, agent.delete(&id)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size_and_takes_a_new_one() {
    let agent = start();
    let mut process = shell("stty size; read line; stty size; echo $line; tty");
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({ "height": 33, "width": 99 });
    for exec in [false, true] {
        let streams = Streams::for_terminal(&agent.prefix);
        let mut output = streams.connect(streams.stdio.stdout);
        let name = format!("c{exec}");
        let (id, exec_id) = if exec {
            let (id, _) = agent.create(&name, shell("exec sleep 100")).await.unwrap();
            agent.start_container(&id).await.unwrap();
            agent.exec(&id, "e", process.clone(), &streams).await.unwrap();
            (id, "e")
        } else {
            let same = Streams::of(&agent.prefix, streams.stdio.clone());
            let (id, _) = agent.create_with(&name, process.clone(), json!({}), same).await.unwrap();
            agent.start_container(&id).await.unwrap();
            (id, "")
        };
        let mut first = [0; 7];
        output.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"33 99\r\n");
        let resize = ResizeTerminalRequest {
            container_id: id.clone(),
            exec_id: exec_id.to_owned(),
            width: 120,
            height: 40,
            ..ResizeTerminalRequest::default()
        };
        agent.client.resize_terminal(context(), &resize).await.unwrap();
        streams.stdin().write_all(b"typed\n").unwrap();
        assert_eq!(agent.wait(&id, exec_id).await.exit_status, 0);
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        // The echo of what was typed comes first.
        assert_eq!(rest, "typed\r\n40 120\r\ntyped\r\n/dev/pts/0\r\n");
    }
}

#[tokio::test]
async fn a_terminal_that_is_closed_and_opened_again_goes_on() {
    let agent = start();
    let script = "tty=$(tty); echo before; exec < /dev/null > /dev/null 2>&1; sleep 0.5; \
        echo after > $tty; sleep 0.5; echo last > $tty";
    let mut process = shell(script);
    process["terminal"] = json!(true);
    let streams = Streams::for_terminal(&agent.prefix);
    let output = streams.read_stdout();
    let (id, _streams) = agent.create_with("c", process, json!({}), streams).await.unwrap();
    agent.start_container(&id).await.unwrap();
    assert_eq!(agent.wait(&id, "").await.exit_status, 0);
    let text = String::from_utf8(output.join().unwrap()).unwrap();
    assert_eq!(text, "before\r\nafter\r\nlast\r\n");
}

#[tokio::test]
async fn a_forwarded_connection_reaches_whoever_listens_on_localhost() {
    let agent = start();
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(at).unwrap();
        let port = listener.local_addr().unwrap().port();
        let echo = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            connection.read_to_end(&mut all).unwrap();
            connection.write_all(&all).unwrap();
        });
        // The other family is tried first.
        let v6_first = at.starts_with("127");
        let mut stream = forwarded(&agent, ForwardPreamble { port, v6_first });
        let sent: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(back == sent, "{} bytes came back", back.len());
        echo.join().unwrap();
        // Now nobody does.
        let mut refused = forwarded(&agent, ForwardPreamble { port, v6_first });
        assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    }
}

fn forwarded(agent: &Agent, to: ForwardPreamble) -> UnixStream {
    let address = SocketAddr::from_abstract_name(format!("{}-{FORWARD}", agent.prefix)).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    stream.write_all(&to.to_bytes()).unwrap();
    stream
}
