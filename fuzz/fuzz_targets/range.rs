#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| darter_fuzz_properties::range(bytes));
