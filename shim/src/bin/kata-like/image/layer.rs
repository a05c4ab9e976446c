//! One layer: a tar file, usually packed, checked against the digest of its unpacked bytes.

use super::manifest::hex;
use super::root::Root;
use super::trash::Trash;
use super::unpack;
use anyhow::{Context, Result, bail, ensure};
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
pub(super) fn unpack(blob: impl Read, diff_id: &str, root: &Root, trash: &mut Trash) -> Result<()> {
    let mut blob = BufReader::with_capacity(BLOCK, blob);
    let head = blob.fill_buf().context("cannot read it")?;
    if head.starts_with(&GZIP) {
        return verified(MultiGzDecoder::new(blob), diff_id, root, trash);
    }
    if head.starts_with(&ZSTD) {
        bail!(
            "it is packed with zstd; convert the image, for example: skopeo copy --dest-compress-format gzip …"
        );
    }
    verified(blob, diff_id, root, trash)
}

fn verified(tar: impl Read, diff_id: &str, root: &Root, trash: &mut Trash) -> Result<()> {
    let mut tar = Hashing { inner: tar, hash: Sha256::new() };
    unpack::unpack(BufReader::with_capacity(BLOCK, &mut tar), root, trash)?;
    // What follows the end of a tar file belongs to the digest.
    io::copy(&mut tar, &mut io::sink()).context("cannot read to its end")?;
    let found = format!("sha256:{}", hex(&tar.hash.finalize()));
    ensure!(found == diff_id, "it is damaged: its digest is {found}, not {diff_id}");
    Ok(())
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
