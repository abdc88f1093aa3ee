//! The rows of the conformance vectors, by chapter of RFC 9669.
//!
//! | module | chapter |
//! | --- | --- |
//! | `alu64`, `alu32`, `moves` | 4.1, 4.2: arithmetic, moves, byte order |
//! | `jumps` | 4.3: branches and jumps |
//! | `calls` | 4.3.2: functions of the program |
//! | `memory` | 5.1, 5.2, 5.4: loads, stores, constants of 64 bits |
//! | `atomics` | 5.3 |
//! | `encodings` | 3: what no instruction may look like |
//! | `structure` | what no program may look like; kernel: `check_cfg`, `check_max_stack_depth` |
//!
//! An expected result is written beside its row and comes from the RFC. `asm` encodes from the
//! RFC's tables and knows nothing of the crate, so that a wrong number there or here shows.

mod alu32;
mod alu64;
mod asm;
mod atomics;
mod calls;
mod encodings;
mod jumps;
mod memory;
mod moves;
mod structure;
pub(crate) mod table;

use table::{Table, Vector};

/// All vectors, in the order of the file.
pub(crate) fn vectors() -> Vec<Vector> {
    let mut table = Table::default();
    alu64::rows(&mut table);
    alu32::rows(&mut table);
    moves::rows(&mut table);
    jumps::rows(&mut table);
    calls::rows(&mut table);
    memory::rows(&mut table);
    atomics::rows(&mut table);
    encodings::rows(&mut table);
    structure::rows(&mut table);
    table.into_vectors()
}
