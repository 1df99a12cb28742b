//! GICv3: distributor, redistributors, CPU interface (physical side).
