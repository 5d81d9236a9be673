//! The single mapping of failures to the error numbers of the wire.

use towline_block::ErrorKind;

/// An error number of the protocol. Nothing else may reach the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpace = 28,
    Shutdown = 108,
}

impl Errno {
    pub fn to_wire(self) -> u32 {
        self as u32
    }
}

/// What a client is told of a failed source. The protocol has no number for most
/// causes, asks never to say ENOMEM, and wants every kind of "full" as ENOSPC.
impl From<&towline_block::Error> for Errno {
    fn from(error: &towline_block::Error) -> Errno {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => return Errno::NoSpace,
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => return Errno::Perm,
            _ => {}
        }
        match error.kind() {
            ErrorKind::NoSpace => Errno::NoSpace,
            ErrorKind::InvalidInput => Errno::Inval,
            _ => Errno::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use towline_block::Error;

    #[test]
    fn every_kind_of_full_is_no_space() {
        for code in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            let error = Error::io("write", io::Error::from_raw_os_error(code));
            assert_eq!(Errno::from(&error), Errno::NoSpace);
        }
    }

    #[test]
    fn what_has_no_number_is_an_io_error() {
        for code in [libc::EIO, libc::ENOMEM, libc::ETIMEDOUT, libc::EOPNOTSUPP] {
            let error = Error::io("write", io::Error::from_raw_os_error(code));
            assert_eq!(Errno::from(&error), Errno::Io);
        }
        let refused = Error::io("write", io::Error::from_raw_os_error(libc::EROFS));
        assert_eq!(Errno::from(&refused), Errno::Perm);
    }
}
