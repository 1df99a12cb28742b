//! A guest that does everything it should not.
//!
//! Every register of the GIC, the ITS, the UART and the ECAM window is read and written with every
//! width and alignment, every hypercall number is called with senseless arguments, and every system
//! register is tried. The hypervisor and the other domains must go on; and so must this domain, to
//! say so: its own interrupts are masked, and what would end it is left out.

use alloc::vec;

use runtime::instruction;
use runtime::mmio::{Odd, Width, Window};
use runtime::platform::{self, HostBridge, Platform};
use runtime::smccc::id;
use runtime::{console, cpu, exception, gic, println};

use crate::pci::{self, Function};
use crate::random::Random;

/// What was tried, and how often the answer was a fault.
#[derive(Default)]
struct Tally {
    accesses: u64,
    faults: u64,
}

impl Tally {
    fn count<T>(&mut self, fault: Result<T, exception::Fault>) {
        self.accesses += 1;
        self.faults += u64::from(fault.is_err());
    }
}

/// Does its worst, says that it survived, and powers off.
pub fn main(_platform: &'static Platform) {
    println!("hostile: start");
    exception::expect_serrors();
    let mut random = Random::new(0x686f_7374_696c_6521);
    control(&mut random);
    hypercalls(&OWNERS, &mut random);
    system_registers(&mut random);
    frames(&mut random);
    ecam(&mut random);
    // After the ITS and the GIC are in a state that no driver would leave them in.
    hypercalls(&[4, 6], &mut random);
    holes(&mut random);
    restore_uart();
    println!("hostile: {} SErrors", exception::serrors());
    println!("hostile: survived");
}

// Registers in memory.

fn frames(random: &mut Random) {
    let platform = platform::get();
    let stride = 0x2_0000 * platform.cpus.len();
    let redistributors = platform.redistributors;
    let redistributors = redistributors.part(0, stride.min(redistributors.len()));
    sweep("distributor", &gic::distributor(), random);
    sweep("redistributors", &redistributors, random);
    if let Some(its) = platform.its {
        sweep("ITS", &its, random);
    }
    sweep_uart(random);
}

/// Reads and writes each register of a window, with each width, and at each alignment.
fn sweep(name: &str, window: &Window, random: &mut Random) {
    let mut tally = Tally::default();
    for offset in 0..window.len() {
        for width in Width::ALL {
            if offset + width.bytes() > window.len() {
                continue;
            }
            // Every alignment of the first page of each frame and of a page in 16, aligned elsewhere.
            let thorough = offset & 0xffff < 0x1000 || offset >> 12 & 0xf == 0xf;
            if !thorough && !offset.is_multiple_of(width.bytes().max(4)) {
                continue;
            }
            let value = random.interesting();
            tally.count(window.probe_read(offset, width));
            tally.count(window.probe_write(offset, width, value));
            tally.count(window.probe_read(offset, width));
        }
    }
    odd(window, &mut tally, random);
    report(name, &tally);
}

/// Accesses that have no valid syndrome.
fn odd(window: &Window, tally: &mut Tally, random: &mut Random) {
    for _ in 0..64 {
        let offset = random.below(window.len() - 4096);
        for kind in Odd::ALL {
            tally.count(window.probe_odd(offset, kind));
            tally.count(window.probe_odd(offset & !0xff, kind));
        }
    }
}

/// The UART's data register gets nothing but full stops, so that the console stays readable.
fn sweep_uart(random: &mut Random) {
    let window = console::window();
    let mut tally = Tally::default();
    for offset in 0..window.len() - 8 {
        for width in Width::ALL {
            tally.count(window.probe_read(offset, width));
            if offset >= 4 {
                tally.count(window.probe_write(offset, width, random.interesting()));
            }
        }
    }
    for width in Width::ALL {
        tally.count(window.probe_write(0, width, b'.'.into()));
    }
    restore_uart();
    println!();
    report("UART", &tally);
}

/// Makes the UART send again, whatever was written to it (PL011 TRM, 3.3).
fn restore_uart() {
    let window = console::window();
    // IMSC, DMACR, CR (on, receive and transmit).
    for (offset, value) in [(0x38, 0), (0x48, 0), (0x30, 0x301)] {
        let _ = window.probe_write(offset, Width::Word, value);
    }
}

