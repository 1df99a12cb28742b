//! A machine for the model to run in: devices that are arrays of bytes, and a kernel that does what
//! it is told and checks, at each step, that it may.

use std::cell::RefCell;
use std::collections::BTreeMap;

use vpci::{
    BarIndex, BarInfo, BarKind, BarRead, BarWrite, BuildError, Bus, BusAddress, BusRange, Change,
    Claimed, ConfigAccess, Decoder, Effect, Emulated, Function, Message, Offset, Owner, PAGE,
    PhysicalConfig, Pin, PortChange, Position, Released, Sbdf, Setup, Size, Vendor,
};

/// Where the domain's functions send their MSIs.
pub(crate) const DOORBELL: u64 = 0x0809_0040;

/// The bridge's windows: one below 4 GiB, one above.
pub(crate) const LOW: (u64, u64) = (0x1000_0000, 0x2eff_0000);
pub(crate) const HIGH: (u64, u64) = (0x50_0000_0000, 0x20_0000_0000);

/// A physical function: its config space, and what was written to it.
pub(crate) struct Device {
    pub(crate) bytes: RefCell<Vec<u8>>,
    pub(crate) written: RefCell<Vec<(u16, Size, u32)>>,
}

impl Device {
    pub(crate) fn new(dwords: &[(u16, u32)]) -> Self {
        let mut bytes = vec![0; 4096];
        for &(offset, value) in dwords {
            let offset = usize::from(offset);
            bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        Self {
            bytes: RefCell::new(bytes),
            written: RefCell::default(),
        }
    }
}

impl PhysicalConfig for Device {
    fn read(&self, offset: Offset, size: Size) -> u32 {
        assert!(offset.get().is_multiple_of(size.bytes()));
        let start = usize::from(offset.get());
        let bytes = &self.bytes.borrow()[start..start + usize::from(size.bytes())];
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&self, offset: Offset, size: Size, value: u32) {
        assert!(offset.get().is_multiple_of(size.bytes()));
        self.written.borrow_mut().push((offset.get(), size, value));
    }
}

/// A kind of device: config space and BARs.
pub(crate) struct Kind {
    pub(crate) dwords: &'static [(u16, u32)],
    pub(crate) bars: &'static [(u8, BarKind, bool, u64, u64)],
}

impl Kind {
    pub(crate) fn device(&self) -> Device {
        Device::new(self.dwords)
    }

