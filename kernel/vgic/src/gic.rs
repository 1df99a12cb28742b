//! Interrupts on their way: from an input to a list register, and back.
//!
//! An interrupt is in one place at a time ([`Place`]). Whatever changes it goes through
//! [`Gic::change`]: out of its queue, the change, and to where it belongs then. An interrupt in a
//! list register stays there; its vCPU is kicked, and the change takes effect in [`Gic::sync`].

use alloc::vec::Vec;

use crate::irq::{Flags, Intid, Irq, Irqs, NOBODY, PRIVATE, Place};
use crate::lr::{self, Hcr, LIST_REGISTERS, Lr, Vtr};
use crate::queue::{End, Queue};
use crate::sparse::Budget;
use crate::{Config, Host, Interface, OutOfMemory, Vgic, filled};

/// What the tables of one domain's LPIs may take: all LPIs fit, mapped once by devices of 32 events.
const TABLE_BYTES: usize = 5 << 18;

/// The group of an interrupt, as the register that an SGI is written to says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `ICC_SGI0R_EL1`.
    Zero,
    /// `ICC_SGI1R_EL1`.
    One,
}

/// One vCPU's redistributor and virtual CPU interface.
#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    /// Aff3.Aff2.Aff1.Aff0, a byte each.
    pub(crate) affinity: u32,
    /// What the list registers hold has to be chosen anew.
    stale: bool,
    /// They are filled, and in hardware: the vCPU is loaded.
    filled: bool,
    /// List registers in use, and what was written to them. Those from `inside` on are not in
    /// hardware yet.
    used: usize,
    inside: usize,
    written: [u64; LIST_REGISTERS],
    /// What `ICH_HCR_EL2` was to hold.
    hcr: Hcr,
    /// By group.
    ready: [Queue; 2],
    active: Queue,
    deactivate: u32,
    /// `GICR_WAKER.ProcessorSleep`.
    pub(crate) asleep: bool,
    /// `GICR_CTLR.EnableLPIs`.
    pub(crate) lpis: bool,
    /// `GICR_PROPBASER`.
    pub(crate) properties: u64,
    /// `GICR_PENDBASER`.
    pub(crate) pendings: u64,
}

impl Cpu {
    fn new(affinity: u32) -> Self {
        Self {
            affinity,
            stale: false,
            filled: false,
            used: 0,
            inside: 0,
            written: [0; LIST_REGISTERS],
            hcr: Hcr::EN,
            ready: [Queue::new(), Queue::new()],
            active: Queue::new(),
            deactivate: 0,
            asleep: true,
            lpis: false,
            properties: 0,
            pendings: 0,
        }
    }

    /// Returns whether anything is in a queue.
    #[inline]
    fn waits(&self) -> bool {
        let [zero, one] = &self.ready;
        !(zero.is_empty() && one.is_empty() && self.active.is_empty())
    }

    /// Returns whether an interrupt of `groups` can be delivered.
    #[inline]
    fn has_ready(&self, groups: u8) -> bool {
        let [zero, one] = &self.ready;
        groups & 1 != 0 && !zero.is_empty() || groups & 2 != 0 && !one.is_empty()
    }

    /// Returns the queue with the most urgent interrupt of `groups`, and its priority.
    #[inline]
    fn best(&mut self, groups: u8) -> Option<&mut Queue> {
        let [zero, one] = &mut self.ready;
        let level0 = if groups & 1 == 0 {
            32
        } else {
            zero.best_level()
        };
        let level1 = if groups & 2 == 0 {
            32
        } else {
            one.best_level()
        };
        if level0.min(level1) == 32 {
            return None;
        }
        Some(if level0 <= level1 { zero } else { one })
    }

    /// Returns the most urgent priority of `groups` that can be delivered.
    fn best_priority(&self, groups: u8) -> u32 {
        let on = |group: usize| groups & 1 << group != 0;
        let queues = self.ready.iter().enumerate();
        let levels = queues.map(|(group, queue)| if on(group) { queue.best_level() } else { 32 });
        levels.min().unwrap_or(32) << 3
    }

    /// Returns what was written to a list register, and what is in it: the same beyond the first `inside`,
    /// which are in hardware.
    #[inline]
    fn listed_at(&self, index: usize, inside: usize, interface: &impl Interface) -> (Lr, Lr) {
        let written = *self.written.get(index).unwrap_or(&0);
        let now = if index < inside {
            interface.read(index)
        } else {
            written
        };
        (Lr::from_bits_retain(written), Lr::from_bits_retain(now))
    }

    fn listed(&self) -> impl Iterator<Item = Intid> {
        let used = self.written.iter().take(self.used);
        used.map(|lr| Lr::from_bits_retain(*lr).intid())
    }
}

