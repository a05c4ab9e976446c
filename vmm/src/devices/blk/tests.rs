use super::*;
use crate::virtio::testing::{
    Dice, TestQueue, WRITE, activation, hostile_chains, in_both_modes, memory, while_rewritten,
};
use std::io::Write;
use std::os::fd::AsRawFd;
use vm_memory::GuestMemoryMmap;

const SECTORS: u64 = 64;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A disk in memory whose sectors are filled with their number.
struct Rig {
    memory: GuestMemoryMmap,
    queue: TestQueue,
    disk: Disk,
    worker: DataPath,
}

/// Of which there will be none.
fn threads() -> Threads {
    crate::virtio::starter::Starter::default().threads()
}

pub(super) fn image() -> File {
    let fd = nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(fd.unwrap());
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    file
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let mut file = image();
        if read_only {
            file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        }
        let disk = Disk::new(vec![(file, SECTORS * SECTOR)], read_only, threads()).unwrap();
        Self::of(disk)
    }

    fn of(disk: Disk) -> Self {
        let memory = memory();
        let queue = TestQueue::new(&memory, 0x10_0000, 256);
        let worker = DataPath {
            queue: Some(queue.active()).into(),
            memory: memory.clone(),
            interrupt: activation(&memory, &[], 0).1,
            image: disk.image.clone(),
            read_only: disk.read_only,
        };
        Self { memory, queue, disk, worker }
    }

    /// Sends a request; returns its status, the bytes reported as written, and the data that came back.
    fn request(&mut self, kind: u32, sector: u64, out: &[u8], room: usize) -> (u8, u32, Vec<u8>) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let readable: &[&[u8]] = if out.is_empty() { &[&header] } else { &[&header, out] };
        let writable: &[usize] = if room == 0 { &[1] } else { &[room, 1] };
        let addresses = self.queue.send(readable, writable);
        self.worker.serve().unwrap();
        let (_, written) = self.queue.used().unwrap();
        let data = if room == 0 { Vec::new() } else { self.queue.read(addresses[0], room) };
        (self.queue.read(addresses[addresses.len() - 1], 1)[0], written, data)
    }

    fn contents(&self, sector: u64) -> [u8; 512] {
        let mut data = [0; 512];
        std::os::unix::fs::FileExt::read_exact_at(
            self.disk.image.writable().unwrap(),
            &mut data,
            sector * SECTOR,
        )
        .unwrap();
        data
    }
}

#[test]
fn sectors_are_read_and_written() {
    in_both_modes(|| {
        let mut rig = Rig::new(false);
        let (status, written, data) = rig.request(0, 3, &[], 1024);
        assert_eq!((status, written), (OK, 1025));
        assert_eq!((data[0], data[511], data[512], data[1023]), (3, 3, 4, 4));
        assert_eq!(rig.request(1, 63, &[9; 512], 0), (OK, 1, vec![]));
        assert_eq!(rig.contents(63), [9; 512]);
        assert_eq!(rig.request(4, 0, &[], 0).0, OK);
    });
}

#[test]
fn what_lies_outside_the_disk_is_refused() {
    in_both_modes(|| {
        let mut rig = Rig::new(false);
        for (sector, len) in
            [(64, 512), (63, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)]
        {
            assert_eq!(rig.request(0, sector, &[], len).0, IO_ERROR, "read {sector} {len}");
            assert_eq!(
                rig.request(1, sector, &vec![1; len], 0).0,
                IO_ERROR,
                "write {sector} {len}"
            );
        }
        for sector in 0..SECTORS {
            assert_eq!(rig.contents(sector), [sector as u8; 512]);
        }
    });
}

#[test]
fn a_failed_read_reports_nothing_as_written() {
    in_both_modes(|| {
        assert_eq!(Rig::new(false).request(0, 64, &[], 512).1, 0);
    });
}

