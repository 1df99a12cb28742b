//! PSCI, SMCCC and Isthmus's own calls. Arm DEN 0022 (PSCI 1.1) and DEN 0028 (SMCCC 1.2).

use abi::{Function, Status};
use runtime::harness::Outcome;
use runtime::smccc::{self, NOT_SUPPORTED, call_signed, id};
use runtime::timer::{self, Timer};
use runtime::{check, check_eq, cpu, gic, instruction, skip};

use super::on_isthmus;

/// `HVC #0`; the immediate is in bits 20 to 5.
const HVC: u32 = 0xd400_0002;
const SMC: u32 = 0xd400_0003;

/// PSCI's INVALID_PARAMETERS.
const INVALID_PARAMETERS: i64 = -2;

/// Function ids that no service has.
const UNKNOWN: [u32; 8] = [
    0x8400_004f,
    0xc400_004f,
    0x8000_1234,
    0xc000_1234,
    0xc600_0fff,
    0x8600_0000,
    0x8200_0000,
    0x0400_0000,
];

pub(super) fn psci_version() -> Outcome {
    let version = call_signed(id::PSCI_VERSION, [0; 3]);
    check!(
        version >> 16 == 1 && version & 0xffff >= 1,
        "version {version:#x}, expected 1.1"
    );
    Ok(())
}

pub(super) fn psci_features() -> Outcome {
    let there = [
        id::PSCI_VERSION,
        id::CPU_SUSPEND,
        id::CPU_OFF,
        id::CPU_ON,
        id::AFFINITY_INFO,
        id::SYSTEM_OFF,
        id::SYSTEM_RESET,
        id::PSCI_FEATURES,
    ];
    for function in there {
        let result = call_signed(id::PSCI_FEATURES, [function.into(), 0, 0]);
        check!(result >= 0, "{function:#x} is said to be missing: {result}");
    }
    for function in [0x8400_004f_u32, 0xc400_004f, 0] {
        let result = call_signed(id::PSCI_FEATURES, [function.into(), 0, 0]);
        check_eq!(result, NOT_SUPPORTED, "{function:#x}");
    }
    Ok(())
}

pub(super) fn psci_migrate() -> Outcome {
    let kind = call_signed(id::MIGRATE_INFO_TYPE, [0; 3]);
    check!(
        kind == 2 || kind == NOT_SUPPORTED,
        "type {kind}: there is no trusted OS to migrate"
    );
    Ok(())
}

pub(super) fn affinity_info() -> Outcome {
    check_eq!(
        smccc::affinity_info(cpu::affinity(), 0),
        0,
        "this vCPU is on"
    );
    for target in [0xff_00ff_ff0f, 0x0000_fe00, u64::MAX] {
        let result = smccc::affinity_info(target, 0);
        check_eq!(result, INVALID_PARAMETERS, "vCPU {target:#x}");
    }
    Ok(())
}

/// A standby state: the call returns when an interrupt is pending.
pub(super) fn suspend() -> Outcome {
    let intid = Timer::Virtual.intid();
    gic::enable(intid);
    let deadline = timer::now() + timer::ticks(10);
    Timer::Virtual.set(deadline);
    let result = call_signed(id::CPU_SUSPEND, [0, 0, 0]);
    let after = timer::now();
    let fired = Timer::Virtual.fired();
    Timer::Virtual.stop();
    gic::disable(intid);
    check_eq!(result, 0, "result");
    // An implementation may return early (5.4.4): but then not before it looked.
    check!(
        !on_isthmus() || (fired && after >= deadline),
        "it returned before the interrupt"
    );
    Ok(())
}

pub(super) fn smccc_version() -> Outcome {
    let version = call_signed(id::SMCCC_VERSION, [0; 3]);
    if version == NOT_SUPPORTED && !on_isthmus() {
        skip!("this firmware has no SMCCC_VERSION");
    }
    check!(
        version >= 0x1_0002,
        "version {version:#x}, expected 1.2 or later"
    );
    let feature = call_signed(id::PSCI_FEATURES, [id::SMCCC_VERSION.into(), 0, 0]);
    check_eq!(feature, 0, "PSCI_FEATURES of SMCCC_VERSION");
    Ok(())
}

