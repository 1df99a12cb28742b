//! Why a guest stopped, and how it goes on.

use crate::domain::Domain;
use crate::pcpu::{self, Pcpu, Running};
use crate::vcpu::{State, Vcpu, request};
use crate::{irq, lifecycle, mmio, sched, smccc, sysreg as trapped};
use arch::context::Simd;
use arch::frame::Frame;
use arch::syndrome::{self, DataAbort, SysReg};
use arch::{asm, sysreg};
use core::sync::atomic::Ordering;

/// HCR_EL2 while a guest runs (Arm ARM D24.2.53).
#[rustfmt::skip]
pub(crate) const HCR: u64 =
      1 << 0   // VM: stage 2
    | 1 << 1   // SWIO: invalidation by set/way cleans too
    | 1 << 2   // PTW: no stage 1 walks through Device memory
    | 1 << 3   // FMO: FIQs to EL2, virtual ones to the guest
    | 1 << 4   // IMO: IRQs likewise
    | 1 << 5   // AMO: SErrors likewise
    | 1 << 9   // FB: maintenance reaches every pCPU that the vCPU may move to
    | 1 << 10  // BSU: barriers reach the inner shareable domain, likewise
    | 1 << 13  // TWI: WFI gives the pCPU to others
    | 1 << 18  // TID3: feature registers are ours to answer
    | 1 << 19  // TSC: SMC is ours to answer
    | 1 << 20  // TIDCP: no implementation defined registers
    | 1 << 21  // TACR: nor the auxiliary control register
    | 1 << 22  // TSW: maintenance by set/way
    | 1 << 31  // RW: EL1 is AArch64
    | 1 << 35  // TLOR: no limited ordering regions
    | 1 << 36; // TERR: no error record registers

/// HCR_EL2.TVM: writes to EL1's translation registers trap.
const HCR_TVM: u64 = 1 << 26;

/// HCR_EL2.VSE: a virtual SError is pending.
const HCR_VSE: u64 = 1 << 8;

/// ISR_EL1.A: a physical SError is pending.
pub(crate) const ISR_SERROR: u64 = 1 << 8;

/// CPTR_EL2 (D24.2.32): RES1 bits, and what is trapped: trace, activity monitors, SVE,
/// SME; FP and SIMD until used.
const CPTR_BASE: u64 = 0x33ff & !CPTR_TFP | 1 << 20 | 1 << 30;
const CPTR_TFP: u64 = 1 << 10;

/// MDCR_EL2 (D24.2.93): the PMU, profiling, tracing and the debug registers are trapped.
const MDCR: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19;

/// How a vCPU goes on after its exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// After the instruction that exited.
    Skip,
    /// Where its frame says: at the instruction that exited, or wherever a handler put it.
    Resume,
    /// In its guest's handler of this exception.
    Inject(Exception),
}

/// An exception that a guest gets instead of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exception {
    /// The instruction is undefined.
    Undefined,
    /// A synchronous external abort on the access at this virtual address.
    DataAbort(u64),
    /// A synchronous external abort on the instruction fetch at this virtual address.
    InstructionAbort(u64),
}

/// Handles a synchronous exit with this syndrome, and returns the frame to enter.
type Handler = extern "C" fn(*mut Frame, esr: u64) -> *mut Frame;

/// Makes a table of handlers by exception class. Each is a function of its own, which saves and restores no
/// more registers than it needs.
macro_rules! by_class {
    (_ => $rest:expr, $($class:literal => $handler:expr,)*) => {{
        by_class!(@entry rest, $rest);
        let mut table: [Handler; 64] = [rest; 64];
        $({
            by_class!(@entry entry, $handler);
            table[$class] = entry;
        })*
        table
    }};
    (@entry $name:ident, $handler:expr) => {
        extern "C" fn $name(frame: *mut Frame, esr: u64) -> *mut Frame {
            handle(frame, esr, $handler)
        }
    };
}

/// The handlers of synchronous exits, by exception class (ESR_EL2.EC, D24.2.40).
#[unsafe(no_mangle)]
#[rustfmt::skip]
static isthmus_synchronous: [Handler; 64] = by_class! {
    // Also SVE, SME and pointer authentication, which are hidden from guests.
    _    => |_, _| Next::Inject(Exception::Undefined),
    0x01 => wait,
    0x07 => |running, _| use_simd(running),
    0x16 => |running, esr| smccc::handle(running, syndrome::immediate(esr)),
    0x17 => |running, _| smccc::smc(running),
    0x18 => |running, esr| trapped::handle(running, SysReg::decode(esr)),
    0x20 => |_, _| Next::Inject(Exception::InstructionAbort(sysreg::read!("far_el2"))),
    0x24 => |running, esr| mmio::data_abort(running, DataAbort::decode(esr)),
};

/// Handles interrupts, and returns the frame to enter.
#[unsafe(no_mangle)]
extern "C" fn isthmus_interrupt(frame: *mut Frame) -> *mut Frame {
    let (cpu, domain, vcpu) = exited(frame);
    irq::handle(cpu);
    leave(cpu, domain, vcpu)
}

