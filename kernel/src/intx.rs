//! Interrupt pins of a domain's functions, and the Command registers that silence them.
//!
//! ```text
//!   function asserts --> the machine's line (level, shared, also by other domains' functions)
//!                          | interrupted
//!                          v
//!   Interrupt Disable set, raised --> the domain's line: high while any function on it is raised
//!                          ^                        | the guest ends it
//!          asserts still   |                        v ended
//!                          +------ Interrupt Disable clear, not raised; the domain's line falls
//! ```
//!
//! So a function asserts the machine's line only until EL2 has seen it, and one whose guest does not
//! answer holds up nobody else's; what still asserts at the end raises the line again by itself. One that
//! does so again and again, since its guest ends the interrupt and does not see to the device, stays silenced
//! for a while each time ([`crate::pace`]).
//!
//! A function's page of config space, where a guest reads it without EL2, says that Interrupt Status is
//! clear. So the page is mapped only while EL2 is told of it: until the first interrupt since a reset.
//!
//! The level of the domain's line and the device's register move together under one lock: see
//! [`crate::wired`] for why. Command has other bits, which the same lock protects.

use alloc::vec::Vec;
use pci::Pin;
use spin::Mutex;
use vpci::{Offset, PhysicalConfig, Size};

use crate::layout;
use crate::pace::{Pace, Time};

/// Command and Status (PCI Express Base Specification, 7.5.1.1.3 and 7.5.1.1.4).
const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const INTERRUPT_DISABLE: u32 = 1 << 10;
const INTERRUPT_STATUS: u32 = 1 << 3;
/// Status of a function that does not answer.
const NO_STATUS: u32 = 0xffff;

/// Where the interrupts of a function's pin go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// The machine's line.
    pub line: usize,
    /// The domain's SPI, counted from 0.
    pub spi: u32,
}

/// Returns the SPI, counted from 0, of the pin of a function on a domain's bus. `devices` are the
/// numbers of the devices from the function up to the root bus: its own, and those of the virtual
/// ports that it is below.
pub fn spi(devices: impl IntoIterator<Item = u8>, pin: Pin) -> u32 {
    layout::INTX_SPI + devices.into_iter().fold(pin, Pin::across).index()
}

/// How often in a row a line is found high with nobody asserting it until it is stuck. A message that
/// lowers it may be on its way, or a guest may lower and raise it in between: but not always.
const PATIENCE: u32 = 100;

/// Whether a line of the machine is stuck: it stays high, though no function that a domain has asserts it.
#[derive(Debug, Default)]
pub struct Unclaimed(u32);

impl Unclaimed {
    /// Takes note of an interrupt: whether some function asserted the line, and whether the line is high
    /// once all that did are silenced. Returns whether that was once too often: the line is to be turned
    /// off, which is said once.
    pub fn interrupted(&mut self, claimed: bool, is_high: bool) -> bool {
        self.0 = if claimed || !is_high {
            0
        } else {
            self.0.saturating_add(1)
        };
        self.0 == PATIENCE
    }

    /// Begins anew: the line is turned on for another function.
    pub fn forgive(&mut self) {
        self.0 = 0;
    }
}

/// As many messages as an interrupt of a pin counts: it takes accesses to the config space of each function on
/// the line.
const COSTS: u32 = 4;

/// Which of a domain's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(usize);

/// There is no memory to note a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

struct Function<C> {
    config: C,
    wiring: Option<Wiring>,
    /// Command without Interrupt Disable.
    command: u32,
    /// It may be accessed: it is not in reset.
    live: bool,
    /// The guest has not set Interrupt Disable.
    allowed: bool,
    /// It was seen asserting its pin, and the guest has not ended that yet.
    raised: bool,
    /// It has come too fast, and stays silenced for a while.
    held: bool,
    pace: Pace,
    /// It was seen asserting its pin since it was started; or might have been, if nobody is told of its line.
    seen: bool,
    /// Nobody is told of its line.
    deaf: bool,
    /// Where its page of config space is mapped, which is to be hidden when it asserts its pin.
    page: Option<u64>,
}

