//! Makes a bare kernel into a machine that programs can run on: file systems,
//! limits, the loopback interface.
//!
//! Neighbour: `main`. Source: `Documentation/filesystems/ramfs-rootfs-initramfs.rst`,
//! `rtnetlink(7)`.

use std::{fs::Permissions, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::Mode,
    mount::{MountFlags, mount},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, netlink, recv, sendto, socket,
    },
    process::{Resource, Rlimit, setrlimit},
    system::sethostname,
};

/// What is mounted, in order: file system, where, options.
const MOUNTS: [(&str, &str, &str); 5] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/out", ""),
];

pub(crate) fn mount_all() -> Result<()> {
    for (fs, target, options) in MOUNTS {
        std::fs::create_dir_all(target).context(target)?;
        let options = std::ffi::CString::new(options)?;
        mount(
            fs,
            target,
            fs,
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .context(target)?;
    }
    // Not mounted on: the root is memory already, and the workspace may lie under it.
    std::fs::create_dir_all("/tmp").context("/tmp")?;
    std::fs::set_permissions("/tmp", Permissions::from_mode(0o1777)).context("/tmp")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sethostname(b"lab").context("sethostname")?;
    Ok(())
}

pub(crate) fn set_limits() -> Result<()> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    setrlimit(Resource::Core, unlimited).context("core limit")?;
    std::fs::write("/proc/sys/kernel/core_pattern", "/tmp/core.%e.%p").context("core_pattern")?;
    // Counting instructions and reading one's own code must not depend on rights.
    std::fs::write("/proc/sys/kernel/perf_event_paranoid", "1").context("perf_event_paranoid")?;
    Ok(())
}

/// Sets `IFF_UP` on interface 1, which is always `lo`, by one `RTM_NEWLINK`.
pub(crate) fn bring_up_loopback() -> Result<()> {
    /// Protocol 0 of the netlink family.
    const NETLINK_ROUTE: Option<Protocol> = None;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    const MESSAGE_BYTES: u32 = 16 + 16;

    let mut message = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend(MESSAGE_BYTES.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family and type unspecified, index, flags, which flags.
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());

    let fd =
        socket(AddressFamily::NETLINK, SocketType::RAW, NETLINK_ROUTE).context("netlink socket")?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    sendto(&fd, &message, SendFlags::empty(), &kernel).context("netlink")?;
    let mut answer = [0; 64];
    let (len_bytes, _) = recv(&fd, &mut answer, RecvFlags::empty()).context("netlink")?;
    // struct nlmsgerr follows the header; error 0 is the acknowledgement.
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(
        len_bytes >= 20 && kind == NLMSG_ERROR && error == 0,
        "netlink says {error} for lo"
    );
    Ok(())
}
