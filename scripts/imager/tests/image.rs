//! What is in an image, and which machine it is for.

mod common;

use std::fs;
use std::path::Path;

use common::{Folder, SYSTEM};
use dt::Tree;
use imager::image::{self, Image};
use imager::{Folders, System, qemu};
use manifest::{Machine, Manifest, Payload};

/// An arm64 `Image` of `len` bytes with `image_size` in its header.
fn kernel(len: usize, image_size: u64) -> Vec<u8> {
    let mut kernel = common::image(image_size);
    kernel.resize(len, 0xee);
    kernel
}

fn folders(folder: &Folder) -> Folders {
    Folders {
        artifacts: Some(folder.path("artifacts")),
        state: Some(folder.path("state")),
    }
}

fn system(folder: &Folder, text: &str) -> System {
    System::parse(&folder.path("system.toml"), text.into()).unwrap()
}

/// Packs a system and returns the image.
fn pack(folder: &Folder, text: &str) -> Vec<u8> {
    let plan = system(folder, text).plan_files(&folders(folder)).unwrap();
    folder.write("isthmus", &kernel(0x2345, 0x6789));
    let image = Image::lay_out(&folder.path("isthmus"), &plan).unwrap();
    image.write(&folder.path("image")).unwrap();
    let bytes = fs::read(folder.path("image")).unwrap();
    assert_eq!(bytes.len() as u64, image.size());
    bytes
}

/// Returns a module's bytes, found as the hypervisor finds them.
fn module<'i>(image: &'i [u8], manifest: &Manifest, name: &str) -> &'i [u8] {
    let module = manifest.module(name).unwrap();
    let start = 0x7000 + usize::try_from(module.offset).unwrap();
    &image[start..][..usize::try_from(module.size).unwrap()]
}

#[test]
fn an_image_holds_kernel_manifest_and_each_file_once() {
    let folder = Folder::new("pack");
    folder.fill();
    fs::create_dir_all(folder.path("state")).unwrap();
    folder.write("state/disk.img", b"contents that were there");
    let text = SYSTEM.replacen("guest:virtio-blk", "debian:vmlinuz", 1);
    let image = pack(&folder, &text);

    let mut head = kernel(0x2345, 0x6789);
    head[16..24].copy_from_slice(&(image.len() as u64).to_le_bytes());
    assert!(image[..0x2345] == head, "the kernel itself has changed");
    assert!(
        image[0x2345..0x7000].iter().all(|&byte| byte == 0),
        "bss is not zero"
    );
    assert_eq!(image.len() % 0x1000, 0);

    let tree = Tree::parse(&image[0x7000..]).unwrap();
    let manifest = Manifest::read(&tree).unwrap();
    assert_eq!(manifest.check(Machine::default()), Ok(()));
    let mut offsets: Vec<u64> = manifest
        .modules
        .iter()
        .map(|module| module.offset)
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [0x1000, 0x2000, 0x3000]);
    assert_eq!(module(&image, &manifest, "vmlinuz"), b"the kernel");
    assert_eq!(module(&image, &manifest, "initrd"), [7; 5000]);
    assert_eq!(
        module(&image, &manifest, "disk"),
        b"contents that were there"
    );
    for domain in &manifest.domains {
        assert_eq!(domain.payload, Payload::Kernel("vmlinuz".into()));
    }
}

#[test]
fn a_module_that_does_not_exist_yet_is_made_of_zeros() {
    let folder = Folder::new("made");
    folder.fill();
    let image = pack(&folder, SYSTEM);
    let tree = Tree::parse(&image[0x7000..]).unwrap();
    let manifest = Manifest::read(&tree).unwrap();
    assert!(module(&image, &manifest, "disk") == vec![0; 1 << 20]);
    assert_eq!(
        fs::metadata(folder.path("state/disk.img")).unwrap().len(),
        1 << 20
    );
}

#[test]
fn the_manifest_alone_is_the_one_in_the_image() {
    let folder = Folder::new("manifest");
    folder.fill();
    let image = pack(&folder, SYSTEM);
    let plan = system(&folder, SYSTEM)
        .plan_files(&folders(&folder))
        .unwrap();
    let manifest = image::manifest(&plan).unwrap();
    assert!(image[0x7000..].starts_with(&manifest));
}

#[test]
fn what_the_check_refuses_can_be_packed_unchecked() {
    let folder = Folder::new("unchecked");
    folder.fill();
    let text = SYSTEM.replacen("iommu = true\n", "", 1);
    let image = pack(&folder, &text);
    let tree = Tree::parse(&image[0x7000..]).unwrap();
    let manifest = Manifest::read(&tree).unwrap();
    let error = manifest.check(Machine::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "domain linux: function 0000:00:01.0: host: assigning a device to a domain without iommu \
         is refused; write iommu = true"
    );
}

