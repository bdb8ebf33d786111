//! A netlink socket in a namespace.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recvfrom,
    socket_with, sockopt,
};

use super::filter::Instruction;
use crate::Netns;

/// `RTMGRP_LINK` of `include/uapi/linux/rtnetlink.h`: the bit of `RTNLGRP_LINK`.
const RTMGRP_LINK: u32 = 1;

/// A `NETLINK_ROUTE` socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// A socket for questions: it blocks, and belongs to no group.
    pub(crate) fn for_requests(netns: &Netns) -> io::Result<Self> {
        netns.run(|| Self::open(SocketFlags::empty(), 0))
    }

    /// A socket that hears of every link of its namespace. It never blocks.
    pub(crate) fn for_links(netns: &Netns) -> io::Result<Self> {
        netns.run(|| Self::open(SocketFlags::NONBLOCK, RTMGRP_LINK))
    }

    /// A socket that will hear of every link of its namespace. It never blocks.
    pub(crate) fn unsubscribed(netns: &Netns) -> io::Result<Self> {
        netns.run(|| Self::open(SocketFlags::NONBLOCK, 0))
    }

    /// From here on it hears of every link.
    pub(crate) fn subscribe(&self) -> io::Result<()> {
        /// `RTNLGRP_LINK` of `include/uapi/linux/rtnetlink.h`
        const RTNLGRP_LINK: libc::c_int = 1;
        set_option(
            self.as_fd(),
            (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP),
            &RTNLGRP_LINK,
        )
    }

    /// A number that no other socket of the host has.
    pub(crate) fn cookie(&self) -> io::Result<u64> {
        let Self(socket) = self;
        Ok(sockopt::socket_cookie(socket)?)
    }

    fn open(flags: SocketFlags, groups: u32) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags | SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Asks for a receive buffer of this many bytes, beyond `net.core.rmem_max` where the caller
    /// has CAP_NET_ADMIN.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        let Self(socket) = self;
        sockopt::set_socket_recv_buffer_size_force(socket, bytes)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes))
            .map_err(Into::into)
    }

    /// One datagram from the kernel: its whole length, which is more than the buffer's when it was
    /// cut off.
    ///
    /// `None` for a datagram from anybody else. Any process may send to a netlink socket's port;
    /// only the kernel's is 0.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Self(socket) = self;
        let (_, length, sender) = recvfrom(socket, buffer, RecvFlags::TRUNC)?;
        let from_kernel = sender
            .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
            .is_some_and(|sender| sender.pid() == 0);
        Ok(from_kernel.then_some(length))
    }

    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        let Self(socket) = self;
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(socket, message, rustix::net::SendFlags::empty(), &kernel)?;
        Ok(())
    }

    /// Puts a filter on the socket, in place of the one before. It takes effect between two
    /// messages.
    pub(crate) fn attach_filter(&self, program: &[Instruction]) -> io::Result<()> {
        attach_filter(self.as_fd(), program)
    }

    /// Takes the filter off.
    pub(crate) fn detach_filter(&self) -> io::Result<()> {
        let none: libc::c_int = 0;
        match set_option(
            self.as_fd(),
            (libc::SOL_SOCKET, libc::SO_DETACH_FILTER),
            &none,
        ) {
            // There was none.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}

/// `setsockopt(SO_ATTACH_FILTER)`, on a socket of any kind.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    set_option(socket, (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), &filter)
}

fn set_option<T>(
    socket: BorrowedFd<'_>,
    (level, option): (libc::c_int, libc::c_int),
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads; a
    // `sock_fprog` in it points to as many instructions as it says, and they outlive the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
