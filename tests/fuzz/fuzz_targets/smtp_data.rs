#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| redirect_relay::properties::body(input));
