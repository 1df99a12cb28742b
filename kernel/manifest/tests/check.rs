//! One row for each way in which a manifest can be impossible.

use manifest::{
    Backend, Domain, Function, Grant, GuestRange, Machine, Manifest, Module, Payload, Port, Server,
    Sriov,
};
use vpci::Sbdf;

const MIB: u64 = 1 << 20;

fn module(name: &str, offset: u64, size: u64) -> Module {
    Module {
        name: name.into(),
        offset,
        size,
    }
}

fn domain(name: &str, kernel: &str) -> Domain {
    Domain {
        name: name.into(),
        memory: 64 * MIB,
        vcpus: 1,
        payload: Payload::Kernel(kernel.into()),
        initrd: None,
        cmdline: String::new(),
        host_bridge: false,
        iommu: false,
        control: false,
        console: false,
        priority: manifest::PRIORITY_DEFAULT,
        affinity: None,
        modules: vec![],
        ports: vec![],
        functions: vec![],
        servers: vec![],
    }
}

fn sbdf(name: &str) -> Sbdf {
    name.parse().unwrap()
}

fn passthrough(slot: &str, host: &str) -> Function {
    Function {
        slot: sbdf(slot),
        host: Some(sbdf(host)),
        backend: Backend::Vpci,
        allow_no_reset: false,
        vendor_capabilities: false,
        max_faults: None,
        max_interrupts: None,
    }
}

fn port(slot: &str, bus: u32, ari: bool) -> Port {
    Port {
        slot: sbdf(slot),
        bus,
        ari,
    }
}

fn range(base: u64, size: u64) -> GuestRange {
    GuestRange { base, size }
}

/// Returns a system that has a bit of everything and nothing wrong.
fn system() -> Manifest {
    let mut linux = domain("linux", "vmlinuz");
    linux.initrd = Some("initrd".into());
    linux.cmdline = "console=ttyAMA0".into();
    (linux.host_bridge, linux.iommu, linux.console) = (true, true, true);
    linux.affinity = Some(vec![0, 3]);
    linux.functions = vec![
        passthrough("00:01.0", "00:01.0"),
        Function {
            slot: sbdf("00:02.0"),
            host: None,
            backend: Backend::Server("blk0".into()),
            allow_no_reset: false,
            vendor_capabilities: false,
            max_faults: None,
            max_interrupts: None,
        },
    ];
    let mut disk = domain("disk", "virtio-blk");
    disk.modules = vec!["contents".into()];
    disk.control = true;
    disk.servers = vec![Server {
        name: "blk0".into(),
        target: "linux".into(),
        memory: Grant::All,
    }];
    Manifest {
        modules: vec![
            module("vmlinuz", 0x1000, 38 * MIB),
            module("initrd", 0x1000 + 38 * MIB, 6 * MIB + 1),
            module("virtio-blk", 48 * MIB, 0x123),
            module("contents", 64 * MIB, 16 * MIB),
        ],
        sriov: vec![Sriov {
            host: sbdf("01:00.0"),
            vfs: 2,
        }],
        domains: vec![linux, disk],
    }
}

const MACHINE: Machine = Machine {
    pcpus: Some(4),
    memory: Some(1 << 30),
};

fn errors(manifest: &Manifest) -> Vec<String> {
    let mut errors = vec![];
    manifest.check_all(MACHINE, &mut |error| errors.push(error.to_string()));
    errors
}

#[test]
fn a_sound_system_is_taken() {
    assert_eq!(errors(&system()), [""; 0]);
    assert_eq!(system().check(Machine::default()), Ok(()));
    let mut ranges = system();
    ranges.domains[1].servers[0].memory = Grant::Ranges(vec![
        range(0x4000_0000, 0x1000),
        range(0x4000_1000, 0x03ff_f000),
    ]);
    assert_eq!(errors(&ranges), [""; 0]);
    ranges.domains[1].servers[0].memory = Grant::None;
    assert_eq!(errors(&ranges), [""; 0]);
    let mut ports = system();
    ports.domains[0].ports = vec![port("00:1c.0", 1, false), port("00:1c.1", 255, true)];
    ports.domains[0].functions[0].slot = sbdf("01:00.7");
    ports.domains[0].functions[1].slot = sbdf("ff:1f.7");
    assert_eq!(errors(&ports), [""; 0]);
    let mut alias = system();
    alias.modules.push(module("same", 64 * MIB, 16 * MIB));
    assert_eq!(errors(&alias), [""; 0]);
}

