//! The control domain: does what is typed, a line at a time, and says what came of it.
//!
//! ```text
//! find NAME                          the number of a domain
//! domain NUMBER                      what it does and has
//! info HOST                          who has a function of the machine
//! give NUMBER HOST SLOT [no-reset]   gives a function to a domain
//! put NUMBER SLOT MODEL SERVER       gives it a function of a device model's server
//! take NUMBER SLOT                   takes a function back
//! wrong NUMBER                       names to each call a slot that no function can have
//! race NUMBER HOST SLOT SLOT         two vCPUs give the same function at once
//! leave NUMBER HOST SLOT             this domain resets while a function that it gives is on its way
//! along NUMBER HOST SLOT NUMBER HOST SLOT
//!                                    gives one, and another while that is on its way
//! sign NUMBER HOST SLOT HOST SLOT    gives one without a reset while another is on its way, and who has that then
//! off                                this domain powers off
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{AssignFlags, Function, FunctionState, Status};
use runtime::platform::Platform;
use runtime::{console, cpu, println, smccc, timer};
use spin::Mutex;
use vpci::Sbdf;

/// PL011 (TRM, 3.3): the data register, and the flags with "nothing was received".
const UARTDR: usize = 0x00;
const UARTFR: usize = 0x18;
const RXFE: u32 = 1 << 4;

/// The longest line.
const LINE: usize = 100;

/// What the second vCPU is to give, and what came of it; `RUNNING` meanwhile.
static TASK: Mutex<Option<Task>> = Mutex::new(None);
static RESULT: AtomicU64 = AtomicU64::new(0);
const RUNNING: u64 = 1;

/// An assignment.
#[derive(Clone, Copy)]
struct Task {
    domain: u32,
    host: Sbdf,
    slot: Sbdf,
    flags: AssignFlags,
}

/// Reads lines until there is one that ends it.
pub fn main(platform: &'static Platform) {
    println!("control: ready");
    loop {
        let line = read_line();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words == ["off"] {
            return;
        }
        if !words.is_empty() && obey(platform, &words).is_none() {
            println!("control: {line}: what?");
        }
    }
}

fn read_line() -> String {
    let uart = console::window();
    let mut line = String::new();
    loop {
        while uart.read32(UARTFR) & RXFE != 0 {
            timer::sleep(5);
        }
        match uart.read8(UARTDR) {
            b'\r' | b'\n' => return line,
            byte if line.len() < LINE => line.push(byte.into()),
            _ => {}
        }
    }
}

fn obey(platform: &Platform, words: &[&str]) -> Option<()> {
    match *words {
        ["find", name] => match smccc::domain_find(name) {
            Ok(number) => println!("control: find {name}: {number}"),
            Err(status) => println!("control: find {name}: {status:?}"),
        },
        ["domain", number] => {
            let number = number.parse().ok()?;
            match smccc::domain_info(number) {
                Ok((state, flags)) => {
                    println!("control: domain {number}: state {state}, flags {flags}");
                }
                Err(status) => println!("control: domain {number}: {status:?}"),
            }
        }
        ["info", host] => {
            let host: Sbdf = host.parse().ok()?;
            match smccc::pci_info(host.into()) {
                Ok((state, None)) => println!("control: info {host}: state {state}"),
                Ok((state, Some((domain, slot)))) => {
                    let slot = Sbdf::from(slot);
                    println!("control: info {host}: state {state}, domain {domain} at {slot}");
                }
                Err(status) => println!("control: info {host}: {status:?}"),
            }
        }
        ["give", number, host, slot, ref rest @ ..] => {
            let task = Task::parse(number, host, slot, rest)?;
            println!("control: give {}: {}", task.host, name(task.give()));
        }
        ["put", number, slot, model, server] => {
            let slot: Sbdf = slot.parse().ok()?;
            let [number, model, server] = [number, model, server].map(str::parse);
            let (number, model, server) = (number.ok()?, model.ok()?, server.ok()?);
            let done = smccc::pci_emulate(number, slot.into(), model, server);
            println!("control: put {slot}: {}", name(done));
        }
        ["take", number, slot] => {
            let slot: Sbdf = slot.parse().ok()?;
            let done = smccc::pci_unassign(number.parse().ok()?, slot.into());
            println!("control: take {slot}: {}", name(done));
        }
        ["wrong", number] => {
            let number = number.parse().ok()?;
            let calls = [
                Function::PciAssign,
                Function::PciUnassign,
                Function::PciEmulate,
            ];
            let told = calls.map(|call| {
                let [x0, ..] = smccc::call(call.id(), [number, 1 << 32, number, 0, 0]);
                name(status(x0))
            });
            println!("control: wrong: {}", told.join(" "));
        }
        ["race", number, host, slot, other] => {
            let task = Task::parse(number, host, slot, &[])?;
            start(platform, Task::parse(number, host, other, &[])?)?;
            let own = task.give();
            let other = finish();
            println!(
                "control: race {}: {} and {}",
                task.host,
                name(own),
                name(other)
            );
        }
        ["along", number, host, slot, other, other_host, other_slot] => {
            let first = Task::parse(number, host, slot, &[])?;
            let other = Task::parse(other, other_host, other_slot, &[])?;
            start_and_follow(platform, first)?;
            let own = name(other.give());
            println!(
                "control: along {}: {own}, then {}",
                other.host,
                name(finish())
            );
        }
        ["sign", number, sign, at, host, slot] => {
            let sign = Task::parse(number, sign, at, &["no-reset"])?;
            let task = Task::parse(number, host, slot, &[])?;
            start_and_follow(platform, task)?;
            let signed = sign.give();
            let given = name(finish().and(signed));
            let state = smccc::domain_info(task.domain).map_or(u64::MAX, |(state, _)| state);
            let owner = smccc::pci_info(task.host.into()).map_or(u64::MAX, |(state, _)| state);
            println!("control: sign {host}: {given}, state {state}, then {owner}");
        }
        ["leave", number, host, slot] => {
            let task = Task::parse(number, host, slot, &[])?;
            println!("control: leave");
            start_and_follow(platform, task)?;
            smccc::system_reset();
        }
        _ => return None,
    }
    Some(())
}

