//! Enumeration: bus numbers, functions, sizes of BARs.
//!
//! Buses are numbered depth first: a bridge's secondary bus gets the next number, and the bridge is
//! closed behind the last bus found below. On each bus, every function is disabled before the first
//! bridge is opened, so that nothing that firmware left running can send requests upstream.

use alloc::vec::Vec;
use core::ops::Range;

use vpci::{BarIndex, BarKind, Offset, Sbdf};

use crate::capability::{Acs, Capabilities, Express, NEXT_FUNCTION};
use crate::config::{ConfigSpace, Function, bridge, header};
use crate::device::{BARS, Bar, Bridge, Device, Header, Hierarchy, Problem};
use crate::place::{HostBridge, place};
use crate::reset::{self, Method};
use crate::sriov::{self, Sriov, Virtual, VirtualProblem, Wanted};
use crate::{OutOfMemory, push};

/// MSI Enable and MSI-X Enable in their Message Control (sections 7.7.1.2, 7.7.2.2).
const MSI_ENABLE: u16 = 1 << 0;
const MSIX_ENABLE: u16 = 1 << 15;

/// Finds everything below a host bridge, gives it bus numbers and places for its BARs, programs them, and
/// enables the virtual functions that are wanted; `wait` waits for some milliseconds.
///
/// Afterwards memory decode and bus mastering are on in bridges, and off in everything else, and no
/// interrupt pin is asserted. Access control services that isolate are on where there are any. Physical
/// functions of virtual ones are reset before, if they can be. What is wanted and cannot be had is one of
/// the hierarchy's problems.
pub fn enumerate<C: ConfigSpace + ?Sized>(
    config: &C,
    host: &HostBridge,
    wanted: &[Wanted],
    wait: &mut dyn FnMut(u32),
) -> Result<Hierarchy, OutOfMemory> {
    let mut scan = Scan {
        config,
        host,
        wanted,
        wait,
        found: Hierarchy::default(),
        last_bus: host.first_bus,
    };
    scan.run()?;
    let Scan {
        mut found, wait, ..
    } = scan;
    for wanted in wanted {
        let is_physical =
            |device: &Device| device.capabilities.sriov.is_some() && device.bridge().is_none();
        if !found.find(wanted.physical).is_some_and(is_physical) {
            let problem = Problem::Virtual(wanted.physical, VirtualProblem::NotPhysical);
            push(&mut found.problems, problem)?;
        }
    }
    place(&mut found, host)?;
    for index in 0..found.devices.len() {
        found.start(config, index, wait)?;
    }
    Ok(found)
}

/// How often a virtual function is looked for, and after which time it is broken (section 9.3.3.3.1), in
/// milliseconds.
const POLL: u32 = 10;
const READY: u32 = 1000;

struct Scan<'a, C: ?Sized> {
    config: &'a C,
    host: &'a HostBridge,
    wanted: &'a [Wanted],
    wait: &'a mut dyn FnMut(u32),
    found: Hierarchy,
    last_bus: u8,
}

/// A bus whose bridges are being walked.
struct Level {
    left: Range<usize>,
    parent: Option<usize>,
}

