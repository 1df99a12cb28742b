//! What EL2 does at run time with a heap that is exhausted, after however many allocations: it gets an
//! error. An allocation that cannot fail ends this program.
#![expect(
    unsafe_code,
    reason = "a global allocator with a limit is made of unsafe functions"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use kernel::console::Console;
use kernel::guest_tree::{self, Platform};
use kernel::uart::Uart;
use kernel::{fallible, layout};
use manifest::Manifest;
use pci::ConfigSpace;
use vgic::{BadAddress, Frame, Host, Interface, Intid, Vgic};
use vpci::{
    BarIndex, BarInfo, BarKind, Bus, BusAddress, BusRange, ClaimError, ConfigAccess, Decoder,
    Offset, Owner, PhysicalConfig, Pin, Position, Sbdf, Setup, Size, Vendor,
};

/// The system's allocator, which refuses once a thread has had so many allocations.
struct Limited;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    static LAST: Cell<Option<Layout>> = const { Cell::new(None) };
}

impl Limited {
    fn may(layout: Layout) -> bool {
        LAST.set(Some(layout));
        match LEFT.get() {
            usize::MAX => true,
            left => {
                LEFT.set(left.saturating_sub(1));
                left > 0
            }
        }
    }
}

// SAFETY: as the system's allocator, which it forwards to, or null, which says that there is no memory.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::may(layout) {
            return core::ptr::null_mut();
        }
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Runs `f` with so many allocations, and none after.
fn with<R>(allocations: usize, f: impl FnOnce() -> R) -> R {
    LEFT.set(allocations);
    let result = f();
    LEFT.set(usize::MAX);
    result
}

/// Runs `f` with no allocation, then one, and so on until it succeeds; returns how many that takes.
fn until_it_succeeds<R, E>(mut f: impl FnMut() -> Result<R, E>) -> usize {
    (0..10_000)
        .find(|allocations| with(*allocations, || f().is_ok()))
        .expect("ten thousand allocations are enough")
}

const PLATFORM: Platform<'static> = Platform {
    memory: 0x1000_0000,
    vcpus: 3,
    host_bridge: true,
    cmdline: "console=ttyAMA0",
    initrd: None,
    modules: &[("disk", 0x71_0000_0000..0x71_0100_0000)],
    servers: &[],
};

#[test]
fn the_device_tree_of_a_domain_that_starts_again() {
    let servers = [Arc::new(guest_tree::Server {
        id: 0,
        name: "blk0".into(),
        target: "linux".into(),
        ring: 0x70_0000_0000..0x70_0000_3000,
        memory: vec![(0x4000_0000, 0x2000_0000, 0x72_0000_0000); 3],
        doorbell: layout::DOORBELL,
    })];
    let platform = Platform {
        servers: &servers,
        ..PLATFORM
    };
    assert!(until_it_succeeds(|| guest_tree::make(&platform)) > 3);
}

#[test]
fn the_console() {
    let mut console = Console::new().unwrap();
    assert!(until_it_succeeds(|| console.attach(0, "linux", true)) > 0);
    console.attach(1, "disk", false).unwrap();
    with(0, || {
        for round in 0..3_000_u32 {
            let byte = round.to_le_bytes()[0];
            let _ = console.write(0, byte);
            let _ = console.write(1, byte);
            console.log(format_args!("{round} is said"));
            for key in [0x1d, b'h', 0x1d, b'1', 0x1d, b'0', b'x'] {
                console.typed(key);
            }
            for _ in 0..round % 40 {
                console.pop();
            }
        }
        console.end_line(1);
        console.detach(1);
    });
}

#[test]
fn the_uart_of_a_domain_that_starts_again() {
    with(0, || {
        let mut uart = Uart::default();
        for key in 0..100 {
            uart.receive(key);
        }
        assert_eq!(uart.read(0) & 0xff, 0);
        uart = Uart::default();
        uart.receive(7);
        assert_eq!(uart.read(0) & 0xff, 7);
    });
}

/// Commands of the virtual ITS as guest memory: each kind with small numbers.
struct Commands(Vec<u8>);

