//! What ends with a test also when it fails, and what is said when it cannot run.

use std::{
    io::Write as _,
    ops::{Deref, DerefMut},
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
};

use super::binary;

/// The switch of tests that take long. Servers refuse variables of their prefix that they do not know, so it is for the tests
/// alone.
pub const LONG_TESTS: &str = "HEXKV_LONG_TESTS";

/// The binary `name`, to be run with the environment of the tests.
pub fn inheriting(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    command.env_remove(LONG_TESTS);
    command
}

/// Says in one line that the running test is skipped, and why. Past the capture of what passing tests print, so that it is seen.
pub fn skipped(why: impl std::fmt::Display) {
    let test = std::thread::current();
    let name = test.name().unwrap_or("a test");
    writeln!(std::io::stderr(), "{name}: skipped: {why}").expect("stderr can be written to");
}

/// Stops what looks at the flag when dropped, also when a check failed: else a scope would wait for it forever.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A process that is killed when it is dropped.
pub struct Killed(pub Child);

impl Deref for Killed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Killed {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        if !std::thread::panicking() {
            ended.expect("a child can be ended");
        }
    }
}
