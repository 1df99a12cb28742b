//! LPIs: their configuration and pending tables in guest memory (Arm IHI 0069, section 5.1).
//!
//! While a redistributor has LPIs enabled its tables are the controller's: configuration is read
//! when a guest says that it changed, pending bits are read on enabling and written on disabling.

use crate::gic::Gic;
use crate::irq::{FIRST_LPI, Flags, Intid, LPIS};
use crate::redistributor::PENDBASER_ZERO;
use crate::sparse::CHUNK;
use crate::{Dropped, Host};

/// Bytes of a pending table that are read or written at once.
const PIECE: usize = 512;
/// The address fields of `GICR_PROPBASER` and `GICR_PENDBASER`.
const PROPERTIES: u64 = 0x000f_ffff_ffff_f000;
const PENDINGS: u64 = 0x000f_ffff_ffff_0000;

/// Turns LPIs on for a vCPU.
pub(crate) fn enable(gic: &mut Gic, vcpu: usize, host: &mut impl Host) {
    let Some(cpu) = gic.cpus.get_mut(vcpu) else {
        return;
    };
    cpu.lpis = true;
    let pendings = cpu.pendings;
    if pendings & PENDBASER_ZERO == 0 {
        read_pending(gic, vcpu, pendings & PENDINGS, host);
    }
    load_all(gic, host);
}

/// Turns LPIs off for a vCPU: what is pending goes to the guest's table.
pub(crate) fn disable(gic: &mut Gic, vcpu: usize, host: &mut impl Host) {
    let Some(cpu) = gic.cpus.get_mut(vcpu) else {
        return;
    };
    cpu.lpis = false;
    let table = cpu.pendings & PENDINGS;
    let end = FIRST_LPI + lpis(cpu.properties);
    let mut first = FIRST_LPI;
    while first < end {
        let mut piece = [0; PIECE];
        for number in first..(first + PIECE * 8).min(end) {
            if take_pending(gic, vcpu, Intid::at(number), host)
                && let Some(byte) = piece.get_mut((number - first) / 8)
            {
                *byte |= 1 << (number % 8);
            }
        }
        let length = (end - first).div_ceil(8).min(PIECE);
        let bytes = piece.get(..length).unwrap_or_default();
        // A table that is not memory keeps nothing, as on hardware.
        let _ = host.write_guest(table + first as u64 / 8, bytes);
        first += PIECE * 8;
    }
}

/// Makes an LPI not pending on a vCPU, and returns whether it was.
fn take_pending(gic: &mut Gic, vcpu: usize, intid: Intid, host: &mut impl Host) -> bool {
    let pending = Flags::LATCH | Flags::PUSHED;
    match gic.irqs.get(0, intid) {
        Some(irq) if usize::from(irq.route) == vcpu && irq.flags.intersects(pending) => {
            gic.change(0, intid, host, |irq| irq.flags -= pending);
            true
        }
        _ => false,
    }
}

/// Makes pending what the table of a vCPU says.
fn read_pending(gic: &mut Gic, vcpu: usize, table: u64, host: &mut impl Host) {
    let count = gic.cpus.get(vcpu).map_or(0, |cpu| lpis(cpu.properties));
    let mut first = FIRST_LPI;
    while first < FIRST_LPI + count {
        let mut piece = [0; PIECE];
        let length = (FIRST_LPI + count - first).div_ceil(8).min(PIECE);
        let bytes = piece.get_mut(..length).unwrap_or_default();
        if host.read_guest(table + first as u64 / 8, bytes).is_err() {
            return;
        }
        for (index, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
                let intid = Intid::at(first + index * 8 + bit);
                // Without memory for its state an LPI is lost; the guest can raise it again.
                if gic.irqs.make_lpi(intid, &mut gic.budget).is_ok() {
                    raise(gic, vcpu, intid, host).ok();
                }
            }
        }
        first += PIECE * 8;
    }
}

