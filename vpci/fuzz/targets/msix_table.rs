//! libFuzzer's entry to [`vpci_fuzz::msix_table`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vpci_fuzz::msix_table(data));
