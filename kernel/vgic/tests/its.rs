//! LPIs and the commands of the ITS.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers in tests are small"
)]

mod machine;

use machine::its::*;
use machine::*;
use vgic::{Frame, Intid, Target};

/// A machine with device 8, events 0 to 31 of which are LPIs 8192 to 8223 on vCPU 0.
fn machine() -> Machine {
    let mut machine = Machine::new(2, 4);
    machine.bring_up();
    assert!(machine.command(mapd(8, 5)));
    for event in 0..32 {
        machine.configure(8192 + event, 0x80, true);
        assert!(machine.command(mapti(8, event, 8192 + event, 0)));
    }
    machine
}

#[test]
fn a_message_becomes_an_lpi() {
    for lpis_stay in [false, true] {
        let mut machine = machine();
        machine.lpis_stay = lpis_stay;
        assert!(machine.msi(8, 3));
        assert_eq!(machine.cpus[0].lrs[0], 8195 | 0x80 << 48 | GROUP1 | PENDING);
        assert_eq!(machine.acknowledge(0), Some(8195));
        assert!(machine.msi(8, 3));
        assert_eq!(machine.acknowledge(0), None, "its priority is running");
        machine.end(0);
        assert_eq!(machine.take(0), Some(8195));
        assert_eq!(machine.take(0), None);
    }
}

#[test]
fn thousands_of_lpis_all_arrive_once_and_by_priority() {
    let mut machine = Machine::new(1, 4);
    machine.bring_up();
    assert!(machine.command(mapd(8, 12)));
    for event in 0..4096 {
        let priority = (event * 7919 % 31) as u8 * 8;
        machine.configure(8192 + event, priority, true);
        assert!(machine.command(mapti(8, event, 8192 + event, 0)));
    }
    for event in 0..4096 {
        assert!(machine.vgic.msi(8, event, &mut machine.outside).is_ok());
    }
    machine.settle();
    let mut seen = vec![false; 4096];
    let mut last = 0;
    for _ in 0..4096 {
        let event = u32::from(machine.take(0).unwrap()) - 8192;
        let priority = event * 7919 % 31;
        assert!(priority >= last);
        last = priority;
        assert!(!std::mem::replace(&mut seen[event as usize], true));
    }
    assert_eq!(machine.take(0), None);
}

#[test]
fn resolve_tells_where_a_message_goes_and_when_that_changes() {
    let mut machine = machine();
    let at = |vcpu, intid| {
        let intid = Intid::new(intid);
        Some(Target { vcpu, intid })
    };
    assert_eq!(machine.vgic.resolve(8, 3), at(0, 8195));
    let cases: &[(Command, Option<Target>)] = &[
        (movi(8, 3, 1), at(1, 8195)),
        (mapc(1, 0), at(0, 8195)),
        (unmapc(1), None),
        (mapc(1, 1), at(1, 8195)),
        (mapti(8, 3, 9000, 0), at(0, 9000)),
        (discard(8, 3), None),
        (mapti(8, 3, 8195, 1), at(1, 8195)),
        (unmapd(8), None),
        (mapd(8, 5), None),
        (mapti(8, 3, 8195, 1), at(1, 8195)),
        (mapd(8, 5), None),
    ];
    for (command, target) in cases {
        assert!(machine.command(*command), "{command:x?}");
        assert_eq!(machine.vgic.resolve(8, 3), *target, "{command:x?}");
    }
    machine.command(mapti(8, 3, 8195, 1));
    machine.write(Frame::Its, 0, 4, 0);
    assert_eq!(machine.vgic.resolve(8, 3), None, "the ITS is off");
}

