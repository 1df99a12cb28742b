//! Counts the instructions of the hypervisor's paths, as a guest sees them.
//!
//! Run with `-icount shift=0,sleep=off -cpu neoverse-n1,cntfrq=1000000000`: one tick of the counter
//! is one instruction, whoever executes it. Each figure is the best of some batches, with the
//! loop around the operation subtracted; each is printed as `bench NAME VALUE UNIT`.
//!
//! The command line says which functions to read: `vpci=00:01.0 ioreq=00:02.0`. Without it, the first
//! virtio function on bus 0 is the device model's and the first of any other kind is passed through.
//! With the word `tree` only `cfg_read_vpci_4096` is printed, which is `cfg_read_vpci` where the buses
//! below root ports are full; the guest numbers them from 1 up. A passed-through function is read while its
//! pin is silenced, so that the device is asked for Interrupt Status and its config space traps.
//! With `only=NAME` nothing but that figure is counted.
//!
//! `bar_enable` takes QEMU's pci-testdev with a `membar` of 16 KiB: one BAR of one page, one of four.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use runtime::mmio::Window;
use runtime::platform::{self, HostBridge, Platform};
use runtime::timer::{self, Timer};
use runtime::{cpu, exception, gic, println};
use vpci::Sbdf;

use crate::pci::{self, Function};

const BATCHES: usize = 10;
const ROUNDS: u64 = 100;

/// Vendor of virtio functions.
const VIRTIO: u32 = 0x1af4;
/// IDs of Isthmus's root port, and registers of it: bus numbers, and ARI Forwarding Enable.
const ROOT_PORT: u32 = 0x000c_1b36;
const BUS_NUMBERS: usize = 0x18;
const DEVICE_CONTROL_2: usize = 0x68;
const ARI_FORWARDING: u16 = 1 << 5;
/// A function that no test system has.
const ABSENT: u16 = 0x00f8;
/// IDs of QEMU's pci-testdev, and its second memory BAR.
const TESTDEV: u32 = 0x0005_1b36;
const TESTDEV_BAR: usize = 2;
/// Command: Memory Space Enable, and Interrupt Disable.
const COMMAND: usize = 0x04;
const MEMORY: u16 = 1 << 1;
const INTERRUPT_DISABLE: u16 = 1 << 10;
const BAR0: usize = 0x10;
/// Where a virtio function of ours has its device configuration in BAR0.
const DEVICE_CONFIG: usize = 0x2000;
const BAR_SIZE: usize = 0x4000;

/// Prints the figures and powers off.
pub fn main(platform: &'static Platform) {
    gic::init_distributor();
    gic::init_cpu();
    println!("bench: counter at {} Hz", timer::ticks(1000));
    let mut words = platform.arguments().split_ascii_whitespace();
    if words.any(|word| word == "tree") {
        return match platform.host_bridge {
            Some(bridge) => tree(platform, &bridge),
            None => println!("bench: cfg_read_vpci_4096 needs a host bridge"),
        };
    }
    print("hvc_null", hvc_null);
    print("sysreg_trap", sysreg_trap);
    let gicd = gic::distributor();
    print("gicd_read", || load(gicd.base() + gic::reg::TYPER));
    print("sgi_self", sgi_self);
    if let Some(bridge) = platform.host_bridge {
        config_space(platform, &bridge);
    }
    print("timer_wfi", timer_wfi);
    match platform.cpus.get(1) {
        Some(&other) => print("ipi_pingpong", || ipi_pingpong(other)),
        None => println!("bench: ipi_pingpong needs a second vCPU"),
    }
    println!("bench: done");
}

/// Prints a figure, unless the command line wants another one only.
fn print(name: &str, count: impl FnOnce() -> u64) {
    let mut words = platform::get().arguments().split_ascii_whitespace();
    let only = words.find_map(|word| word.strip_prefix("only="));
    if only.is_none_or(|only| only == name) {
        let instructions = count();
        println!("bench {name} {instructions} instructions");
    }
}

/// Returns the function that the command line calls `name`.
fn named(platform: &Platform, bridge: &HostBridge, name: &str) -> Option<Function> {
    let mut words = platform.arguments().split_ascii_whitespace();
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    let sbdf: Sbdf = value.parse().ok()?;
    Some(Function::new(bridge, sbdf.rid()))
}

/// Numbers the buses below the root ports, with all their functions, and reads one of these.
fn tree(platform: &Platform, bridge: &HostBridge) {
    let ports = Function::all(bridge).filter(|function| function.id() == ROOT_PORT);
    for (number, port) in (1..).zip(ports) {
        port.config.write32(BUS_NUMBERS, number << 16 | number << 8);
        port.config.write16(DEVICE_CONTROL_2, ARI_FORWARDING);
    }
    let function = named(platform, bridge, "vpci");
    match function.filter(|function| function.id() != u32::MAX) {
        Some(function) => print("cfg_read_vpci_4096", || trapped_read(&function)),
        None => println!("bench: cfg_read_vpci_4096 needs a passed-through function"),
    }
}

