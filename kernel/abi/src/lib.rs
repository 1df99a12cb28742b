//! What the hypervisor and its domains agree on: hypercall numbers, status codes, identifiers.
//!
//! Hypercalls follow the SMC Calling Convention (Arm DEN 0028, SMCCC 1.2) over `HVC #0`: fast calls
//! of the vendor-specific hypervisor service. A function id is
//!
//! ```text
//!   31   30   29    24 23     16 15                    0
//!  +----+----+--------+---------+-----------------------+
//!  | 1  | 64 | owner  |    0    |        number         |
//!  +----+----+--------+---------+-----------------------+
//!    |    |      +-- 6: vendor-specific hypervisor service
//!    |    +--------- 1: 64-bit registers
//!    +-------------- 1: fast call
//! ```
//!
//! x0 returns a [`Status`], x1 to x3 results; x4 to x17 keep their values. `kernel/docs/hypercalls.md`
//! describes each call.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

/// The version of this interface that [`Function::Version`] returns.
///
/// The minor number grows when something is added, the major number when something changes.
pub const VERSION: Version = Version { major: 1, minor: 2 };

/// What [`Function::Uid`] returns, as the bytes of 5972701c-aa83-40fb-af07-294b314a365d.
pub const UID: [u8; 16] = [
    0x59, 0x72, 0x70, 0x1c, 0xaa, 0x83, 0x40, 0xfb, 0xaf, 0x07, 0x29, 0x4b, 0x31, 0x4a, 0x36, 0x5d,
];

/// "No server", "no slot" or "no domain", where a register would otherwise name one.
pub const NONE: u64 = !0;

/// Returns the four registers, w0 to w3, in which [`Function::Uid`] returns [`UID`].
///
/// Byte 0 is in the low-order bits of w0 (SMCCC 1.2, general service queries).
pub const fn uid_registers() -> [u32; 4] {
    let [
        b0,
        b1,
        b2,
        b3,
        b4,
        b5,
        b6,
        b7,
        b8,
        b9,
        b10,
        b11,
        b12,
        b13,
        b14,
        b15,
    ] = UID;
    [
        u32::from_le_bytes([b0, b1, b2, b3]),
        u32::from_le_bytes([b4, b5, b6, b7]),
        u32::from_le_bytes([b8, b9, b10, b11]),
        u32::from_le_bytes([b12, b13, b14, b15]),
    ]
}

/// A version of the interface: x1 of [`Function::Version`], w0 and w1 of [`Function::Revision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Differs between versions that do not understand each other.
    pub major: u16,
    /// Grows with additions.
    pub minor: u16,
}

impl Version {
    /// Returns the version as x1 holds it.
    pub const fn to_register(self) -> u64 {
        (self.major as u64) << 16 | self.minor as u64
    }

    /// Reads the version from x1; bits 63 to 32 are ignored.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves are what is wanted"
    )]
    pub const fn from_register(register: u64) -> Self {
        Self {
            major: (register >> 16) as u16,
            minor: register as u16,
        }
    }

    /// Says whether a program written for `wanted` works with this version.
    pub const fn serves(self, wanted: Version) -> bool {
        self.major == wanted.major && self.minor >= wanted.minor
    }
}

/// Makes the enum of function ids and the list of all of them from one table.
macro_rules! functions {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal,)+) => {
        /// A hypercall, by the function id that w0 holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Function {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Function {
            /// All functions that this version of the interface has.
            pub const ALL: &[Function] = &[$(Function::$name,)+];

            /// Returns the function id, as w0 holds it.
            pub const fn id(self) -> u32 {
                match self {
                    $(Function::$name => $id,)+
                }
            }
        }

        impl TryFrom<u32> for Function {
            type Error = UnknownFunction;

            #[inline(always)]
            fn try_from(id: u32) -> Result<Self, UnknownFunction> {
                match id {
                    $($id => Ok(Function::$name),)+
                    _ => Err(UnknownFunction(id)),
                }
            }
        }
    };
}

