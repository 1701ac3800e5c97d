//! Messages of the Erlang port mapper, as the mapper reads and writes them
//! (<https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html#epmd-protocol>). A request is a 2-byte length, then a tag
//! and its fields; answers have no length. All numbers are big-endian.

use erl_dist::epmd::NodeEntry;

/// Largest request, in bytes without its length. Real ones stay below 600: two texts of 255 bytes at most.
pub(super) const REQUEST_BYTES_MAX: usize = 1024;
/// Longest name, in bytes: the protocol's own limit.
const NAME_BYTES_MAX: usize = 255;
/// From this version of the distribution protocol on, a registration is answered in the longer form.
const EXTENDED_ANSWER_VERSION: u16 = 6;

const TAG_NAMES: u8 = 110;
const TAG_KILL: u8 = 107;
const TAG_REGISTERED_EXTENDED: u8 = 118;
const TAG_PORT: u8 = 119;
const TAG_REGISTER: u8 = 120;
const TAG_REGISTERED: u8 = 121;
const TAG_PORT_PLEASE: u8 = 122;

const RESULT_OK: u8 = 0;
const RESULT_ERROR: u8 = 1;
/// What stands for the creation where there is none.
const CREATION_OF_ERROR: u8 = 99;

/// What a client of the mapper asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// `ALIVE2_REQ`: registers a name for as long as the connection is open.
    Register(NodeEntry),
    /// `PORT_PLEASE2_REQ`: the port of a name.
    Port(String),
    /// `NAMES_REQ`: all names.
    Names,
    /// `KILL_REQ`: end.
    Kill,
}

impl Request {
    /// Reads a request without its length; None where it is none, is one that is not served (`DUMP_REQ`, `STOP_REQ`), or
    /// has fields that no honest client sends.
    pub(super) fn decode(frame: &[u8]) -> Option<Self> {
        let (&tag, fields) = frame.split_first()?;
        match tag {
            TAG_REGISTER => decode_entry(fields).map(Self::Register),
            TAG_PORT_PLEASE => Some(Self::Port(std::str::from_utf8(fields).ok()?.to_owned())),
            TAG_NAMES if fields.is_empty() => Some(Self::Names),
            TAG_KILL if fields.is_empty() => Some(Self::Kill),
            _ => None,
        }
    }
}

fn decode_entry(fields: &[u8]) -> Option<NodeEntry> {
    let (fixed, rest) = fields.split_first_chunk::<8>()?;
    let [port @ .., _, _, _, _, _, _] = fixed;
    let (name, rest) = decode_text(rest)?;
    let (extra, rest) = decode_text(rest)?;
    let name = std::str::from_utf8(name).ok()?;
    let port = u16::from_be_bytes(*port);
    // Names are listed line by line, so one with a line break could pretend to be two.
    let valid = port != 0 && (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    (valid && rest.is_empty()).then(|| NodeEntry {
        name: name.to_owned(),
        port,
        node_type: fixed[2].into(),
        protocol: fixed[3].into(),
        highest_version: u16::from_be_bytes([fixed[4], fixed[5]]),
        lowest_version: u16::from_be_bytes([fixed[6], fixed[7]]),
        extra: extra.to_vec(),
    })
}

/// A text behind its 2-byte length, and what follows it.
fn decode_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// `ALIVE2_X_RESP` or `ALIVE2_RESP`, whichever the registering node understands. `creation` tells one registration of a
/// name from the next; None = refused.
pub(super) fn registered(highest_version: u16, creation: Option<u32>) -> Vec<u8> {
    let result = if creation.is_some() { RESULT_OK } else { RESULT_ERROR };
    let creation = creation.unwrap_or(u32::from(CREATION_OF_ERROR));
    if highest_version >= EXTENDED_ANSWER_VERSION {
        return [&[TAG_REGISTERED_EXTENDED, result][..], &creation.to_be_bytes()].concat();
    }
    // The old form has room for 1 to 3 only (and 99 in errors).
    let short = if result == RESULT_OK { (creation % 3 + 1) as u8 } else { CREATION_OF_ERROR };
    vec![TAG_REGISTERED, result, 0, short]
}

/// `PORT2_RESP`; None = no such name.
pub(super) fn port(entry: Option<&NodeEntry>) -> Vec<u8> {
    let Some(entry) = entry else { return vec![TAG_PORT, RESULT_ERROR] };
    let mut answer = vec![TAG_PORT, RESULT_OK];
    answer.extend(entry.port.to_be_bytes());
    answer.push(entry.node_type.into());
    answer.push(entry.protocol.into());
    answer.extend(entry.highest_version.to_be_bytes());
    answer.extend(entry.lowest_version.to_be_bytes());
    for text in [entry.name.as_bytes(), &entry.extra] {
        let length = u16::try_from(text.len()).expect("texts come from a request of bounded size");
        answer.extend(length.to_be_bytes());
        answer.extend(text);
    }
    answer
}

/// `NAMES_RESP`.
pub(super) fn names<'a>(mapper_port: u16, entries: impl Iterator<Item = &'a NodeEntry>) -> Vec<u8> {
    let mut answer = u32::from(mapper_port).to_be_bytes().to_vec();
    for entry in entries {
        answer.extend(format!("name {} at port {}\n", entry.name, entry.port).bytes());
    }
    answer
}

