//! A machine around the controller: guest memory, and pCPUs with a virtual CPU interface, whose
//! kernel side does what the real kernel does.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod its;

use std::collections::BTreeSet;

use vgic::{BadAddress, Config, Frame, Hcr, Host, Intid, Vgic};

pub(crate) const EOI: u64 = 1 << 41;
pub(crate) const GROUP1: u64 = 1 << 60;
pub(crate) const HW: u64 = 1 << 61;
pub(crate) const PENDING: u64 = 1 << 62;
pub(crate) const ACTIVE: u64 = 1 << 63;

/// Priority mask open, both groups on.
pub(crate) const VMCR: u64 = 0xff << 24 | 3;
pub(crate) const VMCR_EOI_SPLIT: u64 = 1 << 9;
/// `ICH_VTR_EL2` of QEMU, with four list registers.
pub(crate) const VTR: u64 = 0x90b8_0003;
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const TIMER: Intid = Intid::new(27);

pub(crate) struct Outside {
    pub(crate) memory: Vec<u8>,
    pub(crate) kicked: BTreeSet<usize>,
    pub(crate) ended: Vec<Intid>,
    /// Those whose lines fall with the end.
    pub(crate) falling: Vec<Intid>,
    pub(crate) timer_lines: Vec<bool>,
}

impl Outside {
    fn range(&self, ipa: u64, length: usize) -> Result<std::ops::Range<usize>, BadAddress> {
        let start = ipa.checked_sub(RAM).ok_or(BadAddress)? as usize;
        let end = start.checked_add(length).ok_or(BadAddress)?;
        if end > self.memory.len() {
            return Err(BadAddress);
        }
        Ok(start..end)
    }
}

impl Host for Outside {
    fn kick(&mut self, vcpu: usize) {
        self.kicked.insert(vcpu);
    }

    fn read_guest(&mut self, ipa: u64, bytes: &mut [u8]) -> Result<(), BadAddress> {
        let range = self.range(ipa, bytes.len())?;
        bytes.copy_from_slice(&self.memory[range]);
        Ok(())
    }

    fn write_guest(&mut self, ipa: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        let range = self.range(ipa, bytes.len())?;
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn line(&mut self, vcpu: usize, intid: Intid) -> Option<bool> {
        (intid == TIMER).then(|| self.timer_lines[vcpu])
    }

    fn ended(&mut self, intid: Intid) -> bool {
        self.ended.push(intid);
        self.falling.contains(&intid)
    }
}

/// A vCPU with its virtual CPU interface; list registers mean something while it is loaded.
#[derive(Clone)]
pub(crate) struct Interface {
    pub(crate) loaded: bool,
    pub(crate) lrs: Vec<u64>,
    pub(crate) hcr: u64,
    pub(crate) vmcr: u64,
    /// Priorities of what was acknowledged and not ended.
    pub(crate) running: Vec<(u16, u8)>,
    /// The physical timer interrupt of the pCPU that it is loaded on.
    pub(crate) timer_active: bool,
}

pub(crate) struct Machine {
    pub(crate) vgic: Vgic,
    pub(crate) outside: Outside,
    pub(crate) cpus: Vec<Interface>,
    /// Whether an acknowledged LPI stays in its list register as active, as in QEMU.
    pub(crate) lpis_stay: bool,
    /// Whether the kernel looks at the timer's line when it refreshes list registers.
    pub(crate) samples_timer: bool,
    /// Kicks and maintenance interrupts are on their way, and have not arrived.
    pub(crate) held: bool,
}

impl vgic::Interface for Interface {
    fn hcr(&self) -> u64 {
        self.hcr
    }

    fn set_hcr(&mut self, value: u64) {
        self.hcr = value;
    }

    fn vmcr(&self) -> u64 {
        self.vmcr
    }

    fn read(&self, index: usize) -> u64 {
        self.lrs[index]
    }

