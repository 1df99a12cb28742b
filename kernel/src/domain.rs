//! Domains: what each is made of, and how one is made.

use crate::bus::{Bus, Numbers};
use crate::interrupts::Interrupts;
use crate::lifecycle::{Lifecycle, Then};
use crate::memory::{self, TableFrames};
use crate::pcpu::Pcpu;
use crate::physical::{self, Dma, Mastered, Resetting};
use crate::servers::{Link, Serving};
use crate::vcpu::{Vcpu, VcpuRef};
use crate::{machine, sched, shadow, terminal};
use alloc::collections::TryReserveError;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arch::address::{BLOCK_2M, Ipa, PAGE_SIZE, Pa};
use arch::context::Stage1;
use arch::table::{Access, Format, Invalidate, Stage2, Vmid, vttbr_el2};
use arch::{asm, sysreg};
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::frames::Run;
use kernel::intx;
use kernel::streams::Second;
use kernel::uart::Uart;
use kernel::wired::Wired;
use kernel::{fallible, layout, size};
use spin::Mutex;

/// A domain.
pub(crate) struct Domain {
    /// Its number: unique for as long as the machine runs.
    pub(crate) id: u32,
    /// How it was configured.
    pub(crate) config: manifest::Domain,
    /// Its priority, below `sched::PRIORITIES`.
    pub(crate) priority: usize,
    /// Its vCPUs.
    pub(crate) vcpus: Vec<Vcpu>,
    /// Its memory.
    pub(crate) memory: Memory,
    /// What it starts with.
    pub(crate) payload: Payload,
    /// Its interrupt controller.
    pub(crate) interrupts: Interrupts,
    /// Its console.
    uart: Wired<Uart>,
    /// Its vCPUs' translation.
    pub(crate) stage2: Mutex<Option<Stage2>>,
    /// Whether it runs, and what follows when it no longer does.
    pub(crate) lifecycle: Mutex<Lifecycle>,
    /// Resets of its functions that are on their way while it is stopped, and what follows then.
    pub(crate) resets: Mutex<(Vec<Resetting>, Then)>,
    /// Its PCI buses, if it was made with a host bridge.
    pub(crate) pci: Option<Mutex<Bus>>,
    /// The interrupt pins of its passed-through functions.
    pub(crate) pins: intx::Functions<Mastered>,
    /// The numbers that its guest gave to its buses.
    pub(crate) bus_numbers: Numbers,
    /// Its devices' translation, if it was made with an IOMMU.
    pub(crate) dma: Option<Dma>,
    /// The servers of device models that serve it.
    pub(crate) links: Mutex<Vec<Arc<Link>>>,
    /// Its own servers, if it is a device model.
    pub(crate) serving: Serving,
    /// Accesses that were answered by an external abort since it was made.
    pub(crate) refused: AtomicU64,
    /// SErrors that went to it.
    pub(crate) serrors: Mutex<Second>,
    /// A vCPU waits for room on the terminal.
    waits_for_terminal: AtomicBool,
    /// How far `clean_some` has come.
    cleaned: AtomicU64,
    /// CNTVOFF_EL2.
    counter_offset: AtomicU64,
    vmid: Vmid,
    vttbr: u64,
}

/// What a domain starts with: bytes of the image, that stay as they are.
#[derive(Clone, Default)]
pub(crate) struct Payload {
    /// The kernel or the firmware.
    pub(crate) code: &'static [u8],
    /// `code` is firmware, entered at IPA 0.
    pub(crate) firmware: bool,
    /// The initial RAM disk.
    pub(crate) initrd: Option<&'static [u8]>,
    /// Modules that the domain was granted, by name.
    pub(crate) modules: Vec<(String, &'static [u8])>,
}

/// An address that is not a domain's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadAddress;

/// A domain's memory: which frames are where.
#[derive(Default)]
pub(crate) struct Memory {
    /// Ascending by IPA.
    extents: Vec<Extent>,
}

/// A piece of a domain's memory.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    /// Where the domain sees it.
    pub(crate) ipa: u64,
    /// Where it is.
    pub(crate) run: Run,
}

/// Why a domain could not be made.
#[derive(Debug)]
pub(crate) enum MakeError {
    /// Something of this much, or of an unknown amount, was not to be had.
    NoMemory(&'static str),
    /// All VMIDs are in use.
    NoVmid,
    /// It is to have an IOMMU, and the machine has none.
    NoIommu,
    /// None of the pCPUs that it may run on has started.
    Affinity,
    /// The payload does not fit.
    Payload(&'static str),
    /// Its buses cannot be made.
    Bus(vpci::BusError),
}

impl fmt::Display for MakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory(what) => write!(f, "there is not enough memory for {what}"),
            Self::NoIommu => f.write_str("it is to have an IOMMU, and the machine has no SMMU"),
            Self::NoVmid => f.write_str("all VMIDs are in use"),
            Self::Affinity => f.write_str("none of the pCPUs that it may run on has started"),
            Self::Payload(why) => f.write_str(why),
            Self::Bus(error) => write!(f, "{error}"),
        }
    }
}

