//! Random C signatures, the same for the same seed: the build script writes them as C, the tests
//! ask the model about them.
//!
//! Key types: [`Ty`], a C type with its layout; [`Sig`], a signature. Neighbours: `build/emit.rs`
//! writes C from these, [`crate::abi`] pairs them with the compiled functions. This file is
//! compiled twice, into the crate and into its build script, and depends on nothing.

/// A C type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ty {
    /// `void`, only as a return type.
    Void,
    /// `_Bool`.
    Bool,
    /// An integer: size in bytes, and whether it is signed.
    Int(u32, Signed),
    /// `void *`.
    Ptr,
    /// A real of 2, 4, 8 or 16 bytes.
    Float(u32),
    /// A complex number of two reals of 4 or 8 bytes.
    Complex(u32),
    /// An array member.
    Array(Box<Ty>, u32),
    /// A struct.
    Struct(Vec<Ty>, Layout),
    /// A union.
    Union(Vec<Ty>),
}

/// Whether an integer is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// `int`
    Yes,
    /// `unsigned`
    No,
}

/// How a struct's members are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As C does.
    C,
    /// `__attribute__((packed))`.
    Packed,
    /// `__attribute__((aligned(16)))`.
    Aligned16,
}

impl Ty {
    /// `sizeof`; 0 for `void`.
    pub fn size_bytes(&self) -> u32 {
        match self {
            Ty::Void => 0,
            Ty::Bool => 1,
            Ty::Int(size, _) | Ty::Float(size) => *size,
            Ty::Ptr => 8,
            Ty::Complex(size) => 2 * size,
            Ty::Array(element, n) => n * element.size_bytes(),
            Ty::Struct(..) => {
                let end = self
                    .member_offsets()
                    .last()
                    .map_or(0, |(at, ty)| at + ty.size_bytes());
                end.next_multiple_of(self.align_bytes())
            }
            Ty::Union(members) => {
                let largest = members.iter().map(Ty::size_bytes).max().unwrap_or(0);
                largest.next_multiple_of(self.align_bytes())
            }
        }
    }

    /// `_Alignof`.
    pub fn align_bytes(&self) -> u32 {
        let largest = |members: &[Ty]| members.iter().map(Ty::align_bytes).max().unwrap_or(1);
        match self {
            Ty::Void => 1,
            Ty::Complex(size) => *size,
            Ty::Array(element, _) => element.align_bytes(),
            Ty::Struct(members, Layout::C) => largest(members),
            Ty::Struct(_, Layout::Packed) => 1,
            Ty::Struct(members, Layout::Aligned16) => largest(members).max(16),
            Ty::Union(members) => largest(members),
            scalar => scalar.size_bytes(),
        }
    }

    /// The members of a struct with their offsets; nothing for anything else.
    pub fn member_offsets(&self) -> Vec<(u32, &Ty)> {
        let Ty::Struct(members, layout) = self else {
            return Vec::new();
        };
        let mut end = 0u32;
        let place = |ty: &'_ Ty, end: &mut u32| {
            let align = if *layout == Layout::Packed {
                1
            } else {
                ty.align_bytes()
            };
            let at = end.next_multiple_of(align);
            *end = at + ty.size_bytes();
            at
        };
        members.iter().map(|ty| (place(ty, &mut end), ty)).collect()
    }

    /// Per byte of the object, which bits belong to the value: 0 in padding, 1 in a `_Bool`.
    pub fn value_mask(&self) -> Vec<u8> {
        let mut mask = vec![0; self.size_bytes() as usize];
        self.mark(0, &mut mask);
        mask
    }

    fn mark(&self, at: u32, mask: &mut [u8]) {
        match self {
            Ty::Bool => mask[at as usize] = 1,
            Ty::Array(element, n) => {
                (0..*n).for_each(|i| element.mark(at + i * element.size_bytes(), mask));
            }
            Ty::Struct(..) => {
                self.member_offsets()
                    .iter()
                    .for_each(|(off, ty)| ty.mark(at + off, mask));
            }
            Ty::Union(members) => members.iter().for_each(|ty| ty.mark(at, mask)),
            scalar => mask[at as usize..][..scalar.size_bytes() as usize].fill(0xff),
        }
    }
}

