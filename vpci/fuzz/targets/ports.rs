//! libFuzzer's entry to [`vpci_fuzz::ports`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vpci_fuzz::ports(data));
