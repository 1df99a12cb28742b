//! The function against a second model, written as plainly as possible from the specification and from
//! `kernel/docs/config-space.md`: bytes, and masks of what a guest keeps. Real devices' config space is
//! put into both, the same random accesses are made to both, and after each one all of config space and
//! all that the kernel was told have to agree. So have reads and writes in BARs, and what of a BAR may be
//! mapped.

mod dump;
#[expect(dead_code, reason = "only devices are needed")]
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use dump::Dump;
use machine::{DOORBELL, Device};
use proptest::prelude::*;
use vpci::{
    BarIndex, BarInfo, BarKind, BarRead, BarWrite, Bus, BusAddress, BusRange, ConfigAccess, Effect,
    Function, Kind, Message, Msi, Offset, Pin, Position, Sbdf, Setup, Size, Steadiness, Upstream,
    Vendor,
};

/// What a port lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// Nothing.
    Closed,
    /// Everything, or there is no port.
    Open,
    /// Memory requests to this window, and nothing upstream.
    Window,
}

const WINDOW: (u64, u64) = (0x1000_0000, 0x1fff_ffff);

/// An entry of the MSI-X table after a reset: its mask bit is set (7.7.2.8).
const MASKED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

/// The plain model.
struct Plain {
    device: Vec<u8>,
    seen: Vec<u8>,
    keeps: Vec<u8>,
    /// Bits that are the device's at each read.
    live: Vec<u8>,
    fresh: Vec<u8>,
    /// Offset, 64-bit, size, ROM.
    bars: Vec<(usize, bool, u64, bool)>,
    ranges: Vec<BarInfo>,
    port: Port,
    power: Option<usize>,
    flr: Option<usize>,
    /// Offset, 64-bit address, masks, most vectors.
    msi: Option<(usize, bool, bool, u8)>,
    /// Offset of the capability.
    msix: Option<usize>,
    /// The MSI-X table.
    table: Vec<u8>,
    /// The capability that has Next Function Number.
    ari: Option<usize>,
    resets: u32,
}

impl Plain {
    fn new(dump: &Dump, setup: &Setup<'_>) -> Self {
        let position = setup.position;
        let mut plain = Self {
            device: dump.bytes(),
            seen: vec![0; 4096],
            keeps: vec![0; 4096],
            live: vec![0; 4096],
            fresh: Vec::new(),
            bars: Vec::new(),
            ranges: dump.bars.clone(),
            port: match position {
                Position::RootBus => Port::Open,
                Position::BelowPort | Position::BelowAriPort => Port::Closed,
            },
            power: None,
            flr: None,
            msi: None,
            msix: None,
            table: Vec::new(),
            ari: None,
            resets: 0,
        };
        plain.header(dump);
        if let Kind::Virtual { vendor, device } = setup.kind {
            // Its own say nothing (9.3.4.1.1, 9.3.4.1.2).
            plain.seen[0..2].copy_from_slice(&vendor.to_le_bytes());
            plain.seen[2..4].copy_from_slice(&device.to_le_bytes());
        }
        if setup.pin == Pin::Shown {
            plain.watch(0x04, 0x0008_0000); // interrupt status
            plain.show(0x3c, 0x0000_ff00);
        }
        let express = plain.capabilities(setup);
        if express {
            plain.extended(position);
        }
        plain.fresh = plain.seen.clone();
        plain
    }