    fn write(&mut self, first: usize, lrs: &[u64]) {
        let (new, rest) = self.lrs[first..].split_at_mut(lrs.len());
        new.copy_from_slice(lrs);
        rest.fill(0);
    }
}

impl Machine {
    pub(crate) fn new(vcpus: usize, list_registers: usize) -> Self {
        let affinities: Vec<u64> = (0..vcpus as u64).collect();
        let vgic = Vgic::new(&Config {
            affinities: &affinities,
            spis: 96,
            its: true,
            device_bits: 16,
            vtr: VTR & !0x1f | (list_registers as u64 - 1),
        });
        let mut vgic = vgic.unwrap();
        vgic.set_mapped(TIMER, Some(TIMER));
        let interface = Interface {
            loaded: true,
            lrs: vec![0; list_registers],
            hcr: 1,
            vmcr: VMCR,
            running: vec![],
            timer_active: false,
        };
        Self {
            vgic,
            outside: Outside {
                memory: vec![0; 0x20_0000],
                kicked: BTreeSet::new(),
                ended: vec![],
                falling: vec![],
                timer_lines: vec![false; vcpus],
            },
            cpus: vec![interface; vcpus],
            lpis_stay: true,
            samples_timer: true,
            held: false,
        }
    }

    // The guest's accesses, by the first vCPU.

    pub(crate) fn read(&mut self, frame: Frame, offset: u64, size: u64) -> u64 {
        if Vgic::shows_state(frame, offset) {
            self.refresh_all();
        }
        self.vgic.read(frame, offset, size, &mut self.outside)
    }

    pub(crate) fn write(&mut self, frame: Frame, offset: u64, size: u64, value: u64) {
        if Vgic::shows_state(frame, offset) {
            self.refresh_all();
        }
        self.vgic
            .write(frame, offset, size, value, &mut self.outside);
        while self.vgic.has_commands() {
            self.vgic.process(16, &mut self.outside);
        }
        self.settle();
    }

    pub(crate) fn gicd(&mut self, offset: u64, value: u32) {
        self.write(Frame::Distributor, offset, 4, u64::from(value));
    }

    pub(crate) fn gicr(&mut self, vcpu: usize, offset: u64, value: u32) {
        self.write(Frame::Redistributor(vcpu), offset, 4, u64::from(value));
    }

    /// Writes one bit of a bank of either frame.
    pub(crate) fn set_bit(&mut self, vcpu: usize, base: u64, intid: u16) {
        let (word, bit) = (u64::from(intid / 32) * 4, 1 << (intid % 32));
        if intid < 32 {
            self.gicr(vcpu, 0x1_0000 + base, bit);
        } else {
            self.gicd(base + word, bit);
        }
    }

    pub(crate) fn get_bit(&mut self, vcpu: usize, base: u64, intid: u16) -> bool {
        let word = u64::from(intid / 32) * 4;
        let value = if intid < 32 {
            self.read(Frame::Redistributor(vcpu), 0x1_0000 + base, 4)
        } else {
            self.read(Frame::Distributor, base + word, 4)
        };
        value >> (intid % 32) & 1 != 0
    }

    pub(crate) fn set_priority(&mut self, vcpu: usize, intid: u16, priority: u8) {
        let (frame, base) = if intid < 32 {
            (Frame::Redistributor(vcpu), 0x1_0400)
        } else {
            (Frame::Distributor, 0x400)
        };
        self.write(frame, base + u64::from(intid), 1, u64::from(priority));
    }

    // Inputs.

    pub(crate) fn level(&mut self, vcpu: usize, intid: u16, level: bool) {
        let intid = Intid::new(intid);
        self.vgic.set_level(vcpu, intid, level, &mut self.outside);
        self.settle();
    }

    pub(crate) fn pulse(&mut self, vcpu: usize, intid: u16) {
        self.vgic.pulse(vcpu, Intid::new(intid), &mut self.outside);
        self.settle();
    }

    pub(crate) fn timer(&mut self, vcpu: usize, high: bool) {
        self.outside.timer_lines[vcpu] = high;
        if high && !self.cpus[vcpu].loaded && !self.vgic.mapped_active(vcpu, TIMER) {
            // The kernel's own timer for a vCPU that is not loaded.
            self.vgic.set_level(vcpu, TIMER, true, &mut self.outside);
        }
        self.settle();
    }

    // The kernel's side.

    /// Resets the domain.
    pub(crate) fn reset(&mut self) {
        for vcpu in 0..self.cpus.len() {
            self.unload(vcpu);
        }
        self.vgic.reset();
        for vcpu in 0..self.cpus.len() {
            self.cpus[vcpu].running.clear();
            self.load(vcpu);
        }
    }

