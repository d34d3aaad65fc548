//! A machine's host API: a listening socket at 192.0.2.1:80 that takes no port from the user.
//!
//! Two sockets cannot listen on one port if one of them listens on every address, and port 80 on every
//! address is what users' servers want. So the socket listens on envd's port, which is nobody's but
//! ours, at an address that only the host API has, and a program at the machine's network namespace
//! gives it the connections to port 80 of that address, whoever listens there.
#![expect(unsafe_code, reason = "neither bpf(2) nor the interface ioctls are wrapped by a crate here")]

use std::{
    ffi::CStr,
    fs::File,
    io, mem,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::sandbox::ENVD_PORT;

/// Where programs in E2B's sandboxes look for it.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: i32 = 80;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// A second name of the loopback interface, for a second address.
const ALIAS: &CStr = c"lo:1";
const LICENSE: &CStr = c"Apache-2.0";

/// bpf(2)'s commands and kinds (`linux/bpf.h`).
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_OF_SOCKETS: u32 = 15;
const PROG_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// The socket, and what leads connections to it for as long as it is open.
#[derive(Debug)]
pub(super) struct Steered {
    pub(super) listener: OwnedFd,
    pub(super) link: OwnedFd,
}

/// Makes both in the network namespace that the thread is in.
pub(super) fn open() -> io::Result<Steered> {
    add_address()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    // One that an earlier gateway left may have connections that linger.
    rustix::net::sockopt::set_socket_reuseaddr(&listener, true)?;
    rustix::net::bind(&listener, &SocketAddrV4::new(ADDRESS, ENVD_PORT))?;
    rustix::net::listen(&listener, BACKLOG)?;
    let sockets = map_of(listener.as_fd())?;
    let program = load(&program(sockets.as_fd()))?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let mut attr = Attr::default();
    attr.put_fd(0, program.as_fd());
    attr.put_fd(4, namespace.as_fd());
    attr.put(8, &ATTACH_SK_LOOKUP.to_ne_bytes());
    // The link holds the program, and that the map.
    let link = attr.descriptor(LINK_CREATE)?;
    Ok(Steered { listener, link })
}

/// Gives the loopback interface its second address; a no-op when it has it.
fn add_address() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    for (request, address) in [
        (libc::SIOCSIFADDR, ADDRESS),
        // Nothing but the address itself is reached by it.
        (libc::SIOCSIFNETMASK, Ipv4Addr::BROADCAST),
    ] {
        // SAFETY: an all-zero ifreq is a valid one.
        let mut interface: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in interface.ifr_name.iter_mut().zip(ALIAS.to_bytes()) {
            *to = from.cast_signed();
        }
        let address = libc::sockaddr_in {
            sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: both are sixteen bytes, and the kernel reads the address by its family.
        interface.ifr_ifru.ifru_addr =
            unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
        // SAFETY: the kernel reads one ifreq, which outlives the call.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw const interface) };
        if done == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether the kernel takes the program from this process. Nothing of it stays.
pub(super) fn probe() -> io::Result<()> {
    load(&program(empty_map()?.as_fd())).map(drop)
}

fn empty_map() -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    for (at, value) in [(0, MAP_OF_SOCKETS), (4, 4), (8, 8), (12, 1)] {
        attr.put(at, &value.to_ne_bytes());
    }
    attr.descriptor(MAP_CREATE)
}

/// A map with one place, and the socket in it.
fn map_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = empty_map()?;
    let (key, value) = (0_u32, u64::from(socket.as_raw_fd().cast_unsigned()));
    let mut attr = Attr::default();
    attr.put_fd(0, map.as_fd());
    attr.put_pointer(8, &raw const key);
    attr.put_pointer(16, &raw const value);
    attr.call(MAP_UPDATE)?;
    Ok(map)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr.put(0, &PROG_SK_LOOKUP.to_ne_bytes());
    attr.put(4, &u32::try_from(program.len()).unwrap_or(u32::MAX).to_ne_bytes());
    attr.put_pointer(8, program.as_ptr());
    attr.put_pointer(16, LICENSE.as_ptr());
    attr.put(68, &ATTACH_SK_LOOKUP.to_ne_bytes());
    attr.descriptor(PROG_LOAD)
}

/// One instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The destination's number in the low half, the source's in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `if TCP to 192.0.2.1:80 { give it to the socket of the map }`; everything else goes its way.
fn program(sockets: BorrowedFd<'_>) -> Vec<Instruction> {
    /// Fields of `struct bpf_sk_lookup`.
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    const LOCAL_PORT: i16 = 60;
    /// Helpers' numbers.
    const MAP_LOOKUP: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    let op = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    };
    let (load_word, copy, set, differs, is_zero, call) = (0x61, 0xbf, 0xb7, 0x55, 0x15, 0x85);
    let address = i32::from_ne_bytes(ADDRESS.octets());
    vec![
        op(copy, 6, 1, 0, 0),
        op(load_word, 2, 6, PROTOCOL, 0),
        op(differs, 2, 0, 18, libc::IPPROTO_TCP),
        op(load_word, 2, 6, LOCAL_IP4, 0),
        op(differs, 2, 0, 16, address),
        op(load_word, 2, 6, LOCAL_PORT, 0),
        op(differs, 2, 0, 14, PORT),
        // The key, zero, on the stack.
        op(0x62, 10, 0, -4, 0),
        op(copy, 2, 10, 0, 0),
        op(0x07, 2, 0, 0, -4),
        // A map's descriptor is an immediate of two words.
        op(0x18, 1, 1, 0, sockets.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        op(call, 0, 0, 0, MAP_LOOKUP),
        op(is_zero, 0, 0, 7, 0),
        op(copy, 7, 0, 0, 0),
        op(copy, 1, 6, 0, 0),
        op(copy, 2, 7, 0, 0),
        op(set, 3, 0, 0, 0),
        op(call, 0, 0, 0, SK_ASSIGN),
        op(copy, 1, 7, 0, 0),
        op(call, 0, 0, 0, SK_RELEASE),
        // 1: pass; where a socket was assigned, to that one.
        op(set, 0, 0, 0, 1),
        op(0x95, 0, 0, 0, 0),
    ]
}

/// `union bpf_attr`, as far as it is used.
#[derive(Debug)]
#[repr(C, align(8))]
struct Attr([u8; 128]);

// === impl Attr ===

impl Default for Attr {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attr {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_fd(&mut self, at: usize, fd: BorrowedFd<'_>) {
        self.put(at, &fd.as_raw_fd().to_ne_bytes());
    }

    fn put_pointer<T>(&mut self, at: usize, pointer: *const T) {
        self.put(at, &(pointer as u64).to_ne_bytes());
    }

    fn call(&self, command: libc::c_int) -> io::Result<libc::c_long> {
        // SAFETY: the attribute is as long as is told; what its pointers name outlives the call, as
        // all callers borrow it over the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_ptr(), self.0.len()) };
        if done == -1 { Err(io::Error::last_os_error()) } else { Ok(done) }
    }

    fn descriptor(&self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = libc::c_int::try_from(self.call(command)?).map_err(io::Error::other)?;
        // SAFETY: these commands return a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv6Addr, TcpListener, TcpStream},
        thread,
    };

    /// In a network namespace of its own, in a thread that ends with it. None: not root.
    fn alone<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let inside = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            work()
        };
        Some(thread::spawn(inside).join().unwrap())
    }

    fn greet(mut stream: TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).unwrap();
    }

    fn heard(address: impl std::net::ToSocketAddrs) -> io::Result<String> {
        let mut text = String::new();
        TcpStream::connect(address)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn the_user_has_port_80_and_the_host_api_its_address() {
        alone(|| {
            let Steered { listener, link } = open().unwrap();
            rustix::io::ioctl_fionbio(&listener, false).unwrap();
            let host = TcpListener::from(listener);
            // Every way in which a user's server takes a port.
            for address in ["0.0.0.0:80", "127.0.0.1:80", "[::]:80"] {
                let user = TcpListener::bind(address).unwrap();
                thread::scope(|scope| {
                    scope.spawn(|| greet(host.accept().unwrap().0, "host"));
                    scope.spawn(|| greet(user.accept().unwrap().0, "user"));
                    assert_eq!(heard((ADDRESS, 80)).unwrap(), "host", "{address}");
                    assert_eq!(heard((Ipv4Addr::LOCALHOST, 80)).unwrap(), "user", "{address}");
                });
            }
            assert!(heard((Ipv6Addr::LOCALHOST, 80)).is_err());
            let other = TcpListener::bind("0.0.0.0:81").unwrap();
            thread::scope(|scope| {
                scope.spawn(|| greet(other.accept().unwrap().0, "user"));
                assert_eq!(heard((ADDRESS, 81)).unwrap(), "user", "only port 80 is led elsewhere");
            });
            drop(link);
            assert!(heard((ADDRESS, 80)).is_err(), "without its link nobody is led anywhere");
        });
    }

    #[test]
    fn it_can_be_opened_again_when_the_former_one_is_gone() {
        alone(|| {
            drop(open().unwrap());
            let again = open().unwrap();
            assert!(open().is_err(), "but not twice at a time");
            drop(again);
        });
    }
}