functions! {
    /// Returns [`VERSION`] in x1, and does nothing else.
    Version = 0xc600_0000,
    /// Says whether the function in x1 is implemented in this build.
    Features = 0xc600_0001,
    /// Completes one request if asked to, then waits until a server of the caller has work.
    IoreqWait = 0xc600_0010,
    /// Completes one request.
    IoreqComplete = 0xc600_0011,
    /// Claims an MMIO range of the target for a function of the server.
    IoreqMap = 0xc600_0012,
    /// Gives an MMIO range back.
    IoreqUnmap = 0xc600_0013,
    /// Sends an MSI of a function of the server to the target.
    IoreqMsi = 0xc600_0014,
    /// Returns the function of a server that comes behind another one.
    IoreqFunction = 0xc600_0015,
    /// Returns the number of the domain whose name is in x1 to x4.
    DomainFind = 0xc600_0020,
    /// Returns what a domain has and does.
    DomainInfo = 0xc600_0021,
    /// Returns who has a function of the machine, and where.
    PciInfo = 0xc600_0022,
    /// Gives a function of the machine to a domain.
    PciAssign = 0xc600_0023,
    /// Takes a function away from a domain.
    PciUnassign = 0xc600_0024,
    /// Gives a function of a device model to the domain that it serves.
    PciEmulate = 0xc600_0025,
    /// Returns the number of functions (SMCCC general service query, deprecated by SMCCC 1.2).
    CallCount = 0x8600_ff00,
    /// Returns [`UID`] in w0 to w3 (SMCCC general service query).
    Uid = 0x8600_ff01,
    /// Returns [`VERSION`] in w0 and w1 (SMCCC general service query).
    Revision = 0x8600_ff03,
}

impl Function {
    /// Says whether `id` is of the vendor-specific hypervisor service, implemented or not.
    pub const fn is_ours(id: u32) -> bool {
        id & 0xbf00_0000 == 0x8600_0000
    }
}

/// A function id that this version of the interface does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFunction(
    /// The id, as w0 held it.
    pub u32,
);

/// What x0 says when a hypercall returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i64)]
#[non_exhaustive]
#[must_use]
pub enum Status {
    /// Done.
    Ok = 0,
    /// There is no such function, or not in this build (the value is SMCCC's).
    NotSupported = -1,
    /// An argument has a value that no call of this kind can use: reserved bits, a size of zero.
    InvalidArgument = -2,
    /// What an argument names does not exist: no such server, slot, or range.
    NotFound = -3,
    /// It exists, and the caller's domain neither owns it nor was granted it.
    Denied = -4,
    /// No memory is left for what the call needs.
    NoMemory = -5,
    /// Somebody else has it, or it is not in the state that the call needs.
    Busy = -6,
    /// An address or a range of them lies outside of what it may reach.
    BadAddress = -7,
    /// The other side of it has ended: the target domain is no more.
    Gone = -8,
    /// The caller broke the protocol of a shared ring; the request it spoke of is untouched.
    Protocol = -9,
    /// The slot has a function already.
    Occupied = -10,
    /// The function belongs to a domain already.
    Taken = -11,
    /// The function cannot be kept apart from one that another domain has.
    Group = -12,
    /// The domain was made without IOMMU, or no SMMU checks what the function reaches.
    NoIommu = -13,
    /// Nothing can reset the function, and the caller did not allow that.
    NoReset = -14,
    /// The function was reset and is not as it should be after that.
    ResetFailed = -15,
    /// It is a function that cannot be given to a guest: a bridge, one without a place for its BARs, or
    /// one whose interrupts cannot be had.
    NotUsable = -16,
}

impl Status {
    /// All status codes, in the order of their values from zero down.
    pub const ALL: &[Status] = &[
        Status::Ok,
        Status::NotSupported,
        Status::InvalidArgument,
        Status::NotFound,
        Status::Denied,
        Status::NoMemory,
        Status::Busy,
        Status::BadAddress,
        Status::Gone,
        Status::Protocol,
        Status::Occupied,
        Status::Taken,
        Status::Group,
        Status::NoIommu,
        Status::NoReset,
        Status::ResetFailed,
        Status::NotUsable,
    ];

    /// Returns the status as x0 holds it.
    pub const fn to_register(self) -> u64 {
        (self as i64).cast_unsigned()
    }

    /// Returns [`Status::Ok`] as `Ok` and all others as `Err`, for the caller's `?`.
    pub const fn into_result(self) -> Result<(), Status> {
        match self {
            Status::Ok => Ok(()),
            error => Err(error),
        }
    }
}

impl From<Status> for i64 {
    fn from(status: Status) -> i64 {
        status as i64
    }
}

