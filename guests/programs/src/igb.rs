//! The driver domain of an Intel 82576 network controller that is shared by its virtual functions.
//!
//! It owns the physical function (PF), and nothing but it: packets go between the virtual functions (VFs)
//! and the wire without it, and it does no DMA. It sets the controller up to switch packets by address,
//! and answers what the VFs' drivers ask by mailbox, as Linux's `igbvf` does:
//!
//! ```text
//!   VF's driver                      mailbox memory, 16 words              this program
//!   message, REQ  ------------------------------------------------------>  MBVFICR.VFREQ, interrupt
//!                 <------------------------------------------------------  ACK: read
//!                 <------------------------------------------------------  STS: answer written
//!   ACK: read     ------------------------------------------------------>  MBVFICR.VFACK
//! ```
//!
//! A VF whose driver has not asked for a reset yet, because it does not know of this program or knows one
//! that ran before, gets only refusals, upon which it does. So this domain can start again while others
//! use the VFs: their links go down and come up again. `r` typed on its terminal makes it do so.
//!
//! Registers and mailbox: Intel 82576EB Gigabit Ethernet Controller Datasheet, sections 7.10 and 8.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use runtime::its::{Its, Stalled};
use runtime::mmio::Window;
use runtime::platform::{self, Platform};
use runtime::timer::{self, Timer};
use runtime::{console, gic, println, smccc};

use crate::pci::{self, Function};

/// Device ID and vendor ID.
const ID: u32 = 0x10c9_8086;

/// BAR0: the registers; BAR3: the MSI-X table.
const REGISTERS: usize = 0x2_0000;
const TABLE_BAR: usize = 3;
const TABLE: usize = 0x4000;

/// As many VFs as the controller has at most.
const MAX_VFS: usize = 8;

/// How long to wait for an interrupt before looking all the same, in milliseconds.
const PERIOD: u64 = 500;
/// How long a VF may keep its mailbox to itself, in those periods.
const PATIENCE: u32 = 4;

/// Registers.
mod reg {
    pub(super) const CTRL: usize = 0x0000;
    pub(super) const STATUS: usize = 0x0008;
    pub(super) const EECD: usize = 0x0010;
    pub(super) const CTRL_EXT: usize = 0x0018;
    pub(super) const MDIC: usize = 0x0020;
    pub(super) const ICR: usize = 0x00c0;
    pub(super) const IMS: usize = 0x00d0;
    pub(super) const IMC: usize = 0x00d8;
    pub(super) const RCTL: usize = 0x0100;
    pub(super) const TCTL: usize = 0x0400;
    pub(super) const VMBMEM: usize = 0x0800;
    pub(super) const P2VMAILBOX: usize = 0x0c00;
    pub(super) const MBVFICR: usize = 0x0c80;
    pub(super) const MBVFIMR: usize = 0x0c84;
    pub(super) const VFLRE: usize = 0x0c88;
    pub(super) const VFRE: usize = 0x0c8c;
    pub(super) const VFTE: usize = 0x0c90;
    pub(super) const GPIE: usize = 0x1514;
    pub(super) const EIMS: usize = 0x1524;
    pub(super) const EIMC: usize = 0x1528;
    pub(super) const EIAC: usize = 0x152c;
    pub(super) const IVAR_MISC: usize = 0x1740;
    pub(super) const QDE: usize = 0x2408;
    pub(super) const DTXSWC: usize = 0x3500;
    pub(super) const MTA: usize = 0x5200;
    pub(super) const RAL: usize = 0x5400;
    pub(super) const RAH: usize = 0x5404;
    pub(super) const VFTA: usize = 0x5600;
    pub(super) const MRQC: usize = 0x5818;
    pub(super) const VT_CTL: usize = 0x581c;
    pub(super) const VMOLR: usize = 0x5ad0;
    pub(super) const RPLOLR: usize = 0x5af0;
    pub(super) const VLVF: usize = 0x5d00;
}

