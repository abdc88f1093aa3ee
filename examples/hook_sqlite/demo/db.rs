//! SQLite's C functions, made safe: as much of them as the demo needs.

#![expect(unsafe_code, reason = "calls SQLite")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::{fmt, ptr, slice};

use libsqlite3_sys as sqlite;

/// An open database.
pub(super) struct Db {
    raw: *mut sqlite::sqlite3,
}

/// A prepared statement.
pub(super) struct Stmt<'db> {
    raw: *mut sqlite::sqlite3_stmt,
    db: &'db Db,
}

/// What SQLite answers when something did not work.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct SqlError(c_int);

impl SqlError {
    /// `SQLITE_NOMEM`, or that with more said about it.
    pub(super) fn is_out_of_memory(self) -> bool {
        self.0 & 0xff == sqlite::SQLITE_NOMEM || self.0 == sqlite::SQLITE_IOERR_NOMEM
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: 1. takes any number.
        let text = unsafe { sqlite::sqlite3_errstr(self.0) };
        // SAFETY: 1. a string constant of SQLite's.
        let text = unsafe { CStr::from_ptr(text) };
        write!(f, "SQLite answered {}: {}", self.0, text.to_string_lossy())
    }
}

impl std::error::Error for SqlError {}

impl Db {
    /// Opens the database in the file at `path`, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, SqlError> {
        let path = c_string(&path.to_string_lossy())?;
        let mut db = Db {
            raw: ptr::null_mut(),
        };
        // SAFETY: 1. a C string, and room for a pointer.
        match unsafe { sqlite::sqlite3_open(path.as_ptr(), &mut db.raw) } {
            sqlite::SQLITE_OK => Ok(db),
            code => Err(SqlError(code)),
        }
    }

    /// Lets each piece of memory come from the allocator, and none from the connection's own store.
    pub(super) fn without_lookaside(&self) -> Result<(), SqlError> {
        let (what, none) = (sqlite::SQLITE_DBCONFIG_LOOKASIDE, ptr::null_mut::<c_void>());
        // SAFETY: 1. an open database. 2. this option takes a buffer and two `int`s.
        self.check(unsafe { sqlite::sqlite3_db_config(self.raw, what, none, 0, 0) })
    }

    pub(super) fn prepare(&self, sql: &str) -> Result<Stmt<'_>, SqlError> {
        let sql = c_string(sql)?;
        let mut stmt = Stmt {
            raw: ptr::null_mut(),
            db: self,
        };
        // SAFETY: 1. an open database, a C string, and room for a pointer.
        let code = unsafe {
            sqlite::sqlite3_prepare_v2(self.raw, sql.as_ptr(), -1, &mut stmt.raw, ptr::null_mut())
        };
        self.check(code).map(|()| stmt)
    }

    /// Runs one statement and gives its rows, columns parted by `|`.
    pub(super) fn rows(&self, sql: &str) -> Result<Vec<String>, SqlError> {
        let mut stmt = self.prepare(sql)?;
        let mut rows = Vec::new();
        while stmt.step()? {
            rows.push(stmt.columns().collect::<Vec<_>>().join("|"));
        }
        Ok(rows)
    }

    /// Runs one statement for what it does.
    pub(super) fn run(&self, sql: &str) -> Result<(), SqlError> {
        self.rows(sql).map(drop)
    }

    /// Is a transaction open?
    pub(super) fn in_transaction(&self) -> bool {
        // SAFETY: 1. an open database.
        unsafe { sqlite::sqlite3_get_autocommit(self.raw) == 0 }
    }

    fn check(&self, code: c_int) -> Result<(), SqlError> {
        match code {
            sqlite::SQLITE_OK | sqlite::SQLITE_ROW | sqlite::SQLITE_DONE => Ok(()),
            // SAFETY: 1. an open database.
            _ => Err(SqlError(unsafe {
                sqlite::sqlite3_extended_errcode(self.raw)
            })),
        }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        // SAFETY: 1. null or open, and no statement outlives it.
        unsafe { sqlite::sqlite3_close(self.raw) };
    }
}

impl Stmt<'_> {
    /// Gives parameter `n`, counted from 1, a value.
    pub(super) fn bind_int(&mut self, n: c_int, value: i64) -> Result<(), SqlError> {
        // SAFETY: 1. a prepared statement; a wrong `n` is refused.
        let code = unsafe { sqlite::sqlite3_bind_int64(self.raw, n, value) };
        self.db.check(code)
    }

    /// Gives parameter `n`, counted from 1, a value.
    pub(super) fn bind_text(&mut self, n: c_int, value: &str) -> Result<(), SqlError> {
        let len_bytes =
            c_int::try_from(value.len()).map_err(|_| SqlError(sqlite::SQLITE_TOOBIG))?;
        let (text, copied) = (value.as_ptr().cast(), sqlite::SQLITE_TRANSIENT());
        // SAFETY: 1. as `bind_int`. 2. so many bytes are there, and SQLite copies them.
        let code = unsafe { sqlite::sqlite3_bind_text(self.raw, n, text, len_bytes, copied) };
        self.db.check(code)
    }

    /// Goes on to the next row. `false`: there is none.
    pub(super) fn step(&mut self) -> Result<bool, SqlError> {
        // SAFETY: 1. a prepared statement.
        let code = unsafe { sqlite::sqlite3_step(self.raw) };
        self.db.check(code).map(|()| code == sqlite::SQLITE_ROW)
    }

    /// Back to the beginning, for the next values.
    pub(super) fn reset(&mut self) -> Result<(), SqlError> {
        // SAFETY: 1. a prepared statement.
        self.db.check(unsafe { sqlite::sqlite3_reset(self.raw) })
    }

    /// The columns of this row, as text.
    fn columns(&self) -> impl Iterator<Item = String> {
        // SAFETY: 1. a prepared statement.
        let count = unsafe { sqlite::sqlite3_column_count(self.raw) };
        (0..count).map(|i| {
            // SAFETY: 1. a statement that stands on a row.
            let text = unsafe { sqlite::sqlite3_column_text(self.raw, i) };
            // SAFETY: 1. as above, after the conversion to text.
            let len_bytes = unsafe { sqlite::sqlite3_column_bytes(self.raw, i) };
            if text.is_null() {
                return "NULL".to_owned();
            }
            // SAFETY: 1. so many bytes are there until the next step.
            let text = unsafe { slice::from_raw_parts(text, len_bytes as usize) };
            String::from_utf8_lossy(text).into_owned()
        })
    }
}

impl Drop for Stmt<'_> {
    fn drop(&mut self) {
        // SAFETY: 1. null or prepared.
        unsafe { sqlite::sqlite3_finalize(self.raw) };
    }
}

fn c_string(text: &str) -> Result<CString, SqlError> {
    CString::new(text).map_err(|_| SqlError(sqlite::SQLITE_MISUSE))
}