impl TryFrom<i64> for Status {
    type Error = UnknownStatus;

    fn try_from(value: i64) -> Result<Self, UnknownStatus> {
        let known = Self::ALL.iter().find(|&&status| status as i64 == value);
        known.copied().ok_or(UnknownStatus(value))
    }
}

/// A status code that this version of the interface does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownStatus(
    /// The value, as x0 held it.
    pub i64,
);

/// Flags of a claimed MMIO range: x5 of [`Function::IoreqMap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MapFlags(u64);

impl MapFlags {
    /// Every access is synchronous.
    pub const NONE: MapFlags = MapFlags(0);
    /// Writes are posted: the target's vCPU does not wait for them.
    pub const POSTED: MapFlags = MapFlags(1 << 0);

    /// Returns the flags in `bits`, or `None` if a bit is set that has no meaning.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits & !Self::POSTED.0 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Returns the flags as x5 holds them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Says whether all of `other` are among these flags.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Flags of an assignment: x4 of [`Function::PciAssign`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct AssignFlags(u64);

impl AssignFlags {
    /// The function must have a reset.
    pub const NONE: AssignFlags = AssignFlags(0);
    /// The function is given away even if it has no reset.
    pub const ALLOW_NO_RESET: AssignFlags = AssignFlags(1 << 0);
    /// The domain sees vendor-specific capabilities.
    pub const VENDOR_CAPABILITIES: AssignFlags = AssignFlags(1 << 1);

    /// Returns the flags in `bits`, or `None` if a bit is set that has no meaning.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits & !(Self::ALLOW_NO_RESET.0 | Self::VENDOR_CAPABILITIES.0) == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Returns the flags as x4 holds them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Says whether all of `other` are among these flags.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The longest name of a domain, in bytes.
pub const NAME_LEN: usize = 31;

/// Returns a domain's name as x1 to x4 of [`Function::DomainFind`] hold it: the first byte in the
/// low-order bits of x1, zeros behind the last one. `None` if it is longer than a name can be.
pub fn name_to_registers(name: &str) -> Option<[u64; 4]> {
    let bytes = name.as_bytes();
    if bytes.len() > NAME_LEN {
        return None;
    }
    let mut registers = [0; 4];
    for (register, part) in registers.iter_mut().zip(bytes.chunks(8)) {
        for (at, byte) in part.iter().enumerate() {
            *register |= u64::from(*byte) << (8 * at);
        }
    }
    Some(registers)
}

/// Says whether `registers` hold `name`.
pub fn registers_name(registers: [u64; 4], name: &str) -> bool {
    name_to_registers(name) == Some(registers)
}

/// What a domain does: x1 of [`Function::DomainInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum DomainState {
    /// It has stopped, or was not started.
    Off = 0,
    /// It runs.
    Running = 1,
    /// It stops, or is about to start again.
    Stopping = 2,
}

/// Bit 0 of x2 of [`Function::DomainInfo`]: the domain has a PCI bus.
pub const DOMAIN_HAS_BUS: u64 = 1 << 0;
/// Bit 1: it may have devices that reach memory.
pub const DOMAIN_HAS_IOMMU: u64 = 1 << 1;
/// Bit 2: it is the control domain.
pub const DOMAIN_IS_CONTROL: u64 = 1 << 2;

/// How a function of the machine stands: x1 of [`Function::PciInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum FunctionState {
    /// Nobody has it.
    Free = 0,
    /// The domain in x2 has it, at the slot in x3.
    Assigned = 1,
    /// It is on its way to or from the domain in x2, or is in a reset with others.
    Busy = 2,
    /// Nobody has it, and its last reset failed.
    Broken = 3,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_ids_are_fast_calls_of_the_hypervisor_service() {
        for function in Function::ALL {
            let id = function.id();
            assert_eq!(Function::try_from(id), Ok(*function));
            assert!(Function::is_ours(id), "{function:?}");
            let query = id & 0xffff >= 0xff00;
            assert_eq!(id & 1 << 30 == 0, query, "{function:?}: SMC32 iff general");
        }
    }

