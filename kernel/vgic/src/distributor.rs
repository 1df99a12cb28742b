//! The distributor's registers (Arm IHI 0069, section 12.9), and those of a redistributor that are
//! made alike.

use crate::access::{Access, Width};
use crate::gic::{Gic, affinity, spi};
use crate::irq::{Flags, Intid, NOBODY, PRIVATE, Place};
use crate::{Host, redistributor};

/// `GICD_IIDR`, `GICR_IIDR` and `GITS_IIDR`: implementer Arm, product "I".
pub(crate) const IIDR: u32 = 0x4900_043b;

const CTLR: u32 = 0x0000;
const TYPER: u32 = 0x0004;
const IIDR_OFFSET: u32 = 0x0008;
const IROUTER: u32 = 0x6000;
const IROUTER_END: u32 = 0x8000;
const ID: u32 = 0xffd0;

/// `GICD_CTLR`: both group enables.
const CTLR_GROUPS: u64 = 3;
/// `GICD_CTLR.ARE` and `DS`: always one.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
const CTLR_RWP: u32 = 1 << 31;
/// `GICD_IROUTER.Interrupt_Routing_Mode`.
const ROUTER_ANY: u64 = 1 << 31;

/// Bits of a priority that exist.
const PRIORITY: u32 = 0xf8;

pub(crate) fn read(gic: &mut Gic, access: Access, host: &mut impl Host) -> u64 {
    if let IROUTER..IROUTER_END = access.offset {
        return access.read_wide(read_router(gic, access.offset));
    }
    let value = match access.offset {
        offset if !access.is_word() => return read_priority_byte(gic, offset),
        TYPER => typer(gic),
        CTLR => ctlr(gic),
        IIDR_OFFSET => IIDR,
        offset @ ID.. => identification(offset),
        offset => match bank(offset) {
            Some((bank, first)) if first.index() >= PRIVATE => read_bank(gic, 0, bank, first, host),
            _ => 0,
        },
    };
    u64::from(value)
}

pub(crate) fn write(gic: &mut Gic, access: Access, value: u64, host: &mut impl Host) {
    match access.offset {
        IROUTER..IROUTER_END => write_router(gic, access, value, host),
        CTLR if access.is_word() => {
            let groups = (value & CTLR_GROUPS) as u8;
            if groups != gic.groups {
                gic.groups = groups;
                gic.touch_all(host);
            }
        }
        offset => {
            if let Some((bank, first)) = bank(offset)
                && first.index() >= PRIVATE
            {
                write_bank(gic, 0, bank, first, access.width, value, host);
            }
        }
    }
}

fn ctlr(gic: &Gic) -> u32 {
    let stale = (0..gic.cpus.len()).any(|vcpu| gic.is_stale(vcpu, true));
    CTLR_FIXED | u32::from(gic.groups) | if stale { CTLR_RWP } else { 0 }
}

fn typer(gic: &Gic) -> u32 {
    let lines = u32::from(spi(gic.irqs.shared_count()).get()).div_ceil(32) - 1;
    let id_bits = if gic.has_lpis { 16 } else { 10 };
    let affinity3 = 1 << 24;
    let ranges = u32::from(gic.has_ranges) << 26;
    lines | u32::from(gic.has_lpis) << 17 | (id_bits - 1) << 19 | affinity3 | ranges
}

/// Returns an identification register: those of Arm's own GICv3 components.
pub(crate) fn identification(offset: u32) -> u32 {
    match offset {
        0xffe0 => 0x92,
        0xffe4 => 0xb4,
        0xffe8 => 0x3b, // PIDR2: GICv3
        0xffd0 => 0x44,
        0xfff0 => 0x0d,
        0xfff4 => 0xf0,
        0xfff8 => 0x05,
        0xfffc => 0xb1,
        _ => 0,
    }
}

fn read_priority_byte(gic: &Gic, offset: u32) -> u64 {
    match bank(offset) {
        Some((Bank::Priority, first)) if first.index() >= PRIVATE => {
            u64::from(priority(gic, 0, first))
        }
        _ => 0,
    }
}

// Routing.

/// Returns which shared interrupt a `GICD_IROUTER` belongs to.
fn routed(offset: u32) -> Option<usize> {
    ((offset - IROUTER) as usize / 8).checked_sub(PRIVATE)
}

