//! Streams as they should be: data, ends, credit, pauses.

use super::*;

#[test]
fn data_goes_both_ways() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        host.write_all(b"question").unwrap();
        let (header, data) = rig.receive();
        assert_eq!((header.op, &data[..]), (Ok(Op::Data), &b"question"[..]));
        rig.send(&peer.data(b"answer"), b"answer");
        assert_eq!(read_exactly(&mut host, 6), b"answer");
        assert!(rig.interrupt.used() > 0);
    });
}

#[test]
fn the_guest_reaches_listed_ports_only() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.accept(5000);
        rig.send(&peer.data(b"line\n"), b"line\n");
        assert_eq!(read_exactly(&mut host, 5), b"line\n");
        for port in [0, 22, 1024, 1 << 30, u32::MAX] {
            rig.send(&Peer { guest: 5001, host: port }.packet(Op::Request), &[]);
            let reset = rig.receive_op(Op::Reset);
            assert_eq!((reset.src_port, reset.dst_port), (port, 5001));
        }
        assert!(rig.events.next().is_none());
    });
}

#[test]
fn a_refused_stream_is_closed() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        rig.connector.connect(7, theirs.into()).unwrap();
        let request = rig.receive_op(Op::Request);
        rig.send(&Peer { guest: 7, host: request.src_port }.packet(Op::Reset), &[]);
        assert!(at_end(&mut ours));
        assert_eq!(rig.streams(), 0);
    });
}

#[test]
fn a_large_transfer_arrives_whole_in_both_directions() {
    in_both_modes(|| {
        const TOTAL: usize = 3 << 20;
        let mut rig = Rig::new();
        let (host, peer) = rig.connect();
        let pattern = |i: usize| (i * 7 + i / 251) as u8;
        let (mut writer, mut reader) = (host.try_clone().unwrap(), host);
        let sender = std::thread::spawn(move || {
            let all: Vec<u8> = (0..TOTAL).map(pattern).collect();
            writer.write_all(&all).unwrap();
        });
        let receiver = std::thread::spawn(move || read_exactly(&mut reader, TOTAL));

        let (mut got, mut sent, mut window, mut forwarded) = (0, 0, 0u32, 0u32);
        while got < TOTAL || sent < TOTAL {
            while let Some((head, written)) = rig.rx.used() {
                let address = rig.buffers.pop_front().unwrap();
                let bytes = rig.rx.read(address, written as usize);
                let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
                (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
                for byte in &bytes[HEADER..] {
                    assert_eq!(*byte, pattern(got));
                    got += 1;
                }
                // The buffer goes round: the same memory, offered again.
                rig.rx.descriptor(head, address, (HEADER + ROOM) as u32, WRITE, 0);
                rig.rx.offer(head);
                rig.buffers.push_back(address);
                let credit = Header { fwd_cnt: got as u32, ..peer.packet(Op::CreditUpdate) };
                send_at(&mut rig, &credit, &[]);
            }
            let room = window as usize - (sent - forwarded as usize).min(window as usize);
            let len = room.min(TOTAL - sent).min(0x1_0000);
            if len > 0 {
                let data: Vec<u8> = (sent..sent + len).map(pattern).collect();
                let header = Header { fwd_cnt: got as u32, ..peer.data(&data) };
                send_at(&mut rig, &header, &data);
                sent += len;
            } else {
                std::thread::yield_now();
            }
        }
        sender.join().unwrap();
        assert!(receiver.join().unwrap().iter().enumerate().all(|(i, b)| *b == pattern(i)));
    });
}

#[test]
fn a_slow_reader_holds_the_credit_back_and_loses_nothing() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.accept(5000);
        let chunk = vec![1u8; 8192];
        // All the credit there is, though the host reads nothing: 64 KiB.
        for _ in 0..8 {
            send_at(&mut rig, &peer.data(&chunk), &chunk);
        }
        read_exactly(&mut host, 0x1_0000);
        // The socket took that much by itself, so all of the credit was returned. Fill socket and window.
        let mut sent = 0usize;
        let mut forwarded = 0usize;
        while sent - forwarded + chunk.len() <= 0x1_0000 {
            send_at(&mut rig, &peer.data(&chunk), &chunk);
            sent += chunk.len();
            send_at(&mut rig, &peer.packet(Op::CreditRequest), &[]);
            while let Some((_, written)) = rig.rx.used() {
                let address = rig.buffers.pop_front().unwrap();
                let bytes = rig.rx.read(address, written as usize);
                let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
                // The update of the first part may still be under way.
                forwarded = (header.fwd_cnt as usize).saturating_sub(0x1_0000);
                rig.offer(1);
            }
        }
        assert!(sent - forwarded <= 0x1_0000, "never more buffered than granted");
        // The end comes after the data; the answer to the last request may still be under way.
        rig.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
        rig.receive_past_updates(Op::Reset);
        assert_eq!(read_exactly(&mut host, sent), vec![1; sent]);
        assert!(at_end(&mut host));
    });
}

