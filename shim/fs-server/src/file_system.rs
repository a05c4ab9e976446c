//! How the directory is served: what is cached for how long, which features the guest is offered.

use crate::layers::Layers;
use crate::live::{LiveMounts, Node, Roots};
use anyhow::{Context, Result};
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::fuse::{ForgetIn, InHeader, Opcode, OutHeader};
use virtiofsd::passthrough::{CachePolicy, Config, NegotiationMode, PassthroughFs};
use virtiofsd::server::Server;

/// Descriptors that are not the guest's files: the socket, one for each memory region, and those that
/// are opened for a moment.
const OWN_DESCRIPTORS: u64 = 128;

/// Answers FUSE requests.
pub struct Files(Box<dyn Answers + Send + Sync>);

/// What a file system does with requests.
trait Answers {
    fn answer(
        &self,
        reader: Reader<'_, BitmapMmapRegion>,
        writer: Writer<'_, BitmapMmapRegion>,
    ) -> virtiofsd::Result<usize>;
    fn destroy(&self);
}

/// A file system, and the library's server of it.
struct Served<F: FileSystem + Sync> {
    server: Server<F>,
    files: F,
}

impl Files {
    fn of<F: FileSystem<Inode = Node> + Clone + Send + Sync + 'static>(files: F) -> Self {
        Self(Box::new(Served { server: Server::new(files.clone()), files }))
    }

    /// Carries out the request and writes the answer; gives its length, bytes.
    ///
    /// # Errors
    /// It is no request, or there is no room for an answer where there must be one.
    pub(crate) fn answer(
        &self,
        reader: Reader<'_, BitmapMmapRegion>,
        writer: Writer<'_, BitmapMmapRegion>,
    ) -> virtiofsd::Result<usize> {
        self.0.answer(reader, writer)
    }

    /// Forgets all that the guest knows and has open.
    pub(crate) fn destroy(&self) {
        self.0.destroy();
    }
}

impl<F: FileSystem<Inode = Node> + Send + Sync> Answers for Served<F> {
    fn answer(
        &self,
        reader: Reader<'_, BitmapMmapRegion>,
        writer: Writer<'_, BitmapMmapRegion>,
    ) -> virtiofsd::Result<usize> {
        if writer.available_bytes() < size_of::<OutHeader>() {
            return forget(&self.files, reader);
        }
        // No mapping of files into guest memory (DAX), so no requests to the front end.
        self.server.handle_message(reader, writer, None::<&mut ()>)
    }

    fn destroy(&self) {
        self.server.destroy();
    }
}

/// The one request of Linux that wants no answer. virtiofsd's server relies on room for one; the guest can change
/// the request under its eyes, so it is not given what has none.
fn forget<F: FileSystem<Inode = Node>>(
    files: &F,
    mut reader: Reader<'_, BitmapMmapRegion>,
) -> virtiofsd::Result<usize> {
    let header: InHeader = reader.read_obj().map_err(virtiofsd::Error::DecodeMessage)?;
    if header.opcode != Opcode::Forget as u32 {
        let text = "no room for an answer";
        return Err(virtiofsd::Error::EncodeMessage(io::Error::other(text)));
    }
    let ForgetIn { nlookup } = reader.read_obj().map_err(virtiofsd::Error::DecodeMessage)?;
    files.forget(header.into(), header.nodeid.into(), nlookup);
    Ok(0)
}

/// Serves the root directory of this (confined) process, or thread.
///
/// # Errors
/// It can't be opened.
pub fn open(own_descriptors: File, roots: Roots) -> Result<Files> {
    Ok(Files::of(tree(own_descriptors, roots)?))
}

/// The same for root file systems to which nobody writes, see [`Layers`].
///
/// # Errors
/// As [`open`].
pub fn open_layers(own_descriptors: File) -> Result<Files> {
    Ok(Files::of(Layers::new(tree(own_descriptors, Roots::Guests)?)))
}

fn tree(own_descriptors: File, roots: Roots) -> Result<LiveMounts> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let config = Config {
        entry_timeout: roots.validity(),
        attr_timeout: roots.validity(),
        // Pages stay in the guest's cache when a file is opened again, unless its size or time of change
        // turned out to be different when its attributes were asked for: with Auto, each exec of a program
        // would read it anew.
        cache_policy: CachePolicy::Always,
        root_dir: "/".into(),
        // The server takes setuid and setgid from a file that is written. Otherwise the guest would ask for the
        // attribute of capabilities before each write, and of files it does not cache take nothing.
        killpriv_v2: true,
        xattr: true,
        posix_acl: NegotiationMode::Auto,
        proc_sfd_rawfd: Some(own_descriptors),
        // Files of bind mounts are not cached, and can be mapped into memory all the same.
        allow_mmap: true,
        // Each mount gets a device number of its own in the guest, so inode numbers don't collide.
        announce_submounts: true,
        readdirplus: true,
        // Of two trees each has half.
        guest_fd_limit: limit.unwrap_or(u64::MAX).saturating_sub(OWN_DESCRIPTORS) / 2,
        ..Config::default()
    };
    let files = PassthroughFs::new(config).context("cannot open the shared directory")?;
    Ok(LiveMounts(Arc::new(files), roots, Arc::default()))
}
