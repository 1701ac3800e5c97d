//! Whatever happens to its bytes, a snapshot is refused.

use super::*;

/// Everything that may notice damage.
fn check_all(fs: &SharedFs, path: &Path, id: &str) -> [Result<(), StoreError>; 2] {
    let open = || SnapshotReader::open(&SnapshotFile::open(fs, path, id)?);
    [open().and_then(|r| r.verify()), open().and_then(|r| r.items().try_for_each(|item| item.map(drop)))]
}

#[test]
fn any_flipped_or_cut_byte_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_small(&real(), dir.path(), 9).unwrap();
    let whole = fs::read(file.path()).unwrap();
    let damaged = dir.path().join("damaged");
    let check = |bytes: &[u8], what: &str| {
        fs::write(&damaged, bytes).unwrap();
        for result in check_all(&real(), &damaged, file.id()) {
            assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{what}: {result:?}");
        }
    };
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            check(&bytes, &format!("bit {bit} of byte {at}"));
        }
        check(&whole[..at], &format!("cut at {at}"));
        check(&whole[at + 1..], &format!("beginning at {}", at + 1));
        check(&[&whole[..at], &whole[at + 1..]].concat(), &format!("without byte {at}"));
    }
    check(&[&whole[..], &[0]].concat(), "one byte more");
    fs::write(&damaged, &whole).unwrap();
    assert!(check_all(&real(), &damaged, file.id()).iter().all(Result::is_ok));
}

#[test]
fn swapped_chunks_are_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let value = vec![7; CHUNK_BYTES_MAX];
    let items = [key("a", 1, &value), key("b", 1, &value), change(1, "c", b"")];
    let file = write(&real(), dir.path(), &items, &footer(1, 0, 1)).unwrap();
    let mut bytes = fs::read(file.path()).unwrap();
    let chunk = CHUNK_HEAD_BYTES + CHUNK_BYTES_MAX;
    let (first, second) = bytes[HEADER_BYTES..HEADER_BYTES + 2 * chunk].split_at_mut(chunk);
    first.swap_with_slice(second);
    fs::write(file.path(), bytes).unwrap();
    for result in check_all(&real(), file.path(), file.id()) {
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{result:?}");
    }
}

