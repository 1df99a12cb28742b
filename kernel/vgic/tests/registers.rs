//! What a guest reads and writes: register by register, and with malice.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers in tests are small"
)]

mod machine;

use machine::*;
use vgic::Frame;

const GICD: Frame = Frame::Distributor;
const GICR: Frame = Frame::Redistributor(1);
const GITS: Frame = Frame::Its;

#[test]
#[rustfmt::skip]
fn registers_hold_what_the_architecture_says() {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let cases: &[(&str, Frame, u64, u64, u64, u64)] = &[
        // name,              frame, offset, bytes, after reset,     after a write of ones
        ("GICD_CTLR",         GICD, 0x0000,   4, 0x50,                  0x53),
        ("GICD_TYPER",        GICD, 0x0004,   4, 0x017a_0003,           0x017a_0003),
        ("GICD_IIDR",         GICD, 0x0008,   4, 0x4900_043b,           0x4900_043b),
        ("GICD_TYPER2",       GICD, 0x000c,   4, 0,                     0),
        ("GICD_SETSPI_NSR",   GICD, 0x0040,   4, 0,                     0),
        ("GICD_IGROUPR0",     GICD, 0x0080,   4, 0,                     0),
        ("GICD_IGROUPR1",     GICD, 0x0084,   4, 0xffff_ffff,           0xffff_ffff),
        ("GICD_IGROUPR4",     GICD, 0x0090,   4, 0,                     0),
        ("GICD_IGROUPR31",    GICD, 0x00fc,   4, 0,                     0),
        ("GICD_ISENABLER0",   GICD, 0x0100,   4, 0,                     0),
        ("GICD_ISENABLER3",   GICD, 0x010c,   4, 0,                     0xffff_ffff),
        ("GICD_ISENABLER4",   GICD, 0x0110,   4, 0,                     0),
        ("GICD_ICENABLER1",   GICD, 0x0184,   4, 0,                     0),
        ("GICD_ISPENDR1",     GICD, 0x0204,   4, 0,                     0xffff_ffff),
        ("GICD_ICPENDR2",     GICD, 0x0288,   4, 0,                     0),
        ("GICD_ISACTIVER2",   GICD, 0x0308,   4, 0,                     0xffff_ffff),
        ("GICD_ICACTIVER3",   GICD, 0x038c,   4, 0,                     0),
        ("GICD_IPRIORITYR7",  GICD, 0x041c,   4, 0,                     0),
        ("GICD_IPRIORITYR8",  GICD, 0x0420,   4, 0,                     0xf8f8_f8f8),
        ("GICD_IPRIORITYR8b", GICD, 0x0424,   1, 0,                     0xf8),
        ("GICD_IPRIORITYR32", GICD, 0x0480,   4, 0,                     0),
        ("GICD_ITARGETSR8",   GICD, 0x0820,   4, 0,                     0),
        ("GICD_ICFGR1",       GICD, 0x0c04,   4, 0,                     0),
        ("GICD_ICFGR2",       GICD, 0x0c08,   4, 0,                     0xaaaa_aaaa),
        ("GICD_IGRPMODR1",    GICD, 0x0d04,   4, 0,                     0),
        ("GICD_NSACR2",       GICD, 0x0e08,   4, 0,                     0),
        ("GICD_SGIR",         GICD, 0x0f00,   4, 0,                     0),
        ("GICD_IROUTER31",    GICD, 0x60f8,   8, 0,                     0),
        ("GICD_IROUTER32",    GICD, 0x6100,   8, 0,                     0xff_80ff_ffff),
        ("GICD_IROUTER33 lo", GICD, 0x6108,   4, 0,                     0x80ff_ffff),
        ("GICD_IROUTER33 hi", GICD, 0x610c,   4, 0,                     0xff),
        ("GICD_IROUTER128",   GICD, 0x6400,   8, 0,                     0),
        ("GICD_IROUTER1019",  GICD, 0x7fd8,   8, 0,                     0),
        ("GICD_PIDR2",        GICD, 0xffe8,   4, 0x3b,                  0x3b),
        ("GICD_CIDR1",        GICD, 0xfff4,   4, 0xf0,                  0xf0),
        ("GICR_CTLR",         GICR, 0x0000,   4, 2,                     3),
        ("GICR_IIDR",         GICR, 0x0004,   4, 0x4900_043b,           0x4900_043b),
        ("GICR_TYPER",        GICR, 0x0008,   8, 0x1_0000_0111,         0x1_0000_0111),
        ("GICR_TYPER lo",     GICR, 0x0008,   4, 0x111,                 0x111),
        ("GICR_TYPER hi",     GICR, 0x000c,   4, 1,                     1),
        ("GICR_TYPER of 0",   Frame::Redistributor(0), 8, 8, 1,         1),
        ("GICR_STATUSR",      GICR, 0x0010,   4, 0,                     0),
        ("GICR_WAKER",        GICR, 0x0014,   4, 6,                     6),
        ("GICR_PROPBASER",    GICR, 0x0070,   8, 0,                     7 << 56 | ADDRESS | 0x79f),
        ("GICR_PENDBASER",    GICR, 0x0078,   8, 0,                     7 << 56 | ADDRESS & !0xffff | 0x780),
        ("GICR_INVLPIR",      GICR, 0x00a0,   8, 0,                     0),
        ("GICR_SYNCR",        GICR, 0x00c0,   4, 0,                     0),
        ("GICR_PIDR2",        GICR, 0xffe8,   4, 0x3b,                  0x3b),
        ("GICR_IGROUPR0",     GICR, 0x1_0080, 4, 0xffff_ffff,           0xffff_ffff),
        ("GICR_IGROUPR1",     GICR, 0x1_0084, 4, 0,                     0),
        ("GICR_ISENABLER0",   GICR, 0x1_0100, 4, 0,                     0xffff_ffff),
        ("GICR_ISPENDR0",     GICR, 0x1_0200, 4, 0,                     0xffff_ffff),
        ("GICR_ISACTIVER0",   GICR, 0x1_0300, 4, 0,                     0xffff_ffff),
        ("GICR_IPRIORITYR7",  GICR, 0x1_041c, 4, 0,                     0xf8f8_f8f8),
        ("GICR_IPRIORITYR8",  GICR, 0x1_0420, 4, 0,                     0),
        ("GICR_ICFGR0",       GICR, 0x1_0c00, 4, 0xaaaa_aaaa,           0xaaaa_aaaa),
        ("GICR_ICFGR1",       GICR, 0x1_0c04, 4, 0,                     0),
        ("GICR_NSACR",        GICR, 0x1_0e00, 4, 0,                     0),
        ("not GICR_PIDR2",    GICR, 0x1_ffe8, 4, 0,                     0),
        ("GITS_CTLR",         GITS, 0x0000,   4, 1 << 31,               1),
        ("GITS_IIDR",         GITS, 0x0004,   4, 0x4900_043b,           0x4900_043b),
        ("GITS_TYPER",        GITS, 0x0008,   8, 0x1_ef71,              0x1_ef71),
        ("GITS_CBASER",       GITS, 0x0080,   8, 0,                     0xb8ef_ffff_ffff_f4ff),
        ("GITS_CWRITER",      GITS, 0x0088,   8, 0,                     0),
        ("GITS_CREADR",       GITS, 0x0090,   8, 0,                     0),
        ("GITS_BASER0",       GITS, 0x0100,   8, 0x0107_0000_0000_0200, 0xf9e7_ffff_ffff_f6ff),
        ("GITS_BASER1",       GITS, 0x0108,   8, 0x0407_0000_0000_0200, 0xbce7_ffff_ffff_f6ff),
        ("GITS_BASER2",       GITS, 0x0110,   8, 0,                     0),
        ("GITS_BASER7",       GITS, 0x0138,   8, 0,                     0),
        ("GITS_PIDR2",        GITS, 0xffe8,   4, 0x3b,                  0x3b),
        ("GITS_TRANSLATER",   GITS, 0x1_0040, 4, 0,                     0),
    ];
    for (name, frame, offset, bytes, reset, ones) in cases {
        let mut machine = Machine::new(2, 4);
        assert_eq!(machine.read(*frame, *offset, *bytes), *reset, "{name} after reset");
        machine.write(*frame, *offset, *bytes, !0);
        assert_eq!(machine.read(*frame, *offset, *bytes), *ones, "{name} after ones");
        machine.reset();
        assert_eq!(machine.read(*frame, *offset, *bytes), *reset, "{name} after reset again");
    }
}