impl<C: ConfigSpace + ?Sized> Scan<'_, C> {
    fn run(&mut self) -> Result<(), OutOfMemory> {
        let mut levels = Vec::new();
        let left = self.scan_bus(self.host.first_bus, None)?;
        push(&mut levels, Level { left, parent: None })?;
        while let Some(level) = levels.last_mut() {
            if let Some(index) = level.left.next() {
                if let Some(bus) = self.open(index)? {
                    let left = self.scan_bus(bus, Some(index))?;
                    if let Some(bridge) = self.bridge_mut(index) {
                        bridge.children = left.clone();
                    }
                    push(
                        &mut levels,
                        Level {
                            left,
                            parent: Some(index),
                        },
                    )?;
                }
            } else {
                if let Some(parent) = level.parent {
                    self.close(parent);
                }
                levels.pop();
            }
        }
        Ok(())
    }

    fn bridge_mut(&mut self, index: usize) -> Option<&mut Bridge> {
        self.found.devices.get_mut(index)?.bridge_mut()
    }

    /// Gives the bus below a bridge the next number, and lets config accesses through to all that
    /// are left.
    fn open(&mut self, index: usize) -> Result<Option<u8>, OutOfMemory> {
        let Some(device) = self.found.devices.get_mut(index) else {
            return Ok(None);
        };
        let sbdf = device.sbdf;
        let Some(bridge) = device.bridge_mut() else {
            return Ok(None);
        };
        if self.last_bus >= self.host.last_bus {
            push(&mut self.found.problems, Problem::NoBus(sbdf))?;
            return Ok(None);
        }
        self.last_bus += 1;
        bridge.secondary = self.last_bus;
        bridge.subordinate = self.host.last_bus;
        write_buses(Function::new(self.config, sbdf), sbdf, bridge);
        Ok(Some(self.last_bus))
    }

    /// Ends a bridge's buses with the last one found.
    fn close(&mut self, index: usize) {
        let (last_bus, end) = (self.last_bus, self.found.devices.len());
        let Some(device) = self.found.devices.get_mut(index) else {
            return;
        };
        let sbdf = device.sbdf;
        if let Some(bridge) = device.bridge_mut() {
            bridge.subordinate = last_bus;
            bridge.below = bridge.children.start..end;
            write_buses(Function::new(self.config, sbdf), sbdf, bridge);
        }
    }

    /// Notes and disables all functions of a bus, and returns their positions.
    fn scan_bus(&mut self, bus: u8, parent: Option<usize>) -> Result<Range<usize>, OutOfMemory> {
        let first = self.found.devices.len();
        for device in 0..self.devices_below(parent) {
            for function in 0..Sbdf::FUNCTIONS {
                let Some(sbdf) = Sbdf::new(self.host.segment, bus, device, function) else {
                    continue;
                };
                let here = Function::new(self.config, sbdf);
                let vendor = here.read16(header::VENDOR_ID);
                if vendor != header::VENDOR_NONE && vendor != 0 {
                    self.note(sbdf, vendor, parent)?;
                }
                let several = here.read8(header::HEADER_TYPE) & header::MULTI_FUNCTION != 0;
                if function == 0 && (vendor == header::VENDOR_NONE || vendor == 0 || !several) {
                    break;
                }
            }
        }
        self.follow_chain(first, parent)?;
        for index in first..self.found.devices.len() {
            self.add_virtual(first, index)?;
        }
        let on_bus = self.found.devices.get_mut(first..).unwrap_or_default();
        on_bus.sort_unstable_by_key(|device| device.sbdf);
        Ok(first..self.found.devices.len())
    }

    /// Returns the port above, if the bus below it is a link.
    fn port(&mut self, parent: Option<usize>) -> Option<&mut Device> {
        let port = self.found.devices.get_mut(parent?)?;
        port.port()?.is_above_link().then_some(port)
    }

    /// Lets the port above forward to all functions of an ARI device, if it can; returns whether it does.
    fn forward_all(&mut self, parent: Option<usize>) -> bool {
        let config = self.config;
        self.port(parent).is_some_and(|port| {
            let function = Function::new(config, port.sbdf);
            let express = port.express.as_mut();
            express.is_some_and(|express| express.forward_all(function))
        })
    }

    /// Notes the functions of an ARI device that have numbers above 7 (sections 6.13, 7.8.8.2): each
    /// says which one comes next, and function 0 is the first. The functions of the bus start at `first`.
    fn follow_chain(&mut self, first: usize, parent: Option<usize>) -> Result<(), OutOfMemory> {
        let is_ari = |device: &&Device| device.capabilities.ari.is_some();
        let Some(device) = self.found.devices.get(first).filter(is_ari) else {
            return Ok(());
        };
        let mut at = device.sbdf;
        if at.device_function() != 0 || !self.forward_all(parent) {
            return Ok(());
        }
        loop {
            let mut on_bus = self.found.devices.iter().skip(first);
            let device = on_bus.find(|device| device.sbdf == at);
            let Some(ari) = device.and_then(|device| device.capabilities.ari) else {
                return Ok(());
            };
            let next = Function::new(self.config, at).read8(ari.get() + NEXT_FUNCTION);
            if next == 0 {
                return Ok(());
            }
            let next = Sbdf::from_rid(at.segment(), at.rid() & 0xff00 | u16::from(next));
            let vendor = Function::new(self.config, next).read16(header::VENDOR_ID);
            // A chain that only leads upwards ends.
            if next <= at || vendor == header::VENDOR_NONE || vendor == 0 {
                return push(&mut self.found.problems, Problem::Chain(at));
            }
            let mut on_bus = self.found.devices.iter().skip(first);
            if !on_bus.any(|device| device.sbdf == next) {
                self.note(next, vendor, parent)?;
            }
            at = next;
        }
    }

    /// Adds the virtual functions that are wanted of a function behind those of its bus, which start at
    /// `first`.
    fn add_virtual(&mut self, first: usize, index: usize) -> Result<(), OutOfMemory> {
        let Some(device) = self.found.devices.get(index) else {
            return Ok(());
        };
        let (sbdf, offset) = (device.sbdf, device.capabilities.sriov);
        let wanted = self.wanted.iter().find(|wanted| wanted.physical == sbdf);
        let (Some(offset), Some(&wanted), Header::Endpoint) = (offset, wanted, &device.header)
        else {
            return Ok(());
        };
        match self.set_up_virtual(first, index, offset, wanted)? {
            Ok(()) => Ok(()),
            Err(problem) => push(&mut self.found.problems, Problem::Virtual(sbdf, problem)),
        }
    }

    fn set_up_virtual(
        &mut self,
        first: usize,
        index: usize,
        offset: Offset,
        wanted: Wanted,
    ) -> Result<Result<(), VirtualProblem>, OutOfMemory> {
        let physical = wanted.physical;
        let function = Function::new(self.config, physical);
        let Some(device) = self.found.devices.get(index) else {
            return Ok(Ok(()));
        };
        let (vendor, class, parent) = (device.vendor, device.class, device.parent);
        let has_ari = device.capabilities.ari.is_some();
        let on_link = self.port(parent).is_some();
        let ari = has_ari && self.forward_all(parent);
        let mut set = match Sriov::set_up(function, offset, wanted, ari) {
            Ok(set) => set,
            Err(problem) => return Ok(Err(problem)),
        };
        let mut last_bus = self.last_bus;
        for number in 0..set.count {
            let Some(sbdf) = set.place(physical, number) else {
                return Ok(Err(VirtualProblem::Place));
            };
            let mut others = self.found.devices.iter().skip(first);
            if others.any(|other| other.sbdf == sbdf) {
                return Ok(Err(VirtualProblem::Place));
            }
            if sbdf.bus() > self.host.last_bus {
                return Ok(Err(VirtualProblem::NoBus));
            }
            let same_bus = sbdf.bus() == physical.bus();
            if on_link && !ari && same_bus && sbdf.device() != physical.device() {
                return Ok(Err(VirtualProblem::NoForwarding));
            }
            last_bus = last_bus.max(sbdf.bus());
        }
        set.bars = self.size_bars(physical, offset.get() + sriov::BAR0, 6)?;
        if let Some(bar) = set.bars.iter().flatten().find(|bar| !sriov::is_sound(bar)) {
            return Ok(Err(VirtualProblem::Bar(bar.index)));
        }
        self.last_bus = last_bus;
        for number in 0..set.count {
            let Some(sbdf) = set.place(physical, number) else {
                break;
            };
            let virtual_function = Virtual { physical, number };
            let device = Device {
                sbdf,
                vendor,
                device: set.device,
                class,
                revision: 0,
                header: Header::Endpoint,
                bars: [None; BARS],
                capabilities: Capabilities::default(),
                express: None,
                acs: Acs::default(),
                sriov: None,
                virtual_function: Some(virtual_function),
                parent,
                usable: true,
            };
            push(&mut self.found.devices, device)?;
        }
        if let Some(device) = self.found.devices.get_mut(index) {
            device.sriov = Some(set);
        }
        Ok(Ok(()))
    }

    /// Returns how many devices the bus below a bridge can have. A link leads to one device; what
    /// answers to other device numbers there is the same one again.
    fn devices_below(&mut self, parent: Option<usize>) -> u8 {
        match self.port(parent) {
            Some(_) => 1,
            None => Sbdf::DEVICES,
        }
    }

    fn note(&mut self, sbdf: Sbdf, vendor: u16, parent: Option<usize>) -> Result<(), OutOfMemory> {
        let function = Function::new(self.config, sbdf);
        let [revision, class @ ..] = function.read32(header::REVISION_AND_CLASS).to_le_bytes();
        let [interface, subclass, base] = class;
        let class = u32::from_le_bytes([interface, subclass, base, 0]);
        let is_host_bridge = class >> 8 == header::CLASS_HOST_BRIDGE && parent.is_none();
        let keep = if is_host_bridge {
            !header::COMMAND_MASTER
        } else {
            0
        };
        let disable = || {
            let command = function.read16(header::COMMAND) & keep;
            function.write16(header::COMMAND, command | header::COMMAND_SILENT);
        };
        disable();
        let capabilities = Capabilities::find(function);
        if let Some(offset) = capabilities.power
            && reset::wake(function, offset)
        {
            (self.wait)(reset::POWER_CHANGE);
            disable();
        }

        let (kind, bars) = match function.read8(header::HEADER_TYPE) & !header::MULTI_FUNCTION {
            0 if is_host_bridge => (Header::Endpoint, 0),
            0 => (Header::Endpoint, 6),
            1 => {
                let (bridge, was_reset) = close_bridge(function);
                if was_reset {
                    (self.wait)(reset::AFTER_CONVENTIONAL_RESET);
                }
                (Header::Bridge(bridge), 2)
            }
            other => {
                push(&mut self.found.problems, Problem::BadHeader(sbdf))?;
                (Header::Other(other), 0)
            }
        };
        if let Some(offset) = capabilities.sriov
            && kind == Header::Endpoint
            && sriov::disable(function, offset)
        {
            (self.wait)(sriov::AFTER_DISABLE);
        }
        let usable = !matches!(kind, Header::Other(_));
        let device = Device {
            sbdf,
            vendor,
            device: function.read16(header::DEVICE_ID),
            class,
            revision,
            header: kind,
            bars: self.size_bars(sbdf, header::BAR0, bars)?,
            capabilities,
            express: capabilities
                .express
                .map(|offset| Express::read(function, offset)),
            acs: Acs::enable(function, capabilities.acs),
            sriov: None,
            virtual_function: None,
            parent,
            usable,
        };
        push(&mut self.found.devices, device)
    }

    /// Finds the sizes of a function's BARs, of which the first is at `base` and which it leaves at zero,
    /// and of an endpoint's expansion ROM. Decode is off.
    fn size_bars(
        &mut self,
        sbdf: Sbdf,
        base: u16,
        count: usize,
    ) -> Result<[Option<Bar>; BARS], OutOfMemory> {
        let mut bars = [None; BARS];
        let mut indices = BarIndex::all().take(count);
        while let Some(index) = indices.next() {
            match size_bar(Function::new(self.config, sbdf), base, index, count) {
                Ok(None) => {}
                Ok(Some(bar)) => {
                    if bar.kind == BarKind::Memory64 {
                        indices.next();
                    }
                    if let Some(slot) = bars.get_mut(index.index()) {
                        *slot = Some(bar);
                    }
                }
                Err(BadBar) => {
                    push(
                        &mut self.found.problems,
                        Problem::BadBar { sbdf, bar: index },
                    )?;
                }
            }
        }
        if let (header::BAR0, 6, [.., rom]) = (base, count, &mut bars) {
            *rom = size_rom(Function::new(self.config, sbdf));
        }
        Ok(bars)
    }
}