impl<C: PhysicalConfig> Function<C> {
    /// Brings the device's Command up to date.
    fn write(&self) {
        if self.live {
            let silent = self.wiring.is_none() || !self.allowed || self.raised || self.held;
            let disable = if silent { INTERRUPT_DISABLE } else { 0 };
            self.write_command(self.command | disable);
        }
    }

    fn write_command(&self, value: u32) {
        let offset = Offset::in_function(COMMAND);
        self.config.write(offset, Size::Two, value);
    }

    fn asserts(&self) -> bool {
        let status = self.config.read(Offset::in_function(STATUS), Size::Two);
        status != NO_STATUS && status & INTERRUPT_STATUS != 0
    }

    /// Whether an interrupt of the machine's line may be its.
    fn may_assert(&self, line: usize) -> bool {
        let is_on = self.wiring.is_some_and(|wiring| wiring.line == line);
        is_on && self.live && self.allowed && !self.raised && !self.held
    }

    fn raises(&self, spi: u32) -> bool {
        self.raised && self.wiring.is_some_and(|wiring| wiring.spi == spi)
    }

    /// Takes note that the guest has nothing more to end.
    fn lower(&mut self) -> Option<u32> {
        let spi = self.wiring.filter(|_| self.raised).map(|wiring| wiring.spi);
        self.raised = false;
        spi
    }
}

/// The passed-through functions of a domain. What moves one of its lines calls `drive`, with the SPI
/// and its level, before anyone else gets to the functions; that must not come back here.
pub struct Functions<C> {
    inner: Mutex<Vec<Option<Function<C>>>>,
}

impl<C: PhysicalConfig> Default for Functions<C> {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Vec::new()),
        }
    }
}

