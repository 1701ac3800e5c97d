//! Bytes on disk.

use super::*;

#[test]
fn the_format_is_pinned() {
    assert_eq!(index::header_payload(), b"changes\0\x01\0\0\0");
    let record = ChangeRecord {
        revision: 0x0102,
        time_ms: 0x0304,
        changes: vec![
            Change {
                key: Bytes::from_static(b"k"),
                new: Some(Record {
                    create_revision: 5,
                    mod_revision: 0x0102,
                    version: 2,
                    lease: 7,
                    content_type: Some("t".into()),
                    value: Bytes::from_static(b"value"),
                }),
                old: Replaced::Absent { deleted_at: 3 },
            },
            Change { key: Bytes::from_static(b"l"), new: None, old: Replaced::Record(small_old()) },
        ],
    };
    let mut part = Vec::new();
    record.encode_part(0..2, &mut part);
    let expected = [
        &[0x02, 1, 0, 0, 0, 0, 0, 0, 0x04, 3, 0, 0, 0, 0, 0, 0][..],
        &[0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0],
        &[2],
        &[1, b'k', 1, 5, 251, 0x02, 1, 2, 7, 1, 1, b't', 5, b'v', b'a', b'l', b'u', b'e', 1, 3],
        &[1, b'l', 0, 0, 4, 4, 1, 0, 0, 0],
    ]
    .concat();
    assert_eq!(part, expected);
}

fn small_old() -> Record {
    Record { create_revision: 4, mod_revision: 4, version: 1, lease: 0, content_type: None, value: Bytes::new() }
}

#[test]
fn parts_in_another_order_are_refused() {
    let record = change_record(3, 40, 100_000);
    let parts: Vec<Vec<u8>> = record
        .parts()
        .map(|range| {
            let mut part = Vec::new();
            record.encode_part(range, &mut part);
            part
        })
        .collect();
    assert!(parts.len() >= 3);
    let assemble = |order: &[usize]| {
        let mut assembler = PartAssembler::default();
        let mut last = None;
        for n in order {
            last = assembler.push(&parts[*n])?;
        }
        Ok::<_, StoreError>(last)
    };
    let all: Vec<usize> = (0..parts.len()).collect();
    assert_eq!(assemble(&all).unwrap(), Some(record.clone()));
    assert_eq!(assemble(&all[..1]).unwrap(), None);
    for wrong in [&[1][..], &[0, 0], &[0, 2], &[0, 1, 1]] {
        assert!(matches!(assemble(wrong), Err(StoreError::Decode { .. })), "{wrong:?}");
    }
    let mut assembler = PartAssembler::default();
    let mut short = parts[0].clone();
    short[20] -= 1;
    assert!(matches!(assembler.push(&short), Err(StoreError::Decode { .. })), "fewer changes than the head says");
    assert!(matches!(PartAssembler::default().push(&parts[0][..27]), Err(StoreError::Decode { .. })));
}
