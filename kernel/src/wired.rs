//! A device with an interrupt line, behind one lock.
//!
//! The line follows the device only if nobody can change the device between somebody else's change
//! and the move of the line that goes with it: a line that is lowered late takes back one that was
//! raised since, and the interrupt is lost. So both are done under the lock, here and nowhere else.

use spin::Mutex;

/// A device with one level-sensitive interrupt line.
pub trait Line {
    /// Returns whether the line is high.
    fn line(&self) -> bool;
}

/// A device, and the level that its line was last driven to.
pub struct Wired<D> {
    inner: Mutex<(D, bool)>,
}

impl<D: Line> Wired<D> {
    /// Makes a device whose line is low.
    pub const fn new(device: D) -> Self {
        Self {
            inner: Mutex::new((device, false)),
        }
    }

    /// Changes the device. `drive` is called with the line's new level if that is another one, before
    /// anyone else gets to the device; it must not come back to it.
    pub fn with<R>(&self, change: impl FnOnce(&mut D) -> R, drive: impl FnOnce(bool)) -> R {
        let (device, level) = &mut *self.inner.lock();
        let result = change(device);
        let line = device.line();
        if core::mem::replace(level, line) != line {
            drive(line);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    /// Its line is high while it holds something.
    struct Holder(u32);

    impl Line for Holder {
        fn line(&self) -> bool {
            self.0 != 0
        }
    }

    #[test]
    fn the_line_is_driven_when_it_changes_and_only_then() {
        let wired = Wired::new(Holder(0));
        let mut driven = std::vec::Vec::new();
        for value in [0, 1, 2, 0, 0, 3] {
            wired.with(|holder| holder.0 = value, |level| driven.push(level));
        }
        assert_eq!(driven, [true, false, true]);
    }

    /// Else somebody could change the device and move the line in between, and be overruled.
    #[test]
    fn nobody_gets_to_the_device_while_its_line_is_moved() {
        let wired = Wired::new(Holder(0));
        let mut moves = 0;
        for value in [1, 0] {
            let drive = |_| {
                moves += 1;
                assert!(wired.inner.try_lock().is_none(), "the lock is not held");
            };
            wired.with(|holder| holder.0 = value, drive);
        }
        assert_eq!(moves, 2);
    }

    /// One puts things in, one takes them out, as a terminal and a guest do: however that falls, the
    /// line is low in the end only if nothing is left.
    #[test]
    fn the_line_agrees_with_the_device_whoever_changes_it() {
        let wired = Wired::new(Holder(0));
        let line = AtomicBool::new(false);
        let drive = |level| line.store(level, Ordering::SeqCst);
        let agrees = || {
            wired.with(
                |holder| assert_eq!(line.load(Ordering::SeqCst), holder.line()),
                drive,
            );
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    wired.with(|holder| holder.0 += 1, drive);
                }
            });
            scope.spawn(|| {
                for _ in 0..50_000 {
                    wired.with(|holder| holder.0 = holder.0.saturating_sub(1), drive);
                    agrees();
                }
            });
        });
        agrees();
    }
}
