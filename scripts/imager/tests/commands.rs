//! The program itself: what it prints, and how it ends.

mod common;

use std::process::{Command, Output};

use common::{Folder, SYSTEM};

fn imager(folder: &Folder, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imager"));
    command.args(arguments).current_dir(folder.path(""));
    command.output().unwrap()
}

const FOLDERS: [&str; 4] = ["--artifacts", "artifacts", "--files", "state"];

#[test]
fn a_sound_system_is_checked_packed_and_told_without_a_word_too_many() {
    let folder = Folder::new("commands");
    folder.fill();
    folder.write("artifacts/isthmus", &common::image(0x1000));
    folder.write("system.toml", SYSTEM.as_bytes());
    let kernel = ["--kernel", "artifacts/isthmus"];
    let commands: [(&[&str], &[&str], &str); 4] = [
        (&["check"], &["system.toml"], ""),
        (
            &["pack"],
            &[&kernel[..], &["system.toml", "out"]].concat(),
            "",
        ),
        (&["manifest"], &["system.toml", "out.dtb"], ""),
        (
            &["qemu"],
            &["--image", "out", "system.toml"],
            "state/nvme0.img",
        ),
    ];
    for (name, arguments, expected) in commands {
        let output = imager(&folder, &[name, &FOLDERS, arguments].concat());
        assert!(output.status.success(), "{name:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{name:?}: {output:?}");
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(
            told.contains(expected) && told.is_empty() == expected.is_empty(),
            "{told}"
        );
    }
    for made in ["out", "out.dtb", "state/nvme0.img", "state/disk.img"] {
        assert!(folder.path(made).exists(), "{made}");
    }
    assert!(!folder.path("out.new").exists());
}

#[test]
fn a_mistake_leaves_no_image_and_a_line_that_an_editor_can_jump_to() {
    let folder = Folder::new("commands-bad");
    folder.fill();
    folder.write("artifacts/isthmus", &common::image(0x1000));
    folder.write(
        "system.toml",
        SYSTEM.replacen("iommu = true\n", "", 1).as_bytes(),
    );
    let pack = [
        "pack",
        "--kernel",
        "artifacts/isthmus",
        "system.toml",
        "out",
    ];
    let output = imager(&folder, &[&pack[..], &FOLDERS].concat());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "system.toml:25:8: domain linux: function 0000:00:01.0: host: assigning a device to a domain \
         without iommu is refused; write iommu = true\n"
    );
    assert!(!folder.path("out").exists());

    let output = imager(&folder, &[&pack[..], &FOLDERS, &["--unchecked"]].concat());
    assert!(output.status.success(), "{output:?}");
    assert!(folder.path("out").exists());

    let output = imager(&folder, &["check", "nothing.toml"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("nothing.toml: "), "{told}");
}
