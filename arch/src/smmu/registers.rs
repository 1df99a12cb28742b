//! The registers (6.3).

use crate::mmio::{Reg32, Reg64};
use tock_registers::register_bitfields;

register_bitfields! {u32,
    /// Features (6.3.1).
    pub(super) IDR0 [
        /// Stage 2.
        S2P OFFSET(0) NUMBITS(1) [],
        /// Stage 1.
        S1P OFFSET(1) NUMBITS(1) [],
        /// Table formats: bit 1 is AArch64.
        TTF OFFSET(2) NUMBITS(2) [],
        /// Coherent access to tables and queues.
        COHACC OFFSET(4) NUMBITS(1) [],
        /// EL2 translations.
        HYP OFFSET(9) NUMBITS(1) [],
        /// PCIe ATS.
        ATS OFFSET(10) NUMBITS(1) [],
        ASID16 OFFSET(12) NUMBITS(1) [],
        /// Interrupts can be messages.
        MSI OFFSET(13) NUMBITS(1) [],
        VMID16 OFFSET(18) NUMBITS(1) [],
        /// 3 is big-endian only.
        TTENDIAN OFFSET(21) NUMBITS(2) [],
        /// 0: stalls and terminates; 1: only terminates; 2: only stalls.
        STALL_MODEL OFFSET(24) NUMBITS(2) [],
        /// 1: also two levels of stream table.
        ST_LEVEL OFFSET(27) NUMBITS(2) []
    ],
    /// Features (6.3.2).
    pub(super) IDR1 [
        /// Bits of a StreamID.
        SIDSIZE OFFSET(0) NUMBITS(6) [],
        /// Logarithm of the event queue's size.
        EVENTQS OFFSET(16) NUMBITS(5) [],
        /// Logarithm of the command queue's size.
        CMDQS OFFSET(21) NUMBITS(5) [],
        QUEUES_PRESET OFFSET(29) NUMBITS(1) [],
        TABLES_PRESET OFFSET(30) NUMBITS(1) []
    ],
    /// Features (6.3.4).
    pub(super) IDR3 [
        /// Range invalidation.
        RIL OFFSET(10) NUMBITS(1) []
    ],
    /// Features (6.3.6).
    pub(super) IDR5 [
        /// Output address size.
        OAS OFFSET(0) NUMBITS(3) [],
        GRAN4K OFFSET(4) NUMBITS(1) []
    ],
    /// Control register 0 (6.3.9); `CR0ACK` has the same fields.
    pub(super) CR0 [
        /// Translation is on.
        SMMUEN OFFSET(0) NUMBITS(1) [],
        /// Event queue is on.
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        /// Command queue is on.
        CMDQEN OFFSET(3) NUMBITS(1) [],
        /// What a device says to have translated itself is checked.
        ATSCHK OFFSET(4) NUMBITS(1) []
    ],
    /// Control register 1 (6.3.11): attributes of the SMMU's own accesses.
    pub(super) CR1 [
        QUEUE_IC OFFSET(0) NUMBITS(2) [WriteBack = 1],
        QUEUE_OC OFFSET(2) NUMBITS(2) [WriteBack = 1],
        QUEUE_SH OFFSET(4) NUMBITS(2) [Inner = 3],
        TABLE_IC OFFSET(6) NUMBITS(2) [WriteBack = 1],
        TABLE_OC OFFSET(8) NUMBITS(2) [WriteBack = 1],
        TABLE_SH OFFSET(10) NUMBITS(2) [Inner = 3]
    ],
    /// Control register 2 (6.3.12).
    pub(super) CR2 [
        /// StreamIDs out of range are recorded.
        RECINVSID OFFSET(1) NUMBITS(1) [],
        /// Broadcast invalidation is ignored.
        PTM OFFSET(2) NUMBITS(1) []
    ],
    /// Global bypass attributes (6.3.14): what happens while translation is off.
    pub(super) GBPA [
        /// Every access is aborted.
        ABORT OFFSET(20) NUMBITS(1) [],
        /// A write takes effect only with this; it reads as one until it has.
        UPDATE OFFSET(31) NUMBITS(1) []
    ],
    /// Interrupt control (6.3.16); `IRQ_CTRLACK` has the same fields.
    pub(super) IRQ_CTRL [
        GERROR_IRQEN OFFSET(0) NUMBITS(1) [],
        EVENTQ_IRQEN OFFSET(2) NUMBITS(1) []
    ],
    /// Global errors (6.3.18); active are the bits that differ from `GERRORN`.
    pub(super) GERROR [
        /// The command queue has stopped at a command.
        CMDQ_ERR OFFSET(0) NUMBITS(1) [],
        /// An event could not be written.
        EVENTQ_ABT_ERR OFFSET(2) NUMBITS(1) [],
        /// A page request could not be written.
        PRIQ_ABT_ERR OFFSET(3) NUMBITS(1) [],
        /// A message about commands could not be written.
        MSI_CMDQ_ABT_ERR OFFSET(4) NUMBITS(1) [],
        /// A message about events could not be written.
        MSI_EVENTQ_ABT_ERR OFFSET(5) NUMBITS(1) [],
        /// A message about page requests could not be written.
        MSI_PRIQ_ABT_ERR OFFSET(6) NUMBITS(1) [],
        /// A message about global errors could not be written.
        MSI_GERROR_ABT_ERR OFFSET(7) NUMBITS(1) [],
        /// Service failure mode.
        SFM_ERR OFFSET(8) NUMBITS(1) []
    ],
    /// Stream table configuration (6.3.24).
    pub(super) STRTAB_BASE_CFG [
        /// Bits of a StreamID that the table has room for.
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
        /// Bits of them that are of the second level.
        SPLIT OFFSET(6) NUMBITS(5) [],
        FMT OFFSET(16) NUMBITS(2) [
            Linear = 0,
            TwoLevel = 1
        ]
    ],
    /// Where the SMMU reads commands (6.3.27).
    pub(super) CMDQ_CONS [
        /// Index, with a wrap bit above it.
        RD OFFSET(0) NUMBITS(20) [],
        /// Why the queue has stopped.
        ERR OFFSET(24) NUMBITS(7) []
    ],
    /// Where the SMMU writes events (6.3.29), and where we read them (6.3.30).
    pub(super) EVENTQ_PTR [
        /// Index, with a wrap bit above it.
        INDEX OFFSET(0) NUMBITS(20) [],
        /// Overflow; it is acknowledged by making both registers the same.
        OVFLG OFFSET(31) NUMBITS(1) []
    ]
}

