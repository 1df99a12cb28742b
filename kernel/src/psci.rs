//! Power of vCPUs and domains: PSCI 1.1 (Arm DEN 0022).

use crate::exit::Next;
use crate::lifecycle::{self, Then};
use crate::pcpu::Running;
use crate::sched;
use crate::smccc::NOT_SUPPORTED;
use crate::vcpu::Activity;

const SUCCESS: u64 = 0;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const DENIED: u64 = -3i64 as u64;
const ALREADY_ON: u64 = -4i64 as u64;
const INTERNAL_FAILURE: u64 = -6i64 as u64;
const INVALID_ADDRESS: u64 = -9i64 as u64;

/// PSCI_VERSION: 1.1.
const VERSION: u64 = 1 << 16 | 1;
/// MIGRATE_INFO_TYPE: there is no Trusted OS that would have to migrate.
const NO_TRUSTED_OS: u64 = 2;

/// AFFINITY_INFO (5.7).
const ON: u64 = 0;
const OFF: u64 = 1;

/// The 64-bit variant of a call, where there is one.
const WIDE: u32 = 1 << 30;

mod function {
    pub(super) const VERSION: u32 = 0x8400_0000;
    pub(super) const CPU_SUSPEND: u32 = 0x8400_0001;
    pub(super) const CPU_OFF: u32 = 0x8400_0002;
    pub(super) const CPU_ON: u32 = 0x8400_0003;
    pub(super) const AFFINITY_INFO: u32 = 0x8400_0004;
    pub(super) const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub(super) const SYSTEM_OFF: u32 = 0x8400_0008;
    pub(super) const SYSTEM_RESET: u32 = 0x8400_0009;
    pub(super) const FEATURES: u32 = 0x8400_000a;
}

/// Handles a call. The HVC has been carried out, so the guest goes on behind it.
#[inline(never)]
pub(crate) fn handle(running: &mut Running<'_>, function: u32) -> Next {
    let wide = function & WIDE != 0;
    let argument = |n: usize| {
        let value = running.state.frame.x[n];
        if wide { value } else { value & 0xffff_ffff }
    };
    let (first, second, third) = (argument(1), argument(2), argument(3));
    let answer = match function & !WIDE {
        function::VERSION if !wide => VERSION,
        function::CPU_SUSPEND => return suspend(running),
        function::CPU_OFF if !wide => {
            // Returns only if it is denied, which it never is: the last vCPU may go too (5.5).
            sched::power_off(running);
            return Next::Resume;
        }
        function::CPU_ON => cpu_on(running, first, second, third),
        function::AFFINITY_INFO => affinity_info(running, first, second),
        function::MIGRATE_INFO_TYPE if !wide => NO_TRUSTED_OS,
        function::SYSTEM_OFF if !wide => {
            lifecycle::stop(running.domain, Then::Off);
            return Next::Resume;
        }
        function::SYSTEM_RESET if !wide => {
            lifecycle::stop(running.domain, Then::Reset);
            return Next::Resume;
        }
        function::FEATURES if !wide => features(first),
        _ => NOT_SUPPORTED,
    };
    running.state.frame.x[0] = answer;
    Next::Resume
}

/// CPU_SUSPEND (5.4): any state is taken for standby, and so is WFI; x0 is SUCCESS when it wakes.
fn suspend(running: &mut Running<'_>) -> Next {
    running.state.frame.x[0] = SUCCESS;
    sched::block(running);
    if running
        .domain
        .interrupts
        .pending(running.domain, running.vcpu)
    {
        sched::notify(&running.reference());
    }
    Next::Resume
}

/// Returns which vCPU has this affinity.
fn find(running: &Running<'_>, affinity: u64) -> Option<usize> {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    running
        .domain
        .vcpus
        .iter()
        .position(|vcpu| vcpu.mpidr & AFFINITY == affinity)
}

fn cpu_on(running: &Running<'_>, target: u64, entry: u64, context: u64) -> u64 {
    let Some(index) = find(running, target) else {
        return INVALID_PARAMETERS;
    };
    if running.domain.memory.read(entry, &mut [0; 4]).is_err() {
        return INVALID_ADDRESS;
    }
    // A domain that stops meanwhile stays stopped: its vCPUs are all off by then, and this one must
    // not come back.
    let lifecycle = running.domain.lifecycle.lock();
    if *lifecycle != lifecycle::Lifecycle::Running {
        return DENIED;
    }
    match lifecycle::power_on(&running.domain.reference(index), entry, context) {
        Ok(true) => SUCCESS,
        Ok(false) => ALREADY_ON,
        Err(_) => INTERNAL_FAILURE,
    }
}

fn affinity_info(running: &Running<'_>, target: u64, level: u64) -> u64 {
    if level != 0 {
        return INVALID_PARAMETERS;
    }
    let Some(index) = find(running, target) else {
        return INVALID_PARAMETERS;
    };
    let run = running.domain.vcpus[index].run.lock();
    // Off, and ready to be turned on again.
    if run.activity == Activity::Off && run.loaded.is_none() {
        OFF
    } else {
        ON
    }
}

fn features(function: u64) -> u64 {
    const SMCCC_VERSION: u64 = 0x8000_0000;
    let Ok(function) = u32::try_from(function) else {
        return NOT_SUPPORTED;
    };
    if u64::from(function) == SMCCC_VERSION {
        return SUCCESS;
    }
    let wide = function & WIDE != 0;
    match function & !WIDE {
        function::CPU_SUSPEND | function::CPU_ON | function::AFFINITY_INFO => SUCCESS,
        function::VERSION
        | function::CPU_OFF
        | function::MIGRATE_INFO_TYPE
        | function::SYSTEM_OFF
        | function::SYSTEM_RESET
        | function::FEATURES
            if !wide =>
        {
            SUCCESS
        }
        _ => NOT_SUPPORTED,
    }
}