    pub(crate) fn bars(&self) -> Vec<BarInfo> {
        let info = |&(index, kind, prefetchable, size, host): &_| BarInfo {
            index: BarIndex::new(index).unwrap_or(BarIndex::ROM),
            kind,
            prefetchable,
            size,
            host,
        };
        self.bars.iter().map(info).collect()
    }
}

/// QEMU's nvme: 64-bit BAR with the MSI-X table and pending bits in pages of their own; FLR.
#[rustfmt::skip]
pub(crate) const NVME: Kind = Kind {
    dwords: &[
        (0x00, 0x0010_1b36), (0x04, 0x0010_0006), (0x08, 0x0108_0202),
        (0x10, 0x1000_0004), (0x2c, 0x1100_1af4), (0x34, 0x0000_0040), (0x3c, 0x0000_0100),
        (0x40, 0x0040_8011), (0x44, 0x0000_2000), (0x48, 0x0000_3000),  // MSI-X, 65 vectors
        (0x60, 0xf803_0001), (0x64, 0x0000_0008),                       // PM
        (0x80, 0x0092_6010), (0x84, 0x1000_8001), (0x88, 0x0000_2810),  // PCIe, integrated endpoint
        (0xa4, 0x0000_0013),
    ],
    bars: &[(0, BarKind::Memory64, false, 0x4000, 0x1000_0000)],
};

/// e1000e: four 32-bit BARs, one of I/O, MSI, MSI-X in BAR3, a link, AER before the serial number.
#[rustfmt::skip]
pub(crate) const E1000E: Kind = Kind {
    dwords: &[
        (0x00, 0x10d3_8086), (0x04, 0x0010_0000), (0x08, 0x0200_0000),
        (0x2c, 0x0000_8086), (0x30, 0xfffc_0000), (0x34, 0x0000_00c8), (0x3c, 0x0000_0100),
        (0xa0, 0x0004_0011), (0xa4, 0x0000_0003), (0xa8, 0x0000_2003),  // MSI-X, 5 vectors
        (0xc8, 0xc823_d001), (0xcc, 0x0000_2000),                       // PM
        (0xd0, 0x0080_e005),                                            // MSI, 64-bit
        (0xe0, 0x0001_a010), (0xe4, 0x0000_8ec0), (0xec, 0x0003_1c11), (0xf0, 0x1011_0000), // PCIe
        (0x100, 0x1402_0001), (0x110, 0x1234_5678),                     // AER
        (0x140, 0x0001_0003), (0x144, 0x5634_1200), (0x148, 0x5254_00ff), // serial number
    ],
    bars: &[
        (0, BarKind::Memory32, false, 0x2_0000, 0x1004_0000),
        (1, BarKind::Memory32, false, 0x2_0000, 0x1006_0000),
        (2, BarKind::Io,       false, 0x20,     0x0),
        (3, BarKind::Memory32, false, 0x4000,   0x1008_0000),
        (6, BarKind::Rom,      false, 0x4_0000, 0x100c_0000),
    ],
};

/// A device made up to be hard: masked MSI, a large prefetchable BAR, one smaller than a page, a
/// table that shares its page with registers, vendor-specific and looping capabilities.
#[rustfmt::skip]
pub(crate) const ODD: Kind = Kind {
    dwords: &[
        (0x00, 0xbeef_1234), (0x04, 0xf018_0000), (0x08, 0xff00_0001), (0x0c, 0x0080_0000),
        (0x34, 0x0000_0040), (0x3c, 0x0000_0200),
        (0x40, 0x0010_5009), (0x44, 0xdead_beef),                       // vendor-specific
        (0x50, 0x0186_7005), (0x64, 0x0000_0005),                       // MSI, 8 vectors, masks, 64-bit
        (0x70, 0x0001_8011), (0x74, 0x0000_0805), (0x78, 0x0000_0845),  // MSI-X, 2 vectors
        (0x80, 0x0003_5001),                                            // PM, and back to 0x50
    ],
    bars: &[
        (0, BarKind::Memory64, true,  1 << 33, 0x80_0000_0000),
        (2, BarKind::Memory32, false, 0x100,   0x1009_0000),
        (5, BarKind::Memory32, false, 0x2000,  0x100a_0000),
        (6, BarKind::Rom,      false, 0x800,   0x100b_0000),
    ],
};

/// A function of the machine, assigned to the domain.
pub(crate) struct Assigned {
    pub(crate) sbdf: Sbdf,
    pub(crate) function: Function<Device>,
    pub(crate) bus_master: bool,
    pub(crate) intx: bool,
    pub(crate) msix: (bool, bool),
    pub(crate) vectors: BTreeMap<u16, u32>,
    pub(crate) msi: Option<vpci::Msi>,
    pub(crate) resets: u32,
}

/// A function that a device model emulates: a header with one 64-bit BAR of 64 KiB.
pub(crate) struct Model {
    pub(crate) sbdf: Sbdf,
    dwords: [u32; 16],
    /// Where the device model believes to decode its BAR.
    claimed: Option<BusRange>,
}

impl Model {
    const BAR: u64 = 0x1_0000;

    fn new(sbdf: Sbdf) -> Self {
        let mut dwords = [0; 16];
        // virtio-blk.
        (dwords[0], dwords[2], dwords[4]) = (0x1042_1af4, 0x0180_0001, 0x4);
        Self {
            sbdf,
            dwords,
            claimed: None,
        }
    }

    fn read(&self, access: ConfigAccess) -> u32 {
        let dword = self.dwords.get(access.offset().dword());
        access.extract(dword.copied().unwrap_or(0))
    }

    fn write(&mut self, access: ConfigAccess, value: u32) {
        let kept = match access.offset().dword() {
            1 => 0x0006,
            4 => 0xffff_0000,
            5 => 0xffff_ffff,
            _ => return,
        };
        let (dword, lanes) = (access.offset().dword(), access.enables() & kept);
        self.dwords[dword] = self.dwords[dword] & !lanes | access.place(value) & lanes;
    }

