//! libFuzzer's entry to [`vpci_fuzz::capability_chain`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vpci_fuzz::capability_chain(data));