fn config_space(platform: &Platform, bridge: &HostBridge) {
    let named = |name: &str| named(platform, bridge, name);
    let first = |virtio: bool| {
        let mut functions = Function::all(bridge).filter(|function| function.requester != 0);
        functions.find(|function| (function.id() & 0xffff == VIRTIO) == virtio)
    };
    print("cfg_read_shadow", || load(bridge.function(0).base()));
    print("cfg_read_absent", || load(bridge.function(ABSENT).base()));
    match named("vpci").or_else(|| first(false)) {
        Some(function) => {
            print("cfg_read_vpci", || trapped_read(&function));
            print("cfg_write_vpci", || cfg_write(&function));
        }
        None => println!("bench: cfg_read_vpci and cfg_write_vpci need a passed-through function"),
    }
    match Function::all(bridge).find(|function| function.id() == TESTDEV) {
        Some(function) => print("bar_enable", || bar_enable(bridge, &function)),
        None => println!("bench: bar_enable needs QEMU's pci-testdev"),
    }
    match named("ioreq").or_else(|| first(true)) {
        Some(function) => print("ioreq_read", || ioreq_read(bridge, &function)),
        None => println!("bench: ioreq_read needs a device model's function"),
    }
}

/// A read of a function some of whose fields are live now.
fn trapped_read(function: &Function) -> u64 {
    function.config.write16(COMMAND, INTERRUPT_DISABLE);
    let result = load(function.config.base());
    function.config.write16(COMMAND, 0);
    result
}

/// A write of a BAR, with memory decode off: each gives it another value.
fn cfg_write(function: &Function) -> u64 {
    let bar = (function.config.base() + BAR0) as u64;
    let both = best(
        |rounds| timed_two_stores(rounds, bar, 0x1000_0000),
        |rounds| timed_nothing(rounds, bar, 0x1000_0000),
    );
    both / 2
}

/// Memory decode on: two BARs are mapped.
fn bar_enable(bridge: &HostBridge, function: &Function) -> u64 {
    let bars: Window = pci::first_fit(bridge, 2 * BAR_SIZE);
    let sizes = [(0, 0), (TESTDEV_BAR, BAR_SIZE)].map(|(bar, offset)| {
        let address = bars.base() + offset;
        function.place(bar, address)
    });
    if sizes != [0x1000, 0x4000] {
        println!("bench: bar_enable has BARs of {sizes:x?} bytes");
    }
    let timed = |command: u16| {
        let rounds = (0..ROUNDS).map(|_| {
            let start = timer::now();
            function.config.write16(COMMAND, command);
            let end = timer::now();
            function.config.write16(COMMAND, 0);
            end - start
        });
        rounds.min().unwrap_or(u64::MAX)
    };
    let nothing = (0..ROUNDS).map(|_| {
        let start = timer::now();
        timer::now() - start
    });
    timed(MEMORY).saturating_sub(nothing.min().unwrap_or(0))
}

/// A 32-bit read of a register in a BAR that a device model answers.
fn ioreq_read(bridge: &HostBridge, function: &Function) -> u64 {
    let bar: Window = pci::first_fit(bridge, BAR_SIZE);
    function.place(0, bar.base());
    function.enable();
    load(bar.base() + DEVICE_CONFIG)
}

/// Runs `loop_with` with the operation and without it, and returns what one operation takes.
fn best(with: impl Fn(u64) -> u64, without: impl Fn(u64) -> u64) -> u64 {
    let least = |batch: &dyn Fn(u64) -> u64| {
        let batches = (0..BATCHES).map(|_| batch(ROUNDS));
        batches.min().unwrap_or(u64::MAX)
    };
    let took = least(&with).saturating_sub(least(&without));
    (took + ROUNDS / 2) / ROUNDS
}

/// Makes a function that executes the instructions `ROUNDS` times and returns how long it took.
///
/// `a` and `b` are registers that the instructions may use, set to the arguments in each round.
macro_rules! timed {
    ($name:ident, $($instruction:literal),*) => {
        fn $name(rounds: u64, a: u64, b: u64) -> u64 {
            let (start, end): (u64, u64);
            // SAFETY: the instructions are a call, a read of a register, a load from a device, stores to one, or an
            // SGI to this vCPU, whose interrupts are masked; none of them changes memory.
            unsafe {
                core::arch::asm!(
                    "isb",
                    "mrs {start}, cntvct_el0",
                    "2:",
                    "mov x0, {a}",
                    "mov x1, {b}",
                    $($instruction,)*
                    "subs {rounds}, {rounds}, #1",
                    "b.ne 2b",
                    "isb",
                    "mrs {end}, cntvct_el0",
                    start = out(reg) start,
                    end = out(reg) end,
                    rounds = inout(reg) rounds => _,
                    a = in(reg) a,
                    b = in(reg) b,
                    out("x0") _, out("x1") _, out("x2") _, out("x3") _,
                    options(nostack),
                );
            }
            end - start
        }
    };
}