/// The specification does not know such a BAR.
struct BadBar;

/// Finds the size of an expansion ROM, which is left disabled. One that asks for more than the
/// specification allows (section 7.5.1.2.4) is none.
fn size_rom<C: ConfigSpace + ?Sized>(function: Function<'_, C>) -> Option<Bar> {
    const LARGEST: u64 = 1 << 24;
    function.write32(header::ROM_TYPE_0, header::ROM_ADDRESS);
    let sticks = u64::from(function.read32(header::ROM_TYPE_0) & header::ROM_ADDRESS);
    function.write32(header::ROM_TYPE_0, 0);
    let size = sticks & sticks.wrapping_neg();
    (1..=LARGEST).contains(&size).then_some(Bar {
        index: BarIndex::ROM,
        kind: BarKind::Rom,
        prefetchable: false,
        size,
        placement: None,
    })
}

/// Finds the size of a BAR by what sticks of all ones (section 7.5.1.2.1).
fn size_bar<C: ConfigSpace + ?Sized>(
    function: Function<'_, C>,
    base: u16,
    index: BarIndex,
    count: usize,
) -> Result<Option<Bar>, BadBar> {
    let probe = |offset| {
        function.write32(offset, u32::MAX);
        let sticks = function.read32(offset);
        function.write32(offset, 0);
        (sticks, function.read32(offset))
    };
    let offset = base + 4 * u16::from(index.get());
    // What stays when zeros are written is the kind: functions with BARs of less than 16 bytes are
    // known whose kind bits follow what is written.
    let (low, flags) = probe(offset);
    let (kind, flag_bits, high) = match (flags & 1, flags >> 1 & 3) {
        (1, _) => (BarKind::Io, 0b11, 0),
        (_, 0b00 | 0b01) => (BarKind::Memory32, 0b1111, 0),
        (_, 0b10) if index.index() + 1 < count => (BarKind::Memory64, 0b1111, probe(offset + 4).0),
        _ => return Err(BadBar),
    };
    let sticks = u64::from(high) << 32 | u64::from(low & !flag_bits);
    if sticks == 0 {
        return Ok(None);
    }
    Ok(Some(Bar {
        index,
        kind,
        prefetchable: kind != BarKind::Io && flags & 0b1000 != 0,
        // The lowest bit that sticks.
        size: sticks & sticks.wrapping_neg(),
        placement: None,
    }))
}

