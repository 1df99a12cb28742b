//! SMMUv3.