impl Host for Commands {
    fn kick(&mut self, _: usize) {}

    fn read_guest(&mut self, ipa: u64, bytes: &mut [u8]) -> Result<(), BadAddress> {
        let at = (ipa & 0xffff) as usize;
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = self.0[(at + n) % self.0.len()];
        }
        Ok(())
    }

    fn write_guest(&mut self, _: u64, _: &[u8]) -> Result<(), BadAddress> {
        Ok(())
    }

    fn line(&mut self, _: usize, _: Intid) -> Option<bool> {
        None
    }

    fn ended(&mut self, _: Intid) -> bool {
        false
    }
}

/// A virtual CPU interface on which nothing happens, with all groups on.
struct Cpu;

impl Interface for Cpu {
    fn hcr(&self) -> u64 {
        0
    }
    fn set_hcr(&mut self, _: u64) {}
    fn vmcr(&self) -> u64 {
        0xff << 24 | 3
    }
    fn read(&self, _: usize) -> u64 {
        0
    }
    fn write(&mut self, _: usize, _: &[u64]) {}
}

fn interrupt_controller() -> Result<Vgic, vgic::OutOfMemory> {
    Vgic::new(&vgic::Config {
        affinities: &[0, 1, 2],
        spis: 96,
        its: true,
        device_bits: 16,
        vtr: 0x90b8_0003,
    })
}

#[test]
fn the_interrupt_controller() {
    assert!(until_it_succeeds(interrupt_controller) > 3);
    let mut memory = Vec::new();
    // MAPC, MAPD, MAPTI, INT, MOVI, INV, INVALL, MOVALL, CLEAR, DISCARD (Arm IHI 0069, 5.3).
    for number in 0..40_u64 {
        let device = number << 32;
        let commands = [
            [0x09, 0, 1 << 63 | (number % 3) << 16 | (number % 3), 0],
            [0x08 | device, 4, 1 << 63 | 0x4000_0000, 0],
            [0x0a | device, number | (8192 + number) << 32, number % 3, 0],
            [0x03 | device, number, 0, 0],
            [0x01 | device, number, 1, 0],
            [0x0c | device, number, 0, 0],
            [0x0d, 0, 1, 0],
            [0x0e, 0, 1 << 16, 2 << 16],
            [0x04 | device, number, 0, 0],
            [0x0f | device, number & !1, 0, 0],
        ];
        for dword in commands.into_iter().flatten() {
            memory.extend(u64::to_le_bytes(dword));
        }
    }
    let mut host = Commands(memory);
    let pages = host.0.len() as u64 / 4096;
    let mut most = 0;
    for allocations in 0..200 {
        let mut vgic = interrupt_controller().unwrap();
        with(allocations, || {
            // GITS_BASER0 and 1, CBASER, CTLR; GICR_PROPBASER, PENDBASER, CTLR of each vCPU.
            for cpu in 0..3 {
                let frame = Frame::Redistributor(cpu);
                vgic.write(frame, 0x70, 8, 0x4100_000f, &mut host);
                vgic.write(frame, 0x78, 8, 1 << 62 | 0x4200_0000, &mut host);
                vgic.write(frame, 0, 4, 1, &mut host);
            }
            vgic.write(Frame::Its, 0x100, 8, 1 << 63 | 0x4000_00ff, &mut host);
            vgic.write(Frame::Its, 0x108, 8, 1 << 63 | 0x4001_0000, &mut host);
            vgic.write(
                Frame::Its,
                0x80,
                8,
                1 << 63 | 0x4000_0000 | pages,
                &mut host,
            );
            vgic.write(Frame::Its, 0, 4, 1, &mut host);
            vgic.write(Frame::Its, 0x88, 8, pages * 4096, &mut host);
            for _ in 0..1_000 {
                vgic.process(128, &mut host);
            }
            let known = (0..40).filter(|n| vgic.msi(*n, *n, &mut host).is_ok());
            let known = known.count();
            assert!(if allocations < 3 {
                known == 0
            } else {
                known < 40
            });
            most = most.max(known);
            vgic.refill(0, &mut Cpu, &mut host);
            vgic.reset();
            vgic.write(Frame::Distributor, 0, 4, 3, &mut host);
        });
    }
    assert!(most > 10, "{most} events are mapped when there is memory");
}