/// Closes a bridge: no bus behind it, no window, its secondary bus out of reset. Returns whether that was in
/// reset, so that it takes its time.
fn close_bridge<C: ConfigSpace + ?Sized>(function: Function<'_, C>) -> (Bridge, bool) {
    let control = function.read16(bridge::CONTROL);
    function.write16(bridge::CONTROL, control & !bridge::CONTROL_RESET);
    function.write16(bridge::PREFETCHABLE_BASE, 0xfff0);
    let base = function.read16(bridge::PREFETCHABLE_BASE);
    let wide = base & 0xfff0 != 0 && base & 0xf == bridge::PREFETCHABLE_64;
    let bridge = Bridge {
        wide,
        ..Bridge::default()
    };
    bridge.write(function, 0);
    (bridge, control & bridge::CONTROL_RESET != 0)
}

impl Bridge {
    /// Programs a bridge whose primary bus is `primary`, and which does not forward just now.
    fn write<C: ConfigSpace + ?Sized>(&self, function: Function<'_, C>, primary: u8) {
        function.write8(bridge::PRIMARY_BUS, primary);
        function.write8(bridge::SECONDARY_BUS, self.secondary);
        function.write8(bridge::SUBORDINATE_BUS, self.subordinate);
        // I/O is never forwarded: the base lies above the limit.
        function.write8(bridge::IO_BASE, 0xf0);
        function.write8(bridge::IO_LIMIT, 0x00);
        let [base, limit] = window_registers(self.memory);
        function.write16(bridge::MEMORY_BASE, base.0);
        function.write16(bridge::MEMORY_LIMIT, limit.0);
        let [base, limit] = window_registers(self.prefetchable);
        function.write32(bridge::PREFETCHABLE_BASE_UPPER, base.1);
        function.write16(bridge::PREFETCHABLE_BASE, base.0);
        function.write16(bridge::PREFETCHABLE_LIMIT, limit.0);
        function.write32(bridge::PREFETCHABLE_LIMIT_UPPER, limit.1);
    }

