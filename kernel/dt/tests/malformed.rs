//! Trees that break one rule each, and mutations of a real one.

use dt::{Block, Error, Tree};
use proptest::prelude::*;

/// From `qemu-system-aarch64 -M virt,virtualization=on,gic-version=3,iommu=smmuv3,dtb-randomness=off
/// -cpu neoverse-n1 -smp 4 -m 2G` with two NUMA nodes, without its padding.
const VIRT: &[u8] = include_bytes!("data/virt.dtb");

const BEGIN: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// A node's name, or a value, that fits one word.
const EMPTY: u32 = 0;
const A: u32 = u32::from_be_bytes(*b"a\0\0\0");

/// Fields of the header, by index.
const MAGIC: usize = 0;
const TOTAL: usize = 1;
const STRUCTURE: usize = 2;
const STRINGS: usize = 3;
const RESERVATIONS: usize = 4;
const VERSION: usize = 5;
const COMPATIBLE: usize = 6;
const STRINGS_SIZE: usize = 8;
const STRUCTURE_SIZE: usize = 9;

/// Makes a tree of that structure block. The strings block is "p", NUL, 0xff, NUL, "q".
fn tree(structure: &[u32]) -> Vec<u8> {
    let strings = b"p\0\xff\0q";
    let len = u32::try_from(structure.len() * 4).unwrap();
    let header = [
        0xd00d_feed,
        56 + len + 5,
        56,
        56 + len,
        40,
        17,
        16,
        0,
        5,
        len,
    ];
    let words = header.iter().chain(&[0; 4]).chain(structure);
    let mut bytes: Vec<u8> = words.flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend_from_slice(strings);
    bytes
}

fn with_field(field: usize, value: u32) -> Vec<u8> {
    let mut bytes = tree(&[BEGIN, EMPTY, END_NODE, END]);
    bytes[field * 4..][..4].copy_from_slice(&value.to_be_bytes());
    bytes
}

#[test]
#[rustfmt::skip]
fn a_structure_block_is_taken_or_refused_for_its_reason() {
    use Error::*;
    let deep = |depth: usize| {
        let mut words = vec![BEGIN, EMPTY];
        words.extend([BEGIN, A].repeat(depth - 1));
        words.extend([END_NODE].repeat(depth));
        words.push(END);
        words
    };
    let cases: &[(&str, &[u32], Result<(), Error>)] = &[
        ("a root alone",         &[BEGIN, EMPTY, END_NODE, END],                                Ok(())),
        ("NOPs everywhere",      &[NOP, BEGIN, EMPTY, NOP, PROP, 4, 0, A, NOP, END_NODE, NOP, END], Ok(())),
        ("32 levels",            &deep(32),                                                     Ok(())),
        ("33 levels",            &deep(33),                                                     Err(TooDeep(256))),
        ("words after the end",  &[BEGIN, EMPTY, END_NODE, END, 7],                             Ok(())),
        ("nothing",              &[],                                                           Err(Truncated(0))),
        ("no node",              &[END],                                                        Err(Roots(0))),
        ("two roots",            &[BEGIN, EMPTY, END_NODE, BEGIN, EMPTY, END_NODE, END],        Err(Roots(12))),
        ("no end",               &[BEGIN, EMPTY, END_NODE],                                     Err(Truncated(12))),
        ("an unknown token",     &[BEGIN, EMPTY, 5, END],                                       Err(Token(5, 8))),
        ("an open node",         &[BEGIN, EMPTY, END],                                          Err(Unbalanced(8))),
        ("an end too many",      &[BEGIN, EMPTY, END_NODE, END_NODE, END],                      Err(Unbalanced(12))),
        ("a named root",         &[BEGIN, A, END_NODE, END],                                    Err(NodeName(0))),
        ("a child without name", &[BEGIN, EMPTY, BEGIN, EMPTY, END_NODE, END_NODE, END],        Err(NodeName(8))),
        ("a slash in a name",    &[BEGIN, EMPTY, BEGIN, 0x612f_6100, END_NODE, END_NODE, END],  Err(NodeName(8))),
        ("a name not UTF-8",     &[BEGIN, EMPTY, BEGIN, 0xff61_0000, END_NODE, END_NODE, END],  Err(NodeName(8))),
        ("a name without end",   &[BEGIN, EMPTY, BEGIN, 0x6161_6161],                           Err(NodeName(8))),
        ("a property first",     &[PROP, 0, 0, BEGIN, EMPTY, END_NODE, END],                    Err(MisplacedProperty(0))),
        ("a property last",      &[BEGIN, EMPTY, END_NODE, PROP, 0, 0, END],                    Err(MisplacedProperty(12))),
        ("a property late",      &[BEGIN, EMPTY, BEGIN, A, END_NODE, PROP, 0, 0, END_NODE, END], Err(MisplacedProperty(20))),
        ("a value too long",     &[BEGIN, EMPTY, PROP, 13, 0, A, END_NODE, END],                Err(Truncated(8))),
        ("a value far too long", &[BEGIN, EMPTY, PROP, u32::MAX, 0, A, END_NODE, END],          Err(Truncated(8))),
        ("a property cut off",   &[BEGIN, EMPTY, PROP, 0],                                      Err(Truncated(16))),
        ("a name not UTF-8",     &[BEGIN, EMPTY, PROP, 0, 2, END_NODE, END],                    Err(PropertyName(8))),
        ("an empty name",        &[BEGIN, EMPTY, PROP, 0, 1, END_NODE, END],                    Err(PropertyName(8))),
        ("a name without end",   &[BEGIN, EMPTY, PROP, 0, 4, END_NODE, END],                    Err(PropertyName(8))),
        ("a name past the end",  &[BEGIN, EMPTY, PROP, 0, 5, END_NODE, END],                    Err(PropertyName(8))),
        ("a name far away",      &[BEGIN, EMPTY, PROP, 0, u32::MAX, END_NODE, END],             Err(PropertyName(8))),
    ];
    for (name, structure, expected) in cases {
        let got = Tree::parse(&tree(structure)).map(|_| ());
        assert_eq!(got, *expected, "{name}");
    }
}

