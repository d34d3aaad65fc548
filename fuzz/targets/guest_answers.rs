//! Runs `firkin::fuzzing::guest_answers` on what libFuzzer makes up.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firkin_fuzz::bounded(firkin::fuzzing::guest_answers, data));
