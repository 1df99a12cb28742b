//! Values that a system file writes as text: sizes, functions, ranges, sources of files.
//!
//! Each says in its error what it should look like; where it stands is added by the TOML reader.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use vpci::Sbdf;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// The name of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FunctionName(pub(crate) Sbdf);

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryRange {
    pub(crate) base: u64,
    pub(crate) size: u64,
}

/// What a device model may reach of its target's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    All,
    None,
    Ranges(Vec<MemoryRange>),
}

/// Where the bytes of a module come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `debian:vmlinuz`: the kernel of the Debian guest.
    DebianKernel,
    /// `debian:initrd`: its initial RAM disk.
    DebianInitrd,
    /// `uboot:`: U-Boot for `virt`.
    UBoot,
    /// `guest:NAME`: a program of `guests/`.
    Guest(String),
    /// `@NAME`: a file in the state folder.
    State(String),
    /// A path, from the system file's folder.
    Path(String),
}

/// A type that is written as text, and what it looks like.
trait Text: FromStr<Err = String> {
    const EXPECTED: &'static str;
}

struct TextVisitor<T>(std::marker::PhantomData<T>);

impl<T: Text> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! deserialize_as_text {
    ($($name:ty)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextVisitor(std::marker::PhantomData))
            }
        }
    )*};
}

deserialize_as_text!(Size FunctionName MemoryRange Source);

impl Text for Size {
    const EXPECTED: &'static str = "a size in quotes, such as \"512M\"";
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = number(text).ok_or_else(|| {
            format!("{text:?} is not a size; write a number with K, M or G, such as \"512M\"")
        });
        size.map(Self)
    }
}

impl Text for FunctionName {
    const EXPECTED: &'static str = "a PCI function in quotes, such as \"0000:00:01.0\"";
}

impl FromStr for FunctionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sbdf = text.parse();
        sbdf.map(Self).map_err(|error: vpci::ParseSbdfError| {
            format!("{text:?} is not a PCI function: {error}; write it as lspci does, such as \"00:01.0\"")
        })
    }
}

impl Text for MemoryRange {
    const EXPECTED: &'static str = "a range in quotes, such as \"0x40000000+16M\"";
}

impl FromStr for MemoryRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (base, size) = text.split_once('+').unzip();
        match (base.and_then(number), size.and_then(number)) {
            (Some(base), Some(size)) => Ok(Self { base, size }),
            _ => Err(format!(
                "{text:?} is not a range; write address and size, such as \"0x40000000+16M\""
            )),
        }
    }
}

impl Text for Source {
    const EXPECTED: &'static str = "a file in quotes: \"debian:vmlinuz\", \"debian:initrd\", \"uboot:\", \"guest:NAME\", or a path";
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |name: &str| {
            let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(sound) {
                Ok(name.to_owned())
            } else {
                Err(format!(
                    "{name:?} is not a file's name; write one without a folder"
                ))
            }
        };
        if let Some(name) = text.strip_prefix('@') {
            return plain(name).map(Self::State);
        }
        match text.split_once(':') {
            None if text.is_empty() => Err("the path is empty; name a file".into()),
            None => Ok(Self::Path(text.into())),
            Some(("debian", "vmlinuz")) => Ok(Self::DebianKernel),
            Some(("debian", "initrd")) => Ok(Self::DebianInitrd),
            Some(("debian", other)) => Err(format!(
                "there is no debian:{other}; write debian:vmlinuz or debian:initrd"
            )),
            Some(("uboot", "")) => Ok(Self::UBoot),
            Some(("uboot", other)) => Err(format!("there is no uboot:{other}; write uboot:")),
            Some(("guest", name)) => plain(name).map(Self::Guest),
            Some((prefix, _)) => Err(format!(
                "there is no prefix {prefix}:; write debian:, uboot:, guest:, or a path without a colon"
            )),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebianKernel => f.write_str("debian:vmlinuz"),
            Self::DebianInitrd => f.write_str("debian:initrd"),
            Self::UBoot => f.write_str("uboot:"),
            Self::Guest(name) => write!(f, "guest:{name}"),
            Self::State(name) => write!(f, "@{name}"),
            Self::Path(path) => f.write_str(path),
        }
    }
}

impl<'de> Deserialize<'de> for Access {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AccessVisitor)
    }
}

struct AccessVisitor;

impl<'de> Visitor<'de> for AccessVisitor {
    type Value = Access;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"all\", \"none\", or a list of ranges such as [\"0x40000000+16M\"]")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Access, E> {
        match text {
            "all" => Ok(Access::All),
            "none" => Ok(Access::None),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Access, S::Error> {
        let mut ranges = vec![];
        while let Some(range) = list.next_element()? {
            ranges.push(range);
        }
        Ok(Access::Ranges(ranges))
    }
}

/// Reads a decimal or `0x` number, times 2^10, 2^20 or 2^30 if K, M or G follows.
fn number(text: &str) -> Option<u64> {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let unit = units.iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, shift) = unit.map_or((text, 0), |(_, shift)| (&text[..text.len() - 1], *shift));
    let number = match digits.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()?
        }
        None if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn numbers_are_read_with_their_unit() {
        let cases = [
            ("0",                   Some(0)),
            ("4096",                Some(4096)),
            ("4K",                  Some(4096)),
            ("512M",                Some(512 << 20)),
            ("2G",                  Some(2 << 30)),
            ("0x40000000",          Some(0x4000_0000)),
            ("0x10K",               Some(0x4000)),
            ("17179869184G",        None),
            ("",                    None),
            ("M",                   None),
            ("0x",                  None),
            ("-1",                  None),
            ("+1",                  None),
            ("1.5G",                None),
            ("1GB",                 None),
            ("1 G",                 None),
        ];
        for (text, expected) in cases {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn sources_are_shown_as_they_are_written() {
        for text in [
            "debian:vmlinuz",
            "debian:initrd",
            "uboot:",
            "guest:a-b",
            "@d.img",
            "../x",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }
}
