//! Lists and texts for when there may be no memory.
//!
//! Rust's own `collect`, `vec!`, `to_owned` and their like end the program when the heap is exhausted, and
//! EL2 must not end: what it cannot do is an error to whoever asked. `clippy.toml` names what is not used.

use core::alloc::Layout;
use core::fmt::{self, Write as _};

use alloc::collections::TryReserveError;
use alloc::string::String;
use alloc::vec::Vec;

/// Adds to a list.
///
/// # Errors
///
/// If there is no memory; the list is as it was.
pub fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), TryReserveError> {
    list.try_reserve(1)?;
    list.push(item);
    Ok(())
}

/// Makes a list.
///
/// # Errors
///
/// If there is no memory for it.
pub fn collect<T>(items: impl IntoIterator<Item = T>) -> Result<Vec<T>, TryReserveError> {
    let items = items.into_iter();
    let mut list = Vec::new();
    list.try_reserve_exact(items.size_hint().0)?;
    for item in items {
        push(&mut list, item)?;
    }
    Ok(list)
}

/// Makes a text of one's own.
///
/// # Errors
///
/// If there is no memory for it.
pub fn text(text: &str) -> Result<String, TryReserveError> {
    let mut own = String::new();
    own.try_reserve_exact(text.len())?;
    own.push_str(text);
    Ok(own)
}

/// Makes a text of what something looks like.
///
/// # Errors
///
/// If there is no memory for it.
pub fn display(shown: impl fmt::Display) -> Result<String, fmt::Error> {
    struct Growing(String);
    impl fmt::Write for Growing {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut text = Growing(String::new());
    write!(text, "{shown}")?;
    Ok(text.0)
}

/// Puts a value where it stays for good.
///
/// # Errors
///
/// If there is no memory for it.
pub fn leak<T>(value: T) -> Result<&'static mut T, TryReserveError> {
    let list = collect([value])?.leak();
    // A list of one value has a first.
    Ok(&mut list[0])
}

/// Returns what `Arc::new` allocates for a value: two counters before it.
#[must_use]
pub fn arc_layout<T>() -> Option<Layout> {
    let counters = Layout::new::<[usize; 2]>();
    let (layout, _) = counters.extend(Layout::new::<T>()).ok()?;
    Some(layout.pad_to_align())
}
