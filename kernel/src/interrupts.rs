//! A domain's interrupt controller, and how it gets into the machine's list registers.
//!
//! List registers stay in hardware while a vCPU is loaded. `vgic` says by `kick` when they are out of
//! date; before the vCPU's guest is entered again they are taken back and filled anew (`refresh`).

use crate::domain::Domain;
use crate::machine;
use crate::pcpu::{self, Running};
use crate::sched;
use crate::vcpu::{State, Vcpu, request};
use arch::gic::{self, IntId, Local, virt};
use arch::sysreg;
use kernel::layout;
use spin::Mutex;
use vgic::{BadAddress, Config, Frame, Group, Host, Intid, OutOfMemory, Vgic};

/// The EL1 virtual timer's interrupt and the EL1 physical timer's (BSA, table 3).
pub(crate) const VIRTUAL_TIMER: u32 = 27;
pub(crate) const PHYSICAL_TIMER: u32 = 30;
const TIMERS: [u32; 2] = [VIRTUAL_TIMER, PHYSICAL_TIMER];

/// ITS commands that are carried out in one go.
const COMMANDS: usize = 128;

/// ICH_HCR_EL2.En.
const HCR_EN: u64 = 1;

/// A domain's interrupt controller.
pub(crate) struct Interrupts {
    vgic: Mutex<Vgic>,
}

/// What `vgic` asks for, while it is locked.
struct Kernel<'a> {
    domain: &'a Domain,
    /// The lines of the PCI bus whose interrupts the guest has ended, a bit for each.
    ended: u32,
}

impl<'a> Kernel<'a> {
    const fn new(domain: &'a Domain) -> Self {
        Self { domain, ended: 0 }
    }

    /// Does what must not be done while `vgic` is locked.
    #[inline]
    fn finish(self) {
        if self.ended != 0 {
            self.domain.lines_ended(self.ended);
        }
    }
}

impl Host for Kernel<'_> {
    fn kick(&mut self, vcpu: usize) {
        if let Some(vcpu) = self.domain.vcpus.get(vcpu) {
            vcpu.request(request::INTERRUPTS);
            if !is_here(self.domain, vcpu) {
                sched::notify(&self.domain.reference(vcpu.index));
            }
        }
    }

    fn read_guest(&mut self, ipa: u64, bytes: &mut [u8]) -> Result<(), BadAddress> {
        self.domain.memory.read(ipa, bytes).map_err(|_| BadAddress)
    }

    fn write_guest(&mut self, ipa: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        self.domain.memory.write(ipa, bytes).map_err(|_| BadAddress)
    }

    fn line(&mut self, vcpu: usize, intid: Intid) -> Option<bool> {
        let vcpu = self.domain.vcpus.get(vcpu)?;
        if !is_here(self.domain, vcpu) {
            return None;
        }
        line(u32::from(intid.get()))
    }

    fn ended(&mut self, intid: Intid) -> bool {
        let line = u32::from(intid.get()).wrapping_sub(32 + layout::INTX_SPI);
        let is_intx = line < layout::INTX_SPIS;
        if is_intx {
            self.ended |= 1 << line;
        }
        is_intx
    }
}

/// Returns whether the line of one of the timers of this pCPU is high.
fn line(number: u32) -> Option<bool> {
    // CNT*_CTL_EL0: ENABLE and ISTATUS, not IMASK.
    let control = match number {
        VIRTUAL_TIMER => sysreg::read!("cntv_ctl_el0"),
        PHYSICAL_TIMER => sysreg::read!("cntp_ctl_el0"),
        _ => return None,
    };
    Some(control & 0b111 == 0b101)
}

/// Returns whether the vCPU runs on this pCPU: then its requests are seen on the way out.
fn is_here(domain: &Domain, vcpu: &Vcpu) -> bool {
    // SAFETY: on this pCPU; not held beyond the comparison.
    let loaded = unsafe { pcpu::this().local().loaded.as_ref() };
    let loaded = loaded.is_some_and(|loaded| {
        core::ptr::eq(&raw const *loaded.domain, domain) && loaded.index == vcpu.index
    });
    loaded && vcpu.run.lock().activity == crate::vcpu::Activity::Running
}

fn local(number: u32) -> Local {
    Local::new(IntId::new(number)).expect("a PPI")
}