/// The vCPUs that one value of `ICC_SGI1R_EL1` can name.
#[derive(Clone, Debug)]
struct Cluster {
    /// The affinity without its lowest four bits.
    key: u32,
    vcpus: [u16; 16],
}

/// Everything but the ITS.
#[derive(Debug)]
pub(crate) struct Gic {
    pub(crate) irqs: Irqs,
    pub(crate) cpus: Vec<Cpu>,
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
    pub(crate) groups: u8,
    /// `GICD_IROUTER`: the affinity of each shared interrupt.
    pub(crate) routers: Vec<u32>,
    pub(crate) has_lpis: bool,
    /// Whether SGIs need the range selector to reach every vCPU.
    pub(crate) has_ranges: bool,
    pub(crate) budget: Budget,
    clusters: Vec<Cluster>,
    /// The physical interrupts behind private ones; 0 is none.
    physical: [u16; PRIVATE],
    /// List registers.
    room: usize,
    /// Whether `ICC_DIR_EL1` can be trapped alone.
    traps_dir: bool,
    /// The next vCPU that gets an interrupt that may go to any.
    next_any: usize,
}

impl Gic {
    pub(crate) fn new(config: &Config<'_>) -> Result<Self, OutOfMemory> {
        let vcpus = config.affinities.len();
        if vcpus == 0 || vcpus > 4096 {
            return Err(OutOfMemory);
        }
        let spis = config.spis.min(988).next_multiple_of(32).min(988);
        let mut cpus = Vec::new();
        cpus.try_reserve_exact(vcpus).map_err(|_| OutOfMemory)?;
        cpus.extend(
            config
                .affinities
                .iter()
                .map(|mpidr| Cpu::new(affinity(*mpidr))),
        );
        Ok(Self {
            irqs: Irqs::new(vcpus, spis)?,
            has_ranges: cpus.iter().any(|cpu| cpu.affinity & 0xf0 != 0),
            clusters: clusters(&cpus)?,
            cpus,
            groups: 0,
            routers: filled(spis, 0)?,
            has_lpis: config.its,
            budget: Budget::new(TABLE_BYTES),
            physical: [0; PRIVATE],
            room: Vtr(config.vtr).list_registers(),
            traps_dir: Vtr(config.vtr).traps_dir(),
            next_any: 0,
        })
    }

    pub(crate) fn reset(&mut self) {
        self.groups = 0;
        self.next_any = 0;
        for cpu in &mut self.cpus {
            *cpu = Cpu::new(cpu.affinity);
        }
        self.irqs.reset(&mut self.budget);
        self.routers.fill(0);
        let first = self.find(0).unwrap_or(NOBODY);
        for number in 0..self.routers.len() {
            if let Some(irq) = self.irqs.get_mut(0, spi(number)) {
                irq.route = first;
            }
        }
    }

    /// Returns the vCPU of an affinity.
    pub(crate) fn find(&self, affinity: u32) -> Option<u16> {
        let vcpu = *self
            .cluster(affinity >> 4)?
            .vcpus
            .get(affinity as usize & 15)?;
        (vcpu != NOBODY).then_some(vcpu)
    }

    fn cluster(&self, key: u32) -> Option<&Cluster> {
        match self.clusters.as_slice() {
            [only] => (only.key == key).then_some(only),
            clusters => {
                let at = clusters.binary_search_by_key(&key, |cluster| cluster.key);
                clusters.get(at.ok()?)
            }
        }
    }

    /// Returns the physical interrupt behind a private one.
    pub(crate) fn physical(&self, intid: Intid) -> Option<u16> {
        let physical = *self.physical.get(intid.index())?;
        (physical != 0).then_some(physical)
    }

    // What changes interrupts.

