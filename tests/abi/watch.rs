//! The program that the ABI tests attach: it looks at its context, then wrecks what it may.
//!
//! [`Watch`] says what it shall look for and keeps what it saw. The program reads every argument
//! (and at exit the return value) through the context slots of the function's model, then leaves
//! all caller-saved registers, `errno` and `fcsr` different, so that whatever the image forgot to
//! save shows.

use std::sync::{Mutex, MutexGuard, PoisonError};

use testlib::functions::{tl_clobber, tl_set_errno, tl_set_fcsr};
use testlib::sig::Sig;
use trampoline::model::{FuncModel, Pass, Slot, SlotOf};

use crate::common::gather;

/// What a run of the program saw.
#[derive(Debug)]
pub(crate) struct Event {
    /// Which of the attached programs.
    pub(crate) who: Who,
    /// The context: argument slots, and return slots at exit.
    pub(crate) words: Vec<u64>,
    /// The arguments put together from them.
    pub(crate) args: Result<Vec<Vec<u8>>, String>,
    /// At exit: the return value put together.
    pub(crate) ret: Option<Result<Vec<u8>, String>>,
}

/// Where the program is attached; its cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Who {
    Entry = 0x1111,
    Exit = 0x2222,
    /// fmod_ret that returns 0.
    LetPass = 0x3333,
    /// fmod_ret that returns 1 and leaves [`Watch::ret`] in the return slots.
    Override = 0x4444,
}

/// What to look for in the one call that is under way.
pub(crate) struct Watch {
    pub(crate) sig: Sig,
    pub(crate) model: FuncModel,
    /// The bytes that [`Who::Override`] returns.
    pub(crate) ret: Vec<u8>,
    pub(crate) events: Vec<Event>,
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Watch>> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `call` under this watch; what its programs saw.
pub(crate) fn watch<T>(watch: Watch, call: impl FnOnce() -> T) -> (T, Vec<Event>) {
    *lock() = Some(watch);
    let result = call();
    let events = lock().take().map(|watch| watch.events).unwrap_or_default();
    (result, events)
}

/// The program. Type: `trampoline::ProgFn`.
///
/// # Safety
/// `ctx` is the context of the function that the current [`Watch`] describes.
pub(crate) unsafe extern "C" fn program(ctx: *mut u64, cookie: u64) -> u64 {
    let who = [Who::Entry, Who::Exit, Who::LetPass, Who::Override]
        .into_iter()
        .find(|who| *who as u64 == cookie);
    if let (Some(who), Some(watch)) = (who, lock().as_mut()) {
        let event = look(watch, ctx, who);
        if who == Who::Override {
            leave_ret(watch, ctx);
        }
        watch.events.push(event);
    }
    tl_set_errno(77);
    // SAFETY: any value is a value of `fcsr`'s rounding mode and flags; the image restores it.
    unsafe { tl_set_fcsr(0b010_01010) };
    tl_clobber();
    u64::from(who == Some(Who::Override))
}

fn look(watch: &Watch, ctx: *mut u64, who: Who) -> Event {
    let Watch { sig, model, .. } = watch;
    let args = model.slots();
    let rets = if who == Who::Exit {
        model.ret().slots()
    } else {
        &[]
    };
    let words: Vec<u64> = (0..args.len() + rets.len())
        // SAFETY: the context has the model's argument slots, and at exit its return slots.
        .map(|i| unsafe { ctx.wrapping_add(i).read() })
        .collect();
    let ret = match model.ret().pass() {
        _ if who != Who::Exit => None,
        Pass::Value => {
            let value = |i: usize, _: &Slot| words[args.len() + i];
            Some(gather(rets, [&sig.ret].into_iter(), value).map(|mut all| all.remove(0)))
        }
        Pass::Reference { .. } => {
            let ptr_slot = Slot {
                of: SlotOf::Arg(0),
                pass: model.ret().pass(),
                ..args[0]
            };
            let value = |_: usize, _: &Slot| words[0];
            Some(gather(&[ptr_slot], [&sig.ret].into_iter(), value).map(|mut all| all.remove(0)))
        }
    };
    let args = gather(args, sig.named.iter(), |i, _| words[i]);
    Event {
        who,
        words,
        args,
        ret,
    }
}

/// Writes [`Watch::ret`] into the return slots, the bits above a narrow value wrong on purpose.
fn leave_ret(watch: &Watch, ctx: *mut u64) {
    let nr_args = watch.model.nr_arg_slots();
    let put = |i: usize, word: u64| {
        // SAFETY: an fmod_ret context has the return slots behind the argument slots.
        unsafe { ctx.wrapping_add(nr_args + i).write(word) }
    };
    if let Pass::Reference { .. } = watch.model.ret().pass() {
        // SAFETY: slot 0 is the hidden return pointer.
        let to = unsafe { ctx.read() };
        // SAFETY: 1. it points to room for the value; 2. the generator made `ret` that long.
        unsafe { (to as *mut u8).copy_from(watch.ret.as_ptr(), watch.ret.len()) };
        put(0, to);
        return;
    }
    for (i, slot) in watch.model.ret().slots().iter().enumerate() {
        let mut word = 0x5a5a_5a5a_5a5a_5a5a_u64.to_le_bytes();
        let (at, len) = (slot.offset_bytes as usize, usize::from(slot.size_bytes));
        word[..len].copy_from_slice(&watch.ret[at..][..len]);
        put(i, u64::from_le_bytes(word));
    }
}
