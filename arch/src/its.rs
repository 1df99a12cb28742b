//! The physical Interrupt Translation Service.