/// `KILL_RESP` of a mapper that stays.
pub(super) fn kill_refused() -> Vec<u8> {
    b"NO".to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `ALIVE2_REQ` without its length, as the specification lays it out.
    fn register_frame(name: &[u8], port: u16, extra: &[u8]) -> Vec<u8> {
        let mut frame = vec![120];
        frame.extend(port.to_be_bytes());
        frame.extend([77, 0, 0, 6, 0, 5]);
        frame.extend((name.len() as u16).to_be_bytes());
        frame.extend(name);
        frame.extend((extra.len() as u16).to_be_bytes());
        frame.extend(extra);
        frame
    }

    #[test]
    fn a_registration_is_read_field_by_field() {
        let expected = NodeEntry { lowest_version: 5, extra: b"xy".to_vec(), ..NodeEntry::new("hub", 9100) };
        assert_eq!(Request::decode(&register_frame(b"hub", 9100, b"xy")), Some(Request::Register(expected)));
    }

    #[test]
    fn what_no_honest_client_sends_is_refused() {
        let whole = register_frame(b"hub", 9100, b"xy");
        for length in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..length]), None, "cut after {length} bytes");
        }
        let longer = [&whole[..], b"z"].concat();
        let frames = [
            longer,
            register_frame(b"", 9100, b""),
            register_frame(b"hub", 0, b""),
            register_frame(b"a\nname b", 1, b""),
            register_frame(b"\xff", 1, b""),
            register_frame(&[b'n'; 256], 1, b""),
            vec![122, 0xff],
            vec![110, 0],
            vec![107, 0],
            vec![100],
            vec![115, b'a'],
            vec![0],
            vec![255; 100],
        ];
        for frame in frames {
            assert_eq!(Request::decode(&frame), None, "{frame:?}");
        }
    }

    #[test]
    fn answers_are_laid_out_as_specified() {
        assert_eq!(registered(6, Some(0x0102_0304)), [118, 0, 1, 2, 3, 4]);
        assert_eq!(registered(6, None), [118, 1, 0, 0, 0, 99]);
        assert_eq!(registered(5, Some(7)), [121, 0, 0, 2]);
        assert_eq!(registered(5, None), [121, 1, 0, 99]);
        let entry = NodeEntry { extra: vec![9], ..NodeEntry::new_hidden("ab", 0x1234) };
        assert_eq!(port(Some(&entry)), [119, 0, 0x12, 0x34, 72, 0, 0, 6, 0, 6, 0, 2, b'a', b'b', 0, 1, 9]);
        assert_eq!(port(None), [119, 1]);
        let entries = [NodeEntry::new("a", 1), NodeEntry::new("b", 2)];
        assert_eq!(names(4369, entries.iter()), b"\x00\x00\x11\x11name a at port 1\nname b at port 2\n");
    }
}
