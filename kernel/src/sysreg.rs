//! System registers that trap: what the guest learns of its processor, and what it may not touch.

use crate::exit::{self, Exception, Next};
use crate::pcpu::Running;
use arch::syndrome::{SysReg, register};
use arch::sysreg;
use kernel::features;
use vgic::Group;

/// ICC_SGI1R_EL1, ICC_ASGI1R_EL1 and ICC_SGI0R_EL1.
const SGI1R: u32 = register(3, 0, 12, 11, 5);
const ASGI1R: u32 = register(3, 0, 12, 11, 6);
const SGI0R: u32 = register(3, 0, 12, 11, 7);
/// ICC_DIR_EL1, which is trapped while interrupts are active outside the list registers.
const DIR: u32 = register(3, 0, 12, 11, 1);
/// DC ISW, CSW and CISW.
const DC_ISW: u32 = register(1, 0, 7, 6, 2);
const DC_CSW: u32 = register(1, 0, 7, 10, 2);
const DC_CISW: u32 = register(1, 0, 7, 14, 2);
const SCTLR: u32 = register(3, 0, 1, 0, 0);
const ACTLR: u32 = register(3, 0, 1, 0, 1);
const OSLAR: u32 = register(2, 0, 1, 0, 4);
const OSLSR: u32 = register(2, 0, 1, 1, 4);
const OSDLR: u32 = register(2, 0, 1, 3, 4);
const DBGPRCR: u32 = register(2, 0, 1, 4, 4);
const MDRAR: u32 = register(2, 0, 1, 0, 0);
const MDSCR: u32 = register(2, 0, 0, 2, 2);
const ICC_SRE: u32 = register(3, 0, 12, 12, 5);

/// OSLSR_EL1: the lock is implemented (OSLM), and its state (D24.3.27).
const OSLSR_IMPLEMENTED: u64 = 1 << 3;
const OSLSR_LOCKED: u64 = 1 << 1;

/// MDSCR_EL1: SS, TDCC, KDE and MDE, which a guest may set (D24.3.20).
const MDSCR_OWN: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;

/// ICC_SRE_EL1: system registers, and nothing else (12.2.24).
const SRE_ONLY: u64 = 0b111;

/// Handles a trapped access.
pub(crate) fn handle(running: &mut Running<'_>, access: SysReg) -> Next {
    if let Some(answer) = identification(running, access) {
        return read(running, access, answer);
    }
    match access.register {
        SGI1R | ASGI1R | SGI0R if !access.read => {
            let value = running.state.frame.register(access.rt);
            // With one security state, ICC_ASGI1R_EL1 does what ICC_SGI0R_EL1 does (12.2.5).
            let group = match access.register {
                SGI1R => Group::One,
                _ => Group::Zero,
            };
            running.domain.interrupts.sgi(running, value, group);
            Next::Skip
        }
        DIR if !access.read => {
            let value = running.state.frame.register(access.rt);
            running.domain.interrupts.deactivate(running, value);
            Next::Skip
        }
        DC_ISW | DC_CSW | DC_CISW if !access.read => maintain_by_set_way(running),
        ACTLR => read_or_ignore(running, access, 0),
        ICC_SRE => read_or_ignore(running, access, SRE_ONLY),
        OSLAR if !access.read => {
            running.state.os_lock = running.state.frame.register(access.rt) & 1 != 0;
            Next::Skip
        }
        OSLSR if access.read => {
            let locked = if running.state.os_lock {
                OSLSR_LOCKED
            } else {
                0
            };
            read(running, access, OSLSR_IMPLEMENTED | locked)
        }
        OSDLR | DBGPRCR => read_or_ignore(running, access, 0),
        MDRAR if access.read => read(running, access, 0),
        MDSCR => debug_control(running, access),
        debug if is_breakpoint(debug) => breakpoint(running, access),
        debug if debug >> 20 == 2 => read_or_ignore(running, access, 0),
        _ if !access.read && running.state.watches_caches => write_watched(running, access),
        _ => Next::Inject(Exception::Undefined),
    }
}

/// Maintenance by set and way reaches only the caches of the pCPU that does it, and the vCPU may
/// move: all of the domain's memory is cleaned and invalidated by address instead, once. It has to
/// be done again only after the guest has turned its caches on or off, which is watched for by
/// trapping writes to its translation registers (HCR_EL2.TVM).
fn maintain_by_set_way(running: &mut Running<'_>) -> Next {
    if running.state.watches_caches {
        return Next::Skip;
    }
    if !running.domain.clean_some() {
        // The guest tries again, so that interrupts are taken in between.
        return Next::Resume;
    }
    running.state.watches_caches = true;
    exit::watch_caches(true);
    Next::Skip
}