#[test]
fn set_and_clear_registers_are_two_views_of_one_state() {
    for (set, clear) in [(0x100, 0x180), (0x200, 0x280), (0x300, 0x380)] {
        for intid in [0, 15, 16, 31, 32, 63, 64, 127] {
            let mut machine = Machine::new(2, 4);
            machine.set_bit(0, set, intid);
            assert!(machine.get_bit(0, set, intid) && machine.get_bit(0, clear, intid));
            assert!(!machine.get_bit(0, set, intid ^ 1), "only this one");
            machine.set_bit(0, clear, intid);
            assert!(!machine.get_bit(0, set, intid) && !machine.get_bit(0, clear, intid));
        }
    }
}

#[test]
fn halves_of_wide_registers_are_written_alone() {
    let mut machine = Machine::new(1, 4);
    machine.write(GITS, 0x84, 4, 0x8000_0000);
    machine.write(GITS, 0x80, 4, 0x4008_0001);
    assert_eq!(machine.read(GITS, 0x80, 8), 0x8000_0000_4008_0001);
    machine.write(GICD, 0x6144, 4, 3);
    machine.write(GICD, 0x6140, 4, 0x8001_0203);
    assert_eq!(machine.read(GICD, 0x6140, 8), 0x3_8001_0203);
}