fn ecam(random: &mut Random) {
    let Some(bridge) = platform::get().host_bridge else {
        return println!("hostile: no host bridge");
    };
    let mut tally = Tally::default();
    // The functions of bus 0: each byte of the header and of the first capabilities.
    for requester in 0..256 {
        let function = bridge.function(requester);
        let present = function.read32(0) != u32::MAX;
        let step = if present { 1 } else { 61 };
        for offset in (0..4096 - 8).step_by(step) {
            for width in Width::ALL {
                tally.count(function.probe_read(offset, width));
                tally.count(function.probe_write(offset, width, random.interesting()));
            }
        }
    }
    // Elsewhere at random, across the ends of functions and buses too.
    for _ in 0..200_000 {
        let offset = random.below(bridge.ecam.len() - 8);
        let width = Width::ALL[random.below(4)];
        tally.count(bridge.ecam.probe_read(offset, width));
        tally.count(bridge.ecam.probe_write(offset, width, random.interesting()));
    }
    odd(&bridge.ecam, &mut tally, random);
    report("ECAM", &tally);
    loads_and_stores(&[bridge.ecam.base(), bridge.memory32.base()], random);
    let mut tally = Tally::default();
    for _ in 0..20_000 {
        let offset = random.below(bridge.memory32.len() - 8);
        let width = Width::ALL[random.below(4)];
        tally.count(bridge.memory32.probe_read(offset, width));
        tally.count(
            bridge
                .memory32
                .probe_write(offset, width, random.interesting()),
        );
    }
    report("32-bit window", &tally);
    // Turn the functions off again that were turned on by chance.
    for requester in 0..256 {
        bridge.function(requester).write16(4, 0);
    }
    bars(&bridge, random);
}

/// The BARs of the functions, each at the start of the 32-bit window, or of the 64-bit one.
fn bars(bridge: &HostBridge, random: &mut Random) {
    let mut tally = Tally::default();
    let mut functions = 0;
    for function in Function::all(bridge) {
        for bar in 0..6 {
            let size = function.place(bar, bridge.memory32.base());
            if !(16..=bridge.memory32.len()).contains(&size) {
                continue;
            }
            functions += 1;
            let registers = pci::first_fit(bridge, size);
            function.place(bar, registers.base());
            // Memory decode alone: what a register makes it do, it does not do to memory.
            function.config.write16(4, 2);
            for _ in 0..2_000 {
                let offset = random.below(size.max(17) - 8);
                let width = Width::ALL[random.below(4)];
                if offset + width.bytes() > size {
                    continue;
                }
                tally.count(registers.probe_read(offset, width));
                tally.count(registers.probe_write(offset, width, random.interesting()));
            }
            function.place(bar, 0);
        }
    }
    println!("hostile: {functions} BARs");
    report("BARs", &tally);
}

/// Executes loads and stores of every kind, at random, with the first megabyte from `bases` on and the
/// distributor as targets.
fn loads_and_stores(bases: &[usize], random: &mut Random) {
    let distributor = gic::distributor().base();
    let mut tally = Tally::default();
    for _ in 0..20_000 {
        // Bits 29:24 of the classes: structures, pairs and single registers. Base and moved registers
        // are x0 to x7, an index x8 to x15, so that neither memory nor this program's registers change.
        let [class, fields] = crate::pci::halves(random.next());
        let classes = [0x0c, 0x0d, 0x28, 0x29, 0x2c, 0x2d, 0x38, 0x39, 0x3c, 0x3d];
        let class = classes[class as usize % classes.len()];
        let is_pair = (0x28..0x30).contains(&class);
        let free = if is_pair { 0xc0e0_1ce7 } else { 0xc0e7_fce7 };
        let word = fields & free | class << 24 | 1 << 19;
        let mut registers = [0; 18];
        for (n, register) in registers.iter_mut().enumerate() {
            let align = [0, 7, 15][random.below(3)];
            let offset = random.below(0x10_0000) & !align;
            let base = match random.below(4) {
                0 => distributor + offset % 0x8000,
                other => bases[other % bases.len()] + offset,
            };
            *register = if n < 8 {
                base
            } else {
                random.below(256) & !align
            } as u64;
        }
        // SAFETY: what it accesses is a device or nothing, and it writes x0 to x7 and SIMD registers.
        tally.count(unsafe { instruction::execute(word, &mut registers) });
    }
    report("loads and stores", &tally);
}

/// Addresses where nothing is.
fn holes(random: &mut Random) {
    let mut tally = Tally::default();
    let memory = platform::get().memory;
    let end = usize::try_from(memory.base + memory.size).unwrap_or(0);
    for base in [
        0,
        0x0801_0000,
        0x0900_2000,
        0x0a00_0000,
        end,
        0x60_0000_0000,
        0x7f_0000_0000,
    ] {
        // SAFETY: none of it is this domain's memory.
        let window = unsafe { Window::new(base, 0x10_0000) };
        for _ in 0..256 {
            let offset = random.below(window.len() - 8);
            for width in Width::ALL {
                tally.count(window.probe_read(offset, width));
                tally.count(window.probe_write(offset, width, random.interesting()));
            }
        }
    }
    report("holes", &tally);
}

// Hypercalls.

/// Function ids whose success would end this domain, or stop its only vCPU for good.
const SPARED: [u32; 8] = [
    id::SYSTEM_OFF,
    id::SYSTEM_RESET,
    id::SYSTEM_RESET2 & !(1 << 30),
    id::SYSTEM_RESET2,
    id::SYSTEM_SUSPEND & !(1 << 30),
    id::SYSTEM_SUSPEND,
    id::CPU_OFF,
    id::CPU_OFF | 1 << 30,
];

