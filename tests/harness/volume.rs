//! Data directories on file systems of their own, which only the nodes see.

use jepsen_like::cluster::Volume;

use super::{Node, skipped};

/// Size of a file system, in bytes; its file is sparse.
pub const BYTES_DEFAULT: u64 = 1 << 30;

/// A file system of `bytes` bytes, mounted where `node`, which does not run yet, has its data; None, and a line that says why,
/// where it cannot be had. To be dropped after the node has ended.
pub fn of(node: &mut Node, bytes: u64) -> Option<Volume> {
    let image = node.data.with_extension("image");
    let volume = Volume::mount(&image, bytes, &node.data);
    let volume = volume.map_err(|why| skipped(format_args!("no volume on this machine: {why}"))).ok()?;
    node.mounts_of = Some(volume.holder());
    Some(volume)
}
