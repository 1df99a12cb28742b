//! From the first Rust instruction to the first guest.

use crate::domain::{self, Domain, Payload};
use crate::machine::{self, Machine};
use crate::memory;
use crate::panic::give_up;
use crate::pcpu::{self, Pcpu};
use crate::{
    assign, interrupts, irq, lifecycle, log, panic, physical, sched, servers, shadow, terminal,
};
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTHCTL_EL2, CNTP_CTL_EL0, CNTV_CTL_EL0, ID_AA64MMFR1_EL1, MIDR_EL1, MPIDR_EL1,
    Readable, Writeable,
};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arch::address::{PAGE_SIZE, Pa};
use arch::context::Stage1;
use arch::entry::{self, Start};
use arch::gic::{Affinity, Distributor, IntId, Local, Redistributor, Trigger, cpu, virt};
use arch::mmio::Window;
use arch::table::{Stage2, Vmid, VmidBits, Vmids, vtcr_el2, vttbr_el2};
use arch::{asm, sysreg};
use core::sync::atomic::Ordering;
use dt::{Node, Tree};
use kernel::fallible;
use kernel::frames::Run;
use manifest::Manifest;
use smccc::Smc;
use spin::Mutex;

/// The affinity fields of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// What the heap keeps for what happens while domains run, and for each of them.
const HEAP_RESERVE: usize = 1 << 20;
const HEAP_PER_DOMAIN: usize = 64 << 10;

/// How long a pCPU may take to start, in microseconds.
const START_TIMEOUT: u64 = 5_000_000;

/// How much of a malformed device tree is searched for a UART.
const RESCUED: usize = 64 << 10;

macro_rules! or_give_up {
    ($result:expr, $($what:tt)*) => {
        match $result {
            Ok(value) => value,
            Err(error) => give_up(format_args!("{}: {error}", format_args!($($what)*))),
        }
    };
}

/// Starts the hypervisor, on the boot pCPU, with the MMU on.
#[unsafe(no_mangle)]
extern "C" fn isthmus_main(device_tree: u64, _image: u64) -> ! {
    memory::init_early();
    let (total, bytes) = device_tree_bytes(device_tree);
    let tree = match Tree::parse(bytes) {
        Ok(tree) => tree,
        Err(error) => malformed_tree(bytes, &error),
    };
    open_terminal(&tree);
    read_arguments(&tree);
    info!(
        "Isthmus {} at {:#x}",
        env!("CARGO_PKG_VERSION"),
        entry::image().start
    );
    let pack = find_pack();
    let aborted = physical::abort_dma(&tree);
    let tree_run = Run {
        start: Pa::new(device_tree),
        len: total,
    };
    init_memory(&tree, tree_run, pack);
    let machine = find_machine(&tree);
    let cpu = &machine.pcpus[0];
    cpu.adopt();
    init_pcpu(cpu);
    open_terminal_interrupt(&tree, machine);
    start_others(machine);
    let (manifest, modules) = read_manifest(machine, pack);
    let wanted = virtual_functions(&manifest);
    physical::init(&tree, aborted, &wanted, &mut |milliseconds| {
        wait(machine, milliseconds);
    });
    let statistics = memory::statistics();
    info!(
        "{} pCPUs, {} MiB of memory, {} MiB free",
        machine.online().count(),
        (statistics.total * PAGE_SIZE) >> 20,
        (statistics.free * PAGE_SIZE) >> 20
    );
    make_domains(machine, manifest, modules);
    let stack = or_give_up!(memory::make_stack(0), "pCPU 0");
    // SAFETY: the stack was just made for this pCPU, and nothing on the boot stack is needed again.
    unsafe { entry::switch_stack(stack, run, 0) }
}

/// Enters the scheduler, for good.
extern "C" fn run(_: u64) -> ! {
    let frame = sched::schedule(pcpu::this());
    // SAFETY: the scheduler loaded the vCPU whose frame it returned; this is the last thing that
    // this function does.
    unsafe { entry::enter(frame) }
}

/// Starts another pCPU, which `argument` numbers.
#[unsafe(no_mangle)]
extern "C" fn isthmus_secondary(argument: u64) -> ! {
    let number = usize::try_from(argument).expect("a pCPU's number");
    let cpu = &machine::get().pcpus[number];
    cpu.adopt();
    init_pcpu(cpu);
    run(0)
}

