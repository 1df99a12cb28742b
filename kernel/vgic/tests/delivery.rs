//! Interrupts from an input to a guest and back, seen through a virtual CPU interface.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers in tests are small"
)]

mod machine;

use machine::*;
use vgic::{Frame, Group, Hcr, Intid, Vgic};

fn machine() -> Machine {
    let mut machine = Machine::new(2, 4);
    machine.enable_all();
    machine
}

#[test]
fn a_level_is_delivered_again_until_it_falls() {
    let mut machine = machine();
    machine.level(0, 33, true);
    assert_eq!(machine.take(0), Some(33));
    assert_eq!(machine.take(0), Some(33), "promptly, after the end");
    assert_eq!(machine.acknowledge(0), Some(33));
    machine.level(0, 33, false);
    assert_eq!(machine.end(0), Some(33));
    assert_eq!(machine.take(0), None);
    assert_eq!(machine.outside.ended.last(), Some(&Intid::spi(1)));
}

/// However an interrupt is ended, the kernel hears of it once, and a line that falls with the end makes
/// nothing pending. Some ends come while it has no list register.
#[test]
fn every_way_to_end_a_level_is_heard_of() {
    type End = fn(&mut Machine);
    fn end_all(machine: &mut Machine) {
        while machine.end_quietly(0).is_some() {}
    }
    let ends: [(&str, End, u64); 5] = [
        ("promptly", |machine| while machine.end(0).is_some() {}, 0),
        ("all before the maintenance interrupt", end_all, 0),
        (
            "all before the vCPU leaves",
            |machine| {
                end_all(machine);
                machine.unload(0);
                machine.load(0);
            },
            0,
        ),
        (
            "priority drop, then deactivation of the first",
            |machine| {
                while machine.end(0).is_some() {}
                machine.write_dir(0, 40);
            },
            VMCR_EOI_SPLIT,
        ),
        (
            "clearing the active state",
            |machine| {
                machine.set_bit(0, 0x380, 40);
                machine.cpus[0].running.clear();
            },
            0,
        ),
    ];
    for (name, end, vmcr) in ends {
        for beside in [0, 1, 2, 3, 8] {
            for falls in [true, false] {
                let mut machine = Machine::new(1, 2);
                machine.enable_all();
                machine.cpus[0].vmcr |= vmcr;
                if falls {
                    machine.outside.falling.push(Intid::new(40));
                }
                machine.set_priority(0, 40, 0xf0);
                machine.level(0, 40, true);
                assert_eq!(machine.acknowledge(0), Some(40));
                // These preempt it, and push it out of the list registers if they are many.
                for intid in 50..50 + beside {
                    machine.set_priority(0, intid, 0x80 - 8 * (intid - 50) as u8);
                    machine.level(0, intid, true);
                    assert_eq!(machine.acknowledge(0), Some(intid), "{name}");
                    machine.level(0, intid, false);
                }
                assert_eq!(machine.outside.ended, [], "{name}, {beside} beside");
                end(&mut machine);
                machine.settle();
                machine.outside.ended.retain(|ended| ended.get() == 40);
                let heard = [Intid::new(40)];
                assert_eq!(machine.outside.ended, heard, "{name}, {beside} beside");
                assert!(!machine.get_bit(0, 0x300, 40), "{name}, {beside} beside");
                let pending = machine.get_bit(0, 0x200, 40);
                assert_eq!(pending, !falls, "{name}, {beside} beside");
            }
        }
    }
}

#[test]
fn a_level_that_falls_before_it_is_taken_is_withdrawn() {
    let mut machine = machine();
    machine.level(0, 33, true);
    machine.level(0, 33, false);
    assert_eq!(machine.acknowledge(0), None);
}

#[test]
fn an_edge_while_active_is_delivered_after_the_end() {
    let mut machine = machine();
    machine.gicd(0xc08, 0b1000); // INTID 33 is an edge
    machine.pulse(0, 33);
    machine.pulse(0, 33);
    assert_eq!(machine.acknowledge(0), Some(33));
    machine.pulse(0, 33);
    assert_eq!(machine.acknowledge(0), None, "its own priority is running");
    machine.end(0);
    assert_eq!(machine.take(0), Some(33));
    assert_eq!(machine.take(0), None);
}

