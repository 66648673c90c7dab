//! The audit: a line of JSON for every request that changes something and for every one that was refused.
//!
//! A line is one `write` before the answer goes out, so what was answered is there after a kill; a power cut may cost what the kernel had
//! not written yet. The file is followed by another one when it is full, and the oldest goes: numbers run on, so that what is missing shows,
//! and [`Page::lost_through`] says it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::limits;

/// What was asked, by whom, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// Numbers run on; one that is missing was lost.
    #[serde(default)]
    pub seq: u64,
    /// RFC 3339.
    pub time: String,
    /// `uid:NUMBER`, `token:NAME/ID`, `certificate:NAME`, or `unknown`.
    pub who: String,
    /// The address, or the user and process at the other end of the Unix socket.
    pub from: String,
    /// As the OpenAPI description calls it.
    pub operation: String,
    pub method: String,
    /// The path.
    pub resource: String,
    /// Revision when the request came, and after it.
    pub before: u64,
    pub after: u64,
    /// That of the answer's `X-Request-Id`.
    pub request_id: String,
    /// The answer's; 0 where the client did not wait for it.
    pub status: u16,
    /// `ok`, the problem's code, or `abandoned`.
    pub result: String,
    /// Refusals before this one that were too many to be listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlisted: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Records in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub records: Vec<Record>,
    pub more: bool,
    /// Records up to this number went with the oldest file.
    pub lost_through: u64,
}

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Those after this number.
    pub after: u64,
    /// The last so many, where there are more.
    pub last: Option<u64>,
    /// Those that are not older (RFC 3339).
    pub since: Option<jiff::Timestamp>,
    pub rows_max: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("the audit {}: {source}", .path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The open file.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    bytes_max: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    bytes: u64,
    next: u64,
}

impl Audit {
    /// Goes on with the file at `path`; [`limits::AUDIT_FILES`] of `bytes_max` each are kept.
    pub fn open(path: &Path, bytes_max: u64) -> Result<Self, Error> {
        let failed = |source| Error { path: path.to_owned(), source };
        let mut file = open(path).map_err(failed)?;
        let bytes = mend(&mut file).map_err(failed)?;
        let last = last_number(path).map_err(failed)?;
        let last = match last {
            Some(last) => last,
            // A rotation that a kill cut short.
            None => last_number(&older(path, 1)).map_err(failed)?.unwrap_or(0),
        };
        Ok(Self { path: path.to_owned(), bytes_max, inner: Mutex::new(Inner { file, bytes, next: last + 1 }) })
    }

    /// Writes the record, whose number is given here. An audit that cannot be written does not undo what was done: the log has it.
    pub fn write(&self, mut record: Record) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        record.seq = inner.next;
        inner.next += 1;
        let Record { seq, who, from, operation, method, resource, before, after, request_id, status, result, .. } =
            &record;
        tracing::info!(
            target: "audit", seq, who, from, operation, method, resource, before, after, request_id, status, result, "audit"
        );
        if let Err(error) = self.append(&mut inner, &record) {
            tracing::error!(%error, path = %self.path.display(), seq = record.seq, "the audit has lost a record");
        }
    }

    fn append(&self, inner: &mut Inner, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if inner.bytes > 0 && inner.bytes + line.len() as u64 > self.bytes_max {
            self.rotate(inner)?;
        }
        if let Err(error) = inner.file.write_all(&line) {
            // A disk that took a part of the line: the next one must not go on in the middle of it.
            inner.file.set_len(inner.bytes)?;
            return Err(error);
        }
        inner.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&self, inner: &mut Inner) -> io::Result<()> {
        inner.file.sync_data()?;
        for number in (1..limits::AUDIT_FILES - 1).rev() {
            rename(&older(&self.path, number), &older(&self.path, number + 1))?;
        }
        rename(&self.path, &older(&self.path, 1))?;
        inner.file = open(&self.path)?;
        inner.bytes = 0;
        Ok(())
    }

    /// The number of the newest record.
    pub fn last(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).next - 1
    }

    /// Reads records; blocks. What is being written meanwhile may be missing at the end.
    pub fn read(&self, query: &Query) -> Result<Page, Error> {
        let failed = |source| Error { path: self.path.clone(), source };
        let after = query.last.map_or(query.after, |last| query.after.max(self.last().saturating_sub(last)));
        let mut page = Page::default();
        let mut files = Vec::new();
        // A rotation in between renames what is open, which does no harm: the newest is opened first.
        for path in
            std::iter::once(self.path.clone()).chain((1..limits::AUDIT_FILES).map(|number| older(&self.path, number)))
        {
            match File::open(&path) {
                Ok(file) => files.push(BufReader::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        files.reverse();
        let mut first = None;
        let mut latest = after;
        let starts: Vec<_> = files.iter_mut().map(first_number).collect::<Result<_, _>>().map_err(failed)?;
        for (index, file) in files.into_iter().enumerate() {
            first = first.or(starts[index]);
            let next_start = starts[index + 1..].iter().find_map(|start| *start);
            if next_start.is_some_and(|start| start <= after + 1) {
                continue;
            }
            for line in lines(file) {
                let line = line.map_err(failed)?;
                // Half a line was told of when the file was mended.
                let Ok(record) = serde_json::from_slice::<Record>(&line) else { continue };
                // A file that was rotated while it was opened comes twice.
                let is_old = query
                    .since
                    .is_some_and(|since| record.time.parse().is_ok_and(|time: jiff::Timestamp| time < since));
                if record.seq <= latest || is_old {
                    continue;
                }
                if page.records.len() == query.rows_max {
                    page.more = true;
                    page.lost_through = first.unwrap_or(1).saturating_sub(1);
                    return Ok(page);
                }
                latest = record.seq;
                page.records.push(record);
            }
        }
        page.lost_through = first.unwrap_or(1).saturating_sub(1);
        Ok(page)
    }
}

fn older(path: &Path, number: usize) -> PathBuf {
    path.with_added_extension(number.to_string())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Ends a line that a kill or a full disk left half; the file's length.
fn mend(file: &mut File) -> io::Result<u64> {
    let bytes = file.seek(SeekFrom::End(0))?;
    if bytes == 0 {
        return Ok(0);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0_u8];
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(bytes);
    }
    tracing::warn!("the audit's last line is not whole, and is left out");
    file.write_all(b"\n")?;
    Ok(bytes + 1)
}

/// Lines of a bounded length; what is longer is none of ours, and comes in pieces that are no records.
fn lines(file: BufReader<File>) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut file = file;
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match (&mut file).take(limits::AUDIT_LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    })
}