/// All domains, by number. A stopped domain stays, with its memory, until it is destroyed.
static DOMAINS: Mutex<Vec<Arc<Domain>>> = Mutex::new(Vec::new());

/// Calls `f` for each domain.
pub(crate) fn each(mut f: impl FnMut(&Arc<Domain>)) {
    let mut index = 0;
    // The lock is not held meanwhile: `f` may take others.
    loop {
        let domain = DOMAINS.lock().get(index).cloned();
        let Some(domain) = domain else { return };
        f(&domain);
        index += 1;
    }
}

/// Finds a domain by its name.
pub(crate) fn find(name: &str) -> Option<Arc<Domain>> {
    DOMAINS
        .lock()
        .iter()
        .find(|domain| domain.name() == name)
        .cloned()
}

/// Finds a domain by its number.
pub(crate) fn by_number(id: u32) -> Option<Arc<Domain>> {
    let domains = DOMAINS.lock();
    domains.iter().find(|domain| domain.id == id).cloned()
}

/// Returns which domain is configured with a function of the machine.
pub(crate) fn configured_with(host: vpci::Sbdf) -> Option<u32> {
    let has = |domain: &&Arc<Domain>| {
        let mut functions = domain.config.functions.iter();
        functions.any(|function| function.host == Some(host))
    };
    let domains = DOMAINS.lock();
    domains.iter().find(has).map(|domain| domain.id)
}