#[test]
fn nothing_pending_costs_nothing() {
    let mut machine = machine();
    assert_eq!(machine.refresh(0), 0);
    machine.vgic.pulse(0, Intid::new(33), &mut machine.outside);
    assert_eq!(machine.outside.kicked, [0].into());
    assert!(!machine.wait(1) && machine.wait(0));
    assert_eq!(machine.refresh(0), 1);
    assert_eq!(machine.cpus[0].hcr, Hcr::EN.bits());
    assert!(machine.outside.kicked.is_empty());
}

#[test]
fn more_than_the_list_registers_hold_comes_in_the_order_of_priority() {
    for list_registers in [1, 2, 4, 16] {
        let mut machine = Machine::new(1, list_registers);
        machine.enable_all();
        for intid in 32..128 {
            machine.set_priority(0, intid, ((intid * 37) % 31 * 8) as u8);
            machine.set_bit(0, 0x200, intid);
        }
        let mut last = 0;
        for count in 0..96 {
            let intid = machine.take(0).unwrap_or_else(|| panic!("{count} came"));
            let priority = (intid * 37) % 31 * 8;
            assert!(priority >= last, "{intid} comes too late");
            last = priority;
        }
        assert_eq!(machine.take(0), None);
    }
}

#[test]
fn nested_beyond_the_list_registers_every_end_counts() {
    for list_registers in [1, 2, 4] {
        let mut machine = Machine::new(1, list_registers);
        machine.enable_all();
        // Each preempts the one before. All are levels that stay high to the end.
        for intid in 40..70 {
            machine.set_priority(0, intid, 0xf0 - (intid as u8 - 40) * 8);
            machine.level(0, intid, true);
            assert_eq!(machine.acknowledge(0), Some(intid));
        }
        for intid in (40..70).rev() {
            assert!(machine.get_bit(0, 0x300, intid), "{intid} is active");
            machine.level(0, intid, false);
            assert_eq!(machine.end(0), Some(intid));
            assert!(!machine.get_bit(0, 0x300, intid), "{intid} is not active");
        }
        assert_eq!(machine.take(0), None);
    }
}

#[test]
fn with_the_end_split_interrupts_are_deactivated_in_any_order() {
    let mut machine = Machine::new(1, 4);
    machine.enable_all();
    machine.cpus[0].vmcr |= VMCR_EOI_SPLIT;
    for intid in 40..60 {
        machine.level(0, intid, true);
        assert_eq!(machine.take(0), Some(intid));
        assert!(machine.get_bit(0, 0x300, intid));
    }
    for intid in [
        47, 40, 59, 41, 58, 42, 57, 43, 56, 44, 55, 45, 46, 48, 49, 50,
    ] {
        machine.level(0, intid, false);
        machine.write_dir(0, intid);
        assert!(!machine.get_bit(0, 0x300, intid));
    }
    for intid in 51..55 {
        machine.write_dir(0, intid);
        assert_eq!(machine.take(0), Some(intid), "the line is still high");
    }
}

#[test]
fn a_disabled_group_at_the_interface_does_not_hold_the_other_up() {
    let mut machine = machine();
    for intid in 40..50 {
        machine.pulse(0, intid);
    }
    // INTIDs 40 to 49 are group 0 and urgent; 60 to 65 are group 1.
    machine.gicd(0x84, !0x3_ff00);
    machine.cpus[0].vmcr = VMCR & !1;
    for intid in 60..66 {
        machine.set_priority(0, intid, 0x80);
        machine.pulse(0, intid);
    }
    machine.settle();
    for intid in 60..66 {
        assert_eq!(machine.take(0), Some(intid));
    }
    assert_eq!(machine.take(0), None);
    machine.cpus[0].vmcr = VMCR;
    machine.settle();
    for intid in 40..50 {
        assert_eq!(machine.take(0), Some(intid));
    }
}

#[test]
fn a_timer_is_ended_in_hardware_and_comes_again() {
    let mut machine = machine();
    machine.timer(0, true);
    assert!(machine.cpus[0].timer_active);
    assert_eq!(
        machine.cpus[0].lrs[0],
        27 | 27 << 32 | GROUP1 | HW | PENDING
    );
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.timer(0, false);
    machine.end(0);
    assert!(!machine.cpus[0].timer_active, "by the list register");
    assert_eq!(machine.take(0), None);
    machine.timer(0, true);
    assert_eq!(machine.take(0), Some(27));
    assert_eq!(machine.take(0), Some(27), "still high");
}