    /// Changes an interrupt, and puts it where it belongs then.
    pub(crate) fn change(
        &mut self,
        vcpu: usize,
        intid: Intid,
        host: &mut impl Host,
        change: impl FnOnce(&mut Irq),
    ) {
        self.unlink(vcpu, intid);
        let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
            return;
        };
        change(irq);
        self.settle(vcpu, intid, host);
    }

    /// Puts an interrupt where it belongs, and tells the vCPU concerned.
    fn settle(&mut self, vcpu: usize, intid: Intid, host: &mut impl Host) {
        if let Some(vcpu) = self.post(vcpu, intid) {
            host.kick(vcpu);
        } else if let Some(vcpu) = self.link(vcpu, intid, End::Back) {
            self.touch(vcpu, host);
        }
    }

    /// Makes an interrupt active or not, as a guest's write says.
    pub(crate) fn set_active(
        &mut self,
        vcpu: usize,
        intid: Intid,
        active: bool,
        host: &mut impl Host,
    ) {
        let ends = |irq: &Irq| {
            !active
                && irq.place != Place::Listed
                && irq.has(Flags::ACTIVE)
                && is_shared_level(irq, intid)
        };
        let falls = self.irqs.get(vcpu, intid).is_some_and(ends) && host.ended(intid);
        self.change(vcpu, intid, host, |irq| {
            if falls {
                irq.flags -= Flags::LINE;
            }
            if irq.place == Place::Listed {
                irq.flags.set(Flags::MAKE_ACTIVE, active);
                irq.flags.set(Flags::MAKE_IDLE, !active);
            } else if active && !irq.has(Flags::ACTIVE) {
                irq.home = irq.route;
            } else if !active && irq.has(Flags::ACTIVE | Flags::PHYSICAL) {
                // The physical line speaks up again if it is still high.
                irq.flags -= Flags::LINE;
            }
            irq.flags.set(Flags::ACTIVE, active);
        });
    }

    /// Sets the line of an interrupt.
    fn set_level(&mut self, vcpu: usize, intid: Intid, level: bool, host: &mut impl Host) {
        if self.physical(intid).is_some() {
            return self.set_mapped_level(vcpu, intid, level, host);
        }
        let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
            return;
        };
        if irq.has(Flags::LINE) == level || intid.is_lpi() {
            return;
        }
        let edge = irq.has(Flags::EDGE);
        if irq.place == Place::Listed && !edge && (level || irq.has(Flags::ACTIVE)) {
            // The end of a level-sensitive interrupt is a maintenance interrupt: soon enough.
            irq.flags.set(Flags::LINE, level);
            return;
        }
        self.change(vcpu, intid, host, |irq| {
            irq.flags.set(Flags::LINE, level);
            if edge && level {
                irq.flags |= Flags::LATCH;
            }
        });
    }

    /// Takes note that the physical interrupt came and is active, or that its line is low.
    fn set_mapped_level(&mut self, vcpu: usize, intid: Intid, level: bool, host: &mut impl Host) {
        if !level {
            return self.lower_mapped(vcpu, intid, host);
        }
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            cpu.deactivate &= !(1 << (intid.0 & 31));
        }
        let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
            return;
        };
        irq.flags |= Flags::LINE | Flags::PHYSICAL;
        match irq.place {
            Place::Idle => return self.settle(vcpu, intid, host),
            Place::Ready => return,
            Place::Active => {}
            Place::Listed => irq.flags |= Flags::RAISED,
        }
        self.touch(vcpu, host);
    }

    /// Takes note that the line of a mapped interrupt is low.
    pub(crate) fn lower_mapped(&mut self, vcpu: usize, intid: Intid, host: &mut impl Host) {
        let irq = self.irqs.get(vcpu, intid);
        if irq.is_some_and(|irq| irq.has(Flags::LINE)) {
            self.change(vcpu, intid, host, |irq| irq.flags -= Flags::LINE);
        }
    }

    /// Makes an interrupt pending once.
    pub(crate) fn pulse(&mut self, vcpu: usize, intid: Intid, host: &mut impl Host) {
        self.pulse_if(vcpu, intid, host, |_| true);
    }

    #[inline]
    fn pulse_if(
        &mut self,
        vcpu: usize,
        intid: Intid,
        host: &mut impl Host,
        condition: impl FnOnce(&Irq) -> bool,
    ) {
        let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
            return;
        };
        if irq.has(Flags::LATCH) || !condition(irq) {
            return;
        }
        irq.flags |= Flags::LATCH;
        match irq.place {
            Place::Idle => self.settle(vcpu, intid, host),
            Place::Ready => {}
            Place::Active | Place::Listed => {
                let home = usize::from(irq.home);
                self.touch(home, host);
            }
        }
    }

    fn sgi(&mut self, from: usize, group: Group, value: u64, host: &mut impl Host) {
        let sgi = Sgi::decode(value);
        if sgi.all {
            for vcpu in (0..self.cpus.len()).filter(|vcpu| *vcpu != from) {
                self.raise_sgi(vcpu, group, sgi.intid, host);
            }
            return;
        }
        let Some(cluster) = self.cluster(sgi.cluster) else {
            return;
        };
        let vcpus = cluster.vcpus;
        let mut targets = sgi.targets;
        while targets != 0 {
            let target = vcpus.get(targets.trailing_zeros() as usize);
            targets &= targets - 1;
            if let Some(vcpu) = target.filter(|vcpu| **vcpu != NOBODY) {
                self.raise_sgi(usize::from(*vcpu), group, sgi.intid, host);
            }
        }
    }

    fn raise_sgi(&mut self, vcpu: usize, group: Group, intid: Intid, host: &mut impl Host) {
        self.pulse_if(vcpu, intid, host, |irq| {
            irq.has(Flags::GROUP1) == (group == Group::One)
        });
    }

    // Places.

    /// Takes an interrupt out of the queue it is in.
    fn unlink(&mut self, vcpu: usize, intid: Intid) {
        let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
            return;
        };
        let (place, group) = (irq.place, irq.group());
        if matches!(place, Place::Idle | Place::Listed) {
            return;
        }
        irq.place = Place::Idle;
        let home = usize::from(irq.home);
        let Some(cpu) = self.cpus.get_mut(home) else {
            return;
        };
        if place == Place::Active {
            cpu.active.remove(&mut self.irqs, home, intid);
        } else if let Some(queue) = cpu.ready.get_mut(group) {
            queue.remove(&mut self.irqs, home, intid);
        }
    }

    /// Puts a new interrupt straight into a list register of its vCPU, if one is free and nothing
    /// else waits; what is listed already need not be looked at then. Returns the vCPU.
    #[inline]
    fn post(&mut self, vcpu: usize, intid: Intid) -> Option<usize> {
        let irq = self.irqs.get_mut(vcpu, intid)?;
        let simple = Flags::ENABLED | Flags::ACTIVE | Flags::ANY;
        if irq.flags & simple != Flags::ENABLED
            || irq.place != Place::Idle
            || !irq.is_pending()
            || self.groups & 1 << irq.group() == 0
        {
            return None;
        }
        let cpu = self.cpus.get_mut(usize::from(irq.route))?;
        let free = cpu.filled && !cpu.stale && !cpu.waits() && cpu.used < self.room;
        if !free || intid.is_lpi() && !cpu.lpis {
            return None;
        }
        let written = cpu.written.get_mut(cpu.used)?;
        let physical = *self.physical.get(intid.index()).unwrap_or(&0);
        *written = compose(irq, intid, physical).bits();
        cpu.used += 1;
        irq.place = Place::Listed;
        irq.home = irq.route;
        Some(usize::from(irq.home))
    }

    /// Puts an interrupt where it belongs, and returns the vCPU that has to hear of it.
    fn link(&mut self, vcpu: usize, intid: Intid, end: End) -> Option<usize> {
        let irq = self.irqs.get_mut(vcpu, intid)?;
        if irq.place == Place::Listed {
            return Some(usize::from(irq.home));
        }
        if irq.has(Flags::ACTIVE) {
            return self.link_active(vcpu, intid, end);
        }
        if irq.has(Flags::PHYSICAL) && !irq.is_pending() {
            // Nothing is left for the guest to end, so the physical interrupt is ended here.
            irq.flags -= Flags::PHYSICAL;
            self.cpus.get_mut(vcpu)?.deactivate |= 1 << (intid.0 & 31);
            return Some(vcpu);
        }
        if !irq.has(Flags::ENABLED) || !irq.is_pending() {
            return None;
        }
        let (group, route, last) = (irq.group(), irq.route, irq.home);
        let home = match (irq.has(Flags::ANY), end) {
            (false, _) => route,
            (true, End::Front) if self.is_awake(last) => last,
            (true, _) => self.any(),
        };
        let cpu = self.cpus.get_mut(usize::from(home))?;
        if intid.is_lpi() && !cpu.lpis {
            return None;
        }
        let irq = self.irqs.get_mut(vcpu, intid)?;
        (irq.place, irq.home) = (Place::Ready, home);
        let home = usize::from(home);
        let queue = cpu.ready.get_mut(group)?;
        queue.push(&mut self.irqs, home, intid, end);
        (self.groups & 1 << group != 0).then_some(home)
    }

    /// An active interrupt stays with the vCPU that it is active on.
    fn link_active(&mut self, vcpu: usize, intid: Intid, end: End) -> Option<usize> {
        let irq = self.irqs.get_mut(vcpu, intid)?;
        if irq.home == NOBODY {
            irq.home = if irq.route == NOBODY { 0 } else { irq.route };
        }
        irq.place = Place::Active;
        let home = usize::from(irq.home);
        let cpu = self.cpus.get_mut(home)?;
        cpu.active.push(&mut self.irqs, home, intid, end);
        Some(home)
    }

    fn is_awake(&self, vcpu: u16) -> bool {
        let cpu = self.cpus.get(usize::from(vcpu));
        cpu.is_some_and(|cpu| !cpu.asleep)
    }

    /// Chooses a vCPU that is awake, each in turn.
    fn any(&mut self) -> u16 {
        let count = self.cpus.len();
        let turns = (self.next_any..count).chain(0..self.next_any.min(count));
        let mut turns = turns.map(|vcpu| u16::try_from(vcpu).unwrap_or(NOBODY));
        let chosen = turns.find(|vcpu| self.is_awake(*vcpu)).unwrap_or(0);
        self.next_any = (usize::from(chosen) + 1) % count.max(1);
        chosen
    }

    /// Has the list registers of a vCPU brought up to date.
    pub(crate) fn touch(&mut self, vcpu: usize, host: &mut impl Host) {
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            cpu.stale = true;
            host.kick(vcpu);
        }
    }

    /// Does so for every vCPU that has something listed or to list.
    pub(crate) fn touch_all(&mut self, host: &mut impl Host) {
        for (vcpu, cpu) in self.cpus.iter_mut().enumerate() {
            if cpu.used != 0 || cpu.waits() {
                cpu.stale = true;
                host.kick(vcpu);
            }
        }
    }

    /// Chooses again for what waits on a vCPU that went to sleep, but may go to any.
    pub(crate) fn leave(&mut self, vcpu: usize, host: &mut impl Host) {
        for number in 0..self.routers.len() {
            let irq = self.irqs.get(0, spi(number));
            let here = |irq: &Irq| irq.has(Flags::ANY) && usize::from(irq.home) == vcpu;
            if irq.is_some_and(here) {
                self.change(0, spi(number), host, |_| {});
            }
        }
    }

    /// Returns whether a list register may still deliver what the guest has disabled.
    pub(crate) fn is_stale(&self, vcpu: usize, shared: bool) -> bool {
        let groups = self.groups;
        let stale = |irq: &Irq| !irq.has(Flags::ENABLED) || groups & 1 << irq.group() == 0;
        self.cpus.get(vcpu).is_some_and(|cpu| {
            cpu.listed()
                .filter(|intid| intid.is_private() != shared && !intid.is_lpi())
                .filter_map(|intid| self.irqs.get(vcpu, intid))
                .any(|irq| !irq.has(Flags::ACTIVE) && stale(irq))
        })
    }

    // List registers.

    /// Returns whether anything is in a list register of a vCPU, or posted to it.
    #[inline]
    pub(crate) fn lists(&self, vcpu: usize) -> bool {
        self.cpus.get(vcpu).is_some_and(|cpu| cpu.used != 0)
    }

    /// Returns whether what the list registers of a vCPU hold has to be chosen anew. Otherwise what was
    /// posted only has to be written.
    #[inline]
    pub(crate) fn is_out_of_date(&self, vcpu: usize) -> bool {
        self.cpus.get(vcpu).is_some_and(|cpu| cpu.stale)
    }

    /// Takes back what the list registers of a vCPU hold.
    pub(crate) fn sync(&mut self, vcpu: usize, interface: &impl Interface, host: &mut impl Host) {
        let Some(cpu) = self.cpus.get_mut(vcpu) else {
            return;
        };
        let used = core::mem::take(&mut cpu.used);
        let inside = core::mem::take(&mut cpu.inside);
        (cpu.filled, cpu.hcr) = (false, Hcr::EN);
        for _ in 0..lr::eoi_count(interface.hcr()) {
            self.end_unlisted(vcpu, host);
        }
        // From the last to the first, so that what goes back to the head of its queue keeps the
        // order.
        for index in (0..used).rev() {
            let Some(cpu) = self.cpus.get(vcpu) else {
                return;
            };
            let (written, now) = cpu.listed_at(index, inside, interface);
            self.take_back(vcpu, written, now, host);
        }
        let groups = self.groups;
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            cpu.stale = cpu.has_ready(groups) || !cpu.active.is_empty() || cpu.deactivate != 0;
        }
    }

    /// Takes note that the list registers of a vCPU, which are empty, are not its own any more.
    #[inline]
    pub(crate) fn close(&mut self, vcpu: usize) {
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            debug_assert_eq!(cpu.used, 0, "close without sync");
            cpu.filled = false;
        }
    }

    /// Deactivates the most urgent interrupt that is active outside the list registers: the one
    /// that the guest ended, as it ends them in this order.
    fn end_unlisted(&mut self, vcpu: usize, host: &mut impl Host) {
        if let Some(intid) = self.cpus.get(vcpu).and_then(|cpu| cpu.active.first()) {
            self.set_active(vcpu, intid, false, host);
        }
    }

    /// Takes one interrupt back: `written` was put into the list register, `now` is in it.
    fn take_back(&mut self, vcpu: usize, written: Lr, now: Lr, host: &mut impl Host) {
        let intid = written.intid();
        let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
            return;
        };
        fold(irq, intid, written, now, host);
        irq.place = Place::Idle;
        if irq
            .flags
            .intersects(Flags::PENDING | Flags::ACTIVE | Flags::PHYSICAL)
        {
            let end = if now.is_invalid() {
                End::Back
            } else {
                End::Front
            };
            self.relink(vcpu, intid, end, host);
        }
    }

    /// Chooses anew what list registers hold where nothing waits for room and nothing is active outside
    /// them: what belongs into them stays. Returns whether that was so, and `flush` may follow; otherwise
    /// `sync` comes first.
    pub(crate) fn renew(
        &mut self,
        vcpu: usize,
        interface: &impl Interface,
        host: &mut impl Host,
    ) -> bool {
        let Some(cpu) = self.cpus.get_mut(vcpu).filter(|cpu| !cpu.waits()) else {
            return false;
        };
        let (used, lpis) = (cpu.used, cpu.lpis);
        // What is kept is not in hardware until `flush` has written it.
        let inside = core::mem::take(&mut cpu.inside);
        let mut kept = 0;
        for index in 0..used {
            let Some(cpu) = self.cpus.get_mut(vcpu) else {
                return false;
            };
            let (written, now) = cpu.listed_at(index, inside, interface);
            let intid = written.intid();
            let Some(irq) = self.irqs.get_mut(vcpu, intid) else {
                continue;
            };
            fold(irq, intid, written, now, host);
            let here = irq.has(Flags::ANY) && !cpu.asleep || usize::from(irq.route) == vcpu;
            let deliverable = irq.has(Flags::ENABLED)
                && irq.is_pending()
                && self.groups & 1 << irq.group() != 0
                && here
                && (lpis || !intid.is_lpi());
            if (deliverable || irq.has(Flags::ACTIVE))
                && let Some(slot) = cpu.written.get_mut(kept)
            {
                let physical = *self.physical.get(intid.index()).unwrap_or(&0);
                *slot = compose(irq, intid, physical).bits();
                kept += 1;
                continue;
            }
            irq.place = Place::Idle;
            if irq.flags.intersects(Flags::PENDING | Flags::PHYSICAL) {
                self.relink(vcpu, intid, End::Front, host);
            }
        }
        let Some(cpu) = self.cpus.get_mut(vcpu) else {
            return false;
        };
        (cpu.used, cpu.hcr, cpu.stale) = (kept, Hcr::EN, false);
        !cpu.waits()
    }

    fn relink(&mut self, vcpu: usize, intid: Intid, end: End, host: &mut impl Host) {
        if let Some(other) = self.link(vcpu, intid, end).filter(|other| *other != vcpu) {
            self.touch(other, host);
        }
    }

    /// Writes the list registers of a vCPU: what was posted or stays, or, if there is to be chosen, what is
    /// most urgent; they hold nothing of it then. Returns the PPIs whose physical interrupt has to be made
    /// inactive.
    pub(crate) fn flush(&mut self, vcpu: usize, interface: &mut impl Interface) -> u32 {
        let Some(cpu) = self.cpus.get_mut(vcpu) else {
            return 0;
        };
        cpu.filled = true;
        if core::mem::take(&mut cpu.stale) {
            debug_assert_eq!(cpu.used, 0, "flush without sync");
            let list = List {
                vcpu,
                physical: &self.physical,
                groups: self.groups,
                room: self.room,
            };
            if !cpu.active.is_empty() && !list.active(cpu, &mut self.irqs) {
                cpu.hcr |= Hcr::LRENPIE;
                cpu.hcr.set(Hcr::TDIR, self.traps_dir);
            }
            let watch = list.ready(cpu, &mut self.irqs, interface.vmcr());
            cpu.hcr |= watch;
        }
        let first = core::mem::replace(&mut cpu.inside, cpu.used);
        interface.write(first, cpu.written.get(first..cpu.used).unwrap_or_default());
        interface.set_hcr(cpu.hcr.bits());
        core::mem::take(&mut cpu.deactivate)
    }
}

