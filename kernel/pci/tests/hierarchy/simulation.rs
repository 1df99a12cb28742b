//! A simulated machine: functions with registers that stick or not, and bridges that route.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets in config space are small"
)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::time::Duration;

use pci::ConfigSpace;
use vpci::{Offset, Sbdf, Size};

thread_local! {
    /// Milliseconds that a test has waited.
    static CLOCK: Cell<u32> = const { Cell::new(0) };
}

/// Lets time pass.
pub(crate) fn wait(milliseconds: u32) {
    CLOCK.set(CLOCK.get() + milliseconds);
}

/// Returns how much time has passed.
pub(crate) fn now() -> u32 {
    CLOCK.get()
}

/// Returns the same as a reset takes it.
pub(crate) fn time() -> Duration {
    Duration::from_millis(now().into())
}

/// The virtual functions of a function.
#[derive(Clone)]
struct Vfs {
    /// Where its capability is.
    at: usize,
    /// First VF Offset in a hierarchy that is not capable of ARI, and in one that is; and VF Stride.
    first: [u16; 2],
    stride: u16,
    /// What each is.
    template: Box<Node>,
    /// Those that are enabled, and since when.
    enabled: Vec<Node>,
    since: u32,
}

/// A function, what of its registers can be written, and what is below it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) space: Vec<u8>,
    /// What `space` is after a reset.
    power_on: Vec<u8>,
    writable: Vec<u8>,
    /// Device and function number, and the function.
    pub(crate) below: Vec<((u8, u8), Node)>,
    next_capability: usize,
    next_extended: usize,
    last_link: Option<usize>,
    /// Where writing what resets the function: the offset of a byte, mask and value.
    reset_by: Option<(usize, u8, u8)>,
    /// Accesses that it does not answer to after a reset.
    slow: u32,
    silent: u32,
    /// What is wrong with it after a reset.
    broken: Option<fn(&mut Node)>,
    /// Looks at Link Status after a reset of the bus below, until the link is up.
    link: u32,
    link_down: u32,
    /// When it may be accessed again, after it or the bus that it is on was reset.
    ready_at: u32,
    /// Since when the bus below is in reset.
    held_since: u32,
    /// How often it was reset.
    pub(crate) resets: u32,
    vfs: Option<Vfs>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:08x} {:x?} {:?}",
            self.dword(0),
            &self.writable[0x10..0x28],
            self.below
        )
    }
}

impl Node {
    pub(crate) fn endpoint(vendor: u16, device: u16, class: u32) -> Self {
        let mut node = Self {
            space: vec![0; 4096],
            power_on: Vec::new(),
            writable: vec![0; 4096],
            below: Vec::new(),
            next_capability: 0x40,
            next_extended: 0x100,
            last_link: None,
            reset_by: None,
            slow: 0,
            silent: 0,
            broken: None,
            link: 0,
            link_down: 0,
            ready_at: 0,
            held_since: 0,
            resets: 0,
            vfs: None,
        };
        node.put(0x00, &vendor.to_le_bytes(), 0);
        node.put(0x02, &device.to_le_bytes(), 0);
        node.put(0x04, &[0, 0], 0xff);
        node.put(0x08, &(class << 8).to_le_bytes(), 0);
        node
    }

    pub(crate) fn bridge(vendor: u16, device: u16) -> Self {
        let mut node = Self::endpoint(vendor, device, 0x060400);
        node.space[0x0e] = 1;
        node.put(0x18, &[0; 4], 0xff);
        node.put(0x1c, &[0; 2], 0xf0);
        node.put(0x20, &[0; 4], 0xff);
        node.writable[0x20] = 0xf0;
        node.writable[0x22] = 0xf0;
        node.put(0x24, &[1, 0, 1, 0], 0xff);
        node.writable[0x24] = 0xf0;
        node.writable[0x26] = 0xf0;
        node.put(0x28, &[0; 8], 0xff);
        node.put(0x30, &[0; 4], 0);
        node.put(0x38, &[0; 4], 0xff);
        node.put(0x3e, &[0; 2], 0xff);
        node
    }

