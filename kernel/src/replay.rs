//! Loads and stores that their syndrome does not describe: the instruction is read and decoded, and
//! carried out as a row of single accesses.
//!
//! ```text
//!   data abort, ISV = 0
//!     |
//!   begin: PC --AT--> IPA --domain's memory--> word --arch::load_store--> what
//!     |       does it agree with the syndrome?  no: the guest runs it again
//!     v
//!   advance: one part after the other --> mmio::route_part --> done, or the vCPU waits
//!     |                                                            |
//!     v                                                 mmio::answer --> answered
//!   finish: registers and writeback, next instruction
//! ```
//!
//! The guest may change the instruction, its tables, or both, while this goes on. So the word is read
//! once, and used if it is one that can have made this access: a load or store in the syndrome's
//! direction whose bytes hold the fault's address. Otherwise something has changed since, and the guest
//! goes on at the instruction, whatever it is now. The guest's registers are EL2's meanwhile.
//!
//! Parts have natural alignment and are made in ascending order, each once (one that has to wait for a
//! device model's slot is made again by itself). When one reaches nobody, the guest gets an external
//! abort at its address: those before it are done, and no register has changed. Hardware may do the
//! same: a pair, or more than eight bytes, is more than one access (Arm ARM B2.2.1).

use crate::domain::Domain;
use crate::exit::{self, Next};
use crate::mmio::{self, Mmio};
use crate::pcpu::Running;
use arch::frame::Frame;
use arch::load_store::{self, Bank, LoadStore, Target, Undecoded, Values};
use arch::syndrome::{Access, TranslationFault, translated};
use arch::{asm, sysreg};

/// A load or store on its way.
#[derive(Clone, Copy)]
pub(crate) struct Replay {
    what: LoadStore,
    target: Target,
    /// The IPA of the page that holds the first byte, and of the one that holds the last.
    pages: [u64; 2],
    /// What it stores, or has loaded so far.
    values: Values,
    /// How many bytes are done.
    done: u8,
}

/// Why an instruction is not carried out.
enum Failure {
    /// It is not what has faulted: the guest runs it again.
    Changed,
    /// It is more than a row of accesses.
    Unsupported,
    /// Stage 1 does not let the part at this address through, with this status.
    Fault(u64, u8),
}

/// Bits of an address that hold no tag (D8.8).
const UNTAGGED: u64 = (1 << 56) - 1;

/// Bits of an address within a page of 4 KiB, which HPFAR_EL2 names whatever granule stage 1 has.
const IN_PAGE: u64 = 0xfff;

/// SCTLR_EL1.E0E and EE: data accesses at EL0, at EL1, are big-endian (D24.2.174).
const SCTLR_E0E: u64 = 1 << 24;
const SCTLR_EE: u64 = 1 << 25;

/// Carries out the instruction at the PC, whose access at `far`, which is `ipa`, stage 2 did not let
/// through.
#[cold]
#[inline(never)]
pub(crate) fn begin(running: &mut Running<'_>, write: bool, far: u64, ipa: u64) -> Next {
    match Replay::read(running, write, far, ipa) {
        Ok(replay) => {
            running.state.replay = Some(replay);
            advance(running)
        }
        Err(Failure::Changed) => Next::Resume,
        Err(Failure::Unsupported) => mmio::refuse(running, far),
        Err(Failure::Fault(address, status)) => {
            exit::inject_fault(&mut running.state.frame, address, status, write);
            Next::Resume
        }
    }
}

/// Takes what a part has loaded.
#[cold]
#[inline(never)]
pub(crate) fn loaded(running: &mut Running<'_>, value: u64) {
    if let Some(replay) = &mut running.state.replay {
        replay.values.set_part(&replay.what, replay.done, value);
    }
}

/// Goes on after what the loaded vCPU waited for: `Skip` says that the part is done, `Resume` that it
/// waits again, or that the part is to be made again.
#[cold]
#[inline(never)]
pub(crate) fn answered(running: &mut Running<'_>, next: Next) {
    let Some(replay) = &mut running.state.replay else {
        return;
    };
    if running.state.pending.is_some() {
        return;
    }
    if next == Next::Skip {
        replay.done += replay.what.part;
    }
    let syndrome = exit::access_syndrome(replay.what.store);
    match advance(running) {
        Next::Skip => running.state.frame.skip(),
        Next::Resume => {}
        // No exit comes before the guest is entered.
        Next::Inject(exception) => exit::inject(&mut running.state.frame, exception, syndrome),
    }
}

/// Makes the parts that are left, as far as nobody has to be waited for.
fn advance(running: &mut Running<'_>) -> Next {
    while let Some(replay) = running.state.replay {
        let Some((mmio, address)) = replay.next() else {
            running.state.replay = None;
            return replay.finish(running);
        };
        match mmio::route_part(running, mmio) {
            Some(Next::Skip) => {
                if let Some(replay) = &mut running.state.replay {
                    replay.done += replay.what.part;
                }
            }
            Some(Next::Resume) if running.state.pending.is_some() => return Next::Resume,
            // The whole is made again: the terminal is full, whose register is the first of its page.
            Some(next) => {
                running.state.replay = None;
                return next;
            }
            None => {
                running.state.replay = None;
                return mmio::refuse(running, address);
            }
        }
    }
    Next::Resume
}