/// Takes over what a list register says of its interrupt: `written` was put into it, `now` is in it.
#[inline]
fn fold(irq: &mut Irq, intid: Intid, written: Lr, now: Lr, host: &mut impl Host) {
    // An LPI is never active in the architecture. Where a list register says so all the same,
    // nothing is lost: its end needs no list register, and is not counted.
    let was_active = now.contains(Lr::ACTIVE) && !intid.is_lpi();
    let active = was_active && !irq.has(Flags::MAKE_IDLE) || irq.has(Flags::MAKE_ACTIVE);
    if irq.has(Flags::PHYSICAL) && !irq.has(Flags::RAISED) {
        let hardware_ended_it = written.contains(Lr::HW) && now.is_invalid();
        if hardware_ended_it {
            irq.flags -= Flags::PHYSICAL | Flags::LINE;
        } else if (written | now).contains(Lr::ACTIVE) && !active {
            irq.flags -= Flags::LINE;
        }
    }
    if irq.has(Flags::PUSHED) && now.contains(Lr::PENDING) {
        irq.flags |= Flags::LATCH;
    }
    let made_idle = irq.has(Flags::MAKE_IDLE) && was_active && !active;
    irq.flags -= Flags::PUSHED | Flags::RAISED | Flags::MAKE_ACTIVE | Flags::MAKE_IDLE;
    irq.flags.set(Flags::ACTIVE, active);
    let ended = now.is_invalid() && written.contains(Lr::EOI) || made_idle;
    if ended && is_shared_level(irq, intid) && host.ended(intid) {
        irq.flags -= Flags::LINE;
    }
}

