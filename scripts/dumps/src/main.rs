//! Takes dumps of the config space of QEMU's devices, which `vpci`'s tests put through its filter.
//!
//! ```text
//! dumps FOLDER [NAME...]         writes FOLDER/NAME.dump for each device, or for those named
//! ```
//!
//! No guest runs: QEMU stands still, and its test protocol (`-qtest`) reads and writes the ECAM window of
//! the `virt` machine. A dump is text:
//!
//! ```text
//! # -device nvme,serial=1
//! bar 0 memory64 0x4000
//! 000 00101b36 00100000 01080202 00000000
//! ```
//!
//! The first line says which device it is. A BAR has its number (or `rom`), its kind and its size. The rest
//! are dwords, by the byte offset of the first; lines of zeros are left out, and `conventional` says that
//! all bytes from 0x100 on read ones.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Config space of bus 0 on the `virt` machine.
const ECAM: u64 = 0x40_1000_0000;

/// Where a device is plugged in.
#[derive(Clone, Copy)]
enum Place {
    /// At 00:01.0.
    Root,
    /// At 01:00.0, below a root port.
    Port,
    /// The first virtual function of the device below a root port.
    VirtualFunction,
}

use Place::{Port, Root, VirtualFunction};

/// Name of the dump, where the device is, what it is, and what QEMU needs besides.
type Device = (&'static str, Place, &'static str, &'static [&'static str]);

/// A medium for storage devices, which nothing reads.
const DRIVE: &[&str] = &[
    "-drive",
    "if=none,id=d,driver=null-co,size=1M,read-zeroes=on",
];
const NONE: &[&str] = &[];

#[rustfmt::skip]
const DEVICES: &[Device] = &[
    ("ac97",            Root, "AC97,audiodev=a",                          &["-audiodev", "none,id=a"]),
    ("ahci",            Root, "ich9-ahci",                                NONE),
    ("ahci-port",       Port, "ich9-ahci",                                NONE),
    ("bochs-display",   Root, "bochs-display,romfile=",                   NONE),
    ("cxl-type3",       Port, "cxl-type3,volatile-memdev=m,id=c",         &["-object", "memory-backend-ram,id=m,size=256M"]),
    ("e1000",           Root, "e1000,romfile=",                           NONE),
    ("e1000e",          Root, "e1000e",                                   NONE),
    ("e1000e-port",     Port, "e1000e",                                   NONE),
    ("edu",             Root, "edu",                                      NONE),
    ("ehci",            Root, "usb-ehci",                                 NONE),
    ("i82559c",         Root, "i82559c,romfile=",                         NONE),
    ("igb",             Port, "igb",                                      NONE),
    ("igb-vf",          VirtualFunction, "igb",                           NONE),
    ("intel-hda",       Root, "intel-hda",                                NONE),
    ("ivshmem",         Root, "ivshmem-plain,memdev=m",                   &["-object", "memory-backend-ram,id=m,size=1M,share=on"]),
    ("lsi53c895a",      Root, "lsi53c895a",                               NONE),
    ("megasas-gen2",    Port, "megasas-gen2",                             NONE),
    ("mptsas1068",      Root, "mptsas1068",                               NONE),
    ("nvme",            Root, "nvme,serial=1,drive=d",                    DRIVE),
    ("nvme-port",       Port, "nvme,serial=1,drive=d",                    DRIVE),
    ("pci-serial",      Root, "pci-serial",                               NONE),
    ("pci-testdev",     Root, "pci-testdev",                              NONE),
    ("pvpanic",         Root, "pvpanic-pci",                              NONE),
    ("pvscsi",          Port, "pvscsi",                                   NONE),
    ("rocker",          Root, "rocker,name=r",                            NONE),
    ("rtl8139",         Root, "rtl8139,romfile=",                         NONE),
    ("sdhci",           Root, "sdhci-pci",                                NONE),
    ("tulip",           Root, "tulip",                                    NONE),
    ("ufs",             Root, "ufs",                                      NONE),
    ("virtio-blk",      Root, "virtio-blk-pci,drive=d,disable-legacy=on", DRIVE),
    ("virtio-gpu",      Port, "virtio-gpu-pci",                           NONE),
    ("virtio-net",      Port, "virtio-net-pci,disable-legacy=on",         NONE),
    ("virtio-net-ats",  Port, "virtio-net-pci,disable-legacy=on,ats=on,iommu_platform=on", NONE),
    ("virtio-rng",      Root, "virtio-rng-pci",                           NONE),
    ("vmxnet3",         Port, "vmxnet3",                                  NONE),
    ("xhci",            Root, "qemu-xhci",                                NONE),
    ("xhci-nec-port",   Port, "nec-usb-xhci",                             NONE),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(folder) = arguments.next() else {
        bail!("usage: dumps FOLDER [NAME...]");
    };
    let names: Vec<String> = arguments.collect();
    if let Some(unknown) = names
        .iter()
        .find(|name| !DEVICES.iter().any(|device| device.0 == **name))
    {
        bail!("no device {unknown}");
    }
    fs::create_dir_all(&folder)?;
    for device in DEVICES {
        if names.is_empty() || names.iter().any(|name| name == device.0) {
            let text = dump(device).with_context(|| device.0.to_owned())?;
            fs::write(Path::new(&folder).join(format!("{}.dump", device.0)), text)?;
        }
    }
    Ok(())
}