#[test]
#[rustfmt::skip]
fn a_header_is_taken_or_refused_for_its_reason() {
    use Error::*;
    let cases = [
        (MAGIC,          0xd00d_feee, Err(Magic(0xd00d_feee))),
        (VERSION,        16,          Err(Version(16))),
        (VERSION,        18,          Ok(())),
        (COMPATIBLE,     18,          Err(Version(17))),
        (TOTAL,          77,          Ok(())),
        (TOTAL,          76,          Err(Outside(Block::Strings))),
        (TOTAL,          0x0020_0001, Err(TooLarge(0x0020_0001))),
        (TOTAL,          0x0010_0000, Ok(())), // padding that is not there is not missed
        (STRUCTURE,      0,           Err(Outside(Block::Structure))),
        (STRUCTURE,      36,          Err(Outside(Block::Structure))),
        (STRUCTURE,      58,          Err(Unaligned(Block::Structure))),
        (STRUCTURE,      u32::MAX,    Err(Outside(Block::Structure))),
        (STRUCTURE_SIZE, 24,          Err(Outside(Block::Structure))),
        (STRUCTURE_SIZE, 15,          Err(Truncated(12))),
        (STRINGS,        39,          Err(Outside(Block::Strings))),
        (STRINGS_SIZE,   6,           Err(Outside(Block::Strings))),
        (STRINGS_SIZE,   u32::MAX,    Err(Outside(Block::Strings))),
        (STRINGS_SIZE,   0,           Ok(())),
        (RESERVATIONS,   0,           Err(Outside(Block::Reservations))),
        (RESERVATIONS,   64,          Err(Outside(Block::Reservations))),
        (RESERVATIONS,   44,          Err(Unaligned(Block::Reservations))),
        (RESERVATIONS,   56,          Err(Reservation)), // never ends
    ];
    for (field, value, expected) in cases {
        let got = Tree::parse(&with_field(field, value)).map(|_| ());
        assert_eq!(got, expected, "field {field} = {value:#x}");
    }
    assert_eq!(Tree::parse(&[]).map(|_| ()), Err(Short(0)));
    assert_eq!(Tree::parse(&VIRT[..39]).map(|_| ()), Err(Short(39)));
    assert_eq!(Tree::parse(&VIRT[..8000]).map(|_| ()), Err(Short(8000)));
}

