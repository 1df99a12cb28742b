//! One row for each kind of mistake in a system file: what to break, and what is said about it.

mod common;

use common::{Folder, SYSTEM};
use imager::{Folders, System};

/// Replaces a text of the sound system file, and the place and words that the tool answers with.
type Row = (&'static str, &'static str, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // TOML, keys and types.
    ("pcpus = 4",              "pcpus = ",                   "system.toml:3:9: string values must be quoted, expected literal string"),
    ("pcpus = 4",              "cpus = 4",                   "system.toml:3:1: unknown key `cpus`, expected one of `pcpus`, `memory`, `cpu`, `qemu`, `disk`, `sriov`"),
    ("pcpus = 4",              "",                           "system.toml:2:1: [machine] lacks `pcpus`; add it"),
    ("pcpus = 4",              "pcpus = \"4\"",              "system.toml:3:9: invalid type: string \"4\", expected a number, 0 or more"),
    ("pcpus = 4",              "pcpus = -4",                 "system.toml:3:9: invalid value: integer `-4`, expected a number, 0 or more"),
    ("[machine]",              "[mashine]",                  "system.toml:2:2: unknown key `mashine`, expected `machine` or `domain`"),
    ("memory = \"2G\"",        "memory = 2048",              "system.toml:4:10: invalid type: integer `2048`, expected a size in quotes, such as \"512M\""),
    ("memory = \"2G\"",        "memory = \"2 GB\"",          "system.toml:4:10: \"2 GB\" is not a size; write a number with K, M or G, such as \"512M\""),
    ("name = \"linux\"",       "name = \"linux\"\nname = \"x\"", "system.toml:13:1: the key is there already; leave one of the two"),
    ("name = \"linux\"",       "",                           "system.toml:11:1: [[domain]] lacks `name`; add it"),
    ("iommu = true",           "iommu = \"yes\"",            "system.toml:19:9: invalid type: string \"yes\", expected true or false"),
    ("cmdline = \"console=ttyAMA0\"", "cmdline = 1",        "system.toml:17:11: invalid type: integer `1`, expected text in quotes"),
    ("initrd = ",              "initd = ",                   "system.toml:16:1: unknown key `initd`, expected one of `name`, `memory`, `vcpus`, `kernel`, `firmware`, `initrd`, `cmdline`, `host_bridge`, `iommu`, `control`, `console`, `priority`, `affinity`, `modules`, `port`, `pci`, `server`"),
    ("affinity = [0, 1]",      "affinity = 0",               "system.toml:22:12: invalid type: integer `0`, expected a list in brackets"),
    ("slot = \"00:01.0\"",     "slot = \"00:1f\"",           "system.toml:25:8: \"00:1f\" is not a PCI function: not of the form 0000:00:1f.3 or 00:1f.3; write it as lspci does, such as \"00:01.0\""),
    ("slot = \"00:01.0\"",     "slot = \"00:20.0\"",         "system.toml:25:8: \"00:20.0\" is not a PCI function: the device is not a hexadecimal number from 0 to 1f; write it as lspci does, such as \"00:01.0\""),
    ("slot = \"00:01.0\"",     "slot = 1",                   "system.toml:25:8: invalid type: integer `1`, expected a PCI function in quotes, such as \"0000:00:01.0\""),
    ("slot = \"00:01.0\"",     "",                           "system.toml:24:1: [[domain.pci]] lacks `slot`; add it"),
    ("backend = \"vpci\"",     "",                           "system.toml:24:1: [[domain.pci]] lacks `backend`; add it"),
    ("memory = \"all\"",       "memory = \"some\"",          "system.toml:42:10: invalid value: string \"some\", expected \"all\", \"none\", or a list of ranges such as [\"0x40000000+16M\"]"),
    ("memory = \"all\"",       "memory = [\"0x40000000\"]",  "system.toml:42:11: \"0x40000000\" is not a range; write address and size, such as \"0x40000000+16M\""),
    ("memory = \"all\"",       "memory = true",              "system.toml:42:10: invalid type: boolean `true`, expected \"all\", \"none\", or a list of ranges such as [\"0x40000000+16M\"]"),
    ("target = \"linux\"",     "",                           "system.toml:39:1: [[domain.server]] lacks `target`; add it"),
    ("debian:vmlinuz",         "debian:kernel",              "system.toml:15:10: there is no debian:kernel; write debian:vmlinuz or debian:initrd"),
    ("debian:vmlinuz",         "uboot:rpi",                  "system.toml:15:10: there is no uboot:rpi; write uboot:"),
    ("debian:vmlinuz",         "fedora:vmlinuz",             "system.toml:15:10: there is no prefix fedora:; write debian:, uboot:, guest:, or a path without a colon"),
    ("debian:vmlinuz",         "",                           "system.toml:15:10: the path is empty; name a file"),
    ("guest:virtio-blk",       "guest:../virtio-blk",        "system.toml:36:10: \"../virtio-blk\" is not a file's name; write one without a folder"),
    ("kernel = \"debian:vmlinuz\"", "kernel = 1",            "system.toml:15:10: invalid type: integer `1`, expected a file in quotes: \"debian:vmlinuz\", \"debian:initrd\", \"uboot:\", \"guest:NAME\", or a path"),
    // The machine.
    ("pcpus = 4",              "pcpus = 0",                  "system.toml:3:9: pcpus: a machine has at least one; write 1 or more"),
    ("memory = \"2G\"",        "memory = \"32M\"",           "system.toml:4:10: memory: too little to boot in; write \"64M\" or more"),
    ("memory = \"2G\"",        "memory = \"512M\"",          "system.toml:4:10: memory: the domains want 544M together, but the machine has 512M; give them less, or the machine more"),
    ("file=@nvme0.img",        "file=@nvme1.img",            "system.toml:5:19: qemu: there is no disk \"nvme1.img\"; add [[machine.disk]] with that name"),
    ("name = \"nvme0.img\"",   "name = \"a/b\"",             "system.toml:8:8: disk: \"a/b\" is not a file's name; write letters, digits, '-', '_' and '.'\nsystem.toml:5:19: qemu: there is no disk \"nvme0.img\"; add [[machine.disk]] with that name"),
    ("[[domain]]",             "[[machine.disk]]\nname = \"nvme0.img\"\nsize = \"1M\"\n[[domain]]", "system.toml:12:8: disk: nvme0.img is there already; choose another name"),
    ("[[domain]]",             "[[machine.sriov]]\nhost = \"01:00.0\"\nvfs = 0\n[[domain]]", "system.toml:13:7: sriov 0000:01:00.0: vfs: write a number from 1 to 65535"),
    ("[[domain]]",             "[[machine.sriov]]\nhost = \"01:00.0\"\nvfs = 65536\n[[domain]]", "system.toml:13:7: sriov 0000:01:00.0: vfs: write a number from 1 to 65535"),
    ("[[domain]]",             "[[machine.sriov]]\nhost = \"01:00.0\"\n[[domain]]", "system.toml:11:1: [[machine.sriov]] lacks `vfs`; add it"),
    ("[[domain]]",             "[[machine.sriov]]\nvfs = 2\n[[domain]]", "system.toml:11:1: [[machine.sriov]] lacks `host`; add it"),
    ("[[domain]]",             "[[machine.sriov]]\nhost = \"igb\"\nvfs = 2\n[[domain]]", "system.toml:12:8: \"igb\" is not a PCI function: not of the form 0000:00:1f.3 or 00:1f.3; write it as lspci does, such as \"00:01.0\""),
    ("[[domain]]",             "[[machine.sriov]]\nhost = \"01:00.0\"\nvfs = 2\n[[machine.sriov]]\nhost = \"01:00.0\"\nvfs = 1\n[[domain]]", "system.toml:15:8: sriov 0000:01:00.0: host: the function is named already; name it once"),
    // Files.
    ("debian:vmlinuz",         "vmlinux",                    "system.toml:15:10: vmlinux: vmlinux: No such file or directory (os error 2); write a path that starts at the system file's folder"),
    ("debian:vmlinuz",         "elf",                        "system.toml:15:10: elf is an ELF file; make a raw binary of it with llvm-objcopy"),
    ("debian:vmlinuz",         "zboot",                      "system.toml:15:10: zboot is compressed for EFI; take out the Image in it"),
    ("debian:vmlinuz",         "gz",                         "system.toml:15:10: gz is compressed with gzip; unpack it"),
    ("debian:vmlinuz",         "uboot:",                     "system.toml:15:10: uboot:: artifacts/u-boot.bin: No such file or directory (os error 2); run scripts/setup to get it"),
    ("debian:initrd",          "guest:nothing",              "system.toml:16:10: guest:nothing: artifacts/guests/nothing: No such file or directory (os error 2); write one of guest:selftest, guest:virtio-blk"),
    ("debian:initrd",          ".",                          "system.toml:16:10: .: .: it is not a file; write a path that starts at the system file's folder"),
    ("debian:initrd",          "empty",                      "system.toml:16:10: module empty: file: the module is empty; name a file that has contents"),
    ("size = \"1M\" }]",       "}]",                         "system.toml:37:36: state/disk.img does not exist yet; write size = \"16M\" beside it to have it made"),
    ("file = \"@disk.img\", size", "file = \"empty\", size", "system.toml:37:36: the file has its own size; leave size out"),
    ("kernel = \"debian:vmlinuz\"", "",                      "system.toml:12:8: domain linux lacks kernel = \"FILE\", or firmware; add one"),
    ("kernel = \"debian:vmlinuz\"", "kernel = \"debian:vmlinuz\"\nfirmware = \"debian:vmlinuz\"", "system.toml:15:10: domain linux has both kernel and firmware; leave one"),
    ("priority = 1",           "modules = [{ name = \"disk\", file = \"debian:initrd\" }]", "system.toml:37:21: modules: disk is another file elsewhere; choose another name"),
    // What the manifest's check says, at its place.
    ("name = \"disk\"\nmemory", "name = \"linux\"\nmemory",  "system.toml:34:8: domain linux: name: the name is taken; choose another\nsystem.toml:41:10: domain linux: server blk0: target: a domain cannot model its own devices; name another"),
    ("name = \"disk\"\nmemory", "name = \"a b\"\nmemory",    "system.toml:34:8: domain a b: name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
    ("vcpus = 2",              "vcpus = 0",                  "system.toml:14:9: domain linux: vcpus: write a number from 1 to 123"),
    ("memory = \"512M\"",      "memory = \"511M\"",          "system.toml:13:10: domain linux: memory: 511M is not a multiple of 2M; write 512M"),
    ("guest:virtio-blk",       "image",                      "system.toml:35:10: domain disk: memory: kernel and initrd do not fit; write 42M or more"),
    ("memory = \"512M\"",      "memory = \"0\"",             "system.toml:13:10: domain linux: memory: what is loaded does not fit; write 4M or more"),
    ("priority = 1",           "priority = 16",              "system.toml:21:12: domain linux: priority: write a number from 0 to 15"),
    ("affinity = [0, 1]",      "affinity = []",              "system.toml:22:12: domain linux: affinity: no pCPU is left to run on; name at least one, or leave the field out for all"),
    ("affinity = [0, 1]",      "affinity = [0, 4]",          "system.toml:22:12: domain linux: affinity: there is no pCPU 4; write numbers below 4"),
    ("affinity = [0, 1]",      "affinity = [0, 0]",          "system.toml:22:12: domain linux: affinity: pCPU 0 is named twice; name it once"),
    ("cmdline = \"console=ttyAMA0\"", "cmdline = \"a\\u0000b\"", "system.toml:17:11: domain linux: cmdline: 3 bytes, or one of them a NUL; write at most 2047, without"),
    ("guest:virtio-blk\"",     "guest:virtio-blk\"\nconsole = true", "system.toml:37:11: domain disk: console: domain linux has the console already; leave one of the two"),
    ("host_bridge = true",     "",                           "system.toml:25:8: domain linux: function 0000:00:01.0: slot: the domain has no host bridge to put a function below; write host_bridge = true\nsystem.toml:30:8: domain linux: function 0000:00:02.0: slot: the domain has no host bridge to put a function below; write host_bridge = true\nsystem.toml:41:10: domain disk: server blk0: target: domain linux has no host bridge to put functions below; write host_bridge = true there"),
    ("iommu = true",           "",                           "system.toml:26:8: domain linux: function 0000:00:01.0: host: assigning a device to a domain without iommu is refused; write iommu = true"),
    ("slot = \"00:01.0\"",     "slot = \"00:00.0\"",         "system.toml:25:8: domain linux: function 0000:00:00.0: slot: device 0 is the host bridge; choose a slot from 00:01.0 up"),
    ("slot = \"00:01.0\"",     "slot = \"00:02.0\"",         "system.toml:30:8: domain linux: function 0000:00:02.0: slot: another function of the domain is there; choose a free slot"),
    ("slot = \"00:01.0\"",     "slot = \"01:00.0\"",         "system.toml:25:8: domain linux: function 0000:01:00.0: slot: no bridge of the domain leads there; choose a slot on bus 00, or add [[domain.port]] with that bus"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\n[[domain.pci]]", "system.toml:24:1: [[domain.port]] lacks `bus`; add it"),
    ("[[domain.pci]]",         "[[domain.port]]\nbus = 1\n[[domain.pci]]", "system.toml:24:1: [[domain.port]] lacks `slot`; add it"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 1\nhotplug = true\n[[domain.pci]]", "system.toml:27:1: unknown key `hotplug`, expected one of `slot`, `bus`, `ari`"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\nbus = \"01\"\n[[domain.pci]]", "system.toml:26:7: invalid type: string \"01\", expected a number, 0 or more"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 0\n[[domain.pci]]", "system.toml:26:7: domain linux: port 0000:00:1c.0: bus: the bus below a port has a number of its own; write one from 1 to 255"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 256\n[[domain.pci]]", "system.toml:26:7: domain linux: port 0000:00:1c.0: bus: the bus below a port has a number of its own; write one from 1 to 255"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"01:00.0\"\nbus = 1\n[[domain.pci]]", "system.toml:25:8: domain linux: port 0000:01:00.0: slot: a root port belongs on the root bus; choose a slot on bus 00"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:00.1\"\nbus = 1\n[[domain.pci]]", "system.toml:25:8: domain linux: port 0000:00:00.1: slot: device 0 is the host bridge; choose a slot from 00:01.0 up"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:01.0\"\nbus = 1\n[[domain.pci]]", "system.toml:28:8: domain linux: function 0000:00:01.0: slot: a port of the domain is there; choose a free slot"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 1\n[[domain.port]]\nslot = \"00:1c.0\"\nbus = 2\n[[domain.pci]]", "system.toml:28:8: domain linux: port 0000:00:1c.0: slot: a port of the domain is there; choose a free slot"),
    ("[[domain.pci]]",         "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 1\n[[domain.port]]\nslot = \"00:1c.1\"\nbus = 1\n[[domain.pci]]", "system.toml:29:7: domain linux: port 0000:00:1c.1: bus: the port at 0000:00:1c.0 has that bus already; choose another number"),
    ("[[domain.pci]]\nslot = \"00:01.0\"", "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 1\n[[domain.pci]]\nslot = \"01:01.0\"", "system.toml:28:8: domain linux: function 0000:01:01.0: slot: a port leads to device 0 only; choose a slot of device 00, or write ari = true for the port"),
    ("[[domain.pci]]\nslot = \"00:01.0\"", "[[domain.port]]\nslot = \"00:1c.0\"\nbus = 1\n[[domain.pci]]\nslot = \"02:00.0\"", "system.toml:28:8: domain linux: function 0000:02:00.0: slot: no bridge of the domain leads there; choose a slot on bus 00, or add [[domain.port]] with that bus"),
    ("host = \"0000:00:01.0\"", "",                          "system.toml:25:8: domain linux: function 0000:00:01.0: host: vpci needs a physical function; write host = \"0000:BB:DD.F\", or name a server as backend"),
    ("backend = \"blk0\"",     "backend = \"blk1\"",         "system.toml:31:11: domain linux: function 0000:00:02.0: backend: no domain has a server blk1; write \"vpci\", or give the device model's domain a server of that name"),
    ("backend = \"blk0\"",     "backend = \"blk0\"\nhost = \"0000:00:02.0\"", "system.toml:32:8: domain linux: function 0000:00:02.0: host: a server emulates the function, so it has no physical one; leave host out, or write backend = \"vpci\""),
    ("backend = \"blk0\"",     "backend = \"blk0\"\nvendor_capabilities = true", "system.toml:32:23: domain linux: function 0000:00:02.0: vendor_capabilities: only physical functions need it; leave it out"),
    ("backend = \"blk0\"",     "backend = \"blk0\"\nallow_no_reset = true", "system.toml:32:18: domain linux: function 0000:00:02.0: allow_no_reset: only physical functions need it; leave it out"),
    ("backend = \"blk0\"",     "backend = \"blk0\"\nmax_faults = 5", "system.toml:32:14: domain linux: function 0000:00:02.0: max_faults: only physical functions have DMA that can fault; leave it out"),
    ("backend = \"vpci\"",     "backend = \"vpci\"\nmax_faults = 100001", "system.toml:28:14: domain linux: function 0000:00:01.0: max_faults: write a number from 0 to 100000"),
    ("backend = \"vpci\"",     "backend = \"vpci\"\nmax_interrupts = 0", "system.toml:28:18: domain linux: function 0000:00:01.0: max_interrupts: write a number from 1000 to 1000000"),
    ("backend = \"blk0\"",     "backend = \"vpci\"\nhost = \"0000:00:01.0\"", "system.toml:32:8: domain linux: function 0000:00:02.0: host: domain linux has it already, at 0000:00:01.0; give it to one of the two"),
    ("target = \"linux\"",     "target = \"disk\"",          "system.toml:31:11: domain linux: function 0000:00:02.0: backend: server blk0 serves domain disk; name a server whose target is this domain\nsystem.toml:41:10: domain disk: server blk0: target: a domain cannot model its own devices; name another"),
    ("target = \"linux\"",     "target = \"debian\"",        "system.toml:31:11: domain linux: function 0000:00:02.0: backend: server blk0 serves domain debian; name a server whose target is this domain\nsystem.toml:41:10: domain disk: server blk0: target: there is no domain debian; name the domain whose devices it models"),
    ("name = \"blk0\"",        "name = \"vpci\"",            "system.toml:31:11: domain linux: function 0000:00:02.0: backend: no domain has a server blk0; write \"vpci\", or give the device model's domain a server of that name\nsystem.toml:40:8: domain disk: server vpci: name: vpci stands for the hypervisor; choose another name"),
    ("memory = \"all\"",       "memory = []",                "system.toml:42:10: domain disk: server blk0: memory: the list is empty; write \"none\""),
    ("memory = \"all\"",       "memory = [\"0x40000000+1K\"]", "system.toml:42:10: domain disk: server blk0: memory: 0x40000000+0x400 is not one page of 4K or more; write multiples of 0x1000"),
    ("memory = \"all\"",       "memory = [\"0x5ffff000+8K\"]", "system.toml:42:10: domain disk: server blk0: memory: 0x5ffff000+0x2000 is not in the target's memory; stay in 0x40000000..0x60000000"),
    ("memory = \"all\"",       "memory = [\"0x40000000+8K\", \"0x40001000+8K\"]", "system.toml:42:10: domain disk: server blk0: memory: 0x40001000+0x2000 overlaps 0x40000000+0x2000; make them one"),
    ("memory = \"all\"",       "memory = \"all\"\n[[domain.server]]\nname = \"blk0\"\ntarget = \"linux\"\nmemory = \"none\"", "system.toml:44:8: domain disk: server blk0: name: the name is taken; choose another"),
];

#[test]
fn a_mistake_is_refused_with_its_place_and_mend() {
    let folder = Folder::new("mistakes");
    folder.fill();
    let mut failed = vec![];
    for (from, to, expected) in ROWS {
        assert!(SYSTEM.contains(from), "{from:?} is not in the sound system");
        let text = SYSTEM.replacen(from, to, 1);
        let got = said_about(&folder, text);
        if got != Some((*expected).into()) {
            failed.push(format!(
                "{from:?} -> {to:?}\n  got  {got:?}\n  want {expected:?}"
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Returns what the tool says about a system file, without the folder's name.
fn said_about(folder: &Folder, text: String) -> Option<String> {
    let folders = Folders {
        artifacts: Some(folder.path("artifacts")),
        state: Some(folder.path("state")),
    };
    let system = System::parse(&folder.path("system.toml"), text);
    let checked = system.and_then(|system| system.plan(&folders)?.check(&system));
    let report = checked.err()?.to_string();
    let prefix = format!(
        "{}/",
        folder.path("").display().to_string().trim_end_matches('/')
    );
    Some(report.replace(&prefix, ""))
}
