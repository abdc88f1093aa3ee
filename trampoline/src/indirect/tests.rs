//! Listings of stubs and entries, as reviewed. They are those of the host's thread-local offsets:
//! the block 64 bytes from `tp`.

use rv64::Features;

use super::code::{self, EntrySpec, Made, StubSpec};
use crate::model::{FuncModel, Type};
use crate::prog::{Needs, RetFrom};

const BASE: u64 = 0x7000_0000;
const CELL: u64 = 0x7000_8008;

fn listing(made: &Made, end: usize) -> String {
    let lines = rv64::disassemble(&made.bytes[..end], BASE);
    let lines: Vec<String> = lines.map(|line| line.to_string()).collect();
    lines.join("\n")
}

fn stub(args: &[Type]) -> Made {
    let model = FuncModel::new(args, Type::I64).unwrap();
    let spec = StubSpec {
        model: &model,
        cell: CELL,
    };
    code::stubs(&[spec], 0x1234, Features::RV64GC, BASE).unwrap()
}

fn prog(args: &[Type], ret: Type, from: RetFrom, needs: Needs) -> Made {
    let model = FuncModel::new(args, ret).unwrap();
    let spec = EntrySpec::Prog {
        model: &model,
        func: BASE + 0x1_0000,
        cookie: None,
        ret: from,
        needs,
    };
    code::entries(&[spec], Features::RV64GC, BASE).unwrap()
}

#[test]
fn show() {
    let made = stub(&[Type::I64, Type::F64]);
    println!("{}", listing(&made, made.bytes.len() & !7));
    println!();
    let made = stub(&[Type::U64; 9]);
    println!("{}", listing(&made, 64));
    println!();
    let made = prog(
        &[Type::I32, Type::F32],
        Type::I32,
        RetFrom::Value,
        Needs::META,
    );
    println!("{}", listing(&made, made.bytes.len()));
    println!("{:?}", made.unwind);
}
