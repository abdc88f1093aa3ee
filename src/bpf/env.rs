//! What a program finds outside itself: helpers, host functions, maps.
//!
//! A function is added by its Rust type, which says how its arguments and its result are extended:
//! a BPF register has 64 bits, and the caller of a C function must extend what is narrower
//! (RISC-V psABI, "Integer Calling Convention": 32-bit values are sign-extended, signed or not).
//!
//! Key types: [`Env`], [`HostFn`], [`HostArg`]. Neighbours: `interp` and `jit` call what is here;
//! `objects` holds what is not called.
//! Source: kernel `kernel/bpf/helpers.c`; `arch/riscv/net/bpf_jit_comp64.c` (`sign_extend`).

#![expect(
    unsafe_code,
    reason = "declares the promises under which functions are called"
)]

use std::collections::BTreeMap;

use super::arena::Arena;
use super::array::ProgArray;
use super::error::Reason;
use super::objects::{MapObject, Objects};
use super::op::{Callee, Imm64, Op, Size};
use super::program::Program;
use super::regs::{RegSet, first_args};

/// How a value fills 64 bits.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Fill {
    /// It has 64 bits.
    Whole,
    /// So many bits, with zeros.
    Zeros(Size),
    /// So many bits, with their sign.
    Sign(Size),
}

impl Fill {
    /// `value`, extended.
    #[must_use]
    pub const fn apply(self, value: u64) -> u64 {
        match self {
            Self::Whole => value,
            Self::Zeros(size) => value << (64 - size.bits()) >> (64 - size.bits()),
            Self::Sign(size) => ((value << (64 - size.bits())) as i64 >> (64 - size.bits())) as u64,
        }
    }

    /// The same for an argument of a C function: 32 bits are sign-extended always.
    #[must_use]
    pub(crate) const fn of_arg(self) -> Self {
        match self {
            Self::Zeros(Size::W) => Self::Sign(Size::W),
            other => other,
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A type that a host function can return.
pub trait HostRet: sealed::Sealed {
    /// How it fills a register.
    #[doc(hidden)]
    const FILL: Fill;
}

/// A type that a host function can take: any value of a register, cut, is one of it. (A `bool` is
/// not: take a `u8`.)
pub trait HostArg: HostRet {}

impl sealed::Sealed for () {}
impl HostRet for () {
    const FILL: Fill = Fill::Whole;
}
impl sealed::Sealed for bool {}
impl HostRet for bool {
    const FILL: Fill = Fill::Zeros(Size::B);
}

macro_rules! host_args {
    ($($ty:ty: $fill:expr;)*) => {$(
        impl sealed::Sealed for $ty {}
        impl HostRet for $ty {
            const FILL: Fill = $fill;
        }
        impl HostArg for $ty {}
    )*};
}

host_args! {
    u8: Fill::Zeros(Size::B);
    i8: Fill::Sign(Size::B);
    u16: Fill::Zeros(Size::H);
    i16: Fill::Sign(Size::H);
    u32: Fill::Zeros(Size::W);
    i32: Fill::Sign(Size::W);
    u64: Fill::Whole;
    i64: Fill::Whole;
    usize: Fill::Whole;
    isize: Fill::Whole;
}

impl<T> sealed::Sealed for *const T {}
impl<T> HostRet for *const T {
    const FILL: Fill = Fill::Whole;
}
impl<T> HostArg for *const T {}
impl<T> sealed::Sealed for *mut T {}
impl<T> HostRet for *mut T {
    const FILL: Fill = Fill::Whole;
}
impl<T> HostArg for *mut T {}

/// A function of the host that programs can call: an `extern "C"` function pointer of up to five
/// arguments.
pub trait HostFn: sealed::Sealed {
    /// Its address and how its values fill registers.
    #[doc(hidden)]
    fn import(self) -> Import;
}

/// A host function as the compiler sees it.
#[doc(hidden)]
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Import {
    pub(crate) addr: u64,
    pub(crate) args: [Fill; 5],
    pub(crate) ret: Fill,
    /// How many arguments a program must have set.
    pub(crate) arity: u32,
    /// What compiled code does instead of the call.
    pub(crate) inline: Option<Inline>,
}

/// What a helper does, where that is a few instructions. The function does the same.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Inline {
    /// `get_func_ip`
    FuncIp,
    /// `get_func_arg_cnt`
    FuncArgCnt,
    /// `get_func_arg`
    FuncArg,
    /// `get_func_ret`
    FuncRet,
    /// `get_attach_cookie`
    AttachCookie,
    /// `get_smp_processor_id`: 32 bits at this distance from the thread pointer.
    ProcessorId { tp_off: i32 },
}

macro_rules! host_fn {
    ([$($unsafe:tt)?] $($arg:ident $i:literal)*) => {
        impl<Ret: HostRet, $($arg: HostArg),*> sealed::Sealed
            for $($unsafe)? extern "C" fn($($arg),*) -> Ret {}
        impl<Ret: HostRet, $($arg: HostArg),*> HostFn
            for $($unsafe)? extern "C" fn($($arg),*) -> Ret
        {
            fn import(self) -> Import {
                #[allow(unused_mut, reason = "functions without arguments")]
                let mut args = [Fill::Whole; 5];
                $(args[$i] = $arg::FILL.of_arg();)*
                let arity = <[usize]>::len(&[$($i),*]) as u32;
                Import { addr: self as usize as u64, args, ret: Ret::FILL, arity, inline: None }
            }
        }
    };
}

macro_rules! host_fns {
    ($(($($arg:ident $i:literal)*))*) => {$(
        host_fn!([] $($arg $i)*);
        host_fn!([unsafe] $($arg $i)*);
    )*};
}

host_fns! {
    ()
    (A 0)
    (A 0 B 1)
    (A 0 B 1 C 2)
    (A 0 B 1 C 2 D 3)
    (A 0 B 1 C 2 D 3 E 4)
}

/// `bpf_trace_printk`. Kernel: `___BPF_FUNC_MAPPER`.
const TRACE_PRINTK: i32 = 6;
/// `bpf_tail_call`.
const TAIL_CALL: i32 = 12;
/// `bpf_loop`.
const LOOP: i32 = 181;

/// A call that leads nowhere: it is a jump or a loop in truth.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Control {
    /// Goes on in program `r3` of array `r2` instead of this function, with `r1`; where there is
    /// none, or after [`MAX_TAIL_CALLS`](super::MAX_TAIL_CALLS), `r0` is `-EINVAL`.
    TailCall,
    /// Calls `r2` with 0, 1, 2 … and `r3`, at most `r1` times, until it gives something else than
    /// 0; `r0` is how often. With flags in `r4`: `-EINVAL`; more than 2^23 times: `-E2BIG`.
    Loop,
    /// Leaves all functions of the program; the exception callback's result, for `r1`, is the
    /// program's.
    Throw,
}

/// The kinds of them that a program makes.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Controls {
    pub(crate) tail_calls: bool,
    pub(crate) loops: bool,
    pub(crate) throws: bool,
}