timed!(timed_nothing,);
timed!(timed_hvc, "hvc #0");
timed!(timed_id_register, "mrs x0, id_aa64pfr0_el1");
timed!(timed_load, "ldr w1, [x0]");
timed!(timed_two_stores, "str w1, [x0]", "str wzr, [x0]");
timed!(
    timed_sgi,
    "msr icc_sgi1r_el1, x0",
    "isb",
    "mrs x1, icc_iar1_el1",
    "dsb sy",
    "msr icc_eoir1_el1, x1",
    "isb"
);

fn hvc_null() -> u64 {
    let version = u64::from(abi::Function::Version.id());
    best(
        |rounds| timed_hvc(rounds, version, 0),
        |rounds| timed_nothing(rounds, 0, 0),
    )
}

/// ID registers trap: what a domain may not use is hidden in them.
fn sysreg_trap() -> u64 {
    best(
        |rounds| timed_id_register(rounds, 0, 0),
        |rounds| timed_nothing(rounds, 0, 0),
    )
}

fn load(address: usize) -> u64 {
    let address = address as u64;
    best(
        |rounds| timed_load(rounds, address, 0),
        |rounds| timed_nothing(rounds, address, 0),
    )
}

/// Sends itself an SGI, acknowledges it and ends it.
fn sgi_self() -> u64 {
    const SGI: u32 = 3;
    gic::enable(SGI);
    let affinity = cpu::affinity();
    let target = 1 << (affinity & 0xf) | (affinity >> 8 & 0xff) << 16;
    let value = target | u64::from(SGI) << 24 | (affinity >> 16 & 0xff) << 32;
    let result = best(
        |rounds| timed_sgi(rounds, value, 0),
        |rounds| timed_nothing(rounds, value, 0),
    );
    gic::disable(SGI);
    result
}

static FIRED: AtomicU64 = AtomicU64::new(0);

fn on_timer(_: u32) {
    Timer::Virtual.stop();
    FIRED.store(timer::now(), Ordering::Relaxed);
}

/// From a timer's deadline, in WFI, until its handler has run.
fn timer_wfi() -> u64 {
    let intid = Timer::Virtual.intid();
    gic::set_handler(intid, Some(on_timer));
    gic::enable(intid);
    exception::unmask_irqs();
    let mut least = u64::MAX;
    for _ in 0..BATCHES {
        FIRED.store(0, Ordering::Relaxed);
        let deadline = timer::now() + timer::ticks(1);
        Timer::Virtual.set(deadline);
        while FIRED.load(Ordering::Relaxed) == 0 {
            cpu::wait_for_interrupt();
        }
        least = least.min(timer::now() - deadline);
    }
    exception::mask_irqs();
    gic::disable(intid);
    least
}

const PING: u32 = 1;
const PONG: u32 = 2;
static STOP: AtomicBool = AtomicBool::new(false);
static READY: AtomicBool = AtomicBool::new(false);

/// Waits for an SGI with interrupts masked, acknowledges it and ends it.
fn take_sgi() {
    loop {
        let intid = gic::acknowledge();
        if intid != gic::SPURIOUS {
            return gic::end(intid);
        }
        cpu::wait_for_interrupt();
    }
}

fn pong(affinity: usize) {
    gic::init_cpu();
    gic::enable(PING);
    READY.store(true, Ordering::Release);
    loop {
        take_sgi();
        if STOP.load(Ordering::Acquire) {
            return;
        }
        gic::send_sgi(PONG, affinity as u64);
    }
}

/// An SGI to another vCPU and one back, both in WFI between.
fn ipi_pingpong(other: u64) -> u64 {
    gic::enable(PONG);
    let own = usize::try_from(cpu::affinity()).unwrap_or(0);
    if let Err(error) = cpu::start(other, 1, pong, own) {
        println!("bench: the second vCPU does not start: {error:?}");
        return 0;
    }
    while !READY.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let mut least = u64::MAX;
    for _ in 0..BATCHES {
        let start = timer::now();
        for _ in 0..ROUNDS {
            gic::send_sgi(PING, other);
            take_sgi();
        }
        least = least.min((timer::now() - start) / ROUNDS);
    }
    STOP.store(true, Ordering::Release);
    gic::send_sgi(PING, other);
    least
}