    fn physical(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.device[at..at + 4].try_into().unwrap())
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.seen[at..at + 4].try_into().unwrap())
    }

    fn set(&mut self, at: usize, bits: u32) {
        for (byte, bits) in self.seen[at..at + 4].iter_mut().zip(bits.to_le_bytes()) {
            *byte |= bits;
        }
    }

    /// The guest reads the device's bits.
    fn show(&mut self, at: usize, mask: u32) {
        let bits = self.physical(at) & mask;
        self.set(at, bits);
    }

    /// The guest reads the device's bits as they are now.
    fn watch(&mut self, at: usize, mask: u32) {
        for (byte, bits) in self.live[at..at + 4].iter_mut().zip(mask.to_le_bytes()) {
            *byte |= bits;
        }
    }

    /// What the guest reads.
    fn read(&self, at: usize, bytes: usize) -> u32 {
        (at..at + bytes).rev().fold(0, |value, at| {
            value << 8 | u32::from(self.seen[at] | self.device[at] & self.live_now(at))
        })
    }

    /// Which bits of a byte are the device's to say now: Interrupt Status is clear while the function
    /// sends messages instead (7.7.1.2, 7.7.2.2), and only a masked vector is ever pending (7.7.1.8).
    fn live_now(&self, at: usize) -> u8 {
        let msi_is_on = self
            .msi
            .is_some_and(|(msi, ..)| self.seen[msi + 2] & 1 != 0);
        let msix_is_on = self
            .msix
            .is_some_and(|msix| self.seen[msix + 3] & 0x80 != 0);
        if at == 6 && (msi_is_on || msix_is_on) {
            return self.live[at] & !8;
        }
        if let Some((msi, wide, true, _)) = self.msi {
            let mask = msi + if wide { 16 } else { 12 };
            if (mask + 4..mask + 8).contains(&at) {
                let masked = if msi_is_on { self.seen[at - 4] } else { 0 };
                return self.live[at] & masked;
            }
        }
        self.live[at]
    }

    /// The guest keeps what it writes there.
    fn keep(&mut self, at: usize, mask: u32) {
        for (byte, bits) in self.keeps[at..at + 4].iter_mut().zip(mask.to_le_bytes()) {
            *byte |= bits;
        }
    }

    fn header(&mut self, dump: &Dump) {
        self.show(0x00, 0xffff_ffff); // Vendor ID, Device ID
        self.keep(0x04, 0x0000_0546); // memory, bus master, parity, SERR#, interrupt disable
        self.show(0x04, 0x06a1_0000); // immediate readiness, 66 MHz, fast back-to-back, DEVSEL
        self.show(0x08, 0xffff_ffff); // revision, class
        self.keep(0x0c, 0x0000_00ff); // cache line size
        self.show(0x2c, 0xffff_ffff); // subsystem
        self.keep(0x3c, 0x0000_00ff); // interrupt line
        for bar in &dump.bars {
            let at = register(bar.index);
            let mask = !(bar.size - 1);
            match bar.kind {
                BarKind::Io => continue,
                BarKind::Memory64 => {
                    self.set(at, 4);
                    self.keep(at + 4, u32::try_from(mask >> 32).unwrap());
                }
                BarKind::Rom => self.keep(at, 1),
                BarKind::Memory32 => {}
            }
            if bar.prefetchable {
                self.set(at, 8);
            }
            self.keep(at, u32::try_from(mask & 0xffff_ffff).unwrap());
            let (wide, rom) = (bar.kind == BarKind::Memory64, bar.kind == BarKind::Rom);
            self.bars.push((at, wide, bar.size, rom));
        }
    }

    /// Lays out the list of section 7.5.1.1.11 and returns whether there is a PCI Express capability.
    fn capabilities(&mut self, setup: &Setup<'_>) -> bool {
        let mut link = 0x34;
        let mut at = self.physical(0x34) as usize & 0xfc;
        let mut express = false;
        while self.physical(4) & 0x10_0000 != 0 && at != 0 {
            let header = self.physical(at);
            let shown = match header & 0xff {
                0x01 => self.power_management(at),
                0x05 => self.message_signaled(at),
                0x11 => self.message_signaled_x(at),
                0x09 if setup.vendor == Vendor::Shown => self.vendor_specific(at),
                0x10 => {
                    express = self.express(at, setup);
                    express
                }
                _ => false,
            };
            if shown {
                self.seen[link] = u8::try_from(at).unwrap();
                self.seen[at] = u8::try_from(header & 0xff).unwrap();
                self.seen[6] |= 0x10;
                link = at + 1;
            }
            at = header as usize >> 8 & 0xfc;
        }
        express
    }

    fn power_management(&mut self, at: usize) -> bool {
        self.show(at, 0x0037_0000); // version, immediate readiness, DSI
        self.keep(at + 4, 3);
        self.set(at + 4, 8); // no soft reset
        self.power = Some(at + 4);
        true
    }

    /// Shows as many bytes as it says that it has. Virtio's window to all BARs, its type 5, acts when it
    /// is read (virtio 1.2, 4.1.4.9).
    fn vendor_specific(&mut self, at: usize) -> bool {
        let virtio = matches!(self.physical(0), 0x1000_1af4..=0x107f_1af4)
            && self.physical(0) & 0xffff == 0x1af4;
        let length = usize::from(self.device[at + 2]);
        if length < 4 || virtio && self.device[at + 3] == 5 {
            return false;
        }
        for byte in at + 2..at + length {
            self.seen[byte] = self.device[byte];
        }
        true
    }

    fn message_signaled(&mut self, at: usize) -> bool {
        let control = self.physical(at) >> 16;
        let (wide, masks) = (control & 0x80 != 0, control & 0x100 != 0);
        self.show(at, 0x018e_0000);
        self.keep(at, 0x0071_0000);
        self.keep(at + 4, 0xffff_fffc);
        let data = if wide { at + 12 } else { at + 8 };
        if wide {
            self.keep(at + 8, 0xffff_ffff);
        }
        self.keep(data, 0x0000_ffff);
        let capable = u8::try_from(control >> 1 & 7).unwrap().min(5);
        if masks {
            let vectors = 1_u64 << capable;
            let bits = u32::try_from((1_u64 << vectors) - 1).unwrap();
            self.keep(data + 4, bits);
            self.watch(data + 8, bits);
        }
        self.msi = Some((at, wide, masks, capable));
        true
    }

    fn message_signaled_x(&mut self, at: usize) -> bool {
        self.show(at, 0x07ff_0000);
        self.keep(at, 0xc000_0000);
        self.show(at + 4, 0xffff_ffff);
        self.show(at + 8, 0xffff_ffff);
        let vectors = (self.physical(at) as usize >> 16 & 0x7ff) + 1;
        self.msix = Some(at);
        self.table = MASKED.repeat(vectors);
        true
    }

    fn express(&mut self, at: usize, setup: &Setup<'_>) -> bool {
        let header = self.physical(at);
        let kind = header >> 20 & 0xf;
        let below = setup.position != Position::RootBus;
        self.show(at, 0x3e0f_0000); // version, interrupt message number
        match (kind, below) {
            (0 | 1 | 9, false) => self.set(at, 9 << 20),
            (0 | 9, true) => {}
            (1, true) => self.set(at, 1 << 20),
            _ => panic!("no dump has a port"),
        }
        let first = header >> 16 & 0xf == 1;
        self.show(at + 4, 0x0000_8fe7);
        self.keep(at + 8, 0x0000_78ff);
        if self.physical(at + 4) & 0x20 != 0 {
            self.keep(at + 8, 0x0100); // extended tags, hardwired to zero without (7.5.3.4)
        }
        self.set(at + 8, 0x2810); // relaxed ordering, no snoop, reads of 512 bytes
        // A reset of a physical function would end the virtual ones that others have.
        if self.physical(at + 4) & 1 << 28 != 0 && setup.kind != Kind::Physical {
            self.set(at + 4, 1 << 28);
            self.keep(at + 8, 0x8000);
            self.flr = Some(at + 8);
        }
        let link = below && kind != 9;
        if link {
            self.show(at + 0x0c, 0xff43_f3ff);
            self.keep(at + 0x10, 0x0000_00c0);
            self.show(at + 0x10, 0x13ff_0000);
        }
        if below && kind == 9 && !first {
            // Software that looks for the link of an endpoint finds one: 2.5 GT/s, x1, slot clock.
            self.set(at + 0x0c, 0x0040_0011);
            self.set(at + 0x10, 0x1011_0000);
        }
        if !first {
            // A control is hardwired to zero where what it controls is not supported (7.5.3.16).
            let mut offered = vec![(0x0f, 0x0f), (0x10, 0x10)]; // completion timeout value, disable
            if link {
                offered.push((0x800, 0x400)); // LTR
                self.show(at + 0x2c, 0x0000_00fe);
            }
            for (supported, control) in offered {
                self.show(at + 0x24, supported);
                if self.physical(at + 0x24) & supported != 0 {
                    self.keep(at + 0x28, control);
                }
            }
        }
        true
    }

    /// Lays out the list of section 7.6.3.
    fn extended(&mut self, position: Position) {
        let below = position != Position::RootBus;
        let ari = position == Position::BelowAriPort;
        let mut shown = Vec::new();
        let mut at = 0x100;
        while at != 0 && self.physical(at) != 0 {
            let header = self.physical(at);
            match header & 0xffff {
                0x0001 => {
                    self.watch(at + 0x04, 0xffff_f030);
                    self.show(at + 0x08, 0xffff_f030);
                    self.show(at + 0x0c, 0xffff_f030);
                    self.watch(at + 0x10, 0x0000_f1c1);
                    self.show(at + 0x14, 0x0000_f1c1);
                    self.watch(at + 0x18, 0x0000_001f);
                    shown.push(at);
                }
                0x0003 => {
                    self.show(at + 4, 0xffff_ffff);
                    self.show(at + 8, 0xffff_ffff);
                    shown.push(at);
                }
                0x000e if ari => {
                    self.ari = Some(at);
                    shown.push(at);
                }
                0x0018 if below => {
                    self.keep(at + 4, 0x1fff_1fff);
                    shown.push(at);
                }
                _ => {}
            }
            at = header as usize >> 20;
        }
        if ari && self.ari.is_none() {
            // All functions of the device have it (7.8.8): where nothing else is.
            let size = |at| match self.physical(at) & 0xffff {
                0x0001 => 0x2c,
                0x0003 => 12,
                _ => 8,
            };
            let is_free =
                |byte: &usize| !shown.iter().any(|at| (*at..*at + size(*at)).contains(byte));
            let mut places = (0x104..0xffc).step_by(4);
            self.ari = places.find(|at| (*at..at + 8).all(|byte| is_free(&byte)));
            shown.extend(self.ari);
        }
        let mut link = 0x100;
        for at in shown {
            if at != 0x100 {
                self.set(link, u32::try_from(at).unwrap() << 20);
            }
            if self.ari == Some(at) {
                self.set(at, 0x0001_000e);
            } else {
                self.show(at, 0x000f_ffff);
            }
            link = at;
        }
    }

    fn write(&mut self, at: usize, bytes: usize, value: u32) {
        let before = self.seen.clone();
        for (number, byte) in value.to_le_bytes().into_iter().take(bytes).enumerate() {
            let mask = self.keeps[at + number];
            self.seen[at + number] = self.seen[at + number] & !mask | byte & mask;
        }
        // D1 and D2 are not offered: such a write leaves the state as it was.
        if let Some(power) = self.power
            && matches!(self.seen[power] & 3, 1 | 2)
        {
            self.seen[power] = self.seen[power] & !3 | before[power] & 3;
        }
        if let Some(flr) = self.flr
            && self.seen[flr + 1] & 0x80 != 0
        {
            // What belongs to the link is not the function's to lose: Max_Payload_Size, and of Link
            // Control Common Clock Configuration and Extended Synch (6.6.2).
            let kept = [(flr, 0xe0), (flr + 8, 0xc0)];
            let kept = kept.map(|(at, mask)| (at, mask & self.keeps[at], self.seen[at]));
            self.reset();
            for (at, mask, old) in kept {
                self.seen[at] = self.seen[at] & !mask | old & mask;
            }
            self.resets += 1;
        }
    }

    fn reset(&mut self) {
        self.seen.clone_from(&self.fresh);
        self.table = MASKED.repeat(self.table.len() / 16);
    }

    /// The device is, or is not, one of several functions, of which `next` comes next.
    fn siblings(&mut self, multi: bool, next: u8) {
        for bytes in [&mut self.seen, &mut self.fresh] {
            bytes[0x0e] = if multi { 0x80 } else { 0 };
            if let Some(ari) = self.ari {
                bytes[ari + 5] = next;
            }
        }
    }

    /// Offsets in a BAR: of the MSI-X table (first), or of the pending bits (second).
    fn structures(&self, bar: usize) -> [std::ops::Range<u64>; 2] {
        let Some(at) = self.msix else {
            return [0..0, 0..0];
        };
        let table = self.table.len() as u64;
        // One bit for each vector, in qwords (7.7.2.9).
        let pending = (table / 16).div_ceil(64) * 8;
        [(4, table), (8, pending)].map(|(register, bytes)| {
            let place = self.physical(at + register);
            if register_of(place & 7) == bar {
                u64::from(place & !7)..u64::from(place & !7) + bytes
            } else {
                0..0
            }
        })
    }

    /// Returns the memory BAR with that register, if an access is one that a request can express.
    fn reached(&self, bar: usize, offset: u64, bytes: u64) -> Option<&BarInfo> {
        let mut ranges = self.ranges.iter();
        let info = ranges.find(|info| register(info.index) == bar && info.kind != BarKind::Io)?;
        let sound =
            [1, 2, 4, 8].contains(&bytes) && offset.is_multiple_of(bytes) && offset < info.size;
        sound.then_some(info)
    }

    fn load(&self, bar: usize, offset: u64, bytes: u64) -> BarRead {
        let Some(info) = self.reached(bar, offset, bytes) else {
            return BarRead::Value(u64::MAX);
        };
        let [table, _] = self.structures(bar);
        if !table.contains(&offset) {
            let host = info.host + offset;
            return BarRead::Device { host };
        }
        let at = usize::try_from(offset - table.start).unwrap();
        let entry = &self.table[at..at + usize::try_from(bytes).unwrap()];
        let join = |value, byte: &u8| value << 8 | u64::from(*byte);
        BarRead::Value(entry.iter().rev().fold(0, join))
    }

    /// Returns where the device is to be written to, if it is.
    fn store(&mut self, bar: usize, offset: u64, bytes: u64, value: u64) -> Option<u64> {
        let info = self.reached(bar, offset, bytes)?;
        let (host, rom) = (info.host + offset, info.kind == BarKind::Rom);
        let [table, pending] = self.structures(bar);
        if !table.contains(&offset) {
            return (!pending.contains(&offset) && !rom).then_some(host);
        }
        let at = usize::try_from(offset - table.start).unwrap();
        let bytes = usize::try_from(bytes).unwrap();
        for (byte, at) in value.to_le_bytes().into_iter().take(bytes).zip(at..) {
            let kept = match at % 16 {
                0 => 0xfc,
                12 => 0x01,
                13..16 => 0x00,
                _ => 0xff,
            };
            self.table[at] = byte & kept;
        }
        None
    }

    /// Returns whether a page of a BAR may be mapped: it is whole, has nothing of MSI-X, and is no ROM's.
    fn is_mapped(&self, info: &BarInfo, page: u64) -> bool {
        let (start, end) = (page * 0x1000, page * 0x1000 + 0x1000);
        let clear = |range: &std::ops::Range<u64>| range.end <= start || end <= range.start;
        let structures = self.structures(register(info.index));
        info.kind != BarKind::Rom
            && info.host.is_multiple_of(0x1000)
            && end <= info.size
            && structures
                .iter()
                .all(|range| range.is_empty() || clear(range))
    }

    fn awake(&self) -> bool {
        self.power.is_none_or(|power| self.seen[power] & 3 != 3)
    }

    /// What each BAR decodes, by the offset of its register.
    fn decoded(&self) -> BTreeMap<usize, Option<BusRange>> {
        let on = self.awake() && self.seen[4] & 2 != 0 && self.port != Port::Closed;
        let bars = self.bars.iter().map(|&(at, wide, size, rom)| {
            let high = if wide {
                u64::from(self.dword(at + 4)) << 32
            } else {
                0
            };
            let address = (high | u64::from(self.dword(at))) & !(size - 1);
            let inside = WINDOW.0 <= address && address + (size - 1) <= WINDOW.1;
            let on = on && (!rom || self.seen[at] & 1 != 0);
            let on = on && (self.port != Port::Window || inside);
            let range = BusRange::new(BusAddress::new(address), size);
            (at, range.filter(|_| on))
        });
        bars.collect()
    }

    fn message(&self, address: u64, data: u32) -> Message {
        if address == DOORBELL {
            Message::Live { data }
        } else {
            let address = BusAddress::new(address);
            Message::Misdirected { address }
        }
    }

    fn msi_state(&self) -> Msi {
        let Some((at, wide, masks, capable)) = self.msi else {
            return Msi::OFF;
        };
        let control = self.dword(at) >> 16;
        if control & 1 == 0 {
            return Msi::OFF;
        }
        let high = if wide {
            u64::from(self.dword(at + 8)) << 32
        } else {
            0
        };
        let data = if wide { at + 12 } else { at + 8 };
        let enabled = u8::try_from(control >> 4 & 7).unwrap();
        Msi {
            message: self.message(high | u64::from(self.dword(at + 4)), self.dword(data)),
            vectors: 1 << enabled.min(capable),
            mask: if masks { self.dword(data + 4) } else { 0 },
        }
    }
}

