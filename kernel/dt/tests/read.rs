//! What is read of real and of made trees.

use dt::{Fault, Interrupt, Malformed, Region, Tree, Trigger, WriteError, Writer, extent};

const VIRT: &[u8] = include_bytes!("data/virt.dtb");

fn region(base: u64, size: u64) -> Region {
    Region { base, size }
}

#[test]
fn the_header_says_how_long_the_tree_is() {
    let mut padded = VIRT.to_vec();
    padded[4..8].copy_from_slice(&0x0010_0000u32.to_be_bytes());
    let extent = extent(&padded[..40]).unwrap();
    assert_eq!((extent.total, extent.used), (0x0010_0000, VIRT.len()));
    padded.resize(0x0010_0000, 0);
    assert_eq!(Tree::parse(&padded).unwrap().bytes().len(), VIRT.len());
    assert!(Tree::parse(&padded[..extent.used]).is_ok());
}

#[test]
fn memory_of_all_nodes_is_found() {
    let tree = Tree::parse(VIRT).unwrap();
    let memory: Vec<Region> = tree.memory().map(Result::unwrap).collect();
    assert_eq!(
        memory,
        [
            region(0x8000_0000, 0x4000_0000),
            region(0x4000_0000, 0x4000_0000)
        ]
    );
}

#[test]
fn nodes_are_found_by_path_alias_phandle_and_model() {
    let tree = Tree::parse(VIRT).unwrap();
    let path = |node: Option<dt::Node<'_>>| node.map(|node| node.path().to_string());
    let its = "/intc@8000000/its@8080000";
    #[rustfmt::skip]
    let cases = [
        ("/",                         Some("/")),
        ("/intc@8000000/its@8080000", Some(its)),
        ("/intc/its",                 Some(its)),
        ("/cpus/cpu@3",               Some("/cpus/cpu@3")),
        ("serial0",                   Some("/pl011@9000000")),
        ("/cpus/cpu@4",               None),
        ("nothing",                   None),
        ("",                          None),
    ];
    for (wanted, expected) in cases {
        assert_eq!(path(tree.find(wanted)).as_deref(), expected, "{wanted}");
    }
    let found: Vec<_> = tree.compatible("arm,gic-v3-its").collect();
    assert_eq!(path(found.first().copied()).as_deref(), Some(its));
    let phandle = found[0].phandle().unwrap();
    assert_eq!(tree.by_phandle(phandle), Some(found[0]));
    assert_eq!(tree.compatible("arm,gic-v2m").count(), 0);
    assert_eq!(tree.cpus().count(), 4);
    assert_eq!(
        tree.cpus().nth(2).unwrap().reg().unwrap().next(),
        Some(region(2, 0))
    );
    let (console, options) = tree.stdout().unwrap().unwrap();
    assert_eq!((console.base_name(), options), ("pl011", ""));
    assert_eq!(console.parent(), Some(tree.root()));
}

#[test]
fn interrupts_are_those_of_the_gic() {
    let tree = Tree::parse(VIRT).unwrap();
    let interrupts = |path: &str| -> Vec<(u32, Trigger)> {
        let node = tree.find(path).unwrap();
        let interrupts = node.interrupts().unwrap();
        interrupts.map(|i| (i.intid, i.trigger)).collect()
    };
    use Trigger::{Edge, Level};
    assert_eq!(interrupts("/pl011"), [(33, Level)]);
    assert_eq!(
        interrupts("/timer"),
        [29, 30, 27, 26, 28].map(|intid| (intid, Level))
    );
    assert_eq!(
        interrupts("/smmuv3"),
        [106, 107, 108, 109].map(|intid| (intid, Edge))
    );
    let extended = Interrupt::decode([2, 5, 4]).unwrap();
    assert_eq!(extended.intid, 4101);
    #[rustfmt::skip]
    let refused = [[0, 988, 4], [0, u32::MAX, 4], [1, 16, 4], [4, 0, 4], [0, 0, 0], [0, 0, 3]];
    for cells in refused {
        assert_eq!(Interrupt::decode(cells), None, "{cells:?}");
    }
}

