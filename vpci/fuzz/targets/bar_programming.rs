//! libFuzzer's entry to [`vpci_fuzz::bar_programming`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vpci_fuzz::bar_programming(data));