    pub(crate) fn load(&mut self, vcpu: usize) {
        assert!(!self.cpus[vcpu].loaded);
        self.cpus[vcpu].loaded = true;
        self.cpus[vcpu].timer_active = self.vgic.mapped_active(vcpu, TIMER);
        // What the one before has left in its list registers.
        self.cpus[vcpu].lrs.fill(!0);
        self.refill(vcpu);
        self.settle();
    }

    pub(crate) fn unload(&mut self, vcpu: usize) {
        assert!(self.cpus[vcpu].loaded);
        let (cpu, host) = (&mut self.cpus[vcpu], &mut self.outside);
        self.vgic.unload(vcpu, cpu, host);
        // The kernel turns the interface off.
        (cpu.loaded, cpu.hcr) = (false, 0);
    }

    /// Does what WFI does, and returns whether the vCPU goes on at once.
    pub(crate) fn wait(&mut self, vcpu: usize) -> bool {
        assert!(self.cpus[vcpu].loaded);
        let (cpu, host) = (&mut self.cpus[vcpu], &mut self.outside);
        self.vgic.take_back(vcpu, cpu, host);
        let pending = self.vgic.pending(vcpu, cpu.vmcr);
        self.refill(vcpu);
        pending
    }

    /// Brings list registers up to date, as the kernel does.
    fn refill(&mut self, vcpu: usize) {
        if self.samples_timer && !self.outside.timer_lines[vcpu] {
            self.vgic.set_level(vcpu, TIMER, false, &mut self.outside);
        }
        self.outside.kicked.remove(&vcpu);
        let (cpu, host) = (&mut self.cpus[vcpu], &mut self.outside);
        let deactivate = self.vgic.refill(vcpu, cpu, host);
        if deactivate & 1 << TIMER.get() != 0 {
            cpu.timer_active = false;
        }
        assert!(cpu.hcr & Hcr::EN.bits() != 0);
    }

    /// The same with a look at all list registers. Returns how many are used then.
    pub(crate) fn refresh(&mut self, vcpu: usize) -> usize {
        let (cpu, host) = (&mut self.cpus[vcpu], &mut self.outside);
        self.vgic.take_back(vcpu, cpu, host);
        self.refill(vcpu);
        let lrs = &self.cpus[vcpu].lrs;
        lrs.iter().filter(|lr| **lr != 0).count()
    }

    pub(crate) fn refresh_all(&mut self) {
        for vcpu in 0..self.cpus.len() {
            if self.cpus[vcpu].loaded {
                self.refresh(vcpu);
            }
        }
    }

