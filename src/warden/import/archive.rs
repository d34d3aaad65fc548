//! A tar archive, entry by entry.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{Intake, Refusal, at, owner};
use crate::warden::image::{
    Tree,
    tree::{Access, apply, split},
};

const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Compressed forms that are not read here, by their first bytes.
const OTHERS: [(&[u8], &str); 3] =
    [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"), (b"BZh", "bzip2")];
/// Longer than any path the kernel takes.
const LONGEST: usize = 4096;

/// Unpacks an archive; it may be compressed by gzip.
pub(super) fn unpack(archive: impl Read, tree: &mut Tree, intake: &mut Intake<'_>) -> Result<(), Refusal> {
    let mut archive = BufReader::with_capacity(1 << 16, archive);
    let begin = archive.fill_buf().map_err(at(b"the archive"))?;
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| begin.starts_with(magic)) {
        return Err(Refusal::Content(format!("it is compressed by {name}; decompress it first")));
    }
    // Padding and skipped entries are read as well, so a bomb of them ends here too.
    let most = intake.limits.bytes.saturating_add(intake.limits.entries.saturating_mul(2048));
    if begin.starts_with(&GZIP) {
        entries(MultiGzDecoder::new(archive).take(most), tree, intake)
    } else {
        entries(archive.take(most), tree, intake)
    }
}

fn entries(archive: impl Read, tree: &mut Tree, intake: &mut Intake<'_>) -> Result<(), Refusal> {
    let mut archive = Archive::new(archive);
    let mut folders = Vec::new();
    for entry in archive.entries().map_err(at(b"the archive"))? {
        let mut entry = entry.map_err(at(b"the archive"))?;
        let path = clean(&entry.path_bytes())?;
        intake.count(entry.size())?;
        if !one(&mut entry, &path, tree, intake)? {
            continue;
        }
        let when = entry.header().mtime().ok().and_then(|when| i64::try_from(when).ok()).unwrap_or(0);
        if entry.header().entry_type() == EntryType::Directory {
            folders.push((path, when));
        } else {
            tree.date(&path, when).map_err(at(&path))?;
        }
    }
    // What comes into a folder changes its date, so folders get theirs last.
    for (path, when) in folders {
        match tree.date(&path, when) {
            // A later entry took its name or stands above it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) | Ok(()) => {}
            Err(error) => return Err(at(&path)(error)),
        }
    }
    if tree.stat(b"manifest.json").is_ok() && tree.stat(b"usr").is_err() {
        return Err(Refusal::Content(
            "it holds layers, not a file system: use `docker export`, not `save`".to_owned(),
        ));
    }
    if intake.entries == 0 {
        return Err(Refusal::Content("it is empty, or no tar archive".to_owned()));
    }
    Ok(())
}

/// Unpacks one entry; false when it is none of those that come in.
fn one(
    entry: &mut Entry<'_, impl Read>,
    path: &[u8],
    tree: &mut Tree,
    intake: &mut Intake<'_>,
) -> Result<bool, Refusal> {
    let kind = entry.header().entry_type();
    if path.is_empty() || split(path).1.starts_with(b".wh.") || kind == EntryType::XGlobalHeader {
        // The top has its own form; marks of a layer mean nothing where there is no layer below.
        return Ok(false);
    }
    let header = entry.header();
    let access = Access {
        mode: header.mode().map_err(at(path))?,
        uid: owner(path, header.uid().map_err(at(path))?)?,
        gid: owner(path, header.gid().map_err(at(path))?)?,
    };
    match kind {
        EntryType::Directory => tree.dir(path, access).map_err(at(path)),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = tree.create(path).map_err(at(path))?;
            std::io::copy(entry, &mut file).map_err(at(path))?;
            apply(std::os::fd::AsFd::as_fd(&file), access).map_err(at(path))
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            tree.symlink(path, &target).map_err(at(path))?;
            tree.own_link(path, access).map_err(at(path))
        }
        EntryType::Link => {
            let target = clean(&entry.link_name_bytes().unwrap_or_default())?;
            tree.link_inside(path, &target).map_err(at(path))
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            intake.skipped += 1;
            return Ok(false);
        }
        other => Err(Refusal::Content(format!("{}: entry of kind {other:?}", String::from_utf8_lossy(path)))),
    }?;
    Ok(true)
}

/// A path as the tree takes it; one that points out of it is refused rather than bent.
fn clean(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    let refuse = |why| Err(Refusal::Content(format!("{:?} {why}", String::from_utf8_lossy(path))));
    if path.starts_with(b"/") {
        return refuse("is an absolute path");
    }
    if path.len() > LONGEST || path.contains(&0) {
        return refuse("is no possible path");
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return refuse("leads upwards");
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    Ok(clean)
}