#[test]
fn a_timer_moves_with_its_vcpu() {
    let mut machine = machine();
    machine.timer(0, true);
    machine.acknowledge(0);
    machine.unload(0);
    assert!(machine.vgic.mapped_active(0, TIMER));
    assert!(!machine.vgic.mapped_active(1, TIMER));
    machine.timer(0, false);
    machine.load(0);
    assert!(machine.cpus[0].timer_active);
    machine.end(0);
    machine.unload(0);
    assert!(!machine.vgic.mapped_active(0, TIMER));
    machine.timer(0, true);
    assert!(machine.vgic.mapped_active(0, TIMER), "it waits");
    assert!(machine.vgic.pending(0, VMCR));
    machine.load(0);
    assert_eq!(machine.acknowledge(0), Some(27));
}

#[test]
fn set_pending_of_a_timer_follows_its_line() {
    let mut machine = machine();
    machine.gicr(0, 0x1_0180, 1 << 27);
    for high in [true, false, true, false] {
        machine.timer(0, high);
        assert_eq!(machine.get_bit(0, 0x200, 27), high);
    }
    assert!(!machine.cpus[0].timer_active, "ready for the next time");
    machine.gicr(0, 0x1_0100, 1 << 27);
    assert_eq!(machine.take(0), None);
}

#[test]
fn a_timer_that_is_made_pending_and_active_by_hand_is_not_stuck() {
    let mut machine = machine();
    machine.set_bit(0, 0x200, 27);
    machine.timer(0, true);
    machine.acknowledge(0);
    machine.set_bit(0, 0x200, 27);
    machine.timer(0, false);
    machine.end(0);
    assert_eq!(machine.take(0), Some(27), "the one set by hand");
    assert_eq!(machine.take(0), None);
    assert!(!machine.cpus[0].timer_active);
    machine.timer(0, true);
    assert_eq!(machine.acknowledge(0), Some(27));
    machine.set_bit(0, 0x380, 27);
    assert!(!machine.get_bit(0, 0x300, 27));
    machine.timer(0, false);
    machine.refresh(0);
    assert!(!machine.cpus[0].timer_active);
    assert_eq!(machine.take(0), None);
}

#[test]
#[rustfmt::skip]
fn sgis_go_where_they_are_sent() {
    let affinities = [0, 1, 0xf, 0x12, 0x103, 0x1_0000, 0x1_0000_0000, 0xff_00ff_ffff];
    let sgi5 = 5 << 24;
    let cases: &[(usize, u64, &[usize])] = &[
        // from, value,                                            reaches
        (0, sgi5 | 0b1,                                            &[0]),
        (0, sgi5 | 0b1000_0000_0000_0011,                          &[0, 1, 2]),
        (1, sgi5 | 1 << 44 | 0b100,                                &[3]),
        (1, sgi5 | 1 << 16 | 0b1000,                               &[4]),
        (1, sgi5 | 1 << 32 | 0b1,                                  &[5]),
        (1, sgi5 | 1 << 48 | 0b1,                                  &[6]),
        (1, sgi5 | 0xff << 48 | 0xf << 44 | 0xff << 32 | 0xff << 16 | 0xffff, &[7]),
        (1, sgi5 | 1 << 40,                                        &[0, 2, 3, 4, 5, 6, 7]),
        (1, sgi5 | 2 << 16 | 0xffff,                               &[]),
        (1, sgi5,                                                  &[]),
    ];
    for (from, value, reached) in cases {
        let mut vgic = Vgic::new(&vgic::Config {
            affinities: &affinities, spis: 32, its: false, device_bits: 16, vtr: VTR,
        }).unwrap();
        let mut outside = Machine::new(1, 4).outside;
        vgic.write(Frame::Distributor, 0, 4, 2, &mut outside);
        for vcpu in 0..8 {
            vgic.write(Frame::Redistributor(vcpu), 0x1_0100, 4, 0xffff, &mut outside);
        }
        vgic.sgi(*from, Group::Zero, *value, &mut outside);
        assert!(outside.kicked.is_empty(), "they are group 1");
        vgic.sgi(*from, Group::One, *value, &mut outside);
        let kicked: Vec<usize> = outside.kicked.iter().copied().collect();
        assert_eq!(&kicked, reached, "{value:#x} from {from}");
        for vcpu in kicked {
            let mut cpu = Machine::new(1, 4).cpus.remove(0);
            assert_eq!(vgic.refill(vcpu, &mut cpu, &mut outside), 0);
            assert_eq!(cpu.lrs, [5 | GROUP1 | PENDING, 0, 0, 0]);
        }
    }
}

