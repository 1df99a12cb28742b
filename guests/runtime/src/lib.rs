//! A small EL1 runtime for bare-metal guests.
#![no_std]