#[test]
fn every_command_does_its_work() {
    let mut machine = machine();
    // INT, CLEAR
    assert!(machine.command(int(8, 1)));
    assert_eq!(machine.take(0), Some(8193));
    assert!(machine.command(int(8, 1)) && machine.command(clear(8, 1)));
    assert_eq!(machine.take(0), None);
    // INV, INVALL
    machine.configure(8193, 0x80, false);
    assert!(machine.msi(8, 1));
    assert_eq!(machine.take(0), Some(8193), "the ITS was not told");
    assert!(machine.command(inv(8, 1)));
    assert!(machine.msi(8, 1));
    assert_eq!(machine.take(0), None);
    machine.configure(8193, 0x80, true);
    assert!(machine.command(invall(0)));
    assert_eq!(machine.take(0), Some(8193), "it waited");
    // MOVI takes what is pending along, MAPC does not, MOVALL does
    assert!(machine.msi(8, 1) && machine.command(movi(8, 1, 1)));
    assert_eq!((machine.take(0), machine.take(1)), (None, Some(8193)));
    assert!(machine.msi(8, 1) && machine.msi(8, 2));
    assert!(machine.command(mapc(1, 0)));
    assert_eq!((machine.take(0), machine.take(0)), (Some(8194), None));
    assert!(machine.command(movall(1, 0)));
    assert_eq!((machine.take(1), machine.take(0)), (None, Some(8193)));
    // DISCARD and MAPD drop what is pending
    assert!(machine.msi(8, 2) && machine.command(discard(8, 2)));
    assert_eq!(machine.take(0), None);
    assert!(!machine.msi(8, 2));
    assert!(machine.msi(8, 3) && machine.command(unmapd(8)));
    assert_eq!(machine.take(0), None);
    assert!(!machine.msi(8, 3));
    // MAPI
    assert!(machine.command(mapd(9, 16)) && machine.command(mapi(9, 8200, 0)));
    assert!(machine.msi(9, 8200));
    assert_eq!(machine.take(0), Some(8200));
    assert!(machine.command(sync(1)));
}

#[test]
#[rustfmt::skip]
fn commands_with_wrong_parameters_are_ignored() {
    let cases: &[(&str, Command)] = &[
        ("no such command",                 [0x00, 0, 0, 0]),
        ("GICv4's VMAPP",                   [0x29, 0, VALID, 0]),
        ("device beyond the table",         mapd(0x2000, 5)),
        ("device of 32 bits",               mapd(0xffff_ffff, 5)),
        ("too many bits of EventID",        mapd(9, 17)),
        ("collection beyond the table",     [0x09, 0, VALID | 0x2000, 0]),
        ("vCPU that does not exist",        mapc(3, 2)),
        ("vCPU of 35 bits",                 mapc(3, 0x7_ffff_ffff)),
        ("device that is not mapped",       mapti(9, 0, 8300, 0)),
        ("event beyond the device's",       mapti(8, 32, 8300, 0)),
        ("event of 32 bits",                mapti(8, 0xffff_ffff, 8300, 0)),
        ("SPI",                             mapti(8, 1, 40, 0)),
        ("INTID of no kind",                mapti(8, 1, 8191, 0)),
        ("INTID beyond IDbits",             mapti(8, 1, 0x1_0000, 0)),
        ("INTID of 32 bits",                mapti(8, 1, 0xffff_ffff, 0)),
        ("collection beyond, in MAPTI",     mapti(8, 1, 8300, 0x2000)),
        ("EventID that is no LPI",          mapi(8, 1, 0)),
        ("MOVI of an event not mapped",     movi(9, 0, 0)),
        ("MOVI to a collection not mapped", movi(8, 0, 5)),
        ("INV of an event not mapped",      inv(8, 33)),
        ("INT of a device not mapped",      int(0xffff_ffff, 0)),
        ("CLEAR of an event not mapped",    clear(8, 0xffff_ffff)),
        ("DISCARD of an event not mapped",  discard(7, 0)),
        ("INVALL of a free collection",     invall(5)),
        ("MOVALL from nowhere",             movall(2, 0)),
        ("MOVALL to nowhere",               movall(0, 2)),
    ];
    let mut machine = machine();
    for (what, command) in cases {
        assert!(!machine.command(*command), "{what}");
        for event in 0..32 {
            let target = machine.vgic.resolve(8, event).unwrap();
            assert_eq!((target.vcpu, target.intid.get()), (0, 8192 + event as u16), "{what}");
        }
    }
    assert!(machine.msi(8, 1));
    assert_eq!(machine.take(0), Some(8193));
}