#[test]
fn widths_that_a_register_does_not_have_are_ignored() {
    let mut machine = Machine::new(1, 4);
    for (frame, offset) in [
        (GICD, 0x104),
        (GICD, 0x84),
        (Frame::Redistributor(0), 0x1_0100),
    ] {
        let before = machine.read(frame, offset, 4);
        for size in [0, 1, 2, 3, 5, 6, 7, 8, 16] {
            machine.write(frame, offset, size, 0x5a5a_5a5a_5a5a_5a5a);
            assert_eq!(
                machine.read(frame, offset, size),
                0,
                "{size} at {offset:#x}"
            );
            assert_eq!(machine.read(frame, offset, 4), before);
        }
        machine.write(frame, offset + 1, 4, 0x5a5a_5a5a);
        assert_eq!(machine.read(frame, offset, 4), before);
    }
    machine.write(GICD, 0x420, 2, 0xffff);
    assert_eq!(machine.read(GICD, 0x420, 4), 0);
}

#[test]
fn no_access_does_harm() {
    let mut machine = Machine::new(2, 4);
    let frames = [
        GICD,
        GITS,
        Frame::Redistributor(0),
        GICR,
        Frame::Redistributor(2),
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for pattern in 0..4 {
        for frame in frames {
            for offset in 0..0x2_0000 {
                let sizes: &[u64] = if offset % 8 == 0 {
                    &[1, 2, 4, 8]
                } else {
                    &[1, 4]
                };
                for size in sizes {
                    random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
                    let value = [0, !0, random >> 7, RAM | random >> 40][pattern];
                    let (vgic, outside) = (&mut machine.vgic, &mut machine.outside);
                    vgic.write(frame, offset, *size, value, outside);
                    let read = vgic.read(frame, offset, *size, outside);
                    if offset % size != 0 {
                        assert_eq!(read, 0);
                    }
                    if offset % 0x40 == 0 {
                        vgic.process(4, outside);
                    }
                }
            }
        }
        machine.settle();
        for vcpu in 0..2 {
            for _ in 0..8 {
                machine.take(vcpu);
            }
        }
    }
    for offset in [0x2_0000, 0xffff_ffff, 0x1_0000_0000, !7] {
        machine.write(GICD, offset, 8, !0);
        assert_eq!(machine.read(GICR, offset, 8), 0);
    }
    // Whatever happened, a reset makes it new.
    machine.reset();
    machine.bring_up();
    machine.level(0, 33, true);
    assert_eq!(machine.take(0), Some(33));
}