/// What the kernel was told.
struct Told {
    bars: BTreeMap<usize, BusRange>,
    bus_master: bool,
    intx: bool,
    msi: Msi,
    msix: (bool, bool),
    vectors: BTreeMap<u16, Message>,
    resets: u32,
}

impl Told {
    fn hear(&mut self, function: &mut Function<Device>) {
        // Each BAR goes and comes, each vector changes, and a few more.
        let mut left = 2 * 7 + 2048 + 8;
        while let Some(effect) = function.next_effect() {
            left -= 1;
            assert!(left > 0, "{effect:?}, and no end");
            match effect {
                Effect::UnmapBar { bar, range } => {
                    assert_eq!(self.bars.remove(&register(bar)), Some(range));
                }
                Effect::MapBar { bar, range } => {
                    assert_eq!(self.bars.insert(register(bar), range), None);
                }
                Effect::BusMaster { enabled } => self.bus_master = enabled,
                Effect::Intx { enabled } => self.intx = enabled,
                Effect::Msi(msi) => self.msi = msi,
                Effect::Msix { enabled, masked } => self.msix = (enabled, masked),
                Effect::MsixVector { vector, message } => {
                    self.vectors.insert(vector, message);
                }
                Effect::Reset => self.resets += 1,
            }
        }
    }
}

