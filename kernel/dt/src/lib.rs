//! Reading and writing flattened device trees that may be malformed.
#![no_std]
#![forbid(unsafe_code)]
