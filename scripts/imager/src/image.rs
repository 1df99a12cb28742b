//! The image: hypervisor, manifest and modules, one after the other.
//!
//! `kernel/docs/manifest.md` has the picture. The head is an arm64 `Image` header (Linux,
//! Documentation/arch/arm64/booting.rst, section 4), of which two fields matter here:
//!
//! ```text
//!  +0x08  text_offset   where to load, from a 2 MiB boundary
//!  +0x10  image_size    how much memory the loader leaves to us
//!  +0x38  "ARM\x64"
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use manifest::PAGE;

use crate::plan::Plan;

const TEXT_OFFSET: usize = 0x08;
const IMAGE_SIZE: usize = 0x10;
const MAGIC: usize = 0x38;
pub(crate) const HEADER_SIZE: usize = 0x40;

/// What of an arm64 `Image` header matters here.
pub(crate) struct Header {
    pub(crate) text_offset: u64,
    pub(crate) image_size: u64,
}

/// An image that is laid out, and not written yet.
#[derive(Debug)]
pub struct Image {
    kernel: Vec<u8>,
    manifest: Vec<u8>,
    /// Where the manifest starts.
    manifest_offset: u64,
    /// The files with their offsets in the image.
    files: Vec<(PathBuf, u64, u64)>,
    size: u64,
}

/// Returns the manifest as it is in an image.
///
/// # Errors
///
/// If a text in it has no place in a device tree.
pub fn manifest(plan: &Plan) -> anyhow::Result<Vec<u8>> {
    let mut manifest = plan.manifest.clone();
    let length = manifest.write()?.len() as u64;
    for module in &mut manifest.modules {
        module.offset += length.next_multiple_of(PAGE);
    }
    Ok(manifest.write()?)
}

impl Image {
    /// Lays an image out.
    ///
    /// # Errors
    ///
    /// If the hypervisor cannot be read or is not an arm64 `Image`.
    pub fn lay_out(kernel: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let path = kernel.display();
        let mut kernel = fs::read(kernel).with_context(|| path.to_string())?;
        let end = kernel_end(&kernel).with_context(|| path.to_string())?;
        let manifest = manifest(plan)?;
        let manifest_offset = end.next_multiple_of(PAGE);
        let modules = manifest_offset + (manifest.len() as u64).next_multiple_of(PAGE);
        let contents = plan.contents.iter();
        let files = contents.map(|placed| {
            let content = &placed.content;
            (content.path.clone(), modules + placed.offset, content.size)
        });
        let files: Vec<_> = files.collect();
        let size = files
            .last()
            .map_or(modules, |(_, offset, size)| offset + size);
        let size = size.next_multiple_of(PAGE);
        kernel[IMAGE_SIZE..][..8].copy_from_slice(&size.to_le_bytes());
        Ok(Self {
            kernel,
            manifest,
            manifest_offset,
            files,
            size,
        })
    }

    /// Returns how many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes it, in one step as others see it.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written, or has changed its size.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        let new = out.with_added_extension("new");
        self.write_to(&new)
            .with_context(|| new.display().to_string())?;
        fs::rename(&new, out).with_context(|| out.display().to_string())
    }

    fn write_to(&self, path: &Path) -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(&self.kernel)?;
        out.seek(SeekFrom::Start(self.manifest_offset))?;
        out.write_all(&self.manifest)?;
        for (path, offset, size) in &self.files {
            out.seek(SeekFrom::Start(*offset))?;
            let mut file = File::open(path).with_context(|| path.display().to_string())?;
            let copied = io::copy(&mut file, &mut out)?;
            ensure!(copied == *size, "{} has changed its size", path.display());
        }
        let file = out.into_inner()?;
        Ok(file.set_len(self.size)?)
    }
}

/// Returns where the hypervisor ends, its bss included.
fn kernel_end(kernel: &[u8]) -> anyhow::Result<u64> {
    let header = Header::read(kernel).context(
        "not an arm64 Image; give the raw binary that the build makes of the kernel, not its ELF file",
    )?;
    let (text_offset, size) = (header.text_offset, header.image_size);
    if !text_offset.is_multiple_of(PAGE) {
        bail!("text_offset {text_offset:#x} is not a page boundary, so nothing behind it would be");
    }
    if size < kernel.len() as u64 {
        bail!("image_size {size:#x} is less than the file has; was it packed already?");
    }
    Ok(size)
}

impl Header {
    /// Reads a file's first bytes; `None` if they are no such header.
    pub(crate) fn read(start: &[u8]) -> Option<Self> {
        let magic = start.get(MAGIC..HEADER_SIZE)?;
        let field = |offset: usize| {
            let bytes = start.get(offset..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        };
        magic.starts_with(b"ARM\x64").then_some(Self {
            text_offset: field(TEXT_OFFSET)?,
            image_size: field(IMAGE_SIZE)?,
        })
    }
}