    /// Does what interrupts make the kernel do, until there are none.
    pub(crate) fn settle(&mut self) {
        if self.held {
            return;
        }
        for round in 0.. {
            assert!(round < 50, "the kernel is never done");
            let mut quiet = true;
            for vcpu in 0..self.cpus.len() {
                let kicked = self.outside.kicked.contains(&vcpu);
                let cpu = &mut self.cpus[vcpu];
                if !cpu.loaded {
                    self.outside.kicked.remove(&vcpu);
                    continue;
                }
                if self.outside.timer_lines[vcpu] && !cpu.timer_active {
                    cpu.timer_active = true;
                    self.vgic.set_level(vcpu, TIMER, true, &mut self.outside);
                    quiet = false;
                }
                let maintenance = self.maintenance(vcpu);
                if maintenance {
                    self.cpus[vcpu].hcr &= !Hcr::EN.bits();
                }
                if maintenance || kicked {
                    self.refill(vcpu);
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Returns whether the maintenance interrupt is signaled (ICH_MISR_EL2).
    fn maintenance(&self, vcpu: usize) -> bool {
        let cpu = &self.cpus[vcpu];
        let hcr = Hcr::from_bits_truncate(cpu.hcr);
        if !hcr.contains(Hcr::EN) {
            return false;
        }
        let state = |lr: &&u64| **lr & (PENDING | ACTIVE) != 0;
        let ended = cpu
            .lrs
            .iter()
            .any(|lr| lr & (PENDING | ACTIVE | HW | EOI) == EOI);
        let valid = cpu.lrs.iter().filter(state).count();
        let pending = cpu.lrs.iter().any(|lr| lr & PENDING != 0);
        let (group0, group1) = (cpu.vmcr & 1 != 0, cpu.vmcr & 2 != 0);
        ended
            || hcr.contains(Hcr::UIE) && valid <= 1
            || hcr.contains(Hcr::LRENPIE) && cpu.hcr >> 27 != 0
            || hcr.contains(Hcr::NPIE) && !pending
            || hcr.contains(Hcr::VGRP0EIE) && group0
            || hcr.contains(Hcr::VGRP0DIE) && !group0
            || hcr.contains(Hcr::VGRP1EIE) && group1
            || hcr.contains(Hcr::VGRP1DIE) && !group1
    }

    // The virtual CPU interface.

    /// Acknowledges the most urgent interrupt, as `ICC_IAR0_EL1` or `ICC_IAR1_EL1` do.
    pub(crate) fn acknowledge(&mut self, vcpu: usize) -> Option<u16> {
        let lpis_stay = self.lpis_stay;
        let cpu = &mut self.cpus[vcpu];
        assert!(cpu.loaded);
        let limit = cpu.running.iter().map(|(_, priority)| *priority).min();
        let (vmcr, mask) = (cpu.vmcr, (cpu.vmcr >> 24 & 0xff) as u8);
        let lr = cpu
            .lrs
            .iter_mut()
            .filter(|lr| **lr & (PENDING | ACTIVE) == PENDING)
            .filter(|lr| vmcr >> (**lr >> 60 & 1) & 1 != 0)
            .min_by_key(|lr| **lr >> 48 & 0xff)?;
        let priority = (*lr >> 48 & 0xff) as u8;
        if priority >= mask || limit.is_some_and(|limit| priority >= limit) {
            return None;
        }
        let intid = *lr as u16;
        *lr &= !PENDING;
        if intid < 8192 || lpis_stay {
            *lr |= ACTIVE;
        }
        cpu.running.push((intid, priority));
        self.settle();
        Some(intid)
    }

    /// Ends the interrupt that was acknowledged last. Returns its number.
    pub(crate) fn end(&mut self, vcpu: usize) -> Option<u16> {
        let intid = self.end_quietly(vcpu);
        self.settle();
        intid
    }

    /// Ends the interrupt that was acknowledged last, while the kernel does not hear of it yet.
    pub(crate) fn end_quietly(&mut self, vcpu: usize) -> Option<u16> {
        let cpu = &mut self.cpus[vcpu];
        assert!(cpu.loaded);
        let (intid, _) = cpu.running.pop()?;
        if cpu.vmcr & VMCR_EOI_SPLIT == 0 || intid >= 8192 {
            self.deactivate(vcpu, intid);
        }
        Some(intid)
    }

    /// Writes `ICC_DIR_EL1`.
    pub(crate) fn write_dir(&mut self, vcpu: usize, intid: u16) {
        if self.cpus[vcpu].hcr & Hcr::TDIR.bits() != 0 {
            let (cpu, host) = (&mut self.cpus[vcpu], &mut self.outside);
            self.vgic.take_back(vcpu, cpu, host);
            let vmcr = self.cpus[vcpu].vmcr;
            self.vgic
                .deactivate(vcpu, Intid::new(intid), vmcr, &mut self.outside);
            self.refill(vcpu);
        } else {
            self.deactivate(vcpu, intid);
        }
        self.settle();
    }

    fn deactivate(&mut self, vcpu: usize, intid: u16) {
        let cpu = &mut self.cpus[vcpu];
        let mut lrs = cpu.lrs.iter_mut();
        let lr = lrs.find(|lr| **lr as u16 == intid && **lr & ACTIVE != 0);
        match lr {
            Some(lr) => {
                *lr &= !ACTIVE;
                if *lr & HW != 0 {
                    assert_eq!(*lr >> 32 & 0x1fff, u64::from(TIMER.get()));
                    cpu.timer_active = false;
                }
            }
            None if intid < 8192 => cpu.hcr += 1 << 27,
            None => {}
        }
    }

    /// Takes and ends one interrupt.
    pub(crate) fn take(&mut self, vcpu: usize) -> Option<u16> {
        let intid = self.acknowledge(vcpu)?;
        assert_eq!(self.end(vcpu), Some(intid));
        Some(intid)
    }

    /// Turns the distributor on, and all interrupts of a kind.
    pub(crate) fn enable_all(&mut self) {
        self.gicd(0, 3);
        for vcpu in 0..self.cpus.len() {
            self.gicr(vcpu, 0x1_0100, !0);
        }
        for word in 1..4 {
            self.gicd(0x100 + word * 4, !0);
        }
    }
}
