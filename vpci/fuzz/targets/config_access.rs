//! libFuzzer's entry to [`vpci_fuzz::config_access`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vpci_fuzz::config_access(data));