impl Interrupts {
    /// Makes the controller of a domain.
    pub(crate) fn new(affinities: &[u64], its: bool) -> Result<Self, OutOfMemory> {
        let mut vgic = Vgic::new(&Config {
            affinities,
            spis: layout::SPIS,
            its,
            device_bits: 16,
            vtr: machine::get().vtr,
        })?;
        map_timers(&mut vgic);
        Ok(Self {
            vgic: Mutex::new(vgic),
        })
    }

    /// Puts everything into its state after reset. No vCPU is loaded.
    pub(crate) fn reset(&self) {
        let mut vgic = self.vgic.lock();
        vgic.reset();
        map_timers(&mut vgic);
    }

    /// Answers a read of the guest's.
    pub(crate) fn read(&self, running: &Running<'_>, frame: Frame, offset: u64, size: u64) -> u64 {
        if Vgic::shows_state(frame, offset) {
            self.look(running);
        }
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(running.domain);
        if frame == Frame::Its && vgic.has_commands() {
            vgic.process(COMMANDS, &mut host);
        }
        vgic.read(frame, offset, size, &mut host)
    }

    /// Takes back what the list registers hold, for a register that shows it.
    #[cold]
    fn look(&self, running: &Running<'_>) {
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(running.domain);
        take_back(&mut vgic, running.vcpu, &mut host);
        drop(vgic);
        host.finish();
    }

    /// Carries out a write of the guest's.
    pub(crate) fn write(
        &self,
        running: &Running<'_>,
        frame: Frame,
        offset: u64,
        size: u64,
        value: u64,
    ) {
        // Among these registers are those that end an interrupt.
        let shows_state = Vgic::shows_state(frame, offset);
        if shows_state {
            self.look(running);
        }
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(running.domain);
        vgic.write(frame, offset, size, value, &mut host);
        if vgic.has_commands() {
            vgic.process(COMMANDS, &mut host);
            if vgic.has_commands() {
                running.vcpu.request(request::INTERRUPTS);
            }
        }
        drop(vgic);
        if shows_state {
            host.finish();
        }
    }

    /// Carries out a write to one of the SGI registers.
    pub(crate) fn sgi(&self, running: &Running<'_>, value: u64, group: Group) {
        let mut host = Kernel::new(running.domain);
        self.vgic
            .lock()
            .sgi(running.vcpu.index, group, value, &mut host);
    }

    /// Carries out a trapped write to ICC_DIR_EL1.
    pub(crate) fn deactivate(&self, running: &Running<'_>, value: u64) {
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(running.domain);
        take_back(&mut vgic, running.vcpu, &mut host);
        let intid = Intid::new((value & 0xffff) as u16);
        vgic.deactivate(running.vcpu.index, intid, virt::read_vmcr(), &mut host);
        drop(vgic);
        host.finish();
    }

    /// Says that the timer's interrupt of the loaded vCPU was acknowledged.
    pub(crate) fn timer(&self, domain: &Domain, vcpu: &Vcpu, number: u32) {
        if line(number) != Some(true) {
            // The line has gone down meanwhile, or it was that of the vCPU before.
            gic::cpu::deactivate(IntId::new(number));
            return;
        }
        let mut host = Kernel::new(domain);
        self.vgic
            .lock()
            .set_level(vcpu.index, intid(number), true, &mut host);
    }

    /// Sets the line of an SPI, counted from 0.
    pub(crate) fn set_spi(&self, domain: &Domain, spi: u32, level: bool) {
        let mut host = Kernel::new(domain);
        self.vgic
            .lock()
            .set_level(0, intid(32 + spi), level, &mut host);
    }

    /// Takes a message from a device of the domain's bus.
    pub(crate) fn msi(
        &self,
        domain: &Domain,
        device: u32,
        event: u32,
    ) -> Result<(), vgic::Dropped> {
        let mut host = Kernel::new(domain);
        self.vgic.lock().msi(device, event, &mut host)
    }

    /// Returns whether the loaded vCPU has an interrupt to take, or the ITS commands that may give it one.
    pub(crate) fn pending(&self, domain: &Domain, vcpu: &Vcpu) -> bool {
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(domain);
        take_back(&mut vgic, vcpu, &mut host);
        let pending = vgic.has_commands() || vgic.pending(vcpu.index, virt::read_vmcr());
        drop(vgic);
        host.finish();
        pending
    }

