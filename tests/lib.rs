//! End-to-end tests of hexkv. Everything lives in the one test binary (`main.rs` and a file per subject); this
//! library is empty.