/// Makes an LPI pending on a vCPU.
pub(crate) fn raise(
    gic: &mut Gic,
    vcpu: usize,
    intid: Intid,
    host: &mut impl Host,
) -> Result<(), Dropped> {
    let on = gic.cpus.get(vcpu).is_some_and(|cpu| cpu.lpis);
    let irq = gic.irqs.get(0, intid).filter(|_| on && intid.is_lpi());
    let irq = irq.ok_or(Dropped)?;
    let route = u16::try_from(vcpu).map_err(|_| Dropped)?;
    if irq.route != route || !irq.has(Flags::LATCH) {
        gic.change(0, intid, host, |irq| {
            irq.route = route;
            irq.flags |= Flags::LATCH;
        });
    }
    Ok(())
}

/// Makes an LPI not pending.
pub(crate) fn clear(gic: &mut Gic, intid: Intid, host: &mut impl Host) {
    let pending = Flags::LATCH | Flags::PUSHED;
    let irq = gic.irqs.get(0, intid).filter(|_| intid.is_lpi());
    if irq.is_some_and(|irq| irq.flags.intersects(pending)) {
        gic.change(0, intid, host, |irq| irq.flags -= pending);
    }
}

/// Moves an LPI to another vCPU, if it is pending.
pub(crate) fn relocate(gic: &mut Gic, intid: Intid, to: u16, host: &mut impl Host) {
    let pending = Flags::LATCH | Flags::PUSHED;
    let irq = gic.irqs.get(0, intid).filter(|_| intid.is_lpi());
    if irq.is_some_and(|irq| irq.flags.intersects(pending) && irq.route != to) {
        gic.change(0, intid, host, |irq| irq.route = to);
    }
}

/// Reads the configuration of one LPI.
pub(crate) fn load(gic: &mut Gic, intid: Intid, host: &mut impl Host) {
    let Some((table, count)) = table(gic) else {
        return;
    };
    let number = intid.index().wrapping_sub(FIRST_LPI);
    let mut byte = [0];
    if number < count && host.read_guest(table + number as u64, &mut byte).is_err() {
        return;
    }
    let [byte] = byte;
    configure(gic, intid, byte, host);
}

/// Reads the configuration of all LPIs that exist, and returns how many that are.
pub(crate) fn load_all(gic: &mut Gic, host: &mut impl Host) -> usize {
    let Some((table, count)) = table(gic) else {
        return 0;
    };
    let mut read = 0;
    for chunk in 0..gic.irqs.lpi_chunks() {
        let Some(numbers) = gic.irqs.lpi_chunk(chunk) else {
            continue;
        };
        read += CHUNK;
        let mut bytes = [0; CHUNK];
        let offset = numbers.start - FIRST_LPI;
        if offset < count && host.read_guest(table + offset as u64, &mut bytes).is_err() {
            continue;
        }
        for (number, byte) in numbers.zip(bytes) {
            configure(gic, Intid::at(number), byte, host);
        }
    }
    read
}

/// Applies an entry of the configuration table: priority, and bit 0 that enables.
fn configure(gic: &mut Gic, intid: Intid, entry: u8, host: &mut impl Host) {
    let (enabled, priority) = (entry & 1 != 0, entry & 0xf8);
    let irq = gic.irqs.get(0, intid);
    if irq.is_some_and(|irq| irq.has(Flags::ENABLED) != enabled || irq.priority != priority) {
        gic.change(0, intid, host, |irq| {
            irq.flags.set(Flags::ENABLED, enabled);
            irq.priority = priority;
        });
    }
}

/// Returns the configuration table, which all redistributors share, and how many LPIs it has.
fn table(gic: &Gic) -> Option<(u64, usize)> {
    let cpu = gic.cpus.iter().find(|cpu| cpu.lpis)?;
    Some((cpu.properties & PROPERTIES, lpis(cpu.properties)))
}

/// Returns how many LPIs `GICR_PROPBASER.IDbits` allows.
fn lpis(properties: u64) -> usize {
    let bits = (properties & 0x1f) + 1;
    (1_usize << bits.min(16))
        .saturating_sub(FIRST_LPI)
        .min(LPIS)
}

/// Returns the number of LPIs that a guest can map.
pub(crate) fn limit(gic: &Gic) -> usize {
    table(gic).map_or(LPIS, |(_, count)| count)
}