    fn put(&mut self, offset: usize, bytes: &[u8], writable: u8) {
        self.space[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.writable[offset..offset + bytes.len()].fill(writable);
    }

    /// Firmware left this in a register.
    pub(crate) fn left(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.space[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Adds a BAR with these low bits.
    pub(crate) fn bar(mut self, index: usize, flags: u32, size: u64) -> Self {
        let mask = !(size - 1);
        let low = (mask as u32 & !0xf).to_le_bytes();
        self.put(0x10 + 4 * index, &flags.to_le_bytes(), 0);
        self.writable[0x10 + 4 * index..][..4].copy_from_slice(&low);
        if flags & 7 == 4 {
            let high = ((mask >> 32) as u32).to_le_bytes();
            self.writable[0x14 + 4 * index..][..4].copy_from_slice(&high);
        }
        self
    }

    /// Adds an expansion ROM.
    pub(crate) fn rom(mut self, size: u64) -> Self {
        let mask = !(size as u32 - 1) | 1;
        self.writable[0x30..0x34].copy_from_slice(&mask.to_le_bytes());
        self
    }

    pub(crate) fn make_writable(&mut self, offset: usize, bits: u8) {
        self.writable[offset] = bits;
    }

    pub(crate) fn multi_function(mut self) -> Self {
        self.space[0x0e] |= 0x80;
        self
    }

    /// Adds a capability: its bytes behind the link, and where it is.
    fn capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_capability;
        self.space[at] = id;
        self.space[at + 2..at + 2 + body.len()].copy_from_slice(body);
        match self.last_link {
            None => {
                self.space[0x06] |= 0x10;
                self.space[0x34] = at as u8;
            }
            Some(link) => self.space[link] = at as u8,
        }
        self.last_link = Some(at + 1);
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    fn extended(&mut self, id: u16, body: &[u8]) -> usize {
        let at = self.next_extended;
        if at > 0x100 {
            let before = at - 0x10;
            let link = u16::from_le_bytes([self.space[before + 2], self.space[before + 3]]);
            let link = link & 0xf | (at as u16) << 4;
            self.space[before + 2..before + 4].copy_from_slice(&link.to_le_bytes());
        }
        self.space[at..at + 4].copy_from_slice(&(u32::from(id) | 1 << 16).to_le_bytes());
        self.space[at + 4..at + 4 + body.len()].copy_from_slice(body);
        self.next_extended += 0x10;
        at
    }

    /// Makes it a PCI Express function of a kind.
    pub(crate) fn express(mut self, kind: u8) -> Self {
        let mut body = [0; 0x3a];
        body[0] = 2 | kind << 4;
        let at = self.capability(0x10, &body);
        self.put(at + 8, &[0x10, 0x28], 0xff);
        self.writable[at + 9] = 0x7f;
        self.put(at + 0x28, &[0, 0], 0xff);
        self
    }

    /// Where the PCI Express capability is.
    pub(crate) fn express_at(&self) -> usize {
        (0x40..0xfc)
            .step_by(4)
            .find(|at| self.space[*at] == 0x10)
            .expect("an express capability")
    }

    pub(crate) fn function_level_reset(mut self) -> Self {
        let at = self.express_at();
        self.space[at + 7] |= 0x10;
        self.reset_by = Some((at + 9, 0x80, 0x80));
        self
    }

    pub(crate) fn advanced_reset(mut self) -> Self {
        let at = self.capability(0x13, &[6, 0b11, 0, 0]);
        self.reset_by = Some((at + 4, 1, 1));
        self
    }

    pub(crate) fn power(mut self, no_soft_reset: bool) -> Self {
        let at = self.capability(0x01, &[3, 0, if no_soft_reset { 8 } else { 0 }, 0]);
        self.writable[at + 4] = 3;
        if !no_soft_reset {
            self.reset_by = Some((at + 4, 3, 0));
        }
        self
    }

    pub(crate) fn msix(mut self) -> Self {
        let at = self.capability(0x11, &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.writable[at + 3] = 0xc0;
        self
    }

    pub(crate) fn msi(mut self) -> Self {
        self.capability(0x05, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self
    }

    pub(crate) fn acs(mut self, capability: u8) -> Self {
        let at = self.extended(0x0d, &[capability, 0, 0, 0]);
        self.writable[at + 6] = capability;
        self
    }

    /// Makes a port forward to all functions of the device below it.
    pub(crate) fn forwards_all(mut self) -> Self {
        let at = self.express_at();
        self.space[at + 0x24] |= 0x20;
        self.writable[at + 0x28] = 0xff;
        self
    }

    pub(crate) fn ari(self) -> Self {
        self.ari_before(0)
    }

    /// Makes it a function of an ARI device, behind which comes function `next`.
    pub(crate) fn ari_before(mut self, next: u8) -> Self {
        self.extended(0x0e, &[0, next, 0, 0]);
        self
    }

    /// Adds SR-IOV: so many virtual functions at most, of this kind, with a BAR of `size` bytes each.
    pub(crate) fn sriov(
        mut self,
        total: u16,
        first: [u16; 2],
        stride: u16,
        template: Self,
        size: u64,
    ) -> Self {
        let at = self.extended(0x10, &[0; 4]);
        self.put(at + 0x08, &[0], 0x19);
        self.put(at + 0x0e, &total.to_le_bytes(), 0);
        self.put(at + 0x10, &[0; 2], 0xff);
        self.put(at + 0x1a, &template.word(2).to_le_bytes(), 0);
        self.put(at + 0x20, &[0; 4], 0xff);
        let mask = !(size - 1);
        self.put(at + 0x24, &0xc_u32.to_le_bytes(), 0);
        self.writable[at + 0x24..at + 0x2c].copy_from_slice(&(mask & !0xf).to_le_bytes());
        let mut template = template;
        template.space[0..4].fill(0xff);
        // What comes behind must not start inside.
        self.next_extended = 0xf00;
        self.vfs = Some(Vfs {
            at,
            first,
            stride,
            template: Box::new(template.finish()),
            enabled: Vec::new(),
            since: 0,
        });
        self
    }

    /// Firmware enabled this many of them.
    pub(crate) fn left_vfs(mut self, count: u16) -> Self {
        let at = self.vfs.as_ref().expect("SR-IOV").at;
        self.space[at + 0x10..at + 0x12].copy_from_slice(&count.to_le_bytes());
        self.space[at + 0x08] = 9;
        self
    }

    /// Its virtual functions depend on those of another one.
    pub(crate) fn dependent(mut self, leader: u8) -> Self {
        let at = self.vfs.as_ref().expect("SR-IOV").at;
        self.space[at + 0x12] = leader;
        self
    }

    /// Lets its virtual functions go where its registers say so.
    pub(crate) fn forget_virtual(&mut self) {
        self.update_vfs();
    }

    /// Lets offset and stride, and which virtual functions there are, follow the control registers.
    fn update_vfs(&mut self) {
        let Some(vfs) = &mut self.vfs else {
            return;
        };
        let word = |at: usize| u16::from_le_bytes([self.space[at], self.space[at + 1]]);
        let (control, count) = (self.space[vfs.at + 8], word(vfs.at + 0x10));
        let ari = usize::from(control & 0x10 != 0);
        // Not valid before there is a number.
        let (first, stride) = match count {
            0 => (0, 0),
            _ => (vfs.first[ari], vfs.stride),
        };
        self.space[vfs.at + 0x14..vfs.at + 0x16].copy_from_slice(&first.to_le_bytes());
        self.space[vfs.at + 0x16..vfs.at + 0x18].copy_from_slice(&stride.to_le_bytes());
        if control & 1 == 0 {
            vfs.enabled.clear();
        } else if vfs.enabled.is_empty() {
            vfs.enabled = vec![(*vfs.template).clone(); count.into()];
            vfs.since = now();
        }
    }

    /// Returns the virtual function with this requester ID, if that is one of those of this function.
    fn virtual_function(&mut self, own: u16, rid: u16) -> Option<&mut Node> {
        let ari = self
            .vfs
            .as_ref()
            .map(|vfs| self.space[vfs.at + 8] & 0x10 != 0)?;
        let vfs = self.vfs.as_mut()?;
        let ahead = rid
            .checked_sub(own)?
            .checked_sub(vfs.first[usize::from(ari)])?;
        if ahead % vfs.stride != 0 {
            return None;
        }
        let found = vfs.enabled.get_mut(usize::from(ahead / vfs.stride))?;
        assert!(now() - vfs.since >= 100, "{rid:#x} is accessed too early");
        Some(found)
    }

    /// It takes some reads after a reset before it answers.
    pub(crate) fn slow(mut self, reads: u32) -> Self {
        self.slow = reads;
        self
    }

    /// This happens to it at each reset.
    pub(crate) fn broken(mut self, how: fn(&mut Node)) -> Self {
        self.broken = Some(how);
        self
    }

    /// Makes a port tell whether its link is up, which it is after so many looks.
    pub(crate) fn link(mut self, looks: u32) -> Self {
        let at = self.express_at();
        self.space[at + 0x0e] |= 0x10;
        self.space[at + 0x13] |= 0x20;
        self.link = looks;
        self
    }

    /// Leaves a register as it is, whatever is written to it.
    pub(crate) fn freeze(&mut self, offset: usize, bytes: &[u8]) {
        self.put(offset, bytes, 0);
    }

    pub(crate) fn with(mut self, device: u8, function: u8, node: Node) -> Self {
        self.below.push(((device, function), node));
        self
    }

    fn finish(mut self) -> Self {
        self.power_on = self.space.clone();
        self.power_on[4..6].fill(0);
        if let Some((at, mask, 0)) = self.reset_by {
            self.power_on[at] &= !mask; // D0
        }
        if let Some(vfs) = &self.vfs {
            self.power_on[vfs.at + 8] = 0;
            self.power_on[vfs.at + 0x10..vfs.at + 0x12].fill(0);
        }
        self.update_vfs();
        self.below = self
            .below
            .into_iter()
            .map(|(at, node)| (at, node.finish()))
            .collect();
        self
    }

    fn reset(&mut self) {
        self.space = self.power_on.clone();
        if self.space[0x0e] & 0x7f == 0 {
            for offset in 0x10..0x28 {
                self.space[offset] &= !self.writable[offset];
            }
        }
        self.silent = self.slow;
        self.resets += 1;
        if let Some(broken) = self.broken {
            broken(self);
        }
        self.update_vfs();
        self.below.iter_mut().for_each(|(_, node)| node.reset());
    }

    /// Nobody may access it, nor what is below it, before that.
    fn wait_until(&mut self, time: u32) {
        self.ready_at = time;
        let below = self.below.iter_mut();
        below.for_each(|(_, node)| node.wait_until(time));
    }

    fn look_at_the_clock(&self) {
        let id = self.dword(0);
        assert!(now() >= self.ready_at, "{id:08x} is accessed too early");
    }

    /// Returns how long after the reset of the bus below nothing there may be accessed: 100 ms on a link
    /// (PCIe 6.0, 6.6.1), T_rhfa on a conventional bus (PCI 3.0, 4.3.2: 2^25 clocks, of 30 ns at best).
    fn recovery(&self) -> u32 {
        match self.kind() {
            Some(4..=6) => 100,
            _ => 1007,
        }
    }

    fn reports_link(&self) -> bool {
        self.kind().is_some() && self.space[self.express_at() + 0x0e] & 0x10 != 0
    }

    pub(crate) fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.space[offset], self.space[offset + 1]])
    }

    pub(crate) fn dword(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    fn read(&mut self, offset: usize, size: usize) -> u32 {
        self.look_at_the_clock();
        if self.silent > 0 {
            self.silent -= 1;
            return if offset == 0 { 0xffff_0001 } else { u32::MAX };
        }
        if self.link_down > 0 && offset == self.express_at() + 0x12 {
            self.link_down -= 1;
            return 0;
        }
        // The time counts from where the link is known to be up.
        if self.reports_link() && offset == self.express_at() + 0x12 {
            let time = now() + self.recovery();
            let below = self.below.iter_mut().map(|(_, node)| node);
            below
                .filter(|node| node.ready_at == u32::MAX)
                .for_each(|node| node.wait_until(time));
        }
        (0..size)
            .map(|i| u32::from(self.space[offset + i]) << (8 * i))
            .sum()
    }

    fn write(&mut self, offset: usize, size: usize, value: u32) {
        self.look_at_the_clock();
        if self.silent > 0 {
            return;
        }
        let old = self.space.clone();
        for (i, byte) in value.to_le_bytes().iter().enumerate().take(size) {
            let mask = self.writable[offset + i];
            self.space[offset + i] = self.space[offset + i] & !mask | byte & mask;
        }
        let in_access = |at: usize| (offset..offset + size).contains(&at);
        if let Some(vfs) = &self.vfs
            && (in_access(vfs.at + 0x10) || in_access(vfs.at + 0x24))
        {
            assert_eq!(old[vfs.at + 8] & 1, 0, "VFs are enabled at {offset:#x}");
        }
        self.update_vfs();
        if let Some((at, mask, wanted)) = self.reset_by
            && in_access(at)
        {
            let written = value.to_le_bytes()[at - offset] & mask;
            // From D3hot to D0, or a one in a bit that starts a reset.
            if written == wanted && (wanted != 0 || old[at] & mask == mask) {
                self.reset();
            }
            // After function level reset (PCIe 6.0, 6.6.2), and between D3hot and D0 (5.9).
            if written == wanted {
                self.wait_until(now() + if wanted == 0 { 10 } else { 100 });
            } else if wanted == 0 && written == mask {
                self.wait_until(now() + 10);
            }
        }
        if self.space[0x0e] & 0x7f == 1
            && in_access(0x3e)
            && self.space[0x3e] & 0x40 != 0
            && old[0x3e] & 0x40 == 0
        {
            self.link_down = self.link;
            self.held_since = now();
            self.below.iter_mut().for_each(|(_, node)| node.reset());
        }
        if self.space[0x0e] & 0x7f == 1
            && in_access(0x3e)
            && self.space[0x3e] & 0x40 == 0
            && old[0x3e] & 0x40 != 0
        {
            assert!(
                now() > self.held_since,
                "T_rst is a millisecond (PCIe 6.0, 7.5.1.3.13)"
            );
            let time = if self.reports_link() {
                u32::MAX
            } else {
                now() + self.recovery()
            };
            let below = self.below.iter_mut();
            below.for_each(|(_, node)| node.wait_until(time));
        }
    }

    fn kind(&self) -> Option<u8> {
        let at = (0x40..0xfc).step_by(4).find(|at| self.space[*at] == 0x10)?;
        Some(self.space[at + 2] >> 4)
    }

    fn forwards_to_all(&self) -> bool {
        self.space[self.express_at() + 0x28] & 0x20 != 0
    }

    /// Finds a function on a bus below.
    fn route(&mut self, bus: u8, at: (u8, u8)) -> Option<&mut Node> {
        let (secondary, subordinate) = (self.space[0x19], self.space[0x1a]);
        if self.space[0x0e] & 0x7f != 1 || secondary == 0 || self.space[0x3e] & 0x40 != 0 {
            return None;
        }
        if !(secondary..=subordinate).contains(&bus) {
            return None;
        }
        let is_link = matches!(self.kind(), Some(4 | 6));
        let all = !is_link || self.forwards_to_all();
        if bus == secondary && (all || at.0 == 0) && find(&mut self.below, at).is_some() {
            return find(&mut self.below, at);
        }
        let place = (bus, at);
        if (bus != secondary || all) && find_virtual(&mut self.below, secondary, place).is_some() {
            return find_virtual(&mut self.below, secondary, place);
        }
        if bus == secondary {
            return None;
        }
        let mut claims = self
            .below
            .iter_mut()
            .filter_map(|(_, node)| node.route(bus, at));
        let found = claims.next();
        assert!(claims.next().is_none(), "bus {bus:#x} is claimed twice");
        found
    }

    /// Returns which BAR of the function, or its ROM as the seventh, answers at an address.
    fn answers(&self, address: u64) -> Option<u8> {
        let is_bridge = self.space[0x0e] & 0x7f == 1;
        let mut index = 0;
        while index < if is_bridge { 2 } else { 6 } {
            let at = 0x10 + 4 * index;
            let register = |from: &[u8], at: usize| {
                u32::from_le_bytes(from[at..at + 4].try_into().expect("four bytes"))
            };
            let wide = self.space[at] & 7 == 4;
            let low = register(&self.writable, at);
            let (mask, base) = if wide {
                let both = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
                let mask = both(low, register(&self.writable, at + 4));
                (mask, both(self.dword(at) & !15, self.dword(at + 4)))
            } else {
                (!0 << 32 | u64::from(low), u64::from(self.dword(at) & !15))
            };
            if low != 0 && self.space[at] & 1 == 0 && base != 0 && address & mask == base {
                return Some(index as u8);
            }
            index += if wide { 2 } else { 1 };
        }
        // The expansion ROM, if it were enabled.
        let field = |from: &[u8]| u32::from_le_bytes(from[0x30..0x34].try_into().expect("four"));
        let (mask, base) = (field(&self.writable) & !1, field(&self.space) & !1);
        let is_there = !is_bridge && mask != 0 && base != 0;
        (is_there && address & (!0 << 32 | u64::from(mask)) == base.into()).then_some(6)
    }

    /// Returns whether the bridge, if it is one and is on, forwards an address to the bus below.
    fn forwards(&self, address: u64) -> bool {
        let memory = u64::from(self.word(0x20) & 0xfff0) << 16
            ..=u64::from(self.word(0x22) & 0xfff0) << 16 | 0xf_ffff;
        let wide = |low: usize, high: usize| {
            u64::from(self.dword(high)) << 32 | u64::from(self.word(low) & 0xfff0) << 16
        };
        let prefetchable = wide(0x24, 0x28)..=wide(0x26, 0x2c) | 0xf_ffff;
        self.space[0x0e] & 0x7f == 1
            && self.word(4) & 6 == 6
            && (memory.contains(&address) || prefetchable.contains(&address))
    }
}

/// Finds what answers at an address on a bus: the path to it, and the BAR.
fn decode(bus: &[((u8, u8), Node)], address: u64, path: &mut Vec<(u8, u8)>) -> Option<u8> {
    let mut claims = bus.iter().flat_map(|(at, node)| {
        let bar = node.answers(address).map(|bar| (*at, Some(bar), node));
        bar.into_iter()
            .chain(node.forwards(address).then_some((*at, None, node)))
    });
    let (at, bar, node) = claims.next()?;
    assert!(
        claims.next().is_none(),
        "{address:#x} is claimed twice on a bus"
    );
    path.push(at);
    bar.or_else(|| decode(&node.below, address, path))
}

/// Finds a virtual function of those on bus `own`.
fn find_virtual(
    nodes: &mut [((u8, u8), Node)],
    own: u8,
    (bus, at): (u8, (u8, u8)),
) -> Option<&mut Node> {
    let rid = |bus: u8, (device, function): (u8, u8)| {
        u16::from(bus) << 8 | u16::from(device) << 3 | u16::from(function)
    };
    nodes
        .iter_mut()
        .find_map(|(place, node)| node.virtual_function(rid(own, *place), rid(bus, at)))
}

fn find(nodes: &mut [((u8, u8), Node)], at: (u8, u8)) -> Option<&mut Node> {
    nodes
        .iter_mut()
        .find(|(place, _)| *place == at)
        .map(|(_, node)| node)
}

/// A machine with one host bridge.
pub(crate) struct Machine {
    root: RefCell<Vec<((u8, u8), Node)>>,
    first_bus: u8,
    pub(crate) accesses: Cell<u32>,
}

impl Machine {
    pub(crate) fn new(first_bus: u8, root: Vec<((u8, u8), Node)>) -> Self {
        let root = root
            .into_iter()
            .map(|(at, node)| (at, node.finish()))
            .collect();
        Self {
            root: RefCell::new(root),
            first_bus,
            accesses: Cell::new(0),
        }
    }

    /// Returns what `view` sees of a function, where config accesses find it.
    pub(crate) fn at<T>(&self, sbdf: Sbdf, view: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut root = self.root.borrow_mut();
        let at = (sbdf.device(), sbdf.function());
        if sbdf.bus() == self.first_bus && find(&mut root, at).is_some() {
            return find(&mut root, at).map(view);
        }
        let place = (sbdf.bus(), at);
        if find_virtual(&mut root, self.first_bus, place).is_some() {
            return find_virtual(&mut root, self.first_bus, place).map(view);
        }
        if sbdf.bus() == self.first_bus {
            return None;
        }
        let mut claims = root
            .iter_mut()
            .filter_map(|(_, node)| node.route(sbdf.bus(), at));
        let found = claims.next();
        assert!(claims.next().is_none(), "{sbdf} is claimed twice");
        found.map(view)
    }

    /// Returns which BAR answers at an address, and the path of devices and functions to it.
    pub(crate) fn decode(&self, address: u64) -> Option<(Vec<(u8, u8)>, u8)> {
        let mut path = Vec::new();
        let bar = decode(&self.root.borrow(), address, &mut path)?;
        Some((path, bar))
    }
}

impl ConfigSpace for Machine {
    fn read(&self, sbdf: Sbdf, offset: Offset, size: Size) -> u32 {
        self.accesses.set(self.accesses.get() + 1);
        assert_eq!(offset.get() % size.bytes(), 0);
        let read = |node: &mut Node| node.read(offset.get().into(), size.bytes().into());
        self.at(sbdf, read).unwrap_or(u32::MAX) & size.mask()
    }

    fn write(&self, sbdf: Sbdf, offset: Offset, size: Size, value: u32) {
        self.accesses.set(self.accesses.get() + 1);
        assert_eq!(offset.get() % size.bytes(), 0);
        self.at(sbdf, |node| {
            node.write(offset.get().into(), size.bytes().into(), value)
        });
    }
}
