//! Guests that forge, flood, lie and break their queues.

use super::*;

#[test]
fn more_than_the_credit_is_answered_by_a_reset() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.accept(5000);
        let data = vec![0; 0x1_0001];
        rig.send(&peer.data(&data), &data);
        rig.receive_op(Op::Reset);
        assert!(at_end(&mut host));
    });
}

#[test]
fn forged_packets_are_dropped_or_reset() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        let good = peer.data(b"evil");
        for forged in [
            Header { src_cid: 4, ..good },
            Header { src_cid: HOST_CID, ..good },
            Header { dst_cid: 1, ..good },
            Header { dst_cid: GUEST, ..good },
            Header { dst_cid: u64::MAX, ..good },
        ] {
            rig.send(&forged, b"evil");
        }
        rig.expect_silence();
        for stranger in [
            Header { src_port: 1, ..good },
            Header { dst_port: LOG, ..good },
            Header { kind: 2, ..good },
            Header { op: Err(77), src_port: 1, ..good },
            Header { op: Ok(Op::Response), src_port: 1, ..good },
        ] {
            rig.send(&stranger, b"evil");
            rig.receive_op(Op::Reset);
        }
        rig.send(&Header { op: Ok(Op::Reset), src_port: 1, ..good }, &[]);
        rig.expect_silence();
        rig.send(&peer.data(b"good"), b"good");
        assert_eq!(read_exactly(&mut host, 4), b"good");
    });
}

#[test]
fn a_length_that_lies_ends_the_connection() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        let (mut host, peer) = rig.connect();
        rig.send(&Header { len: 100, ..peer.packet(Op::Data) }, b"short");
        rig.receive_op(Op::Reset);
        assert!(at_end(&mut host));
    });
}

#[test]
fn a_flood_of_requests_is_bounded() {
    in_both_modes(|| {
        let mut rig = Rig::new();
        rig.offer(128);
        let mut accepted = 0;
        for guest in 0..150 {
            rig.send(&Peer { guest, host: LOG }.packet(Op::Request), &[]);
            accepted += u32::from(rig.receive().0.op == Ok(Op::Response));
        }
        assert_eq!(accepted as usize, muxer::MAX_GUEST_STREAMS);
        // A second request on the same ports breaks the rules.
        rig.send(&Peer { guest: 0, host: LOG }.packet(Op::Request), &[]);
        rig.receive_op(Op::Reset);
        assert_eq!(rig.streams(), muxer::MAX_GUEST_STREAMS - 1);
    });
}

#[test]
fn a_flood_without_receive_buffers_is_bounded() {
    in_both_modes(|| {
        let mut rig = Rig::without_buffers();
        for round in 0..2000u32 {
            send_at(&mut rig, &Peer { guest: round, host: 99 }.packet(Op::Request), &[]);
            let peer = Peer { guest: round, host: LOG };
            send_at(&mut rig, &peer.packet(Op::Request), &[]);
            send_at(&mut rig, &peer.packet(Op::Reset), &[]);
            while rig.events.next().is_some() {}
        }
        assert_eq!(rig.streams(), 0);
        let debt = rig.device.with_backend(|b| b.as_ref().unwrap().muxer.debt());
        assert!(debt <= 64, "{debt} packets wait");
    });
}

/// Two descriptors a stream are more than the usual soft limit.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

#[test]
fn more_streams_than_allowed_are_closed() {
    in_both_modes(|| {
        const TOO_MANY: usize = 64;
        raise_open_files();
        let mut rig = Rig::without_buffers();
        let mut ends = Vec::new();
        for port in 0..(muxer::MAX_STREAMS + TOO_MANY) as u32 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            ends.push(ours);
            let mut waiting = Some(theirs.into());
            wait_for(|| {
                waiting = rig.connector.connect(port, waiting.take()?).err();
                waiting.is_none().then_some(())
            });
        }
        for mut refused in ends.split_off(muxer::MAX_STREAMS) {
            wait_for(|| matches!(refused.read(&mut [0]), Ok(0)).then_some(()));
        }
        assert!(ends.iter_mut().all(|kept| kept.read(&mut [0]).is_err()));
        assert_eq!(rig.streams(), muxer::MAX_STREAMS);
    });
}