impl<C: PhysicalConfig> Functions<C> {
    /// Adds a function, which is left alone until [`Self::start`]. It may have as many interrupts in a second as
    /// cost what so many messages do.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn add(
        &self,
        config: C,
        wiring: Option<Wiring>,
        messages: u32,
    ) -> Result<Key, OutOfMemory> {
        let function = Some(Function {
            config,
            wiring,
            command: 0,
            live: false,
            allowed: true,
            raised: false,
            held: false,
            pace: Pace::new(messages / COSTS),
            seen: false,
            deaf: false,
            page: None,
        });
        let mut functions = self.inner.lock();
        if let Some(index) = functions.iter().position(Option::is_none) {
            functions[index] = function;
            return Ok(Key(index));
        }
        functions.try_reserve(1).map_err(|_| OutOfMemory)?;
        functions.push(function);
        Ok(Key(functions.len() - 1))
    }

    /// Takes a function out, with everything off in its Command but what silences it.
    pub fn remove(&self, key: Key, drive: impl FnMut(u32, bool)) {
        self.stop(key, drive);
        let mut functions = self.inner.lock();
        if let Some(slot) = functions.get_mut(key.0)
            && let Some(function) = slot.take()
        {
            function.write_command(INTERRUPT_DISABLE);
        }
    }

    /// Lets a function be accessed, after its reset, with `bits` of Command on besides those that were
    /// set meanwhile.
    pub fn start(&self, key: Key, bits: u32) {
        self.change(key, |function| {
            function.live = true;
            function.command |= bits;
            function.write();
            None
        });
    }

    /// Silences a function and leaves it alone until [`Self::start`], Command being zero then but for
    /// what is set meanwhile. It raises nothing any more.
    pub fn stop(&self, key: Key, drive: impl FnMut(u32, bool)) {
        self.change_and_drive(key, drive, |function| {
            if core::mem::take(&mut function.live) {
                function.write_command(INTERRUPT_DISABLE);
            }
            function.command = 0;
            function.held = false;
            function.seen = function.deaf;
            function.lower()
        });
    }

    /// Sets or clears bits of Command.
    pub fn set(&self, key: Key, bits: u32, on: bool) {
        self.change(key, |function| {
            let command = function.command;
            function.command = if on { command | bits } else { command & !bits };
            function.write();
            None
        });
    }

    /// Takes over what the guest says of Interrupt Disable.
    pub fn allow(&self, key: Key, allowed: bool, drive: impl FnMut(u32, bool)) {
        self.change_and_drive(key, drive, |function| {
            function.allowed = allowed;
            let lowered = function.lower();
            function.write();
            lowered
        });
    }

    /// Lets a function's page be mapped at `at` by `map`, if it has not asserted its pin since it was
    /// started. Returns whether it was: it is hidden when it does. With `None` the page does not depend on
    /// the pin any more.
    pub fn show(&self, key: Key, at: Option<u64>, map: impl FnOnce()) -> bool {
        let mut functions = self.inner.lock();
        let Some(Some(function)) = functions.get_mut(key.0) else {
            return false;
        };
        function.page = at.filter(|_| function.live && !function.seen && !function.asserts());
        if function.page.is_some() {
            map();
        }
        function.page.is_some()
    }

    /// The machine's line is high: raises the domain's lines for whoever asserts it, and silences them.
    /// Their pages are hidden before. For who came too fast, `hold` is told when [`Self::go_on`] is due.
    /// Returns whether there was one.
    pub fn interrupted(
        &self,
        line: usize,
        time: impl Fn() -> Time,
        mut hide: impl FnMut(u64),
        mut hold: impl FnMut(u64),
        mut drive: impl FnMut(u32, bool),
    ) -> bool {
        let mut found = false;
        for function in self.inner.lock().iter_mut().flatten() {
            if function.may_assert(line) && function.asserts() {
                function.raised = true;
                function.seen = true;
                function.page.take().into_iter().for_each(&mut hide);
                if function.pace.count()
                    && let Some(due) = function.pace.due(time())
                {
                    function.held = true;
                    hold(due);
                }
                function.write();
                found = true;
                if let Some(wiring) = function.wiring {
                    drive(wiring.spi, true);
                }
            }
        }
        found
    }

    /// Lets go on who came too fast, if that was long enough ago; else `hold` is told when that is.
    pub fn go_on(&self, time: Time, mut hold: impl FnMut(u64)) {
        let mut functions = self.inner.lock();
        for function in functions.iter_mut().flatten().filter(|f| f.held) {
            match function.pace.due(time) {
                Some(due) => hold(due),
                None => {
                    function.held = false;
                    function.write();
                }
            }
        }
    }

    /// Nobody is told of the machine's line any more: hides the pages of all functions on it, for as long as
    /// they are there.
    pub fn lost(&self, line: usize, mut hide: impl FnMut(u64)) {
        for function in self.inner.lock().iter_mut().flatten() {
            if function.wiring.is_some_and(|wiring| wiring.line == line) {
                function.seen = true;
                function.deaf = true;
                function.page.take().into_iter().for_each(&mut hide);
            }
        }
    }

    /// The guest has ended the interrupt of one of its lines, which has fallen with that: whoever
    /// asserts the pin still raises it again.
    pub fn ended(&self, spi: u32, mut drive: impl FnMut(u32, bool)) {
        let mut functions = self.inner.lock();
        drive(spi, false);
        for function in functions.iter_mut().flatten() {
            if function.raises(spi) {
                function.raised = false;
                function.write();
            }
        }
    }

    fn change(&self, key: Key, change: impl FnOnce(&mut Function<C>) -> Option<u32>) {
        self.change_and_drive(key, |_, _| {}, change);
    }

    /// Changes a function. `change` returns the SPI that it no longer raises.
    fn change_and_drive(
        &self,
        key: Key,
        mut drive: impl FnMut(u32, bool),
        change: impl FnOnce(&mut Function<C>) -> Option<u32>,
    ) {
        let mut functions = self.inner.lock();
        let Some(Some(function)) = functions.get_mut(key.0) else {
            return;
        };
        if let Some(spi) = change(function) {
            let others = functions.iter().flatten();
            drive(spi, others.into_iter().any(|other| other.raises(spi)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;
    use std::rc::Rc;

    /// A function's Command and Status, and whether it has something to say.
    #[derive(Default)]
    struct Device {
        command: u32,
        wants: bool,
        gone: bool,
        accesses: u32,
    }

    impl Device {
        fn asserts(&self) -> bool {
            self.wants && self.command & INTERRUPT_DISABLE == 0
        }
    }

    type Shared = Rc<RefCell<Device>>;

    struct Config(Shared);

    impl PhysicalConfig for Config {
        fn read(&self, offset: Offset, size: Size) -> u32 {
            assert_eq!((u64::from(offset.get()), size), (STATUS, Size::Two));
            let mut device = self.0.borrow_mut();
            device.accesses += 1;
            if device.gone {
                return NO_STATUS;
            }
            // Interrupt Status does not depend on Interrupt Disable.
            0x10 | if device.wants { INTERRUPT_STATUS } else { 0 }
        }

        fn write(&self, offset: Offset, size: Size, value: u32) {
            assert_eq!((u64::from(offset.get()), size), (COMMAND, Size::Two));
            let mut device = self.0.borrow_mut();
            device.accesses += 1;
            device.command = value;
        }
    }

    /// A domain with three functions: two share both lines, the third only the machine's.
    struct Machine {
        functions: Functions<Config>,
        devices: [Shared; 3],
        keys: [Key; 3],
        lines: RefCell<BTreeMap<u32, bool>>,
        hidden: RefCell<Vec<u64>>,
        /// The time, and how much of it passes from one interrupt to the next.
        now: Cell<u64>,
        passes: Cell<u64>,
        /// When who was held back may go on.
        due: Cell<Option<u64>>,
    }

    /// Of a pin one may come in a tick, a millisecond.
    const MESSAGES: u32 = 1_000 * COSTS;

    const MASTER: u32 = 1 << 2;
    const MEMORY: u32 = 1 << 1;

    impl Machine {
        fn new() -> Self {
            let functions = Functions::default();
            let devices: [Shared; 3] = Default::default();
            let wirings = [(7, 3), (7, 3), (7, 5)].map(|(line, spi)| Wiring { line, spi });
            let keys = [0, 1, 2].map(|n: usize| {
                let config = Config(devices[n].clone());
                functions.add(config, Some(wirings[n]), MESSAGES).unwrap()
            });
            let machine = Self {
                functions,
                devices,
                keys,
                lines: RefCell::default(),
                hidden: RefCell::default(),
                now: Cell::new(1_000),
                passes: Cell::new(1),
                due: Cell::new(None),
            };
            for key in keys {
                machine.functions.start(key, MEMORY);
            }
            machine
        }

        fn drive(&self) -> impl FnMut(u32, bool) {
            |spi, level| {
                self.lines.borrow_mut().insert(spi, level);
            }
        }

        /// A page is hidden before its function's interrupt is known.
        fn hide(&self) -> impl FnMut(u64) {
            let raised = self.lines.borrow().clone();
            move |page| {
                assert_eq!(*self.lines.borrow(), raised);
                self.hidden.borrow_mut().push(page);
            }
        }

        fn show(&self, n: usize, page: Option<u64>) -> bool {
            let mut mapped = false;
            let shown = self.functions.show(self.keys[n], page, || mapped = true);
            assert_eq!(shown, mapped);
            shown
        }

        fn want(&self, n: usize, wants: bool) {
            self.devices[n].borrow_mut().wants = wants;
        }

        fn line(&self, spi: u32) -> bool {
            self.lines.borrow().get(&spi).copied().unwrap_or(false)
        }

        fn machine_line(&self) -> bool {
            self.devices.iter().any(|device| device.borrow().asserts())
        }

        fn time(&self) -> Time {
            let (now, frequency) = (self.now.get(), 1_000);
            Time { now, frequency }
        }

        /// Takes an interrupt of the machine's line.
        fn interrupted(&self) -> bool {
            self.now.set(self.now.get() + self.passes.get());
            let (time, hold) = (|| self.time(), |due| self.due.set(Some(due)));
            self.functions
                .interrupted(7, time, self.hide(), hold, self.drive())
        }

        fn go_on(&self) {
            let hold = |due| self.due.set(Some(due));
            self.functions.go_on(self.time(), hold);
        }

        /// Takes the machine's interrupts until its line is low.
        fn settle(&self) {
            for round in 0.. {
                if !self.machine_line() {
                    return;
                }
                assert!(round < 3, "the line is stuck");
                assert!(self.interrupted());
            }
        }

        /// The guest ends an interrupt: the controller's line falls, and EL2 hears of it.
        fn end(&self, spi: u32) {
            self.lines.borrow_mut().insert(spi, false);
            self.functions.ended(spi, self.drive());
            self.settle();
        }
    }

    #[test]
    fn what_asserts_is_silenced_until_the_guest_has_ended_it() {
        let machine = Machine::new();
        assert_eq!(machine.devices[0].borrow().command, MEMORY);
        machine.want(0, true);
        machine.settle();
        assert!(machine.line(3) && !machine.line(5) && !machine.machine_line());
        let command = MEMORY | INTERRUPT_DISABLE;
        assert_eq!(machine.devices[0].borrow().command, command);
        machine.end(3);
        assert!(machine.line(3), "it asserts still");
        machine.want(0, false);
        machine.end(3);
        assert!(!machine.line(3) && !machine.machine_line());
        assert_eq!(machine.devices[0].borrow().command, MEMORY);
    }

    /// A function may assert a line that its domain's other functions are on, and be no domain's.
    #[test]
    fn a_line_that_stays_high_is_given_up() {
        let machine = Machine::new();
        let mut unclaimed = Unclaimed::default();
        let mut interrupt = |stranger: bool| {
            let claimed = machine.interrupted();
            unclaimed.interrupted(claimed, stranger || machine.machine_line())
        };
        // What a domain's function asserts, and what falls by itself, is no reason.
        for _ in 0..3 {
            for _ in 1..PATIENCE {
                assert!(!interrupt(true));
            }
            machine.want(0, true);
            assert!(!interrupt(true), "its function is silenced first");
            machine.want(0, false);
            machine.end(3);
            for _ in 1..PATIENCE {
                assert!(!interrupt(true));
            }
            assert!(!interrupt(false));
        }
        // Nor is a function that asserts its pin for good: it is silenced, and asserts nothing.
        machine.want(1, true);
        for _ in 0..3 * PATIENCE {
            assert!(!interrupt(false));
        }
        assert!(machine.line(3) && !machine.machine_line());
        let gives_up = (1..=3 * PATIENCE).find(|_| interrupt(true));
        assert_eq!(gives_up, Some(PATIENCE));
        assert!(!(0..PATIENCE).any(|_| interrupt(true)), "it is said once");
        unclaimed.forgive();
        assert!(!(1..PATIENCE).any(|_| unclaimed.interrupted(false, true)));
        assert!(unclaimed.interrupted(false, true));
    }

    /// A guest that ends the interrupt without quieting its device takes it again, and nobody else's is held
    /// up: the machine's line falls each time.
    #[test]
    fn a_device_that_is_never_quieted_interrupts_its_own_guest_only() {
        let machine = Machine::new();
        machine.want(0, true);
        machine.settle();
        for _ in 0..1000 {
            assert!(machine.line(3) && !machine.machine_line());
            machine.end(3);
        }
        machine.want(2, true);
        machine.settle();
        assert!(machine.line(5), "another guest's comes through");
        // It is taken away as it is: nothing of it is left, and it asserts the line no more.
        machine.functions.remove(machine.keys[0], machine.drive());
        assert!(!machine.line(3) && machine.line(5) && !machine.machine_line());
        assert!(machine.devices[0].borrow().wants);
        machine.end(5);
        assert!(!machine.line(3));
    }

    /// Else its guest, that does nothing but end it, could have EL2 do nothing but take it.
    #[test]
    fn one_that_comes_too_fast_is_silenced_for_a_while() {
        let machine = Machine::new();
        machine.passes.set(0);
        machine.want(0, true);
        machine.settle();
        assert_eq!(machine.due.get(), None);
        machine.end(3);
        assert!(machine.line(3), "the second one comes");
        assert_eq!(machine.due.take(), Some(1_001));
        machine.end(3);
        // What the guest says of its bit does not help.
        for allowed in [false, true] {
            let drive = machine.drive();
            machine.functions.allow(machine.keys[0], allowed, drive);
        }
        assert!(!machine.line(3) && !machine.machine_line());
        machine.want(1, true);
        machine.settle();
        assert!(machine.line(3), "another one's comes through");
        machine.want(1, false);
        machine.end(3);
        machine.go_on();
        assert_eq!(machine.due.take(), Some(1_001));
        assert!(!machine.machine_line());
        machine.now.set(1_001);
        machine.go_on();
        assert_eq!(machine.due.get(), None);
        machine.settle();
        assert!(machine.line(3));
        machine.end(3);
        assert_eq!(machine.due.get(), Some(1_002));
        // A reset ends that.
        machine.functions.stop(machine.keys[0], machine.drive());
        machine.functions.start(machine.keys[0], MEMORY);
        assert!(machine.machine_line());
    }

    #[test]
    fn a_page_is_hidden_by_the_first_interrupt_until_a_reset() {
        let machine = Machine::new();
        assert!(machine.show(0, Some(0x1000)) && machine.show(2, Some(0x3000)));
        machine.want(1, true);
        machine.settle();
        assert!(machine.hidden.borrow().is_empty(), "that was another's");
        machine.want(0, true);
        machine.settle();
        assert_eq!(*machine.hidden.borrow(), [0x1000]);
        assert!(!machine.show(0, Some(0x1000)));
        machine.want(0, false);
        machine.end(3);
        assert!(!machine.show(0, Some(0x1000)), "it may again");
        // It asserts its pin already, and has not been seen doing it: the guest has silenced it.
        machine
            .functions
            .allow(machine.keys[2], false, machine.drive());
        machine.want(2, true);
        assert!(!machine.show(2, Some(0x3000)));
        machine.want(2, false);
        assert!(machine.show(2, Some(0x3000)));
        machine.functions.stop(machine.keys[0], machine.drive());
        assert!(!machine.show(0, Some(0x1000)), "it is in reset");
        machine.functions.start(machine.keys[0], MEMORY);
        assert!(machine.show(0, Some(0x5000)));
        assert!(!machine.show(0, None));
        machine.want(0, true);
        machine.settle();
        assert_eq!(*machine.hidden.borrow(), [0x1000], "it sends messages");
        machine.functions.lost(7, machine.hide());
        assert_eq!(*machine.hidden.borrow(), [0x1000, 0x3000]);
        assert!(!machine.show(2, Some(0x3000)));
        // A reset does not turn the line on again.
        machine.functions.stop(machine.keys[2], machine.drive());
        machine.functions.start(machine.keys[2], MEMORY);
        assert!(!machine.show(2, Some(0x3000)));
    }

    #[test]
    fn a_shared_line_is_high_while_anyone_raises_it() {
        let machine = Machine::new();
        machine.want(0, true);
        machine.settle();
        machine.want(1, true);
        machine.want(2, true);
        machine.settle();
        assert!(machine.line(3) && machine.line(5));
        machine.want(0, false);
        machine.end(3);
        assert!(machine.line(3) && machine.line(5));
        machine
            .functions
            .allow(machine.keys[1], false, machine.drive());
        assert!(!machine.line(3) && machine.line(5));
        // The guest's own bit stays, whatever else is written.
        machine.functions.set(machine.keys[1], MASTER, true);
        let command = machine.devices[1].borrow().command;
        assert_eq!(command, MEMORY | MASTER | INTERRUPT_DISABLE);
        machine.end(3);
        assert!(!machine.line(3));
        machine
            .functions
            .allow(machine.keys[1], true, machine.drive());
        machine.settle();
        assert!(machine.line(3));
        assert_eq!(machine.lines.borrow().len(), 2);
    }

    #[test]
    fn the_guests_bit_of_one_does_not_lower_what_another_raises() {
        let machine = Machine::new();
        machine.want(0, true);
        machine.want(1, true);
        machine.settle();
        machine
            .functions
            .allow(machine.keys[0], false, machine.drive());
        assert!(machine.line(3));
    }

    #[test]
    fn nothing_is_left_after_a_reset_and_nothing_touched_during_it() {
        let machine = Machine::new();
        machine.functions.set(machine.keys[0], MASTER, true);
        machine.want(0, true);
        machine.settle();
        machine.functions.stop(machine.keys[0], machine.drive());
        assert!(!machine.line(3));
        assert_eq!(machine.devices[0].borrow().command, INTERRUPT_DISABLE);
        let before = {
            let mut device = machine.devices[0].borrow_mut();
            (device.command, device.wants) = (0, true);
            device.accesses
        };
        assert!(!machine.interrupted());
        machine.end_quietly(3);
        machine
            .functions
            .allow(machine.keys[0], true, machine.drive());
        machine.functions.set(machine.keys[0], MASTER, true);
        assert_eq!(machine.devices[0].borrow().accesses, before);
        machine.want(0, false);
        machine.functions.start(machine.keys[0], MEMORY);
        assert_eq!(machine.devices[0].borrow().command, MEMORY | MASTER);
        assert!(!machine.line(3));
    }

    impl Machine {
        fn end_quietly(&self, spi: u32) {
            self.functions.ended(spi, self.drive());
        }
    }

    #[test]
    fn another_line_and_a_function_that_is_gone_are_nobodys() {
        let machine = Machine::new();
        machine.want(0, true);
        assert!(!machine.functions.interrupted(
            6,
            || machine.time(),
            machine.hide(),
            |_| (),
            machine.drive()
        ));
        machine.devices[0].borrow_mut().gone = true;
        assert!(!machine.interrupted());
        assert!(!machine.line(3));
    }

    #[test]
    fn without_wiring_a_function_is_silent_for_good() {
        let functions = Functions::default();
        let device = Shared::default();
        let key = functions
            .add(Config(device.clone()), None, MESSAGES)
            .unwrap();
        functions.start(key, MEMORY);
        functions.allow(key, true, |_, _| panic!("no line"));
        assert_eq!(device.borrow().command, MEMORY | INTERRUPT_DISABLE);
    }

    #[test]
    fn a_function_that_is_removed_leaves_its_place_and_its_line() {
        let machine = Machine::new();
        machine.want(0, true);
        machine.settle();
        machine.functions.remove(machine.keys[0], machine.drive());
        assert!(!machine.line(3));
        machine.functions.remove(machine.keys[0], machine.drive());
        machine.functions.set(machine.keys[0], MASTER, true);
        assert_eq!(machine.devices[0].borrow().command, INTERRUPT_DISABLE);
        let config = Config(Shared::default());
        assert_eq!(
            machine.functions.add(config, None, MESSAGES),
            Ok(machine.keys[0])
        );
    }

    #[test]
    #[rustfmt::skip]
    fn a_domains_lines_turn_with_its_slots() {
        let cases = [
            (&[0][..], 1, 3), (&[1], 1, 4), (&[2], 1, 5), (&[3], 1, 6), (&[4], 1, 3), (&[31], 4, 5),
            (&[0, 2], 1, 5), (&[0, 2], 3, 3), (&[3, 2], 1, 4),
        ];
        for (devices, pin, expected) in cases {
            let pin = Pin::decode(pin).unwrap();
            assert_eq!(spi(devices.iter().copied(), pin), expected, "{devices:?}");
        }
    }
}