/// The name of a domain, by its number, for people.
pub(crate) struct Name(pub(crate) u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match by_number(self.0) {
            Some(domain) => f.write_str(domain.name()),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Gives a domain a character that was typed.
pub(crate) fn typed(id: u32, byte: u8) {
    let domain = DOMAINS
        .lock()
        .iter()
        .find(|domain| domain.id == id)
        .cloned();
    if let Some(domain) = domain {
        domain.with_uart(|uart| uart.receive(byte));
    }
}

/// Lets the vCPUs go on that wait for room on the terminal.
pub(crate) fn terminal_has_room() {
    each(|domain| {
        if domain.waits_for_terminal.swap(false, Ordering::Relaxed) {
            for vcpu in &domain.vcpus {
                sched::notify(&domain.reference(vcpu.index));
            }
        }
    });
}

impl Memory {
    /// Takes `len` bytes, in as few and large pieces as there are, and zeroes them.
    pub(crate) fn add(&mut self, ipa: u64, len: u64) -> Result<(), MakeError> {
        let mut done = 0;
        while done < len {
            self.extents
                .try_reserve(1)
                .map_err(|_| MakeError::NoMemory("its memory"))?;
            let run = memory::allocate_extent(len - done, BLOCK_2M)
                .ok_or(MakeError::NoMemory("its memory"))?;
            memory::zero_for_domain(run);
            let at = self
                .extents
                .partition_point(|extent| extent.ipa < ipa + done);
            self.extents.insert(
                at,
                Extent {
                    ipa: ipa + done,
                    run,
                },
            );
            done += run.len;
        }
        Ok(())
    }

    /// Returns the pieces of RAM proper, without firmware and modules.
    pub(crate) fn ram(&self) -> impl Iterator<Item = &Extent> {
        let ram = layout::RAM..layout::ECAM.start;
        self.extents
            .iter()
            .filter(move |extent| ram.contains(&extent.ipa))
    }

    /// Returns the pieces.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Calls `f` for each piece of `ipa..ipa + len`, with its PA, its offset in the range and its
    /// length.
    fn pieces(
        &self,
        ipa: u64,
        len: u64,
        mut f: impl FnMut(u64, usize, usize),
    ) -> Result<(), BadAddress> {
        let end = ipa.checked_add(len).ok_or(BadAddress)?;
        let mut at = ipa;
        while at < end {
            let index = self.extents.partition_point(|extent| extent.ipa <= at);
            let extent = index
                .checked_sub(1)
                .and_then(|index| self.extents.get(index));
            let extent = extent.ok_or(BadAddress)?;
            let offset = at - extent.ipa;
            if offset >= extent.run.len {
                return Err(BadAddress);
            }
            let piece = (extent.run.len - offset).min(end - at);
            let whole = "a piece fits into memory";
            f(
                extent.run.start.get() + offset,
                usize::try_from(at - ipa).expect(whole),
                usize::try_from(piece).expect(whole),
            );
            at += piece;
        }
        Ok(())
    }

    /// Copies the domain's memory at `ipa` into `bytes`.
    pub(crate) fn read(&self, ipa: u64, bytes: &mut [u8]) -> Result<(), BadAddress> {
        self.pieces(ipa, bytes.len() as u64, |_, _, _| {})?;
        self.pieces(ipa, bytes.len() as u64, |pa, offset, len| {
            let from = pa as *const u8;
            let to = &mut bytes[offset..offset + len];
            // SAFETY: the domain's memory, which EL2 maps at its PA. The guest may write it
            // meanwhile: bytes are copied, whatever they are then.
            unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), len) };
        })
    }

    /// Returns the aligned word at `ipa` as the memory itself has it, past what caches may hold that a
    /// guest with its caches off does not see.
    pub(crate) fn word(&self, ipa: u64) -> Result<u32, BadAddress> {
        const BYTES: u64 = size_of::<u32>() as u64;
        if !ipa.is_multiple_of(BYTES) {
            return Err(BadAddress);
        }
        let mut word = Err(BadAddress);
        self.pieces(ipa, BYTES, |pa, _, len| {
            let from = pa as *const u32;
            asm::clean_invalidate_to_poc(from.cast(), len);
            // SAFETY: aligned, and of the domain's memory, which EL2 maps at its PA in pages. The guest
            // may write it meanwhile: it is read once.
            word = Ok(unsafe { from.read_volatile() });
        })?;
        word
    }

    /// Copies `bytes` into the domain's memory at `ipa`.
    pub(crate) fn write(&self, ipa: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        self.pieces(ipa, bytes.len() as u64, |_, _, _| {})?;
        self.pieces(ipa, bytes.len() as u64, |pa, offset, len| {
            let from = &bytes[offset..offset + len];
            // SAFETY: as in `read`; nothing of Rust's lies there.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), pa as *mut u8, len) };
        })
    }

    /// Copies `bytes` to `ipa` for a guest that starts with its caches off.
    pub(crate) fn load(&self, ipa: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        self.write(ipa, bytes)?;
        self.clean(ipa, bytes.len() as u64)
    }

    /// Cleans and invalidates the caches of `ipa..ipa + len` to the point of coherency.
    pub(crate) fn clean(&self, ipa: u64, len: u64) -> Result<(), BadAddress> {
        self.pieces(ipa, len, |pa, _, len| {
            asm::clean_invalidate_to_poc(pa as *const u8, len);
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for extent in &self.extents {
            // What one domain leaves behind no other one reads (`add` zeroes too, for what firmware
            // left).
            memory::free_run(extent.run);
        }
    }
}

/// Invalidates a domain's translations on the pCPUs.
pub(crate) struct Tlb {
    /// VTTBR_EL2 of the domain.
    pub(crate) vttbr: u64,
}

/// From this many bytes on, everything of the domain is invalidated instead.
const MANY: u64 = 512 * PAGE_SIZE;

impl Tlb {
    /// Runs `f` with the domain's VMID loaded: the instructions work on the current one.
    fn with_vmid(&self, f: impl FnOnce()) {
        let own = sysreg::read!("vttbr_el2");
        if own == self.vttbr {
            return f();
        }
        let stage1 = Stage1::close();
        sysreg::write!("vttbr_el2", self.vttbr);
        asm::isb();
        f();
        sysreg::write!("vttbr_el2", own);
        stage1.open();
        asm::isb();
    }
}

impl Invalidate for Tlb {
    fn ipa(&self, ipa: Ipa, len: u64) {
        if len >= MANY {
            return self.all();
        }
        self.with_vmid(|| {
            asm::dsb_ishst();
            for offset in (0..len).step_by(size(PAGE_SIZE)) {
                asm::tlbi_ipas2e1is(ipa.get() + offset);
            }
            asm::dsb_ish();
            asm::tlbi_vmalle1is();
            asm::dsb_ish();
            asm::isb();
        });
    }

    fn all(&self) {
        self.with_vmid(|| {
            asm::dsb_ishst();
            asm::tlbi_vmalls12e1is();
            asm::dsb_ish();
            asm::isb();
        });
    }
}

impl Domain {
    /// Makes a domain, stopped.
    pub(crate) fn make(
        id: u32,
        config: manifest::Domain,
        payload: Payload,
    ) -> Result<Arc<Self>, MakeError> {
        let online = |list: &Vec<u32>| {
            list.iter().any(|cpu| {
                machine::get()
                    .online()
                    .any(|other| other.number == *cpu as usize)
            })
        };
        if !config.affinity.as_ref().is_none_or(online) {
            return Err(MakeError::Affinity);
        }
        let vcpus = config.vcpus as usize;
        sched::reserve(vcpus).map_err(|_| MakeError::NoMemory("its vCPUs"))?;
        let mut memory = Memory::default();
        memory.add(layout::RAM, config.memory)?;
        if payload.firmware {
            memory.add(
                layout::FLASH.start,
                (payload.code.len() as u64).next_multiple_of(BLOCK_2M),
            )?;
        }
        let mut at = layout::MODULES;
        for (_, module) in &payload.modules {
            let len = (module.len() as u64).next_multiple_of(BLOCK_2M);
            memory.add(at, len)?;
            at += len;
        }
        let mut stage2 = Stage2::new(&mut TableFrames::for_pcpus(), Format::Stage2)
            .ok_or(MakeError::NoMemory("its tables"))?;
        for extent in memory.extents() {
            let (ipa, pa) = (Ipa::new(extent.ipa), extent.run.start);
            stage2
                .map(
                    &mut TableFrames::for_pcpus(),
                    ipa,
                    pa,
                    extent.run.len,
                    Access::RAM,
                )
                .map_err(|_| MakeError::NoMemory("its tables"))?;
        }
        let no_memory = |_| MakeError::NoMemory("its vCPUs");
        let affinities = (0..vcpus).map(layout::affinity);
        let affinities = fallible::collect(affinities).map_err(no_memory)?;
        let interrupts = Interrupts::new(&affinities, config.host_bridge)
            .map_err(|_| MakeError::NoMemory("its interrupt controller"))?;
        let vmid = machine::get()
            .vmids
            .lock()
            .allocate()
            .ok_or(MakeError::NoVmid)?;
        let vttbr = vttbr_el2(vmid, stage2.root());
        Tlb { vttbr }.all();
        let pci = if config.host_bridge {
            let bus = Bus::new(&config.ports).map_err(MakeError::Bus)?;
            Some(Mutex::new(bus))
        } else {
            None
        };
        let dma = if config.iommu {
            let physical = physical::get().ok_or(MakeError::NoIommu)?;
            Some(physical.make_dma(&memory, vmid)?)
        } else {
            None
        };
        let serving =
            Serving::new(config.servers.len()).ok_or(MakeError::NoMemory("its servers"))?;
        let may = |cpu: &&Pcpu| {
            let listed = |list: &Vec<u32>| list.iter().any(|other| *other as usize == cpu.number);
            config.affinity.as_ref().is_none_or(listed)
        };
        let home = machine::get()
            .online()
            .find(may)
            .map_or(0, |cpu| cpu.number);
        let vcpus = affinities
            .iter()
            .enumerate()
            .map(|(index, affinity)| Vcpu::new(index, *affinity | 1 << 31, home));
        let vcpus = fallible::collect(vcpus).map_err(no_memory)?;
        let domain = memory::try_arc(Self {
            id,
            priority: config.priority as usize,
            vcpus,
            memory,
            payload,
            interrupts,
            uart: Wired::new(Uart::default()),
            stage2: Mutex::new(Some(stage2)),
            lifecycle: Mutex::new(Lifecycle::Off),
            resets: Mutex::new((Vec::new(), Then::Off)),
            pci,
            pins: intx::Functions::default(),
            bus_numbers: Numbers::new(),
            dma,
            links: Mutex::new(Vec::new()),
            serving,
            refused: AtomicU64::new(0),
            serrors: Mutex::default(),
            waits_for_terminal: AtomicBool::new(false),
            cleaned: AtomicU64::new(0),
            counter_offset: AtomicU64::new(0),
            vmid,
            vttbr,
            config,
        })
        .map_err(|_| MakeError::NoMemory("itself"))?;
        let no_memory = |_| MakeError::NoMemory("its console");
        terminal::attach(id, &domain.config.name, domain.config.console).map_err(no_memory)?;
        let mut domains = DOMAINS.lock();
        domains
            .try_reserve(1)
            .map_err(|_| MakeError::NoMemory("its name"))?;
        domains.push(domain.clone());
        Ok(domain)
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns a reference to one of its vCPUs.
    pub(crate) fn reference(&self, index: usize) -> VcpuRef {
        let this: *const Self = self;
        // SAFETY: domains exist only in an `Arc` (`make`), which the caller's reference keeps alive.
        let domain = unsafe {
            Arc::increment_strong_count(this);
            Arc::from_raw(this)
        };
        VcpuRef { domain, index }
    }

    /// Returns whether its vCPUs may run on a pCPU.
    pub(crate) fn may_run_on(&self, pcpu: usize) -> bool {
        let listed = |list: &Vec<u32>| list.iter().any(|cpu| *cpu as usize == pcpu);
        self.config.affinity.as_ref().is_none_or(listed)
    }

    /// Returns VTTBR_EL2.
    pub(crate) fn vttbr(&self) -> u64 {
        self.vttbr
    }

    /// Returns CNTVOFF_EL2.
    pub(crate) fn counter_offset(&self) -> u64 {
        // Relaxed: set while no vCPU runs.
        self.counter_offset.load(Ordering::Relaxed)
    }

    /// Makes the virtual counter start at zero now.
    pub(crate) fn reset_counter(&self) {
        self.counter_offset.store(sched::now(), Ordering::Relaxed);
    }

    /// Changes its UART, whose interrupt line follows.
    pub(crate) fn with_uart<R>(&self, change: impl FnOnce(&mut Uart) -> R) -> R {
        let drive = |level| self.interrupts.set_spi(self, layout::UART_SPI, level);
        self.uart.with(change, drive)
    }

    /// Returns what moves one of the lines of its PCI bus.
    pub(crate) fn drive(&self) -> impl FnMut(u32, bool) {
        |spi, level| self.interrupts.set_spi(self, spi, level)
    }

    /// One of the machine's PCI lines is high: returns whether one of its functions asserts it.
    pub(crate) fn line_is_high(&self, line: usize) -> bool {
        let hide = |at| shadow::hide(self, at);
        let (time, hold) = (sched::time, sched::look_at_devices);
        self.pins.interrupted(line, time, hide, hold, self.drive())
    }

    /// One of the machine's PCI lines was turned off: interrupts on it are not heard of any more.
    pub(crate) fn line_is_lost(&self, line: usize) {
        self.pins.lost(line, |at| shadow::hide(self, at));
    }

    /// The guest has ended interrupts of its PCI bus: a bit for each of the four lines.
    #[cold]
    pub(crate) fn lines_ended(&self, lines: u32) {
        for line in 0..layout::INTX_SPIS {
            if lines & 1 << line != 0 {
                self.pins.ended(layout::INTX_SPI + line, self.drive());
            }
        }
    }

    /// Says that a vCPU waits for room on the terminal.
    pub(crate) fn wait_for_terminal(&self) {
        self.waits_for_terminal.store(true, Ordering::Relaxed);
    }

    /// Has `clean_some` begin anew.
    pub(crate) fn clean_all_again(&self) {
        // Relaxed: no vCPU runs.
        self.cleaned.store(0, Ordering::Relaxed);
    }

    /// Cleans and invalidates a part of the domain's memory to the point of coherency, going on where
    /// the last call ended, and returns whether that was the last part.
    pub(crate) fn clean_some(&self) -> bool {
        /// Bytes at a time: a millisecond or so.
        const PART: u64 = 4 << 20;
        let mut skip = self.cleaned.fetch_add(PART, Ordering::Relaxed);
        for extent in self.memory.extents() {
            if skip < extent.run.len {
                let len = PART.min(extent.run.len - skip);
                let start = extent.run.start.get() + skip;
                asm::clean_invalidate_to_poc(start as *const u8, size(len));
                return false;
            }
            skip -= extent.run.len;
        }
        self.cleaned.store(0, Ordering::Relaxed);
        true
    }

    /// Returns where the modules are mapped, by name.
    pub(crate) fn modules(&self) -> Result<Vec<(&str, Range<u64>)>, TryReserveError> {
        let mut at = layout::MODULES;
        fallible::collect(self.payload.modules.iter().map(|(name, module)| {
            let start = at;
            at += (module.len() as u64).next_multiple_of(BLOCK_2M);
            (name.as_str(), start..start + module.len() as u64)
        }))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if let Some(stage2) = self.stage2.get_mut().take() {
            stage2.destroy(&mut TableFrames::for_pcpus(), &Tlb { vttbr: self.vttbr });
        }
        machine::get().vmids.lock().free(self.vmid);
        terminal::detach(self.id);
    }
}

/// Returns a part of the image as bytes.
///
/// # Safety
///
/// `pa..pa + len` is RAM that is mapped, reserved for good, and never written.
pub(crate) unsafe fn image_bytes(pa: Pa, len: usize) -> &'static [u8] {
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(pa.get() as *const u8, len) }
}