/// Returns the device tree's size in memory, and the part of it that holds something.
fn device_tree_bytes(address: u64) -> (u64, &'static [u8]) {
    if address == 0 || !address.is_multiple_of(8) {
        // Nothing says where a UART is.
        panic::stop_machine();
    }
    let bytes = |len| {
        // SAFETY: `isthmus_early` mapped the device tree read-only, by the size that its header has and
        // a page at least, and its memory is reserved until it is copied.
        unsafe { core::slice::from_raw_parts(address as *const u8, len) }
    };
    match dt::extent(bytes(40)) {
        Ok(extent) => (extent.total as u64, bytes(extent.used)),
        Err(dt::Error::Magic(_)) => panic::stop_machine(),
        Err(error) => {
            let total = bytes(8).last_chunk().copied().map_or(0, u32::from_be_bytes);
            let len = (total as usize).clamp(kernel::size(PAGE_SIZE), RESCUED);
            malformed_tree(bytes(len), &error)
        }
    }
}

/// Says that the device tree is malformed, if a UART can be made out in it all the same.
fn malformed_tree(bytes: &[u8], error: &dt::Error) -> ! {
    if let Some(base) = kernel::rescue::find_pl011(bytes) {
        // SAFETY: as far as can be told this is the machine's UART, and nobody else drives it; the
        // machine stops next.
        if let Ok(window) = unsafe { memory::map_device(base, PAGE_SIZE) } {
            let _ = terminal::init(window);
        }
    }
    give_up(format_args!("the device tree is malformed: {error}"))
}

#[cold]
fn open_terminal(tree: &Tree) {
    let Some(node) = uart(tree) else {
        panic::stop_machine();
    };
    let Ok(region) = node.mmio(0) else {
        panic::stop_machine();
    };
    // SAFETY: the machine's UART, which EL2 drives from here on; no guest ever sees it.
    let Ok(window) = (unsafe { memory::map_device(region.base, region.size) }) else {
        panic::stop_machine();
    };
    if terminal::init(window).is_err() {
        panic::stop_machine();
    }
}

/// Returns the UART that the device tree names as console, or else the first one.
fn uart(tree: &Tree) -> Option<Node<'_>> {
    let is_uart = |node: &Node<'_>| node.is_compatible("arm,pl011");
    let named = tree.stdout().ok().flatten().map(|(node, _)| node);
    named
        .filter(is_uart)
        .or_else(|| tree.compatible("arm,pl011").next())
}

/// Takes the machine's boot arguments: `log=error`, `log=warn`, `log=info` or `log=debug`, the least
/// important level of the log that is shown; and `shadow=off`, with which all config reads trap.
fn read_arguments(tree: &Tree) {
    let chosen = tree.find("/chosen");
    let arguments = chosen.and_then(|chosen| chosen.property("bootargs")?.string().ok());
    for word in arguments.unwrap_or_default().split_ascii_whitespace() {
        if word == "shadow=off" {
            shadow::forbid();
        }
        let Some(level) = word.strip_prefix("log=") else {
            continue;
        };
        match log::Level::named(level) {
            Some(level) => log::show(level),
            None => warning!("no log level is called {level}"),
        }
    }
}

/// Where the manifest and the modules are.
#[derive(Clone, Copy)]
struct Pack {
    /// First byte of the manifest, right behind the image.
    start: u64,
    /// Bytes of all of it.
    len: u64,
}

/// Finds what the image tool put behind the image; the header says how much that is.
fn find_pack() -> Pack {
    let image = entry::image();
    // image_size, in the header.
    let field = (image.start + 16) as *const u64;
    // SAFETY: the header is the image's first 64 bytes.
    let size = u64::from_le(unsafe { field.read_volatile() });
    let start = image.end.next_multiple_of(PAGE_SIZE);
    Pack {
        start,
        len: (image.start + size).saturating_sub(start),
    }
}