#[test]
fn the_queue_wraps_and_is_worked_off_in_portions() {
    let mut machine = machine();
    for _ in 0..300 {
        assert!(machine.command(sync(0)));
    }
    // A full queue: all slots but one.
    let start = machine.its_read(0x88);
    let (bytes, _) =
        machine.outside.memory[(QUEUE - RAM) as usize..][..0x1000].as_chunks_mut::<32>();
    bytes.fill(
        sync(0)
            .map(u64::to_le_bytes)
            .as_flattened()
            .try_into()
            .unwrap(),
    );
    let end = (start + 0x1000 - 32) % 0x1000;
    let (vgic, outside) = (&mut machine.vgic, &mut machine.outside);
    vgic.write(Frame::Its, 0x88, 8, end, outside);
    let mut calls = 0;
    while vgic.has_commands() {
        vgic.process(10, outside);
        calls += 1;
        let done = (start + calls * 320).min(start + 0x1000 - 32) % 0x1000;
        assert_eq!(vgic.read(Frame::Its, 0x90, 8, outside), done);
    }
    assert_eq!(calls, 13);
    // Work costs what it costs: INVALL looks at all LPIs.
    assert_eq!(vgic.failed_commands(), 0);
    machine.its(0x88, 0x1000);
    assert_eq!(machine.its_read(0x88), end, "beyond the queue");
}

#[test]
fn a_queue_that_is_not_memory_stalls() {
    let mut machine = machine();
    machine.write(Frame::Its, 0, 4, 0);
    machine.its(0x80, VALID | 0x1000);
    machine.write(Frame::Its, 0, 4, 1);
    machine.its(0x88, 0x40);
    assert!(!machine.vgic.has_commands());
    assert_eq!(machine.its_read(0x90), 1, "stalled at the first");
    machine.its(0x88, 0x41);
    assert_eq!(machine.its_read(0x90), 1, "again");
    assert_eq!(machine.its_read(0x88), 0x40);
    machine.write(Frame::Its, 0, 4, 0);
    machine.enable_its();
    assert_eq!(machine.its_read(0x90), 0);
    assert!(machine.command(int(8, 1)));
    assert_eq!(machine.take(0), Some(8193));
}

#[test]
fn a_guest_that_starts_again_finds_an_its_that_works() {
    let mut machine = machine();
    for round in 0..3 {
        assert!(machine.msi(8, 1));
        // As kexec does: everything off, other tables, everything on.
        machine.gicr(0, 0, 0);
        assert_eq!(machine.read(Frame::Redistributor(0), 0, 4) & 1, 0);
        machine.gicr(1, 0, 0);
        machine.write(Frame::Its, 0, 4, 0);
        assert_eq!(machine.read(Frame::Its, 0, 4), 1 << 31, "quiescent");
        machine.its(0x100, 0);
        machine.its(0x108, 0);
        assert_eq!(machine.take(0), None);
        assert!(!machine.msi(8, 1));
        machine.enable_lpis(0, Machine::pendings(0) | 1 << 62);
        machine.enable_lpis(1, Machine::pendings(1) | 1 << 62);
        machine.enable_its();
        assert!(!machine.msi(8, 1), "round {round}");
        assert!(!machine.command(mapti(8, 1, 8193, 0)));
        assert!(machine.command(mapc(0, 0)) && machine.command(mapd(8, 5)));
        assert!(machine.command(mapti(8, 1, 8193, 0)));
        assert!(machine.msi(8, 1));
        assert_eq!(machine.take(0), Some(8193));
    }
}

