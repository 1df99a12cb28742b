//! libFuzzer's entry to [`arch_fuzz::instruction`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| arch_fuzz::instruction(data));