/// SCTLR_EL1.M and C: the guest's memory is cached.
const SCTLR_CACHED: u64 = 0b101;

/// Carries out a write that was trapped to see caches go on and off.
fn write_watched(running: &mut Running<'_>, access: SysReg) -> Next {
    let value = running.state.frame.register(access.rt);
    macro_rules! registers {
        ($($op1:literal $crn:literal $crm:literal $op2:literal $name:literal,)*) => {
            match access.register {
                $(number if number == register(3, $op1, $crn, $crm, $op2) => {
                    sysreg::write!($name, value);
                })*
                _ => return Next::Inject(Exception::Undefined),
            }
        };
    }
    let cached = |sctlr: u64| sctlr & SCTLR_CACHED == SCTLR_CACHED;
    let toggles = access.register == SCTLR && cached(value) != cached(sysreg::read!("sctlr_el1"));
    if toggles && !running.domain.clean_some() {
        return Next::Resume;
    }
    registers! {
        0 1 0 0 "sctlr_el1",
        0 2 0 0 "ttbr0_el1",
        0 2 0 1 "ttbr1_el1",
        0 2 0 2 "tcr_el1",
        0 5 1 0 "afsr0_el1",
        0 5 1 1 "afsr1_el1",
        0 5 2 0 "esr_el1",
        0 6 0 0 "far_el1",
        0 10 2 0 "mair_el1",
        0 10 3 0 "amair_el1",
        0 13 0 1 "contextidr_el1",
    }
    if toggles && cached(value) {
        running.state.watches_caches = false;
        exit::watch_caches(false);
    }
    Next::Skip
}

/// Returns whether a register is of a breakpoint or a watchpoint: op0 2, op1 0, CRn 0, op2 4 to 7.
fn is_breakpoint(number: u32) -> bool {
    let any = register(0, 0, 0, 15, 3);
    number & !any == register(2, 0, 0, 0, 4)
}

/// Gives the vCPU debug registers of its own, at its first use of them.
fn use_debug(running: &mut Running<'_>) {
    if !running.state.debugs {
        running.state.debugs = true;
        running.state.debug.restore();
    }
}

fn debug_control(running: &mut Running<'_>, access: SysReg) -> Next {
    if access.read {
        return read(running, access, sysreg::read!("mdscr_el1"));
    }
    use_debug(running);
    let value = running.state.frame.register(access.rt);
    sysreg::write!("mdscr_el1", value & MDSCR_OWN);
    Next::Skip
}

fn breakpoint(running: &mut Running<'_>, access: SysReg) -> Next {
    let value = running.state.frame.register(access.rt);
    let crm = access.register >> 1 & 0xf;
    let op2 = access.register >> 17 & 7;
    let Some(register) = running.state.debug.register(op2, crm) else {
        return Next::Inject(Exception::Undefined);
    };
    if access.read {
        let value = *register;
        return read(running, access, value);
    }
    *register = value;
    running.state.debugs = true;
    running.state.debug.restore();
    Next::Skip
}

fn read(running: &mut Running<'_>, access: SysReg, value: u64) -> Next {
    if !access.read {
        return Next::Inject(Exception::Undefined);
    }
    running.state.frame.set_register(access.rt, value);
    Next::Skip
}

fn read_or_ignore(running: &mut Running<'_>, access: SysReg, value: u64) -> Next {
    if access.read {
        running.state.frame.set_register(access.rt, value);
    }
    Next::Skip
}

/// What the feature registers of a pCPU say to guests (op0 3, op1 0, CRn 0): by CRm, from 1 to 7, and op2.
pub(crate) type Features = [[u64; 8]; 7];

/// Returns what a feature register says to guests, or `None` if it is none.
fn identification(running: &Running<'_>, access: SysReg) -> Option<u64> {
    let group = register(3, 0, 0, 0, 0);
    if access.register & !register(0, 0, 0, 7, 7) != group {
        return None;
    }
    let crm = (access.register >> 1 & 7) as usize;
    let op2 = (access.register >> 17 & 7) as usize;
    // SAFETY: on this pCPU; a number is copied out.
    let features = unsafe { &running.cpu.local().features };
    Some(features.get(crm.wrapping_sub(1))?[op2])
}

/// Reads the feature registers of this pCPU. Those that no version of the architecture has defined read
/// zero.
pub(crate) fn read_features() -> Features {
    macro_rules! all {
        ($($crm:literal)*) => {
            [$(all!(@row $crm, 0 1 2 3 4 5 6 7)),*]
        };
        (@row $crm:literal, $($op2:literal)*) => {
            [$(features::shown($crm, $op2, sysreg::read!(concat!("s3_0_c0_c", $crm, "_", $op2)))),*]
        };
    }
    all!(1 2 3 4 5 6 7)
}
