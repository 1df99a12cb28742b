//! Finding the files that a system is made of.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::image::{HEADER_SIZE, Header};
use crate::plan::Folders;
use crate::values::{Size, Source};

/// A file that becomes a module, or would if it could be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// How much memory it takes: for an arm64 `Image` more than the file has.
    pub(crate) memory: u64,
}

/// What a file is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Entered by a vCPU.
    Code,
    /// Only read.
    Data,
}

impl Source {
    /// Finds the file. What is in a folder that was not given counts as there, and as small.
    pub(crate) fn find(
        &self,
        system: &Path,
        folders: &Folders,
        size: Option<Size>,
        used: Use,
    ) -> Result<Content, String> {
        if size.is_some() && !matches!(self, Self::State(_)) {
            return Err("the file has its own size; leave size out".into());
        }
        let Some(path) = self.path(system, folders) else {
            return Ok(Content {
                path: self.to_string().into(),
                size: 1,
                memory: 1,
            });
        };
        if let Self::State(_) = self {
            return state_file(path, size);
        }
        let meta = fs::metadata(&path).map_err(|error| self.missing(&path, &error.to_string()))?;
        if !meta.is_file() {
            return Err(self.missing(&path, "it is not a file"));
        }
        let memory = match used {
            Use::Code => memory_of_code(&path)?.max(meta.len()),
            Use::Data => meta.len(),
        };
        Ok(Content {
            path: fs::canonicalize(&path).unwrap_or(path),
            size: meta.len(),
            memory,
        })
    }

    /// Returns the file's name, to make a module's name of.
    pub(crate) fn file_name(&self) -> &str {
        match self {
            Self::DebianKernel => "vmlinuz",
            Self::DebianInitrd => "initrd",
            Self::UBoot => "u-boot",
            Self::Guest(name) | Self::State(name) => name,
            Self::Path(path) => path.rsplit('/').next().unwrap_or(path),
        }
    }

    /// Returns the option without which the file cannot be found.
    pub(crate) fn option(&self, folders: &Folders) -> Option<&'static str> {
        match self {
            Self::Path(_) => None,
            Self::State(_) => folders.state.is_none().then_some("--files DIR"),
            _ => folders.artifacts.is_none().then_some("--artifacts DIR"),
        }
    }

    fn path(&self, system: &Path, folders: &Folders) -> Option<PathBuf> {
        let artifacts = folders.artifacts.as_deref();
        match self {
            Self::DebianKernel => Some(artifacts?.join("vmlinuz")),
            Self::DebianInitrd => Some(artifacts?.join("initrd.gz")),
            Self::UBoot => Some(artifacts?.join("u-boot.bin")),
            Self::Guest(name) => Some(artifacts?.join("guests").join(name)),
            Self::State(name) => Some(folders.state.as_deref()?.join(name)),
            Self::Path(path) => Some(system.join(path)),
        }
    }

    /// Says that a file cannot be had, and what could be had instead.
    fn missing(&self, path: &Path, why: &str) -> String {
        let mend = match self {
            Self::DebianKernel | Self::DebianInitrd | Self::UBoot => {
                "run scripts/setup to get it".into()
            }
            Self::Guest(_) => guests(path.parent().unwrap_or(path)),
            Self::State(_) | Self::Path(_) => {
                "write a path that starts at the system file's folder".into()
            }
        };
        format!("{self}: {}: {why}; {mend}", path.display())
    }
}

/// Lists the programs that there are.
fn guests(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| format!("guest:{}", entry.file_name().to_string_lossy()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    if names.is_empty() {
        return "build the guests first".into();
    }
    format!("write one of {}", names.join(", "))
}

/// Returns the state file as it is, or as [`make_state_file`] would make it.
fn state_file(path: PathBuf, size: Option<Size>) -> Result<Content, String> {
    let size = match (fs::metadata(&path), size) {
        (Ok(meta), _) if meta.is_file() => meta.len(),
        (Ok(_), _) => return Err(format!("{} is not a file; remove it", path.display())),
        (Err(_), Some(Size(size))) => size,
        (Err(_), None) => {
            return Err(format!(
                "{} does not exist yet; write size = \"16M\" beside it to have it made",
                path.display()
            ));
        }
    };
    Ok(Content {
        path,
        size,
        memory: size,
    })
}

/// Makes a file of zeros, unless it exists.
pub(crate) fn make_state_file(path: &Path, size: u64) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::File::create_new(path)?.set_len(size)
}

/// Refuses files that start as something that a CPU cannot enter, and returns how much memory an arm64
/// `Image` takes; 0 for other files.
fn memory_of_code(path: &Path) -> Result<u64, String> {
    let mut start = Vec::new();
    let file = fs::File::open(path);
    let read = file.and_then(|file| file.take(HEADER_SIZE as u64).read_to_end(&mut start));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    let (what, mend) = match start.as_slice() {
        [0x7f, b'E', b'L', b'F', ..] => {
            ("an ELF file", "make a raw binary of it with llvm-objcopy")
        }
        [0x1f, 0x8b, ..] => ("compressed with gzip", "unpack it"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("compressed with zstd", "unpack it"),
        [b'M', b'Z', _, _, b'z', b'i', b'm', b'g', ..] => {
            ("compressed for EFI", "take out the Image in it")
        }
        start => {
            let header = Header::read(start);
            return Ok(header.map_or(0, |h| h.text_offset.saturating_add(h.image_size)));
        }
    };
    Err(format!("{} is {what}; {mend}", path.display()))
}
