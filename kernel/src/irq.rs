//! Physical interrupts.

use crate::interrupts::{Interrupts, PHYSICAL_TIMER, VIRTUAL_TIMER};
use crate::pcpu::Pcpu;
use crate::vcpu::VcpuRef;
use crate::{bus, machine, panic, physical, refusals, sched, terminal};
use arch::gic::cpu;
use arch::gic::{IntId, Kind};

/// The EL2 physical timer's interrupt, and the maintenance interrupt of the virtual CPU interface
/// (BSA, table 3).
pub(crate) const HYPERVISOR_TIMER: u32 = 26;
pub(crate) const MAINTENANCE: u32 = 25;

/// LPIs are numbered from here (Arm IHI 0069, 2.2).
const FIRST_LPI: u32 = 8192;

/// Handles all interrupts that are pending for this pCPU.
pub(crate) fn handle(cpu: &'static Pcpu) {
    while let Some(id) = cpu::acknowledge() {
        cpu::drop_priority(id);
        match id.get() {
            // Stays active until the guest ends the virtual one.
            VIRTUAL_TIMER | PHYSICAL_TIMER => timer(cpu, id),
            number => {
                handle_own(cpu, number);
                if id.kind() != Kind::Lpi {
                    cpu::deactivate(id);
                }
            }
        }
    }
}

fn handle_own(cpu: &'static Pcpu, number: u32) {
    match number {
        HYPERVISOR_TIMER => sched::timer_expired(cpu),
        MAINTENANCE => {
            if let Some(vcpu) = loaded(cpu) {
                Interrupts::maintenance(vcpu.get());
            }
        }
        number if number == u32::from(sched::KICK) => cpu.set_resched(),
        number if number == u32::from(refusals::REPORT) => refusals::report(),
        number if number == u32::from(panic::STOP) => panic::park(),
        number if Some(number) == machine::get().uart => terminal::interrupt(),
        number if number >= FIRST_LPI => bus::message_interrupt(number),
        number
            if physical::get().is_some_and(|physical| {
                physical.interrupt(number) || physical.lines.interrupt(number)
            }) => {}
        number => warning!("interrupt {number} is nobody's"),
    }
}

/// Gives a timer's interrupt to the loaded vCPU: only its timers run.
fn timer(cpu: &Pcpu, id: IntId) {
    match loaded(cpu) {
        Some(vcpu) => {
            let domain = &vcpu.domain;
            domain.interrupts.timer(domain, vcpu.get(), id.get());
            sched::notify(&vcpu);
        }
        None => cpu::deactivate(id),
    }
}

fn loaded(cpu: &Pcpu) -> Option<VcpuRef> {
    // SAFETY: on this pCPU; not held beyond the clone.
    unsafe { cpu.local().loaded.clone() }
}