register_bitfields! {u64,
    /// What the base registers of queues and stream table have in common (6.3.23, 6.3.25, 6.3.28).
    pub(super) BASE [
        /// Queues: logarithm of the number of entries.
        LOG2SIZE OFFSET(0) NUMBITS(5) [],
        /// Caches are to be allocated.
        ALLOCATE OFFSET(62) NUMBITS(1) []
    ]
}

/// Bytes of the registers: two pages of 64 KiB (6.1).
pub(super) const BYTES: usize = 0x2_0000;

pub(super) const SMMU_IDR0: Reg32<IDR0::Register> = Reg32::at(0x00);
pub(super) const SMMU_IDR1: Reg32<IDR1::Register> = Reg32::at(0x04);
pub(super) const SMMU_IDR3: Reg32<IDR3::Register> = Reg32::at(0x0c);
pub(super) const SMMU_IDR5: Reg32<IDR5::Register> = Reg32::at(0x14);
pub(super) const SMMU_CR0: Reg32<CR0::Register> = Reg32::at(0x20);
pub(super) const SMMU_CR0ACK: Reg32<CR0::Register> = Reg32::at(0x24);
pub(super) const SMMU_CR1: Reg32<CR1::Register> = Reg32::at(0x28);
pub(super) const SMMU_CR2: Reg32<CR2::Register> = Reg32::at(0x2c);
pub(super) const SMMU_GBPA: Reg32<GBPA::Register> = Reg32::at(0x44);
pub(super) const SMMU_IRQ_CTRL: Reg32<IRQ_CTRL::Register> = Reg32::at(0x50);
pub(super) const SMMU_IRQ_CTRLACK: Reg32<IRQ_CTRL::Register> = Reg32::at(0x54);
pub(super) const SMMU_GERROR: Reg32<GERROR::Register> = Reg32::at(0x60);
pub(super) const SMMU_GERRORN: Reg32<GERROR::Register> = Reg32::at(0x64);
pub(super) const SMMU_GERROR_IRQ_CFG0: Reg64 = Reg64::at(0x68);
pub(super) const SMMU_STRTAB_BASE: Reg64<BASE::Register> = Reg64::at(0x80);
pub(super) const SMMU_STRTAB_BASE_CFG: Reg32<STRTAB_BASE_CFG::Register> = Reg32::at(0x88);
pub(super) const SMMU_CMDQ_BASE: Reg64<BASE::Register> = Reg64::at(0x90);
pub(super) const SMMU_CMDQ_PROD: Reg32 = Reg32::at(0x98);
pub(super) const SMMU_CMDQ_CONS: Reg32<CMDQ_CONS::Register> = Reg32::at(0x9c);
pub(super) const SMMU_EVENTQ_BASE: Reg64<BASE::Register> = Reg64::at(0xa0);
pub(super) const SMMU_EVENTQ_IRQ_CFG0: Reg64 = Reg64::at(0xb0);
// The second page (6.2).
pub(super) const SMMU_EVENTQ_PROD: Reg32<EVENTQ_PTR::Register> = Reg32::at(0x1_00a8);
pub(super) const SMMU_EVENTQ_CONS: Reg32<EVENTQ_PTR::Register> = Reg32::at(0x1_00ac);