    fn wanted(&self) -> Option<BusRange> {
        let address = u64::from(self.dwords[5]) << 32 | u64::from(self.dwords[4] & !0xf);
        let range = BusRange::new(BusAddress::new(address), Self::BAR);
        range.filter(|_| self.dwords[1] & 2 != 0)
    }
}

/// A domain with a bridge.
pub(crate) struct Machine {
    pub(crate) bus: Bus<usize>,
    pub(crate) bridge: Emulated,
    pub(crate) stub: Emulated,
    pub(crate) functions: Vec<Assigned>,
    /// What device models emulate, by the number of their server.
    pub(crate) models: Vec<Model>,
    /// Stage 2: guest page to the machine's page.
    pub(crate) stage2: BTreeMap<u64, u64>,
    /// How often the bus below each port was reset.
    pub(crate) bus_resets: BTreeMap<u8, u32>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        for (start, size) in [LOW, HIGH] {
            let window = BusRange::new(BusAddress::new(start), size).unwrap();
            bus.memory.add_window(window).unwrap();
        }
        bus.insert(Sbdf::from_rid(0, 0), Owner::HostBridge).unwrap();
        Self {
            bus,
            bridge: Emulated::host_bridge(),
            stub: Emulated::stub(),
            functions: Vec::new(),
            models: Vec::new(),
            stage2: BTreeMap::new(),
            bus_resets: BTreeMap::new(),
        }
    }

    pub(crate) fn add_port(&mut self, slot: &str, bus: u8, ari: bool) {
        self.bus.add_port(slot.parse().unwrap(), bus, ari).unwrap();
    }

    /// Puts a device model's function on the root bus.
    pub(crate) fn emulate(&mut self, slot: &str) {
        let sbdf: Sbdf = slot.parse().unwrap();
        let server = u32::try_from(self.models.len()).unwrap();
        self.bus.insert(sbdf, Owner::Ioreq(server)).unwrap();
        self.models.push(Model::new(sbdf));
    }

    /// Puts a function where the configuration wants it. If that is below a port which is not there yet,
    /// the port comes along.
    pub(crate) fn assign(&mut self, slot: &str, kind: &Kind) -> usize {
        let assigned = self.try_assign(slot, kind.device(), &kind.bars());
        assigned.unwrap()
    }

    /// Assigns any device, which may be one that is refused.
    pub(crate) fn try_assign(
        &mut self,
        slot: &str,
        device: Device,
        bars: &[BarInfo],
    ) -> Result<usize, BuildError> {
        let sbdf: Sbdf = slot.parse().unwrap();
        let is_there = |bus| bus == 0 || self.bus.buses_below_ports().any(|other| other == bus);
        if !is_there(sbdf.bus()) {
            self.add_port("00:1c.0", sbdf.bus(), false);
        }
        let setup = Setup {
            bars,
            doorbell: BusAddress::new(DOORBELL),
            position: if sbdf.bus() == 0 {
                Position::RootBus
            } else {
                Position::BelowPort
            },
            pin: Pin::Hidden,
            vendor: Vendor::Hidden,
            kind: vpci::Kind::Ordinary,
        };
        let mut function = Function::new(device, &setup)?;
        let id = self.functions.len();
        self.bus.insert(sbdf, Owner::Vpci(id)).unwrap();
        let _ = function.set_upstream(self.bus.upstream(sbdf));
        self.functions.push(Assigned {
            sbdf,
            function,
            bus_master: false,
            intx: true,
            msix: (false, false),
            vectors: BTreeMap::new(),
            msi: None,
            resets: 0,
        });
        for assigned in &mut self.functions {
            let multi = self.bus.is_multi_function(assigned.sbdf);
            assigned.function.set_multi_function(multi);
        }
        Ok(id)
    }

    /// A config read, as the guest makes it: by offset in the ECAM window.
    pub(crate) fn read(&self, offset: u64, bytes: u64) -> Option<u64> {
        if bytes == 8 {
            let (low, high) = vpci::ecam::decode_eight(0, offset)?;
            let (low, high) = (self.config_read(low), self.config_read(high));
            return Some(u64::from(high) << 32 | u64::from(low));
        }
        let access = vpci::ecam::decode(0, offset, bytes)?;
        Some(self.config_read(access).into())
    }

    /// A config write.
    pub(crate) fn write(&mut self, offset: u64, bytes: u64, value: u64) {
        if bytes == 8 {
            self.write(offset, 4, value & 0xffff_ffff);
            self.write(offset + 4, 4, value >> 32);
        } else if let Some(access) = vpci::ecam::decode(0, offset, bytes) {
            self.config_write(access, u32::try_from(value & 0xffff_ffff).unwrap());
        }
    }

