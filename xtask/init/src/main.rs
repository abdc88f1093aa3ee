//! The first process of the lab's VM: makes the machine usable, runs the job
//! list, tells what happens over the serial console, and ends the machine.
//!
//! Neighbours: [`lab_init::runner`] does the work, `serial` carries the events;
//! the other end is `xtask`'s `vm` module.

mod serial;
mod setup;

use std::path::Path;

use anyhow::{Context, Result};
use lab_init::{
    job::{JOBS_PATH, Job, OUT_DIR},
    protocol::Event,
    runner,
};
use rustix::{
    process::getpid,
    system::{RebootCommand, reboot},
};

fn main() {
    if !getpid().is_init() {
        eprintln!("lab-init is the first process of the lab's VM and does nothing elsewhere");
        std::process::exit(2);
    }
    if let Err(error) = first_process() {
        // The console is all there is to tell it to; the host shows its last lines.
        println!("lab-init: {error:#}");
    }
    // An error here ends the first process, and so the machine too: by a panic.
    let _ = reboot(RebootCommand::PowerOff);
}

fn first_process() -> Result<()> {
    setup::mount_all()?;
    setup::set_limits()?;
    setup::bring_up_loopback()?;
    let serial = serial::Serial::open()?;
    let kernel = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    serial.send(Event::Ready { kernel })?;

    let text = std::fs::read_to_string(JOBS_PATH).context(JOBS_PATH)?;
    let jobs: Vec<Job> = serde_json::from_str(&text).context(JOBS_PATH)?;
    let mut lost = None;
    let mut sink = |event| {
        if let Err(error) = serial.send(event) {
            lost.get_or_insert(error);
        }
    };
    runner::run(&jobs, &mut sink);
    runner::send_files(Path::new(OUT_DIR), &mut sink).context(OUT_DIR)?;
    if let Some(error) = lost {
        return Err(error).context("the serial console");
    }
    serial.send(Event::Done)?;
    serial.wait_for_end();
    Ok(())
}