/// Returns whether an interrupt is one of those whose end the kernel hears of.
fn is_shared_level(irq: &Irq, intid: Intid) -> bool {
    !irq.has(Flags::EDGE) && !intid.is_private() && !intid.is_lpi()
}

/// List registers that are being filled.
struct List<'a> {
    vcpu: usize,
    physical: &'a [u16; PRIVATE],
    groups: u8,
    room: usize,
}

impl List<'_> {
    /// Lists what is active, the most urgent first: this is what the guest ends first. One list
    /// register is left for what is pending. Returns whether all fit.
    fn active(&self, cpu: &mut Cpu, irqs: &mut Irqs) -> bool {
        let left = usize::from(cpu.has_ready(self.groups));
        while cpu.used + left < self.room {
            let Some(intid) = cpu.active.pop(irqs, self.vcpu) else {
                return true;
            };
            self.put(cpu, irqs, intid);
        }
        cpu.active.is_empty()
    }

    /// Lists what can be delivered, and returns how to hear of it when there is room for the rest.
    ///
    /// What the guest takes at its CPU interface comes first, so that the other group cannot be in
    /// its way.
    #[inline]
    fn ready(&self, cpu: &mut Cpu, irqs: &mut Irqs, vmcr: u64) -> Hcr {
        let taken = self.groups & lr::enabled_groups(vmcr);
        self.fill(cpu, irqs, taken);
        if !cpu.has_ready(self.groups) {
            return Hcr::empty();
        }
        self.fill(cpu, irqs, self.groups);
        if !cpu.has_ready(self.groups) {
            return Hcr::empty();
        }
        let mut hcr = watch_groups(self.groups, taken);
        hcr.set(Hcr::NPIE, cpu.has_ready(taken));
        hcr
    }

    #[inline]
    fn fill(&self, cpu: &mut Cpu, irqs: &mut Irqs, groups: u8) {
        while cpu.used < self.room
            && let Some(queue) = cpu.best(groups)
            && let Some(intid) = queue.pop(irqs, self.vcpu)
        {
            self.put(cpu, irqs, intid);
        }
    }

    /// Puts an interrupt that is in no queue into the next list register.
    #[inline]
    fn put(&self, cpu: &mut Cpu, irqs: &mut Irqs, intid: Intid) {
        if let Some(written) = cpu.written.get_mut(cpu.used)
            && let Some(irq) = irqs.get_mut(self.vcpu, intid)
        {
            let physical = self.physical.get(intid.index());
            *written = compose(irq, intid, *physical.unwrap_or(&0)).bits();
            irq.place = Place::Listed;
            cpu.used += 1;
        }
    }
}