#[test]
fn a_read_only_disk_can_not_be_changed() {
    in_both_modes(|| {
        let mut rig = Rig::new(true);
        let range = [0u8; 16];
        assert_ne!(rig.disk.features() & feature::RO, 0);
        assert_eq!(rig.disk.features() & (feature::DISCARD | feature::WRITE_ZEROES), 0);
        for (kind, out) in [(1, &[1; 512][..]), (11, &range[..]), (13, &range[..])] {
            assert_eq!(rig.request(kind, 0, out, 0).0, IO_ERROR, "{kind}");
        }
        assert_eq!(rig.contents(0), [0; 512]);
        // Even a worker that forgot it can't write: the descriptor is read-only.
        rig.worker.read_only = false;
        assert_eq!(rig.request(1, 0, &[1; 512], 0).0, IO_ERROR);
        assert_eq!(rig.contents(0), [0; 512]);
    });
}

#[test]
fn the_serial_number_is_padded_and_cut() {
    in_both_modes(|| {
        let mut rig = Rig::new(false);
        let (status, written, data) = rig.request(8, 0, &[], 20);
        assert_eq!((status, written), (OK, 21));
        assert_eq!(&data, b"kata-like\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(rig.request(8, 0, &[], 6).2, b"kata-l");
    });
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    in_both_modes(|| {
        let mut rig = Rig::new(false);
        assert_eq!(rig.request(11, 0, &range(2, 2, 0), 0).0, OK);
        assert_eq!(rig.request(13, 0, &[range(8, 1, 1), range(10, 1, 1)].concat(), 0).0, OK);
        for sector in [2, 3, 8, 10] {
            assert_eq!(rig.contents(sector), [0; 512], "{sector}");
        }
        assert_eq!(rig.contents(9), [9; 512]);
        // Zeroes that stay allocated are more than memory files can do.
        assert_eq!(rig.request(13, 0, &range(12, 1, 0), 0).0, UNSUPPORTED);
        assert_eq!(rig.contents(12), [12; 512]);
        assert_eq!(rig.request(11, 0, &range(63, 2, 0), 0).0, IO_ERROR);
        assert_eq!(rig.request(11, 0, &range(u64::MAX, 1, 0), 0).0, IO_ERROR);
        assert_eq!(rig.request(11, 0, &range(0, 1, 1), 0).0, UNSUPPORTED);
        assert_eq!(rig.request(13, 0, &range(0, 1, 2), 0).0, UNSUPPORTED);
        assert_eq!(rig.request(13, 0, &[0; 15], 0).0, IO_ERROR);
        assert_eq!(rig.request(13, 0, &[0; 33 * 16], 0).0, IO_ERROR);
    });
}

#[test]
fn a_range_is_no_longer_than_was_offered() {
    in_both_modes(|| {
        let file = image();
        file.set_len(4 << 30).unwrap();
        let disk = Disk::new(vec![(file, 4 << 30)], false, threads()).unwrap();
        let mut rig = Rig::of(disk);
        for kind in [11, 13] {
            let flags = u32::from(kind == 13);
            assert_eq!(rig.request(kind, 0, &range(8, 1 << 21, flags), 0).0, OK);
            assert_eq!(rig.request(kind, 0, &range(8, (1 << 21) + 1, flags), 0).0, IO_ERROR);
            assert_eq!(rig.request(kind, 0, &range(0, u32::MAX, flags), 0).0, IO_ERROR);
        }
        assert_eq!((rig.contents(7), rig.contents(8)), ([7; 512], [0; 512]));
    });
}

#[test]
fn an_unknown_request_is_unsupported() {
    in_both_modes(|| {
        assert_eq!(Rig::new(false).request(99, 0, &[], 0).0, UNSUPPORTED);
    });
}

#[test]
fn a_request_without_header_fails_and_one_without_status_stops_the_device() {
    in_both_modes(|| {
        let mut rig = Rig::new(false);
        let status = rig.queue.send(&[b"short"], &[1]);
        rig.worker.serve().unwrap();
        assert_eq!(rig.queue.read(status[0], 1), [IO_ERROR]);
        rig.queue.send(&[&[0; 16]], &[]);
        assert!(rig.worker.serve().is_err());
    });
}

#[test]
fn a_hostile_chain_stops_the_device() {
    in_both_modes(|| {
        hostile_chains(256, |name, memory, queue| {
            let mut rig = Rig::new(false);
            rig.worker.queue = Some(queue.active()).into();
            rig.worker.memory = memory.clone();
            assert!(rig.worker.serve().is_err(), "{name}");
        });
    });
}

#[test]
fn a_chain_changed_while_it_is_served_is_survived() {
    in_both_modes(|| {
        let mut rig = Rig::new(true);
        let memory = rig.memory.clone();
        while_rewritten(&memory, 0x10_0000, || {
            for _ in 0..500 {
                let mut queue = TestQueue::new(&memory, 0x10_0000, 256);
                // The second descriptor has room for a status, whatever becomes of the first.
                queue.descriptor(1, 0x18_0000, 513, WRITE, 0);
                rig.worker.queue = Some(queue.active()).into();
                queue.offer(0);
                // Served or refused, as it happens to be when it is read.
                let _ = rig.worker.serve();
            }
        });
        assert_eq!(rig.contents(1), [1; 512]);
    });
}

#[test]
fn random_requests_are_survived() {
    in_both_modes(|| {
        let mut rig = Rig::new(false);
        let mut dice = Dice(42);
        for _ in 0..300 {
            rig.queue = TestQueue::new(&rig.memory, 0x10_0000, 256);
            rig.worker.queue = Some(rig.queue.active()).into();
            let kind = dice.pick(&[0, 1, 4, 8, 11, 13, 14]);
            let sector = dice.pick(&[0, 1, 63, 64, u64::MAX, u64::MAX / 512]);
            let out: Vec<u8> =
                (0..dice.pick(&[0, 1, 16, 512, 1024])).map(|_| dice.roll() as u8).collect();
            let status = rig.request(kind, sector, &out, dice.pick(&[0, 1, 512, 4096])).0;
            assert!(status <= UNSUPPORTED);
        }
        assert_eq!(rig.disk.image.writable().unwrap().metadata().unwrap().len(), SECTORS * SECTOR);
    });
}

fn odd(files: Vec<(File, u64)>, read_only: bool) -> Option<OddSize> {
    match Disk::new(files, read_only, threads()) {
        Err(DiskError::Size(odd)) => Some(odd),
        other => other.map(|_| None).unwrap(),
    }
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    for bytes in [0, 1000, u64::MAX, 1 << 63] {
        assert_eq!(odd(vec![(image(), bytes)], true), Some(OddSize::Bytes(bytes)));
    }
    let parts = |sizes: &[u64]| sizes.iter().map(|bytes| (image(), *bytes)).collect();
    for (sizes, bytes) in
        [(&[1000, 0][..], 0), (&[1, u64::MAX], u64::MAX), (&[1 << 62; 2], 1 << 62)]
    {
        assert_eq!(odd(parts(sizes), true), Some(OddSize::Bytes(bytes)));
    }
    for count in [0, MAX_FDS + 1] {
        assert_eq!(odd(parts(&vec![512; count]), true), Some(OddSize::Parts(count)));
    }
    assert_eq!(odd(parts(&[512, 512]), false), Some(OddSize::Parts(2)));
    assert_eq!(odd(parts(&[1; MAX_FDS]), true), None);
}

/// Parts of these sizes; each byte is the number of its part, from 1.
fn parts(sizes: &[u64]) -> (Rig, Vec<File>) {
    let part = |(number, bytes): (u8, &u64)| {
        let fd = nix::sys::memfd::memfd_create(c"part", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(fd.unwrap());
        file.write_all(&vec![number; *bytes as usize]).unwrap();
        file
    };
    let files: Vec<File> = (1..).zip(sizes).map(part).collect();
    let opened = files.iter().map(|file| file.try_clone().unwrap()).zip(sizes.iter().copied());
    (Rig::of(Disk::new(opened.collect(), true, threads()).unwrap()), files)
}

/// What such a disk is.
fn whole(sizes: &[u64]) -> Vec<u8> {
    let mut whole = Vec::new();
    for (number, bytes) in (1..).zip(sizes) {
        whole.resize(whole.len() + *bytes as usize, number);
        whole.resize(whole.len().next_multiple_of(4096), 0);
    }
    whole
}

#[test]
fn several_files_are_one_disk() {
    in_both_modes(|| {
        let sizes = [4096, 1, 8191, 512, 5000];
        let (mut rig, _files) = parts(&sizes);
        let whole = whole(&sizes);
        let mut capacity = [0; 8];
        rig.disk.read_config(0, &mut capacity);
        let sectors = u64::from_le_bytes(capacity);
        assert_eq!(sectors * SECTOR, whole.len() as u64);
        // Every run of sectors there is: over borders, within paddings, and all of it.
        for first in 0..sectors {
            for end in first + 1..=sectors {
                rig.queue = TestQueue::new(&rig.memory, 0x10_0000, 256);
                rig.worker.queue = Some(rig.queue.active()).into();
                let (from, to) = ((first * SECTOR) as usize, (end * SECTOR) as usize);
                let (status, written, data) = rig.request(0, first, &[], to - from);
                assert_eq!((status, written as usize), (OK, to - from + 1), "{first}..{end}");
                assert!(data == whole[from..to], "{first}..{end}");
            }
        }
        for (first, len) in [(sectors, 512), (sectors - 1, 1024), (u64::MAX, 512), (0, 513)] {
            assert_eq!(rig.request(0, first, &[], len).0, IO_ERROR, "{first} {len}");
        }
    });
}

#[test]
fn of_several_files_none_is_written_to() {
    in_both_modes(|| {
        let (mut rig, files) = parts(&[512, 512]);
        let range = range(0, 1, 0);
        for read_only in [true, false] {
            // Not even by a worker that forgot that it may not.
            rig.worker.read_only = read_only;
            for (kind, out) in [(1, &[9; 512][..]), (11, &range), (13, &range)] {
                assert_eq!(rig.request(kind, 0, out, 0).0, IO_ERROR, "{kind}");
            }
        }
        let mut data = [0; 512];
        std::os::unix::fs::FileExt::read_exact_at(&files[0], &mut data, 0).unwrap();
        assert_eq!(data, [1; 512]);
    });
}

#[test]
fn a_part_that_has_shrunk_fails_alone() {
    in_both_modes(|| {
        let (mut rig, files) = parts(&[4096, 4096, 4096]);
        files[1].set_len(1024).unwrap();
        assert_eq!(rig.request(0, 0, &[], 8 * 512 + 1024).0, OK);
        let (status, written, _) = rig.request(0, 0, &[], 8 * 512 + 1536);
        assert_eq!((status, written), (IO_ERROR, 0));
        assert_eq!(rig.request(0, 10, &[], 512).0, IO_ERROR);
        let (status, _, data) = rig.request(0, 16, &[], 4096);
        assert_eq!((status, data), (OK, vec![3; 4096]));
        // And what has grown shows none of it.
        let (mut rig, files) = parts(&[100, 4096]);
        files[0].set_len(4096).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&files[0], &[7; 4096], 0).unwrap();
        let (_, _, data) = rig.request(0, 0, &[], 4096);
        assert_eq!((&data[..100], &data[100..]), (&[7; 100][..], &[0; 3996][..]));
    });
}

#[test]
fn the_configuration_has_the_layout_of_the_standard() {
    in_both_modes(|| {
        let disk = Rig::new(false).disk;
        let mut data = [0xff; 8];
        disk.read_config(0, &mut data);
        assert_eq!(u64::from_le_bytes(data), SECTORS);
        let mut data = [0xff; 4];
        disk.read_config(12, &mut data);
        assert_eq!(u32::from_le_bytes(data), 254);
        disk.read_config(58, &mut data);
        assert_eq!(data, [0; 4]);
        disk.read_config(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    });
}