#[test]
fn the_windows_of_a_host_bridge_are_read() {
    let tree = Tree::parse(VIRT).unwrap();
    let bridge = tree.compatible("pci-host-ecam-generic").next().unwrap();
    assert_eq!(bridge.mmio(0).unwrap(), region(0x40_1000_0000, 0x1000_0000));
    let ranges: Vec<_> = bridge.ranges().unwrap().collect();
    let ranges: Vec<_> = ranges
        .iter()
        .map(|r| (r.flags, r.child, r.parent, r.size))
        .collect();
    #[rustfmt::skip]
    assert_eq!(ranges, [
        (0x0100_0000, 0,              0x3eff_0000,    0x0001_0000),
        (0x0200_0000, 0x1000_0000,    0x1000_0000,    0x2eff_0000),
        (0x0300_0000, 0x80_0000_0000, 0x80_0000_0000, 0x80_0000_0000),
    ]);
    let map = bridge.require("msi-map").unwrap().entries(4).unwrap();
    let mut map = map.map(|cells| cells.collect::<Vec<_>>());
    let its = tree.compatible("arm,gic-v3-its").next().unwrap();
    assert_eq!(
        map.next().unwrap(),
        [0, its.phandle().unwrap(), 0, 0x1_0000]
    );
}

/// Makes a tree with two buses below each other, and devices on the inner one.
fn buses() -> Result<Vec<u8>, WriteError> {
    let mut tree = Writer::new(&[region(0x1000, 0x20), region(0x5000, 0x1000)])?;
    tree.begin("")?;
    tree.u32("#address-cells", 2)?;
    tree.u32("#size-cells", 2)?;
    tree.begin("soc")?;
    tree.u32("#address-cells", 1)?;
    tree.u32("#size-cells", 1)?;
    tree.cells("ranges", &[0x1000_0000, 0, 0x4000_0000, 0x0100_0000])?;
    tree.begin("bus@0")?;
    tree.u32("#address-cells", 1)?;
    tree.u32("#size-cells", 1)?;
    tree.flag("ranges")?;
    for (name, reg) in [
        ("inside@10000100", vec![0x1000_0100, 0x100]),
        ("outside@10ffff80", vec![0x10ff_ff80, 0x100]),
        ("odd@0", vec![1, 2, 3]),
        ("high@ffffffff", vec![u32::MAX, 2]),
        ("none", vec![]),
    ] {
        tree.begin(name)?;
        tree.cells("reg", &reg)?;
        tree.strings("compatible", &["first", "second"])?;
        tree.string("status", if name == "none" { "disabled" } else { "okay" })?;
        tree.end()?;
    }
    tree.end()?;
    tree.end()?;
    tree.begin("reserved-memory")?;
    tree.u32("#address-cells", 2)?;
    tree.u32("#size-cells", 1)?;
    tree.begin("cma")?;
    tree.u32("size", 0x1000)?;
    tree.end()?;
    tree.begin("firmware@1_0000")?;
    tree.cells("reg", &[1, 0, 0x1000])?;
    tree.end()?;
    tree.end()?;
    tree.end()?;
    tree.finish()
}

#[test]
fn addresses_are_translated_through_each_bus() {
    let bytes = buses().unwrap();
    let tree = Tree::parse(&bytes).unwrap();
    assert_eq!(tree.bytes(), bytes);
    let mmio = |name: &str| {
        let node = tree.find("/soc/bus@0").unwrap().child(name).unwrap();
        node.mmio(0).map_err(|Malformed { fault, .. }| fault)
    };
    assert_eq!(mmio("inside"), Ok(region(0x4000_0100, 0x100)));
    assert_eq!(mmio("outside"), Err(Fault::Untranslated(0x10ff_ff80)));
    assert_eq!(mmio("odd"), Err(Fault::Length(12)));
    assert_eq!(mmio("high"), Err(Fault::Untranslated(0xffff_ffff)));
    assert_eq!(mmio("none"), Err(Fault::Missing));
    assert_eq!(tree.compatible("second").count(), 4);
    assert_eq!(tree.compatible("sec").count(), 0);
    let reserved: Vec<_> = tree.reservations().collect();
    assert_eq!(reserved, [region(0x1000, 0x20), region(0x5000, 0x1000)]);
    let reserved: Vec<_> = tree.reserved_memory().map(Result::unwrap).collect();
    assert_eq!(reserved, [region(0x1_0000_0000, 0x1000)]);
    assert_eq!(tree.root().descendants().count(), 10);
}

