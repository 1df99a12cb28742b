//! Random histories against a controller written as plainly as possible.
//!
//! The model knows no list registers: an interrupt is enabled, pending, active, and goes to a vCPU.
//! Whatever happens, what a vCPU acknowledges must be what the model says is most urgent for it, so
//! that nothing is lost, delivered twice, or delivered to the wrong one.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers in tests are small"
)]

mod machine;

use machine::its::*;
use machine::*;
use proptest::prelude::*;
use vgic::{Frame, Group};

const VCPUS: usize = 2;

/// What a history is made of. Interrupts are indices into [`INTIDS`].
#[derive(Clone, Debug)]
enum Step {
    Enable(usize, usize, bool),
    Pending(usize, usize, bool),
    Active(usize, usize, bool),
    Priority(usize, usize, u8),
    Group(usize, usize, bool),
    Edge(usize, bool),
    Route(usize, usize),
    Groups(u8),
    Level(usize, bool),
    Pulse(usize),
    Sgi(usize, usize, u8),
    Timer(usize, bool),
    Msi(usize),
    Configure(usize, u8, bool),
    Move(usize, usize),
    Clear(usize),
    Acknowledge(usize),
    End(usize),
    Deactivate(usize, usize),
    Unload(usize),
    Load(usize),
    Mask(usize, u8),
    InterfaceGroups(usize, u8),
    Look(usize, usize),
    Hold(bool),
    Wait(usize),
}

/// Two SGIs, a PPI, the timer, six SPIs.
const INTIDS: [u16; 10] = [0, 7, 20, 27, 32, 33, 63, 64, 100, 127];
const FIRST_SPI: usize = 4;
const TIMER_INDEX: usize = 3;
/// LPIs that are mapped, each to the event of its index.
const LPIS: usize = 6;

/// Returns the step that a random number stands for. (Numbers, because a strategy for each kind of
/// step takes most of the time.)
#[rustfmt::skip]
fn step(random: u64) -> Step {
    use Step::*;
    let field = |at: u32, count: u64| (random >> at & 0xff) as usize % count as usize;
    let vcpu = field(8, VCPUS as u64);
    let irq = field(16, INTIDS.len() as u64);
    let spi = FIRST_SPI + field(16, (INTIDS.len() - FIRST_SPI) as u64);
    let lpi = field(16, LPIS as u64);
    let priority = field(24, 6) as u8 * 0x28;
    let on = field(32, 2) != 0;
    let mostly = field(32, 5) != 0;
    match field(0, 116) {
        0..4   => Enable(vcpu, irq, mostly),
        4..6   => Pending(vcpu, irq, on),
        6..8   => Active(vcpu, irq, on),
        8..10  => Priority(vcpu, irq, priority),
        10     => Group(vcpu, irq, mostly),
        11     => Edge(spi, on),
        12..14 => Route(spi, field(8, VCPUS as u64 + 1)),
        14     => Groups([3, 3, 3, 0, 1, 2][field(24, 6)]),
        15..21 => Level(spi, on),
        21..25 => Pulse(spi),
        25..29 => Sgi(vcpu, field(16, 2), field(24, 4) as u8),
        29..33 => Timer(vcpu, on),
        33..39 => Msi(lpi),
        39..41 => Configure(lpi, priority, mostly),
        41     => Move(lpi, vcpu),
        42     => Clear(lpi),
        43..67 => Acknowledge(vcpu),
        67..83 => End(vcpu),
        83..85 => Unload(vcpu),
        85..89 => Load(vcpu),
        89     => Mask(vcpu, [0xff, 0xff, 0x50][field(24, 3)]),
        90     => InterfaceGroups(vcpu, [3, 3, 2, 1][field(24, 4)]),
        91..94 => Look(vcpu, irq),
        94..102 => Deactivate(vcpu, field(16, 16)),
        104..110 => Hold(on),
        110..116 => Wait(vcpu),
        _      => Enable(vcpu, irq, true),
    }
}

