//! Whether a file can be the first process of a guest that holds nothing else: an x86-64 ELF
//! executable that needs no interpreter. Layout: System V ABI, chapter 4, and its AMD64 supplement.

/// Why a file cannot be the first process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAgent {
    /// It is something else, a script or a text.
    #[error("not an ELF file")]
    NotElf,
    /// It ends within its own headers.
    #[error("a damaged ELF file: it ends within its headers")]
    Truncated,
    /// It is for other processors.
    #[error("an ELF file for another kind of processor; the guest is x86-64")]
    WrongMachine,
    /// It is an object file, a core dump.
    #[error("an ELF file that is not an executable")]
    NotExecutable,
    /// It wants a dynamic loader, and the image has none.
    #[error("linked dynamically: it needs {interpreter}, and the guest image holds no libraries")]
    Dynamic {
        /// The loader that it names.
        interpreter: String,
    },
}

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_INTERP: u32 = 3;

/// Checks that `file`, the contents of an executable, can run where there is nothing else.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_static_executable(file: &[u8]) -> Result<(), NotAnAgent> {
    if !file.starts_with(b"\x7fELF") {
        return Err(NotAnAgent::NotElf);
    }
    let header = file.get(..HEADER_SIZE).ok_or(NotAnAgent::Truncated)?;
    let kind = u16_at(header, 16)?;
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN || u16_at(header, 18)? != MACHINE_X86_64
    {
        return Err(NotAnAgent::WrongMachine);
    }
    let mut loads = false;
    for segment in program_headers(file)? {
        let segment = segment?;
        match u32_at(segment, 0)? {
            SEGMENT_LOAD => loads = true,
            SEGMENT_INTERP => {
                return Err(NotAnAgent::Dynamic { interpreter: interpreter(file, segment)? });
            }
            _ => {}
        }
    }
    if !loads || (kind != TYPE_EXEC && kind != TYPE_DYN) {
        return Err(NotAnAgent::NotExecutable);
    }
    Ok(())
}

/// The program headers, as slices of `file`.
fn program_headers(
    file: &[u8],
) -> Result<impl Iterator<Item = Result<&[u8], NotAnAgent>>, NotAnAgent> {
    let start = offset(u64_at(file, 32)?)?;
    let count = usize::from(u16_at(file, 56)?);
    if count > 0 && usize::from(u16_at(file, 54)?) != PROGRAM_HEADER_SIZE {
        return Err(NotAnAgent::Truncated);
    }
    Ok((0..count).map(move |index| {
        slice(file, start.saturating_add(index * PROGRAM_HEADER_SIZE), PROGRAM_HEADER_SIZE)
    }))
}

/// The path in a `PT_INTERP` segment.
fn interpreter(file: &[u8], segment: &[u8]) -> Result<String, NotAnAgent> {
    let path = slice(file, offset(u64_at(segment, 8)?)?, offset(u64_at(segment, 32)?)?)?;
    Ok(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned())
}

fn slice(bytes: &[u8], start: usize, length: usize) -> Result<&[u8], NotAnAgent> {
    start.checked_add(length).and_then(|end| bytes.get(start..end)).ok_or(NotAnAgent::Truncated)
}

fn offset(value: u64) -> Result<usize, NotAnAgent> {
    usize::try_from(value).map_err(|_| NotAnAgent::Truncated)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], NotAnAgent> {
    slice(bytes, at, N)?.try_into().map_err(|_| NotAnAgent::Truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, NotAnAgent> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, NotAnAgent> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, NotAnAgent> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An executable with the given segments: type, offset in the file, size in the file.
    fn executable(kind: u16, machine: u16, segments: &[(u32, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0; HEADER_SIZE];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&kind.to_le_bytes());
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&(HEADER_SIZE as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PROGRAM_HEADER_SIZE as u16).to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for (kind, offset, size) in segments {
            let mut segment = [0; PROGRAM_HEADER_SIZE];
            segment[..4].copy_from_slice(&kind.to_le_bytes());
            segment[8..16].copy_from_slice(&offset.to_le_bytes());
            segment[32..40].copy_from_slice(&size.to_le_bytes());
            file.extend_from_slice(&segment);
        }
        file
    }

    #[test]
    fn static_executables_are_taken() {
        let load = [(SEGMENT_LOAD, 0, 64)];
        assert_eq!(check_static_executable(&executable(TYPE_EXEC, MACHINE_X86_64, &load)), Ok(()));
        assert_eq!(check_static_executable(&executable(TYPE_DYN, MACHINE_X86_64, &load)), Ok(()));
    }

    #[test]
    fn a_dynamic_one_is_refused_and_its_loader_named() {
        let at = (HEADER_SIZE + 2 * PROGRAM_HEADER_SIZE) as u64;
        let mut file = executable(
            TYPE_DYN,
            MACHINE_X86_64,
            &[(SEGMENT_LOAD, 0, 64), (SEGMENT_INTERP, at, 11)],
        );
        file.extend_from_slice(b"/lib/ld.so\0");
        let expected = NotAnAgent::Dynamic { interpreter: "/lib/ld.so".into() };
        assert_eq!(check_static_executable(&file), Err(expected));
    }

    #[test]
    fn other_files_are_refused() {
        let load = [(SEGMENT_LOAD, 0, 64)];
        let arm = executable(TYPE_EXEC, 183, &load);
        let object = executable(1, MACHINE_X86_64, &[]);
        for (file, expected) in [
            (b"#!/bin/sh\n".to_vec(), NotAnAgent::NotElf),
            (Vec::new(), NotAnAgent::NotElf),
            (b"\x7fELF\x02\x01".to_vec(), NotAnAgent::Truncated),
            (arm, NotAnAgent::WrongMachine),
            (object, NotAnAgent::NotExecutable),
        ] {
            assert_eq!(check_static_executable(&file), Err(expected));
        }
    }

    #[test]
    fn no_cut_and_no_offset_makes_it_panic() {
        let whole = executable(
            TYPE_EXEC,
            MACHINE_X86_64,
            &[(SEGMENT_LOAD, 0, 64), (SEGMENT_INTERP, u64::MAX, u64::MAX)],
        );
        assert_eq!(check_static_executable(&whole), Err(NotAnAgent::Truncated));
        for length in 4..whole.len() {
            assert!(check_static_executable(&whole[..length]).is_err(), "{length}");
        }
        let mut far = whole;
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(check_static_executable(&far), Err(NotAnAgent::Truncated));
    }
}