struct Edu;

/// A function with a 1 MiB BAR, MSI and MSI-X, as its config space reads.
impl PhysicalConfig for Edu {
    fn read(&self, offset: Offset, size: Size) -> u32 {
        let dword = match offset.get() & !3 {
            0x00 => 0x11e8_1234,
            0x04 => 0x0010_0000,
            0x34 => 0x40,
            0x40 => 0x0080_5005,
            0x50 => 0x003f_0011,
            0x58 => 0x0000_2000,
            _ => 0,
        };
        dword >> (8 * (offset.get() & 3)) & size.mask()
    }

    fn write(&self, _: Offset, _: Size, _: u32) {}
}

impl ConfigSpace for Edu {
    fn read(&self, sbdf: Sbdf, offset: Offset, size: Size) -> u32 {
        if sbdf.rid() < 0x40 {
            PhysicalConfig::read(self, offset, size)
        } else {
            size.mask()
        }
    }

    fn write(&self, _: Sbdf, _: Offset, _: Size, _: u32) {}
}

#[test]
fn a_bus_and_its_functions() {
    let slot = Sbdf::from_rid(0, 0x18);
    let window = BusRange::new(BusAddress::new(0x1000_0000), 0x1000_0000).unwrap();
    let range = BusRange::new(BusAddress::new(0x1000_0000), 0x1000).unwrap();
    let decoder = Decoder::Ioreq {
        server: 0,
        sbdf: slot,
        posted: false,
    };
    let make = || -> Result<(), ()> {
        let mut bus: Bus<usize> = Bus::new(0, 0, 255).map_err(drop)?;
        bus.memory.add_window(window).map_err(drop)?;
        bus.insert(slot, Owner::Ioreq(0)).map_err(drop)?;
        let _ = bus.memory.claim_or_wait(range, decoder).map_err(drop)?;
        let _ = bus.memory.claim_or_wait(range, decoder).map_err(drop)?;
        Ok(())
    };
    assert!(until_it_succeeds(make) > 2);
    let bars = [BarInfo {
        index: BarIndex::all().next().unwrap(),
        kind: BarKind::Memory32,
        prefetchable: false,
        size: 0x10_0000,
        host: 0x1000_0000,
    }];
    let setup = Setup {
        bars: &bars,
        doorbell: BusAddress::new(layout::DOORBELL),
        position: Position::RootBus,
        pin: Pin::Hidden,
        vendor: Vendor::Hidden,
        kind: vpci::Kind::Ordinary,
    };
    assert!(until_it_succeeds(|| vpci::Function::new(Edu, &setup)) > 1);
    let mut function = vpci::Function::new(Edu, &setup).unwrap();
    with(0, || {
        for offset in (0..0x100).step_by(4) {
            let access = vpci::ecam::decode(0, offset, 4);
            let access: ConfigAccess = access.unwrap();
            let _ = function.read(access);
            let _ = function.write(access, 0xffff_ffff);
            while function.next_effect().is_some() {}
        }
        let _ = function.reset();
        while function.next_effect().is_some() {}
    });
}