#[test]
fn the_host_half_closes_and_still_reads() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        host.write_all(b"last").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rig.receive().1, b"last");
        assert_eq!(rig.receive_op(Op::Shutdown).flags, SHUTDOWN_SEND);
        rig.send(&peer.data(b"reply"), b"reply");
        assert_eq!(read_exactly(&mut host, 5), b"reply");
        rig.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
        rig.receive_op(Op::Reset);
        assert!(at_end(&mut host));
    });
}

#[test]
fn the_guest_half_closes_and_still_reads() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        rig.send(&peer.data(b"last"), b"last");
        rig.send(&peer.shutdown(SHUTDOWN_SEND), &[]);
        assert_eq!(read_exactly(&mut host, 4), b"last");
        assert!(at_end(&mut host));
        host.write_all(b"reply").unwrap();
        assert_eq!(rig.receive().1, b"reply");
        drop(host);
        // As above.
        while rig.receive_op(Op::Shutdown).flags != SHUTDOWN_BOTH {}
        rig.send(&peer.packet(Op::Reset), &[]);
        rig.expect_silence();
        assert_eq!(rig.streams(), 0);
    });
}

#[test]
fn a_guest_that_reads_no_more_is_felt_by_the_hosts_writer() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        rig.send(&peer.shutdown(SHUTDOWN_RECEIVE), &[]);
        let error = wait_for(|| host.write_all(b"x").err());
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        rig.send(&peer.data(b"still"), b"still");
        assert_eq!(read_exactly(&mut host, 5), b"still");
        drop(host);
        rig.receive_op(Op::Shutdown);
    });
}

#[test]
fn a_host_that_closes_ends_both_directions_after_its_last_data() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        host.write_all(b"bye").unwrap();
        drop(host);
        assert_eq!(rig.receive().1, b"bye");
        // The end of its data may be seen, and told, before that it reads no more.
        while rig.receive_op(Op::Shutdown).flags != SHUTDOWN_BOTH {}
        // What was under way is thrown away, and the guest answers as Linux does.
        rig.send(&peer.data(b"late"), b"late");
        rig.send(&peer.packet(Op::Reset), &[]);
        rig.expect_silence();
        assert_eq!(rig.streams(), 0);
    });
}

#[test]
fn without_receive_buffers_nothing_is_lost() {
    in_both_modes(|| {
        let mut rig = Rig::without_buffers();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        rig.connector.connect(9, theirs.into()).unwrap();
        ours.write_all(&[5; 10_000]).unwrap();
        rig.offer(1);
        let request = rig.receive_op(Op::Request);
        rig.send(&Peer { guest: 9, host: request.src_port }.packet(Op::Response), &[]);
        let mut total = Vec::new();
        while total.len() < 10_000 {
            rig.offer(1);
            total.extend(rig.receive().1);
        }
        assert_eq!(total, [5; 10_000]);
        rig.expect_silence();
    });
}

#[test]
fn the_guests_credit_is_kept() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        let small = Header { buf_alloc: 100, ..peer.packet(Op::CreditUpdate) };
        rig.send(&small, &[]);
        host.write_all(&[1; 250]).unwrap();
        assert_eq!(rig.receive().1.len(), 100);
        rig.expect_silence();
        rig.send(&Header { fwd_cnt: 100, ..small }, &[]);
        assert_eq!(rig.receive().1.len(), 100);
        rig.send(&Header { fwd_cnt: 200, ..small }, &[]);
        assert_eq!(rig.receive().1.len(), 50);
    });
}

#[test]
fn streams_survive_a_pause_and_end_with_a_reset_of_the_driver() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        let queues = rig.stop();
        host.write_all(b"meanwhile").unwrap();
        let activation = crate::virtio::Activation {
            memory: rig.memory.clone(),
            queues,
            interrupt: rig.interrupt.clone(),
            features: 0,
        };
        let worker = rig.device.activate(activation).unwrap();
        rig.worker = Some(rig.io.add(worker, rig.interrupt.clone()));
        assert_eq!(rig.receive().1, b"meanwhile");
        rig.send(&peer.data(b"later"), b"later");
        assert_eq!(read_exactly(&mut host, 5), b"later");
        rig.stop();
        rig.device.reset();
        assert!(at_end(&mut host));
    });
}