pub(super) fn smccc_features() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let features = |function: u32| call_signed(id::SMCCC_ARCH_FEATURES, [function.into(), 0, 0]);
    check_eq!(features(id::SMCCC_VERSION), 0, "SMCCC_VERSION");
    check_eq!(features(id::SMCCC_ARCH_FEATURES), 0, "SMCCC_ARCH_FEATURES");
    for function in [
        id::ARCH_WORKAROUND_1,
        id::ARCH_WORKAROUND_2,
        id::ARCH_WORKAROUND_3,
    ] {
        let result = features(function);
        check!((-2..=1).contains(&result), "{function:#x}: {result}");
        if result >= 0 {
            // Calling it does nothing that one could see, but it must be there.
            smccc::call(function, [0; 5]);
        }
    }
    check_eq!(features(0x8000_1234), NOT_SUPPORTED, "an unknown function");
    Ok(())
}

/// Calls `function` with registers that are all different, and returns what it left in them.
fn call_with_all(instruction: u32, function: u32) -> Result<[u64; 18], runtime::exception::Fault> {
    let mut registers = core::array::from_fn(|index| 0x1111_0000_0000_0000 | index as u64);
    registers[0] = function.into();
    // SAFETY: a call changes x0 to x17 at most.
    unsafe { instruction::execute(instruction, &mut registers) }?;
    Ok(registers)
}

pub(super) fn smccc_preserves() -> Outcome {
    let calls = [
        Function::Version.id(),
        Function::Features.id(),
        Function::Uid.id(),
        Function::IoreqMsi.id(),
        id::PSCI_VERSION,
        id::AFFINITY_INFO,
        id::SMCCC_VERSION,
        id::TRNG_VERSION,
    ];
    for function in calls.into_iter().chain(UNKNOWN) {
        let result = call_with_all(HVC, function);
        check!(result.is_ok(), "{function:#x}: {result:?}");
        let registers = result.unwrap_or_default();
        for (index, value) in registers.into_iter().enumerate().skip(4) {
            let before = 0x1111_0000_0000_0000 | index as u64;
            check_eq!(value, before, "x{index} after {function:#x}");
        }
    }
    Ok(())
}

pub(super) fn smccc_unknown() -> Outcome {
    for function in UNKNOWN {
        let result = call_signed(function, [1, 2, 3]);
        check_eq!(result, NOT_SUPPORTED, "{function:#x}");
    }
    Ok(())
}

/// The TRNG gives numbers that differ, or is not there (DEN 0098).
pub(super) fn trng() -> Outcome {
    let version = call_signed(id::TRNG_VERSION, [0; 3]);
    if version < 0 {
        check_eq!(version, NOT_SUPPORTED, "TRNG_VERSION");
        skip!("there is no entropy");
    }
    check!(version >= 0x1_0000, "version {version:#x}");
    const RND64: u32 = 0xc400_0053;
    let [first, second] = [0; 2].map(|_: i32| smccc::call(RND64, [192, 0, 0, 0, 0]));
    check_eq!((first[0], second[0]), (0, 0), "results");
    check!(
        first[1..] != second[1..],
        "the same 192 bits twice: {first:x?}"
    );
    Ok(())
}

pub(super) fn uid() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let registers = smccc::call(Function::Uid.id(), [0; 5]);
    let expected = abi::uid_registers().map(u64::from);
    check_eq!(
        registers.map(|register| register & 0xffff_ffff),
        expected,
        "UID"
    );
    Ok(())
}