    pub(crate) fn config_read(&self, access: ConfigAccess) -> u32 {
        let value = match self.bus.route(access.sbdf()) {
            None => access.size().mask(),
            Some(Owner::Ioreq(server)) => {
                let model = self.models.get(server as usize);
                let answer = model.map_or(access.size().mask(), |model| model.read(access));
                self.bus.with_multi_function(access, answer)
            }
            Some(Owner::HostBridge) => self.bridge.read(access),
            Some(Owner::Stub) => self.stub.read(access),
            Some(Owner::Port(bus)) => self.bus.read_port(bus, access),
            Some(Owner::Vpci(id)) => self.functions[id].function.read(access),
        };
        assert_eq!(value & !access.size().mask(), 0, "{access:?}");
        value
    }

    pub(crate) fn config_write(&mut self, access: ConfigAccess, value: u32) {
        match self.bus.route(access.sbdf()) {
            None | Some(Owner::Stub) => {}
            Some(Owner::Ioreq(server)) => self.write_model(server, access, value),
            Some(Owner::HostBridge) => self.bridge.write(access, value),
            Some(Owner::Port(bus)) => {
                let change = self.bus.write_port(bus, access, value);
                if change == PortChange::Reset {
                    *self.bus_resets.entry(bus).or_default() += 1;
                }
                if change != PortChange::None {
                    self.change_port(bus, change == PortChange::Reset);
                }
            }
            Some(Owner::Vpci(id)) => {
                let function = &mut self.functions[id].function;
                let (version, steadiness) = (function.version(), function.steadiness());
                let change = function.write(access, value);
                let now = (function.version(), function.steadiness());
                match change {
                    Change::None => assert_eq!(now, (version, steadiness), "{access:?}"),
                    Change::Value(value) => {
                        let dword = function.steady_dword(access.offset().dword());
                        assert_eq!(dword, value, "{access:?}");
                        assert_eq!(now, (version.wrapping_add(1), steadiness), "{access:?}");
                    }
                    Change::Effects => self.carry_out(id),
                }
            }
        }
    }

    /// What a device model does with a write, and what it asks the kernel for then.
    fn write_model(&mut self, server: u32, access: ConfigAccess, value: u32) {
        let Some(model) = self.models.get_mut(server as usize) else {
            return;
        };
        model.write(access, value);
        let (sbdf, wanted) = (model.sbdf, model.wanted());
        if model.claimed == wanted {
            return;
        }
        let decoder = Decoder::Ioreq {
            server,
            sbdf,
            posted: false,
        };
        if let Some(range) = model.claimed.take() {
            assert!(self.bus.unclaim(range.start(), |other| other == decoder));
        }
        if let Some(range) = wanted
            && self.bus.claim(range, sbdf, decoder).is_ok()
        {
            self.models[server as usize].claimed = wanted;
        }
        self.grant_waiting();
    }

    /// A load from a bus address. `Err` has the host address that the device is to be asked at.
    pub(crate) fn load(&self, address: u64, bytes: u64) -> Result<u64, u64> {
        if let Some(host) = self.stage2.get(&(address & !(PAGE - 1))) {
            return Err(host + address % PAGE);
        }
        let Some((range, decoder)) = self.bus.memory.find(BusAddress::new(address)) else {
            return Ok(u64::MAX);
        };
        let Decoder::Bar { function, bar } = decoder else {
            return Ok(u64::MAX);
        };
        let offset = range.offset_of(BusAddress::new(address)).unwrap();
        match self.functions[function]
            .function
            .read_bar(bar, offset, bytes)
        {
            BarRead::Value(value) => Ok(value),
            BarRead::Device { host } => Err(host),
        }
    }

    /// A store to a bus address. `Err` has the host address that the store goes to.
    pub(crate) fn store(&mut self, address: u64, bytes: u64, value: u64) -> Result<(), u64> {
        if let Some(host) = self.stage2.get(&(address & !(PAGE - 1))) {
            return Err(host + address % PAGE);
        }
        let Some((range, decoder)) = self.bus.memory.find(BusAddress::new(address)) else {
            return Ok(());
        };
        let Decoder::Bar { function, bar } = decoder else {
            return Ok(());
        };
        let offset = range.offset_of(BusAddress::new(address)).unwrap();
        let model = &mut self.functions[function].function;
        match model.write_bar(bar, offset, bytes, value) {
            BarWrite::Device { host } => return Err(host),
            BarWrite::Done(Change::None | Change::Value(_)) => {}
            BarWrite::Done(Change::Effects) => self.carry_out(function),
        }
        Ok(())
    }

