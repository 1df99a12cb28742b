//! The last resort: a UART to complain on, out of a device tree that is malformed.

/// What a node with a PL011 says it is compatible with.
const PL011: &[u8] = b"arm,pl011\0";
const FDT_BEGIN_NODE: u32 = 1;

/// Returns the address of a PL011: of the node whose name comes last before that word, with the address
/// in it (`pl011@9000000`).
///
/// Nothing is taken for granted of the tree: it is looked at as bytes.
pub fn find_pl011(bytes: &[u8]) -> Option<u64> {
    let at = bytes
        .windows(PL011.len())
        .position(|window| window == PL011)?;
    let before = bytes.get(..at)?;
    // A cell of a property may look like the beginning of a node (`interrupts = <0 1 4>`).
    let mut names = before.chunks_exact(4).enumerate().rev();
    names.find_map(|(index, word)| {
        let begins = word == FDT_BEGIN_NODE.to_be_bytes();
        address_in(before.get(index * 4 + 4..).filter(|_| begins)?)
    })
}

/// Returns the address in a node's name, which ends with a zero.
fn address_in(name: &[u8]) -> Option<u64> {
    let end = name.iter().position(|byte| *byte == 0)?;
    let name = core::str::from_utf8(name.get(..end)?).ok()?;
    let (_, address) = name.split_once('@')?;
    u64::from_str_radix(address, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &[u8], rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 1, b'x', 0, 0, 0, 0, 0, 0, 1,
        ];
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend([0, 0, 0, 3, 0, 0, 0, 10]);
        bytes.extend(rest);
        bytes
    }

    #[test]
    #[rustfmt::skip]
    fn a_uart_is_found_in_a_broken_tree() {
        let cases: [(&[u8], &[u8], Option<u64>); 6] = [
            (b"pl011@9000000\0", b"arm,pl011\0", Some(0x900_0000)),
            (b"pl011@9000000\0", b"\0\0\0\0\0\0\0\x01\0\0\0\x04arm,pl011\0", Some(0x900_0000)),
            (b"pl011@9000000\0", b"arm,pl01",    None),
            (b"pl011@zz\0",      b"arm,pl011\0", None),
            (b"pl011\0",         b"arm,pl011\0", None),
            (b"\xff\xff@9\0",    b"arm,pl011\0", None),
        ];
        for (name, rest, found) in cases {
            assert_eq!(find_pl011(&tree(name, rest)), found, "{name:?}");
        }
        assert_eq!(find_pl011(&[]), None);
    }
}
