//! Prints CNTVCT_EL0, in decimal: a program for the Debian guest, which has no compiler. With an
//! instruction clock of 1 GHz it tells how many instructions have passed since the clock was at zero.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

global_asm!(".globl _start", "_start:", "mrs x0, cntvct_el0", "b {main}", main = sym main);

/// System calls of Linux (include/uapi/asm-generic/unistd.h).
const WRITE: u64 = 64;
const EXIT_GROUP: u64 = 94;

extern "C" fn main(ticks: u64) -> ! {
    let mut line = [b'\n'; 21];
    let mut first = line.len() - 1;
    let mut rest = ticks;
    loop {
        first -= 1;
        line[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    system_call(
        WRITE,
        1,
        line[first..].as_ptr() as u64,
        (line.len() - first) as u64,
    );
    loop {
        system_call(EXIT_GROUP, 0, 0, 0);
    }
}

fn system_call(number: u64, first: u64, second: u64, third: u64) -> u64 {
    let result;
    // SAFETY: both calls of this program only read its own memory.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") first => result, in("x1") second, in("x2") third);
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        system_call(EXIT_GROUP, 101, 0, 0);
    }
}