#[test]
fn mappings_survive_while_the_its_is_off() {
    let mut machine = machine();
    machine.write(Frame::Its, 0, 4, 0);
    assert!(!machine.msi(8, 1));
    let devices = machine.its_read(0x100);
    machine.its(0x100, devices);
    machine.write(Frame::Its, 0, 4, 1);
    assert!(machine.msi(8, 1));
    assert_eq!(machine.take(0), Some(8193));
}

#[test]
fn pending_lpis_go_to_the_table_and_come_back() {
    let mut machine = machine();
    assert!(machine.msi(8, 1) && machine.msi(8, 31));
    machine.gicr(0, 0, 0);
    assert_eq!(machine.take(0), None);
    let set: Vec<u64> = (8192..0x1_0000)
        .filter(|intid| machine.pending_bit(0, *intid))
        .collect();
    assert_eq!(set, [8193, 8223]);
    assert!(!machine.msi(8, 2), "LPIs are off");
    machine.gicr(0, 0, 1);
    assert!(
        machine.read(Frame::Redistributor(0), 0x78, 8) & 1 << 62 == 0,
        "PTZ reads zero"
    );
    assert_eq!(machine.take(0), None, "PTZ: the table was said to be empty");
    machine.gicr(0, 0, 0);
    let at = (PENDINGS - RAM) as usize;
    machine.outside.memory[at + 8193 / 8] = 2;
    machine.outside.memory[at + 0xffff / 8] = 0x80;
    machine.configure(0xffff, 0x40, true);
    machine.enable_lpis(0, Machine::pendings(0));
    assert_eq!(machine.take(0), Some(0xffff), "without any mapping");
    assert_eq!(machine.take(0), Some(8193));
    assert_eq!(machine.take(0), None);
}

#[test]
fn what_a_guest_can_map_is_limited() {
    // Every LPI once, by devices of 32 events: this much always fits.
    let mut machine = Machine::new(1, 4);
    machine.bring_up();
    let mut intid = 8192;
    for device in 0..57344 / 32 {
        assert!(machine.command(mapd(device, 5)), "device {device}");
        for event in 0..32 {
            assert!(
                machine.command(mapti(device, event, intid, 0)),
                "LPI {intid}"
            );
            intid += 1;
        }
    }
    // As sparse as can be: refused at some point, and the rest still works.
    let mut machine = Machine::new(1, 4);
    machine.bring_up();
    let mut mapped = 0;
    for device in 0..8192 {
        let made = machine.command(mapd(device, 16));
        mapped += u64::from(made && machine.command(mapti(device, 0xffff, 8192 + device, 0)));
    }
    assert!((10..8192).contains(&mapped), "{mapped}");
    assert!(machine.msi(0, 0xffff));
    assert!(machine.command(unmapd(1)) && machine.command(unmapd(2)));
    assert!(machine.command(mapd(3, 16)) && machine.command(mapti(3, 0xffff, 9000, 0)));
}

#[test]
fn without_an_its_there_are_no_lpis() {
    let mut vgic = vgic::Vgic::new(&vgic::Config {
        affinities: &[0],
        spis: 96,
        its: false,
        device_bits: 16,
        vtr: VTR,
    })
    .unwrap();
    let outside = &mut Machine::new(1, 4).outside;
    let redistributor = Frame::Redistributor(0);
    for offset in (0..0x2_0000).step_by(8) {
        vgic.write(Frame::Its, offset, 8, !0, outside);
        assert_eq!(vgic.read(Frame::Its, offset, 8, outside), 0);
    }
    vgic.write(redistributor, 0, 4, 1, outside);
    vgic.write(redistributor, 0x70, 8, !0, outside);
    assert_eq!(vgic.read(redistributor, 0, 4, outside), 0);
    assert_eq!(vgic.read(redistributor, 0x70, 8, outside), 0);
    assert_eq!(
        vgic.read(redistributor, 8, 8, outside),
        1 << 4,
        "Last, no PLPIS"
    );
    assert_eq!(vgic.read(Frame::Distributor, 4, 4, outside), 0x0148_0003);
    assert!(vgic.msi(0, 0, outside).is_err());
    assert!(!vgic.has_commands());
}