#[test]
#[rustfmt::skip]
fn an_impossible_system_is_refused_with_place_and_mend() {
    type Break = fn(&mut Manifest);
    let cases: &[(Break, &str)] = &[
        (|m| m.domains.clear(), "domain: there is no domain; describe at least one"),
        (|m| m.domains[0].memory = 1 << 30, "memory: the domains want 1088M together, but the machine has 1G; give them less, or the machine more"),

        (|m| m.modules[3].name.push('\n'), "module contents\n: name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
        (|m| m.modules[3].name = "initrd".into(), "module initrd: name: the name is taken; choose another"),
        (|m| m.modules[3].size = 0, "module contents: file: the module is empty; name a file that has contents"),
        (|m| m.modules[3].offset += 1, "module contents: file: the module's place in the image is not a page boundary, or past the end; pack the image again"),
        (|m| m.modules[3].size = u64::MAX, "module contents: file: the module's place in the image is not a page boundary, or past the end; pack the image again"),
        (|m| m.modules[3].offset = MIB, "module contents: file: the module overlaps module vmlinuz; pack the image again"),

        (|m| m.domains[1].name = "a b".into(), "domain a b: name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
        (|m| m.domains[1].name = "".into(), "domain : name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
        (|m| m.domains[1].name = "-a".into(), "domain -a: name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
        (|m| m.domains[1].name = "a".repeat(32), "domain aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
        (|m| m.domains[1].name = "linux".into(), "domain linux: name: the name is taken; choose another"),
        (|m| m.domains[1].vcpus = 0, "domain disk: vcpus: write a number from 1 to 123"),
        (|m| m.domains[1].vcpus = 124, "domain disk: vcpus: write a number from 1 to 123"),
        (|m| m.domains[1].memory = 3 * MIB, "domain disk: memory: 3M is not a multiple of 2M; write 4M"),
        (|m| m.domains[1].memory = 0, "domain disk: memory: what is loaded does not fit; write 4M or more"),
        (|m| m.domains[0].memory = 46 * MIB, "domain linux: memory: what is loaded does not fit; write 48M or more"),
        (|m| m.domains[0].cmdline = "x".repeat(2048), "domain linux: cmdline: 2048 bytes, or one of them a NUL; write at most 2047, without"),
        (|m| m.domains[0].cmdline = "a\0".into(), "domain linux: cmdline: 2 bytes, or one of them a NUL; write at most 2047, without"),
        (|m| m.domains[0].priority = 16, "domain linux: priority: write a number from 0 to 15"),
        (|m| m.domains[0].affinity = Some(vec![]), "domain linux: affinity: no pCPU is left to run on; name at least one, or leave the field out for all"),
        (|m| m.domains[0].affinity = Some(vec![1, 1]), "domain linux: affinity: pCPU 1 is named twice; name it once"),
        (|m| m.domains[0].affinity = Some(vec![4]), "domain linux: affinity: there is no pCPU 4; write numbers below 4"),
        (|m| m.domains[0].control = true, "domain disk: control: domain linux is the control domain already; leave one of the two"),
        (|m| m.domains[1].console = true, "domain disk: console: domain linux has the console already; leave one of the two"),
        (|m| m.sriov[0].vfs = 0, "sriov 0000:01:00.0: vfs: write a number from 1 to 65535"),
        (|m| m.sriov[0].vfs = 0x1_0000, "sriov 0000:01:00.0: vfs: write a number from 1 to 65535"),
        (|m| { let s = m.sriov[0]; m.sriov.push(s) }, "sriov 0000:01:00.0: host: the function is named already; name it once"),
        (|m| m.domains[0].payload = Payload::Kernel("no".into()), "domain linux: kernel: there is no module no; name one that is in the image"),
        (|m| m.domains[0].payload = Payload::Firmware("no".into()), "domain linux: firmware: there is no module no; name one that is in the image"),
        (|m| m.domains[0].initrd = Some("no".into()), "domain linux: initrd: there is no module no; name one that is in the image"),
        (|m| { m.modules[3].size = 65 * MIB; m.domains[1].payload = Payload::Firmware("contents".into()) }, "domain disk: firmware: 65M are more than its flash bank has; write a file of 64M or less"),
        (|m| m.domains[1].modules = vec!["no".into()], "domain disk: modules: there is no module no; name one that is in the image"),
        (|m| m.domains[1].modules.push("contents".into()), "domain disk: modules: module contents is granted twice; grant it once"),
        (|m| m.modules[3].size = 5 << 30, "domain disk: modules: the modules take 5G, and there is room for 4G; grant fewer or smaller ones"),

        (|m| m.domains[0].functions[0].slot = sbdf("00:00.0"), "domain linux: function 0000:00:00.0: slot: device 0 is the host bridge; choose a slot from 00:01.0 up"),
        (|m| m.domains[0].functions[0].slot = sbdf("01:01.0"), "domain linux: function 0000:01:01.0: slot: no bridge of the domain leads there; choose a slot on bus 00, or add [[domain.port]] with that bus"),
        (|m| m.domains[0].functions[0].slot = sbdf("1:00:01.0"), "domain linux: function 0001:00:01.0: slot: no bridge of the domain leads there; choose a slot on bus 00, or add [[domain.port]] with that bus"),
        (|m| { m.domains[0].ports.push(port("00:1c.0", 1, true)); m.domains[0].functions[0].slot = sbdf("1:01:00.0") }, "domain linux: function 0001:01:00.0: slot: no bridge of the domain leads there; choose a slot on bus 00, or add [[domain.port]] with that bus"),
        (|m| { m.domains[0].ports.push(port("00:1c.0", 1, false)); m.domains[0].functions[0].slot = sbdf("01:01.0") }, "domain linux: function 0000:01:01.0: slot: a port leads to device 0 only; choose a slot of device 00, or write ari = true for the port"),
        (|m| m.domains[0].ports.push(port("00:02.0", 1, true)), "domain linux: function 0000:00:02.0: slot: a port of the domain is there; choose a free slot"),
        (|m| m.domains[0].ports = vec![port("00:1c.0", 1, true), port("00:1c.0", 2, true)], "domain linux: port 0000:00:1c.0: slot: a port of the domain is there; choose a free slot"),
        (|m| m.domains[0].ports = vec![port("00:1c.0", 7, true), port("00:1c.1", 7, true)], "domain linux: port 0000:00:1c.1: bus: the port at 0000:00:1c.0 has that bus already; choose another number"),
        (|m| m.domains[0].ports.push(port("00:1c.0", 0, true)), "domain linux: port 0000:00:1c.0: bus: the bus below a port has a number of its own; write one from 1 to 255"),
        (|m| m.domains[0].ports.push(port("00:1c.0", 256, true)), "domain linux: port 0000:00:1c.0: bus: the bus below a port has a number of its own; write one from 1 to 255"),
        (|m| m.domains[0].ports.push(port("00:00.1", 1, true)), "domain linux: port 0000:00:00.1: slot: device 0 is the host bridge; choose a slot from 00:01.0 up"),
        (|m| m.domains[0].ports.push(port("01:01.0", 1, true)), "domain linux: port 0000:01:01.0: slot: a root port belongs on the root bus; choose a slot on bus 00"),
        (|m| m.domains[0].ports.push(port("1:00:01.0", 1, true)), "domain linux: port 0001:00:01.0: slot: a root port belongs on the root bus; choose a slot on bus 00"),
        (|m| m.domains[1].ports.push(port("00:1c.0", 1, true)), "domain disk: port 0000:00:1c.0: slot: the domain has no host bridge to put a function below; write host_bridge = true"),
        (|m| m.domains[0].functions[0].slot = sbdf("00:02.0"), "domain linux: function 0000:00:02.0: slot: another function of the domain is there; choose a free slot"),
        (|m| m.domains[0].iommu = false, "domain linux: function 0000:00:01.0: host: assigning a device to a domain without iommu is refused; write iommu = true"),
        (|m| m.domains[0].functions.push(passthrough("00:03.0", "00:01.0")), "domain linux: function 0000:00:03.0: host: domain linux has it already, at 0000:00:01.0; give it to one of the two"),
        (|m| m.domains[0].functions[0].host = None, "domain linux: function 0000:00:01.0: host: vpci needs a physical function; write host = \"0000:BB:DD.F\", or name a server as backend"),
        (|m| m.domains[0].functions[1].host = Some(sbdf("00:02.0")), "domain linux: function 0000:00:02.0: host: a server emulates the function, so it has no physical one; leave host out, or write backend = \"vpci\""),
        (|m| m.domains[0].functions[1].vendor_capabilities = true, "domain linux: function 0000:00:02.0: vendor_capabilities: only physical functions need it; leave it out"),
        (|m| m.domains[0].functions[1].allow_no_reset = true, "domain linux: function 0000:00:02.0: allow_no_reset: only physical functions need it; leave it out"),
        (|m| m.domains[0].functions[1].max_faults = Some(5), "domain linux: function 0000:00:02.0: max_faults: only physical functions have DMA that can fault; leave it out"),
        (|m| m.domains[0].functions[0].max_faults = Some(100_001), "domain linux: function 0000:00:01.0: max_faults: write a number from 0 to 100000"),
        (|m| m.domains[0].functions[0].max_interrupts = Some(999), "domain linux: function 0000:00:01.0: max_interrupts: write a number from 1000 to 1000000"),
        (|m| m.domains[0].functions[0].max_interrupts = Some(1_000_001), "domain linux: function 0000:00:01.0: max_interrupts: write a number from 1000 to 1000000"),
        (|m| m.domains[0].functions[1].max_interrupts = Some(5_000), "domain linux: function 0000:00:02.0: max_interrupts: only physical functions need it; leave it out"),
        (|m| m.domains[0].functions[1].backend = Backend::Server("no".into()), "domain linux: function 0000:00:02.0: backend: no domain has a server no; write \"vpci\", or give the device model's domain a server of that name"),

        (|m| m.domains[1].servers[0].target = "no".into(), "domain disk: server blk0: target: there is no domain no; name the domain whose devices it models"),
        (|m| { m.domains[0].functions.clear(); m.domains[0].host_bridge = false; }, "domain disk: server blk0: target: domain linux has no host bridge to put functions below; write host_bridge = true there"),
        (|m| m.domains[1].servers[0].target = "disk".into(), "domain disk: server blk0: target: a domain cannot model its own devices; name another"),
        (|m| { let s = m.domains[1].servers[0].clone(); m.domains[1].servers.push(s) }, "domain disk: server blk0: name: the name is taken; choose another"),
        (|m| m.domains[1].servers[0].name = "vpci".into(), "domain disk: server vpci: name: vpci stands for the hypervisor; choose another name"),
        (|m| m.domains[1].servers[0].name = "b/k".into(), "domain disk: server b/k: name: not a name; write 1 to 31 letters, digits, '-', '_' and '.', a letter or digit first"),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![]), "domain disk: server blk0: memory: the list is empty; write \"none\""),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![range(0x4000_0800, 0x1000)]), "domain disk: server blk0: memory: 0x40000800+0x1000 is not one page of 4K or more; write multiples of 0x1000"),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![range(0x4000_0000, 0)]), "domain disk: server blk0: memory: 0x40000000+0x0 is not one page of 4K or more; write multiples of 0x1000"),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![range(0x3fff_f000, 0x2000)]), "domain disk: server blk0: memory: 0x3ffff000+0x2000 is not in the target's memory; stay in 0x40000000..0x44000000"),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![range(0x43ff_f000, 0x2000)]), "domain disk: server blk0: memory: 0x43fff000+0x2000 is not in the target's memory; stay in 0x40000000..0x44000000"),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![range(0x4000_0000, 0xffff_ffff_ffff_f000)]), "domain disk: server blk0: memory: 0x40000000+0xfffffffffffff000 is not in the target's memory; stay in 0x40000000..0x44000000"),
        (|m| m.domains[1].servers[0].memory = Grant::Ranges(vec![range(0x4000_0000, 0x2000), range(0x4000_1000, 0x1000)]), "domain disk: server blk0: memory: 0x40001000+0x1000 overlaps 0x40000000+0x2000; make them one"),
    ];
    for (change, expected) in cases {
        let mut manifest = system();
        change(&mut manifest);
        let errors = errors(&manifest);
        assert!(errors.iter().any(|error| error == expected), "not {expected:?} but {errors:#?}");
        let first = manifest.check(MACHINE).unwrap_err().to_string();
        assert_eq!(Some(&first), errors.first());
    }
}