#[derive(Clone, Copy, Debug)]
struct Irq {
    intid: u16,
    enabled: bool,
    group1: bool,
    edge: bool,
    latch: bool,
    line: bool,
    active: bool,
    priority: u8,
    /// The vCPU that it goes to; one that does not exist is nobody.
    route: usize,
}

impl Irq {
    fn is_pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

struct Model {
    groups: u8,
    /// Private interrupts of each vCPU, then SPIs, then LPIs.
    irqs: Vec<Irq>,
}

impl Model {
    fn new() -> Self {
        let irq = |intid, route| Irq {
            intid,
            enabled: false,
            group1: true,
            edge: !(16..8192).contains(&intid),
            latch: false,
            line: false,
            active: false,
            priority: 0,
            route,
        };
        let private =
            (0..VCPUS).flat_map(|vcpu| INTIDS[..FIRST_SPI].iter().map(move |i| (*i, vcpu)));
        let shared = INTIDS[FIRST_SPI..].iter().map(|intid| (*intid, 0));
        let lpis = (0..LPIS).map(|index| (8192 + index as u16, 0));
        let all = private.chain(shared).chain(lpis);
        Self {
            groups: 3,
            irqs: all.map(|(intid, route)| irq(intid, route)).collect(),
        }
    }

    fn at(&mut self, vcpu: usize, index: usize) -> &mut Irq {
        let at = if index < FIRST_SPI {
            vcpu * FIRST_SPI + index
        } else {
            VCPUS * FIRST_SPI + index - FIRST_SPI
        };
        &mut self.irqs[at]
    }

    fn lpi(&mut self, index: usize) -> &mut Irq {
        self.at(0, INTIDS.len() + index)
    }

    fn find(&mut self, vcpu: usize, intid: u16) -> &mut Irq {
        let private = |irq: &Irq| irq.intid >= 32 || irq.route == vcpu;
        let mut irqs = self.irqs.iter_mut();
        irqs.find(|irq| irq.intid == intid && private(irq)).unwrap()
    }

    /// Returns the priorities that a vCPU could be given, with the interrupts that have them.
    fn deliverable(&self, vcpu: usize, cpu: &Interface) -> Vec<Irq> {
        let running = cpu.running.iter().map(|(_, priority)| *priority).min();
        let limit = running.unwrap_or(0xff).min((cpu.vmcr >> 24) as u8);
        let groups = self.groups & cpu.vmcr as u8 & 3;
        let irqs = self.irqs.iter().copied();
        irqs.filter(|irq| irq.route == vcpu && irq.enabled && irq.is_pending() && !irq.active)
            .filter(|irq| groups >> u8::from(irq.group1) & 1 != 0 && irq.priority < limit)
            .collect()
    }
}

struct Run {
    machine: Machine,
    model: Model,
    /// What each vCPU ended and did not deactivate, where the guest does so separately.
    ended: [Vec<u16>; VCPUS],
    /// Whether the guest may do what leaves the order of ends open: with few list registers the
    /// architecture itself is at a loss then.
    wild: bool,
}

impl Run {
    fn new(list_registers: usize, wild: bool, options: Options) -> Self {
        let mut machine = Machine::new(VCPUS, list_registers);
        machine.lpis_stay = options.lpis_stay;
        machine.samples_timer = options.samples_timer;
        if options.split {
            machine
                .cpus
                .iter_mut()
                .for_each(|cpu| cpu.vmcr |= VMCR_EOI_SPLIT);
        }
        machine.gicd(0, 3);
        for vcpu in 0..VCPUS {
            machine.enable_lpis(vcpu, Machine::pendings(vcpu) | 1 << 62);
        }
        machine.enable_its();
        for vcpu in 0..VCPUS as u64 {
            assert!(machine.command(mapc(vcpu, vcpu)));
        }
        for vcpu in 0..VCPUS {
            // With nothing to list: what comes next is posted.
            machine.unload(vcpu);
            machine.load(vcpu);
        }
        assert!(machine.command(mapd(8, 4)));
        for index in 0..LPIS as u64 {
            assert!(machine.command(mapti(8, index, 8192 + index, 0)));
        }
        Self {
            machine,
            model: Model::new(),
            ended: Default::default(),
            wild,
        }
    }