#[test]
fn values_are_decoded_or_refused() {
    let mut tree = Writer::new(&[]).unwrap();
    tree.begin("").unwrap();
    tree.property("empty", b"").unwrap();
    tree.property("four", &[0, 0, 1, 2]).unwrap();
    tree.property("eight", &[0, 0, 0, 1, 0, 0, 0, 2]).unwrap();
    tree.property("open", b"ab").unwrap();
    tree.property("latin", b"\xe4\0").unwrap();
    tree.strings("two", &["a", ""]).unwrap();
    tree.string("one", "a b").unwrap();
    tree.end().unwrap();
    let bytes = tree.finish().unwrap();
    let tree = Tree::parse(&bytes).unwrap();
    let get = |name: &'static str| tree.root().require(name).unwrap();
    fn fault<T>(result: Result<T, Malformed<'_>>) -> Result<T, Fault> {
        result.map_err(|error| error.fault)
    }

    assert_eq!(fault(get("four").u32()), Ok(0x102));
    assert_eq!(fault(get("eight").u32()), Err(Fault::Length(8)));
    assert_eq!(fault(get("eight").u64()), Ok(0x1_0000_0002));
    assert_eq!(fault(get("four").u64()), Err(Fault::Length(4)));
    assert_eq!(
        fault(get("open").cells().map(|_| ())),
        Err(Fault::Length(2))
    );
    assert_eq!(fault(get("eight").entries(2)).unwrap().count(), 1);
    assert_eq!(
        fault(get("four").entries(2).map(|_| ())),
        Err(Fault::Length(4))
    );
    assert_eq!(
        fault(get("four").entries(0).map(|_| ())),
        Err(Fault::Length(4))
    );
    assert_eq!(fault(get("one").string()), Ok("a b"));
    assert_eq!(fault(get("two").string()), Err(Fault::Text));
    assert_eq!(fault(get("open").string()), Err(Fault::Text));
    assert_eq!(fault(get("latin").string()), Err(Fault::Text));
    assert_eq!(fault(get("empty").string()), Err(Fault::Text));
    assert_eq!(fault(get("empty").strings()).unwrap().count(), 0);
    assert!(get("two").strings().unwrap().eq(["a", ""]));
    assert_eq!(
        fault(get("four").target().map(|_| ())),
        Err(Fault::Phandle(0x102))
    );
    let error = tree.root().require("nothing").unwrap_err();
    assert_eq!(error.to_string(), "/: nothing is missing");
}

#[test]
fn a_writer_used_wrongly_says_so() {
    type Use = fn(&mut Writer) -> Result<(), WriteError>;
    let make = |f: Use| {
        let mut tree = Writer::new(&[]).unwrap();
        f(&mut tree).and_then(|()| tree.finish().map(|_| ()))
    };
    #[rustfmt::skip]
    let cases: [(Use, WriteError); 10] = [
        (|_| Ok(()),                                                 WriteError::Depth),
        (|t| t.begin(""),                                            WriteError::Depth),
        (|t| t.begin("a"),                                           WriteError::Name),
        (|t| t.end(),                                                WriteError::Depth),
        (|t| { t.begin("")?; t.begin("") },                          WriteError::Name),
        (|t| { t.begin("")?; t.begin("a/b") },                       WriteError::Name),
        (|t| { t.begin("")?; t.end()?; t.begin("a") },               WriteError::Depth),
        (|t| { t.begin("")?; t.end()?; t.flag("p") },                WriteError::Misplaced),
        (|t| { t.begin("")?; t.begin("a")?; t.end()?; t.flag("p") }, WriteError::Misplaced),
        (|t| { t.begin("")?; t.string("p", "a\0b") },                WriteError::Name),
    ];
    for (index, (f, expected)) in cases.into_iter().enumerate() {
        assert_eq!(make(f), Err(expected), "case {index}");
    }
}
