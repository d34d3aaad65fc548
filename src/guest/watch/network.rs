//! Which file systems cannot be watched: those that somebody else may change behind the kernel.

use std::{io, path::Path};

/// NFS, SMB1 (`smbfs`), CIFS, SMB2, FUSE: the kernel's magic numbers.
const NETWORK: [i64; 5] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546];

/// Whether `path` is on a file system whose changes inotify does not see.
pub(crate) fn is_network_mount(path: &Path) -> io::Result<bool> {
    Ok(is_network_magic(nix::sys::statfs::statfs(path)?.filesystem_type().0))
}

fn is_network_magic(magic: i64) -> bool {
    // The kernel's 32-bit magics may arrive sign-extended.
    NETWORK.contains(&(magic & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_network_magics() {
        for magic in [0x6969, 0xff53_4d42, -11_317_950, 0x6573_5546] {
            assert!(is_network_magic(magic), "{magic:x}");
        }
        // ext4, overlay, tmpfs
        for magic in [0xef53, 0x794c_7630, 0x0102_1994] {
            assert!(!is_network_magic(magic), "{magic:x}");
        }
        assert!(!is_network_mount(Path::new("/")).unwrap());
    }
}
