//! The registers of a redistributor (Arm IHI 0069, sections 12.10 and 12.11).

use crate::access::{Access, Width};
use crate::distributor::{self, Bank, IIDR};
use crate::gic::Gic;
use crate::irq::{Intid, PRIVATE};
use crate::{Host, lpi};

/// Where the frame of SGIs and PPIs begins, behind `RD_base`.
pub(crate) const SGI_FRAME: u64 = 0x1_0000;

const CTLR: u32 = 0x00;
const IIDR_OFFSET: u32 = 0x04;
const TYPER: u32 = 0x08;
const TYPER_HIGH: u32 = 0x0c;
const WAKER: u32 = 0x14;
const PROPBASER: u32 = 0x70;
const PROPBASER_HIGH: u32 = 0x74;
const PENDBASER: u32 = 0x78;
const PENDBASER_HIGH: u32 = 0x7c;
const ID: u32 = 0xffd0;
const SGI: u32 = 0x1_0000;
const END: u32 = 0x2_0000;

const CTLR_ENABLE_LPIS: u64 = 1 << 0;
/// `GICR_CTLR.CES`: LPIs can be disabled again.
const CTLR_CES: u64 = 1 << 1;
const CTLR_RWP: u64 = 1 << 3;
/// `GICR_WAKER.ProcessorSleep`, and `ChildrenAsleep` that follows it.
const WAKER_SLEEP: u64 = 1 << 1;
const WAKER_ASLEEP: u64 = 1 << 2;

/// Fields of `GICR_PROPBASER`: caches, address, shareability, IDbits.
const PROPBASER_FIELDS: u64 = 7 << 56 | 0x000f_ffff_ffff_f000 | 0xf80 | 0x1f;
/// Fields of `GICR_PENDBASER` without `PTZ`: caches, address, shareability.
const PENDBASER_FIELDS: u64 = 7 << 56 | 0x000f_ffff_ffff_0000 | 0xf80;
/// `GICR_PENDBASER.PTZ`: the table holds nothing. It reads zero, so it is kept aside.
pub(crate) const PENDBASER_ZERO: u64 = 1 << 62;

pub(crate) fn read(gic: &mut Gic, vcpu: usize, access: Access, host: &mut impl Host) -> u64 {
    let Some(cpu) = gic.cpus.get(vcpu) else {
        return 0;
    };
    if let SGI..END = access.offset {
        return read_private(gic, vcpu, access, host);
    }
    match access.offset {
        TYPER | TYPER_HIGH => access.read_wide(typer(gic, vcpu)),
        PROPBASER | PROPBASER_HIGH => access.read_wide(cpu.properties),
        PENDBASER | PENDBASER_HIGH => access.read_wide(cpu.pendings & !PENDBASER_ZERO),
        _ if !access.is_word() => 0,
        CTLR => ctlr(gic, vcpu),
        IIDR_OFFSET => u64::from(IIDR),
        WAKER if cpu.asleep => WAKER_SLEEP | WAKER_ASLEEP,
        offset @ ID..SGI => u64::from(distributor::identification(offset)),
        _ => 0,
    }
}

pub(crate) fn write(gic: &mut Gic, vcpu: usize, access: Access, value: u64, host: &mut impl Host) {
    let has_lpis = gic.has_lpis;
    let Some(cpu) = gic.cpus.get_mut(vcpu) else {
        return;
    };
    if let SGI..END = access.offset {
        return write_private(gic, vcpu, access, value, host);
    }
    match access.offset {
        CTLR if access.is_word() && has_lpis => {
            let enable = value & CTLR_ENABLE_LPIS != 0;
            match (cpu.lpis, enable) {
                (false, true) => lpi::enable(gic, vcpu, host),
                (true, false) => lpi::disable(gic, vcpu, host),
                _ => {}
            }
        }
        WAKER if access.is_word() => {
            let sleep = value & WAKER_SLEEP != 0;
            if core::mem::replace(&mut cpu.asleep, sleep) != sleep && sleep {
                gic.leave(vcpu, host);
            }
        }
        PROPBASER | PROPBASER_HIGH if has_lpis && !cpu.lpis => {
            let value = access.write_wide(cpu.properties, value);
            cpu.properties = shareable(value & PROPBASER_FIELDS);
        }
        PENDBASER | PENDBASER_HIGH if has_lpis && !cpu.lpis => {
            let value = access.write_wide(cpu.pendings, value);
            cpu.pendings = shareable(value & (PENDBASER_FIELDS | PENDBASER_ZERO));
        }
        _ => {}
    }
}

/// Replaces the reserved shareability by what is true of guest memory: inner shareable.
pub(crate) fn shareable(register: u64) -> u64 {
    if register >> 10 & 3 == 3 {
        register & !(2 << 10)
    } else {
        register
    }
}

fn ctlr(gic: &Gic, vcpu: usize) -> u64 {
    let Some(cpu) = gic.cpus.get(vcpu).filter(|_| gic.has_lpis) else {
        return 0;
    };
    let stale = gic.is_stale(vcpu, false);
    u64::from(cpu.lpis) | CTLR_CES | if stale { CTLR_RWP } else { 0 }
}

/// Returns `GICR_TYPER`: affinity, processor number, Last, PLPIS. All redistributors share one LPI
/// configuration table.
fn typer(gic: &Gic, vcpu: usize) -> u64 {
    let affinity = gic.cpus.get(vcpu).map_or(0, |cpu| u64::from(cpu.affinity));
    let last = vcpu + 1 == gic.cpus.len();
    affinity << 32 | (vcpu as u64 & 0xffff) << 8 | u64::from(last) << 4 | u64::from(gic.has_lpis)
}

// The frame of SGIs and PPIs.

fn read_private(gic: &mut Gic, vcpu: usize, access: Access, host: &mut impl Host) -> u64 {
    let Some((bank, first)) = private_bank(access) else {
        return 0;
    };
    match access.width {
        Width::Byte if bank == Bank::Priority => u64::from(distributor::priority(gic, vcpu, first)),
        Width::Byte | Width::Double => 0,
        Width::Word if matches!(bank, Bank::SetPending | Bank::ClearPending) => {
            let high = resample_all(gic, vcpu, host);
            u64::from(distributor::read_bank(gic, vcpu, bank, first, host) | high)
        }
        Width::Word => u64::from(distributor::read_bank(gic, vcpu, bank, first, host)),
    }
}

fn write_private(gic: &mut Gic, vcpu: usize, access: Access, value: u64, host: &mut impl Host) {
    if let Some((bank, first)) = private_bank(access) {
        distributor::write_bank(gic, vcpu, bank, first, access.width, value, host);
    }
}

fn private_bank(access: Access) -> Option<(Bank, Intid)> {
    distributor::bank(access.offset - SGI).filter(|(_, first)| first.index() < PRIVATE)
}

/// Takes note of mapped lines that went low meanwhile, as nothing tells of that, and returns which
/// are high: with the interrupt active, nothing tells of that either.
fn resample_all(gic: &mut Gic, vcpu: usize, host: &mut impl Host) -> u32 {
    (16..32).fold(0, |high, number| {
        let line = resample(gic, vcpu, Intid(number), host);
        high | u32::from(line) << number
    })
}

/// Does so for one interrupt.
pub(crate) fn resample(gic: &mut Gic, vcpu: usize, intid: Intid, host: &mut impl Host) -> bool {
    if gic.physical(intid).is_none() {
        return false;
    }
    let line = host.line(vcpu, intid);
    if line == Some(false) {
        gic.lower_mapped(vcpu, intid, host);
    }
    line == Some(true)
}
