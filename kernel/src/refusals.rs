//! What devices refused EL2, by a synchronous external abort: counted where it happens, and told when
//! the pCPU next takes interrupts, as whoever made the access may hold any lock.

use crate::{domain, machine, pcpu, physical, sched};
use arch::containment;
use arch::entry::Fault;
use arch::gic::{self, Affinity};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use spin::Mutex;

/// The SGI by which a pCPU tells itself.
pub(crate) const REPORT: u8 = 14;

/// How many accesses were refused, and where the last one went.
static COUNT: AtomicU32 = AtomicU32::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

/// When the last line was written.
static TOLD: Mutex<Option<u64>> = Mutex::new(None);

/// Handles a synchronous exception that EL2 took; returns whether that is all.
#[unsafe(no_mangle)]
extern "C" fn isthmus_abort(fault: &mut Fault) -> bool {
    let Some(refused) = containment::contain(fault) else {
        return false;
    };
    let Some(address) = refused.address else {
        // A guest's tables, which it hears of as of any fault.
        return true;
    };
    // Relaxed: each is of use by itself.
    LAST.store(address, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(cpu) = pcpu::try_this() {
        gic::cpu::send_sgi(REPORT, Affinity::from_mpidr(cpu.mpidr));
    }
    true
}

/// Returns how many accesses were refused since the machine started.
pub(crate) fn count() -> u32 {
    COUNT.load(Ordering::Relaxed)
}

/// Says what was refused, once in a second at most.
#[cold]
pub(crate) fn report() {
    let now = sched::now();
    {
        let mut told = TOLD.lock();
        let second = machine::get().frequency;
        if told.is_some_and(|told| now.wrapping_sub(told) < second) {
            return;
        }
        *told = Some(now);
    }
    let (count, address) = (count(), LAST.load(Ordering::Relaxed));
    let at = physical::get().and_then(|physical| physical.function_at(address));
    let Some((sbdf, owner)) = at else {
        warning!("PCI: {address:#x} answers with an external abort ({count} so far)");
        return;
    };
    let mut told = false;
    domain::each(|domain| {
        if Some(domain.id) == owner {
            let name = domain.name();
            warning!("domain {name}: {sbdf} answers with an external abort ({count} so far)");
            told = true;
        }
    });
    if !told {
        warning!("PCI {sbdf} answers with an external abort ({count} so far)");
    }
}