/// Sets the frame allocator up: what the device tree says is RAM, less what is in use.
#[cold]
fn init_memory(tree: &Tree, device_tree: Run, pack: Pack) {
    let mut ram = Vec::new();
    for region in tree.memory() {
        let region = or_give_up!(region, "memory");
        add(&mut ram, region.base, region.size);
    }
    if ram.is_empty() {
        give_up(format_args!("the device tree has no memory node"));
    }
    ram.sort_unstable_by_key(|run| run.start);
    let image = entry::image();
    let whole_image = Run {
        start: Pa::new(image.start),
        len: image.end - image.start,
    };
    if !is_covered(&ram, &whole_image) {
        give_up(format_args!(
            "Isthmus lies at {:#x} to {:#x}, outside of what the device tree calls memory",
            image.start, image.end
        ));
    }
    let page = |run: Run| {
        let start = run.start.align_down(PAGE_SIZE);
        let end = (run.start.get() + run.len).next_multiple_of(PAGE_SIZE);
        Run {
            start,
            len: end - start.get(),
        }
    };
    // `isthmus_early` maps up to one page more than the device tree needs, and only to be read.
    let mut tree_pages = page(device_tree);
    tree_pages.len += PAGE_SIZE;
    let mut taken = Vec::new();
    for run in [whole_image, tree_pages] {
        add(&mut taken, run.start.get(), run.len);
    }
    add(&mut taken, pack.start, pack.len);
    for region in tree.reservations() {
        add(&mut taken, region.base, region.size);
    }
    for region in tree.reserved_memory() {
        let region = or_give_up!(region, "reserved memory");
        add(&mut taken, region.base, region.size);
    }
    let mut mapped = [page(whole_image), tree_pages];
    mapped.sort_unstable_by_key(|run| run.start);
    if let Err(why) = memory::init_frames(&ram, &mapped, &taken) {
        give_up(format_args!("{why}"));
    }
}

/// Returns whether all of `run` lies in the pieces of RAM, which are in ascending order.
fn is_covered(ram: &[Run], run: &Run) -> bool {
    let end = run.start.get() + run.len;
    let reached = ram.iter().fold(run.start.get(), |reached, piece| {
        let behind = piece.start.get().saturating_add(piece.len);
        if piece.start.get() <= reached {
            reached.max(behind)
        } else {
            reached
        }
    });
    reached >= end
}

/// Notes a piece of RAM.
fn add(runs: &mut Vec<Run>, start: u64, len: u64) {
    let start = Pa::new(start);
    or_give_up!(
        fallible::push(runs, Run { start, len }),
        "the list of memory"
    );
}

/// Finds pCPUs and interrupt controller.
#[cold]
fn find_machine(tree: &Tree) -> &'static Machine {
    let own = MPIDR_EL1.get() & AFFINITY;
    let mut affinities = or_give_up!(fallible::collect([own]), "the pCPUs");
    for node in tree.cpus() {
        let reg = node.reg().map(|mut reg| reg.next());
        let Some(region) = or_give_up!(reg, "a processor") else {
            give_up(format_args!("{} has no reg", node.path()));
        };
        if region.base & AFFINITY != own {
            let affinity = region.base & AFFINITY;
            or_give_up!(fallible::push(&mut affinities, affinity), "the pCPUs");
        }
    }
    let pcpus = affinities.iter().enumerate();
    let pcpus = fallible::collect(pcpus.map(|(n, mpidr)| Pcpu::new(n, *mpidr)));
    let pcpus = or_give_up!(pcpus, "the pCPUs");
    let Some(gic) = tree.compatible("arm,gic-v3").next() else {
        give_up(format_args!(
            "the device tree has no GICv3 (compatible \"arm,gic-v3\")"
        ));
    };
    let mut distributor = or_give_up!(Distributor::new(device(gic, 0)), "the GIC distributor");
    or_give_up!(
        distributor.init(Affinity::from_mpidr(own)),
        "the GIC distributor"
    );
    let regions = gic
        .property("#redistributor-regions")
        .map_or(Ok(1), |count| count.u32());
    let regions = or_give_up!(regions, "the GIC");
    let stride = gic
        .property("redistributor-stride")
        .map(|stride| stride.u64())
        .transpose();
    let stride = or_give_up!(stride, "the GIC").and_then(|stride| usize::try_from(stride).ok());
    let regions = fallible::collect((1..=regions as usize).map(|n| {
        let region = or_give_up!(gic.mmio(n), "{}", gic.path());
        (device(gic, n), Pa::new(region.base))
    }));
    let regions: &'static [(Window, Pa)] = or_give_up!(regions, "the GIC redistributors").leak();
    let redistributors = affinities.iter().map(|affinity| {
        let affinity = Affinity::from_mpidr(*affinity);
        let regions = regions.iter().map(|(window, start)| (window, *start));
        let found = Redistributor::find_in(regions, stride, affinity);
        Mutex::new(or_give_up!(found, "the GIC redistributors"))
    });
    let redistributors = fallible::collect(redistributors);
    let redistributors = or_give_up!(redistributors, "the GIC redistributors");
    let vmid_bits = VmidBits::decode(ID_AA64MMFR1_EL1.get());
    machine::set(Machine {
        pcpus,
        frequency: CNTFRQ_EL0.get(),
        distributor: Mutex::new(distributor),
        redistributors,
        interface: virt::Shape::read(),
        vtr: sysreg::read!("ich_vtr_el2"),
        vtcr: vtcr_el2(Stage2::IPA_BITS, memory::pa_range(), vmid_bits),
        vmids: Mutex::new(Vmids::new(vmid_bits)),
        uart: uart_interrupt(tree),
    })
}

