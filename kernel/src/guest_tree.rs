//! The device tree that a domain gets (Devicetree Specification 0.4, and Linux's bindings).

use crate::fallible;
use crate::layout::{self, affinity};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use core::ops::Range;
use dt::{WriteError, Writer};

/// What a domain's device tree tells.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// Bytes of RAM.
    pub memory: u64,
    /// How many vCPUs.
    pub vcpus: usize,
    /// Whether there is a host bridge, and with it an ITS.
    pub host_bridge: bool,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Where the initial RAM disk is.
    pub initrd: Option<Range<u64>>,
    /// Modules that are mapped: their names and where they are.
    pub modules: &'a [(&'a str, Range<u64>)],
    /// The ioreq servers of a device model.
    pub servers: &'a [Arc<Server>],
}

/// An ioreq server, as its device model finds it.
#[derive(Clone, Debug)]
pub struct Server {
    /// What hypercalls take.
    pub id: u32,
    /// Its name in the system description.
    pub name: String,
    /// The domain whose functions it serves.
    pub target: String,
    /// Where its ring is.
    pub ring: Range<u64>,
    /// The target's memory: its IPA there, its size, and where it is mapped here.
    pub memory: Vec<(u64, u64, u64)>,
    /// Where the target's functions write their MSIs to.
    pub doorbell: u64,
}

const GIC: u32 = 1;
const CLOCK: u32 = 2;
const ITS: u32 = 3;

/// GIC bindings: kinds of interrupt and their triggers.
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// PCI bus bindings (IEEE 1275), phys.hi: 32-bit and 64-bit memory space.
const MEMORY_32: u32 = 0x0200_0000;
const MEMORY_64: u32 = 0x0300_0000;

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
fn low(value: u64) -> u32 {
    value as u32
}

/// Makes the device tree.
///
/// # Errors
///
/// If there is no memory for it, or a name in it is none that a device tree can have.
pub fn make(platform: &Platform<'_>) -> Result<Vec<u8>, WriteError> {
    let mut tree = Writer::new(&[])?;
    tree.begin("")?;
    tree.string("compatible", "linux,dummy-virt")?;
    tree.string("model", "Isthmus domain")?;
    tree.u32("#address-cells", 2)?;
    tree.u32("#size-cells", 2)?;
    tree.u32("interrupt-parent", GIC)?;
    chosen(&mut tree, platform)?;
    node(&mut tree, "memory", layout::RAM, |tree| {
        tree.string("device_type", "memory")?;
        tree.numbers("reg", &[layout::RAM, platform.memory])
    })?;
    cpus(&mut tree, platform.vcpus)?;
    tree.begin("psci")?;
    tree.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
    tree.string("method", "hvc")?;
    tree.end()?;
    tree.begin("timer")?;
    tree.string("compatible", "arm,armv8-timer")?;
    let [a, b, c, d] = layout::TIMER_PPIS.map(|ppi| [PPI, ppi, LEVEL_HIGH]);
    tree.cells("interrupts", [a, b, c, d].as_flattened())?;
    tree.flag("always-on")?;
    tree.end()?;
    gic(&mut tree, platform)?;
    clocked_devices(&mut tree)?;
    if platform.host_bridge {
        host_bridge(&mut tree)?;
    }
    for (name, range) in platform.modules {
        node(&mut tree, "isthmus-module", range.start, |tree| {
            tree.string("compatible", "isthmus,module")?;
            tree.numbers("reg", &[range.start, range.end - range.start])?;
            tree.string("isthmus,name", name)
        })?;
    }
    for each in platform.servers {
        server(&mut tree, each)?;
    }
    tree.end()?;
    tree.finish()
}

fn node(
    tree: &mut Writer,
    name: &str,
    address: u64,
    content: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    begin(tree, name, address)?;
    content(tree)?;
    tree.end()
}

/// Begins a node with an address in its name.
fn begin(tree: &mut Writer, name: &str, address: u64) -> Result<(), WriteError> {
    let mut text = Text::default();
    write!(text, "{name}@{address:x}").map_err(|_| WriteError::Name)?;
    tree.begin(text.get().ok_or(WriteError::Name)?)
}

/// A short text that needs no heap.
#[derive(Default)]
struct Text {
    bytes: [u8; 32],
    len: usize,
}