/// Everything that a program can refer to.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Env {
    helpers: BTreeMap<i32, Import>,
    host: BTreeMap<i32, Import>,
    throw: Option<i32>,
    objects: Objects,
    prog_arrays: Vec<ProgArray>,
}

impl Env {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a helper, or replaces it: it is called then, even if compiled code had its
    /// predecessor inline.
    ///
    /// # Safety
    /// 1. The function may be called with whatever programs of this environment pass it, and
    ///    returns.
    pub unsafe fn helper(mut self, id: i32, func: impl HostFn) -> Self {
        let mut import = func.import();
        if id == TRACE_PRINTK {
            // Its format says what follows the first two. Kernel: `ARG_DONTCARE`.
            import.arity = import.arity.min(2);
        }
        self.helpers.insert(id, import);
        self
    }

    /// Adds a helper that compiled code need not call.
    ///
    /// # Safety
    /// 1. As [`Env::helper`].
    /// 2. The function does what `inline` says, if it says something.
    pub(super) unsafe fn inlined(
        mut self,
        id: i32,
        func: impl HostFn,
        inline: Option<Inline>,
    ) -> Self {
        let import = func.import();
        self.helpers.insert(id, Import { inline, ..import });
        self
    }

    /// Adds a host function, or replaces it, under the BTF id by which programs call it.
    ///
    /// # Safety
    /// As [`Env::helper`].
    #[doc(alias = "kfunc")]
    pub unsafe fn host_fn(mut self, id: i32, func: impl HostFn) -> Self {
        self.host.insert(id, func.import());
        self
    }

    /// Adds an object that programs refer to as the next map of their list, by its address.
    pub fn map(self, addr: *const ()) -> Self {
        self.object(MapObject::new(addr))
    }

    /// Adds an object as the next map of the list: one with a file descriptor, or with a value.
    pub fn object(mut self, map: MapObject) -> Self {
        self.objects.add(map);
        self
    }

    /// Adds an arena as the next map of the list, and makes it the one that casts and arena
    /// accesses are about. A program has one; of several the last counts. It lives as long as
    /// programs that were loaded with it.
    ///
    /// Programs that add and free pages themselves do so by
    /// [`arena_alloc_pages`](super::arena_alloc_pages) and
    /// [`arena_free_pages`](super::arena_free_pages), as [host functions](Env::host_fn).
    pub fn arena(self, arena: &Arena) -> Self {
        self.object(MapObject::arena(arena))
    }