/// Returns the offset of the register that a BAR indicator register means (7.7.2.3).
fn register_of(indicator: u32) -> usize {
    0x10 + indicator as usize * 4
}

/// Returns the offset of a base address register.
fn register(bar: BarIndex) -> usize {
    if bar == BarIndex::ROM {
        0x30
    } else {
        0x10 + usize::from(bar.get()) * 4
    }
}

fn access(offset: usize, size: Size) -> Option<ConfigAccess> {
    let offset = Offset::new(u16::try_from(offset).unwrap())?;
    ConfigAccess::new(Sbdf::from_rid(0, 8), offset, size)
}

impl Dump {
    fn bytes(&self) -> Vec<u8> {
        let dwords = self.dwords.iter();
        dwords.flat_map(|dword| dword.to_le_bytes()).collect()
    }
}

fn virtual_bar((index, host): (u8, u64)) -> BarInfo {
    BarInfo {
        index: BarIndex::new(index).unwrap(),
        kind: BarKind::Memory64,
        prefetchable: true,
        size: 0x4000,
        host,
    }
}

static DUMPS: LazyLock<Vec<(String, Dump)>> = LazyLock::new(dumps);

fn dumps() -> Vec<(String, Dump)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/devices");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut dump = dump::parse(&fs::read_to_string(&path).unwrap(), 0x80_0000_0000);
        if dump.dwords[0] == u32::MAX {
            // The physical function of igb's virtual one says so.
            dump.bars = [(0, 0x80_0000_0000), (3, 0x80_0000_8000)]
                .map(virtual_bar)
                .into();
        }
        let is_dump = path
            .extension()
            .is_some_and(|extension| extension == "dump");
        if is_dump {
            found.push((path.file_stem().unwrap().to_str().unwrap().to_owned(), dump));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Both models of one device, and what the kernel was told.
struct Pair {
    name: &'static str,
    plain: Plain,
    function: Function<Device>,
    told: Told,
}

/// A way in which a function can be shown.
#[derive(Clone, Copy, Debug)]
struct Way {
    position: Position,
    pin: Pin,
    vendor: Vendor,
    kind: Kind,
}

/// All of them.
fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    let (vendor, device) = (0x8086, 0x10ca);
    for kind in [
        Kind::Ordinary,
        Kind::Physical,
        Kind::Virtual { vendor, device },
    ] {
        for position in [
            Position::RootBus,
            Position::BelowPort,
            Position::BelowAriPort,
        ] {
            for pin in [Pin::Hidden, Pin::Shown] {
                for vendor in [Vendor::Hidden, Vendor::Shown] {
                    ways.push(Way {
                        position,
                        pin,
                        vendor,
                        kind,
                    });
                }
            }
        }
    }
    ways
}

