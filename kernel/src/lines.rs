//! The machine's interrupt lines of PCI: which function is on which, and whose function asserts it.
//!
//! A line is shared, also between domains. EL2 takes its interrupt, asks the functions on it that
//! domains have, and silences those that assert it (`kernel::intx`), so that the line falls at once.
//! One that stays high although nobody asserts it would keep this pCPU from all else: it is turned off
//! until a function on it is given to a domain.

use crate::domain::Domain;
use crate::physical::Ecam;
use crate::{machine, sched};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use arch::gic::{IntId, Spi, Trigger};
use dt::{Node, Tree};
use kernel::fallible;
use kernel::intx::Unclaimed;
use pci::{Header, Hierarchy, InterruptMap, Pin, Widths};
use spin::Mutex;

/// The lines, and which function is on which.
pub(crate) struct Lines {
    lines: Vec<Line>,
    /// By position in the hierarchy: the pin and the line.
    pins: Vec<Option<(Pin, usize)>>,
}

struct Line {
    spi: Spi,
    /// All functions on it can be silenced.
    usable: bool,
    users: Mutex<Users>,
}

#[derive(Default)]
struct Users {
    /// Domains that have functions on the line, and how many.
    domains: Vec<(Weak<Domain>, usize)>,
    /// Whether it is stuck.
    unclaimed: Unclaimed,
}

/// At boot, there is no going on without them.
fn no_memory() -> ! {
    crate::panic::give_up(format_args!(
        "there is no memory to note the PCI interrupts"
    ))
}

impl Lines {
    /// Finds the lines, and silences the pins of all functions.
    #[cold]
    pub(crate) fn find(tree: &Tree, host: Node<'_>, config: &Ecam, found: &Hierarchy) -> Self {
        let mut lines = Self {
            lines: Vec::new(),
            pins: Vec::new(),
        };
        let map = read_map(tree, host);
        for device in found.devices() {
            let function = pci::Function::new(config, device.sbdf);
            let endpoint = matches!(device.header, Header::Endpoint);
            let probed = endpoint.then(|| pci::probe_pin(function)).flatten();
            let place = probed.and_then(|(pin, can_be_silenced)| {
                let (root, root_pin) = found.root_pin(device, pin);
                let wire = map.as_ref()?.translate(root, root_pin)?;
                let index = lines.place(dt::Interrupt::decode(wire.specifier)?)?;
                if !can_be_silenced {
                    warning!(
                        "PCI {}: its pin cannot be silenced: {} is not used",
                        device.sbdf,
                        lines.lines[index].spi.id()
                    );
                    lines.lines[index].usable = false;
                }
                Some((pin, index))
            });
            if fallible::push(&mut lines.pins, place).is_err() {
                no_memory();
            }
        }
        lines
    }

    /// Returns the place of a line, which is added if it is new.
    fn place(&mut self, interrupt: dt::Interrupt) -> Option<usize> {
        if interrupt.trigger != dt::Trigger::Level {
            return None;
        }
        let id = IntId::new(interrupt.intid);
        if let Some(index) = self.lines.iter().position(|line| line.spi.id() == id) {
            return Some(index);
        }
        let mut distributor = machine::get().distributor.lock();
        let spi = distributor.spi(id).ok()?;
        distributor.configure(spi, Trigger::Level);
        let line = Line {
            spi,
            usable: true,
            users: Mutex::default(),
        };
        if fallible::push(&mut self.lines, line).is_err() {
            no_memory();
        }
        Some(self.lines.len() - 1)
    }

    /// Returns a function's pin and its line, if the line can be used.
    pub(crate) fn of(&self, index: usize) -> Option<(Pin, usize)> {
        let (pin, line) = (*self.pins.get(index)?)?;
        self.lines[line].usable.then_some((pin, line))
    }

