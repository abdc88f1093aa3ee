//! Workers of io_uring: threads of the process that block all signals and never run its code.

use rvbpf::Runtime;

use crate::common::{in_child, serial};
use crate::works;

/// A ring whose worker polls, so that it runs all the time.
fn ring_with_worker() -> bool {
    const SYS_IO_URING_SETUP: i64 = 425;
    const SETUP_SQPOLL: u32 = 1 << 1;
    // struct io_uring_params: flags at +8, sq_thread_idle (ms) at +16.
    let mut params = [0_u32; 30];
    (params[2], params[4]) = (SETUP_SQPOLL, 60_000);
    // SAFETY: 1. `params` has the size of the kernel's structure.
    unsafe { libc::syscall(SYS_IO_URING_SETUP, 4, params.as_mut_ptr()) >= 0 }
}

#[test]
fn a_worker_of_io_uring_stands_in_nobody_s_way() {
    let _one = serial();
    in_child(|| {
        if !ring_with_worker() {
            println!("no io_uring here: {}", std::io::Error::last_os_error());
            return;
        }
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert_eq!(tasks, 2, "this thread and the worker");
        let rt = Runtime::new().unwrap();
        works(&rt);
        works(&rt);
    })
    .join();
}