    fn step(&mut self, step: &Step) {
        // What happens at a vCPU finds it as it is, before kicks arrive, only where it leaves the guest.
        let inside = !matches!(
            step,
            Step::Level(..)
                | Step::Pulse(..)
                | Step::Sgi(..)
                | Step::Msi(..)
                | Step::Configure(..)
                | Step::Move(..)
                | Step::Clear(..)
                | Step::Unload(..)
                | Step::Load(..)
                | Step::Hold(true)
                | Step::Wait(..)
        );
        if inside && core::mem::take(&mut self.machine.held) {
            self.machine.settle();
        }
        let Self {
            machine,
            model,
            ended,
            wild,
        } = self;
        match *step {
            Step::Enable(vcpu, index, on) => {
                machine.set_bit(vcpu, if on { 0x100 } else { 0x180 }, INTIDS[index]);
                model.at(vcpu, index).enabled = on;
            }
            Step::Pending(vcpu, index, on) if index != TIMER_INDEX => {
                machine.set_bit(vcpu, if on { 0x200 } else { 0x280 }, INTIDS[index]);
                model.at(vcpu, index).latch = on;
            }
            Step::Active(vcpu, index, on) if *wild => {
                // Of another vCPU's it would mean that its interface ends what is not active.
                let intid = INTIDS[index];
                let running =
                    |cpu: &Interface| cpu.running.iter().any(|(other, _)| *other == intid);
                let taken = machine.cpus.iter().any(running) || ended.concat().contains(&intid);
                if !taken && machine.cpus.iter().all(|cpu| cpu.loaded) {
                    machine.set_bit(vcpu, if on { 0x300 } else { 0x380 }, INTIDS[index]);
                    model.at(vcpu, index).active = on;
                }
            }
            Step::Priority(vcpu, index, priority) => {
                let irq = model.at(vcpu, index);
                if *wild || !irq.active {
                    machine.set_priority(vcpu, INTIDS[index], priority);
                    irq.priority = priority;
                }
            }
            Step::Group(vcpu, index, one) => {
                let (intid, at) = (INTIDS[index], u64::from(INTIDS[index] / 32) * 4);
                let (frame, offset) = if intid < 32 {
                    (Frame::Redistributor(vcpu), 0x1_0080)
                } else {
                    (Frame::Distributor, 0x80 + at)
                };
                let word = machine.read(frame, offset, 4) & !(1 << (intid % 32));
                machine.write(frame, offset, 4, word | u64::from(one) << (intid % 32));
                model.at(vcpu, index).group1 = one;
            }
            Step::Edge(index, edge) => {
                let irq = model.at(0, index);
                // Changing it is undefined while the interrupt is enabled or pending.
                if !irq.enabled && !irq.is_pending() && !irq.line && !irq.active {
                    let (intid, at) = (irq.intid, 0xc00 + u64::from(irq.intid / 16) * 4);
                    let bit = 2 << (intid % 16 * 2);
                    let word = machine.read(Frame::Distributor, at, 4) as u32 & !bit;
                    machine.gicd(at, word | if edge { bit } else { 0 });
                    irq.edge = edge;
                }
            }
            Step::Route(index, vcpu) => {
                let at = 0x6000 + u64::from(INTIDS[index]) * 8;
                machine.write(Frame::Distributor, at, 8, vcpu as u64);
                model.at(0, index).route = vcpu;
            }
            Step::Groups(groups) => {
                machine.gicd(0, u32::from(groups));
                model.groups = groups;
            }
            Step::Level(index, level) => {
                machine.level(0, INTIDS[index], level);
                let irq = model.at(0, index);
                irq.latch |= irq.edge && level && !irq.line;
                irq.line = level;
            }
            Step::Pulse(index) => {
                machine.pulse(0, INTIDS[index]);
                model.at(0, index).latch = true;
            }
            Step::Sgi(from, index, targets) => {
                let value = u64::from(targets) | u64::from(INTIDS[index]) << 24;
                machine
                    .vgic
                    .sgi(from, Group::One, value, &mut machine.outside);
                machine.settle();
                for vcpu in (0..VCPUS).filter(|vcpu| targets >> vcpu & 1 != 0) {
                    let irq = model.at(vcpu, index);
                    irq.latch |= irq.group1;
                }
            }
            Step::Timer(vcpu, high) => {
                machine.timer(vcpu, high);
                model.at(vcpu, TIMER_INDEX).line = high;
            }
            Step::Msi(index) => {
                assert!(machine.msi(8, index as u32));
                model.lpi(index).latch = true;
            }
            Step::Configure(index, priority, enabled) => {
                machine.configure(8192 + index as u64, priority, enabled);
                assert!(machine.command(inv(8, index as u64)));
                let irq = model.lpi(index);
                (irq.priority, irq.enabled) = (priority, enabled);
            }
            Step::Move(index, vcpu) => {
                assert!(machine.command(movi(8, index as u64, vcpu as u64)));
                model.lpi(index).route = vcpu;
            }
            Step::Clear(index) => {
                assert!(machine.command(clear(8, index as u64)));
                model.lpi(index).latch = false;
            }
            Step::Acknowledge(vcpu) => self.acknowledge(vcpu),
            Step::End(vcpu) if machine.cpus[vcpu].loaded => match machine.end(vcpu) {
                None => {}
                Some(intid) if intid < 8192 && machine.cpus[vcpu].vmcr & VMCR_EOI_SPLIT != 0 => {
                    ended[vcpu].push(intid);
                }
                Some(intid) => model.find(vcpu, intid).active = false,
            },
            Step::Deactivate(vcpu, choice)
                if machine.cpus[vcpu].loaded && !ended[vcpu].is_empty() =>
            {
                let intid = ended[vcpu].remove(choice % ended[vcpu].len());
                machine.write_dir(vcpu, intid);
                model.find(vcpu, intid).active = false;
            }
            Step::Unload(vcpu) if machine.cpus[vcpu].loaded => {
                machine.unload(vcpu);
                self.check_waiting(vcpu);
            }
            Step::Load(vcpu) if !machine.cpus[vcpu].loaded => machine.load(vcpu),
            Step::Mask(vcpu, mask) => {
                let cpu = &mut machine.cpus[vcpu];
                cpu.vmcr = cpu.vmcr & 0xff_ffff | u64::from(mask) << 24;
                machine.settle();
            }
            Step::InterfaceGroups(vcpu, groups) => {
                let cpu = &mut machine.cpus[vcpu];
                cpu.vmcr = cpu.vmcr & !3 | u64::from(groups);
                machine.settle();
            }
            Step::Look(vcpu, index) => {
                let irq = *model.at(vcpu, index);
                let intid = INTIDS[index];
                assert_eq!(
                    machine.get_bit(vcpu, 0x200, intid),
                    irq.is_pending(),
                    "{irq:?}"
                );
                assert_eq!(machine.get_bit(vcpu, 0x300, intid), irq.active, "{irq:?}");
                machine.settle();
            }
            Step::Hold(held) => machine.held = held,
            Step::Wait(vcpu) if machine.cpus[vcpu].loaded => {
                let timer = machine.vgic.mapped_active(vcpu, TIMER);
                let pending = machine.wait(vcpu);
                self.check_pending(vcpu, pending, timer);
                self.machine.settle();
            }
            _ => {}
        }
    }