/// However many functions there are, each can claim a range for each of its BARs, and have it wait, when no
/// memory is left; what device models claim comes on top of that.
#[test]
fn the_bars_of_all_functions_of_a_bus() {
    const FUNCTIONS: u64 = 20;
    let slot = |number: u64| Sbdf::from_rid(0, u16::try_from(number << 3).unwrap());
    let window = BusRange::new(BusAddress::new(0x1000_0000), 0x1000_0000).unwrap();
    let page = |number: u64| {
        let start = BusAddress::new(0x1000_0000 + number * 0x1000);
        BusRange::new(start, 0x1000).unwrap()
    };
    let mut bus: Bus<u64> = Bus::new(0, 0, 255).unwrap();
    bus.memory.add_window(window).unwrap();
    let model = slot(31);
    bus.insert(model, Owner::Ioreq(0)).unwrap();
    // Those that have gone leave no room behind, nor take any along.
    for round in 0..3 {
        // What those before have had is enough for as many.
        with(if round == 0 { usize::MAX } else { 0 }, || {
            for function in 1..=FUNCTIONS {
                bus.insert(slot(function), Owner::Vpci(function)).unwrap();
                assert!(bus.insert(slot(function), Owner::Vpci(function)).is_err());
            }
        });
        let bars = || {
            let ranges = 0..BarIndex::RANGES as u64;
            (1..=FUNCTIONS).flat_map(move |function| ranges.clone().map(move |bar| (function, bar)))
        };
        let decoder = |function: u64, bar: u64| Decoder::Bar {
            function,
            bar: BarIndex::new(u8::try_from(bar).unwrap()).unwrap_or(BarIndex::ROM),
        };
        let ioreq = |posted| Decoder::Ioreq {
            server: 0,
            sbdf: model,
            posted,
        };
        // As much as the lists hold without asking for more.
        let claims = with(0, || {
            let claims =
                (1_000..9_000).take_while(|n| bus.claim(page(*n), model, ioreq(false)).is_ok());
            claims.count() as u64
        });
        assert!(claims < 1_000, "{claims} claims without memory");
        for at_once in [false, true] {
            with(0, || {
                for (function, bar) in bars() {
                    let at = if at_once { 0 } else { function * 8 + bar };
                    let claimed = bus.memory.claim_or_wait(page(at), decoder(function, bar));
                    assert!(claimed.is_ok(), "{function}, {bar}: {claimed:?}");
                }
                for (function, bar) in bars() {
                    let at = if at_once { 0 } else { function * 8 + bar };
                    let _ = bus.memory.release(page(at), decoder(function, bar));
                    bus.memory.grant_ready(|_, _| {});
                }
            });
        }
        assert_eq!(bus.memory.granted().count() as u64, claims);
        for claim in 0..claims {
            assert!(bus.unclaim(page(1_000 + claim).start(), |owner| owner == ioreq(false)));
        }
        for function in 1..=FUNCTIONS {
            assert!(bus.remove(slot(function)).is_some(), "round {round}");
        }
    }
}

/// What a device model has given back is there for its next claim, on the root bus and below a port.
#[test]
fn the_claims_of_device_models() {
    let range = BusRange::new(BusAddress::new(0x1000_0000), 0x1000).unwrap();
    let mut bus: Bus<usize> = Bus::new(0, 0, 255).unwrap();
    bus.memory.add_window(range).unwrap();
    bus.add_port(Sbdf::from_rid(0, 0x10), 1, false).unwrap();
    for sbdf in [0x08, 0x100].map(|rid| Sbdf::from_rid(0, rid)) {
        let decoder = Decoder::Ioreq {
            server: 0,
            sbdf,
            posted: false,
        };
        bus.insert(sbdf, Owner::Ioreq(0)).unwrap();
        let once = |bus: &mut Bus<usize>| {
            bus.claim(range, sbdf, decoder).unwrap();
            assert!(bus.unclaim(range.start(), |other| other == decoder));
            bus.claim(range, sbdf, decoder).unwrap();
            let again = bus.claim(range, sbdf, decoder);
            assert!(matches!(again, Err(ClaimError::Taken { .. })), "{again:?}");
            bus.unclaim_all(|other| other == decoder);
        };
        once(&mut bus);
        with(0, || (0..100).for_each(|_| once(&mut bus)));
    }
}

