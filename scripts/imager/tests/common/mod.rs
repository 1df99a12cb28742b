//! A folder with a sound system in it.

use std::fs;
use std::path::PathBuf;

/// A system with nothing wrong.
pub(crate) const SYSTEM: &str = r#"
[machine]
pcpus = 4
memory = "2G"
qemu = ["-drive", "if=none,id=d0,format=raw,file=@nvme0.img", "-device", "nvme,drive=d0,serial=1,addr=1"]

[[machine.disk]]
name = "nvme0.img"
size = "1M"

[[domain]]
name = "linux"
memory = "512M"
vcpus = 2
kernel = "debian:vmlinuz"
initrd = "debian:initrd"
cmdline = "console=ttyAMA0"
host_bridge = true
iommu = true
console = true
priority = 1
affinity = [0, 1]

[[domain.pci]]
slot = "00:01.0"
host = "0000:00:01.0"
backend = "vpci"

[[domain.pci]]
slot = "00:02.0"
backend = "blk0"

[[domain]]
name = "disk"
memory = "32M"
kernel = "guest:virtio-blk"
modules = [{ name = "disk", file = "@disk.img", size = "1M" }]

[[domain.server]]
name = "blk0"
target = "linux"
memory = "all"
"#;

/// Returns the header of an arm64 `Image` of that size.
pub(crate) fn image(image_size: u64) -> Vec<u8> {
    let mut image = vec![0; 0x40];
    image[16..24].copy_from_slice(&image_size.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// A folder of one test, empty at first and left for who wants to look.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
        match fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Writes the files that the sound system names, and some that no system should.
    pub(crate) fn fill(&self) {
        self.write("artifacts/vmlinuz", b"the kernel");
        self.write("artifacts/initrd.gz", &[7; 5000]);
        self.write("artifacts/guests/virtio-blk", b"the device model");
        self.write("artifacts/guests/selftest", b"the test");
        self.write("empty", b"");
        self.write("elf", b"\x7fELF\x02\x01\x01");
        self.write("gz", b"\x1f\x8b\x08\0");
        self.write("image", &image(40 << 20));
        self.write("zboot", b"MZ\0\0zimg\0\0");
    }
}
