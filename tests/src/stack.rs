//! How deep the stacks of the programs get, as the strictest kernel counts.
//!
//! The verifier adds up the stacks of a chain of calls and refuses more than 512 bytes (`check_max_stack_depth` in kernel/bpf/verifier.c). It
//! counts each function's in units of 16 bytes on later kernels, where there is a just-in-time compiler, and of 32 bytes on earlier ones: what
//! loads on the kernel at hand need not load on those.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    error::Error,
};

use aya_obj::{Object, generated::bpf_insn};

/// Bytes that a chain of calls may take (`MAX_BPF_STACK`).
pub const BYTES_MAX: usize = 512;

/// What each function's stack is rounded up to.
const UNIT: usize = 32;

/// The frame pointer, below which a function's stack is.
const FRAME: u8 = 10;

/// The longest chain of calls of each program in an object: the bytes of each of its functions, rounded up.
pub fn deepest(object: &[u8]) -> Result<BTreeMap<String, Vec<usize>>, Box<dyn Error>> {
    let mut object = Object::parse(object)?;
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    // Puts behind each program the functions that it calls.
    object.relocate_calls(&sections)?;
    let chain = |program: &aya_obj::Program| chain(&object.functions[&program.function_key()].instructions);
    Ok(object.programs.iter().map(|(name, program)| (name.clone(), chain(program))).collect())
}

fn chain(instructions: &[bpf_insn]) -> Vec<usize> {
    let starts: BTreeSet<_> =
        [0].into_iter().chain((0..instructions.len()).filter_map(|at| callee(instructions, at))).collect();
    longest(instructions, &starts, 0, &mut BTreeMap::new())
}

/// The longest chain from the function at `start` on. It ends: the verifier refuses functions that call themselves.
fn longest(
    instructions: &[bpf_insn],
    starts: &BTreeSet<usize>,
    start: usize,
    chains: &mut BTreeMap<usize, Vec<usize>>,
) -> Vec<usize> {
    if let Some(known) = chains.get(&start) {
        return known.clone();
    }
    let end = starts.range(start + 1..).next().copied().unwrap_or(instructions.len());
    let callees: BTreeSet<_> = (start..end).filter_map(|at| callee(instructions, at)).collect();
    let below = callees.into_iter().map(|callee| longest(instructions, starts, callee, chains));
    let below = below.max_by_key(|chain| chain.iter().sum::<usize>()).unwrap_or_default();
    let chain = [vec![stack(&instructions[start..end])], below].concat();
    chains.insert(start, chain.clone());
    chain
}

/// Where the function begins that the instruction calls, if it does call one.
fn callee(instructions: &[bpf_insn], at: usize) -> Option<usize> {
    /// `BPF_JMP | BPF_CALL`, and the mark of a call within the program (`BPF_PSEUDO_CALL`).
    const CALL: u8 = 0x85;
    const WITHIN: u8 = 1;
    let instruction = &instructions[at];
    let calls = instruction.code == CALL && instruction.src_reg() == WITHIN;
    calls.then(|| at.checked_add_signed(instruction.imm as isize + 1).expect("a call stays within the program"))
}

/// The bytes below the frame pointer that a function uses, rounded up: what it reads and writes there, and what it takes the address of.
fn stack(function: &[bpf_insn]) -> usize {
    /// The classes `BPF_LDX`, `BPF_ST` and `BPF_STX`; `BPF_ALU64 | BPF_MOV | BPF_X`; `BPF_ALU64 | BPF_ADD | BPF_K`.
    const LOAD: u8 = 0x01;
    const STORES: [u8; 2] = [0x02, 0x03];
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut lowest = 0;
    // Registers that hold the frame pointer itself, until an offset is added.
    let mut frames = 1u16 << FRAME;
    for instruction in function {
        let (to, from) = (instruction.dst_reg(), instruction.src_reg());
        match (instruction.code, instruction.code & 0x07) {
            (MOVE, _) if from == FRAME => frames |= 1 << to,
            (ADD, _) if frames & 1 << to != 0 => {
                lowest = lowest.min(instruction.imm);
                frames &= !(1 << to);
            }
            (_, LOAD) if from == FRAME => lowest = lowest.min(instruction.off.into()),
            (_, class) if STORES.contains(&class) && to == FRAME => lowest = lowest.min(instruction.off.into()),
            _ => {}
        }
    }
    let bytes = usize::try_from(lowest.unsigned_abs()).expect("a stack is small");
    bytes.max(1).next_multiple_of(UNIT)
}