    /// Returns whether a bridge still has its bus numbers and windows.
    fn holds<C: ConfigSpace + ?Sized>(&self, function: Function<'_, C>) -> bool {
        let buses = function.read8(bridge::SECONDARY_BUS) == self.secondary
            && function.read8(bridge::SUBORDINATE_BUS) == self.subordinate;
        // The lower four bits say what kind of window it is.
        let low = |offset| function.read16(offset) & 0xfff0;
        let memory = self.memory.is_none() || {
            let [base, limit] = window_registers(self.memory);
            low(bridge::MEMORY_BASE) == base.0 && low(bridge::MEMORY_LIMIT) == limit.0
        };
        let prefetchable = self.prefetchable.is_none() || {
            let [base, limit] = window_registers(self.prefetchable);
            let upper = [
                bridge::PREFETCHABLE_BASE_UPPER,
                bridge::PREFETCHABLE_LIMIT_UPPER,
            ];
            low(bridge::PREFETCHABLE_BASE) == base.0
                && low(bridge::PREFETCHABLE_LIMIT) == limit.0
                && (!self.wide || upper.map(|offset| function.read32(offset)) == [base.1, limit.1])
        };
        buses && memory && prefetchable
    }
}

/// Returns base and limit of a bridge's window, each as its lower and upper register. Without a
/// window, the base lies above the limit.
fn window_registers(window: Option<vpci::BusRange>) -> [(u16, u32); 2] {
    let Some(window) = window else {
        return [(0xfff0, 0), (0, 0)];
    };
    [window.start(), window.last()].map(|address| {
        let [_, _, low, high, upper @ ..] = address.get().to_le_bytes();
        (
            u16::from_le_bytes([low, high]) & 0xfff0,
            u32::from_le_bytes(upper),
        )
    })
}

