//! Shared-ring requests from the hypervisor to device models: pure logic.
//!
//! A device model is a domain that emulates PCI functions for another domain, its target. Each of
//! its registrations is a *server*: a ring that it shares with EL2, and the functions and MMIO
//! ranges of the target whose accesses go over that ring.
//!
//! ```text
//!   target's vCPU            EL2                       device model
//!   load or store --exit--> vpci::Bus::route
//!                           Server::publish  --slot--> Client::work
//!       (blocked)                                      Ticket::answer
//!                           Server::complete <--HVC--- IOREQ_COMPLETE
//!       (runs) <--wake----- Server::take_answer
//! ```
//!
//! - [`Layout`] and [`Line`] say how the shared memory looks (`kernel/docs/ioreq.md` has the table);
//! - [`Server`] is EL2's end, which trusts nothing that it reads there; [`Client`] is the device
//!   model's end, for guests;
//! - [`EventSet`] remembers who has work, without a lost wake-up.
//!
//! What is left to others: which server answers an access (`vpci::Bus`, which routes functions and
//! claimed ranges alike), where the memory comes from, who is blocked and woken, and which
//! hypercall does what (`kernel`); what a device answers (`guests`). There is no lock in here: what
//! several pCPUs use at once takes `&self`, the rest `&mut self`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod client;
mod event;
mod layout;
mod request;
mod server;
mod sync;

pub use client::{Changes, Client, ClientError, Ticket, Work};
pub use event::{EventSet, Sleep, Wake};
pub use layout::{Layout, LayoutError, Line, MAGIC, State, VERSION};
pub use request::{Kind, PostedWrite, Request, Width};
pub use server::{
    AttachError, Pending, PostError, Poster, ProtocolError, PublishError, Server, ServerError,
    ServerWork, TakeError,
};
