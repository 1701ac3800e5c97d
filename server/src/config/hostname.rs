//! `{hostname}` in names: the machine's own name, so that nodes which are all started alike, such as the containers of one
//! scaled service, have names and addresses of their own.

use std::borrow::Cow;

/// What stands for the machine's name.
pub(super) const PLACEHOLDER: &str = "{hostname}";

/// `text` with the name of this machine, or of this container, in place of each [`PLACEHOLDER`].
pub(super) fn fill_in(text: &str) -> Cow<'_, str> {
    if !text.contains(PLACEHOLDER) {
        return Cow::Borrowed(text);
    }
    // A name that is not UTF-8 is no host name either: what is shown in its place is refused as one.
    Cow::Owned(text.replace(PLACEHOLDER, &rustix::system::uname().nodename().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_placeholder_is_replaced() {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let name = name.trim();
        assert_eq!(fill_in("hex_{hostname}@{hostname}"), format!("hex_{name}@{name}"));
        assert_eq!(fill_in("{HOSTNAME}{host}"), "{HOSTNAME}{host}");
    }
}
