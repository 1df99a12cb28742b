//! The virtio transport and the disk, driven over a real ring: by a driver as Linux has it, and by
//! one without manners.

mod driver;
mod functions;
mod hostile;
mod support;