/// Owners of function ids that somebody answers for: Arm architecture, standard secure (PSCI), standard
/// hypervisor, vendor hypervisor; and others, of which a part is tried.
const OWNERS: [u32; 4] = [0, 4, 5, 6];
const OTHERS: [u32; 6] = [1, 2, 3, 7, 48, 63];

/// The calls of the control domain, and the numbers behind them: this domain is not it.
fn control(random: &mut Random) {
    let calls = [
        abi::Function::DomainFind,
        abi::Function::DomainInfo,
        abi::Function::PciInfo,
        abi::Function::PciAssign,
        abi::Function::PciUnassign,
        abi::Function::PciEmulate,
    ];
    let mut wrong = 0_u64;
    for _ in 0..2000 {
        for function in calls {
            let mut registers = arguments(random);
            registers[0] = function.id().into();
            // Half of them name what there is.
            if random.below(2) == 0 {
                registers[1] = random.below(2) as u64;
                registers[2] = random.below(0x100) as u64;
                registers[3] = random.below(0x100) as u64;
                registers[4] = random.below(2) as u64;
            }
            // SAFETY: HVC changes no register beyond x17.
            let done = unsafe { instruction::execute(0xd400_0002, &mut registers) };
            let denied = registers[0] == abi::Status::Denied.to_register();
            wrong += u64::from(done.is_err() || !denied);
        }
    }
    println!("hostile: control calls: {wrong} not denied");
}

fn hypercalls(owners: &[u32], random: &mut Random) {
    let mut tally = Tally::default();
    for owner in owners {
        for kind in [0x8000_0000, 0xc000_0000_u32] {
            for number in 0..=0xffff {
                call(kind | owner << 24 | number, random, &mut tally);
            }
        }
    }
    for owner in OTHERS {
        for number in (0..=0xffff).step_by(257) {
            call(0xc000_0000 | owner << 24 | number, random, &mut tally);
        }
    }
    // Reserved bits set, yielding calls, and ids that are no ids.
    for _ in 0..0x1_0000 {
        let [function, _] = crate::pci::halves(random.next());
        call(function, random, &mut tally);
    }
    report("hypercalls", &tally);
    let mut tally = Tally::default();
    for immediate in (0..=0xffff).step_by(7) {
        for opcode in [0xd400_0002, 0xd400_0003_u32] {
            let mut registers = arguments(random);
            registers[0] = 0xffff_0000;
            // SAFETY: HVC and SMC change no register beyond x17; the function id is no function's.
            tally.count(unsafe { instruction::execute(opcode | immediate << 5, &mut registers) });
        }
    }
    report("HVC and SMC with immediates", &tally);
}

fn arguments(random: &mut Random) -> [u64; 18] {
    core::array::from_fn(|_| random.interesting())
}

fn call(function: u32, random: &mut Random, tally: &mut Tally) {
    // CPU_SUSPEND to a power-down state would enter this domain anew, anywhere.
    let suspend = function & !(1 << 30) == id::CPU_SUSPEND & !(1 << 30);
    if SPARED.contains(&function) || suspend {
        return;
    }
    let mut registers = arguments(random);
    registers[0] = function.into();
    // SAFETY: HVC changes no register beyond x17. CPU_ON may start another vCPU anywhere; where its
    // entry is in memory, it runs code of this domain, which can hurt nobody but itself.
    tally.count(unsafe { instruction::execute(0xd400_0002, &mut registers) });
}

// System registers.

/// Tries MRS and MSR of every encoding with op0 of 2 and 3, and every SYS instruction.
fn system_registers(random: &mut Random) {
    let mut scratch = vec![0_u8; 0x2_0000];
    let target = (scratch.as_mut_ptr() as u64).next_multiple_of(0x1_0000);
    let mut tally = Tally::default();
    for encoding in 0..0x8000_u32 {
        let field = encoding << 5;
        let mut registers = arguments(random);
        // SAFETY: a read changes no memory and no general register but x0.
        let read = unsafe { instruction::execute(0xd530_0000 | field, &mut registers) };
        tally.count(read);
        // A register that can be read exists, and this program may depend on it.
        if read.is_ok() {
            continue;
        }
        registers[0] = random.interesting();
        // SAFETY: the register cannot be read, and none of those that this program depends on is
        // write-only.
        tally.count(unsafe { instruction::execute(0xd510_0000 | field, &mut registers) });
    }
    report("system registers", &tally);
    let mut tally = Tally::default();
    for encoding in 0..0x4000_u32 {
        let mut registers = arguments(random);
        registers[0] = target;
        // SAFETY: cache and TLB maintenance and address translation by an address in `scratch`, by
        // set and way (which the hypervisor has to answer), or of everything; DC ZVA clears there.
        tally.count(unsafe { instruction::execute(0xd508_0000 | encoding << 5, &mut registers) });
        // SAFETY: SYSL only writes x0.
        tally.count(unsafe { instruction::execute(0xd528_0000 | encoding << 5, &mut registers) });
    }
    cpu::barrier();
    report("system instructions", &tally);
}

fn report(name: &str, tally: &Tally) {
    println!(
        "hostile: {name}: {} accesses, {} faults",
        tally.accesses, tally.faults
    );
}