/// Maps the registers of a device.
fn device(node: Node<'_>, index: usize) -> Window {
    let region = or_give_up!(node.mmio(index), "{}", node.path());
    // SAFETY: each device is found and driven by one driver, once.
    let window = unsafe { memory::map_device(region.base, region.size) };
    or_give_up!(window, "{}", node.path())
}

fn uart_interrupt(tree: &Tree) -> Option<u32> {
    let interrupt = uart(tree)?.interrupts().ok()?.next()?;
    Some(interrupt.intid)
}

/// Sets up what each pCPU has of its own.
#[cold]
fn init_pcpu(cpu: &'static Pcpu) {
    let machine = machine::get();
    // SAFETY: on this pCPU; not held beyond the store.
    unsafe { cpu.local().features = crate::sysreg::read_features() };
    {
        let mut redistributor = machine.redistributors[cpu.number].lock();
        or_give_up!(
            redistributor.init(),
            "the redistributor of pCPU {}",
            cpu.number
        );
        let own = [
            irq::HYPERVISOR_TIMER,
            irq::MAINTENANCE,
            interrupts::VIRTUAL_TIMER,
            interrupts::PHYSICAL_TIMER,
        ];
        for number in own {
            let Some(local) = Local::new(IntId::new(number)) else {
                continue;
            };
            redistributor.configure(local, Trigger::Level);
            redistributor.enable(local);
        }
    }
    or_give_up!(cpu::init(), "the CPU interface of pCPU {}", cpu.number);
    virt::init(&machine.interface);
    // Reset leaves them unknown: nothing is walked until a vCPU is loaded.
    Stage1::close();
    sysreg::write!("vttbr_el2", vttbr_el2(Vmid::NONE, Pa::new(0)));
    sysreg::write!("vtcr_el2", machine.vtcr);
    sysreg::write!("vpidr_el2", MIDR_EL1.get());
    // The physical counter and timer are the guest's as well as the virtual ones.
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCTEN::SET + CNTHCTL_EL2::EL1PCEN::SET);
    sysreg::write!("cnthp_ctl_el2", 0);
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    sysreg::write!("hstr_el2", 0);
    if sysreg::read!("id_aa64mmfr1_el1") >> 40 & 0xf != 0 {
        // HCRX_EL2 (FEAT_HCX), whose value after reset is not known.
        sysreg::write!("s3_4_c1_c2_2", 0);
    }
    clear_fine_grained_traps();
    asm::isb();
    asm::tlbi_alle1is();
    asm::dsb_ish();
    asm::isb();
    // Release: who finds it online finds it ready.
    cpu.online.store(true, Ordering::Release);
}

