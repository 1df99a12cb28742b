//! A device model that keeps what it is asked to itself, until a key is typed.
//!
//! It has no device. With a second server it answers resets and nothing else, ever. When its first one has a
//! function it takes the target's next request and holds on to it; when the function has gone it tries what it
//! no longer may. `a` then lets it answer, too late, and say that it has seen the function go; `m` makes it say
//! whether it can reach the target's memory, and `r` start again at any time.

use ioreq::{Client, Kind, Ticket, Work};
use runtime::mmio::{Width, Window};
use runtime::platform::{Platform, Server};
use runtime::{console, println, smccc, timer};
use vpci::Sbdf;

use crate::virtio_blk::ring;

/// PL011 (TRM, 3.3): the data register, and the flags with "nothing was received".
const UARTDR: usize = 0x00;
const UARTFR: usize = 0x18;
const RXFE: u32 = 1 << 4;

/// Addresses of the target's that it claims.
const RANGE: u64 = 0x1080_0000;
const BYTES: u64 = 0x1000;

/// Serves nobody.
pub fn main(platform: &'static Platform) {
    let servers = platform.servers().unwrap_or_default();
    let Some(server) = servers.first() else {
        return println!("silent: FAILED: no server");
    };
    let Ok(mut client) = Client::new(ring(server)) else {
        return println!("silent: FAILED: no ring");
    };
    let mut changes = client.changes();
    let function = abi::Function::IoreqFunction.id();
    let [wrong, ..] = smccc::call(function, [server.id.into(), 1 << 32, 0, 0, 0]);
    if wrong != abi::Status::InvalidArgument.to_register() {
        return println!("silent: FAILED: IOREQ_FUNCTION behind no SBDF is {wrong:#x}");
    }
    let mut other = servers.get(1).and_then(Other::new);
    println!("silent: ready");
    loop {
        let name = loop {
            match smccc::ioreq_function(server.id, None) {
                Ok(name) => break name,
                Err(_) => pause(),
            };
            if let Some(other) = &mut other {
                other.answer_resets();
            }
        };
        let sbdf = Sbdf::from(name);
        let mapped = smccc::ioreq_map(server.id, name, RANGE, BYTES, abi::MapFlags::NONE);
        let ticket = take(server, &mut client);
        println!("silent: {sbdf} is asked: {mapped:?}, {}", memory(server));
        while smccc::ioreq_function(server.id, None) == Ok(name) {
            pause();
        }
        let doorbell = server.doorbell.unwrap_or_default();
        let tried = [
            smccc::ioreq_map(server.id, name, RANGE, BYTES, abi::MapFlags::NONE),
            smccc::ioreq_unmap(server.id, name, RANGE),
            smccc::ioreq_msi(server.id, name, doorbell, 0),
        ];
        println!("silent: {sbdf} has gone: {tried:?}");
        loop {
            match pause() {
                Some(b'a') => break,
                Some(b'm') => println!("silent: {}", memory(server)),
                _ => {}
            }
        }
        let slot = ticket.slot();
        ticket.answer(0x1042_1af4);
        let completed = smccc::ioreq_complete(server.id, slot);
        if let Some(change) = changes.pending() {
            changes.see(change);
        }
        println!("silent: answered: {completed:?}");
    }
}

/// The second server.
struct Other {
    id: u32,
    client: Client<'static>,
}

impl Other {
    fn new(server: &Server) -> Option<Self> {
        let (id, client) = (server.id, Client::new(ring(server)).ok()?);
        Some(Self { id, client })
    }

    /// Lets its target start: vCPU 0 asks for the resets.
    fn answer_resets(&mut self) {
        for work in self.client.work(Some(0)) {
            if let Work::Request(ticket, request) = work
                && request.kind == Kind::Reset
            {
                ticket.answer(0);
                let _ = smccc::ioreq_complete(self.id, 0);
            }
        }
    }
}

/// Says whether it can reach the target's memory.
fn memory(server: &Server) -> &'static str {
    let Some(window) = server.memory.first() else {
        return "no memory";
    };
    let Ok(base) = usize::try_from(window.local) else {
        return "no memory";
    };
    // SAFETY: the hypervisor maps nothing else there.
    let window = unsafe { Window::new(base, 0x1000) };
    match window.probe_read(0, Width::Double) {
        Ok(_) => "memory is there",
        Err(_) => "memory is not there",
    }
}

/// Waits for a request of the target's.
fn take<'a>(server: &Server, client: &mut Client<'a>) -> Ticket<'a> {
    loop {
        let Ok(work) = smccc::ioreq_wait(None) else {
            continue;
        };
        if work.server != server.id {
            continue;
        }
        for work in client.work(work.slot) {
            if let Work::Request(ticket, _) = work {
                return ticket;
            }
        }
    }
}

/// Waits a little, and returns what was typed.
fn pause() -> Option<u8> {
    timer::sleep(5);
    let uart = console::window();
    if uart.read32(UARTFR) & RXFE != 0 {
        return None;
    }
    let key = uart.read8(UARTDR);
    if key == b'r' {
        smccc::system_reset();
    }
    Some(key)
}
