//! The header of every vsock packet (virtio 1.3 §5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// Context id of the host (virtio 1.3 §5.10.4).
pub const HOST_CID: u64 = 2;
/// The only type of socket offered (§5.10.6.2).
pub const TYPE_STREAM: u16 = 1;

/// SHUTDOWN flag: the sender will receive no more (§5.10.6.5).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (virtio 1.3 §5.10.6, `enum virtio_vsock_op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Please connect.
    Request = 1,
    /// Connected.
    Response = 2,
    /// There is no such connection (any more).
    Reset = 3,
    /// No more data in one or both directions.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Here is my credit.
    CreditUpdate = 6,
    /// Please tell me your credit.
    CreditRequest = 7,
}

impl Op {
    fn from_wire(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header, in the host's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Type of socket.
    pub kind: u16,
    /// The operation, or its unknown number.
    pub op: Result<Op, u16>,
    /// Depends on the operation.
    pub flags: u32,
    /// Bytes the sender can buffer for this connection (§5.10.6.3).
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// From the wire form, little-endian.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let op = u16_at(30);
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: Op::from_wire(op).ok_or(op),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// The wire form.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        let op = self.op.map_or_else(|unknown| unknown, |op| op as u16);
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_layout_of_the_standard() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: HOST_CID,
            src_port: 0x1112_1314,
            dst_port: 1026,
            len: 0x10000,
            kind: TYPE_STREAM,
            op: Ok(Op::Data),
            flags: 3,
            buf_alloc: 0x4_0000,
            fwd_cnt: 0xffff_fffe,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x14, 0x13, 0x12, 0x11]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn an_unknown_operation_keeps_its_number() {
        for op in [0u16, 8, 0x105, u16::MAX] {
            let mut bytes = [0; HEADER];
            bytes[30..32].copy_from_slice(&op.to_le_bytes());
            assert_eq!(Header::from_bytes(&bytes).op, Err(op));
            assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