impl Pair {
    fn new(name: &'static str, dump: &Dump, mut way: Way) -> Self {
        if dump.dwords[0] == u32::MAX && !matches!(way.kind, Kind::Virtual { .. }) {
            way.kind = ways().last().unwrap().kind;
        }
        let device = Device::new(&[]);
        *device.bytes.borrow_mut() = dump.bytes();
        let setup = Setup {
            bars: &dump.bars,
            doorbell: BusAddress::new(DOORBELL),
            position: way.position,
            pin: way.pin,
            vendor: way.vendor,
            kind: way.kind,
        };
        Self {
            name,
            plain: Plain::new(dump, &setup),
            function: Function::new(device, &setup).unwrap(),
            told: Told {
                bars: BTreeMap::new(),
                bus_master: false,
                intx: true,
                msi: Msi::OFF,
                msix: (false, false),
                vectors: BTreeMap::new(),
                resets: 0,
            },
        }
    }

    /// Does the same to both.
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write { .. } => self.write(step),
            Step::Bar {
                bar,
                offset,
                bytes,
                store,
            } => {
                let index = self.bar(bar);
                let offset = self.offset(index, offset);
                self.access_bar(index, offset, bytes, store);
            }
            Step::Device { pick, value } => {
                let at = self.dword(pick, |plain| &plain.live);
                self.plain.device[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let bytes = &mut self.function.device().bytes.borrow_mut()[at..at + 4];
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            Step::Port(port) => {
                let _ = self.function.set_upstream(upstream(port));
                self.plain.port = port;
            }
            Step::Siblings(multi, next) => {
                self.function.set_multi_function(multi);
                self.function.set_next_function(next);
                self.plain.siblings(multi, next);
            }
            Step::Reset => {
                let _ = self.function.reset();
                self.plain.reset();
            }
        }
        self.told.hear(&mut self.function);
    }