/// Returns the list register of an interrupt. If that says pending, the latch goes into it.
///
/// None says active and pending at once: it would count as pending for `NPIE` although it cannot be
/// acknowledged. An active interrupt that is pending again is seen to at its end.
#[inline]
fn compose(irq: &mut Irq, intid: Intid, physical: u16) -> Lr {
    let mut lr = Lr::of(intid, irq.priority);
    lr.set(Lr::GROUP1, irq.has(Flags::GROUP1));
    let again = irq.has(Flags::ACTIVE | Flags::LATCH);
    if irq.has(Flags::PHYSICAL) && physical != 0 && !again {
        lr = lr.with_physical(physical);
    } else {
        lr.set(Lr::EOI, !irq.has(Flags::EDGE) || again);
    }
    if irq.has(Flags::ACTIVE) {
        return lr | Lr::ACTIVE;
    }
    irq.flags.set(Flags::PUSHED, irq.has(Flags::LATCH));
    irq.flags -= Flags::LATCH;
    lr | Lr::PENDING
}

/// Returns the bits that tell when the guest enables or disables one of the groups in `all`, now
/// that only those in `enabled` are listed and not all fit.
fn watch_groups(all: u8, enabled: u8) -> Hcr {
    let watch = |bit, when_disabled, when_enabled| match (all & bit != 0, enabled & bit != 0) {
        (false, _) => Hcr::empty(),
        (true, true) => when_enabled,
        (true, false) => when_disabled,
    };
    watch(1, Hcr::VGRP0EIE, Hcr::VGRP0DIE) | watch(2, Hcr::VGRP1EIE, Hcr::VGRP1DIE)
}