fn read_router(gic: &Gic, offset: u32) -> u64 {
    let Some(number) = routed(offset) else {
        return 0;
    };
    let Some(affinity) = gic.routers.get(number).map(|affinity| u64::from(*affinity)) else {
        return 0;
    };
    let irq = gic.irqs.get(0, spi(number));
    let any = irq.is_some_and(|irq| irq.has(Flags::ANY));
    (affinity & 0xff00_0000) << 8 | affinity & 0x00ff_ffff | if any { ROUTER_ANY } else { 0 }
}

fn write_router(gic: &mut Gic, access: Access, value: u64, host: &mut impl Host) {
    let value = access.write_wide(read_router(gic, access.offset), value);
    let Some(number) = routed(access.offset).filter(|_| access.width != Width::Byte) else {
        return;
    };
    let route = gic.find(affinity(value)).unwrap_or(NOBODY);
    let Some(router) = gic.routers.get_mut(number) else {
        return;
    };
    *router = affinity(value);
    gic.change(0, spi(number), host, |irq| {
        irq.route = route;
        irq.flags.set(Flags::ANY, value & ROUTER_ANY != 0);
    });
}

// Registers with a field for each interrupt.

/// The registers with a bit, two bits, or a byte for each interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bank {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
}

/// Returns the bank that `offset` is in, and the first interrupt of its byte or word.
#[rustfmt::skip]
pub(crate) fn bank(offset: u32) -> Option<(Bank, Intid)> {
    let (bank, first) = match offset {
        0x080..0x100 => (Bank::Group,        (offset - 0x080) * 8),
        0x100..0x180 => (Bank::SetEnable,    (offset - 0x100) * 8),
        0x180..0x200 => (Bank::ClearEnable,  (offset - 0x180) * 8),
        0x200..0x280 => (Bank::SetPending,   (offset - 0x200) * 8),
        0x280..0x300 => (Bank::ClearPending, (offset - 0x280) * 8),
        0x300..0x380 => (Bank::SetActive,    (offset - 0x300) * 8),
        0x380..0x400 => (Bank::ClearActive,  (offset - 0x380) * 8),
        0x400..0x800 => (Bank::Priority,      offset - 0x400),
        0xc00..0xd00 => (Bank::Config,       (offset - 0xc00) * 4),
        _ => return None,
    };
    Some((bank, Intid((first & 0x3ff) as u16)))
}

/// Reads a word of a bank. `vcpu` is whose private interrupts are meant.
pub(crate) fn read_bank(
    gic: &mut Gic,
    vcpu: usize,
    bank: Bank,
    first: Intid,
    host: &mut impl Host,
) -> u32 {
    match bank {
        Bank::Group => collect(gic, vcpu, first, |flags| flags.contains(Flags::GROUP1)),
        Bank::SetEnable | Bank::ClearEnable => {
            collect(gic, vcpu, first, |flags| flags.contains(Flags::ENABLED))
        }
        Bank::SetPending | Bank::ClearPending => {
            refresh(gic, vcpu, first, host);
            collect(gic, vcpu, first, |flags| {
                flags.intersects(Flags::LATCH | Flags::PUSHED)
                    || flags & (Flags::LINE | Flags::EDGE) == Flags::LINE
            })
        }
        Bank::SetActive | Bank::ClearActive => {
            refresh(gic, vcpu, first, host);
            collect(gic, vcpu, first, |flags| flags.contains(Flags::ACTIVE))
        }
        Bank::Priority => {
            let byte = |at: u16| u32::from(priority(gic, vcpu, Intid(first.0 + at)));
            byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
        }
        Bank::Config => (0..16).fold(0, |word, at| {
            let irq = gic.irqs.get(vcpu, Intid(first.0 + at));
            let edge = irq.is_some_and(|irq| irq.has(Flags::EDGE));
            word | u32::from(edge) << (2 * at + 1)
        }),
    }
}

/// Returns a word with a bit for each of 32 interrupts.
fn collect(gic: &Gic, vcpu: usize, first: Intid, is_set: impl Fn(Flags) -> bool) -> u32 {
    (0..32).fold(0, |word, at| {
        let irq = gic.irqs.get(vcpu, Intid(first.0 + at));
        word | u32::from(irq.is_some_and(|irq| is_set(irq.flags))) << at
    })
}

pub(crate) fn priority(gic: &Gic, vcpu: usize, intid: Intid) -> u8 {
    gic.irqs.get(vcpu, intid).map_or(0, |irq| irq.priority)
}

