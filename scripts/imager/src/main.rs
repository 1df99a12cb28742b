//! Checks a system description and packs it into one image.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use imager::image::{self, Image};
use imager::{Folders, Report, System, qemu};

/// Turns a system file into an image of the hypervisor, and into QEMU's arguments.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says what is wrong with a system file
    Check {
        #[command(flatten)]
        from: From,
    },
    /// Packs the hypervisor and a system into one image
    Pack {
        #[command(flatten)]
        from: From,
        /// The hypervisor, as a raw arm64 Image
        #[arg(long, value_name = "IMAGE")]
        kernel: PathBuf,
        /// Packs a system that makes no sense, to see it refused at boot
        #[arg(long, hide = true)]
        unchecked: bool,
        /// The image to write
        out: PathBuf,
    },
    /// Writes only the manifest, as a flattened device tree
    Manifest {
        #[command(flatten)]
        from: From,
        /// Writes one that makes no sense
        #[arg(long, hide = true)]
        unchecked: bool,
        /// The file to write
        out: PathBuf,
    },
    /// Prints QEMU's arguments for a system, one in a line, and makes the disks that are missing
    Qemu {
        #[command(flatten)]
        from: From,
        /// The image to boot
        #[arg(long)]
        image: PathBuf,
    },
}

#[derive(Args)]
struct From {
    /// Where vmlinuz, initrd.gz, u-boot.bin and guests/ are
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Where files that a system file names with an @ are, and are made if they are missing
    #[arg(long, value_name = "DIR", alias = "state")]
    files: Option<PathBuf>,
    /// The system file
    system: PathBuf,
}

impl From {
    fn load(&self) -> Result<(System, Folders), Report> {
        let folders = Folders {
            artifacts: self.artifacts.clone(),
            state: self.files.clone(),
        };
        Ok((System::load(&self.system)?, folders))
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Check { from } => {
            let (system, folders) = from.load()?;
            system.plan(&folders)?.check(&system)?;
        }
        Command::Pack {
            from,
            kernel,
            unchecked,
            out,
        } => {
            let (system, folders) = from.load()?;
            let plan = system.plan_files(&folders)?;
            if !unchecked {
                plan.check(&system)?;
            }
            let image = Image::lay_out(&kernel, &plan)?;
            if !unchecked {
                plan.check_room(&system, image.size())?;
            }
            image.write(&out)?;
        }
        Command::Manifest {
            from,
            unchecked,
            out,
        } => {
            let (system, folders) = from.load()?;
            let plan = system.plan_files(&folders)?;
            if !unchecked {
                plan.check(&system)?;
            }
            fs::write(&out, image::manifest(&plan)?)?;
        }
        Command::Qemu { from, image } => {
            let (system, folders) = from.load()?;
            for argument in qemu::arguments(&system, &folders, &image)? {
                println!("{argument}");
            }
        }
    }
    Ok(())
}
