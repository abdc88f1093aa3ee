//! What SQLite is given to do, and what it answers.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::{fs, thread};

use super::Outcome;
use super::db::{Db, SqlError};

/// Threads, each with a database of its own.
pub(super) const THREADS: i64 = 4;

/// Rows inserted by all threads together.
pub(super) const INSERTS: i64 = 100_000;

const ROWS_PER_TRANSACTION: usize = 1_000;
const CUSTOMERS: i64 = 500;

const SCHEMA: [&str; 3] = [
    "PRAGMA synchronous = OFF",
    "CREATE TABLE customer (id INTEGER PRIMARY KEY, city TEXT)",
    "CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customer,
                            cents INTEGER, note TEXT)",
];

/// Run in this order, after the inserts.
const QUESTIONS: [&str; 9] = [
    "SELECT city, count(*), sum(cents) FROM customer JOIN purchase ON customer = customer.id
     GROUP BY city ORDER BY city",
    "CREATE INDEX by_customer ON purchase (customer, cents)",
    "SELECT a.id, b.id FROM purchase a JOIN purchase b USING (customer)
     WHERE a.cents = b.cents AND a.id < b.id ORDER BY a.id, b.id LIMIT 1000",
    "UPDATE purchase SET note = upper(note) WHERE customer % 10 = 3",
    "DELETE FROM purchase WHERE id % 7 = 0",
    "SELECT id, note FROM purchase WHERE note LIKE '%99 things' ORDER BY cents DESC, id",
    "VACUUM",
    "SELECT count(*), sum(cents), max(note) FROM purchase",
    "PRAGMA integrity_check",
];

/// Does all the work on [`THREADS`] threads, in new databases in `dir`. One number for each
/// thread: a hash of every row that SQLite answered with.
pub(super) fn run(dir: &Path) -> Outcome<Vec<u64>> {
    thread::scope(|scope| {
        let worker = |n| move || one_database(&dir.join(format!("{n}.db")), n);
        let workers: Vec<_> = (0..THREADS).map(|n| scope.spawn(worker(n))).collect();
        workers
            .into_iter()
            .map(|w| w.join().map_err(|_| "a worker thread panicked")?)
            .collect()
    })
}

fn one_database(path: &Path, thread: i64) -> Outcome<u64> {
    let db = Db::open(path)?;
    for sql in SCHEMA {
        db.run(sql)?;
    }
    insert(&db, thread)?;
    let mut answers = DefaultHasher::new();
    for sql in QUESTIONS {
        db.rows(sql)?.hash(&mut answers);
    }
    drop(db);
    fs::remove_file(path)?;
    Ok(answers.finish())
}

fn insert(db: &Db, thread: i64) -> Result<(), SqlError> {
    let mut customer = db.prepare("INSERT INTO customer VALUES (?, ?)")?;
    db.run("BEGIN")?;
    for id in 0..CUSTOMERS {
        customer.bind_int(1, id)?;
        customer.bind_text(
            2,
            ["Anvers", "Brno", "Cádiz", "Dakar", "Évora"][(id % 5) as usize],
        )?;
        customer.step()?;
        customer.reset()?;
    }
    db.run("COMMIT")?;

    let mut purchase = db.prepare("INSERT INTO purchase VALUES (?, ?, ?, ?)")?;
    let mut random = random(thread);
    let rows = INSERTS / THREADS;
    for first in (0..rows).step_by(ROWS_PER_TRANSACTION) {
        db.run("BEGIN")?;
        for id in first..rows.min(first + ROWS_PER_TRANSACTION as i64) {
            purchase.bind_int(1, id)?;
            purchase.bind_int(2, random() % CUSTOMERS)?;
            purchase.bind_int(3, random() % 10_000)?;
            purchase.bind_text(4, &format!("{} things", random() % 10_000))?;
            purchase.step()?;
            purchase.reset()?;
        }
        db.run("COMMIT")?;
    }
    Ok(())
}

/// The same numbers for the same seed, always. Knuth's MMIX generator.
fn random(seed: i64) -> impl FnMut() -> i64 {
    let mut state = seed as u64;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as i64
    }
}