    /// Returns a dword of which the plain model has some bits in a set, or now and then any.
    fn dword(&self, pick: u16, bits: impl Fn(&Plain) -> &Vec<u8>) -> usize {
        let bits = bits(&self.plain).chunks(4).enumerate();
        let found: Vec<usize> = bits
            .filter(|(_, bytes)| *bytes != [0; 4])
            .map(|(index, _)| index * 4)
            .collect();
        if pick.is_multiple_of(8) || found.is_empty() {
            usize::from(pick / 8) % 1024 * 4
        } else {
            found[usize::from(pick / 8) % found.len()]
        }
    }

    fn write(&mut self, step: &Step) {
        let &Step::Write {
            pick,
            lane,
            size,
            value,
        } = step
        else {
            return;
        };
        let at = self.dword(pick, |plain| &plain.keeps) + usize::from(lane);
        let Some(access) = access(at, size) else {
            return;
        };
        let (bytes, value) = (usize::from(size.bytes()), value & size.mask());
        let _ = self.function.write(access, value);
        self.plain.write(at, bytes, value);
        let (got, name) = (self.function.read(access), self.name);
        assert_eq!(got, self.plain.read(at, bytes), "{name}: {at:#x}, {bytes}");
    }

    fn bar(&self, pick: u8) -> BarIndex {
        match (pick % 8, self.plain.msix) {
            (7, Some(at)) => {
                let indicator = self.plain.device[at + 4] & 7;
                BarIndex::new(indicator).unwrap()
            }
            (pick, _) => BarIndex::new(pick).unwrap_or(BarIndex::ROM),
        }
    }