impl Replay {
    /// Reads and decodes the instruction at the PC.
    fn read(running: &mut Running<'_>, write: bool, far: u64, ipa: u64) -> Result<Self, Failure> {
        let frame = &running.state.frame;
        if frame.is_aarch32() || is_big_endian(frame) {
            return Err(Failure::Unsupported);
        }
        let what = match load_store::decode(fetch(running.domain, frame.pc)?) {
            Ok(what) => what,
            Err(Undecoded::Unsupported) => return Err(Failure::Unsupported),
            Err(Undecoded::NoAccess) => return Err(Failure::Changed),
        };
        let target = what.target(|register| frame.register(register), stack_pointer(frame));
        let fault = far.wrapping_sub(target.address) & UNTAGGED;
        if what.store != write || fault >= u64::from(what.size()) {
            return Err(Failure::Changed);
        }
        if !target.address.is_multiple_of(what.part.into()) {
            return Err(Failure::Unsupported);
        }
        let pages = pages(frame, &what, target.address, far, ipa & !IN_PAGE)?;
        // From here on nothing fails but a part.
        let values = if what.store {
            stored(running, &what)
        } else {
            Values::default()
        };
        Ok(Self {
            what,
            target,
            pages,
            values,
            done: 0,
        })
    }

    /// Returns the next part and its virtual address; `None` when all are done.
    fn next(&self) -> Option<(Mmio, u64)> {
        if self.done >= self.what.size() {
            return None;
        }
        let address = self.target.address.wrapping_add(self.done.into());
        let [first, last] = self.pages;
        let page = if is_same_page(address, self.target.address) {
            first
        } else {
            last
        };
        let store = self.what.store;
        let mmio = Mmio {
            ipa: page | address & IN_PAGE,
            access: Access::new(self.what.part, 31, false, true),
            store: store.then(|| self.values.part(&self.what, self.done)),
        };
        Some((mmio, address))
    }

    /// Gives the registers what they become.
    fn finish(&self, running: &mut Running<'_>) -> Next {
        if !self.what.store {
            let [first, second] = self.values.registers();
            let second = self.what.second.map(|register| (register, second));
            for (register, value) in [Some((self.what.first, first)), second]
                .into_iter()
                .flatten()
            {
                match self.what.access(register) {
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "a general-purpose register has 64 bits"
                    )]
                    Some(access) => {
                        let value = access.extend(value as u64);
                        running.state.frame.set_register(register, value);
                    }
                    None => exit::with_simd(running, |simd| simd.set_register(register, value)),
                }
            }
        }
        if let Some(base) = self.target.writeback {
            match self.what.base {
                31 if running.state.frame.uses_sp_el0() => sysreg::write!("sp_el0", base),
                31 => sysreg::write!("sp_el1", base),
                register => running.state.frame.set_register(register, base),
            }
        }
        Next::Skip
    }
}

fn is_same_page(a: u64, b: u64) -> bool {
    (a ^ b) & UNTAGGED & !IN_PAGE == 0
}

fn is_big_endian(frame: &Frame) -> bool {
    let bit = if frame.is_el0() { SCTLR_E0E } else { SCTLR_EE };
    sysreg::read!("sctlr_el1") & bit != 0
}

fn stack_pointer(frame: &Frame) -> u64 {
    if frame.uses_sp_el0() {
        sysreg::read!("sp_el0")
    } else {
        sysreg::read!("sp_el1")
    }
}

/// Reads the instruction at `pc`.
///
/// It is translated as a load at EL1, which reads every page that is mapped at all, also those that EL0
/// may only execute. What is not mapped any more, or not to the domain's memory, is not what was
/// executed.
fn fetch(domain: &Domain, pc: u64) -> Result<u32, Failure> {
    let ipa = translated(asm::at_s1e1r(pc), pc).map_err(|_| Failure::Changed)?;
    domain.memory.word(ipa).map_err(|_| Failure::Changed)
}

/// Translates an address by the guest's own stage 1, as the access of its vCPU would be.
#[inline]
pub(crate) fn translate(frame: &Frame, store: bool, va: u64) -> Result<u64, TranslationFault> {
    let par = match (frame.is_el0(), store) {
        (false, false) => asm::at_s1e1r(va),
        (false, true) => asm::at_s1e1w(va),
        (true, false) => asm::at_s1e0r(va),
        (true, true) => asm::at_s1e0w(va),
    };
    translated(par, va)
}

/// Returns the IPAs of the pages that hold the first and the last byte; one of them is `known`, that of
/// the page with `far`.
fn pages(
    frame: &Frame,
    what: &LoadStore,
    address: u64,
    far: u64,
    known: u64,
) -> Result<[u64; 2], Failure> {
    let last = address.wrapping_add(u64::from(what.size()) - 1);
    let translate = |va: u64| match translate(frame, what.store, va) {
        Ok(ipa) => Ok(ipa & !IN_PAGE),
        Err(fault) if fault.stage2 => Err(Failure::Unsupported),
        Err(fault) => Err(Failure::Fault(va, fault.status)),
    };
    match (is_same_page(address, last), is_same_page(address, far)) {
        (true, _) => Ok([known, known]),
        (false, true) => Ok([known, translate(last & !IN_PAGE)?]),
        (false, false) => Ok([translate(address)?, known]),
    }
}

/// Returns what a store's registers hold.
fn stored(running: &mut Running<'_>, what: &LoadStore) -> Values {
    let registers = [what.first, what.second.unwrap_or(what.first)];
    let [first, second] = match what.bank {
        Bank::General { .. } => {
            registers.map(|register| u128::from(running.state.frame.register(register)))
        }
        Bank::Simd => exit::with_simd(running, |simd| {
            registers.map(|register| simd.register(register))
        }),
    };
    Values::new(first, second)
}