/// Has list registers looked at that hold interrupts whose state a guest asks for.
fn refresh(gic: &mut Gic, vcpu: usize, first: Intid, host: &mut impl Host) {
    for at in 0..32 {
        let irq = gic.irqs.get(vcpu, Intid(first.0 + at));
        if let Some(irq) = irq.filter(|irq| irq.place == Place::Listed) {
            let home = usize::from(irq.home);
            gic.touch(home, host);
        }
    }
}

/// Writes a byte or a word of a bank. `vcpu` is whose private interrupts are meant.
pub(crate) fn write_bank(
    gic: &mut Gic,
    vcpu: usize,
    bank: Bank,
    first: Intid,
    width: Width,
    value: u64,
    host: &mut impl Host,
) {
    let value = (value & 0xffff_ffff) as u32;
    match (bank, width) {
        (Bank::Priority, Width::Byte) => set_priority(gic, vcpu, first, value, host),
        (Bank::Priority, Width::Word) => {
            for at in 0..4 {
                set_priority(gic, vcpu, Intid(first.0 + at), value >> (8 * at), host);
            }
        }
        (_, Width::Byte | Width::Double) => {}
        (Bank::Config, Width::Word) => {
            for at in 0..16 {
                set_edge(
                    gic,
                    vcpu,
                    Intid(first.0 + at),
                    value >> (2 * at + 1) & 1 != 0,
                    host,
                );
            }
        }
        (Bank::Group, Width::Word) => {
            for at in 0..32 {
                set_group(gic, vcpu, Intid(first.0 + at), value >> at & 1 != 0, host);
            }
        }
        (_, Width::Word) => {
            let mut bits = value;
            while bits != 0 {
                let intid = Intid::at(first.index() + bits.trailing_zeros() as usize);
                bits &= bits - 1;
                write_bit(gic, vcpu, bank, intid, host);
            }
        }
    }
}

/// Carries out a one that was written to a set or clear register.
fn write_bit(gic: &mut Gic, vcpu: usize, bank: Bank, intid: Intid, host: &mut impl Host) {
    let Some(irq) = gic.irqs.get(vcpu, intid) else {
        return;
    };
    let flags = irq.flags;
    match bank {
        Bank::SetEnable if !flags.contains(Flags::ENABLED) => {
            redistributor::resample(gic, vcpu, intid, host);
            gic.change(vcpu, intid, host, |irq| irq.flags |= Flags::ENABLED);
        }
        Bank::ClearEnable if flags.contains(Flags::ENABLED) => {
            gic.change(vcpu, intid, host, |irq| irq.flags -= Flags::ENABLED);
        }
        Bank::SetPending => gic.pulse(vcpu, intid, host),
        Bank::ClearPending if flags.intersects(Flags::LATCH | Flags::PUSHED) => {
            gic.change(vcpu, intid, host, |irq| {
                irq.flags -= Flags::LATCH | Flags::PUSHED;
            });
        }
        Bank::SetActive => gic.set_active(vcpu, intid, true, host),
        Bank::ClearActive => gic.set_active(vcpu, intid, false, host),
        _ => {}
    }
}

fn set_priority(gic: &mut Gic, vcpu: usize, intid: Intid, value: u32, host: &mut impl Host) {
    let value = (value & PRIORITY) as u8;
    if gic
        .irqs
        .get(vcpu, intid)
        .is_some_and(|irq| irq.priority != value)
    {
        gic.change(vcpu, intid, host, |irq| irq.priority = value);
    }
}

fn set_group(gic: &mut Gic, vcpu: usize, intid: Intid, one: bool, host: &mut impl Host) {
    let irq = gic.irqs.get(vcpu, intid);
    if irq.is_some_and(|irq| irq.has(Flags::GROUP1) != one) {
        gic.change(vcpu, intid, host, |irq| irq.flags.set(Flags::GROUP1, one));
    }
}

/// Makes an SPI an edge or a level. SGIs are edges and PPIs levels, whatever a guest writes.
fn set_edge(gic: &mut Gic, vcpu: usize, intid: Intid, edge: bool, host: &mut impl Host) {
    let irq = gic.irqs.get(vcpu, intid);
    if irq.is_some_and(|irq| irq.has(Flags::EDGE) != edge) && !intid.is_private() {
        gic.change(vcpu, intid, host, |irq| irq.flags.set(Flags::EDGE, edge));
    }
}