    /// Returns an offset near what is special in a BAR: its start, its end, the structures of MSI-X.
    fn offset(&self, bar: BarIndex, pick: u16) -> u64 {
        let [table, pending] = self.plain.structures(register(bar));
        let mut ranges = self.plain.ranges.iter();
        let end = ranges.find(|info| info.index == bar);
        let end = end.map_or(0, |info| info.size);
        let edges = [
            0,
            end,
            table.start,
            table.start,
            table.end,
            pending.start,
            pending.end,
        ];
        let near = u64::from(pick >> 3 & 0x3f);
        edges[usize::from(pick & 7) % 7]
            .wrapping_add(near)
            .wrapping_sub(near & 0x20)
    }

    fn access_bar(&mut self, bar: BarIndex, offset: u64, bytes: u64, store: Option<u64>) {
        let at = register(bar);
        if let Some(value) = store {
            let wanted = self.plain.store(at, offset, bytes, value);
            let got = match self.function.write_bar(bar, offset, bytes, value) {
                BarWrite::Device { host } => Some(host),
                BarWrite::Done(_) => None,
            };
            assert_eq!(got, wanted, "{}: {bar}, {offset:#x}", self.name);
        }
        let got = self.function.read_bar(bar, offset, bytes);
        let wanted = self.plain.load(at, offset, bytes);
        assert_eq!(got, wanted, "{}: {bar}, {offset:#x}", self.name);
    }

    /// Compares all that a guest reads, and all that the kernel was told.
    fn check(&self) {
        let (name, plain, told) = (self.name, &self.plain, &self.told);
        for at in (0..0x1000).step_by(4) {
            let got = self.function.read(access(at, Size::Four).unwrap());
            assert_eq!(got, plain.read(at, 4), "{name}: {at:#x}");
        }
        for (at, range) in plain.decoded() {
            assert_eq!(told.bars.get(&at).copied(), range, "{name}: BAR at {at:#x}");
        }
        let command = plain.dword(4);
        let bus_master = command & 4 != 0 && plain.awake() && plain.port == Port::Open;
        assert_eq!(told.bus_master, bus_master, "{name}: bus master");
        // In D3hot it sends no message, and an interrupt pin is messages (5.3.1.4.1).
        let intx = command & 0x400 == 0 && plain.awake();
        assert_eq!(told.intx, intx, "{name}: INTx");
        assert_eq!(told.msi, plain.msi_state(), "{name}: MSI");
        if let Some(at) = plain.msix {
            let control = plain.dword(at) >> 30;
            let wanted = (control & 2 != 0, control & 1 != 0);
            assert_eq!(told.msix, wanted, "{name}: MSI-X");
        }
        for (vector, entry) in (0..).zip(plain.table.chunks(16)) {
            let address = u64::from_le_bytes(entry[..8].try_into().unwrap());
            let data = u32::from_le_bytes(entry[8..12].try_into().unwrap());
            let wanted = if entry[12] & 1 == 0 {
                plain.message(address, data)
            } else {
                Message::Off
            };
            let got = told.vectors.get(&vector).copied().unwrap_or(Message::Off);
            assert_eq!(got, wanted, "{name}: vector {vector}");
        }
        assert_eq!(told.resets, plain.resets, "{name}: resets");
        let steadiness = self.function.steadiness();
        if steadiness == Steadiness::Live {
            return;
        }
        for at in (0..0x1000).step_by(4) {
            let mut expected = plain.read(at, 4);
            if at == 4 && steadiness == Steadiness::UntilInterrupt {
                assert!(told.intx, "{name}: nobody says when it interrupts");
                expected &= !0x0008_0000;
            }
            let steady = self.function.steady_dword(at / 4);
            assert_eq!(steady, expected, "{name}: {at:#x} while it is steady");
        }
    }
}

/// What a port that does so lets through, as a bus says it.
fn upstream(port: Port) -> Upstream {
    match port {
        Port::Closed => Upstream::CLOSED,
        Port::Open => Upstream::ROOT,
        Port::Window => {
            let mut bus = Bus::<u8>::new(0, 0, 1).unwrap();
            bus.add_port("00:01.0".parse().unwrap(), 1, false).unwrap();
            let window = 0x1ff0_1000; // WINDOW, as 7.5.1.3.8 has it
            for (at, value) in [
                (0x04, 2),
                (0x18, 0x0001_0100),
                (0x20, window),
                (0x24, 0x0001_fff1),
            ] {
                let access = access(at, Size::Four).unwrap();
                let _ = bus.write_port(1, access, value);
            }
            bus.upstream("01:00.0".parse().unwrap())
        }
    }
}