/// CTRL: no new requests to memory; link up; reset.
const CTRL_MASTER_DISABLE: u32 = 1 << 2;
const CTRL_LINK_UP: u32 = 1 << 6;
const CTRL_RESET: u32 = 1 << 26;
/// STATUS: link is up; VFs, and whether there are any; requests to memory may be on their way.
const STATUS_LINK_UP: u32 = 1 << 1;
const STATUS_VFS_SHIFT: u32 = 14;
const STATUS_IOV: u32 = 1 << 18;
const STATUS_MASTER: u32 = 1 << 19;
/// EECD: the controller has read its settings.
const EECD_READ: u32 = 1 << 9;
/// CTRL_EXT: the PF's reset is done, which VFs are told.
const CTRL_EXT_RESET_DONE: u32 = 1 << 14;
/// MDIC: a write to PHY 1, and its end. BMCR: negotiate, now.
const MDIC_WRITE: u32 = 1 << 26 | 1 << 21;
const MDIC_READY: u32 = 1 << 28;
const BMCR_NEGOTIATE: u32 = 0x1200;
/// RCTL: on, broadcasts, VLAN filter, without CRC. TCTL: on, short packets padded.
const RCTL_ON: u32 = 1 << 1 | 1 << 15 | 1 << 18 | 1 << 26;
const TCTL_ON: u32 = 1 << 1 | 1 << 3;
/// MRQC: queues by virtual machine. VT_CTL: no default pool, packets to several are copied.
const MRQC_POOLS: u32 = 3;
const VT_CTL_POOLS: u32 = 1 << 29 | 1 << 30;
/// DTXSWC: packets are switched between VFs, whose source addresses and VLANs must be their own.
const DTXSWC_SWITCH: u32 = 1 << 31 | 0xffff;
/// VMOLR: longest packet, and that it counts; untagged, multicast by table, broadcast; without CRC.
const VMOLR_LENGTH: u32 = 0x3fff;
const VMOLR_LIMIT: u32 = 1 << 16;
const VMOLR_ACCEPT: u32 = 1 << 24 | 1 << 25 | 1 << 27;
const VMOLR_STRIP: u32 = 1 << 31;
/// RAH: the entry counts; the pool it is for.
const RAH_VALID: u32 = 1 << 31;
const RAH_POOL_SHIFT: u32 = 18;
/// VLVF: the entry counts; the pools it is for.
const VLVF_VALID: u32 = 1 << 31;
const VLVF_POOL_SHIFT: u32 = 12;
const VLVF_POOLS: u32 = 0xff << VLVF_POOL_SHIFT;
const VLVF_VLAN: u32 = 0xfff;
const VLVFS: usize = 32;

/// ICR and IMS: link changed; mailbox or VF reset. GPIE: MSI-X, reading ICR clears it.
const CAUSE_LINK: u32 = 1 << 2;
const CAUSE_MAILBOX: u32 = 1 << 8;
const GPIE_MSIX: u32 = 1 << 0 | 1 << 4;
/// IVAR_MISC: other causes go to vector 0. The PF has no other vector while there are VFs.
const IVAR_OTHER: u32 = 0x80 << 8;
const VECTOR: u32 = 1;

/// P2VMAILBOX.
const STATUS_SENT: u32 = 1 << 0;
const ACKNOWLEDGE: u32 = 1 << 1;
const TAKEN: u32 = 1 << 3;
const TAKE_FROM_VF: u32 = 1 << 4;
/// MBVFICR: requests in the low half, acknowledgements in the high one.
const REQUESTS: u32 = 0xff;
const ACKS_SHIFT: u32 = 16;

/// What an answer adds to a message's first word.
const ACK: u32 = 1 << 31;
const NACK: u32 = 1 << 30;
const CLEAR_TO_SEND: u32 = 1 << 29;
const INFO_SHIFT: u32 = 16;
/// A message of ours that asks for no answer.
const CONTROL: u32 = 0x0100;

/// Multicast hashes that a message holds.
const HASHES: usize = 30;
/// Frames: the shortest longest one, the longest, and a VLAN tag on top.
const FRAME: u32 = 1518;
const LONGEST: u32 = 9216;
const TAG: u32 = 4;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mac([u8; 6]);

