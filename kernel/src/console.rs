//! The machine's terminal, shared by all domains' consoles and EL2's log.
//!
//! One domain has the terminal raw: its output goes through byte by byte, and it gets the input.
//! What the others write appears as whole lines with their name in front, and so does EL2's log.
//!
//! ```text
//!   [    1.250000] isthmus: domain linux starts       EL2's log
//!   disk| serving blk0                                a domain without the terminal
//!   / # ls                                            the domain that has it
//! ```
//!
//! Ctrl-] and a digit give the terminal to another domain, Ctrl-] h lists them, Ctrl-] twice sends
//! the character itself.

use crate::fallible;
use alloc::collections::{TryReserveError, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// Bytes that may wait for the UART.
const CAPACITY: usize = 16 << 10;
/// Of these, what is kept for EL2's log and for the frames of lines.
const RESERVED: usize = 2 << 10;
/// The longest line of a domain without the terminal that is shown in one piece.
const LINE: usize = 240;

/// Who shares the terminal, and what waits to be sent.
#[derive(Default)]
pub struct Console {
    domains: Vec<Writer>,
    focus: Option<u32>,
    output: VecDeque<u8>,
    /// The last byte ended a line.
    at_line_start: bool,
    escaped: bool,
}

struct Writer {
    id: u32,
    name: String,
    line: Vec<u8>,
}

/// The terminal has no room; the domain is to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Console {
    /// Makes a terminal that nobody shares.
    ///
    /// # Errors
    ///
    /// If there is no memory for what waits to be sent.
    pub fn new() -> Result<Self, TryReserveError> {
        let mut output = VecDeque::new();
        output.try_reserve_exact(CAPACITY)?;
        Ok(Self {
            output,
            at_line_start: true,
            ..Self::default()
        })
    }

    /// Adds a domain; the first one, and whoever asks for it with `focus`, gets the terminal.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn attach(&mut self, id: u32, name: &str, focus: bool) -> Result<(), TryReserveError> {
        let mut line = Vec::new();
        line.try_reserve_exact(LINE)?;
        let name = fallible::text(name)?;
        fallible::push(&mut self.domains, Writer { id, name, line })?;
        if focus || self.focus.is_none() {
            self.focus = Some(id);
        }
        Ok(())
    }

    /// Removes a domain, after what it has not ended as a line is shown.
    pub fn detach(&mut self, id: u32) {
        self.end_line(id);
        self.domains.retain(|writer| writer.id != id);
        if self.focus == Some(id) {
            self.focus = self.domains.first().map(|writer| writer.id);
        }
    }

    /// Shows the line that a domain has begun, as when it stops.
    pub fn end_line(&mut self, id: u32) {
        let Some(at) = self.domains.iter().position(|writer| writer.id == id) else {
            return;
        };
        self.show_line(at);
    }

    /// Takes a byte that domain `id` writes.
    ///
    /// # Errors
    ///
    /// If the terminal has no room: nothing was taken.
    pub fn write(&mut self, id: u32, byte: u8) -> Result<(), Full> {
        let Some(at) = self.domains.iter().position(|writer| writer.id == id) else {
            return Ok(());
        };
        if self.output.len() + LINE + RESERVED > CAPACITY {
            return Err(Full);
        }
        if self.focus == Some(id) {
            self.send(byte);
            return Ok(());
        }
        let line = &mut self.domains[at].line;
        match byte {
            b'\n' => self.show_line(at),
            b'\r' => {}
            _ => {
                line.push(byte);
                if line.len() == LINE {
                    self.show_line(at);
                }
            }
        }
        Ok(())
    }

    fn show_line(&mut self, at: usize) {
        if self.domains[at].line.is_empty() {
            return;
        }
        self.fresh_line();
        let Self {
            domains, output, ..
        } = self;
        let writer = &mut domains[at];
        output.extend(writer.name.bytes().chain(*b"| "));
        output.extend(writer.line.drain(..));
        output.extend(*b"\r\n");
        self.at_line_start = true;
    }

    /// Shows a line of EL2's own. What has no room is dropped.
    pub fn log(&mut self, line: fmt::Arguments<'_>) {
        self.fresh_line();
        // Cannot fail: the terminal takes what it has room for.
        let _ = fmt::write(self, line);
        for byte in *b"\r\n" {
            self.send(byte);
        }
    }

    /// Returns the next byte to be sent, without taking it.
    pub fn peek(&self) -> Option<u8> {
        self.output.front().copied()
    }

    /// Takes the byte that `peek` returned.
    pub fn pop(&mut self) {
        self.output.pop_front();
    }

    /// Returns whether a domain that got `Full` may try again.
    pub fn has_room(&self) -> bool {
        self.output.len() <= CAPACITY / 2
    }

    /// Takes a byte that was typed, and returns which domain gets it.
    pub fn typed(&mut self, byte: u8) -> Option<(u32, u8)> {
        if !core::mem::take(&mut self.escaped) {
            if byte == ESCAPE {
                self.escaped = true;
                return None;
            }
            return self.focus.map(|id| (id, byte));
        }
        match byte {
            ESCAPE => return self.focus.map(|id| (id, ESCAPE)),
            b'0'..=b'9' => self.give(usize::from(byte - b'0')),
            b'h' => self.help(),
            _ => self.log(format_args!("Ctrl-] h lists what can follow Ctrl-]")),
        }
        None
    }

    fn give(&mut self, at: usize) {
        let Some(writer) = self.domains.get(at) else {
            self.log(format_args!("there is no domain {at}; Ctrl-] h lists them"));
            return;
        };
        let id = writer.id;
        self.show_line(at);
        self.focus = Some(id);
        let name = core::mem::take(&mut self.domains[at].name);
        self.log(format_args!("terminal: {name}"));
        self.domains[at].name = name;
    }

    fn help(&mut self) {
        self.log(format_args!(
            "Ctrl-] 0 to 9: the terminal for a domain; Ctrl-] Ctrl-]: Ctrl-] itself"
        ));
        let focus = self.focus;
        let domains = core::mem::take(&mut self.domains);
        for (at, writer) in domains.iter().enumerate() {
            let mark = if focus == Some(writer.id) { '*' } else { ' ' };
            self.log(format_args!("{mark} {at} {}", writer.name));
        }
        self.domains = domains;
    }

    fn fresh_line(&mut self) {
        if !self.at_line_start {
            for byte in *b"\r\n" {
                self.send(byte);
            }
        }
    }

    fn send(&mut self, byte: u8) {
        if self.output.len() < CAPACITY {
            self.output.push_back(byte);
            self.at_line_start = byte == b'\n';
        }
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.send(byte);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> Console {
        let mut console = Console::new().unwrap();
        console.attach(7, "linux", false).unwrap();
        console.attach(9, "disk", false).unwrap();
        console
    }

    fn write(console: &mut Console, id: u32, text: &str) {
        for byte in text.bytes() {
            console.write(id, byte).unwrap();
        }
    }

    fn shown(console: &mut Console) -> String {
        let mut text = Vec::new();
        while let Some(byte) = console.peek() {
            console.pop();
            text.push(byte);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_focus_is_raw_and_others_get_whole_lines() {
        let mut console = console();
        write(&mut console, 7, "log");
        write(&mut console, 9, "read");
        write(&mut console, 7, "in:");
        write(&mut console, 9, "y\r\n");
        assert_eq!(shown(&mut console), "login:\r\ndisk| ready\r\n");
        console.log(format_args!("domain {} stops", 1));
        assert_eq!(shown(&mut console), "domain 1 stops\r\n");
    }

    #[test]
    fn ctrl_bracket_and_a_digit_give_the_terminal_away() {
        let mut console = console();
        assert_eq!(console.typed(b'x'), Some((7, b'x')));
        assert_eq!(console.typed(ESCAPE), None);
        assert_eq!(console.typed(b'1'), None);
        assert_eq!(console.typed(b'y'), Some((9, b'y')));
        assert_eq!(shown(&mut console), "terminal: disk\r\n");
        assert_eq!((console.typed(ESCAPE), console.typed(b'7')), (None, None));
        assert_eq!(console.typed(b'z'), Some((9, b'z')));
        assert_eq!(
            (console.typed(ESCAPE), console.typed(ESCAPE)),
            (None, Some((9, ESCAPE)))
        );
    }

    #[test]
    fn help_lists_the_domains() {
        let mut console = console();
        console.typed(ESCAPE);
        console.typed(b'h');
        let text = shown(&mut console);
        assert!(
            text.contains("* 0 linux\r\n") && text.contains("  1 disk\r\n"),
            "{text}"
        );
    }

    #[test]
    fn a_full_terminal_refuses_domains_but_never_the_log() {
        let mut console = console();
        let taken = (0..CAPACITY)
            .take_while(|_| console.write(7, b'a').is_ok())
            .count();
        assert!(taken > CAPACITY / 2 && taken < CAPACITY);
        assert_eq!(console.write(9, b'a'), Err(Full));
        assert!(!console.has_room());
        console.log(format_args!("still heard"));
        assert!(shown(&mut console).ends_with("still heard\r\n"));
        assert!(console.has_room());
    }

    #[test]
    fn a_long_line_is_cut_and_a_detached_domain_keeps_nothing() {
        let mut console = console();
        let long: String = "b".repeat(LINE + 3);
        write(&mut console, 9, &long);
        assert_eq!(shown(&mut console).len(), "disk| \r\n".len() + LINE);
        console.detach(9);
        assert_eq!(shown(&mut console), "disk| bbb\r\n");
        assert_eq!(console.write(9, b'c'), Ok(()));
        console.detach(7);
        assert_eq!(console.typed(b'x'), None);
    }
}
