//! Calls over `HVC #0`: PSCI, SMCCC discovery and Isthmus's hypercalls.
//!
//! x0 to x3 return results, x4 to x17 keep their values (SMCCC 1.1, section 2.3): the compiler relies
//! on it here, and `selftest` checks it.

use core::arch::asm;

use abi::{AssignFlags, Function, MapFlags, Status};

/// PSCI 1.1 and SMCCC function ids (Arm DEN 0022 and DEN 0028).
pub mod id {
    /// PSCI_VERSION.
    pub const PSCI_VERSION: u32 = 0x8400_0000;
    /// CPU_SUSPEND, SMC64.
    pub const CPU_SUSPEND: u32 = 0xc400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// CPU_ON, SMC64.
    pub const CPU_ON: u32 = 0xc400_0003;
    /// AFFINITY_INFO, SMC64.
    pub const AFFINITY_INFO: u32 = 0xc400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const PSCI_FEATURES: u32 = 0x8400_000a;
    /// SYSTEM_SUSPEND, SMC64.
    pub const SYSTEM_SUSPEND: u32 = 0xc400_000e;
    /// SYSTEM_RESET2, SMC64.
    pub const SYSTEM_RESET2: u32 = 0xc400_0012;
    /// SMCCC_VERSION.
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES.
    pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
    /// SMCCC_ARCH_WORKAROUND_1.
    pub const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
    /// SMCCC_ARCH_WORKAROUND_2.
    pub const ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
    /// SMCCC_ARCH_WORKAROUND_3.
    pub const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
    /// TRNG_VERSION.
    pub const TRNG_VERSION: u32 = 0x8400_0050;
}

/// What SMCCC returns for a function that is not there.
pub const NOT_SUPPORTED: i64 = -1;

/// Calls `function` with x1 to x5, and returns x0 to x3.
pub fn call(function: u32, arguments: [u64; 5]) -> [u64; 4] {
    let [mut x1, mut x2, mut x3, x4, x5] = arguments;
    let mut x0 = u64::from(function);
    // SAFETY: a call that follows SMCCC changes no other register. What it does to the machine is what
    // the caller asked for by name.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x0,
            inout("x1") x1,
            inout("x2") x2,
            inout("x3") x3,
            in("x4") x4,
            in("x5") x5,
            options(nostack),
        );
    }
    [x0, x1, x2, x3]
}

/// Calls `function` and returns x0 as the signed number that PSCI and SMCCC mean by it.
pub fn call_signed(function: u32, arguments: [u64; 3]) -> i64 {
    let [x1, x2, x3] = arguments;
    let [x0, ..] = call(function, [x1, x2, x3, 0, 0]);
    if function & 1 << 30 == 0 {
        // SMC32 functions return 32 bits.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the upper half is not returned"
        )]
        return i64::from(x0 as i32);
    }
    x0.cast_signed()
}

/// Why PSCI refused (DEN 0022, 5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciError {
    /// NOT_SUPPORTED.
    NotSupported,
    /// INVALID_PARAMETERS.
    InvalidParameters,
    /// DENIED.
    Denied,
    /// ALREADY_ON.
    AlreadyOn,
    /// ON_PENDING.
    OnPending,
    /// INTERNAL_FAILURE.
    InternalFailure,
    /// NOT_PRESENT.
    NotPresent,
    /// DISABLED.
    Disabled,
    /// INVALID_ADDRESS.
    InvalidAddress,
    /// Any other value.
    Other(i64),
}

impl PsciError {
    fn of(value: i64) -> Result<(), Self> {
        Err(match value {
            0 => return Ok(()),
            -1 => Self::NotSupported,
            -2 => Self::InvalidParameters,
            -3 => Self::Denied,
            -4 => Self::AlreadyOn,
            -5 => Self::OnPending,
            -6 => Self::InternalFailure,
            -7 => Self::NotPresent,
            -8 => Self::Disabled,
            -9 => Self::InvalidAddress,
            other => Self::Other(other),
        })
    }
}

/// Starts a vCPU at `entry` with `context` in its x0.
pub fn cpu_on(target: u64, entry: u64, context: u64) -> Result<(), PsciError> {
    PsciError::of(call_signed(id::CPU_ON, [target, entry, context]))
}

/// Returns 0 for on, 1 for off, 2 for on its way, or an error.
pub fn affinity_info(target: u64, lowest_level: u64) -> i64 {
    call_signed(id::AFFINITY_INFO, [target, lowest_level, 0])
}

/// Turns this vCPU off.
pub fn cpu_off() -> ! {
    call(id::CPU_OFF, [0; 5]);
    panic!("CPU_OFF returned");
}

/// Ends the domain.
pub fn system_off() -> ! {
    call(id::SYSTEM_OFF, [0; 5]);
    loop {
        crate::cpu::wait_for_interrupt();
    }
}

/// Starts the domain again.
pub fn system_reset() -> ! {
    call(id::SYSTEM_RESET, [0; 5]);
    loop {
        crate::cpu::wait_for_interrupt();
    }
}

/// Reads what a hypercall's x0 says; a value that is no status counts as a broken protocol.
fn status(x0: u64) -> Result<(), Status> {
    if x0 == Status::Ok.to_register() {
        return Ok(());
    }
    Status::try_from(x0.cast_signed())
        .unwrap_or(Status::Protocol)
        .into_result()
}

