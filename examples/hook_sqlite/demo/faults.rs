//! An allocator that fails on purpose.

#![expect(
    unsafe_code,
    reason = "asks SQLite for its allocator, and promises what that looks like"
)]

use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libsqlite3_sys as sqlite;
use rvbpf::{Error, HookBuilder, Runtime};

use super::db::{Db, SqlError};
use super::{Outcome, ensure};

/// Of so many calls of the allocator, the last one fails.
const FAIL_EVERY: u64 = 200;

const TRANSACTIONS: i64 = 500;
const ROWS_PER_TRANSACTION: i64 = 4;

type Malloc = unsafe extern "C" fn(c_int) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;

/// The functions behind all memory that SQLite has. They are `static` in its source and have no
/// symbol to link to: SQLite itself tells where they are.
pub(super) struct Allocator {
    malloc: Malloc,
    realloc: Realloc,
}

impl Allocator {
    /// Works only before SQLite is first used.
    pub(super) fn of_sqlite() -> Outcome<Self> {
        let mut methods = MaybeUninit::<sqlite::sqlite3_mem_methods>::zeroed();
        // SAFETY:
        // 1. `SQLITE_CONFIG_GETMALLOC` takes a pointer to such a struct, and fills it.
        // 2. No other thread uses SQLite yet.
        let code = unsafe {
            sqlite::sqlite3_config(sqlite::SQLITE_CONFIG_GETMALLOC, methods.as_mut_ptr())
        };
        ensure(
            code == sqlite::SQLITE_OK,
            "SQLite does not tell what its allocator is",
        )?;
        // SAFETY: 1. filled, or all null.
        let methods = unsafe { methods.assume_init() };
        match (methods.xMalloc, methods.xRealloc) {
            (Some(malloc), Some(realloc)) => Ok(Allocator { malloc, realloc }),
            _ => Err("SQLite has no allocator".into()),
        }
    }

    fn hook_malloc(&self, rt: &Runtime) -> Result<HookBuilder<Malloc>, Error> {
        // SAFETY: 1. SQLite said so.
        unsafe { rt.hook(self.malloc) }
    }

    fn hook_realloc(&self, rt: &Runtime) -> Result<HookBuilder<Realloc>, Error> {
        // SAFETY: 1. SQLite said so.
        unsafe { rt.hook(self.realloc) }
    }
}

pub(super) fn show(rt: &Runtime, dir: &Path, allocator: &Allocator) -> Outcome {
    println!("3. What if memory runs out?");
    println!(
        "   From now on 1 in {FAIL_EVERY} calls of SQLite's malloc and realloc is not made: the program\n   \
         at its entry answers NULL instead. {TRANSACTIONS} transactions of {ROWS_PER_TRANSACTION} inserts ..."
    );
    let db = Db::open(&dir.join("faults.db"))?;
    db.without_lookaside()?;
    db.run("CREATE TABLE log (txn INTEGER, line TEXT)")?;

    let calls = Arc::new(AtomicU64::new(0));
    let fails = {
        let calls = calls.clone();
        move || (calls.fetch_add(1, Ordering::Relaxed) + 1) % FAIL_EVERY == 0
    };
    let malloc = allocator.hook_malloc(rt)?.override_return({
        let fails = fails.clone();
        move |(_size,)| fails().then_some(ptr::null_mut())
    });
    let realloc = allocator
        .hook_realloc(rt)?
        .override_return(move |(_old, _size)| fails().then_some(ptr::null_mut()));
    let (malloc, realloc) = (malloc.attach()?, realloc.attach()?);
    let committed = insert(&db)?;
    malloc.detach()?;
    realloc.detach()?;

    let calls = calls.load(Ordering::Relaxed);
    let (done, refused) = (
        committed.len() as i64,
        TRANSACTIONS - committed.len() as i64,
    );
    println!("   {} of {calls} calls failed", calls / FAIL_EVERY);
    println!("   {done} transactions were committed, {refused} refused with SQLITE_NOMEM");
    ensure(calls >= FAIL_EVERY && refused > 0, "SQLite noticed nothing")?;
    ensure(done > 0, "SQLite could not do anything")?;
    check(&db, &committed)?;
    println!("   each committed one is there, whole, and nothing of the others;");
    println!("   PRAGMA integrity_check says ok; without the hooks no transaction is refused\n");
    Ok(())
}

/// Tries all transactions, and tells which were committed. Those that were not failed for want of
/// memory, and for nothing else.
fn insert(db: &Db) -> Result<BTreeSet<i64>, SqlError> {
    let mut committed = BTreeSet::new();
    for txn in 0..TRANSACTIONS {
        match transaction(db, txn) {
            Ok(()) => {
                committed.insert(txn);
            }
            Err(e) if e.is_out_of_memory() => roll_back(db)?,
            Err(e) => return Err(e),
        }
    }
    Ok(committed)
}

fn transaction(db: &Db, txn: i64) -> Result<(), SqlError> {
    db.run("BEGIN")?;
    for n in 0..ROWS_PER_TRANSACTION {
        db.run(&format!(
            "INSERT INTO log VALUES ({txn}, 'line {n} of {txn}')"
        ))?;
    }
    db.run("COMMIT")
}

/// Even this may need memory: tries again until it is done.
fn roll_back(db: &Db) -> Result<(), SqlError> {
    while db.in_transaction() {
        match db.run("ROLLBACK") {
            Err(e) if !e.is_out_of_memory() => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// The database is sound and holds what it should; and it goes on working.
fn check(db: &Db, committed: &BTreeSet<i64>) -> Outcome {
    let sound = db.rows("PRAGMA integrity_check")?;
    ensure(sound == ["ok"], "the database is damaged")?;
    let rows = db.rows("SELECT txn, count(*) FROM log GROUP BY txn ORDER BY txn")?;
    let whole = |txn| format!("{txn}|{ROWS_PER_TRANSACTION}");
    ensure(
        rows.into_iter().eq(committed.iter().map(whole)),
        "the database does not hold just what was committed",
    )?;
    let again = insert(db)?;
    ensure(
        again.len() as i64 == TRANSACTIONS,
        "transactions still fail without the hooks",
    )
}