/// A signature. Its place in the list is its name: `abi_f<n>`, called by `abi_c<n>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sig {
    /// The return type.
    pub ret: Ty,
    /// The declared parameters.
    pub named: Vec<Ty>,
    /// For a variadic function, what this caller passes beyond them.
    pub extra: Option<Vec<Ty>>,
}

impl Sig {
    /// All arguments of the call.
    pub fn args(&self) -> impl Iterator<Item = &Ty> {
        self.named.iter().chain(self.extra.iter().flatten())
    }
}

/// How many bytes the buffers hold in which arguments travel beside the call.
pub const BUFFER_BYTES: usize = 8192;

/// Where each argument stands in those buffers.
pub fn buffer_offsets(sig: &Sig) -> Vec<usize> {
    let mut end = 0usize;
    let place = |ty: &Ty| {
        let at = end;
        end = (at + ty.size_bytes() as usize).next_multiple_of(16);
        at
    };
    let offsets = sig.args().map(place).collect();
    assert!(end <= BUFFER_BYTES, "arguments of {end} bytes");
    offsets
}

/// The signatures of `seed`.
pub fn generate(seed: u64, count: usize) -> Vec<Sig> {
    let mut rng = Rng(seed);
    (0..count).map(|_| signature(&mut rng)).collect()
}

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }

    /// True `percent` times in a hundred.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Which kinds of types a signature draws from; a signature that keeps to one kind exhausts that
/// kind's registers.
#[derive(Clone, Copy)]
enum Palette {
    Ints,
    Floats,
    Scalars,
    SmallStructs,
    All,
}

/// No argument is larger.
const MAX_TYPE_BYTES: u32 = 128;

fn signature(rng: &mut Rng) -> Sig {
    use Palette::*;
    let palette = [Ints, Floats, Scalars, Scalars, SmallStructs, All, All][rng.below(7) as usize];
    let most = if rng.chance(50) { 7 } else { 20 };
    let nr_args = rng.below(most) as usize;
    let variadic = rng.chance(15);
    let nr_named = if variadic {
        1 + rng.below(9) as usize
    } else {
        nr_args
    };
    let mut named: Vec<Ty> = (0..nr_named).map(|_| ty(rng, palette)).collect();
    let extra = variadic.then(|| {
        // `va_start` wants a last parameter that is not promoted; a pointer is none.
        named.push(Ty::Ptr);
        (0..rng.below(10)).map(|_| promoted(rng)).collect()
    });
    let ret = if rng.chance(12) {
        Ty::Void
    } else {
        ty(rng, if variadic { All } else { palette })
    };
    Sig { ret, named, extra }
}

fn ty(rng: &mut Rng, palette: Palette) -> Ty {
    match palette {
        Palette::Ints => int(rng),
        Palette::Floats if rng.chance(85) => float(rng),
        Palette::Floats => small_struct(rng),
        Palette::Scalars => scalar(rng),
        Palette::SmallStructs if rng.chance(80) => small_struct(rng),
        Palette::SmallStructs => scalar(rng),
        Palette::All if rng.chance(50) => scalar(rng),
        Palette::All if rng.chance(50) => small_struct(rng),
        Palette::All => loop {
            let ty = aggregate(rng, 0);
            match ty.size_bytes() {
                // GCC lets an empty struct of alignment 16, which the psABI says is ignored, move
                // the stack arguments behind it: an empty one is plain.
                0 => break Ty::Struct(Vec::new(), Layout::C),
                1..=MAX_TYPE_BYTES => break ty,
                _ => {}
            }
        },
    }
}