/// Handles a system error, and returns the frame to enter.
#[unsafe(no_mangle)]
extern "C" fn isthmus_serror(frame: *mut Frame) -> *mut Frame {
    handle(frame, 0, |running, _| {
        lifecycle::serror(&running.reference());
        Next::Resume
    })
}

/// Returns who has exited where.
#[inline(always)]
fn exited<'a>(frame: *mut Frame) -> (&'static Pcpu, &'a Domain, &'a Vcpu) {
    let cpu = pcpu::this();
    // SAFETY: on this pCPU. The frame is the loaded vCPU's, which stays loaded, and so its domain alive,
    // until the scheduler changes that, which happens after the last use of these references.
    unsafe {
        let loaded = cpu.local().loaded.as_ref().expect("a guest was running");
        let domain = &*alloc::sync::Arc::as_ptr(&loaded.domain);
        (cpu, domain, Vcpu::of(frame))
    }
}

/// Handles an exit with this syndrome by `handler`, and returns the frame to enter.
#[inline(always)]
fn handle(
    frame: *mut Frame,
    esr: u64,
    handler: impl FnOnce(&mut Running<'_>, u64) -> Next,
) -> *mut Frame {
    let (cpu, domain, vcpu) = exited(frame);
    let mut running = Running {
        cpu,
        domain,
        vcpu,
        // SAFETY: the vCPU is loaded on this pCPU, and there is one exit at a time.
        state: unsafe { &mut *vcpu.state() },
    };
    match handler(&mut running, esr) {
        Next::Skip => running.state.frame.skip_exited(esr),
        Next::Resume => {}
        Next::Inject(exception) => inject(&mut running.state.frame, exception, esr),
    }
    leave(cpu, domain, vcpu)
}

/// Returns the frame to enter after an exit: the one that exited, unless something else comes first.
#[inline(always)]
fn leave(cpu: &'static Pcpu, domain: &Domain, vcpu: &Vcpu) -> *mut Frame {
    // Relaxed: set by this pCPU, or by who then interrupts it.
    let requests = vcpu.requests.load(Ordering::Relaxed);
    if cpu.resched.load(Ordering::Relaxed) || requests & !request::INTERRUPTS != 0 {
        return sched::schedule(cpu);
    }
    if requests != 0 {
        domain.interrupts.refresh(domain, vcpu);
    }
    // SAFETY: only the address is made; the vCPU is still loaded.
    unsafe { &raw mut (*vcpu.state()).frame }
}

/// WFI: the vCPU waits until it has an interrupt, masked or not (D1.6.2). WFE: it need not wait.
fn wait(running: &mut Running<'_>, esr: u64) -> Next {
    if syndrome::is_for_event(esr) {
        return Next::Skip;
    }
    running.state.frame.skip_exited(esr);
    sched::block(running);
    if running
        .domain
        .interrupts
        .pending(running.domain, running.vcpu)
    {
        sched::notify(&running.reference());
    }
    Next::Resume
}

/// Gives the vCPU its FP and SIMD registers, at its first use of them since it was loaded.
fn use_simd(running: &mut Running<'_>) -> Next {
    sysreg::write!("cptr_el2", CPTR_BASE);
    asm::isb();
    running.state.simd.restore();
    // SAFETY: on this pCPU; a flag is set.
    unsafe { running.cpu.local().simd_live = true };
    Next::Resume
}

/// Lets `f` read and change the FP and SIMD registers of a vCPU, wherever they are.
pub(crate) fn with_simd<R>(running: &mut Running<'_>, f: impl FnOnce(&mut Simd) -> R) -> R {
    // SAFETY: on this pCPU; a flag is read.
    let live = unsafe { running.cpu.local().simd_live };
    let simd = &mut running.state.simd;
    if live {
        simd.save();
    }
    let result = f(simd);
    if live {
        simd.restore();
    }
    result
}

/// Traps writes to the loaded vCPU's translation registers, or lets them through.
pub(crate) fn watch_caches(watch: bool) {
    let hcr = sysreg::read!("hcr_el2") & !HCR_TVM;
    sysreg::write!("hcr_el2", if watch { hcr | HCR_TVM } else { hcr });
    asm::isb();
}

/// Returns whether a virtual SError is pending for the loaded vCPU.
pub(crate) fn serror_pending() -> bool {
    sysreg::read!("hcr_el2") & HCR_VSE != 0
}

/// Returns MDCR_EL2.HPMN: all event counters, as fewer than one is not allowed (PMCR_EL0.N).
fn event_counters() -> u64 {
    match sysreg::read!("id_aa64dfr0_el1") >> 8 & 0xf {
        0 | 0xf => 0,
        _ => sysreg::read!("pmcr_el0") >> 11 & 0x1f,
    }
}

/// Sets what traps of a vCPU that is about to be loaded, or of none.
pub(crate) fn set_traps(state: Option<&State>) {
    let mut hcr = HCR;
    if let Some(state) = state {
        hcr |= if state.watches_caches { HCR_TVM } else { 0 };
        hcr |= if state.serror_pending { HCR_VSE } else { 0 };
    }
    sysreg::write!("hcr_el2", hcr);
    sysreg::write!("cptr_el2", CPTR_BASE | CPTR_TFP);
    sysreg::write!("mdcr_el2", MDCR | event_counters());
    if has_ras() {
        // VDISR_EL2: what an ESB of the guest before left for it to read.
        sysreg::write!("s3_4_c12_c1_1", 0);
    }
}

/// FEAT_RAS, which guests are not told of.
fn has_ras() -> bool {
    sysreg::read!("id_aa64pfr0_el1") >> 28 & 0xf != 0
}

/// Makes a virtual SError pending for the loaded vCPU.
pub(crate) fn pend_serror() {
    if has_ras() {
        // VSESR_EL2: its syndrome says nothing more.
        sysreg::write!("s3_4_c5_c2_3", 0);
    }
    sysreg::write!("hcr_el2", sysreg::read!("hcr_el2") | HCR_VSE);
    asm::isb();
}

/// Completes the load or store that a device model has answered.
pub(crate) fn answer(running: &mut Running<'_>) {
    mmio::answer(running);
}

/// PSTATE bits (C5.2.18), as SPSR_EL2 has them.
mod pstate {
    pub(super) const MODE: u64 = 0x1f;
    pub(super) const EL1H: u64 = 0x05;
    pub(super) const EL1T: u64 = 0x04;
    pub(super) const AARCH32: u64 = 0x10;
    pub(super) const DAIF: u64 = 0x3c0;
    pub(super) const SSBS: u64 = 1 << 12;
    pub(super) const PAN: u64 = 1 << 22;
    pub(super) const DIT: u64 = 1 << 24;
    pub(super) const NZCV: u64 = 0xf << 28;
}

/// SCTLR_EL1.SPAN and DSSBS (D24.2.174).
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;

/// The instruction has 32 bits (ESR_ELx.IL); it is a store (ISS.WnR).
const IL: u64 = 1 << 25;
const WNR: u64 = 1 << 6;

/// Synchronous external abort, not on a table walk (ISS.DFSC, ISS.IFSC).
const FAULT_EXTERNAL: u64 = 0x10;

/// The syndrome of an access that was not done, for [`inject`]: its instruction has 32 bits.
pub(crate) const fn access_syndrome(store: bool) -> u64 {
    IL | if store { WNR } else { 0 }
}

/// Makes the loaded vCPU take an exception to EL1 (D1.3.5). `own` is EL2's syndrome of what the guest
/// did.
#[cold]
#[inline(never)]
pub(crate) fn inject(frame: &mut Frame, exception: Exception, own: u64) {
    take(frame, exception, own, FAULT_EXTERNAL);
}

/// Makes the loaded vCPU take a fault of stage 1 with this status, instead of the access at this address.
#[cold]
pub(crate) fn inject_fault(frame: &mut Frame, address: u64, status: u8, store: bool) {
    let exception = Exception::DataAbort(address);
    take(frame, exception, access_syndrome(store), status.into());
}

/// Takes an exception; an abort with this status (ISS.DFSC, ISS.IFSC).
fn take(frame: &mut Frame, exception: Exception, own: u64, status: u64) {
    let old = frame.pstate;
    let mode = old & pstate::MODE;
    let (offset, same_level) = match mode {
        pstate::EL1H => (0x200, true),
        pstate::EL1T => (0x000, true),
        _ if mode & pstate::AARCH32 == 0 => (0x400, false),
        _ => (0x600, false),
    };
    let class = |lower: u64| (if same_level { lower + 1 } else { lower }) << 26;
    let esr = match exception {
        Exception::Undefined => IL,
        Exception::DataAbort(address) => {
            sysreg::write!("far_el1", address);
            class(0x24) | own & (IL | WNR) | status
        }
        Exception::InstructionAbort(address) => {
            sysreg::write!("far_el1", address);
            class(0x20) | IL | status
        }
    };
    let sctlr = sysreg::read!("sctlr_el1");
    let mut new = old & (pstate::NZCV | pstate::DIT) | pstate::DAIF | pstate::EL1H;
    let pan_exists = sysreg::read!("id_aa64mmfr1_el1") >> 20 & 0xf != 0;
    if pan_exists && (old & pstate::PAN != 0 || sctlr & SCTLR_SPAN == 0) {
        new |= pstate::PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= pstate::SSBS;
    }
    sysreg::write!("esr_el1", esr);
    sysreg::write!("elr_el1", frame.pc);
    sysreg::write!("spsr_el1", old);
    frame.pc = sysreg::read!("vbar_el1").wrapping_add(offset);
    frame.pstate = new;
}
