//! The end: what is told when EL2 itself goes wrong, and how the machine stops.

use crate::{pcpu, terminal};
use arch::entry::Fault;
use arch::{asm, gic, sysreg};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use smccc::Smc;

/// How many return addresses are shown.
const DEPTH: usize = 24;

/// The SGI that stops the other pCPUs.
pub(crate) const STOP: u8 = 15;

static STOPPING: AtomicBool = AtomicBool::new(false);

macro_rules! last_words {
    ($($text:tt)*) => { terminal::last_words(format_args!($($text)*)) };
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    stop_others();
    last_words!("isthmus: PANIC on pCPU {}: {info}", number());
    let frame: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack)) };
    trace(frame);
    stop_machine()
}

/// Reports an exception that EL2 itself took.
#[unsafe(no_mangle)]
extern "C" fn isthmus_fault(fault: &Fault, vector: u64) -> ! {
    stop_others();
    let what = match vector & 3 {
        0 => "a synchronous exception",
        1 => "an IRQ",
        2 => "an FIQ",
        _ => "an SError",
    };
    let base = arch::entry::image().start;
    last_words!("isthmus: PANIC on pCPU {}: {what} at EL2", number());
    last_words!(
        "  ESR {:#010x}  FAR {:#018x}  PC image+{:#x}  SP {:#x}  PSTATE {:#x}",
        sysreg::read!("esr_el2"),
        sysreg::read!("far_el2"),
        fault.pc.wrapping_sub(base),
        fault.sp,
        fault.pstate
    );
    for (n, four) in fault.x.chunks(4).enumerate() {
        let value = |i: usize| four.get(i).copied().unwrap_or(0);
        last_words!(
            "  x{:<2} {:016x} {:016x} {:016x} {:016x}",
            n * 4,
            value(0),
            value(1),
            value(2),
            value(3)
        );
    }
    trace(fault.x[29]);
    stop_machine()
}

fn number() -> usize {
    pcpu::try_this().map_or(0, |cpu| cpu.number)
}

/// Prints the return addresses that the frame pointers lead to, as offsets in the image.
fn trace(mut frame: u64) {
    let image = arch::entry::image();
    last_words!("  stack, as offsets in the image:");
    for _ in 0..DEPTH {
        let on_stack = frame >= 1 << 47 || (image.data..image.end).contains(&frame);
        if frame == 0 || !frame.is_multiple_of(8) || !on_stack {
            return;
        }
        let record = frame as *const u64;
        // SAFETY: aligned, and on a stack as far as can be told; a fault here ends in `park`.
        let (next, lr) = unsafe { (record.read_volatile(), record.add(1).read_volatile()) };
        if lr == 0 {
            return;
        }
        last_words!("    +{:#x}", lr.wrapping_sub(image.start));
        if next <= frame {
            return;
        }
        frame = next;
    }
}

/// Stops the other pCPUs where they are. If another one came here first, this one stops.
fn stop_others() {
    if STOPPING.swap(true, Ordering::AcqRel) {
        park();
    }
    if pcpu::try_this().is_some() {
        gic::cpu::send_sgi_to_others(STOP);
    }
}

/// Waits for ever.
pub(crate) fn park() -> ! {
    loop {
        asm::wfe();
    }
}

/// Turns the machine off by PSCI, or parks if it cannot be.
pub(crate) fn stop_machine() -> ! {
    let _ = smccc::psci::system_off::<Smc>();
    park()
}

/// Says one line and stops: for what the machine or the image lacks at boot.
pub(crate) fn give_up(why: core::fmt::Arguments<'_>) -> ! {
    last_words!("isthmus: cannot start: {why}");
    stop_machine()
}
