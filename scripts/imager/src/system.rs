//! The system file: its tables and keys.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::report::{Report, TextFile};
use crate::values::{Access, FunctionName, Size, Source};

/// A system file that is TOML, with keys and types as they should be.
#[derive(Debug)]
pub struct System {
    pub(crate) file: TextFile,
    pub(crate) tables: Tables,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tables {
    pub(crate) machine: Machine,
    #[serde(default)]
    pub(crate) domain: Vec<Domain>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) pcpus: Spanned<u32>,
    pub(crate) memory: Spanned<Size>,
    #[serde(default = "default_cpu")]
    pub(crate) cpu: String,
    #[serde(default)]
    pub(crate) qemu: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) disk: Vec<Disk>,
    #[serde(default)]
    pub(crate) sriov: Vec<Sriov>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sriov {
    pub(crate) host: Spanned<FunctionName>,
    pub(crate) vfs: Spanned<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disk {
    pub(crate) name: Spanned<String>,
    pub(crate) size: Size,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Domain {
    pub(crate) name: Spanned<String>,
    pub(crate) memory: Spanned<Size>,
    pub(crate) vcpus: Option<Spanned<u32>>,
    pub(crate) kernel: Option<Spanned<Source>>,
    pub(crate) firmware: Option<Spanned<Source>>,
    pub(crate) initrd: Option<Spanned<Source>>,
    pub(crate) cmdline: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) host_bridge: bool,
    #[serde(default)]
    pub(crate) iommu: bool,
    pub(crate) control: Option<Spanned<bool>>,
    pub(crate) console: Option<Spanned<bool>>,
    pub(crate) priority: Option<Spanned<u32>>,
    pub(crate) affinity: Option<Spanned<Vec<u32>>>,
    #[serde(default)]
    pub(crate) modules: Vec<Module>,
    #[serde(default)]
    pub(crate) port: Vec<Port>,
    #[serde(default)]
    pub(crate) pci: Vec<Pci>,
    #[serde(default)]
    pub(crate) server: Vec<Server>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Module {
    pub(crate) name: Spanned<String>,
    pub(crate) file: Spanned<Source>,
    pub(crate) size: Option<Spanned<Size>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    pub(crate) slot: Spanned<FunctionName>,
    pub(crate) bus: Spanned<u32>,
    #[serde(default)]
    pub(crate) ari: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pci {
    pub(crate) slot: Spanned<FunctionName>,
    pub(crate) host: Option<Spanned<FunctionName>>,
    pub(crate) backend: Spanned<String>,
    pub(crate) allow_no_reset: Option<Spanned<bool>>,
    pub(crate) vendor_capabilities: Option<Spanned<bool>>,
    pub(crate) max_faults: Option<Spanned<u32>>,
    pub(crate) max_interrupts: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) name: Spanned<String>,
    pub(crate) target: Spanned<String>,
    pub(crate) memory: Spanned<Access>,
}

fn default_cpu() -> String {
    "neoverse-n1".into()
}

impl System {
    /// Reads a system file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is not TOML, or has keys or types that a system file does not have.
    pub fn load(path: &Path) -> Result<Self, Report> {
        let text = fs::read_to_string(path).map_err(|error| Report::about(path, error))?;
        Self::parse(path, text)
    }

    /// Reads a system file's text. Paths in it are counted from the folder of `path`.
    ///
    /// # Errors
    ///
    /// As [`System::load`].
    pub fn parse(path: &Path, text: String) -> Result<Self, Report> {
        let file = TextFile {
            path: path.to_owned(),
            text,
        };
        match toml::from_str(&file.text) {
            Ok(tables) => Ok(Self { file, tables }),
            Err(error) => Err(refuse(&file, &error)),
        }
    }
}

/// What the TOML reader expects, in the words of its Rust types, and in a person's.
const EXPECTED: [(&str, &str); 5] = [
    (
        "duplicate key",
        "the key is there already; leave one of the two",
    ),
    ("expected u32", "expected a number, 0 or more"),
    ("expected a boolean", "expected true or false"),
    ("expected a sequence", "expected a list in brackets"),
    ("expected a string", "expected text in quotes"),
];

/// Returns the TOML reader's error with its place.
fn refuse(file: &TextFile, error: &toml::de::Error) -> Report {
    let place = error.span().unwrap_or(0..0);
    let mut what = error.message().trim_end().replace('\n', "; ");
    if let Some(field) = what.strip_prefix("missing field ") {
        return file.refuse(
            &place,
            format!("{} lacks {field}; add it", table(file, &place)),
        );
    }
    for (theirs, ours) in EXPECTED {
        if let Some(start) = what.strip_suffix(theirs) {
            what = format!("{start}{ours}");
        }
    }
    file.refuse(&place, what.replace("unknown field", "unknown key"))
}

/// Returns the header of the table at that place, if there is one.
fn table<'f>(file: &'f TextFile, place: &Range<usize>) -> &'f str {
    let line = file
        .text
        .get(place.start..)
        .and_then(|rest| rest.lines().next());
    line.filter(|line| line.starts_with('['))
        .unwrap_or("the table")
}