/// Returns the INTID of a shared interrupt, counted from 0.
pub(crate) fn spi(number: usize) -> Intid {
    Intid::at(number + PRIVATE)
}

/// Returns the affinity in an `MPIDR_EL1` or a `GICD_IROUTER`, a byte for each level.
pub(crate) fn affinity(register: u64) -> u32 {
    (register >> 8 & 0xff00_0000) as u32 | (register & 0x00ff_ffff) as u32
}

fn clusters(cpus: &[Cpu]) -> Result<Vec<Cluster>, OutOfMemory> {
    let mut clusters: Vec<Cluster> = Vec::new();
    for (vcpu, cpu) in cpus.iter().enumerate() {
        let key = cpu.affinity >> 4;
        let at = match clusters.binary_search_by_key(&key, |cluster| cluster.key) {
            Ok(at) => at,
            Err(at) => {
                clusters.try_reserve(1).map_err(|_| OutOfMemory)?;
                let vcpus = [NOBODY; 16];
                clusters.insert(at, Cluster { key, vcpus });
                at
            }
        };
        let slot = clusters.get_mut(at).map(|cluster| &mut cluster.vcpus);
        if let Some(slot) = slot.and_then(|vcpus| vcpus.get_mut(cpu.affinity as usize & 15)) {
            *slot = u16::try_from(vcpu).unwrap_or(NOBODY);
        }
    }
    Ok(clusters)
}