    /// Notes that a domain has one more function on a line.
    pub(crate) fn join(
        &self,
        line: usize,
        domain: &Domain,
    ) -> Result<(), kernel::intx::OutOfMemory> {
        let domain = domain.reference(0).domain;
        let mut users = self.lines[line].users.lock();
        users.domains.retain(|(user, _)| user.strong_count() > 0);
        let is_it = |user: &Weak<Domain>| core::ptr::eq(user.as_ptr(), Arc::as_ptr(&domain));
        match users.domains.iter_mut().find(|(user, _)| is_it(user)) {
            Some((_, count)) => *count += 1,
            None => {
                let no_memory = |_| kernel::intx::OutOfMemory;
                users.domains.try_reserve(1).map_err(no_memory)?;
                users.domains.push((Arc::downgrade(&domain), 1));
            }
        }
        users.unclaimed.forgive();
        machine::get()
            .distributor
            .lock()
            .enable(self.lines[line].spi);
        Ok(())
    }

    /// Notes that a domain has one function less on a line.
    pub(crate) fn leave(&self, line: usize, domain: &Domain) {
        let mut users = self.lines[line].users.lock();
        users.domains.retain_mut(|(user, count)| {
            if core::ptr::eq(user.as_ptr(), domain) {
                *count -= 1;
            }
            *count > 0
        });
        if users.domains.is_empty() {
            self.turn_off(line);
        }
    }

    fn turn_off(&self, line: usize) {
        let spi = self.lines[line].spi;
        if machine::get().distributor.lock().disable(spi).is_err() {
            error!("the GIC does not answer: {} stays on", spi.id());
        }
    }

    /// Handles an interrupt if it is one of the lines'.
    pub(crate) fn interrupt(&self, number: u32) -> bool {
        let id = IntId::new(number);
        let Some(line) = self.lines.iter().position(|line| line.spi.id() == id) else {
            return false;
        };
        let mut claimed = false;
        let mut index = 0;
        // The last reference to a domain must not go away under the lock.
        while let Some(user) = self.user(line, index) {
            claimed |= user.is_some_and(|domain| domain.line_is_high(line));
            index += 1;
        }
        if self.is_stuck(line, claimed) {
            let users = (0..).map_while(|index| self.user(line, index)).flatten();
            users.for_each(|domain| domain.line_is_lost(line));
        }
        true
    }

    /// Lets the pins of functions through again that were held back for long enough.
    pub(crate) fn go_on(&self) {
        for line in 0..self.lines.len() {
            let users = (0..).map_while(|index| self.user(line, index)).flatten();
            users.for_each(|domain| domain.pins.go_on(sched::time(), sched::look_at_devices));
        }
    }

    /// Returns a domain that has a function on a line, if there are so many and it is still there.
    fn user(&self, line: usize, index: usize) -> Option<Option<Arc<Domain>>> {
        let users = self.lines[line].users.lock();
        let (user, _) = users.domains.get(index)?;
        Some(user.upgrade())
    }

    /// Turns a line off that nobody asserts, and that does not fall; returns whether it did so.
    fn is_stuck(&self, line: usize, claimed: bool) -> bool {
        let spi = self.lines[line].spi;
        let mut users = self.lines[line].users.lock();
        let is_high = !claimed && machine::get().distributor.lock().is_pending(spi);
        let is_stuck = users.unclaimed.interrupted(claimed, is_high);
        if is_stuck {
            self.turn_off(line);
            warning!(
                "PCI: {} stays high and no domain's function asserts it: turned off",
                spi.id()
            );
        }
        is_stuck
    }
}

#[cold]
fn read_map(tree: &Tree, host: Node<'_>) -> Option<InterruptMap> {
    let map = host.property("interrupt-map")?;
    let mask = host.property("interrupt-map-mask").map(|mask| mask.value);
    let widths = |phandle| {
        let controller = tree.by_phandle(phandle)?;
        let cells = |name| controller.property(name)?.u32().ok();
        Some(Widths {
            address: cells("#address-cells").unwrap_or(0),
            interrupt: cells("#interrupt-cells")?,
        })
    };
    match InterruptMap::decode(map.value, mask, widths) {
        Ok(map) => Some(map),
        Err(error) => {
            warning!("{}: interrupt-map is of no use: {error:?}", host.path());
            None
        }
    }
}