/// Clears the fine-grained traps (FEAT_FGT, FEAT_FGT2), as firmware may have left them.
fn clear_fine_grained_traps() {
    let version = sysreg::read!("id_aa64mmfr0_el1") >> 56 & 0xf;
    if version >= 1 {
        sysreg::write!("s3_4_c1_c1_4", 0); // HFGRTR_EL2
        sysreg::write!("s3_4_c1_c1_5", 0); // HFGWTR_EL2
        sysreg::write!("s3_4_c1_c1_6", 0); // HFGITR_EL2
        sysreg::write!("s3_4_c3_c1_4", 0); // HDFGRTR_EL2
        sysreg::write!("s3_4_c3_c1_5", 0); // HDFGWTR_EL2
    }
    if version >= 2 {
        sysreg::write!("s3_4_c3_c1_2", 0); // HFGRTR2_EL2
        sysreg::write!("s3_4_c3_c1_3", 0); // HFGWTR2_EL2
        sysreg::write!("s3_4_c3_c1_7", 0); // HFGITR2_EL2
        sysreg::write!("s3_4_c3_c1_0", 0); // HDFGRTR2_EL2
        sysreg::write!("s3_4_c3_c1_1", 0); // HDFGWTR2_EL2
    }
}

fn open_terminal_interrupt(tree: &Tree, machine: &'static Machine) {
    let Some(interrupt) = uart(tree).and_then(|node| node.interrupts().ok()?.next()) else {
        warning!("the UART has no interrupt: nothing can be typed");
        return;
    };
    let mut distributor = machine.distributor.lock();
    let Ok(spi) = distributor.spi(IntId::new(interrupt.intid)) else {
        warning!(
            "the UART's interrupt {} is none of the GIC's",
            interrupt.intid
        );
        return;
    };
    distributor.configure(spi, Trigger::Level);
    distributor.enable(spi);
    drop(distributor);
    terminal::use_interrupts();
}

/// Starts the other pCPUs by PSCI, and waits until they are there.
#[cold]
fn start_others(machine: &'static Machine) {
    for cpu in machine.pcpus.iter().skip(1) {
        let stack = or_give_up!(memory::make_stack(cpu.number), "pCPU {}", cpu.number);
        let start = fallible::leak(Start {
            stack,
            argument: cpu.number as u64,
            ..memory::start_values()
        });
        let start: &'static Start = or_give_up!(start, "pCPU {}", cpu.number);
        // It is read with the MMU off.
        asm::clean_to_poc(core::ptr::from_ref(start).cast(), size_of::<Start>());
        let entry = entry::secondary_entry();
        let context = core::ptr::from_ref(start).addr() as u64;
        if let Err(error) = smccc::psci::cpu_on::<Smc>(cpu.mpidr, entry, context) {
            warning!("pCPU {} does not start: {error}", cpu.number);
            continue;
        }
        let give_up_at = sched::now() + machine.ticks(START_TIMEOUT);
        // Acquire: pairs with `init_pcpu`.
        while !cpu.online.load(Ordering::Acquire) {
            if sched::now() > give_up_at {
                warning!("pCPU {} does not answer", cpu.number);
                break;
            }
            core::hint::spin_loop();
        }
    }
}

/// Reads the manifest; returns the bytes from its first on, too.
#[cold]
fn read_manifest(machine: &Machine, pack: Pack) -> (Manifest, &'static [u8]) {
    if pack.len < 40 {
        give_up(format_args!(
            "the image holds no manifest: pack one with scripts/image"
        ));
    }
    let len = usize::try_from(pack.len).expect("the image is in memory");
    // SAFETY: RAM behind the image, reserved for good, and never written.
    let bytes = unsafe { domain::image_bytes(Pa::new(pack.start), len) };
    let tree = or_give_up!(Tree::parse(bytes), "the manifest");
    let manifest = or_give_up!(Manifest::read(&tree), "the manifest");
    let known = manifest::Machine {
        pcpus: u32::try_from(machine.pcpus.len()).ok(),
        memory: None,
    };
    or_give_up!(manifest.check(known), "the manifest");
    (manifest, bytes)
}

/// Returns the virtual functions that the manifest wants.
#[cold]
fn virtual_functions(manifest: &Manifest) -> Vec<pci::Wanted> {
    let wanted = manifest.sriov.iter().filter_map(|sriov| {
        Some(pci::Wanted {
            physical: sriov.host,
            count: u16::try_from(sriov.vfs).ok()?,
        })
    });
    or_give_up!(fallible::collect(wanted), "the virtual functions")
}