#[test]
fn what_one_domain_has_another_cannot_have() {
    let mut manifest = system();
    let mut second = domain("second", "vmlinuz");
    (second.host_bridge, second.iommu) = (true, true);
    second.functions = vec![passthrough("00:05.0", "00:01.0")];
    second
        .functions
        .push(manifest.domains[0].functions[1].clone());
    manifest.domains.push(second);
    assert_eq!(
        errors(&manifest),
        [
            "domain second: function 0000:00:05.0: host: domain linux has it already, at \
             0000:00:01.0; give it to one of the two",
            "domain second: function 0000:00:02.0: backend: server blk0 serves domain linux; name \
             a server whose target is this domain",
        ]
    );
}

#[test]
fn a_domain_without_host_bridge_has_no_functions() {
    let mut manifest = system();
    manifest.domains[0].host_bridge = false;
    let expected = "slot: the domain has no host bridge to put a function below; write host_bridge \
                    = true";
    let errors = errors(&manifest);
    assert_eq!(errors.len(), 3);
    assert!(
        errors[..2].iter().all(|error| error.ends_with(expected)),
        "{errors:?}"
    );
    assert_eq!(
        errors[2],
        "domain disk: server blk0: target: domain linux has no host bridge to put functions below; \
         write host_bridge = true there"
    );
}

#[test]
fn memory_ends_below_the_ecam_window() {
    let mut manifest = system();
    manifest.domains[0].memory = 255 << 30;
    let taken = |m: &Manifest| m.check(Machine::default()).map_err(|e| e.to_string());
    // All of it does not fit a device model's window, though; half of it would.
    let expected = "domain disk: server: the memory of its targets takes 255G, and there is room \
                    for 56G; grant less";
    assert_eq!(taken(&manifest), Err(expected.into()));
    manifest.domains[1].servers[0].memory = Grant::None;
    assert_eq!(taken(&manifest), Ok(()));
    manifest.domains[0].memory += 2 * MIB;
    let expected = "domain linux: memory: 261122M reach into the ECAM window; write 255G or less";
    assert_eq!(taken(&manifest), Err(expected.into()));
}
