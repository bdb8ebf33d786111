//! A netlink socket in a namespace.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    buffer::Buffer,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, connect,
        netlink::SocketAddrNetlink, recvfrom, socket_with, sockopt,
    },
};

use super::filter::Instruction;
use crate::Netns;

/// `RTMGRP_LINK` of `include/uapi/linux/rtnetlink.h`: the bit of `RTNLGRP_LINK`.
const RTMGRP_LINK: u32 = 1;

/// A `NETLINK_ROUTE` socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// A socket that hears of every link of its namespace.
    pub(crate) fn for_links(netns: &Netns) -> io::Result<Self> {
        netns.run(|| Self::open(RTMGRP_LINK))
    }

    /// A socket in the caller's own namespace that hears of nothing.
    pub(crate) fn to_ask() -> io::Result<Self> {
        Self::open(0)
    }

    /// A socket for questions, or one that will hear of every link of its namespace.
    pub(crate) fn unsubscribed(netns: &Netns) -> io::Result<Self> {
        netns.run(Self::to_ask)
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

    /// It never blocks: a wait for what does not come would be one for ever.
    fn open(groups: u32) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        // Whoever has CAP_NET_ADMIN over a namespace, as anybody has who makes a user namespace, could
        // fill the queue, and what the kernel says would be dropped. From a socket that is connected to the
        // kernel it alone is heard (`netlink_getsockbyportid`), but for what is said to a group.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
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
    /// `None` for a datagram from anybody else: with CAP_NET_ADMIN one can speak to the group. Only the
    /// kernel's port is 0.
    pub(crate) fn receive(&self, buffer: impl Buffer<u8>) -> io::Result<Option<usize>> {
        let Self(socket) = self;
        let (_, length, sender) = recvfrom(socket, buffer, RecvFlags::TRUNC)?;
        let from_kernel = sender
            .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
            .is_some_and(|sender| sender.pid() == 0);
        Ok(from_kernel.then_some(length))
    }

    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        let Self(socket) = self;
        rustix::net::send(socket, message, rustix::net::SendFlags::empty())?;
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

#[cfg(test)]
mod tests {
    use rustix::net::{SendFlags, getsockname, sendto};

    use super::*;

    #[test]
    fn nobody_but_the_kernel_can_send_to_its_port() {
        let netns = Netns::current().expect("it can be opened");
        for socket in [Socket::for_links(&netns), Socket::unsubscribed(&netns)] {
            let Socket(socket) = socket.expect("it can be made");
            let port = getsockname(&socket).expect("it has an address");
            let stranger = socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            );
            let stranger = stranger.expect("it can be made");
            let refused = sendto(&stranger, b"x", SendFlags::empty(), &port)
                .expect_err("it is not for strangers");
            // The latter without CAP_NET_ADMIN, whoever listens.
            let reasons = [rustix::io::Errno::CONNREFUSED, rustix::io::Errno::PERM];
            assert!(reasons.contains(&refused), "{refused}");
        }
    }
}