#[test]
fn an_interrupt_follows_its_route() {
    let mut machine = machine();
    machine.level(0, 40, true);
    machine.write(Frame::Distributor, 0x6000 + 40 * 8, 8, 1);
    assert_eq!(machine.take(0), None);
    assert_eq!(machine.acknowledge(1), Some(40));
    machine.write(Frame::Distributor, 0x6000 + 40 * 8, 8, 0);
    assert_eq!(machine.take(0), None, "it is active elsewhere");
    machine.end(1);
    assert_eq!(machine.take(1), None);
    assert_eq!(machine.take(0), Some(40));
    machine.write(Frame::Distributor, 0x6000 + 40 * 8, 8, 77);
    assert_eq!((machine.take(0), machine.take(1)), (None, None));
    assert_eq!(machine.read(Frame::Distributor, 0x6000 + 40 * 8, 8), 77);
}

#[test]
fn an_interrupt_for_any_goes_to_those_awake_in_turn() {
    let mut machine = machine();
    for intid in 40..44 {
        machine.write(Frame::Distributor, 0x6000 + intid * 8, 8, 1 << 31);
    }
    machine.pulse(0, 40);
    assert_eq!(machine.take(0), Some(40), "nobody is awake: the first");
    machine.gicr(0, 0x14, 0);
    machine.gicr(1, 0x14, 0);
    for intid in 40..44 {
        machine.pulse(0, intid);
    }
    let mut taken = [0, 0];
    for vcpu in [0, 1] {
        while machine.take(vcpu).is_some() {
            taken[vcpu] += 1;
        }
    }
    assert_eq!(taken, [2, 2]);
    machine.pulse(0, 40);
    machine.pulse(0, 41);
    machine.gicr(1, 0x14, 2);
    assert_eq!(machine.take(1), None);
    assert!(machine.take(0).is_some() && machine.take(0).is_some());
}

#[test]
fn waiting_ends_for_what_can_be_taken() {
    let mut machine = machine();
    machine.unload(0);
    machine.set_priority(0, 40, 0x80);
    machine.pulse(0, 40);
    assert!(machine.vgic.pending(0, VMCR));
    assert!(machine.vgic.pending(0, 0x88 << 24 | 2));
    assert!(!machine.vgic.pending(0, 0x80 << 24 | 2), "masked");
    assert!(!machine.vgic.pending(0, 0xff << 24 | 1), "group 1 is off");
    machine.gicd(0, 1);
    assert!(!machine.vgic.pending(0, VMCR), "off in the distributor");
    machine.gicd(0, 3);
    machine.set_bit(0, 0x180, 40);
    assert!(!machine.vgic.pending(0, VMCR), "disabled");
}

#[test]
fn disabling_waits_for_the_list_registers() {
    let mut machine = machine();
    machine.pulse(0, 40);
    let outside = &mut machine.outside;
    let ctlr =
        |vgic: &mut Vgic, outside: &mut Outside| vgic.read(Frame::Distributor, 0, 4, outside) >> 31;
    machine
        .vgic
        .write(Frame::Distributor, 0x184, 4, 1 << 8, outside);
    assert!(outside.kicked.contains(&0));
    assert_eq!(ctlr(&mut machine.vgic, outside), 1, "RWP");
    machine.settle();
    assert_eq!(ctlr(&mut machine.vgic, &mut machine.outside), 0);
    assert_eq!(machine.take(0), None);
    machine.set_bit(0, 0x100, 40);
    assert_eq!(machine.take(0), Some(40), "it stayed pending");
}

#[test]
fn reset_forgets_everything() {
    let mut machine = machine();
    machine.level(0, 40, true);
    machine.timer(0, true);
    machine.pulse(1, 20);
    machine.outside.timer_lines = vec![false; 2];
    machine.reset();
    assert!(!machine.vgic.mapped_active(0, TIMER));
    machine.enable_all();
    assert_eq!((machine.take(0), machine.take(1)), (None, None));
    machine.level(0, 40, true);
    assert_eq!(machine.take(0), Some(40));
}