/// However often one function of a device model gives all its ranges back while another one keeps its own, the
/// room that functions of the machine have stays theirs.
#[test]
fn what_a_device_model_gives_back_is_no_others_room() {
    const FUNCTIONS: u16 = 60;
    let window = BusRange::new(BusAddress::new(0x1000_0000), 0x1000_0000).unwrap();
    let page = |number: u64| {
        let start = BusAddress::new(0x1000_0000 + number * 0x1000);
        BusRange::new(start, 0x1000).unwrap()
    };
    let mut bus: Bus<u16> = Bus::new(0, 0, 255).unwrap();
    bus.memory.add_window(window).unwrap();
    let ioreq = |number: u16| {
        let sbdf = Sbdf::from_rid(0, 0xf0 + number);
        let decoder = Decoder::Ioreq {
            server: 0,
            sbdf,
            posted: false,
        };
        (sbdf, decoder)
    };
    let [(one, of_one), (other, of_other)] = [0, 1].map(ioreq);
    for model in [one, other] {
        bus.insert(model, Owner::Ioreq(0)).unwrap();
    }
    bus.claim(page(1), other, of_other).unwrap();
    for half in [1..=FUNCTIONS / 2, FUNCTIONS / 2 + 1..=FUNCTIONS] {
        for function in half {
            bus.insert(Sbdf::from_rid(0, 8 + function), Owner::Vpci(function))
                .unwrap();
        }
        for _ in 0..200 {
            bus.claim(page(2), one, of_one).unwrap();
            bus.unclaim_all(|decoder| decoder == of_one);
        }
    }
    with(0, || {
        for (number, bar) in (8..).zip((0..FUNCTIONS).flat_map(|_| BarIndex::all())) {
            let function =
                u16::try_from((number - 8) / BarIndex::all().count() as u64).unwrap() + 1;
            let claimed = (bus.memory).claim_or_wait(page(number), Decoder::Bar { function, bar });
            assert!(claimed.is_ok(), "{function}, {bar}: {claimed:?}");
        }
    });
}

#[test]
fn enumeration() {
    let host = pci::HostBridge {
        segment: 0,
        first_bus: 0,
        last_bus: 1,
        windows: vec![],
    };
    assert!(until_it_succeeds(|| pci::enumerate(&Edu, &host, &[], &mut |_| {})) > 1);
}

#[test]
fn a_device_tree_and_a_manifest_at_boot() {
    let manifest = Manifest {
        domains: vec![manifest::Domain {
            name: "linux".into(),
            memory: 0x1000_0000,
            vcpus: 2,
            payload: manifest::Payload::Kernel("vmlinuz".into()),
            initrd: Some("initrd".into()),
            cmdline: "quiet".into(),
            host_bridge: true,
            iommu: true,
            control: false,
            console: true,
            priority: 8,
            affinity: Some(vec![0, 1]),
            modules: vec!["disk".into()],
            ports: vec![],
            functions: vec![],
            servers: vec![],
        }],
        modules: vec![],
        sriov: Vec::new(),
    };
    let bytes = manifest.write().unwrap();
    assert!(until_it_succeeds(|| dt::Tree::parse(&bytes)) > 2);
    let tree = dt::Tree::parse(&bytes).unwrap();
    assert!(until_it_succeeds(|| Manifest::read(&tree)) > 5);
}

#[test]
fn lists_and_texts() {
    assert_eq!(until_it_succeeds(|| fallible::text("a text")), 1);
    assert_eq!(fallible::display(1234).as_deref(), Ok("1234"));
    assert_eq!(until_it_succeeds(|| fallible::display(1234)), 1);
    assert_eq!(until_it_succeeds(|| fallible::collect(0..100)), 1);
    assert_eq!(until_it_succeeds(|| fallible::leak(7)), 1);
    // A length that is not known before takes several.
    assert!(until_it_succeeds(|| fallible::collect((0..100).filter(|n| n % 3 == 0))) > 1);
    let mut list = fallible::collect([1, 2]).unwrap();
    assert!(with(0, || fallible::push(&mut list, 3)).is_err());
    assert_eq!(list, [1, 2]);
}

/// `try_arc` sets aside just the block that `Arc::new` will ask for.
#[test]
fn an_arc_allocates_what_is_set_aside_for_it() {
    fn check<T>(value: T) {
        let arc = Arc::new(value);
        assert_eq!(LAST.get(), fallible::arc_layout::<T>());
        drop(arc);
    }
    #[repr(align(64))]
    struct Aligned(#[expect(dead_code, reason = "it has a size")] [u8; 65]);
    check(1_u8);
    check([0_u64; 5]);
    check(Aligned([0; 65]));
    check(());
}