#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

fn number(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Numbered>(line).ok().map(|line| line.seq)
}

/// The number of the first record; the file is at its beginning before and after.
fn first_number(file: &mut BufReader<File>) -> io::Result<Option<u64>> {
    let mut line = Vec::new();
    file.take(limits::AUDIT_LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    file.rewind()?;
    Ok(number(&line))
}

fn last_number(path: &Path) -> io::Result<Option<u64>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let bytes = file.seek(SeekFrom::End(0))?;
    // The last line is whole in the last two lines' room.
    file.seek(SeekFrom::Start(bytes.saturating_sub(2 * limits::AUDIT_LINE_BYTES_MAX)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail.split(|byte| *byte == b'\n').rev().find_map(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(resource: &str) -> Record {
        Record {
            seq: 0,
            time: "2026-11-22T10:00:00Z".to_owned(),
            who: "uid:0".to_owned(),
            from: "unix uid 0 pid 1".to_owned(),
            operation: "put_class".to_owned(),
            method: "PUT".to_owned(),
            resource: resource.to_owned(),
            before: 1,
            after: 2,
            request_id: "x".to_owned(),
            status: 200,
            result: "ok".to_owned(),
            unlisted: 0,
        }
    }

    fn numbers(page: &Page) -> Vec<u64> {
        page.records.iter().map(|record| record.seq).collect()
    }

    fn all() -> Query {
        Query { rows_max: 1_000, ..Query::default() }
    }

    #[test]
    fn records_are_numbered_and_numbers_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let audit = Audit::open(&path, 1 << 20).unwrap();
        audit.write(record("/a"));
        audit.write(record("/b"));
        drop(audit);
        let audit = Audit::open(&path, 1 << 20).unwrap();
        audit.write(record("/c"));
        let page = audit.read(&all()).unwrap();
        assert_eq!(numbers(&page), [1, 2, 3]);
        assert_eq!(page.records[2], Record { seq: 3, ..record("/c") });
        assert_eq!((page.more, page.lost_through), (false, 0));
    }

    #[test]
    fn a_line_that_a_kill_cut_is_left_out_and_the_next_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        for cut in [1, 20, 100] {
            let _ = fs::remove_file(&path);
            let audit = Audit::open(&path, 1 << 20).unwrap();
            audit.write(record("/a"));
            audit.write(record("/b"));
            drop(audit);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let audit = Audit::open(&path, 1 << 20).unwrap();
            audit.write(record("/c"));
            let page = audit.read(&all()).unwrap();
            // Without its end alone, the line is whole when mended.
            assert_eq!(numbers(&page), if cut == 1 { vec![1, 2, 3] } else { vec![1, 2] });
            assert_eq!(page.records.last().unwrap().resource, "/c");
        }
    }

    #[test]
    fn files_are_bounded_and_what_went_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let bytes_max = 2_000;
        let audit = Audit::open(&path, bytes_max).unwrap();
        for n in 0..200 {
            audit.write(record(&format!("/{n}")));
        }
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(files.len(), limits::AUDIT_FILES);
        assert!(files.iter().all(|file| file.metadata().unwrap().len() <= bytes_max));
        let page = audit.read(&all()).unwrap();
        let numbers = numbers(&page);
        assert!(page.lost_through > 0);
        assert_eq!(numbers, (page.lost_through + 1..=200).collect::<Vec<_>>(), "none but the oldest is missing");
        drop(audit);
        assert_eq!(Audit::open(&path, bytes_max).unwrap().last(), 200);
        // A kill between the renaming and the new file's first line.
        fs::rename(&path, older(&path, 1)).unwrap();
        assert_eq!(Audit::open(&path, bytes_max).unwrap().last(), 200);
    }

    #[test]
    fn pages_follow_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let audit = Audit::open(&path, 2_000).unwrap();
        for n in 0..20 {
            let time = format!("2026-11-22T10:00:{n:02}Z");
            audit.write(Record { time, ..record("/") });
        }
        let mut seen = Vec::new();
        let mut after = 0;
        loop {
            let page = audit.read(&Query { after, rows_max: 7, ..Query::default() }).unwrap();
            seen.extend(numbers(&page));
            after = *seen.last().unwrap();
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, (1..=20).collect::<Vec<_>>());
        let last = audit.read(&Query { last: Some(3), ..all() }).unwrap();
        assert_eq!(numbers(&last), [18, 19, 20]);
        let since = Some("2026-11-22T10:00:15Z".parse().unwrap());
        assert_eq!(numbers(&audit.read(&Query { since, ..all() }).unwrap()), [16, 17, 18, 19, 20]);
    }
}