    /// Adds a variable, or replaces it, under the BTF id by which programs refer to it.
    #[doc(alias = "ksym")]
    pub fn variable(mut self, id: i32, addr: *const ()) -> Self {
        self.objects.add_variable(id, addr as u64);
        self
    }

    /// The BTF id by which programs call `bpf_throw`: from whatever depth of calls, the program
    /// ends with what its exception callback makes of the cookie.
    #[doc(alias = "bpf_throw")]
    pub fn throw(mut self, id: i32) -> Self {
        self.throw = Some(id);
        self
    }

    /// Adds an array of programs as the next map of the list; tail calls go through it.
    #[doc(alias = "BPF_MAP_TYPE_PROG_ARRAY")]
    pub fn prog_array(mut self, array: &ProgArray) -> Self {
        self.prog_arrays.push(array.clone());
        let addr = std::ptr::with_exposed_provenance(array.addr() as usize);
        self.object(MapObject::new(addr))
    }

    /// The arrays of programs.
    pub(crate) fn prog_arrays(&self) -> &[ProgArray] {
        &self.prog_arrays
    }

    /// The calls that are none. Functions of the user's own come first.
    pub(crate) fn control(&self, callee: Callee) -> Option<Control> {
        match callee {
            Callee::Helper(id) if self.helpers.contains_key(&id) => None,
            Callee::Host { id, .. } if self.host.contains_key(&id) => None,
            Callee::Helper(TAIL_CALL) => Some(Control::TailCall),
            Callee::Helper(LOOP) => Some(Control::Loop),
            Callee::Host { id, .. } if self.throw == Some(id) => Some(Control::Throw),
            _ => None,
        }
    }

    /// Which of them a program makes.
    pub(crate) fn controls(&self, program: &Program) -> Controls {
        let mut made = Controls::default();
        for op in program.ops().iter().flatten() {
            let Op::Call(callee) = *op else { continue };
            match self.control(callee) {
                Some(Control::TailCall) => made.tail_calls = true,
                Some(Control::Loop) => made.loops = true,
                Some(Control::Throw) => made.throws = true,
                None => {}
            }
        }
        made
    }

    /// What a call leads to outside the program, if it is there.
    pub(crate) fn import(&self, callee: Callee) -> Option<&Import> {
        match callee {
            Callee::Helper(id) => self.helpers.get(&id),
            Callee::Host { id, .. } => self.host.get(&id),
            Callee::Local(_) => None,
        }
    }

    /// The argument registers that a call out of the program reads.
    pub(crate) fn args_of(&self, callee: Callee) -> RegSet {
        let count = match self.control(callee) {
            Some(Control::TailCall) => 3,
            Some(Control::Loop) => 4,
            Some(Control::Throw) => 1,
            None => self.import(callee).map_or(0, |import| import.arity),
        };
        first_args(count)
    }

    /// Whether compiled code calls somebody for a call.
    pub(crate) fn is_called(&self, callee: Callee) -> bool {
        match self.control(callee) {
            Some(Control::TailCall | Control::Throw) => false,
            Some(Control::Loop) => true,
            None => self
                .import(callee)
                .is_none_or(|import| import.inline.is_none()),
        }
    }

    /// What a constant stands for; `Err`: what it refers to is not there.
    pub(crate) fn address(&self, imm: Imm64) -> Result<u64, Reason> {
        self.objects.address(imm)
    }

    /// What constants refer to.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The arena, if there is one.
    pub(crate) fn arena_of_programs(&self) -> Option<&Arena> {
        self.objects.arena()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn mixed(a: u8, b: i16, c: u32, d: *const u8) -> i32 {
        i32::from(a) + i32::from(b) + c as i32 + d as usize as i32
    }

    #[test]
    fn types_say_how_registers_are_filled() {
        let import = (mixed as extern "C" fn(u8, i16, u32, *const u8) -> i32).import();
        let want = [
            Fill::Zeros(Size::B),
            Fill::Sign(Size::H),
            Fill::Sign(Size::W),
            Fill::Whole,
            Fill::Whole,
        ];
        assert_eq!(import.args, want);
        assert_eq!(import.ret, Fill::Sign(Size::W));
    }

    #[test]
    fn values_are_extended() {
        for (fill, value, want) in [
            (Fill::Zeros(Size::B), 0x1ff, 0xff),
            (Fill::Sign(Size::B), 0x180, 0xffff_ffff_ffff_ff80),
            (Fill::Sign(Size::W), 0x8000_0000, 0xffff_ffff_8000_0000),
            (Fill::Zeros(Size::W), u64::MAX, 0xffff_ffff),
            (Fill::Whole, u64::MAX, u64::MAX),
        ] {
            assert_eq!(fill.apply(value), want, "{fill:?}");
        }
    }
}
