//! Manifests written and read back, and manifests that nobody's tool wrote.

use dt::{Tree, Writer};
use manifest::{
    Backend, Domain, Function, Grant, GuestRange, Machine, Manifest, Module, Payload, Port, Server,
    Sriov,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

fn name() -> impl Strategy<Value = String> {
    vec(
        prop::sample::select(vec!['a', 'b', '0', '-', '.', '_', ' ', '\u{e9}']),
        0..6,
    )
    .prop_map(String::from_iter)
}

fn module() -> impl Strategy<Value = Module> {
    (name(), any::<u32>(), any::<u32>()).prop_map(|(name, offset, size)| Module {
        name,
        offset: u64::from(offset) << 12,
        size: size.into(),
    })
}

fn function() -> impl Strategy<Value = Function> {
    let backend = prop_oneof![
        Just(Backend::Vpci),
        name()
            .prop_filter("means vPCI", |name| name != "vpci")
            .prop_map(Backend::Server)
    ];
    let parts = (
        any::<u32>(),
        option::of(any::<u32>()),
        backend,
        any::<bool>(),
        any::<bool>(),
        option::of(any::<u32>()),
        option::of(any::<u32>()),
    );
    parts.prop_map(
        |(slot, host, backend, allow_no_reset, vendor_capabilities, max_faults, max_interrupts)| {
            Function {
                slot: slot.into(),
                host: host.map(Into::into),
                backend,
                allow_no_reset,
                vendor_capabilities,
                max_faults,
                max_interrupts,
            }
        },
    )
}

fn port() -> impl Strategy<Value = Port> {
    (any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|(slot, bus, ari)| Port {
        slot: slot.into(),
        bus,
        ari,
    })
}

fn server() -> impl Strategy<Value = Server> {
    let range = (any::<u64>(), any::<u64>()).prop_map(|(base, size)| GuestRange { base, size });
    let memory = prop_oneof![
        Just(Grant::All),
        Just(Grant::None),
        vec(range, 0..3).prop_map(Grant::Ranges)
    ];
    (name(), name(), memory).prop_map(|(name, target, memory)| Server {
        name,
        target,
        memory,
    })
}

fn domain() -> impl Strategy<Value = Domain> {
    let payload = prop_oneof![
        name().prop_map(Payload::Kernel),
        name().prop_map(Payload::Firmware)
    ];
    let texts = (
        name(),
        payload,
        option::of(name()),
        name(),
        vec(name(), 0..3),
    );
    let numbers = (
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        option::of(vec(any::<u32>(), 0..4)),
    );
    let lists = (
        vec(port(), 0..3),
        vec(function(), 0..4),
        vec(server(), 0..3),
    );
    (texts, numbers, any::<[bool; 4]>(), lists).prop_map(|(texts, numbers, flags, lists)| {
        let (name, payload, initrd, cmdline, modules) = texts;
        let (memory, vcpus, priority, affinity) = numbers;
        let [host_bridge, iommu, control, console] = flags;
        let (ports, functions, servers) = lists;
        Domain {
            name,
            memory,
            vcpus,
            payload,
            initrd,
            cmdline,
            host_bridge,
            iommu,
            control,
            console,
            priority,
            affinity,
            modules,
            ports,
            functions,
            servers,
        }
    })
}

fn sriov() -> impl Strategy<Value = Sriov> {
    (any::<u32>(), any::<u32>()).prop_map(|(host, vfs)| Sriov {
        host: host.into(),
        vfs,
    })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let lists = (vec(module(), 0..4), vec(sriov(), 0..3), vec(domain(), 0..4));
    lists.prop_map(|(modules, sriov, domains)| Manifest {
        modules,
        sriov,
        domains,
    })
}

/// Returns whether the bytes are a tree that is a manifest, after checking that manifest.
fn is_manifest(bytes: &[u8]) -> bool {
    let Ok(tree) = Tree::parse(bytes) else {
        return false;
    };
    let manifest = match Manifest::read(&tree) {
        Ok(manifest) => manifest,
        Err(error) => return error.to_string().is_empty(),
    };
    let machine = Machine {
        pcpus: Some(4),
        memory: Some(1 << 30),
    };
    manifest.check_all(machine, &mut |error| assert!(!error.to_string().is_empty()));
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(manifest in manifest()) {
        let bytes = manifest.write().unwrap();
        let tree = Tree::parse(&bytes).unwrap();
        let again = Manifest::read(&tree);
        prop_assert_eq!(again.unwrap(), manifest);
    }

    #[test]
    fn a_mutated_manifest_is_taken_or_refused(
        manifest in manifest(),
        edits in vec((any::<Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = manifest.write().unwrap();
        for (at, byte) in edits {
            // The header has its own tests.
            let at = 40 + at.index(bytes.len() - 40);
            bytes[at] = byte;
        }
        is_manifest(&bytes);
    }
}

/// Writes a manifest by hand, with `extra` in the domain's node.
fn by_hand(extra: impl Fn(&mut Writer) -> Result<(), dt::WriteError>) -> Vec<u8> {
    let write = || {
        let mut tree = Writer::new(&[])?;
        tree.begin("")?;
        tree.string("compatible", "isthmus,manifest-1")?;
        tree.begin("domains")?;
        tree.begin("domain@0")?;
        tree.string("isthmus,name", "a")?;
        tree.u64("memory-size", 0x20_0000)?;
        tree.u32("vcpus", 1)?;
        extra(&mut tree)?;
        tree.end()?;
        tree.end()?;
        tree.end()?;
        tree.finish()
    };
    write().unwrap()
}

#[test]
#[rustfmt::skip]
fn what_the_binding_does_not_know_is_refused_with_its_place() {
    type Extra = fn(&mut Writer) -> Result<(), dt::WriteError>;
    let cases: &[(Extra, &str)] = &[
        (|_| Ok(()),                                                         "/domains/domain@0: kernel is missing"),
        (|t| t.u32("kernel", 1),                                             "/domains/domain@0: kernel is not text"),
        (|t| { t.string("kernel", "k")?; t.string("firmware", "f") },        "/domains/domain@0: kernel and firmware exclude each other"),
        (|t| { t.string("kernel", "k")?; t.string("inird", "f") },           "/domains/domain@0: there is no property inird"),
        (|t| { t.string("kernel", "k")?; t.u32("iommu", 1) },                "/domains/domain@0: iommu has a wrong length of 4 bytes"),
        (|t| { t.string("kernel", "k")?; t.u64("priority", 1) },             "/domains/domain@0: priority has a wrong length of 8 bytes"),
        (|t| { t.string("kernel", "k")?; t.begin("bridge@0")?; t.end() },      "/domains/domain@0/bridge@0: there is no such node"),
        (|t| { t.string("kernel", "k")?; t.begin("port@0")?; t.u32("slot", 0xe0)?; t.end() }, "/domains/domain@0/port@0: bus is missing"),
        (|t| { t.string("kernel", "k")?; t.begin("port@0")?; t.u32("slot", 0xe0)?; t.u32("bus", 1)?; t.flag("hotplug")?; t.end() }, "/domains/domain@0/port@0: there is no property hotplug"),
        (|t| { t.string("kernel", "k")?; t.begin("function@0")?; t.end() },  "/domains/domain@0/function@0: backend is missing"),
        (|t| { t.string("kernel", "k")?; t.begin("server@0")?; t.string("memory", "some")?; t.end() }, "/domains/domain@0/server@0: memory holds a word that has no meaning here"),
        (|t| { t.string("kernel", "k")?; t.begin("server@0")?; t.cells("memory-ranges", &[1, 2, 3])?; t.end() }, "/domains/domain@0/server@0: memory-ranges has a wrong length of 12 bytes"),
        (|t| { t.string("kernel", "k")?; t.begin("server@0")?; t.begin("x")?; t.end()?; t.end() }, "/domains/domain@0/server@0/x: there is no such node"),
    ];
    for (extra, expected) in cases {
        let bytes = by_hand(extra);
        let tree = Tree::parse(&bytes).unwrap();
        let error = Manifest::read(&tree).unwrap_err().to_string();
        assert_eq!(error, *expected);
    }
    assert!(is_manifest(&by_hand(|t| t.string("kernel", "k"))));
}

#[test]
#[rustfmt::skip]
fn virtual_functions_have_a_host_and_a_number() {
    type Extra = fn(&mut Writer) -> Result<(), dt::WriteError>;
    let cases: &[(Extra, &str)] = &[
        (|t| t.begin("function@0").and_then(|()| t.u32("vfs", 2)),   "/sriov/function@0: host is missing"),
        (|t| t.begin("function@0").and_then(|()| t.u32("host", 2)),  "/sriov/function@0: vfs is missing"),
        (|t| t.begin("function@0").and_then(|()| t.flag("vfs")),     "/sriov/function@0: host is missing"),
        (|t| t.begin("function@0").and_then(|()| t.u32("offset", 2)), "/sriov/function@0: there is no property offset"),
        (|t| t.begin("port@0"),                                      "/sriov/port@0: there is no such node"),
    ];
    for (extra, expected) in cases {
        let write = || {
            let mut tree = Writer::new(&[])?;
            tree.begin("")?;
            tree.string("compatible", "isthmus,manifest-1")?;
            tree.begin("sriov")?;
            extra(&mut tree)?;
            tree.end()?;
            tree.end()?;
            tree.end()?;
            tree.finish()
        };
        let bytes = write().unwrap();
        let tree = Tree::parse(&bytes).unwrap();
        let error = Manifest::read(&tree).unwrap_err().to_string();
        assert_eq!(error, *expected);
    }
}

#[test]
fn another_tree_is_no_manifest() {
    let mut tree = Writer::new(&[]).unwrap();
    tree.begin("").unwrap();
    tree.string("compatible", "linux,dummy-virt").unwrap();
    tree.end().unwrap();
    let bytes = tree.finish().unwrap();
    let tree = Tree::parse(&bytes).unwrap();
    let error = Manifest::read(&tree).unwrap_err().to_string();
    assert_eq!(error, "/: compatible is not \"isthmus,manifest-1\"");
}