/// Dumps one device.
fn dump(device: &Device) -> Result<String> {
    let &(_, place, name, besides) = device;
    let mut machine = Machine::start(place, name, besides)?;
    let function = match place {
        Root => ECAM + 0x8000,
        Port => machine.open_port()?,
        VirtualFunction => {
            let physical = machine.open_port()?;
            machine.enable_virtual_functions(physical)?
        }
    };
    let mut text = format!("# -device {name}\n");
    if matches!(place, VirtualFunction) {
        text = format!("# virtual function 0 of -device {name}\n");
    } else {
        machine.describe_bars(function, &mut text)?;
    }
    let mut dwords = Vec::new();
    for offset in (0..0x1000).step_by(4) {
        dwords.push(machine.read(function + offset)?);
    }
    ensure!(
        dwords[0] != u32::MAX || matches!(place, VirtualFunction),
        "no function answers"
    );
    if dwords.iter().skip(0x40).all(|&dword| dword == u32::MAX) {
        text.push_str("conventional\n");
        dwords.truncate(0x40);
    }
    for (line, dwords) in dwords.chunks(4).enumerate() {
        if dwords.iter().any(|&dword| dword != 0) {
            write!(text, "{:03x}", line * 16)?;
            for dword in dwords {
                write!(text, " {dword:08x}")?;
            }
            text.push('\n');
        }
    }
    Ok(text)
}

/// A QEMU that stands still, and the two ends of its test protocol.
struct Machine {
    qemu: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Machine {
    fn start(place: Place, device: &str, besides: &[&str]) -> Result<Self> {
        let mut command = Command::new("qemu-system-aarch64");
        command.args([
            "-M",
            "virt,gic-version=3",
            "-m",
            "512M",
            "-S",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command
            .args(["-qtest", "stdio", "-qtest-log", "/dev/null"])
            .args(besides);
        let at = match place {
            Root => "addr=1",
            Port | VirtualFunction => {
                command.args(["-device", "pcie-root-port,id=above,addr=1"]);
                "bus=above"
            }
        };
        command.args(["-device", &format!("{device},{at}")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut qemu = command.spawn().context("qemu-system-aarch64")?;
        let (Some(to), Some(from)) = (qemu.stdin.take(), qemu.stdout.take()) else {
            bail!("QEMU has no pipes");
        };
        Ok(Self {
            qemu,
            to,
            from: BufReader::new(from),
        })
    }

    /// Sends a command and returns what follows `OK`.
    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.to, "{command}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        match line.trim().strip_prefix("OK") {
            Some(answer) => Ok(answer.trim().to_owned()),
            None => bail!("QEMU answered {line:?} to {command}"),
        }
    }

    fn read(&mut self, address: u64) -> Result<u32> {
        let answer = self.ask(&format!("readl {address:#x}"))?;
        let digits = answer.trim_start_matches("0x");
        Ok(u32::try_from(u64::from_str_radix(digits, 16)?)?)
    }

    fn write(&mut self, address: u64, value: u32) -> Result<()> {
        self.ask(&format!("writel {address:#x} {value:#x}"))
            .map(drop)
    }

    /// Gives the port at 00:01.0 bus 1, and returns where the function below it is.
    fn open_port(&mut self) -> Result<u64> {
        self.write(ECAM + 0x8000 + 0x18, 0x0001_0100)?;
        Ok(ECAM + 0x10_0000)
    }

    /// Turns the virtual functions of a physical one on, and returns where the first is.
    fn enable_virtual_functions(&mut self, physical: u64) -> Result<u64> {
        let mut at = 0x100;
        loop {
            let header = self.read(physical + at)?;
            if header & 0xffff == 0x10 {
                break;
            }
            at = u64::from(header >> 20);
            ensure!(at != 0, "no SR-IOV capability");
        }
        // NumVFs; then VF Enable and VF Memory Space Enable (PCI Express Base Specification, 9.3.3).
        self.write(physical + at + 0x10, 1)?;
        self.write(physical + at + 0x08, 0x9)?;
        let offset = self.read(physical + at + 0x14)? & 0xffff;
        Ok(physical + (u64::from(offset) << 12))
    }

    /// Sizes the BARs as software does, with decode off, and puts back what they held.
    fn describe_bars(&mut self, function: u64, text: &mut String) -> Result<()> {
        let mut number = 0;
        while number < 6 {
            let at = function + 0x10 + number * 4;
            let low = self.size(at, u32::MAX)?;
            let wide = low & 7 == 4;
            let high = if wide {
                self.size(at + 4, u32::MAX)?
            } else {
                u32::MAX
            };
            if low != 0 {
                let (kind, mask) = match low & 7 {
                    kind if kind & 1 != 0 => ("io", low & !3 | 0xffff_0000),
                    4 => ("memory64", low & !0xf),
                    _ => ("memory32", low & !0xf),
                };
                let size = (u64::from(high) << 32 | u64::from(mask)).wrapping_neg();
                let prefetchable = if low & 9 == 8 { " prefetchable" } else { "" };
                writeln!(text, "bar {number} {kind} {size:#x}{prefetchable}")?;
            }
            number += if wide { 2 } else { 1 };
        }
        // A ROM is not turned on.
        let rom = self.size(function + 0x30, !1)? & !0x7ff;
        if rom != 0 {
            writeln!(text, "bar rom memory32 {:#x}", rom.wrapping_neg())?;
        }
        Ok(())
    }

    fn size(&mut self, at: u64, ones: u32) -> Result<u32> {
        let before = self.read(at)?;
        self.write(at, ones)?;
        let mask = self.read(at)?;
        self.write(at, before)?;
        Ok(mask)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
