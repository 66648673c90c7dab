//! A frame from many clients: what a program costs when every packet is another flow's, without a system call between two packets, which would
//! empty the caches that the program under test finds warm on a router.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use crate::{
    bpf::{Cell, Instruction, Jumps, Program, Register},
    kernel::Hook,
};

/// A prime beyond what the caches hold, which leads through many clients in an order that no cache foresees.
const STRIDE: i32 = 611_953;
/// Of `bpf_tail_call`.
const TAIL_CALL: i32 = 12;

/// `count` clients, of which number `n` has the address `base + (n * multiplier << shift)`, or with IPv6 the last 32 bits of it.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    pub count: u32,
    pub base: u32,
    pub multiplier: u32,
    pub shift: u8,
}

impl Clients {
    /// One after the other, from `base` on.
    pub const fn from(base: u32, count: u32) -> Self {
        Self { count, base, multiplier: 1, shift: 0 }
    }

    pub const fn address(&self, number: u32) -> u32 {
        self.base.wrapping_add(number.wrapping_mul(self.multiplier) << self.shift)
    }
}

/// A loaded program that makes each frame another client's and hands it to a second program.
#[derive(Debug)]
pub struct Many {
    first: Program,
    #[expect(dead_code, reason = "the program holds the number, but not what it jumps to")]
    jumps: Jumps,
}

impl Many {
    /// `program` is of `hook`, and gets frames without tags: of IPv6 if `is_ipv6`. Needs root.
    pub fn load(hook: Hook, program: BorrowedFd<'_>, clients: &Clients, is_ipv6: bool) -> io::Result<Self> {
        /// Offset of the last 32 bits of the source's address, in bytes.
        const SOURCES: [i16; 2] = [14 + 12, 14 + 20];
        let (kind, pass, [data, data_end]) = hook.kind();
        let source = SOURCES[usize::from(is_ipv6)];
        let [answer, context, jumps_at, index, header, word, frame] = [0, 1, 2, 3, 4, 5, 6].map(Register);
        let as_signed = |value: u32| i32::from_ne_bytes(value.to_ne_bytes());
        let (turn, jumps) = (Cell::new()?, Jumps::to(program)?);
        let instructions: Vec<_> = [Instruction::copy(frame, context)]
            .into_iter()
            .chain(turn.address(index))
            .chain([
                Instruction::load_double(word, index, 0),
                Instruction::add(word, 1),
                Instruction::store_double(index, 0, word),
                Instruction::multiply(word, STRIDE),
                Instruction::modulo(word, as_signed(clients.count)),
                Instruction::multiply(word, as_signed(clients.multiplier)),
                Instruction::shift_left(word, clients.shift.into()),
                Instruction::add(word, as_signed(clients.base)),
                Instruction::to_network_order(word, 32),
                Instruction::load_word(header, frame, data),
                Instruction::load_word(index, frame, data_end),
                Instruction::copy(jumps_at, header),
                Instruction::add(jumps_at, i32::from(source) + 4),
                Instruction::set(answer, pass),
                Instruction::unless_greater(jumps_at, index, 1),
                Instruction::exit(),
                Instruction::store_word(header, source, word),
                Instruction::copy(context, frame),
            ])
            .chain(Instruction::map(jumps_at, jumps.as_fd()))
            .chain([
                Instruction::set(index, 0),
                Instruction::call(TAIL_CALL),
                Instruction::set(answer, pass),
                Instruction::exit(),
            ])
            .collect();
        Ok(Self { first: Program::load(kind, &instructions)?, jumps })
    }

    /// Nanoseconds for a run, averaged over `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u64> {
        self.first.time(frame, repeat)
    }
}