    /// Handles the maintenance interrupt: the list registers of the loaded vCPU want attention.
    pub(crate) fn maintenance(vcpu: &Vcpu) {
        // The line is level; what it says is kept for `refresh`.
        virt::write_hcr(virt::read_hcr() & !HCR_EN);
        arch::asm::isb();
        vcpu.request(request::INTERRUPTS);
    }

    /// Brings the list registers of the loaded vCPU up to date.
    pub(crate) fn refresh(&self, domain: &Domain, vcpu: &Vcpu) {
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(domain);
        if vgic.has_commands() {
            vgic.process(COMMANDS, &mut host);
        }
        fill(&mut vgic, vcpu, &mut host);
        if vgic.has_commands() {
            // The rest follows at once, but with interrupts taken in between.
            let own = gic::Affinity::from_mpidr(pcpu::this().mpidr);
            gic::cpu::send_sgi(sched::KICK, own);
        }
        drop(vgic);
        host.finish();
    }

    /// Saves the virtual CPU interface of a vCPU that is about to be unloaded.
    pub(crate) fn save(&self, domain: &Domain, vcpu: &Vcpu, state: &mut State) {
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(domain);
        vgic.unload(vcpu.index, &mut Hardware, &mut host);
        let machine = machine::get();
        state.interface.save(&machine.interface);
        for number in TIMERS {
            if vgic.mapped_active(vcpu.index, intid(number)) {
                machine.set_active(pcpu::this(), local(number), false);
            }
        }
        drop(vgic);
        host.finish();
    }

    /// Loads the virtual CPU interface of a vCPU.
    pub(crate) fn restore(&self, domain: &Domain, vcpu: &Vcpu, state: &State) {
        let mut vgic = self.vgic.lock();
        let machine = machine::get();
        state.interface.restore(&machine.interface);
        for number in TIMERS {
            if vgic.mapped_active(vcpu.index, intid(number)) {
                machine.set_active(pcpu::this(), local(number), true);
            }
        }
        let mut host = Kernel::new(domain);
        fill(&mut vgic, vcpu, &mut host);
        drop(vgic);
        host.finish();
    }

    /// Empties the virtual CPU interface of a vCPU that does not come back.
    pub(crate) fn discard(&self, domain: &Domain, vcpu: &Vcpu) {
        let mut vgic = self.vgic.lock();
        let mut host = Kernel::new(domain);
        vgic.unload(vcpu.index, &mut Hardware, &mut host);
        let machine = machine::get();
        virt::init(&machine.interface);
        for number in TIMERS {
            machine.set_active(pcpu::this(), local(number), false);
        }
        drop(vgic);
        host.finish();
    }
}

fn map_timers(vgic: &mut Vgic) {
    for number in TIMERS {
        vgic.set_mapped(intid(number), Some(intid(number)));
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an INTID of ours has ten bits"
)]
fn intid(number: u32) -> Intid {
    Intid::new(number as u16)
}

/// The virtual CPU interface of this pCPU.
struct Hardware;

impl vgic::Interface for Hardware {
    fn hcr(&self) -> u64 {
        virt::read_hcr()
    }

    fn set_hcr(&mut self, value: u64) {
        virt::write_hcr(value);
    }

    fn vmcr(&self) -> u64 {
        virt::read_vmcr()
    }

    #[inline]
    fn read(&self, index: usize) -> u64 {
        virt::read_lr(index)
    }

    #[inline]
    fn write(&mut self, first: usize, lrs: &[u64]) {
        virt::write_lrs(first, lrs, machine::get().interface.list_registers);
    }
}

/// Takes back what the loaded vCPU has.
fn take_back(vgic: &mut Vgic, vcpu: &Vcpu, host: &mut Kernel<'_>) {
    if vgic.take_back(vcpu.index, &mut Hardware, host) {
        vcpu.request(request::INTERRUPTS);
    }
}

/// Fills the list registers of the loaded vCPU, as was asked for so far: who asks for more has the
/// lock.
fn fill(vgic: &mut Vgic, vcpu: &Vcpu, host: &mut Kernel<'_>) {
    let deactivate = vgic.refill(vcpu.index, &mut Hardware, host);
    for number in TIMERS {
        if deactivate & 1 << number != 0 {
            machine::get().set_active(pcpu::this(), local(number), false);
        }
    }
    if !vgic.has_commands() {
        vcpu.take(request::INTERRUPTS);
    }
}
