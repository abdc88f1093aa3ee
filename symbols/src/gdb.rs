//! gdb's JIT interface: a list of objects in memory, and a function that gdb stops at when the list
//! changes.
//!
//! Both have names that gdb looks for. They are weak: where another compiler in the process (LLVM,
//! say) has its own, that is the one and its list is ours too. Nobody else's entries are touched.
//!
//! Key type: [`Registered`]. Neighbours: `elf` makes the object. Source: gdb's manual, "JIT
//! Compilation Interface".

#![expect(unsafe_code, reason = "a list whose form and names gdb knows")]

use std::sync::{Mutex, PoisonError};

/// An object in the list. gdb reads it: the layout is the manual's.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    next: *mut Entry,
    prev: *mut Entry,
    object: *const u8,
    object_bytes: u64,
}

/// The list's head, and what has happened to it.
#[derive(Debug)]
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

const NOTHING: u32 = 0;
const REGISTERED: u32 = 1;
const UNREGISTERED: u32 = 2;

const _: () = assert!(std::mem::offset_of!(Entry, object_bytes) == 24);
const _: () = assert!(std::mem::offset_of!(Descriptor, first) == 16);

// Version 1, and an empty list.
std::arch::global_asm!(
    ".pushsection .text.__jit_debug_register_code, \"ax\", @progbits",
    ".weak __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    ".balign 4",
    "__jit_debug_register_code:",
    "    ret",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".pushsection .data.__jit_debug_descriptor, \"aw\", @progbits",
    ".weak __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    ".balign 8",
    "__jit_debug_descriptor:",
    "    .4byte 1, 0",
    "    .8byte 0, 0",
    ".size __jit_debug_descriptor, . - __jit_debug_descriptor",
    ".popsection",
);

unsafe extern "C" {
    fn __jit_debug_register_code();
    static mut __jit_debug_descriptor: Descriptor;
}

static LOCK: Mutex<()> = Mutex::new(());

/// An object that gdb knows, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Registered {
    entry: *mut Entry,
    /// What the entry points to.
    _object: Box<[u8]>,
}

// SAFETY: 1. the entry is in the list, which is changed under the lock alone.
unsafe impl Send for Registered {}
// SAFETY: 1. as above; `&Registered` gives no access to it.
unsafe impl Sync for Registered {}

impl Registered {
    pub(crate) fn new(object: Vec<u8>) -> Self {
        let object = object.into_boxed_slice();
        let entry = Box::into_raw(Box::new(Entry {
            next: std::ptr::null_mut(),
            prev: std::ptr::null_mut(),
            object: object.as_ptr(),
            object_bytes: object.len() as u64,
        }));
        // SAFETY: 1. a fresh entry, which is in no list yet.
        change(|list| unsafe { list.push(entry) });
        Self {
            entry,
            _object: object,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: 1. `new` has put it into the list.
        change(|list| unsafe { list.remove(self.entry) });
        // SAFETY: 1. made by `Box::into_raw`; nobody has it any more.
        drop(unsafe { Box::from_raw(self.entry) });
    }
}

/// Changes the list and lets gdb look.
fn change(f: impl FnOnce(&mut Descriptor)) {
    let _one = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let list = &raw mut __jit_debug_descriptor;
    // SAFETY:
    // 1. It is a static of this layout, ours or that of whoever has the interface too.
    // 2. Threads of ours change it one after the other; it is the interface's flaw that there is no
    //    lock for all.
    let list = unsafe { &mut *list };
    f(list);
    // SAFETY: 1. it does nothing; gdb has a breakpoint there.
    unsafe { __jit_debug_register_code() };
    list.action = NOTHING;
    list.relevant = std::ptr::null_mut();
}

impl Descriptor {
    /// # Safety
    /// 1. `entry` is valid and in no list.
    unsafe fn push(&mut self, entry: *mut Entry) {
        let first = self.first;
        // SAFETY: 1. caller's contract.
        unsafe { (*entry).next = first };
        if !first.is_null() {
            // SAFETY: 1. what is in the list is valid.
            unsafe { (*first).prev = entry };
        }
        self.first = entry;
        (self.action, self.relevant) = (REGISTERED, entry);
    }

    /// # Safety
    /// 1. `entry` is in this list.
    unsafe fn remove(&mut self, entry: *mut Entry) {
        // SAFETY: 1. caller's contract.
        let next = unsafe { (*entry).next };
        // SAFETY: 1. caller's contract.
        let prev = unsafe { (*entry).prev };
        if prev.is_null() {
            self.first = next;
        } else {
            // SAFETY: 1. what is in the list is valid.
            unsafe { (*prev).next = next };
        }
        if !next.is_null() {
            // SAFETY: 1. what is in the list is valid.
            unsafe { (*next).prev = prev };
        }
        (self.action, self.relevant) = (UNREGISTERED, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objects of the list, the newest first.
    fn listed() -> Vec<Vec<u8>> {
        let _one = LOCK.lock().unwrap();
        let list = &raw const __jit_debug_descriptor;
        // SAFETY: 1. nobody changes it: we have the lock.
        let mut at = unsafe { (*list).first };
        let mut all = Vec::new();
        while !at.is_null() {
            // SAFETY: 1. what is in the list is valid.
            let entry = unsafe { &*at };
            let len = entry.object_bytes as usize;
            // SAFETY: 1. entries point to whole objects.
            all.push(unsafe { std::slice::from_raw_parts(entry.object, len) }.to_vec());
            at = entry.next;
        }
        all
    }

    #[test]
    fn objects_come_and_go_in_any_order() {
        let one = Registered::new(vec![1]);
        let two = Registered::new(vec![2, 2]);
        let three = Registered::new(vec![3]);
        assert_eq!(listed(), [vec![3], vec![2, 2], vec![1]]);
        drop(two);
        assert_eq!(listed(), [vec![3], vec![1]]);
        drop(three);
        assert_eq!(listed(), [vec![1]]);
        drop(one);
        assert!(listed().is_empty());
    }
}