#[test]
fn a_reservation_past_the_address_space_is_refused() {
    let mut bytes = tree(&[BEGIN, EMPTY, END_NODE, END]);
    bytes[STRUCTURE * 4 + 3] += 16;
    bytes[STRINGS * 4 + 3] += 16;
    bytes[TOTAL * 4 + 3] += 16;
    let entry = [u64::MAX.to_be_bytes(), 1u64.to_be_bytes()].concat();
    bytes.splice(40..40, entry);
    assert_eq!(Tree::parse(&bytes).unwrap_err(), Error::Reservation);
}

#[test]
fn errors_say_where() {
    let error = Tree::parse(&tree(&[BEGIN, EMPTY, 5, END])).unwrap_err();
    assert_eq!(error.to_string(), "structure+0x8: 0x5 is not a token");
}

/// Uses everything that can be read of a tree, both ways.
fn walk(tree: &Tree) {
    for node in tree.nodes() {
        let _ = (node.path().to_string(), node.base_name(), node.parent());
        let _ = (node.phandle(), node.is_available(), node.children().count());
        let _ = node.reg().map(Iterator::count);
        let _ = node.ranges().map(Iterator::count);
        let _ = node.interrupts().map(Iterator::count);
        let _ = node.mmio(0).map_err(|error| error.to_string());
        for property in node.properties() {
            let _ = (property.u32(), property.u64(), property.string());
            let _ = (property.cells().map(Iterator::count), property.target());
            let _ = property.strings().map(Iterator::count);
        }
    }
    let _ = tree.memory().chain(tree.reserved_memory()).count();
    let _ = (tree.reservations().count(), tree.cpus().count());
    let _ = tree.stdout().map_err(|error| error.to_string());

    let fdt = tree.fdt().unwrap();
    let nodes = fdt.all_nodes().map(|node| {
        let _ = node.children().count();
        (node.name, node.properties().count())
    });
    let ours = tree.nodes().map(|node| {
        let name = Some(node.name()).filter(|name| !name.is_empty());
        (name.unwrap_or("/"), node.properties().count())
    });
    assert!(nodes.eq(ours), "the fdt crate sees other nodes");
    let _ = fdt.find_node("/chosen");
    let _ = fdt.memory_reservations().count();
}

#[test]
fn the_real_tree_is_read_alike_by_both_readers() {
    let tree = Tree::parse(VIRT).unwrap();
    walk(&tree);
    let fdt = tree.fdt().unwrap();
    for (ours, theirs) in tree.nodes().zip(fdt.all_nodes()) {
        let ours = ours.properties().map(|p| (p.name, p.value));
        assert!(ours.eq(theirs.properties().map(|p| (p.name, p.value))));
    }
}