impl Mac {
    /// Takes it from two little-endian words, as registers and messages have it.
    fn from_words(low: u32, high: u32) -> Self {
        let [a, b, c, d] = low.to_le_bytes();
        let [e, f, ..] = high.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    fn words(self) -> [u32; 2] {
        let [a, b, c, d, e, f] = self.0;
        [
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, 0, 0]),
        ]
    }

    /// Tells whether one station can have it.
    fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// Returns a locally administered address for a VF.
    fn of_vf(self, vf: u8) -> Self {
        let mut bytes = self.0;
        bytes[0] |= 2;
        bytes[5] = bytes[5].wrapping_add(vf + 1);
        Self(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a VF's driver has set.
struct Vf {
    mac: Mac,
    /// Its driver has asked for a reset, and may ask for other things now.
    clear_to_send: bool,
    hashes: Vec<u16>,
    /// It asked, and the mailbox was taken so many periods.
    waiting: Option<u32>,
}

/// What is asked of us.
enum Request<'m> {
    Reset,
    SetMac(Mac),
    /// Words that hold two hashes each, and how many hashes there are.
    SetMulticast(&'m [u32], usize),
    SetVlan {
        vlan: u32,
        add: bool,
    },
    SetLongest(u32),
    Unknown,
}

impl<'m> Request<'m> {
    /// Decodes a message, whose second byte of the upper half is its argument.
    fn decode(message: &'m [u32; 16]) -> Self {
        let [first, rest @ ..] = message;
        let [low, high, ..] = rest;
        let info = first >> INFO_SHIFT & 0xff;
        match (first & 0xffff, info) {
            (1, _) => Self::Reset,
            (2, 0) => Self::SetMac(Mac::from_words(*low, *high)),
            (3, _) => Self::SetMulticast(rest, (info as usize).min(HASHES)),
            (4, _) => Self::SetVlan {
                vlan: low & VLVF_VLAN,
                add: info != 0,
            },
            (5, _) => Self::SetLongest(*low),
            _ => Self::Unknown,
        }
    }
}

/// Serves the VFs for ever.
pub fn main(_platform: &'static Platform) {
    match Igb::start() {
        Ok(mut igb) => loop {
            igb.serve();
            wait();
            if console::read() == Some(b'r') {
                println!("igb: starts again");
                smccc::system_reset();
            }
        },
        Err(why) => println!("igb: {why}"),
    }
}

/// Waits in WFI for the controller's interrupt, or for a while.
fn wait() {
    Timer::Virtual.set(timer::now() + timer::ticks(PERIOD));
    runtime::cpu::wait_for_interrupt();
    Timer::Virtual.stop();
    let intid = gic::acknowledge();
    if !(1020..gic::FIRST_LPI).contains(&intid) {
        gic::end(intid);
    }
}

/// The controller.
struct Igb {
    registers: Window,
    vfs: Vec<Vf>,
    own: Mac,
    link: bool,
}

impl Igb {
    fn start() -> Result<Self, String> {
        let bridge = platform::get()
            .host_bridge
            .ok_or("the domain has no host bridge")?;
        let function = Function::all(&bridge)
            .find(|function| function.id() == ID)
            .ok_or("there is no 82576 on bus 0")?;
        let registers = pci::first_fit(&bridge, REGISTERS);
        let table = bridge
            .memory32
            .part(registers.base() + REGISTERS - bridge.memory32.base(), TABLE);
        function.place(0, registers.base());
        function.place(TABLE_BAR, table.base());
        function.enable();
        gic::ensure_ready();
        gic::enable(Timer::Virtual.intid());
        let mut its = Its::new().ok_or("the domain has no ITS")?;
        map_interrupt(&mut its, function.requester)
            .map_err(|error| alloc::format!("the ITS is stuck: {error:?}"))?;
        let mut igb = Self {
            registers,
            vfs: Vec::new(),
            own: Mac([0; 6]),
            link: false,
        };
        igb.reset()?;
        function.set_vector(&table, 0, its.doorbell(), 0);
        function.enable_msix().ok_or("the function has no MSI-X")?;
        igb.set_up();
        Ok(igb)
    }

    fn read(&self, register: usize) -> u32 {
        self.registers.read32(register)
    }

    fn write(&self, register: usize, value: u32) {
        self.registers.write32(register, value);
    }

    fn set(&self, register: usize, bits: u32) {
        self.write(register, self.read(register) | bits);
    }

    fn clear(&self, register: usize, bits: u32) {
        self.write(register, self.read(register) & !bits);
    }

    /// Resets the controller (section 4.2.1.6), and with it what VFs had set up.
    fn reset(&mut self) -> Result<(), String> {
        self.write(reg::IMC, u32::MAX);
        self.write(reg::EIMC, u32::MAX);
        self.set(reg::CTRL, CTRL_MASTER_DISABLE);
        timer::wait_until(100, || self.read(reg::STATUS) & STATUS_MASTER == 0);
        self.clear(reg::RCTL, 1 << 1);
        self.clear(reg::TCTL, 1 << 1);
        self.set(reg::CTRL, CTRL_RESET);
        // It must not be accessed for a millisecond.
        timer::sleep(10);
        if !timer::wait_until(1000, || self.read(reg::CTRL) & CTRL_RESET == 0) {
            return Err("the reset does not end".into());
        }
        timer::wait_until(20, || self.read(reg::EECD) & EECD_READ != 0);
        self.write(reg::IMC, u32::MAX);
        self.read(reg::ICR);
        let status = self.read(reg::STATUS);
        let count = match status & STATUS_IOV {
            0 => 0,
            _ => (status >> STATUS_VFS_SHIFT & 0xf) as usize,
        };
        self.own = Mac::from_words(self.read(reg::RAL), self.read(reg::RAH));
        let own = self.own;
        self.vfs = (0..8)
            .take(count.min(MAX_VFS))
            .map(|vf| Vf {
                mac: own.of_vf(vf),
                clear_to_send: false,
                hashes: Vec::new(),
                waiting: None,
            })
            .collect();
        println!("igb: {own}, {} virtual function(s)", self.vfs.len());
        Ok(())
    }

    /// Sets the switch up, brings the link up, and lets VFs ask.
    fn set_up(&mut self) {
        self.write(reg::VFRE, 0);
        self.write(reg::VFTE, 0);
        self.write(reg::MRQC, MRQC_POOLS);
        self.write(reg::VT_CTL, VT_CTL_POOLS);
        self.write(reg::DTXSWC, DTXSWC_SWITCH);
        self.write(reg::RPLOLR, VMOLR_STRIP);
        // A VF that does not take its packets must not hold up the others.
        self.write(reg::QDE, 0xffff);
        for vf in 0..self.vfs.len() {
            self.forget(vf);
        }
        self.set(reg::TCTL, TCTL_ON);
        self.set(reg::RCTL, RCTL_ON);
        self.set(reg::CTRL, CTRL_LINK_UP);
        self.write(reg::MDIC, MDIC_WRITE | BMCR_NEGOTIATE);
        timer::wait_until(10, || self.read(reg::MDIC) & MDIC_READY != 0);

        self.write(reg::GPIE, GPIE_MSIX);
        self.write(reg::IVAR_MISC, IVAR_OTHER);
        self.set(reg::EIAC, VECTOR);
        self.write(reg::MBVFIMR, REQUESTS);
        self.write(reg::IMS, CAUSE_LINK | CAUSE_MAILBOX);
        self.write(reg::EIMS, VECTOR);
        self.set(reg::CTRL_EXT, CTRL_EXT_RESET_DONE);
        // Drivers that knew an earlier program read this, and learn that they have to reset.
        self.tell_all();
        println!("igb: ready");
    }

    /// Looks at everything that may have happened.
    fn serve(&mut self) {
        // Reading clears the causes first, so that what comes later interrupts again.
        self.read(reg::ICR);
        let link = self.read(reg::STATUS) & STATUS_LINK_UP != 0;
        if link != self.link {
            self.link = link;
            println!("igb: link is {}", if link { "up" } else { "down" });
            self.tell_all();
        }
        // Whoever asks after a reset of its own has reset before: so the requests come first here.
        let events = self.read(reg::MBVFICR);
        self.write(reg::MBVFICR, events);
        let resets = self.read(reg::VFLRE);
        self.write(reg::VFLRE, resets);
        for vf in 0..self.vfs.len() {
            let is_set = |bits: u32| bits & 1 << vf != 0;
            // What was acknowledged, was so before a reset.
            let listens = is_set(events >> ACKS_SHIFT) && !is_set(resets);
            if is_set(resets) {
                self.vfs[vf].clear_to_send = false;
                self.forget(vf);
            }
            if is_set(events) {
                self.vfs[vf].waiting = Some(0);
            } else if listens && !self.vfs[vf].clear_to_send {
                self.tell(vf, NACK);
            }
            if let Some(waited) = self.vfs[vf].waiting {
                self.answer(vf, waited);
            }
        }
    }

    /// Makes the controller treat a VF as one that nobody uses.
    fn forget(&mut self, vf: usize) {
        self.clear(reg::VFRE, 1 << vf);
        self.clear(reg::VFTE, 1 << vf);
        self.write(reg::RAH + 8 * (vf + 1), 0);
        self.write(
            reg::VMOLR + 4 * vf,
            VMOLR_STRIP | VMOLR_ACCEPT | VMOLR_LIMIT | (FRAME + TAG),
        );
        for index in 0..VLVFS {
            self.set_pools(index, |pools| pools & !(1 << vf));
        }
        self.vfs[vf].hashes.clear();
        self.write_hashes();
    }

    /// Changes the pools of a VLAN; without any, the entry is free.
    fn set_pools(&self, index: usize, change: impl Fn(u32) -> u32) {
        let register = reg::VLVF + 4 * index;
        let old = self.read(register);
        if old & VLVF_VALID == 0 {
            return;
        }
        let pools = change((old & VLVF_POOLS) >> VLVF_POOL_SHIFT) & 0xff;
        let vlan = old & VLVF_VLAN;
        if pools == 0 {
            self.write(register, 0);
            self.clear(vlan_word(vlan), 1 << (vlan % 32));
        } else {
            self.write(register, VLVF_VALID | pools << VLVF_POOL_SHIFT | vlan);
        }
    }

    /// Adds a VF to a VLAN or takes it out; returns whether there was room.
    fn set_vlan(&self, vf: usize, vlan: u32, add: bool) -> bool {
        let entry = |index: &usize| self.read(reg::VLVF + 4 * index);
        let is = |index: &usize| entry(index) & (VLVF_VALID | VLVF_VLAN) == VLVF_VALID | vlan;
        let known = (0..VLVFS).find(is);
        match (known, add) {
            (Some(index), true) => self.set_pools(index, |pools| pools | 1 << vf),
            (Some(index), false) => self.set_pools(index, |pools| pools & !(1 << vf)),
            (None, false) => {}
            (None, true) => {
                let free = |index: &usize| entry(index) & VLVF_VALID == 0;
                let Some(index) = (0..VLVFS).find(free) else {
                    return false;
                };
                let pool = 1 << (VLVF_POOL_SHIFT as usize + vf);
                self.write(reg::VLVF + 4 * index, VLVF_VALID | pool | vlan);
                self.set(vlan_word(vlan), 1 << (vlan % 32));
            }
        }
        true
    }

    /// Writes what multicast groups all VFs together listen to.
    fn write_hashes(&self) {
        let mut table = [0_u32; 128];
        for hash in self.vfs.iter().flat_map(|vf| &vf.hashes) {
            table[usize::from(hash >> 5 & 0x7f)] |= 1 << (hash & 0x1f);
        }
        for (index, word) in table.into_iter().enumerate() {
            self.write(reg::MTA + 4 * index, word);
        }
    }

    /// Takes a VF's mailbox; returns whether it could be had.
    fn take(&self, vf: usize) -> bool {
        let register = reg::P2VMAILBOX + 4 * vf;
        self.write(register, TAKEN);
        self.read(register) & TAKEN != 0
    }

    /// Gives a VF's mailbox back, with a message.
    fn send(&self, vf: usize, message: &[u32]) {
        for (index, word) in message.iter().enumerate() {
            self.write(reg::VMBMEM + 64 * vf + 4 * index, *word);
        }
        self.write(reg::P2VMAILBOX + 4 * vf, STATUS_SENT);
    }

    /// Answers a VF that waits for it, and so does not use its mailbox.
    fn reply(&self, vf: usize, message: &[u32]) {
        if self.take(vf) {
            self.send(vf, message);
        }
    }

    /// Tells a VF something that it did not ask for, unless it is about to ask, or has asked: then the
    /// answer tells as much.
    fn tell(&self, vf: usize, what: u32) {
        if !self.take(vf) {
            return;
        }
        if self.read(reg::MBVFICR) & 1 << vf != 0 || self.vfs[vf].waiting.is_some() {
            self.write(reg::P2VMAILBOX + 4 * vf, 0);
            return;
        }
        self.send(vf, &[CONTROL | what]);
    }

    /// Says that something has changed.
    fn tell_all(&self) {
        for (vf, state) in self.vfs.iter().enumerate() {
            self.tell(vf, clear_to_send(state));
        }
    }

    /// Answers the message in a VF's mailbox, for which it has waited so many periods.
    fn answer(&mut self, vf: usize, waited: u32) {
        if !self.take(vf) {
            self.vfs[vf].waiting = Some(waited + 1);
            if waited >= PATIENCE {
                // Its driver went away with the mailbox in its hands.
                self.write(reg::P2VMAILBOX + 4 * vf, TAKE_FROM_VF);
                self.vfs[vf].waiting = None;
            }
            return;
        }
        self.vfs[vf].waiting = None;
        let message: [u32; 16] =
            core::array::from_fn(|word| self.read(reg::VMBMEM + 64 * vf + 4 * word));
        self.write(reg::P2VMAILBOX + 4 * vf, ACKNOWLEDGE);
        let first = message[0];
        if first & (ACK | NACK) != 0 {
            // What is left of an answer of ours.
            return;
        }
        match Request::decode(&message) {
            Request::Reset => {
                self.forget(vf);
                let mac = self.vfs[vf].mac;
                self.set_mac(vf, mac);
                self.set(reg::VFRE, 1 << vf);
                self.set(reg::VFTE, 1 << vf);
                self.vfs[vf].clear_to_send = true;
                let [low, high] = mac.words();
                self.reply(vf, &[first | ACK, low, high]);
                println!("igb: virtual function {vf} is {mac}");
            }
            request => {
                let granted = self.vfs[vf].clear_to_send && self.grant(vf, &request);
                let verdict = if granted { ACK } else { NACK };
                self.reply(vf, &[first | verdict | clear_to_send(&self.vfs[vf])]);
            }
        }
    }

    /// Does what a VF's driver asks for; returns whether it may have it.
    fn grant(&mut self, vf: usize, request: &Request<'_>) -> bool {
        match *request {
            Request::Reset | Request::Unknown => false,
            Request::SetMac(mac) => {
                let mut others = self.vfs.iter().enumerate();
                let taken = others.any(|(other, state)| other != vf && state.mac == mac);
                let granted = mac.is_station() && !taken && mac != self.own;
                if granted {
                    self.set_mac(vf, mac);
                }
                granted
            }
            Request::SetMulticast(words, count) => {
                let hashes = words.iter().flat_map(|word| {
                    let [a, b, c, d] = word.to_le_bytes();
                    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
                });
                self.vfs[vf].hashes = hashes.take(count).collect();
                self.write_hashes();
                true
            }
            Request::SetVlan { vlan, add } => self.set_vlan(vf, vlan, add),
            Request::SetLongest(bytes) => {
                let granted = (FRAME..=LONGEST).contains(&bytes);
                if granted {
                    let register = reg::VMOLR + 4 * vf;
                    let kept = self.read(register) & !VMOLR_LENGTH;
                    self.write(register, kept | VMOLR_LIMIT | (bytes + TAG));
                }
                granted
            }
        }
    }

    /// Sends what is for this address to a VF.
    fn set_mac(&mut self, vf: usize, mac: Mac) {
        let entry = 8 * (vf + 1);
        let [low, high] = mac.words();
        let pool = 1 << (RAH_POOL_SHIFT as usize + vf);
        self.write(reg::RAH + entry, 0);
        self.write(reg::RAL + entry, low);
        self.write(reg::RAH + entry, high | pool | RAH_VALID);
        self.vfs[vf].mac = mac;
    }
}

/// Returns what a message to a VF says of whether it may ask.
fn clear_to_send(vf: &Vf) -> u32 {
    if vf.clear_to_send { CLEAR_TO_SEND } else { 0 }
}

/// Returns the register that has a VLAN's bit.
const fn vlan_word(vlan: u32) -> usize {
    reg::VFTA + 4 * (vlan / 32) as usize
}

/// Makes event 0 of a function the first LPI.
fn map_interrupt(its: &mut Its, requester: u16) -> Result<(), Stalled> {
    let (device, lpi) = (requester.into(), gic::FIRST_LPI);
    let target = its.target();
    its.map_collection(0, target)?;
    its.map_device(device, 1)?;
    its.configure(lpi, gic::DEFAULT_PRIORITY, true);
    its.map_event(device, 0, lpi, 0)?;
    its.inv(device, 0)?;
    its.sync(target)
}