    /// Another thing gets through a port than before.
    fn change_port(&mut self, bus: u8, reset: bool) {
        for id in 0..self.functions.len() {
            let assigned = &mut self.functions[id];
            if assigned.sbdf.bus() == bus {
                let upstream = self.bus.upstream(assigned.sbdf);
                let _ = assigned.function.set_upstream(upstream);
                if reset {
                    let _ = assigned.function.reset();
                }
                self.carry_out(id);
            }
        }
        self.bus.update_claims(bus);
        self.grant_waiting();
    }

    /// The domain resets.
    pub(crate) fn reset(&mut self) {
        self.bridge.reset();
        self.reset_models(|_| true);
        self.bus.reset_ports();
        let buses: Vec<u8> = self.bus.buses_below_ports().collect();
        for bus in buses {
            self.change_port(bus, true);
        }
        for id in 0..self.functions.len() {
            assert_eq!(self.functions[id].function.reset(), Change::Effects);
            self.carry_out(id);
        }
    }

    /// The device models' functions at such places are reset.
    pub(crate) fn reset_models(&mut self, which: impl Fn(Sbdf) -> bool) {
        for model in &mut self.models {
            let sbdf = model.sbdf;
            if !which(sbdf) {
                continue;
            }
            let its = |decoder| matches!(decoder, Decoder::Ioreq { sbdf: of, .. } if of == sbdf);
            if let Some(range) = model.claimed {
                assert!(self.bus.unclaim(range.start(), its));
            }
            *model = Model::new(sbdf);
        }
    }

    /// What the kernel does after a write.
    pub(crate) fn carry_out(&mut self, id: usize) {
        while let Some(effect) = self.functions[id].function.next_effect() {
            let assigned = &mut self.functions[id];
            match effect {
                Effect::MapBar { bar, range } => {
                    let decoder = Decoder::Bar { function: id, bar };
                    match self.bus.memory.claim_or_wait(range, decoder).unwrap() {
                        Claimed::Granted => self.map(id, bar, range),
                        Claimed::Waiting | Claimed::Outside => {}
                    }
                }
                Effect::UnmapBar { bar, range } => {
                    let decoder = Decoder::Bar { function: id, bar };
                    if self.bus.memory.release(range, decoder) == Released::Granted {
                        self.unmap(id, bar, range);
                        self.grant_waiting();
                    }
                }
                Effect::BusMaster { enabled } => assigned.bus_master = enabled,
                Effect::Intx { enabled } => assigned.intx = enabled,
                Effect::Msi(msi) => assigned.msi = Some(msi),
                Effect::Msix { enabled, masked } => assigned.msix = (enabled, masked),
                Effect::MsixVector { vector, message } => match message {
                    Message::Live { data } => drop(assigned.vectors.insert(vector, data)),
                    Message::Off | Message::Misdirected { .. } => {
                        assigned.vectors.remove(&vector);
                    }
                },
                Effect::Reset => {
                    assert!(!assigned.bus_master && assigned.vectors.is_empty());
                    assigned.resets += 1;
                }
            }
        }
    }

    pub(crate) fn grant_waiting(&mut self) {
        let mut ready = Vec::new();
        let granted = &mut |range, decoder| ready.push((range, decoder));
        self.bus.memory.grant_ready(granted);
        for (range, decoder) in ready {
            if let Decoder::Bar { function, bar } = decoder {
                self.map(function, bar, range);
            }
        }
    }

    /// Maps what may be mapped of a BAR. To keep the test fast, only the first and the last page of a
    /// run of pages are entered.
    fn map(&mut self, id: usize, bar: BarIndex, range: BusRange) {
        for (guest, host) in self.edges(id, bar, range) {
            let before = self.stage2.insert(guest, host);
            assert_eq!(before, None, "{guest:#x} is mapped twice");
        }
    }

    fn unmap(&mut self, id: usize, bar: BarIndex, range: BusRange) {
        for (guest, host) in self.edges(id, bar, range) {
            assert_eq!(
                self.stage2.remove(&guest),
                Some(host),
                "{guest:#x} was not mapped"
            );
        }
    }

    pub(crate) fn edges(&self, id: usize, bar: BarIndex, range: BusRange) -> BTreeMap<u64, u64> {
        let base = range.start().get();
        let pages = self.functions[id].function.pages(bar);
        pages
            .flat_map(|pages| [0, pages.size - PAGE].map(|at| (pages, at)))
            .map(|(pages, at)| (base + pages.offset + at, pages.host + at))
            .collect()
    }
}