pub(super) fn version() -> Outcome {
    let Ok(version) = smccc::version() else {
        skip!("not on Isthmus");
    };
    check!(
        version.serves(abi::VERSION),
        "version {version:?} does not serve {:?}",
        abi::VERSION
    );
    let [major, minor, ..] = smccc::call(Function::Revision.id(), [0; 5]);
    check_eq!(
        (major, minor),
        (version.major.into(), version.minor.into()),
        "revision"
    );
    Ok(())
}

pub(super) fn features() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let features = |function: u32| call_signed(Function::Features.id(), [function.into(), 0, 0]);
    check_eq!(features(Function::Version.id()), 0, "VERSION");
    check_eq!(features(Function::Features.id()), 0, "FEATURES");
    for unknown in [0xc600_0fff, 0, id::PSCI_VERSION] {
        check_eq!(features(unknown), NOT_SUPPORTED, "{unknown:#x}");
    }
    Ok(())
}

/// This domain is not the control domain, so it learns nothing from these and changes nothing.
pub(super) fn control_denied() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let denied = Status::Denied.to_register();
    for function in [
        Function::DomainFind,
        Function::DomainInfo,
        Function::PciInfo,
        Function::PciAssign,
        Function::PciUnassign,
        Function::PciEmulate,
    ] {
        for arguments in [[0; 5], [1, 0x8, 0x10, 0, 0], [u64::MAX; 5]] {
            let [x0, x1, x2, x3] = smccc::call(function.id(), arguments);
            check_eq!(x0, denied, "{function:?} of {arguments:x?}");
            check_eq!([x1, x2, x3], arguments[..3], "{function:?}: x1 to x3");
        }
    }
    Ok(())
}

/// This domain has no ioreq server, so it may do nothing with one.
pub(super) fn ioreq_refused() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let flags = abi::MapFlags::NONE;
    for server in [0, 1, 7, u32::MAX] {
        check!(
            smccc::ioreq_complete(server, 0).is_err(),
            "COMPLETE of server {server}"
        );
        check!(
            smccc::ioreq_map(server, 0x10, 0x1000_0000, 0x1000, flags).is_err(),
            "MAP of server {server}"
        );
        check!(
            smccc::ioreq_unmap(server, 0x10, 0x1000_0000).is_err(),
            "UNMAP of server {server}"
        );
        check!(
            smccc::ioreq_msi(server, 0x10, 0x0809_0040, 0).is_err(),
            "MSI of server {server}"
        );
        check!(
            smccc::ioreq_function(server, None).is_err(),
            "FUNCTION of server {server}"
        );
        check!(
            smccc::ioreq_wait(Some((server, 0))).is_err(),
            "WAIT with server {server}"
        );
    }
    let status = smccc::ioreq_wait(None);
    check!(
        matches!(status, Err(error) if error != Status::Ok),
        "WAIT: {status:?}"
    );
    Ok(())
}

/// An immediate other than 0 means nothing here: NOT_SUPPORTED, or an undefined instruction.
pub(super) fn hvc_immediate() -> Outcome {
    for immediate in [1, 0x1234, 0xffff] {
        match call_with_all(HVC | immediate << 5, id::PSCI_VERSION) {
            Ok(registers) if on_isthmus() => {
                check_eq!(
                    registers[0].cast_signed(),
                    NOT_SUPPORTED,
                    "HVC #{immediate:#x}"
                );
            }
            Ok(_) => {}
            Err(fault) => check!(fault.is_undefined(), "HVC #{immediate:#x}: {fault:?}"),
        }
    }
    Ok(())
}

pub(super) fn smc() -> Outcome {
    for immediate in [0, 1, 0xffff] {
        match call_with_all(SMC | immediate << 5, id::PSCI_VERSION) {
            Ok(registers) => check_eq!(
                registers[0].cast_signed(),
                NOT_SUPPORTED,
                "SMC #{immediate:#x}"
            ),
            Err(fault) => check!(fault.is_undefined(), "SMC #{immediate:#x}: {fault:?}"),
        }
    }
    Ok(())
}