#[test]
fn a_hostile_chain_on_either_queue_stops_the_device() {
    in_both_modes(|| {
        hostile_chains(256, |name, memory, tx| {
            let rx = TestQueue::new(memory, 0x20_0000, 256);
            let rig = Rig::with_queues(memory.clone(), rx, tx);
            wait_for(|| rig.interrupt.needs_reset().then_some(()));
            let told = wait_for(|| rig.events.next());
            assert!(matches!(told, DeviceEvent::Fault(_)), "{name}");
        });
        hostile_chains(256, |name, memory, rx| {
            let tx = TestQueue::new(memory, 0x20_0000, 256);
            let rig = Rig::with_queues(memory.clone(), rx, tx);
            // The queue is looked at when there is something to be received.
            let (_ours, theirs) = UnixStream::pair().unwrap();
            rig.connector.connect(1, theirs.into()).unwrap();
            wait_for(|| rig.interrupt.needs_reset().then_some(()));
            let told = wait_for(|| rig.events.next());
            assert!(matches!(told, DeviceEvent::Fault(_)), "{name}");
        });
    });
}

#[test]
fn buffers_too_small_for_a_packet_stop_the_device() {
    in_both_modes(|| {
        for size in [1, HEADER - 1] {
            let mut rig = Rig::without_buffers();
            rig.rx.send(&[], &[size]);
            rig.tx.send(&[&Peer { guest: 1, host: 1 }.packet(Op::Request).to_bytes()], &[]);
            wait_for(|| rig.interrupt.needs_reset().then_some(()));
        }
        let mut rig = Rig::without_buffers();
        rig.tx.send(&[&[0; HEADER - 1]], &[]);
        wait_for(|| rig.interrupt.needs_reset().then_some(()));
    });
}

#[test]
fn random_packets_are_survived() {
    in_both_modes(|| {
        let mut dice = Dice(0x00ab_cdef);
        for _ in 0..5 {
            let mut rig = Rig::new();
            rig.offer(192);
            let (_host, peer) = rig.connect();
            let ports = [peer.host, LOG, 1, 1 << 30, u32::MAX];
            for _ in 0..300 {
                let data = vec![7; dice.pick(&[0, 1, 100, 4000])];
                let header = Header {
                    src_cid: dice.pick(&[GUEST, GUEST, GUEST, 2, 9]),
                    dst_cid: dice.pick(&[HOST_CID, HOST_CID, HOST_CID, 0]),
                    src_port: dice.pick(&[peer.guest, 1, 2]),
                    dst_port: dice.pick(&ports),
                    len: dice.pick(&[data.len() as u32, data.len() as u32, 0, u32::MAX]),
                    kind: dice.pick(&[1, 1, 1, 2]),
                    op: Header::from_bytes(&{
                        let mut raw = [0; HEADER];
                        raw[30] = dice.below(9) as u8;
                        raw
                    })
                    .op,
                    flags: dice.below(4) as u32,
                    buf_alloc: dice.roll() as u32,
                    fwd_cnt: dice.roll() as u32,
                };
                let mut all = header.to_bytes().to_vec();
                all.extend(&data);
                rig.memory.write_slice(&all, GuestAddress(0x2d_0000)).unwrap();
                rig.tx.descriptor(0, 0x2d_0000, all.len() as u32, 0, 0);
                rig.tx.offer(0);
                wait_for(|| rig.tx.used());
            }
            assert!(!rig.interrupt.needs_reset());
            assert!(rig.streams() <= muxer::MAX_GUEST_STREAMS + 1);
        }
    });
}

#[test]
fn a_packet_changed_while_it_is_taken_is_survived() {
    in_both_modes(|| {
        let memory = memory();
        while_rewritten(&memory, 0x20_0000, || {
            for _ in 0..100 {
                let rx = TestQueue::new(&memory, 0x10_0000, 256);
                let tx = TestQueue::new(&memory, 0x20_0000, 256);
                let mut rig = Rig::with_queues(memory.clone(), rx, tx);
                rig.offer(4);
                for _ in 0..10 {
                    rig.tx.offer(0);
                }
                // Stops in its own time, having taken the packets or given up on them.
                assert!(rig.streams() <= muxer::MAX_GUEST_STREAMS);
            }
        });
    });
}
