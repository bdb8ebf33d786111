//! A kernel's description of its types.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| ifmon::internals::btf(file));