impl Text {
    fn get(&self) -> Option<&str> {
        core::str::from_utf8(self.bytes.get(..self.len)?).ok()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn chosen(tree: &mut Writer, platform: &Platform<'_>) -> Result<(), WriteError> {
    tree.begin("chosen")?;
    tree.string("bootargs", platform.cmdline)?;
    tree.string("stdout-path", "/pl011@9000000")?;
    if let Some(initrd) = &platform.initrd {
        tree.u64("linux,initrd-start", initrd.start)?;
        tree.u64("linux,initrd-end", initrd.end)?;
    }
    tree.end()
}

fn cpus(tree: &mut Writer, count: usize) -> Result<(), WriteError> {
    tree.begin("cpus")?;
    tree.u32("#address-cells", 2)?;
    tree.u32("#size-cells", 0)?;
    for index in 0..count {
        let mpidr = affinity(index);
        node(tree, "cpu", mpidr, |tree| {
            tree.string("device_type", "cpu")?;
            tree.string("compatible", "arm,armv8")?;
            tree.cells("reg", &[high(mpidr), low(mpidr)])?;
            tree.string("enable-method", "psci")
        })?;
    }
    tree.end()
}

fn gic(tree: &mut Writer, platform: &Platform<'_>) -> Result<(), WriteError> {
    begin(tree, "intc", layout::GICD.start)?;
    tree.string("compatible", "arm,gic-v3")?;
    tree.flag("interrupt-controller")?;
    tree.u32("#interrupt-cells", 3)?;
    tree.u32("#address-cells", 2)?;
    tree.u32("#size-cells", 2)?;
    tree.flag("ranges")?;
    tree.u32("phandle", GIC)?;
    tree.numbers(
        "reg",
        &[
            layout::GICD.start,
            layout::GICD.end - layout::GICD.start,
            layout::GICR,
            platform.vcpus as u64 * layout::GICR_STRIDE,
        ],
    )?;
    if platform.host_bridge {
        node(tree, "its", layout::GITS.start, |tree| {
            tree.string("compatible", "arm,gic-v3-its")?;
            tree.flag("msi-controller")?;
            tree.u32("#msi-cells", 1)?;
            tree.u32("phandle", ITS)?;
            let size = layout::GITS.end - layout::GITS.start;
            tree.numbers("reg", &[layout::GITS.start, size])
        })?;
    }
    tree.end()
}

fn clocked_devices(tree: &mut Writer) -> Result<(), WriteError> {
    tree.begin("apb-pclk")?;
    tree.string("compatible", "fixed-clock")?;
    tree.u32("#clock-cells", 0)?;
    tree.u32("clock-frequency", 24_000_000)?;
    tree.string("clock-output-names", "clk24mhz")?;
    tree.u32("phandle", CLOCK)?;
    tree.end()?;
    let devices = [
        ("pl011", layout::UART, "arm,pl011", layout::UART_SPI),
        ("pl031", layout::RTC, "arm,pl031", layout::RTC_SPI),
    ];
    for (name, range, model, spi) in devices {
        node(tree, name, range.start, |tree| {
            tree.strings("compatible", &[model, "arm,primecell"])?;
            tree.numbers("reg", &[range.start, range.end - range.start])?;
            tree.cells("interrupts", &[SPI, spi, LEVEL_HIGH])?;
            if model == "arm,pl011" {
                tree.cells("clocks", &[CLOCK, CLOCK])?;
                tree.strings("clock-names", &["uartclk", "apb_pclk"])
            } else {
                tree.u32("clocks", CLOCK)?;
                tree.string("clock-names", "apb_pclk")
            }
        })?;
    }
    Ok(())
}

/// The host bridge: Linux's host-generic-pci binding.
fn host_bridge(tree: &mut Writer) -> Result<(), WriteError> {
    node(tree, "pcie", layout::ECAM.start, |tree| {
        tree.string("compatible", "pci-host-ecam-generic")?;
        tree.string("device_type", "pci")?;
        tree.u32("#address-cells", 3)?;
        tree.u32("#size-cells", 2)?;
        tree.u32("#interrupt-cells", 1)?;
        tree.numbers(
            "reg",
            &[layout::ECAM.start, layout::ECAM.end - layout::ECAM.start],
        )?;
        tree.cells("bus-range", &[0, 255])?;
        tree.u32("linux,pci-domain", 0)?;
        tree.flag("dma-coherent")?;
        let windows = [(MEMORY_32, layout::PCI_32), (MEMORY_64, layout::PCI_64)];
        let ranges = windows.map(|(space, window)| {
            let size = window.end - window.start;
            let (upper, lower) = (high(window.start), low(window.start));
            [space, upper, lower, upper, lower, high(size), low(size)]
        });
        tree.cells("ranges", ranges.as_flattened())?;
        tree.cells("msi-map", &[0, ITS, 0, 0x1_0000])?;
        // Which SPI a slot's pin has turns with the slot, so that devices spread over all four.
        tree.cells("interrupt-map-mask", &[0x1800, 0, 0, 7])?;
        let map: [_; 4] = [0, 1, 2, 3].map(|slot| {
            [0, 1, 2, 3].map(|pin| {
                let spi = layout::INTX_SPI + (slot + pin) % 4;
                [slot << 11, 0, 0, pin + 1, GIC, 0, 0, SPI, spi, LEVEL_HIGH]
            })
        });
        tree.cells("interrupt-map", map.as_flattened().as_flattened())
    })
}

fn server(tree: &mut Writer, server: &Server) -> Result<(), WriteError> {
    node(tree, "isthmus-server", server.ring.start, |tree| {
        tree.string("compatible", "isthmus,ioreq-server")?;
        let size = server.ring.end - server.ring.start;
        tree.numbers("reg", &[server.ring.start, size])?;
        tree.u32("isthmus,server", server.id)?;
        tree.string("isthmus,name", &server.name)?;
        tree.string("isthmus,target", &server.target)?;
        let numbers = |(ipa, size, local): &(u64, u64, u64)| [*ipa, *size, *local];
        let memory = fallible::collect(server.memory.iter().map(numbers));
        let memory = memory.map_err(|_| WriteError::OutOfMemory)?;
        tree.numbers("isthmus,memory", memory.as_flattened())?;
        tree.u64("isthmus,doorbell", server.doorbell)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dt::Tree;

    const PLATFORM: Platform<'_> = Platform {
        memory: 0x1000_0000,
        vcpus: 18,
        host_bridge: false,
        cmdline: "console=ttyAMA0",
        initrd: Some(0x4400_0000..0x4400_1234),
        modules: &[],
        servers: &[],
    };

    #[test]
    fn a_domain_finds_what_it_has() {
        let blob = make(&PLATFORM).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        let memory: Vec<_> = tree.memory().map(Result::unwrap).collect();
        assert_eq!(memory.len(), 1);
        assert_eq!((memory[0].base, memory[0].size), (0x4000_0000, 0x1000_0000));
        assert_eq!(tree.cpus().count(), 18);
        let last = tree.find("/cpus/cpu@101").unwrap();
        assert_eq!(last.property("reg").unwrap().u64().unwrap(), 0x101);
        let chosen = tree.find("/chosen").unwrap();
        assert_eq!(
            chosen.property("linux,initrd-end").unwrap().u64().unwrap(),
            0x4400_1234
        );
        let (uart, _) = tree.stdout().unwrap().unwrap();
        assert!(uart.is_compatible("arm,pl011"));
        assert!(tree.compatible("pci-host-ecam-generic").next().is_none());
        assert!(tree.compatible("arm,gic-v3-its").next().is_none());
    }

    #[test]
    fn a_host_bridge_comes_with_an_its() {
        let blob = make(&Platform {
            host_bridge: true,
            ..PLATFORM
        })
        .unwrap();
        let tree = Tree::parse(&blob).unwrap();
        let bridge = tree.compatible("pci-host-ecam-generic").next().unwrap();
        let ecam = bridge.mmio(0).unwrap();
        assert_eq!((ecam.base, ecam.size), (0x40_1000_0000, 0x1000_0000));
        let map: Vec<u32> = {
            let mut cells = bridge.property("msi-map").unwrap().cells().unwrap();
            (0..4)
                .map(|_| u32::try_from(cells.number(1)).unwrap())
                .collect()
        };
        let its = tree.by_phandle(map[1]).unwrap();
        assert!(its.is_compatible("arm,gic-v3-its"));
        assert_eq!([map[0], map[2], map[3]], [0, 0, 0x1_0000]);
        // The physical side's decoder reads it, and agrees with what the kernel drives.
        let mask = bridge.property("interrupt-map-mask").unwrap().value;
        let widths = |phandle| {
            let gic = tree.by_phandle(phandle)?;
            let cells = |name| gic.property(name)?.u32().ok();
            let (address, interrupt) = (cells("#address-cells")?, cells("#interrupt-cells")?);
            Some(pci::Widths { address, interrupt })
        };
        let map = bridge.property("interrupt-map").unwrap().value;
        let map = pci::InterruptMap::decode(map, Some(mask), widths).unwrap();
        for rid in 0..=0xff {
            let sbdf = vpci::Sbdf::from_rid(0, rid);
            for register in 1..=4 {
                let pin = pci::Pin::decode(register).unwrap();
                let wire = map.translate(sbdf, pin).unwrap();
                let spi = crate::intx::spi([sbdf.device()], pin);
                assert_eq!(wire.specifier, [SPI, spi, LEVEL_HIGH], "{sbdf} {register}");
            }
        }
    }

    #[test]
    fn a_device_model_finds_its_servers_and_modules() {
        let servers = [Server {
            id: 5,
            name: "blk0".into(),
            target: "linux".into(),
            ring: 0x70_0000_0000..0x70_0000_3000,
            memory: [(0x4000_0000, 0x2000_0000, 0x72_0000_0000)].into(),
            doorbell: layout::DOORBELL,
        }
        .into()];
        let modules = [("disk", 0x71_0000_0000..0x71_0100_0000)];
        let platform = Platform {
            servers: &servers,
            modules: &modules,
            ..PLATFORM
        };
        let blob = make(&platform).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        let server = tree.compatible("isthmus,ioreq-server").next().unwrap();
        assert_eq!(server.property("isthmus,server").unwrap().u32().unwrap(), 5);
        assert_eq!(server.mmio(0).unwrap().size, 0x3000);
        assert_eq!(server.property("isthmus,memory").unwrap().value.len(), 24);
        let module = tree.compatible("isthmus,module").next().unwrap();
        assert_eq!(
            module.property("isthmus,name").unwrap().string().unwrap(),
            "disk"
        );
    }
}
