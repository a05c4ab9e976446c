//! Taps: network interfaces whose other end is a descriptor.

use netlink::route::RouteNetlinkMessage;
use netlink::route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink::{Change, Client};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// What our taps' names begin with; the kernel puts a number behind.
pub const PREFIX: &str = "kata-like";

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

/// Bytes of the virtio header before each frame.
const HEADER: libc::c_int = 12;

/// Makes a tap in the thread's network namespace; gives its descriptor and its index. It carries frames and nothing of
/// its own: neither ARP nor IPv6.
///
/// # Errors
/// The system's.
pub fn make(client: &mut Client, mtu: u32) -> io::Result<(File, u32)> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let tap = options
        .open("/dev/net/tun")
        .map_err(|e| io::Error::new(e.kind(), format!("open /dev/net/tun: {e}")))?;
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(PREFIX.bytes().chain(*b"%d")) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let header = HEADER;
    // SAFETY: the requests read, and the first writes, values that live for the calls; the descriptor is open.
    unsafe {
        succeeded(libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request))?;
        succeeded(libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header))?;
    }
    let name = request.ifr_name.map(libc::c_char::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    // SAFETY: a terminated text that lives for the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    for message in messages(index, mtu) {
        let outcome = client.change(RouteNetlinkMessage::SetLink(message), Change::Existing);
        match outcome {
            // A host without IPv6 has nothing to turn off.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            outcome => outcome?,
        }
    }
    Ok((tap, index))
}

fn messages(index: u32, mtu: u32) -> [LinkMessage; 2] {
    let mut quiet = LinkMessage::default();
    quiet.header.index = index;
    let mut up = quiet.clone();
    quiet.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])])];
    up.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    up.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    up.attributes = vec![LinkAttribute::Mtu(mtu)];
    [quiet, up]
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
