//! Hooks that come and go while SQLite works.

#![expect(
    unsafe_code,
    reason = "promises that functions begin where the linker says"
)]

use std::path::Path;
use std::thread;
use std::time::Instant;

use libsqlite3_sys as sqlite;
use rvbpf::{FuncModel, Hook, Runtime};

use super::{Outcome, ensure, workload};

/// How many hooks are attached and detached.
const HOOKS: usize = 1_000;

/// So many of them in one go: it costs no more flushes than a single one.
const AT_ONCE: usize = 50;

/// What gets hooked. Nothing else has to be known of these functions: they are hooked without
/// their types.
const FUNCTIONS: [*const (); 25] = [
    sqlite::sqlite3_bind_int64 as _,
    sqlite::sqlite3_bind_text as _,
    sqlite::sqlite3_changes as _,
    sqlite::sqlite3_column_bytes as _,
    sqlite::sqlite3_column_count as _,
    sqlite::sqlite3_column_text as _,
    sqlite::sqlite3_exec as _,
    sqlite::sqlite3_finalize as _,
    sqlite::sqlite3_free as _,
    sqlite::sqlite3_initialize as _,
    sqlite::sqlite3_malloc64 as _,
    sqlite::sqlite3_mprintf as _,
    sqlite::sqlite3_mutex_enter as _,
    sqlite::sqlite3_mutex_leave as _,
    sqlite::sqlite3_prepare_v2 as _,
    sqlite::sqlite3_randomness as _,
    sqlite::sqlite3_reset as _,
    sqlite::sqlite3_result_int64 as _,
    sqlite::sqlite3_result_text as _,
    sqlite::sqlite3_step as _,
    sqlite::sqlite3_stricmp as _,
    sqlite::sqlite3_value_bytes as _,
    sqlite::sqlite3_value_int64 as _,
    sqlite::sqlite3_value_text as _,
    sqlite::sqlite3_value_type as _,
];

pub(super) fn show(rt: &Runtime, dir: &Path, expected: &[u64]) -> Outcome {
    println!("2. Hooks come and go while SQLite works");
    println!(
        "   The same work again. Meanwhile another thread puts {AT_ONCE} hooks on {} functions of SQLite's,\n   \
         then {AT_ONCE} more, takes the older ones away, and so on, until it was {HOOKS} hooks ...",
        FUNCTIONS.len(),
    );
    thread::scope(|scope| {
        let begin = Instant::now();
        let changes = scope.spawn(move || come_and_go(rt).map(|runs| (runs, begin.elapsed())));
        let mut rounds = 0;
        while rounds == 0 || !changes.is_finished() {
            let answers = workload::run(dir)?;
            ensure(
                answers == expected,
                "SQLite answered differently while hooks came and went",
            )?;
            rounds += 1;
        }
        let (runs, time) = changes
            .join()
            .map_err(|_| "the thread that changes hooks panicked")??;
        ensure(runs > 0, "no program ran")?;
        println!("   {HOOKS} hooks came and went in {time:.1?}; their programs ran {runs} times");
        println!("   the work was done {rounds} times meanwhile, always with the same answers\n");
        Ok(())
    })
}

/// Attaches and detaches, and tells how often the programs ran.
fn come_and_go(rt: &Runtime) -> Outcome<u64> {
    let mut runs = 0;
    let mut older = Vec::new();
    for _ in 0..HOOKS / AT_ONCE {
        let newer = hook_all(rt)?;
        runs += unhook_all(rt, &older)?;
        older = newer;
    }
    Ok(runs + unhook_all(rt, &older)?)
}

/// Hooks [`FUNCTIONS`] over and over, with programs of each kind.
fn hook_all(rt: &Runtime) -> Result<Vec<Hook>, rvbpf::Error> {
    let functions = FUNCTIONS.iter().cycle().take(AT_ONCE);
    let builders = functions.enumerate().map(|(i, &function)| {
        // SAFETY:
        // 1. `untyped` says nothing of the function that could be wrong.
        let hook = unsafe { rt.hook_addr(function, FuncModel::untyped()) }?;
        Ok(match i % 4 {
            0 => hook.on_entry(|_| {}),
            1 => hook.on_exit(|_, _| {}),
            2 => hook.on_session(|_, _| {}, |_, _, _| {}),
            _ => hook
                .on_entry(|_| {})
                .override_return(|()| None)
                .on_exit(|_, _| {}),
        })
    });
    rt.attach_all(builders.collect::<Result<Vec<_>, rvbpf::Error>>()?)
}

fn unhook_all(rt: &Runtime, hooks: &[Hook]) -> Outcome<u64> {
    rt.detach_all(hooks)?;
    let stats: Vec<_> = hooks.iter().map(Hook::stats).collect();
    let well = stats.iter().all(|s| s.missed == 0 && s.panics == 0);
    ensure(well, "a program did not run when it should have")?;
    Ok(stats.iter().map(|s| s.runs).sum())
}