/// One thing that is done to both models.
#[derive(Clone, Debug)]
enum Step {
    /// A write to config space.
    Write {
        pick: u16,
        lane: u8,
        size: Size,
        value: u32,
    },
    /// An access to a BAR; the one with the MSI-X table is the most interesting.
    Bar {
        bar: u8,
        offset: u16,
        bytes: u64,
        store: Option<u64>,
    },
    /// The device changes a register by itself.
    Device { pick: u16, value: u32 },
    /// The port above lets something else through.
    Port(Port),
    /// Whether there are other functions, and which is next.
    Siblings(bool, u8),
    /// The domain resets.
    Reset,
}

fn value() -> impl Strategy<Value = u32> {
    let doorbell = u32::try_from(DOORBELL).unwrap();
    prop_oneof![
        Just(u32::MAX),
        Just(0),
        Just(doorbell),
        Just(6),
        Just(0x0071_0000),
        (0x1000_0000_u32..0x2000_0000),
        any::<u32>()
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1 => Just(Size::One), 1 => Just(Size::Two), 2 => Just(Size::Four)];
    let lane = prop_oneof![3 => Just(0_u8), 1 => 0_u8..4];
    let write =
        (any::<u16>(), lane, size, value()).prop_map(|(pick, lane, size, value)| Step::Write {
            pick,
            lane,
            size,
            value,
        });
    let stored = prop_oneof![
        Just(DOORBELL),
        Just(0),
        any::<u64>(),
        value().prop_map(u64::from)
    ];
    let bytes = prop_oneof![8 => prop::sample::select(vec![1, 2, 4, 4, 8]), 1 => 0_u64..18];
    let bar = prop_oneof![Just(7_u8), 0_u8..7];
    let bar = (bar, any::<u16>(), bytes, prop::option::of(stored)).prop_map(
        |(bar, offset, bytes, store)| Step::Bar {
            bar,
            offset,
            bytes,
            store,
        },
    );
    let device =
        (any::<u16>(), any::<u32>()).prop_map(|(pick, value)| Step::Device { pick, value });
    let port = prop::sample::select(vec![Port::Closed, Port::Open, Port::Window]);
    prop_oneof![
        30 => write,
        20 => bar,
        4 => device,
        3 => port.prop_map(Step::Port),
        2 => (any::<bool>(), any::<u8>()).prop_map(|(multi, next)| Step::Siblings(multi, next)),
        1 => Just(Step::Reset),
    ]
}

#[test]
fn every_device_is_laid_out_alike_in_every_way_it_can_be_shown() {
    assert!(DUMPS.len() > 30);
    for (name, dump) in DUMPS.iter().take(FEW) {
        for way in ways().into_iter().take(FEW) {
            let mut pair = Pair::new(name, dump, way);
            pair.check();
            // All that can be written, written.
            pair.take(&Step::Port(Port::Open));
            for at in (0..1024).step_by(4) {
                let access = access(at, Size::Four).unwrap();
                let _ = pair.function.write(access, u32::MAX);
                pair.plain.write(at, 4, u32::MAX);
            }
            pair.told.hear(&mut pair.function);
            pair.check();
            // Of what a device does later only live bits are seen.
            pair.plain.device.fill(0xff);
            pair.function.device().bytes.borrow_mut().fill(0xff);
            pair.check();
        }
    }
}

#[test]
fn both_models_say_which_pages_may_be_mapped() {
    for (name, dump) in DUMPS.iter().take(FEW) {
        let pair = Pair::new(name, dump, ways()[0]);
        for info in &pair.plain.ranges {
            let pages: Vec<_> = pair.function.pages(info.index).collect();
            if info.kind == BarKind::Io {
                assert!(pages.is_empty(), "{name}");
                continue;
            }
            let count = info.size / 0x1000;
            for page in (0..count.min(1024)).chain(count.saturating_sub(4)..count + 1) {
                let at = page * 0x1000;
                let mut here = pages
                    .iter()
                    .filter(|pages| pages.offset <= at && at < pages.offset + pages.size);
                let wanted = pair.plain.is_mapped(info, page);
                let found = here.next();
                assert_eq!(found.is_some(), wanted, "{name}: {} at {at:#x}", info.index);
                assert_eq!(here.next(), None, "{name}: {} at {at:#x}", info.index);
                if let Some(pages) = found {
                    assert_eq!(pages.host - pages.offset, info.host, "{name}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
    fn both_models_agree(
        device in 0..DUMPS.len(),
        way in 0_usize..36,
        open: bool,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let (name, dump) = &DUMPS[device];
        let mut pair = Pair::new(name, dump, ways()[way]);
        if open {
            pair.take(&Step::Port(Port::Open));
        }
        for step in &steps {
            pair.take(step);
            pair.check();
        }
    }
}

/// How many devices, and ways to show them, are tried one after the other. Miri takes a thousand times as
/// long.
const FEW: usize = if cfg!(miri) { 1 } else { usize::MAX };