    #[test]
    fn ids_of_others_are_unknown() {
        let cases = [
            0xc600_0002,
            0xc600_ff01,
            0x8600_0000,
            0x8400_0000,
            0x8000_0000,
            0,
        ];
        for id in cases {
            assert_eq!(Function::try_from(id), Err(UnknownFunction(id)), "{id:#x}");
        }
        assert!(!Function::is_ours(0x8400_0000), "PSCI");
        assert!(!Function::is_ours(0x0600_0000), "a yielding call");
    }

    #[test]
    fn status_codes_count_down_from_zero() {
        for (status, value) in Status::ALL.iter().zip((-100i64..=0).rev()) {
            assert_eq!(i64::from(*status), value);
            assert_eq!(Status::try_from(value), Ok(*status));
            assert_eq!(status.to_register(), value.cast_unsigned());
            assert_eq!(status.into_result().is_ok(), value == 0);
        }
        assert_eq!(Status::try_from(1), Err(UnknownStatus(1)));
        assert_eq!(Status::try_from(-17), Err(UnknownStatus(-17)));
    }

    #[test]
    fn the_uid_is_returned_low_byte_first_and_is_no_error() {
        let registers = uid_registers();
        let expected = [0x1c70_7259, 0xfb40_83aa, 0x4b29_07af, 0x5d36_4a31];
        assert_eq!(registers, expected);
        // SMCCC: w0 of all ones would mean that there is no such service.
        assert!(registers.iter().all(|&word| word != u32::MAX));
    }

    #[test]
    #[rustfmt::skip]
    fn a_version_serves_programs_of_the_same_major_and_no_later_minor() {
        let now = Version { major: 2, minor: 3 };
        let cases = [
            (2, 0, true), (2, 3, true), (2, 4, false), (1, 0, false), (3, 0, false),
        ];
        for (major, minor, serves) in cases {
            assert_eq!(now.serves(Version { major, minor }), serves, "{major}.{minor}");
        }
        assert_eq!(now.to_register(), 0x2_0003);
        assert_eq!(Version::from_register(0x2_0003), now);
    }

    #[test]
    fn map_flags_without_a_meaning_are_refused() {
        assert_eq!(MapFlags::from_bits(0), Some(MapFlags::NONE));
        assert_eq!(MapFlags::from_bits(1), Some(MapFlags::POSTED));
        assert_eq!(MapFlags::from_bits(2), None);
        assert_eq!(MapFlags::from_bits(!0), None);
        assert!(MapFlags::POSTED.contains(MapFlags::POSTED));
        assert!(!MapFlags::NONE.contains(MapFlags::POSTED));
        assert_eq!(MapFlags::POSTED.bits(), 1);
    }

    #[test]
    fn assign_flags_without_a_meaning_are_refused() {
        assert_eq!(AssignFlags::from_bits(0), Some(AssignFlags::NONE));
        assert_eq!(AssignFlags::from_bits(1), Some(AssignFlags::ALLOW_NO_RESET));
        assert_eq!(
            AssignFlags::from_bits(2),
            Some(AssignFlags::VENDOR_CAPABILITIES)
        );
        assert_eq!(AssignFlags::from_bits(4), None);
        assert_eq!(AssignFlags::from_bits(!0), None);
        assert!(AssignFlags::ALLOW_NO_RESET.contains(AssignFlags::ALLOW_NO_RESET));
        assert!(!AssignFlags::NONE.contains(AssignFlags::ALLOW_NO_RESET));
    }

    #[test]
    #[rustfmt::skip]
    fn a_name_is_in_four_registers() {
        let long = "abcdefghijklmnopqrstuvwxyz01234";
        let cases = [
            // name,  x1,                    x2,  x3,  x4
            ("",      [0,                     0,   0,   0]),
            ("one",   [0x65_6e6f,             0,   0,   0]),
            ("linuxgst2", [0x7473_6778_756e_696c, 0x32, 0, 0]),
            (long,    [0x6867_6665_6463_6261, 0x706f_6e6d_6c6b_6a69, 0x7877_7675_7473_7271, 0x34_3332_3130_7a79]),
        ];
        for (name, registers) in cases {
            assert_eq!(name_to_registers(name), Some(registers), "{name}");
            assert!(registers_name(registers, name));
        }
        assert_eq!(name_to_registers("abcdefghijklmnopqrstuvwxyz012345"), None);
        assert!(!registers_name([0x65_6e6f, 0, 0, 1], "one"), "bytes behind the end");
        assert!(!registers_name([u64::MAX; 4], "one"));
    }
}