/// Makes and starts the domains of the manifest; `bytes` start with it.
#[cold]
fn make_domains(machine: &'static Machine, mut manifest: Manifest, bytes: &'static [u8]) {
    let domains = core::mem::take(&mut manifest.domains);
    let module = |name: &str| {
        let module = manifest.module(name)?;
        let start = usize::try_from(module.offset).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(module.size).ok()?)?)
    };
    let reserve = HEAP_RESERVE + HEAP_PER_DOMAIN * domains.len();
    or_give_up!(memory::reserve_heap(reserve), "the heap");
    for (id, config) in domains.into_iter().enumerate() {
        let payload = match payload(&config, &module) {
            Ok(payload) => payload,
            Err(Missing::Module(name)) => {
                give_up(format_args!("module {name} lies outside the image"))
            }
            Err(Missing::Memory) => give_up(format_args!("there is no memory to note the modules")),
        };
        let name = or_give_up!(fallible::text(&config.name), "a domain's name");
        let id = u32::try_from(id).expect("domains are counted in memory");
        if let Err(error) = Domain::make(id, config, payload) {
            error!("domain {name} cannot be made: {error}");
        }
    }
    domain::each(|domain| assign(machine, domain));
    domain::each(|domain| {
        if let Err(error) = servers::link(domain, domain::find) {
            error!(
                "domain {}: its servers cannot be made: {error}",
                domain.name()
            );
        }
    });
    // All rings are ready before anybody can ask.
    domain::each(|domain| {
        domain.serving.attach();
    });
    let mut any = false;
    domain::each(|domain| match lifecycle::start(domain) {
        Ok(()) => any = true,
        Err(error) => error!("domain {} cannot start: {error}", domain.name()),
    });
    if !any {
        give_up(format_args!("no domain could be started"));
    }
    memory::report();
}

/// Gives a domain its physical functions.
#[cold]
fn assign(machine: &Machine, domain: &Arc<Domain>) {
    let Some(bus) = &domain.pci else { return };
    for function in &domain.config.functions {
        let (Some(host), manifest::Backend::Vpci) = (function.host, &function.backend) else {
            continue;
        };
        assign::at_boot(domain, host, function, |milliseconds| {
            wait(machine, milliseconds);
        });
    }
    // The reset of a whole bus, for one function, has disabled the others on it.
    bus.lock().after_reset(domain);
}

/// Waits, with nothing else to do, while booting.
fn wait(machine: &Machine, milliseconds: u32) {
    let deadline = sched::now() + machine.ticks(u64::from(milliseconds) * 1000);
    sysreg::write!("cnthp_cval_el2", deadline);
    sysreg::write!("cnthp_ctl_el2", 1);
    asm::isb();
    while sched::now() < deadline {
        asm::wfi();
        if sched::now() < deadline {
            // Something else woke us.
            irq::handle(pcpu::this());
        }
    }
    sysreg::write!("cnthp_ctl_el2", 0);
    asm::isb();
}

/// What of a domain's payload is not there.
enum Missing<'m> {
    /// The module of this name.
    Module(&'m str),
    /// Memory to note the modules.
    Memory,
}

/// Finds the modules of a domain.
fn payload<'m>(
    config: &'m manifest::Domain,
    module: &impl Fn(&str) -> Option<&'static [u8]>,
) -> Result<Payload, Missing<'m>> {
    let find = |name: &'m str| module(name).ok_or(Missing::Module(name));
    let mut payload = Payload {
        code: find(config.payload.module())?,
        firmware: matches!(config.payload, manifest::Payload::Firmware(_)),
        ..Payload::default()
    };
    if let Some(initrd) = &config.initrd {
        payload.initrd = Some(find(initrd)?);
    }
    for name in &config.modules {
        let own = fallible::text(name).map_err(|_| Missing::Memory)?;
        let module = (own, find(name)?);
        fallible::push(&mut payload.modules, module).map_err(|_| Missing::Memory)?;
    }
    Ok(payload)
}