/// A change that a faulty or hostile maker of trees may have made.
#[derive(Clone, Debug)]
enum Edit {
    Bit(usize, u8),
    Byte(usize, u8),
    Word(usize, u32),
    Add(usize, u32),
    Cut(usize),
    Zero(usize, usize),
    Move(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 0..VIRT.len();
    let header = (0..10usize).prop_map(|field| field * 4);
    let word = (0..VIRT.len() / 4).prop_map(|word| word * 4);
    let extreme = prop::sample::select(vec![
        0,
        1,
        2,
        3,
        4,
        9,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
        u32::MAX - 3,
        0x2000,
        0x10_0000,
    ]);
    prop_oneof![
        3 => (at.clone(), 0..8u8).prop_map(|(at, bit)| Edit::Bit(at, bit)),
        2 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        4 => (word.clone(), extreme.clone()).prop_map(|(at, word)| Edit::Word(at, word)),
        1 => (header, extreme).prop_map(|(at, word)| Edit::Word(at, word)),
        3 => (word, prop::sample::select(vec![1, 8, u32::MAX, u32::MAX - 7]))
            .prop_map(|(at, by)| Edit::Add(at, by)),
        1 => at.clone().prop_map(Edit::Cut),
        1 => (at.clone(), 0..64usize).prop_map(|(at, len)| Edit::Zero(at, len)),
        1 => (at.clone(), at, 0..64usize).prop_map(|(from, to, len)| Edit::Move(from, to, len)),
    ]
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let clamp = |at: usize, size: usize| at.min(len)..(at + size).min(len);
        match *self {
            Self::Bit(at, bit) => bytes[clamp(at, 1)].iter_mut().for_each(|b| *b ^= 1 << bit),
            Self::Byte(at, byte) => bytes[clamp(at, 1)].fill(byte),
            Self::Word(at, word) => {
                let range = clamp(at, 4);
                let size = range.len();
                bytes[range].copy_from_slice(&word.to_be_bytes()[..size]);
            }
            Self::Add(at, by) => {
                if let Some(place) = bytes.get_mut(at..at + 4) {
                    let old = u32::from_be_bytes(place.try_into().unwrap());
                    place.copy_from_slice(&old.wrapping_add(by).to_be_bytes());
                }
            }
            Self::Cut(at) => bytes.truncate(at),
            Self::Zero(at, size) => bytes[clamp(at, size)].fill(0),
            Self::Move(from, to, size) => {
                let piece = bytes[clamp(from, size)].to_vec();
                let range = clamp(to, piece.len());
                let size = range.len();
                bytes[range].copy_from_slice(&piece[..size]);
            }
        }
    }
}

proptest! {
    // `PROPTEST_CASES=100000 cargo test --release -p dt` is the long form.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_makes_a_reader_panic(
        edits in prop::collection::vec(edit(), 1..7),
        keep_start in any::<bool>(),
    ) {
        let mut bytes = VIRT.to_vec();
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        if keep_start && bytes.len() >= 28 {
            bytes[..4].copy_from_slice(&VIRT[..4]);
            bytes[20..28].copy_from_slice(&VIRT[20..28]);
        }
        if let Ok(tree) = Tree::parse(&bytes) {
            walk(&tree);
            let again = Tree::parse(tree.bytes()).unwrap();
            prop_assert_eq!(again.bytes(), tree.bytes());
        }
    }

    #[test]
    fn a_nop_before_any_token_changes_nothing(places in prop::collection::vec(any::<u32>(), 1..9)) {
        let plain = Tree::parse(VIRT).unwrap();
        let nopped = with_nops(&plain, &places);
        let tree = Tree::parse(&nopped).unwrap();
        prop_assert_eq!(tree.bytes(), plain.bytes());
        walk(&tree);
    }
}

/// Returns the tree with a NOP before those of its tokens that `places` choose.
fn with_nops(tree: &Tree, places: &[u32]) -> Vec<u8> {
    let mut bytes = tree.bytes().to_vec();
    let field = |bytes: &[u8], index: usize| {
        u32::from_be_bytes(bytes[index * 4..][..4].try_into().unwrap()) as usize
    };
    let tokens = tokens(&bytes, field(&bytes, STRUCTURE));
    let mut chosen: Vec<usize> = places
        .iter()
        .map(|place| tokens[*place as usize % tokens.len()])
        .collect();
    chosen.sort_unstable();
    for at in chosen.iter().rev() {
        bytes.splice(at..at, NOP.to_be_bytes());
    }
    for index in [TOTAL, STRINGS, STRUCTURE_SIZE] {
        let value = u32::try_from(field(&bytes, index) + chosen.len() * 4).unwrap();
        bytes[index * 4..][..4].copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

/// Returns where the tokens of a well-formed structure block start.
fn tokens(bytes: &[u8], start: usize) -> Vec<usize> {
    let word = |at: usize| u32::from_be_bytes(bytes[at..][..4].try_into().unwrap());
    let mut tokens = vec![];
    let mut at = start;
    loop {
        tokens.push(at);
        at += match word(at) {
            BEGIN => 4 + (bytes[at + 4..].iter().position(|b| *b == 0).unwrap() + 4) / 4 * 4,
            PROP => 12 + (word(at + 4) as usize).next_multiple_of(4),
            END => return tokens,
            _ => 4,
        };
    }
}
