//! Device registers: windows, typed registers.
