//! The root file system of the guest: a cpio archive in the format `newc` (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), which the kernel unpacks into memory.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::exec;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;

#[derive(Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    present: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// With the console that the first process gets as its standard output.
    pub(crate) fn new() -> Self {
        let mut this = Self::default();
        this.parents(Path::new("dev/console"));
        this.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
        this
    }

    pub(crate) fn folder(&mut self, path: impl AsRef<Path>) {
        self.parents(&path.as_ref().join("any"));
    }

    /// Adds a copy of a file; once, however often it is asked for.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, from: &Path) -> Result<()> {
        let path = relative(path.as_ref());
        if !self.present.insert(path.to_path_buf()) {
            return Ok(());
        }
        let read = || Ok::<_, std::io::Error>((fs::metadata(from)?.permissions().mode(), fs::read(from)?));
        let (mode, bytes) = read().with_context(|| format!("read {}", from.display()))?;
        self.parents(path);
        self.entry(&path.to_string_lossy(), FILE | (mode & 0o777), (0, 0), &bytes);
        Ok(())
    }

    /// Adds a program, and where they are here the libraries that it is linked with.
    pub(crate) fn program(&mut self, path: impl AsRef<Path>, from: &Path) -> Result<()> {
        self.file(path, from)?;
        for library in libraries(&exec::quietly(Command::new("ldd").arg(from))?) {
            self.file(library, Path::new(library))?;
        }
        Ok(())
    }

    /// Adds a kernel's modules to the folder `modules`, where their names tell the order in which they can be loaded.
    pub(crate) fn modules(&mut self, modules: &[PathBuf]) -> Result<()> {
        for module in modules {
            let name = module.file_name().context("a module is a file")?;
            self.file(Path::new("modules").join(name), module)?;
        }
        Ok(())
    }

    /// Writes the archive to a file.
    pub(crate) fn write(mut self, file: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        fs::write(file, self.archive).with_context(|| format!("write {}", file.display()))
    }

    fn parents(&mut self, path: &Path) {
        let folders: Vec<_> =
            relative(path).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).collect();
        for folder in folders.into_iter().rev() {
            if self.present.insert(folder.to_path_buf()) {
                self.entry(&folder.to_string_lossy(), FOLDER, (0, 0), &[]);
            }
        }
    }

    /// A header of hexadecimal words, the name with a zero at its end, and the content, each filled up to four bytes.
    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let size = u32::try_from(content.len()).expect("no file here has 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a path is short");
        let (inode, owner, links, modified, checksum) = (0, 0, 1, 0, 0);
        let fields = [inode, mode, owner, owner, links, modified, size, 0, 0, major, minor, name_size, checksum];
        self.archive.extend(b"070701");
        self.archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.archive.extend(name.as_bytes());
        self.archive.push(0);
        self.fill_up();
        self.archive.extend(content);
        self.fill_up();
    }

    fn fill_up(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// The files in what `ldd` says: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)`, and the loader by its path alone.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.split_whitespace().filter(|word| word.starts_with('/'))
}

/// A copy of a program of this workspace without what a debugger needs, which is most of it.
pub(crate) fn stripped(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join(program.file_name().context("a program has a name")?);
    exec::quietly(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    ensure!(copy.is_file(), "strip wrote no {}", copy.display());
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Initramfs, libraries};

    #[test]
    fn libraries_of_a_program() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(ldd).collect::<Vec<_>>(), expected);
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
    }

    #[test]
    fn every_entry_is_there_once_and_begins_at_four_bytes() {
        let mut initramfs = Initramfs::new();
        initramfs.folder("proc");
        for _ in 0..2 {
            initramfs.file("/usr/lib/some.rs", Path::new("src/main.rs")).unwrap();
        }
        let mut rest = &initramfs.archive[..];
        let mut names = Vec::new();
        while !rest.is_empty() {
            assert!(rest.starts_with(b"070701"));
            let word = |number: usize| {
                let digits = std::str::from_utf8(&rest[6 + number * 8..][..8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap() as usize
            };
            let (size, name_size) = (word(6), word(11));
            let name = std::str::from_utf8(&rest[110..][..name_size - 1]).unwrap();
            names.push((name.to_owned(), word(1), size));
            let content = (110 + name_size).next_multiple_of(4);
            rest = &rest[(content + size).next_multiple_of(4)..];
        }
        let size = std::fs::read("src/main.rs").unwrap().len();
        let folder = 0o040_755;
        let expected = [
            ("dev", folder, 0),
            ("dev/console", 0o020_600, 0),
            ("proc", folder, 0),
            ("usr", folder, 0),
            ("usr/lib", folder, 0),
            ("usr/lib/some.rs", 0o100_644, size),
        ];
        assert_eq!(names, expected.map(|(name, mode, size)| (name.to_owned(), mode, size)));
    }
}