#[test]
fn what_is_not_an_unpacked_hypervisor_is_refused() {
    let folder = Folder::new("kernels");
    folder.fill();
    let plan = system(&folder, SYSTEM)
        .plan_files(&folders(&folder))
        .unwrap();
    let mut unaligned = kernel(0x1000, 0x1000);
    unaligned[8] = 8;
    #[rustfmt::skip]
    let cases = [
        (vec![],                 "not an arm64 Image; give the raw binary that the build makes of the kernel, not its ELF file"),
        (vec![0; 0x1000],        "not an arm64 Image; give the raw binary that the build makes of the kernel, not its ELF file"),
        (kernel(0x1000, 0xfff),  "image_size 0xfff is less than the file has; was it packed already?"),
        (unaligned,              "text_offset 0x8 is not a page boundary, so nothing behind it would be"),
    ];
    for (bytes, expected) in cases {
        folder.write("bad", &bytes);
        let error = Image::lay_out(&folder.path("bad"), &plan).unwrap_err();
        assert_eq!(error.root_cause().to_string(), expected);
    }
    assert!(Image::lay_out(Path::new("/nowhere"), &plan).is_err());
}

#[test]
fn files_need_the_folders_that_they_are_in() {
    let folder = Folder::new("folders");
    folder.fill();
    let system = system(&folder, SYSTEM);
    let refused = |folders: &Folders| {
        let report = system.plan_files(folders).unwrap_err().to_string();
        let lines = report
            .lines()
            .map(|line| line.rsplit_once('/').unwrap().1.to_owned());
        lines.collect::<Vec<_>>()
    };
    let mut partly = folders(&folder);
    partly.state = None;
    assert_eq!(
        refused(&partly),
        ["system.toml:37:36: @disk.img needs --files DIR"]
    );
    let expected = [
        "system.toml:15:10: debian:vmlinuz needs --artifacts DIR",
        "system.toml:16:10: debian:initrd needs --artifacts DIR",
        "system.toml:36:10: guest:virtio-blk needs --artifacts DIR",
        "system.toml:37:36: @disk.img needs --files DIR",
    ];
    assert_eq!(refused(&Folders::default()), expected);
    let plan = system.plan(&Folders::default()).unwrap();
    assert!(plan.check(&system).is_ok());
}

#[test]
fn a_machine_that_does_not_hold_the_image_too_is_refused() {
    let folder = Folder::new("room");
    folder.fill();
    let system = system(&folder, &SYSTEM.replacen("2G", "545M", 1));
    let plan = system.plan_files(&folders(&folder)).unwrap();
    assert!(plan.check(&system).is_ok());
    assert!(plan.check_room(&system, 0).is_ok());
    let report = plan.check_room(&system, 1).unwrap_err().to_string();
    let expected = "system.toml:4:10: memory: the image takes 1M and the domains 545M with their \
                    modules; write \"576M\" or more";
    assert!(report.ends_with(expected), "{report}");
}

#[test]
fn qemu_is_told_the_machine_and_its_disks() {
    let folder = Folder::new("qemu,");
    let system = system(&folder, SYSTEM);
    let arguments = qemu::arguments(&system, &folders(&folder), Path::new("out/image")).unwrap();
    let state = folder
        .path("state")
        .display()
        .to_string()
        .replace(',', ",,");
    let drive = format!("if=none,id=d0,format=raw,file={state}/nvme0.img");
    #[rustfmt::skip]
    let expected = [
        "-M", "virt,virtualization=on,gic-version=3,iommu=smmuv3",
        "-cpu", "neoverse-n1",
        "-smp", "4",
        "-m", "2048M",
        "-nic", "none",
        "-kernel", "out/image",
        "-drive", &drive,
        "-device", "nvme,drive=d0,serial=1,addr=1",
    ];
    assert_eq!(arguments, expected);
    let disk = folder.path("state/nvme0.img");
    assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 20);

    fs::write(&disk, b"a file system").unwrap();
    qemu::arguments(&system, &folders(&folder), Path::new("image")).unwrap();
    assert_eq!(
        fs::read(&disk).unwrap(),
        b"a file system",
        "a disk that is there was touched"
    );

    let report = qemu::arguments(&system, &Folders::default(), Path::new("image"));
    let report = report.unwrap_err().to_string();
    assert!(
        report.ends_with("system.toml:8:8: @nvme0.img needs --files DIR"),
        "{report}"
    );
}

#[test]
fn the_systems_of_this_repository_are_sound() {
    let systems = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/systems");
    let mut count = 0;
    for entry in fs::read_dir(systems).unwrap() {
        let path = entry.unwrap().path();
        // A system that a test wants to see refused says so in its name.
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("bad-")
        {
            continue;
        }
        let system = System::load(&path).unwrap_or_else(|report| panic!("{report}"));
        let plan = system.plan(&Folders::default());
        let checked = plan.and_then(|plan| plan.check(&system));
        checked.unwrap_or_else(|report| panic!("{report}"));
        count += 1;
    }
    assert!(count > 0);
}
