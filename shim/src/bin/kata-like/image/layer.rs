//! One layer: a tar file, usually packed, checked against the digest of its unpacked bytes.

use super::bounds::Allowance;
use super::manifest::hex;
use super::root::Root;
use super::trash::Trash;
use super::unpack;
use super::zstd::Frames;
use anyhow::{Context, Result, ensure};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, BufReader, Read};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads are made in blocks of this size, bytes.
const BLOCK: usize = 128 * 1024;

/// Unpacks a layer over what is in `root`.
///
/// The digest is known only at the end; until then nothing but the directory has been changed.
pub(super) fn unpack(
    blob: impl Read,
    diff_id: &str,
    root: &Root,
    trash: &mut Trash,
    allowance: &Allowance,
) -> Result<()> {
    let mut blob = BufReader::with_capacity(BLOCK, blob);
    let head = blob.fill_buf().context("cannot read it")?;
    let tar: Box<dyn Read> = if head.starts_with(&GZIP) {
        Box::new(MultiGzDecoder::new(blob))
    } else if head.starts_with(&ZSTD) || is_skipped_frame(head) {
        Box::new(Frames::new(blob))
    } else {
        Box::new(blob)
    };
    let mut tar = Hashing { inner: allowance.of(tar), hash: Sha256::new() };
    unpack::unpack(BufReader::with_capacity(BLOCK, &mut tar), root, trash, allowance)?;
    // What follows the end of a tar file belongs to the digest.
    io::copy(&mut tar, &mut io::sink()).context("cannot read to its end")?;
    let found = format!("sha256:{}", hex(&tar.hash.finalize()));
    ensure!(found == diff_id, "it is damaged: its digest is {found}, not {diff_id}");
    Ok(())
}

/// Whether zstd data begins with a frame that is to be skipped, as some that is packed in parallel does.
fn is_skipped_frame(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Computes the digest of what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::fs::{self, File};

    #[test]
    fn a_layer_is_the_same_however_it_is_packed() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(100_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", &*vec![b'x'; 100_000]).unwrap();
        let tar = tar.into_inner().unwrap();
        let digest = format!("sha256:{}", hex(&Sha256::digest(&tar)));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &tar).unwrap();
        let zstd = compress_to_vec(&*tar, CompressionLevel::Fastest);
        let skipped = [&0x184d_2a50_u32.to_le_bytes()[..], &[0; 4], &zstd].concat();
        for blob in [tar, gzip.finish().unwrap(), zstd, skipped] {
            let scratch = tempfile::tempdir().unwrap();
            let unpack = |digest: &str, most| {
                let trash = tempfile::tempdir().unwrap();
                let mut trash = Trash::new(File::open(trash.path()).unwrap().into());
                let root = Root::open(scratch.path()).unwrap();
                super::unpack(&*blob, digest, &root, &mut trash, &Allowance::new(most))
            };
            unpack(&digest, 1 << 20).unwrap();
            assert_eq!(fs::metadata(scratch.path().join("file")).unwrap().len(), 100_000);
            assert!(unpack("sha256:0", 1 << 20).unwrap_err().to_string().contains("damaged"));
            let error = format!("{:#}", unpack(&digest, 65536).unwrap_err());
            assert!(error.contains("more than 0 MiB"), "{error}");
        }
    }
}