    fn acknowledge(&mut self, vcpu: usize) {
        if !self.machine.cpus[vcpu].loaded {
            return;
        }
        let cpu = self.machine.cpus[vcpu].clone();
        let due = self.model.deliverable(vcpu, &cpu);
        let best = due.iter().map(|irq| irq.priority).min();
        let taken = self.machine.acknowledge(vcpu);
        // The line of a timer may fall unseen; the interrupt is spurious then, as with any GIC.
        if taken == Some(TIMER.get()) && !self.model.at(vcpu, TIMER_INDEX).line {
            assert!(!self.machine.samples_timer || cpu.timer_active);
            self.model.at(vcpu, TIMER_INDEX).active = true;
            return;
        }
        match taken {
            None => assert_eq!(best, None, "{due:?} is due"),
            Some(intid) => {
                let irq = due.iter().find(|irq| irq.intid == intid);
                let irq = irq.unwrap_or_else(|| panic!("{intid} is not due, {due:?} is"));
                assert_eq!(Some(irq.priority), best, "{intid} came, {due:?} is due");
                let irq = self.model.find(vcpu, intid);
                irq.latch = false;
                irq.active = intid < 8192;
            }
        }
    }

    /// Checks that a vCPU that waits would be woken.
    fn check_waiting(&self, vcpu: usize) {
        let vmcr = self.machine.cpus[vcpu].vmcr;
        let timer = self.machine.vgic.mapped_active(vcpu, TIMER);
        self.check_pending(vcpu, self.machine.vgic.pending(vcpu, vmcr), timer);
    }