/// What an argument for `...` can be: C promotes narrow integers and `float` before the call.
fn promoted(rng: &mut Rng) -> Ty {
    if rng.chance(20) {
        // What wants an even register pair.
        return match rng.below(3) {
            0 => Ty::Int(16, Signed::Yes),
            1 => Ty::Float(16),
            _ => Ty::Struct(vec![float(rng)], Layout::Aligned16),
        };
    }
    loop {
        let ty = ty(rng, Palette::All);
        let is_empty = ty.size_bytes() == 0;
        let is_promoted = match ty {
            Ty::Bool | Ty::Int(1 | 2, _) | Ty::Float(2 | 4) => false,
            Ty::Int(..) | Ty::Float(_) => true,
            _ => !is_empty,
        };
        if is_promoted {
            return ty;
        }
    }
}

fn int(rng: &mut Rng) -> Ty {
    let signed = if rng.chance(50) {
        Signed::Yes
    } else {
        Signed::No
    };
    match rng.below(12) {
        0 => Ty::Bool,
        1 => Ty::Int(1, signed),
        2 | 3 => Ty::Int(2, signed),
        4..=6 => Ty::Int(4, signed),
        7 | 8 => Ty::Int(8, signed),
        9 => Ty::Int(16, signed),
        _ => Ty::Ptr,
    }
}

fn float(rng: &mut Rng) -> Ty {
    match rng.below(16) {
        0 => Ty::Float(2),
        1 => Ty::Float(16),
        2 => Ty::Complex(4),
        3 => Ty::Complex(8),
        4..=9 => Ty::Float(4),
        _ => Ty::Float(8),
    }
}

fn scalar(rng: &mut Rng) -> Ty {
    if rng.chance(60) { int(rng) } else { float(rng) }
}

/// One or two scalars, mostly with a float: what flattening is about.
fn small_struct(rng: &mut Rng) -> Ty {
    let mut members = vec![if rng.chance(70) {
        float(rng)
    } else {
        scalar(rng)
    }];
    if rng.chance(75) {
        // A pointer is an integer in all but this: compilers do not flatten it.
        let other = if rng.chance(8) { Ty::Ptr } else { scalar(rng) };
        members.insert(rng.below(2) as usize, other);
    }
    if rng.chance(20) {
        // Nested, alone or beside an empty one.
        members = vec![Ty::Struct(members, Layout::C)];
        if rng.chance(50) {
            members.insert(rng.below(2) as usize, Ty::Struct(Vec::new(), Layout::C));
        }
    }
    Ty::Struct(members, layout(rng))
}

/// A struct of up to four members, nested up to twice, with arrays and unions.
fn aggregate(rng: &mut Rng, depth: u32) -> Ty {
    let nr_members = if rng.chance(6) { 0 } else { 1 + rng.below(4) };
    let members = (0..nr_members).map(|_| match rng.below(10) {
        0 | 1 if depth < 2 => aggregate(rng, depth + 1),
        2 => {
            let element = if depth < 2 && rng.chance(30) {
                aggregate(rng, depth + 1)
            } else {
                scalar(rng)
            };
            Ty::Array(Box::new(element), 1 + rng.below(3) as u32)
        }
        3 => Ty::Union(vec![
            Ty::Array(Box::new(Ty::Int(1, Signed::No)), 1 + rng.below(12) as u32),
            scalar_without_bool(rng),
        ]),
        _ => scalar(rng),
    });
    Ty::Struct(members.collect(), layout(rng))
}

/// The bytes of a union are seen through each of its members, and not every byte is a `_Bool`.
fn scalar_without_bool(rng: &mut Rng) -> Ty {
    loop {
        match scalar(rng) {
            Ty::Bool => {}
            ty => return ty,
        }
    }
}

fn layout(rng: &mut Rng) -> Layout {
    match rng.below(20) {
        0 => Layout::Packed,
        1 => Layout::Aligned16,
        _ => Layout::C,
    }
}
