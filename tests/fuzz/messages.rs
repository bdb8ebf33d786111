//! Datagrams from a netlink socket.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| ifmon::internals::messages(datagram));