/// A machine whose kicks have yet to arrive, with the first LPIs mapped to the first vCPU.
fn held(lpis: u64) -> Machine {
    let mut machine = Machine::new(2, 4);
    machine.bring_up();
    assert!(machine.command(mapd(8, 4)));
    for index in 0..lpis {
        machine.configure(8192 + index, 0x80, true);
        assert!(machine.command(mapti(8, index, 8192 + index, 0)));
    }
    for vcpu in 0..2 {
        // Loaded with nothing to list: what comes next is posted.
        machine.unload(vcpu);
        machine.load(vcpu);
    }
    machine.held = true;
    machine
}

/// One is posted to the other vCPU, as it waited in no list register here; the others follow when this vCPU
/// is next looked at.
#[test]
fn movall_of_what_is_listed_and_what_is_not() {
    let mut machine = held(5);
    machine.held = false;
    for index in 0..5 {
        assert!(machine.msi(8, index));
    }
    machine.held = true;
    assert!(machine.command(movall(0, 1)));
    machine.held = false;
    machine.settle();
    let mut taken: Vec<_> = (0..5).filter_map(|_| machine.take(1)).collect();
    taken.sort_unstable();
    assert_eq!(taken, [8192, 8193, 8194, 8195, 8196]);
    assert_eq!(machine.take(0), None);
}

#[test]
fn what_was_posted_is_there_when_its_configuration_changes() {
    let mut machine = held(2);
    assert!(machine.msi(8, 0));
    assert!(machine.msi(8, 1));
    machine.configure(8192, 0x40, true);
    assert!(machine.command(inv(8, 0)));
    machine.held = false;
    machine.settle();
    assert_eq!(machine.take(0), Some(8192));
    assert_eq!(machine.take(0), Some(8193));
}

#[test]
fn what_was_posted_ends_a_wait() {
    let mut machine = held(1);
    assert!(machine.msi(8, 0));
    assert!(machine.wait(0), "the kick is on its way");
    assert_eq!(machine.take(0), Some(8192));
    assert!(!machine.wait(0));
}

#[test]
fn what_comes_for_a_vcpu_that_stays_off_can_be_moved() {
    let mut machine = held(1);
    machine.unload(0);
    assert!(machine.msi(8, 0));
    assert!(machine.command(movi(8, 0, 1)));
    machine.held = false;
    machine.settle();
    assert_eq!(machine.take(1), Some(8192));
}

#[test]
fn what_comes_while_a_vcpu_is_not_loaded_is_there_when_it_is() {
    let mut machine = held(2);
    machine.unload(0);
    assert!(machine.msi(8, 0));
    assert!(machine.vgic.pending(0, VMCR));
    assert!(machine.msi(8, 1));
    machine.configure(8193, 0x40, true);
    assert!(machine.command(inv(8, 1)));
    machine.load(0);
    machine.held = false;
    machine.settle();
    assert_eq!(machine.take(0), Some(8193));
    assert_eq!(machine.take(0), Some(8192));
}

/// A domain that starts again has as much memory for its tables as before, whatever its guest has mapped.
#[test]
fn a_reset_forgets_all_devices_and_gives_their_memory_back() {
    let mut machine = Machine::new(1, 4);
    let mut most = None;
    for _ in 0..3 {
        machine.bring_up();
        // A table of events is made in pieces of 32: one of each.
        let full = (0..50_000).find(|number| {
            let (device, event) = (number >> 11, (number & 0x7ff) * 32);
            event == 0 && !machine.command(mapd(device, 16))
                || !machine.command(mapti(device, event, 8192 + number, 0))
        });
        assert!(full.is_some() && *most.get_or_insert(full) == full);
        machine.vgic.reset();
        machine.bring_up();
        assert!(!machine.msi(0, 0), "nothing is mapped");
    }
}
