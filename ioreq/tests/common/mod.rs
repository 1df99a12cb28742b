//! What the tests of both ends have in common.
#![allow(dead_code, reason = "no test file uses all of it")]

use ioreq::{Kind, Layout, Line, PostedWrite, Request, Server, Width};
use vpci::Sbdf;

/// Makes the memory for a ring, on the heap for as long as the test runs.
pub(crate) fn memory(slots: u32, posted: u32) -> (Layout, Vec<Line>) {
    let layout = Layout::new(slots, posted).unwrap();
    let lines = (0..layout.lines()).map(|_| Line::new()).collect();
    (layout, lines)
}

/// Makes a server that a device model is attached to.
pub(crate) fn attached(layout: Layout, lines: &[Line]) -> (Server<'_>, ioreq::Poster) {
    let (server, mut poster) = Server::new(lines, layout).unwrap();
    server.attach(&mut poster).unwrap();
    (server, poster)
}

pub(crate) fn read(address: u64) -> Request {
    Request {
        kind: Kind::MmioRead,
        width: Width::Four,
        sbdf: Sbdf::from_rid(0, 8),
        address,
        data: 0,
    }
}

pub(crate) fn write(address: u64, data: u64) -> PostedWrite {
    PostedWrite {
        width: Width::Four,
        sbdf: Sbdf::from_rid(0, 8),
        address,
        data,
    }
}