    /// `timer` says that the timer's interrupt came: its line may have fallen unseen.
    fn check_pending(&self, vcpu: usize, pending: bool, timer: bool) {
        let mut cpu = self.machine.cpus[vcpu].clone();
        cpu.running.clear();
        let due = self.model.deliverable(vcpu, &cpu);
        assert!(due.is_empty() || pending, "{due:?} is due");
        assert!(!due.is_empty() || !pending || timer);
    }

    /// Lets the guest take and end everything, and looks that nothing is left.
    fn drain(&mut self) {
        for vcpu in 0..VCPUS {
            if !self.machine.cpus[vcpu].loaded {
                self.machine.load(vcpu);
            }
            for index in FIRST_SPI..INTIDS.len() {
                self.step(&Step::Level(index, false));
            }
            self.step(&Step::Timer(vcpu, false));
            while !self.machine.cpus[vcpu].running.is_empty() {
                self.step(&Step::End(vcpu));
            }
            while !self.ended[vcpu].is_empty() {
                self.step(&Step::Deactivate(vcpu, 0));
            }
            for _ in 0..40 {
                self.acknowledge(vcpu);
                self.step(&Step::End(vcpu));
                self.step(&Step::Deactivate(vcpu, 0));
            }
            assert!(self.machine.cpus[vcpu].running.is_empty());
            let cpu = self.machine.cpus[vcpu].clone();
            assert!(self.model.deliverable(vcpu, &cpu).is_empty());
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Options {
    /// Whether the guest deactivates by `ICC_DIR_EL1`.
    split: bool,
    lpis_stay: bool,
    samples_timer: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any::<u64>().prop_map(step), 1..120)
}

fn options() -> impl Strategy<Value = Options> {
    any::<[bool; 3]>().prop_map(|[split, lpis_stay, samples_timer]| Options {
        split,
        lpis_stay,
        samples_timer,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn few_list_registers(steps in steps(), options in options(), list_registers in 1_usize..5) {
        let mut run = Run::new(list_registers, false, options);
        steps.iter().for_each(|step| run.step(step));
        run.drain();
    }

    #[test]
    fn enough_list_registers(steps in steps(), options in options()) {
        let mut run = Run::new(16, true, options);
        steps.iter().for_each(|step| run.step(step));
        run.drain();
    }
}
