//! The first hooks of a process: this program starts itself, and the child tells what they took.

use std::process::{Command, ExitCode};
use std::time::Instant;

use rvbpf::{FuncModel, HookBuilder, Runtime, Untyped};

use crate::common::{Error, Row};

const VAR: &str = "RVBPF_ATTACH_START";
/// Of several starts the fastest is taken.
const STARTS: usize = 3;
/// What they may take, in milliseconds.
const FIRST: f64 = 30.0;
const FORTY: f64 = 60.0;

/// Functions of the C library, by which programs are traced.
const NAMES: [&str; 40] = [
    "malloc",
    "free",
    "calloc",
    "realloc",
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "strlen",
    "strcmp",
    "strncmp",
    "strchr",
    "strrchr",
    "strdup",
    "fopen",
    "fclose",
    "fread",
    "fwrite",
    "fseek",
    "fflush",
    "puts",
    "printf",
    "fprintf",
    "snprintf",
    "vsnprintf",
    "qsort",
    "bsearch",
    "getenv",
    "setenv",
    "strtol",
    "strtoul",
    "strtod",
    "fgets",
    "fputs",
    "ungetc",
    "rename",
    "opendir",
    "readdir",
    "closedir",
    "realpath",
];

/// What a child shall do.
pub(crate) fn asked() -> Option<String> {
    std::env::var(VAR).ok()
}

/// The child: hooks, and prints the milliseconds.
pub(crate) fn run(what: &str) -> Result<ExitCode, Error> {
    let names = match what {
        "first" => &NAMES[..1],
        _ => &NAMES[..],
    };
    let start = Instant::now();
    let rt = Runtime::new()?;
    let build = |name: &&str| -> Result<HookBuilder<Untyped>, Error> {
        // SAFETY: 1. nothing is said of it.
        let builder = unsafe { rt.hook_symbol(Some("libc.so.6"), name, FuncModel::untyped()) }?;
        Ok(builder.on_entry(|_| {}).allow_trap())
    };
    let builders: Result<Vec<_>, Error> = names.iter().map(build).collect();
    let hooks = rt.attach_all(builders?)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    drop(hooks);
    println!("{ms}");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn measure(rows: &mut Vec<Row>) -> Result<(), Error> {
    for (what, most) in [("first", FIRST), ("forty", FORTY)] {
        let mut least = f64::INFINITY;
        for _ in 0..STARTS {
            let own = std::env::current_exe()?;
            let child = Command::new(own).env(VAR, what).output()?;
            if !child.status.success() {
                let text = String::from_utf8_lossy(&child.stderr).into_owned();
                return Err(format!("the child ended with {}: {text}", child.status).into());
            }
            least = least.min(String::from_utf8(child.stdout)?.trim().parse()?);
        }
        rows.push(Row::new(format!("{what}/ms"), least, "ms").beside("goal", most));
    }
    Ok(())
}