#[test]
fn another_format_version_is_refused_as_such() {
    let mut header = encode_header();
    assert_eq!(check_header(&header), Ok(()));
    header[8] += 1;
    let newer = SNAPSHOT_FORMAT_VERSION + 1;
    let crc = crc32fast::hash(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(check_header(&header), Err(HeaderFault::Version(newer)));
    for (version, read) in [(SNAPSHOT_FORMAT_VERSION_OLDEST, true), (SNAPSHOT_FORMAT_VERSION_OLDEST - 1, false)] {
        let mut older = header.clone();
        older[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32fast::hash(&older[..HEADER_BYTES - 4]);
        older[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(check_header(&older).is_ok(), read, "version {version}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = write_small(&real(), dir.path(), 9).unwrap();
    let mut bytes = fs::read(file.path()).unwrap();
    bytes[..HEADER_BYTES].copy_from_slice(&header);
    fs::write(file.path(), bytes).unwrap();
    let opened = SnapshotDir::open(&real(), dir.path());
    assert!(
        matches!(opened, Err(StoreError::FormatVersion { found, supported: SNAPSHOT_FORMAT_VERSION, .. }) if found == newer),
        "{opened:?}"
    );
    assert!(file.path().exists(), "a newer binary may want it");
}

/// Writes a file whose checksums are all right around any stream of items.
fn forge(dir: &Path, stream: &[u8], footer: &Footer, change_counts: impl Fn(&mut SnapshotCounts)) -> SnapshotFile {
    let mut counts =
        SnapshotCounts { keys: 2, leases: 1, changes: 2, dedupe: 1, chunks: 1, item_bytes: stream.len() as u64 };
    change_counts(&mut counts);
    let mut bytes = encode_header();
    bytes.extend(encode_chunk_head(0, stream));
    bytes.extend(stream);
    let encoded = codec::encode(&(footer, counts));
    let footer_offset = bytes.len() as u64;
    bytes.extend(&encoded);
    let mut hasher = ContentHasher::new();
    hasher.update(&bytes);
    let content_hash = hasher.finish();
    let footer_crc = crc32fast::hash(&encoded);
    bytes.extend(Trailer { footer_offset, footer_bytes: encoded.len() as u32, footer_crc, content_hash }.encode());
    let path = dir.join("forged");
    fs::write(&path, bytes).unwrap();
    SnapshotFile::open(&real(), &path, snapshot_id(footer.meta.last_log_id.as_ref(), content_hash)).unwrap()
}

fn encoded(item: &SnapshotItem) -> Vec<u8> {
    let (kind, body) = match item {
        SnapshotItem::Key(record) => (ITEM_KEY, codec::encode(record)),
        SnapshotItem::Lease(record) => (ITEM_LEASE, codec::encode(record)),
        SnapshotItem::Change(record) => {
            let mut body = Vec::new();
            record.encode_part(0..record.changes.len(), &mut body);
            (ITEM_CHANGE_PART, body)
        }
        SnapshotItem::Dedupe(entry) => (ITEM_DEDUPE, codec::encode(entry)),
    };
    [&[kind][..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

#[test]
fn content_that_makes_no_sense_is_corrupt_under_right_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let stream = |items: &[SnapshotItem]| items.iter().flat_map(encoded).collect::<Vec<u8>>();
    let good = stream(&small_items());
    let promise = footer(9, 3, 5);
    let unchanged = |_: &mut SnapshotCounts| {};
    assert_eq!(read(&forge(dir.path(), &good, &promise, unchanged)).unwrap(), small_items());

    let refused = |file: SnapshotFile, what: &str| {
        let result = read(&file);
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{what}: {result:?}");
    };
    let [a, b, l, c4, c5, d] = &small_items()[..] else { panic!("six items") };
    let order = |items: &[&SnapshotItem]| items.iter().flat_map(|i| encoded(i)).collect::<Vec<u8>>();
    refused(forge(dir.path(), &order(&[a, l, c4, b, c5, d]), &promise, unchanged), "a key after a change");
    refused(forge(dir.path(), &order(&[a, l, b, c4, c5, d]), &promise, unchanged), "a key after a lease");
    refused(forge(dir.path(), &order(&[a, b, c4, l, c5, d]), &promise, unchanged), "a lease after a change");
    refused(forge(dir.path(), &order(&[a, b, l, c5, c4, d]), &promise, unchanged), "changes backwards");
    refused(forge(dir.path(), &order(&[a, b, l, c4, c4, d]), &promise, unchanged), "a change twice");
    refused(forge(dir.path(), &order(&[a, b, l, c4, d, c5]), &promise, unchanged), "a change after a kept outcome");
    refused(forge(dir.path(), &order(&[a, d, b, l, c4, c5]), &promise, unchanged), "a key after a kept outcome");
    refused(forge(dir.path(), &order(&[a, b, d, l, c4, c5]), &promise, unchanged), "a lease after a kept outcome");
    refused(forge(dir.path(), &order(&[a, b, l, c4, c5, d, d]), &promise, |c| c.dedupe = 2), "a kept outcome twice");
    refused(forge(dir.path(), &good, &footer(7, 3, 5), unchanged), "the outcome of an entry after the end");
    refused(forge(dir.path(), &order(&[a, b, l, c4, c5]), &promise, unchanged), "a kept outcome is missing");
    refused(forge(dir.path(), &good[..good.len() - 1], &promise, unchanged), "the last item cut");
    refused(forge(dir.path(), &[&good[..], &[1, 2]].concat(), &promise, unchanged), "half an item more");
    refused(forge(dir.path(), &[&good[..], &[9, 0, 0, 0, 0]].concat(), &promise, unchanged), "an unknown kind");
    refused(forge(dir.path(), &[&good[..], &[1, 0, 0, 0, 2]].concat(), &promise, unchanged), "an endless item");
    refused(forge(dir.path(), &good, &footer(9, 2, 5), unchanged), "a kept change is missing");
    refused(forge(dir.path(), &good, &footer(9, 3, 6), unchanged), "the last change is missing");
    refused(forge(dir.path(), &good, &promise, |c| c.keys += 1), "another number of keys");
    refused(forge(dir.path(), &good, &promise, |c| c.leases += 1), "another number of leases");
    refused(forge(dir.path(), &good, &promise, |c| c.changes -= 1), "another number of changes");
    refused(forge(dir.path(), &good, &promise, |c| c.changes = 6), "more changes than revisions");
    refused(forge(dir.path(), &good, &promise, |c| c.chunks += 1), "another number of chunks");
    refused(forge(dir.path(), &good, &promise, |c| c.item_bytes -= 1), "another number of bytes");
    // More history than promised is harmless: it was compacted while the snapshot was built.
    read(&forge(dir.path(), &good, &footer(9, 4, 5), unchanged)).unwrap();
}
