//! What stands for the handle of what a guest has opened without asking.

/// `FUSE_NO_HANDLE`; virtiofsd counts its own from 0.
pub const UNASKED: u64 = u64::MAX;