/// A write to `ICC_SGI1R_EL1` (Arm IHI 0069, section 12.2.20).
struct Sgi {
    targets: u16,
    cluster: u32,
    intid: Intid,
    all: bool,
}

impl Sgi {
    fn decode(value: u64) -> Self {
        let (aff1, aff2, aff3) = (value >> 16 & 0xff, value >> 32 & 0xff, value >> 48 & 0xff);
        let range = value >> 44 & 0xf;
        Self {
            targets: (value & 0xffff) as u16,
            cluster: ((aff3 << 20 | aff2 << 12 | aff1 << 4 | range) & 0x0fff_ffff) as u32,
            intid: Intid((value >> 24 & 0xf) as u16),
            all: value & 1 << 40 != 0,
        }
    }
}

impl Vgic {
    /// Ties a PPI of the domain to the physical interrupt behind it, or unties it.
    ///
    /// When the guest ends it, hardware deactivates the physical one. Done once, before the domain
    /// runs.
    pub fn set_mapped(&mut self, intid: Intid, physical: Option<Intid>) {
        if (16..32).contains(&intid.0)
            && let Some(slot) = self.gic.physical.get_mut(intid.index())
        {
            *slot = physical.map_or(0, Intid::get);
        }
    }

    /// Returns whether the physical interrupt behind a mapped one is to be active while `vcpu` is
    /// loaded: the kernel makes it so at each switch to the vCPU.
    #[must_use]
    pub fn mapped_active(&self, vcpu: usize, intid: Intid) -> bool {
        let irq = self.gic.irqs.get(vcpu, intid);
        irq.is_some_and(|irq| irq.has(Flags::PHYSICAL))
    }

    /// Sets the line of a PPI of `vcpu`, or of an SPI.
    ///
    /// For a mapped interrupt, `true` says that the physical interrupt was acknowledged, and is
    /// active; `false` that its line is found low, which may be said at any time.
    pub fn set_level(&mut self, vcpu: usize, intid: Intid, level: bool, host: &mut impl Host) {
        if intid.0 >= 16 {
            self.gic.set_level(vcpu, intid, level, host);
        }
    }

    /// Makes an edge-triggered PPI of `vcpu`, or an SPI, pending.
    pub fn pulse(&mut self, vcpu: usize, intid: Intid, host: &mut impl Host) {
        if !intid.is_lpi() {
            self.gic.pulse(vcpu, intid, host);
        }
    }

    /// Carries out a write of `from` to the SGI register of `group`.
    pub fn sgi(&mut self, from: usize, group: Group, value: u64, host: &mut impl Host) {
        self.gic.sgi(from, group, value, host);
    }

    /// Carries out a trapped write to `ICC_DIR_EL1`, after [`Self::take_back`].
    ///
    /// It is trapped only while [`Hcr::TDIR`] is set, and does nothing unless the guest has set
    /// `ICC_CTLR_EL1.EOImode` (`ICH_VMCR_EL2.VEOIM`, in `vmcr`).
    pub fn deactivate(&mut self, vcpu: usize, intid: Intid, vmcr: u64, host: &mut impl Host) {
        if vmcr & 1 << 9 == 0 || intid.is_lpi() {
            return;
        }
        let irq = self.gic.irqs.get(vcpu, intid);
        if irq.is_some_and(|irq| irq.has(Flags::ACTIVE) && usize::from(irq.home) == vcpu) {
            self.gic.set_active(vcpu, intid, false, host);
        }
    }

    /// Returns whether a vCPU whose list registers were taken back has an interrupt to take, with
    /// the groups and the priority mask in `vmcr`: whether it would leave WFI.
    #[must_use]
    pub fn pending(&self, vcpu: usize, vmcr: u64) -> bool {
        let groups = self.gic.groups & lr::enabled_groups(vmcr);
        let cpu = self.gic.cpus.get(vcpu);
        cpu.is_some_and(|cpu| cpu.best_priority(groups) < u32::from(lr::priority_mask(vmcr)))
    }
}
