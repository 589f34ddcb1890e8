#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mef_fuzz::targets::run("direct", data));
