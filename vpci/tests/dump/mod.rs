//! Dumps of the config space of QEMU's devices, as `scripts/dumps` writes them (its documentation has
//! the form).

use vpci::{BarIndex, BarInfo, BarKind};

/// A device: its config space and its BARs.
pub(crate) struct Dump {
    /// All 4 KiB; for a conventional function those from 0x100 on are ones, as its bus answers.
    pub(crate) dwords: Vec<u32>,
    /// Its BARs and its expansion ROM.
    pub(crate) bars: Vec<BarInfo>,
}

/// Reads a dump. Its BARs are placed one after the other from `host` on, as EL2 places them.
pub(crate) fn parse(text: &str, host: u64) -> Dump {
    let mut dump = Dump {
        dwords: vec![0; 1024],
        bars: Vec::new(),
    };
    let mut host = host;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["conventional"] => dump.dwords[0x40..].fill(u32::MAX),
            ["bar", index, kind, size, rest @ ..] => {
                let rom = *index == "rom";
                let kind = match *kind {
                    _ if rom => BarKind::Rom,
                    "io" => BarKind::Io,
                    "memory32" => BarKind::Memory32,
                    "memory64" => BarKind::Memory64,
                    other => panic!("{other} is no kind of BAR"),
                };
                let size = hex(size);
                host = host.next_multiple_of(size.max(0x1000));
                dump.bars.push(BarInfo {
                    index: if rom {
                        BarIndex::ROM
                    } else {
                        BarIndex::new(index.parse().unwrap()).unwrap()
                    },
                    kind,
                    prefetchable: rest.contains(&"prefetchable"),
                    size,
                    host: if kind == BarKind::Io { 0 } else { host },
                });
                host += size.max(0x1000);
            }
            [offset, dwords @ ..] => {
                let first = usize::try_from(hex(offset)).unwrap() / 4;
                for (at, dword) in dwords.iter().enumerate() {
                    dump.dwords[first + at] = u32::try_from(hex(dword)).unwrap();
                }
            }
            [] => {}
        }
    }
    dump
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}