/// Returns the version of Isthmus's interface; an error where there is no Isthmus.
pub fn version() -> Result<abi::Version, Status> {
    let [x0, x1, ..] = call(Function::Version.id(), [0; 5]);
    status(x0).map(|()| abi::Version::from_register(x1))
}

/// What [`ioreq_wait`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The server that has work.
    pub server: u32,
    /// The slot with a request; `None` if only posted writes or changes of functions wait.
    pub slot: Option<u32>,
}

/// Completes `(server, slot)` if there is one, and waits until a server of this domain has work.
pub fn ioreq_wait(complete: Option<(u32, u32)>) -> Result<Work, Status> {
    let (server, slot) = complete.map_or((abi::NONE, abi::NONE), |(server, slot)| {
        (u64::from(server), u64::from(slot))
    });
    let [x0, server, slot, _] = call(Function::IoreqWait.id(), [server, slot, 0, 0, 0]);
    status(x0)?;
    Ok(Work {
        server: u32::try_from(server).map_err(|_| Status::Protocol)?,
        slot: u32::try_from(slot).ok(),
    })
}

/// Completes the request in `slot` of `server`.
pub fn ioreq_complete(server: u32, slot: u32) -> Result<(), Status> {
    let arguments = [u64::from(server), u64::from(slot), 0, 0, 0];
    status(call(Function::IoreqComplete.id(), arguments)[0])
}

/// Returns the server's first function, or the one that comes next behind `after`.
pub fn ioreq_function(server: u32, after: Option<u32>) -> Result<u32, Status> {
    let arguments = [server.into(), after.map_or(abi::NONE, u64::from), 0, 0, 0];
    let [x0, sbdf, ..] = call(Function::IoreqFunction.id(), arguments);
    status(x0)?;
    u32::try_from(sbdf).map_err(|_| Status::Protocol)
}

/// Claims `size` bytes at `address` of the target for the function `sbdf`.
pub fn ioreq_map(
    server: u32,
    sbdf: u32,
    address: u64,
    size: u64,
    flags: MapFlags,
) -> Result<(), Status> {
    let arguments = [
        u64::from(server),
        u64::from(sbdf),
        address,
        size,
        flags.bits(),
    ];
    status(call(Function::IoreqMap.id(), arguments)[0])
}

/// Gives the range at `address` back.
pub fn ioreq_unmap(server: u32, sbdf: u32, address: u64) -> Result<(), Status> {
    let arguments = [u64::from(server), u64::from(sbdf), address, 0, 0];
    status(call(Function::IoreqUnmap.id(), arguments)[0])
}

/// Sends the MSI (`address`, `data`) of the function `sbdf` to the target.
pub fn ioreq_msi(server: u32, sbdf: u32, address: u64, data: u32) -> Result<(), Status> {
    let arguments = [
        u64::from(server),
        u64::from(sbdf),
        address,
        u64::from(data),
        0,
    ];
    status(call(Function::IoreqMsi.id(), arguments)[0])
}

/// Returns the number of the domain called `name`.
pub fn domain_find(name: &str) -> Result<u64, Status> {
    let [a, b, c, d] = abi::name_to_registers(name).ok_or(Status::NotFound)?;
    let [x0, number, ..] = call(Function::DomainFind.id(), [a, b, c, d, 0]);
    status(x0).map(|()| number)
}

/// Returns what a domain does ([`abi::DomainState`]) and has (`abi::DOMAIN_…`).
pub fn domain_info(domain: u32) -> Result<(u64, u64), Status> {
    let [x0, state, flags, _] = call(Function::DomainInfo.id(), [domain.into(), 0, 0, 0, 0]);
    status(x0).map(|()| (state, flags))
}

/// Returns how a function of the machine stands ([`abi::FunctionState`]), and which domain has it where.
pub fn pci_info(host: u32) -> Result<(u64, Option<(u64, u32)>), Status> {
    let [x0, state, domain, slot] = call(Function::PciInfo.id(), [host.into(), 0, 0, 0, 0]);
    status(x0)?;
    let slot = u32::try_from(slot).ok();
    Ok((state, slot.map(|slot| (domain, slot))))
}

/// Gives a function of the machine to a domain, which sees it at `slot`.
pub fn pci_assign(domain: u32, host: u32, slot: u32, flags: AssignFlags) -> Result<(), Status> {
    let arguments = [domain.into(), host.into(), slot.into(), flags.bits(), 0];
    status(call(Function::PciAssign.id(), arguments)[0])
}

/// Takes the function at `slot` away from a domain.
pub fn pci_unassign(domain: u32, slot: u32) -> Result<(), Status> {
    let arguments = [domain.into(), slot.into(), 0, 0, 0];
    status(call(Function::PciUnassign.id(), arguments)[0])
}

/// Gives the function that server `server` of the domain `model` has at `slot` to a domain.
pub fn pci_emulate(domain: u32, slot: u32, model: u32, server: u32) -> Result<(), Status> {
    let arguments = [domain.into(), slot.into(), model.into(), server.into(), 0];
    status(call(Function::PciEmulate.id(), arguments)[0])
}
