use super::*;
use crate::virtio::testing::{
    Dice, INDIRECT, MEMORY, NEXT, TestQueue, WRITE, hostile_chains, memory,
};

#[test]
fn a_chain_is_copied_in_order() {
    let memory = memory();
    let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
    let written = queue.send(&[b"abc", b"defgh"], &[4, 8]);
    let mut active = queue.active();
    let chain = active.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 12));

    let mut reader = chain.reader(&memory);
    let (mut first, mut second) = ([0; 5], [0; 3]);
    reader.read(&mut first).unwrap();
    reader.read(&mut second).unwrap();
    assert_eq!((&first, &second), (b"abcde", b"fgh"));
    assert!(matches!(reader.read(&mut [0]), Err(ChainError::TooShort { wanted: 1, present: 0 })));

    let mut writer = chain.writer(&memory);
    writer.write(b"0123456").unwrap();
    assert!(writer.write(b"seven bytes").is_err());
    assert_eq!(writer.remaining(), 5);
    assert_eq!(queue.read(written[0], 4), b"0123");
    assert_eq!(queue.read(written[1], 3), b"456");

    active.complete(&memory, chain.head(), 7).unwrap();
    assert_eq!(queue.used(), Some((0, 7)));
    assert!(active.pop(&memory).unwrap().is_none());
}

#[test]
fn an_indirect_table_is_followed() {
    let memory = memory();
    let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
    queue.descriptor(3, 0x3000, 32, INDIRECT, 0);
    queue.descriptor_at(0x3000, 0, 0x1000, 7, NEXT, 1);
    queue.descriptor_at(0x3000, 1, 0x2000, 9, WRITE, 0);
    queue.offer(3);
    let chain = queue.active().pop(&memory).unwrap().unwrap();
    assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (3, 7, 9));
}

#[test]
fn every_broken_chain_is_an_error() {
    hostile_chains(16, |name, memory, queue| {
        assert!(queue.active().pop(memory).is_err(), "{name}");
    });
}

#[test]
fn the_total_length_is_bounded() {
    let memory = memory();
    let fits = (MAX_BYTES / MEMORY) as u16;
    for (descriptors, allowed) in [(fits, true), (fits + 1, false)] {
        let mut queue = TestQueue::new(&memory, 0x10_0000, 64);
        for i in 0..descriptors - 1 {
            queue.descriptor(i, 0, MEMORY as u32, NEXT | WRITE, i + 1);
        }
        queue.descriptor(descriptors - 1, 0, MEMORY as u32, WRITE, 0);
        queue.offer(0);
        let popped = queue.active().pop(&memory);
        assert_eq!(popped.is_ok(), allowed);
        assert!(allowed || matches!(popped, Err(ChainError::TooManyBytes)));
    }
}

#[test]
fn a_chain_changed_after_the_walk_stays_as_it_was() {
    let memory = memory();
    let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
    queue.send(&[b"harmless"], &[8]);
    let chain = queue.active().pop(&memory).unwrap().unwrap();
    let before = chain.clone();
    queue.descriptor(0, u64::MAX - 1, u32::MAX, NEXT, 0);
    queue.descriptor(1, u64::MAX - 1, u32::MAX, NEXT, 0);
    assert_eq!(chain, before);
    let mut data = [0; 8];
    chain.reader(&memory).read(&mut data).unwrap();
    assert_eq!(&data, b"harmless");
}

#[test]
fn a_chain_changed_during_the_walk_is_whole_or_refused() {
    let memory = memory();
    let mut queue = TestQueue::new(&memory, 0x10_0000, 16);
    queue.descriptor(0, 0x1000, 16, NEXT, 1);
    queue.descriptor(1, 0x2000, 16, 0, 0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hostile = TestQueue::new(&memory, 0x10_0000, 16);
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                hostile.descriptor(1, MEMORY - 4, u32::MAX, NEXT, 1);
                hostile.descriptor(1, 0x2000, 16, WRITE, 0);
            }
        });
        for _ in 0..2000 {
            queue.offer(0);
            if let Ok(Some(chain)) = queue.active().pop(&memory) {
                for buffer in chain.readable.iter().chain(&chain.writable) {
                    assert!(memory.check_range(buffer.address, buffer.len as usize));
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn random_tables_never_panic_and_never_yield_a_bad_buffer() {
    let memory = memory();
    let mut dice = Dice(0x1234_5678);
    for _ in 0..2000 {
        let mut queue = TestQueue::new(&memory, 0x10_0000, 8);
        for i in 0..8 {
            let address = dice.pick(&[0, 0x1000, 0x10_0000, MEMORY - 1, MEMORY, u64::MAX]);
            let len = dice.pick(&[0, 1, 16, 48, 0x1000, u32::MAX]);
            let (flags, next) = (dice.below(8) as u16, dice.below(10) as u16);
            queue.descriptor(i, address, len, flags, next);
        }
        queue.offer(dice.below(9) as u16);
        if let Ok(Some(chain)) = queue.active().pop(&memory) {
            for buffer in chain.readable.iter().chain(&chain.writable) {
                assert!(buffer.len > 0);
                assert!(memory.check_range(buffer.address, buffer.len as usize));
            }
        }
    }
}
