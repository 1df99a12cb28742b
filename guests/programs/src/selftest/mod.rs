//! Tests from inside a domain: what a guest may rely on, seen by a guest.
//!
//! Most of them also hold on QEMU's `virt` itself, which shows that they ask for what hardware does.
//! Where only Isthmus promises something, the test is skipped elsewhere. The words on the command
//! line, if there are any, are what the names of the tests to run begin with; `rx` is a test of the UART
//! that needs somebody to type.

mod accesses;
mod bus;
mod firmware;
mod interrupts;
mod lpi;
mod processor;
mod uart;
mod vcpus;

use alloc::vec::Vec;

use runtime::harness::{self, Test};
use runtime::platform::{self, Platform};
use runtime::{gic, smccc};

macro_rules! tests {
    ($($module:ident: $($name:ident)*;)*) => {
        &[$($(Test { name: concat!(stringify!($module), "_", stringify!($name)), run: $module::$name },)*)*]
    };
}

/// The tests, in the order in which they run: the first looks at registers that nobody has touched.
#[rustfmt::skip]
const TESTS: &[Test] = tests! {
    processor: simd_starts_at_zero;
    firmware: psci_version psci_features psci_migrate affinity_info suspend
              smccc_version smccc_features smccc_preserves smccc_unknown trng
              uid version features ioreq_refused control_denied hvc_immediate smc;
    processor: id_registers debug_registers performance_monitor set_way zero_block
               timer_virtual timer_physical timer_line timer_offsets;
    interrupts: identification sgi_all priorities preemption mask wfi_masked
                spi_edge spi_level spi_disabled overflow active split_end registers;
    uart: identification transmit transmit_interrupt;
    vcpus: on_off on_errors on_concurrent sgi_round_trip spi_route timers_apart simd_preserved;
    bus: host_bridge absent widths odd_accesses unaligned writes_dropped;
    accesses: loads stores loads_el0 stores_el0 refused stack_pointer page_ends races;
    lpi: identification raise disabled clear discard identity unmapped many move_event move_all reset;
};

/// Runs the tests and powers off.
pub fn main(platform: &'static Platform) {
    gic::init_distributor();
    gic::init_cpu();
    let words: Vec<&str> = platform.arguments().split_ascii_whitespace().collect();
    let wanted =
        |test: &&Test| words.is_empty() || words.iter().any(|word| test.name.starts_with(word));
    let mut tests: Vec<Test> = TESTS
        .iter()
        .filter(wanted)
        .map(|test| Test {
            name: test.name,
            run: test.run,
        })
        .collect();
    if words.contains(&"rx") {
        tests.push(Test {
            name: "uart_receive",
            run: uart::receive,
        });
    }
    harness::run(&tests)
}

/// Tells whether the hypervisor is Isthmus.
fn on_isthmus() -> bool {
    smccc::version().is_ok()
}

/// Returns the affinity of vCPU `index`, if there is one.
fn vcpu(index: usize) -> Option<u64> {
    platform::get().cpus.get(index).copied()
}