impl Task {
    fn parse(number: &str, host: &str, slot: &str, rest: &[&str]) -> Option<Self> {
        Some(Self {
            domain: number.parse().ok()?,
            host: host.parse().ok()?,
            slot: slot.parse().ok()?,
            flags: match rest {
                [] => AssignFlags::NONE,
                ["no-reset"] => AssignFlags::ALLOW_NO_RESET,
                _ => return None,
            },
        })
    }

    fn give(self) -> Result<(), Status> {
        smccc::pci_assign(self.domain, self.host.into(), self.slot.into(), self.flags)
    }
}

/// Has the second vCPU give a function, and returns when it is about to.
fn start(platform: &Platform, task: Task) -> Option<()> {
    let own = cpu::affinity();
    let target = *platform.cpus.iter().find(|affinity| **affinity != own)?;
    while smccc::affinity_info(target, 0) != 1 {
        timer::sleep(1);
    }
    *TASK.lock() = Some(task);
    RESULT.store(RUNNING, Ordering::Relaxed);
    cpu::start(target, 1, second, 0).ok()?;
    while TASK.lock().is_some() {
        core::hint::spin_loop();
    }
    Some(())
}

/// The same, and returns when the function is on its way, or there already.
fn start_and_follow(platform: &Platform, task: Task) -> Option<()> {
    start(platform, task)?;
    while !is_on_its_way(task.host) && RESULT.load(Ordering::Acquire) == RUNNING {}
    Some(())
}

/// Waits for the second vCPU, and returns what came of its task.
fn finish() -> Result<(), Status> {
    // Acquire: pairs with `second`.
    while RESULT.load(Ordering::Acquire) == RUNNING {
        timer::sleep(5);
    }
    status(RESULT.load(Ordering::Acquire))
}

fn is_on_its_way(host: Sbdf) -> bool {
    smccc::pci_info(host.into()).is_ok_and(|(state, _)| state == FunctionState::Busy as u64)
}

fn second(_: usize) {
    let Some(task) = TASK.lock().take() else {
        return;
    };
    let status = task.give().err().unwrap_or(Status::Ok);
    // Release: pairs with `finish`.
    RESULT.store(status.to_register(), Ordering::Release);
}

fn status(register: u64) -> Result<(), Status> {
    Status::try_from(register.cast_signed())
        .unwrap_or(Status::Protocol)
        .into_result()
}

fn name(done: Result<(), Status>) -> String {
    alloc::format!("{:?}", done.err().unwrap_or(Status::Ok))
}
