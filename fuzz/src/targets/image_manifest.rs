//! An image's index, manifests and configuration, in a directory or a tar file. Reaches both formats down to the
//! list of layers.
//!
//! The input is a list of files with a zero byte between: `index.json`, `manifest.json`, then blobs. `@3` stands
//! for the digest of blob 3, which may itself have the digests of later ones.

use crate::{image, scratch};
use sha2::{Digest, Sha256};
use std::path::Path;

const MOST_FILES: usize = 10;

/// Takes one input.
pub fn take(data: &[u8]) {
    let Some((form, data)) = data.split_first() else { return };
    let directory = scratch::directory();
    let tag = (form & 4 != 0).then_some("tag");
    let path = if form.is_multiple_of(4) {
        let path = directory.path().join("raw");
        std::fs::write(&path, data).expect("a file");
        path
    } else {
        store(data, directory.path(), form & 3 == 1)
    };
    if let Ok(image) = image::Image::open(&path, tag) {
        let _ = image.config().config();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).expect("a directory");
        let trash = std::fs::File::open(directory.path()).expect("a directory");
        let root = image::Root::open(&root).expect("a directory");
        let allowance = image::Allowance::new(1 << 20);
        let _ = image.unpack(&root, &mut image::Trash::new(trash.into()), &allowance);
    }
}

/// Stores the files of an input as an image; answers the path.
fn store(data: &[u8], directory: &Path, packed: bool) -> std::path::PathBuf {
    let mut files: Vec<Vec<u8>> =
        data.split(|&b| b == 0).take(MOST_FILES).map(<[u8]>::to_vec).collect();
    let mut names = vec!["index.json".to_owned(), "manifest.json".to_owned()];
    names.resize(files.len().max(2), String::new());
    for number in (0..files.len()).rev() {
        let file = std::mem::take(&mut files[number]);
        let mut text = Vec::with_capacity(file.len());
        let mut bytes = file.into_iter().peekable();
        while let Some(byte) = bytes.next() {
            let blob = bytes.peek().map(|b| usize::from(b.wrapping_sub(b'0')));
            match blob.filter(|blob| byte == b'@' && *blob > number && *blob < names.len()) {
                Some(blob) => {
                    bytes.next();
                    text.extend(names[blob].rsplit('/').next().unwrap_or_default().bytes());
                }
                None => text.push(byte),
            }
        }
        if number >= 2 {
            let digest = Sha256::digest(&text);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            names[number] = format!("blobs/sha256/{hex}");
        }
        files[number] = text;
    }
    let files = names.iter().zip(&files).filter(|(_, text)| !text.is_empty());
    if packed {
        let path = directory.join("image.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&path).expect("a file"));
        for (name, text) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, name, &**text).expect("a file");
        }
        tar.finish().expect("a file");
        return path;
    }
    std::fs::create_dir_all(directory.join("blobs/sha256")).expect("a directory");
    for (name, text) in files {
        std::fs::write(directory.join(name), text).expect("a file");
    }
    directory.to_owned()
}