/// Programs a bridge's bus numbers.
fn write_buses<C: ConfigSpace + ?Sized>(function: Function<'_, C>, sbdf: Sbdf, bridge: &Bridge) {
    function.write8(bridge::PRIMARY_BUS, sbdf.bus());
    function.write8(bridge::SECONDARY_BUS, bridge.secondary);
    function.write8(bridge::SUBORDINATE_BUS, bridge.subordinate);
}

impl Hierarchy {
    /// Programs a function that was placed for the first time, its virtual functions too, and finds out
    /// what a virtual function is, which answers only now.
    fn start<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        index: usize,
        wait: &mut dyn FnMut(u32),
    ) -> Result<(), OutOfMemory> {
        let Some(device) = self.devices.get(index) else {
            return Ok(());
        };
        let sbdf = device.sbdf;
        if device.virtual_function.is_some() {
            return self.identify(config, index, wait);
        }
        let reset = match (device.sriov, device.express) {
            (Some(_), Some(express)) if express.function_level_reset => {
                Some(self.reset(index, Method::FunctionLevel(express.offset)))
            }
            _ => None,
        };
        let Some(reset) = reset else {
            if self.restore(config, index) {
                wait(sriov::AFTER_ENABLE);
            }
            return Ok(());
        };
        if reset.run(config, self, &mut *wait).is_ok() {
            return Ok(());
        }
        if let Some(device) = self.devices.get_mut(index) {
            device.usable = false;
        }
        let problem = Problem::Virtual(sbdf, VirtualProblem::Absent(sbdf));
        push(&mut self.problems, problem)
    }

    /// Reads what a virtual function is, as soon as it answers.
    fn identify<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        index: usize,
        wait: &mut dyn FnMut(u32),
    ) -> Result<(), OutOfMemory> {
        let Some(device) = self.devices.get_mut(index) else {
            return Ok(());
        };
        let function = Function::new(config, device.sbdf);
        // Its physical function's were enabled all at once: none waits for long after one that is late.
        let physical = device.virtual_function.map(|own| own.physical);
        let is_late = |problem: &Problem| matches!(problem, Problem::Virtual(of, VirtualProblem::Absent(_)) if Some(*of) == physical);
        let mut waited = if self.problems.iter().any(is_late) {
            READY
        } else {
            0
        };
        while device.usable && !device.answers(function) {
            if waited >= READY {
                device.usable = false;
                let problem = VirtualProblem::Absent(device.sbdf);
                let problem = Problem::Virtual(physical.unwrap_or(device.sbdf), problem);
                return push(&mut self.problems, problem);
            }
            wait(POLL);
            waited += POLL;
        }
        if !device.usable {
            return Ok(());
        }
        let [revision, class @ ..] = function.read32(header::REVISION_AND_CLASS).to_le_bytes();
        let [interface, subclass, base] = class;
        device.class = u32::from_le_bytes([interface, subclass, base, 0]);
        device.revision = revision;
        device.capabilities = Capabilities::find(function);
        let express = device.capabilities.express;
        device.express = express.map(|offset| Express::read(function, offset));
        device.acs = Acs::enable(function, device.capabilities.acs);
        Ok(())
    }

    /// Programs a function as it was found and placed: after enumeration, and again after a reset.
    /// Returns whether that enabled virtual functions, which then need [`sriov::AFTER_ENABLE`].
    ///
    /// An endpoint stays disabled; a bridge forwards again, and does not assert its own interrupt pin.
    pub(crate) fn restore<C: ConfigSpace + ?Sized>(&self, config: &C, index: usize) -> bool {
        let Some(device) = self.devices.get(index) else {
            return false;
        };
        let function = Function::new(config, device.sbdf);
        let rom = match &device.header {
            Header::Endpoint => header::ROM_TYPE_0,
            Header::Bridge(_) => bridge::ROM_TYPE_1,
            Header::Other(_) => return false,
        };
        // A virtual function has its BARs in its physical one, and no ROM.
        if device.virtual_function.is_none() {
            function.write32(rom, 0);
            for bar in device.bars.iter().flatten() {
                bar.write(function, bar.register());
            }
        }
        if let Some(express) = device.express {
            express.restore(function);
        }
        if let Some(offset) = device.capabilities.acs {
            function.write16(offset.get() + 6, device.acs.enabled);
        }
        if let Header::Bridge(bridge) = &device.header {
            bridge.write(function, device.sbdf.bus());
            if device.usable {
                let on = header::COMMAND_MEMORY | header::COMMAND_MASTER;
                function.write16(header::COMMAND, on | header::COMMAND_SILENT);
            }
        }
        device.sriov.is_some_and(|sriov| sriov.enable(function))
    }

    /// Returns whether a function holds what `restore` wrote, its MSIs are off, and its virtual functions
    /// are enabled.
    pub(crate) fn is_restored<C: ConfigSpace + ?Sized>(&self, config: &C, index: usize) -> bool {
        let Some(device) = self.devices.get(index) else {
            return false;
        };
        let function = Function::new(config, device.sbdf);
        let mut bars = device.bars.iter().flatten();
        let bars = device.virtual_function.is_some()
            || bars.all(|bar| bar.is_written(function, bar.register()));
        let off = |offset: Option<vpci::Offset>, enable: u16| {
            offset.is_none_or(|offset| function.read16(offset.get() + 2) & enable == 0)
        };
        let acs = device
            .capabilities
            .acs
            .is_none_or(|offset| function.read16(offset.get() + 6) == device.acs.enabled);
        bars && device.sriov.is_none_or(|sriov| sriov.is_enabled(function))
            && off(device.capabilities.msi, MSI_ENABLE)
            && off(device.capabilities.msix, MSIX_ENABLE)
            && acs
            && device.bridge().is_none_or(|bridge| bridge.holds(function))
    }

    /// Returns whether a function sends nothing by itself and decodes nothing. Bridges forward.
    pub(crate) fn is_quiet<C: ConfigSpace + ?Sized>(&self, config: &C, index: usize) -> bool {
        let Some(device) = self.devices.get(index) else {
            return false;
        };
        let command = Function::new(config, device.sbdf).read16(header::COMMAND);
        let on = header::COMMAND_MEMORY | header::COMMAND_MASTER;
        device.bridge().is_some() || command & on == 0
    }
}
