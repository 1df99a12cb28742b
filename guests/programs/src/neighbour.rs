//! A domain that minds its own business, and notices when somebody does not.
//!
//! It fills memory with a known pattern, checks it again and again, copies some of it about, and
//! prints a heartbeat. If it has an NVMe, it copies all the time: pages to the disk and back by DMA, each
//! byte compared. `rounds=N` on the command line ends it after N rounds; else it never ends.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use runtime::mmio::Window;
use runtime::platform::Platform;
use runtime::{println, timer};

use crate::nvme::{self, Nvme, OTHER, PAGE, READ, WRITE};
use crate::pci::{self, Function};
use crate::random::Random;

/// What the watched memory holds.
const GUARD_SEED: u64 = 0x6e65_6967_6862_6f75;
/// Words that are written once and must never change.
const GUARD: usize = 4 << 20 >> 3;
/// Words that are copied in each round.
const WORK: usize = 256 << 10 >> 3;
/// Rounds from one heartbeat to the next, and milliseconds from one round to the next.
const HEARTBEAT: u64 = 4;
const PAUSE: u64 = 250;
/// Pages of the disk that are written, one after the other.
const DISK_PAGES: u64 = 1024;

/// Checks its memory until it is told to end.
pub fn main(platform: &'static Platform) {
    let mut words = platform.arguments().split_ascii_whitespace();
    let rounds = words.find_map(|word| word.strip_prefix("rounds=")?.parse().ok());
    let guard = filled(GUARD_SEED, GUARD);
    let mut copy = vec![0; WORK];
    let mut disk = match Disk::find(platform) {
        Ok(disk) => disk,
        Err(error) => return println!("neighbour: FAILED: its disk does not start: {error:?}"),
    };
    println!("neighbour: ready, {} KiB watched", GUARD * 8 / 1024);
    for round in 1..=rounds.unwrap_or(u64::MAX) {
        let source = filled(round, WORK);
        copy.copy_from_slice(core::hint::black_box(&source));
        let copied = first_difference(&copy, round);
        let kept = first_difference(&guard, GUARD_SEED);
        if let Some((index, found, expected)) = copied.or(kept) {
            println!(
                "neighbour: FAILED in round {round}: word {index} is {found:#x}, not {expected:#x}"
            );
            return;
        }
        let is_told = round.is_multiple_of(HEARTBEAT) || round == 1;
        match &mut disk {
            None if is_told => println!("neighbour: round {round} ok"),
            None => {}
            Some(disk) => {
                if let Err(why) = disk.copy_for(PAUSE) {
                    return println!("neighbour: FAILED in round {round}: {why}");
                }
                if is_told {
                    let pages = disk.copied;
                    println!("neighbour: round {round} ok, {pages} pages through the disk");
                }
                continue;
            }
        }
        timer::sleep(PAUSE);
    }
    println!("neighbour: done");
}

/// An NVMe that pages are copied through.
struct Disk {
    nvme: Nvme,
    /// A page that goes out, and one that comes in.
    out: Window,
    into: Window,
    copied: u64,
}

impl Disk {
    /// Starts the NVMe of the root bus, if there is one.
    fn find(platform: &Platform) -> Result<Option<Self>, nvme::Error> {
        let Some(bridge) = &platform.host_bridge else {
            return Ok(None);
        };
        let Some(function) = Function::all(bridge).find(|function| function.id() == nvme::ID)
        else {
            return Ok(None);
        };
        let registers = pci::first_fit(bridge, nvme::BAR_SIZE);
        function.place(0, registers.base());
        function.enable();
        let memory = nvme::set_aside(nvme::QUEUE_PAGES + 2);
        let page = |index| memory.part(index * PAGE, PAGE);
        let queues = memory.part(0, nvme::QUEUE_PAGES * PAGE);
        let mut disk = Self {
            nvme: Nvme::new(function, registers, queues),
            out: page(nvme::QUEUE_PAGES),
            into: page(nvme::QUEUE_PAGES + 1),
            copied: 0,
        };
        disk.nvme.start()?;
        Ok(Some(disk))
    }

    /// Copies pages until so many milliseconds have passed; says what went wrong.
    fn copy_for(&mut self, milliseconds: u64) -> Result<(), String> {
        let end = timer::now() + timer::ticks(milliseconds);
        while timer::now() < end {
            self.copy()
                .map_err(|why| format!("page {}: {why}", self.copied))?;
            self.copied += 1;
        }
        Ok(())
    }

    /// Copies one page to the disk and back.
    fn copy(&mut self) -> Result<(), String> {
        // Eight blocks of 512 bytes.
        let [block, _] = pci::halves(self.copied % DISK_PAGES * 8);
        let seed = self.copied << 8 | 0xd1;
        self.fill(seed);
        let mut run = |command, page: &Window| {
            let told = self
                .nvme
                .run(OTHER, command, page.base() as u64, [block, 0, 7]);
            told.map_err(|error| {
                let status = self.nvme.registers.read32(nvme::reg::CSTS);
                let config = self.nvme.function.config.read32(4);
                format!(
                    "command {command}: {error:?}, CSTS {status:#x}, Command and Status {config:#x}"
                )
            })
        };
        run(WRITE, &self.out)?;
        run(READ, &self.into)?;
        let mut random = Random::new(seed);
        for offset in (0..PAGE).step_by(8) {
            let expected = random.next();
            for (name, page) in [("sent", &self.out), ("got back", &self.into)] {
                let found = page.read64(offset);
                if found != expected {
                    return Err(format!(
                        "what was {name} has {found:#x}, not {expected:#x}, at {offset:#x}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Fills the page that goes out, and the other one with the opposite.
    fn fill(&self, seed: u64) {
        let mut random = Random::new(seed);
        for offset in (0..PAGE).step_by(8) {
            let word = random.next();
            self.out.write64(offset, word);
            self.into.write64(offset, !word);
        }
    }
}

fn filled(seed: u64, words: usize) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..words).map(|_| random.next()).collect()
}

/// Returns the first word that is not what [`filled`] wrote.
fn first_difference(words: &[u64], seed: u64) -> Option<(usize, u64, u64)> {
    let mut random = Random::new(seed);
    words.iter().enumerate().find_map(|(index, word)| {
        // SAFETY: a reference may be read; volatile, since a device may have written here.
        let found = unsafe { core::ptr::from_ref(word).read_volatile() };
        let expected = random.next();
        (found != expected).then_some((index, found, expected))
    })
}
