//! The cheapest program of each hook: what the harness itself costs, which every benchmark stands beside.

use std::{io, os::fd::BorrowedFd};

use crate::{
    bpf::{Instruction, Program, Register},
    kernel::Hook,
};

/// A loaded program that only passes.
pub struct Floor(Program);

impl Floor {
    /// Needs root.
    pub fn load(hook: Hook) -> io::Result<Self> {
        let (kind, pass, _) = hook.kind();
        Program::answering(kind, pass).map(Self)
    }

    /// A program that passes as well, but looks the tuple of a segment up before, in the flow table of IPv4 and nowhere else: the least that a
    /// flow table costs. It takes every frame for one of IPv4 without tags and options. Needs root.
    pub fn load_with_lookup(hook: Hook, flows: BorrowedFd<'_>) -> io::Result<Self> {
        /// Of `bpf_map_lookup_elem`.
        const LOOK_UP: i32 = 1;
        /// Offset in the frame, in bytes.
        const SOURCE: i16 = 14 + 12;
        const KEY_LEN: i16 = 16;
        let (kind, pass, [data, data_end]) = hook.kind();
        let [answer, context, key, end, header, word, stack] = [0, 1, 2, 3, 4, 5, 10].map(Register);
        // Source, destination, ports, and the padding of a tuple.
        let copied = (0..3i16).flat_map(|at| {
            [
                Instruction::load_word(word, header, SOURCE + at * 4),
                Instruction::store_word(stack, at * 4 - KEY_LEN, word),
            ]
        });
        let instructions: Vec<_> = [
            Instruction::load_word(header, context, data),
            Instruction::load_word(end, context, data_end),
            Instruction::copy(word, header),
            Instruction::add(word, i32::from(SOURCE) + 12),
            Instruction::set(answer, pass),
            Instruction::unless_greater(word, end, 1),
            Instruction::exit(),
        ]
        .into_iter()
        .chain(copied)
        .chain([
            Instruction::store_value(stack, -4, 0),
            Instruction::copy(key, stack),
            Instruction::add(key, -i32::from(KEY_LEN)),
        ])
        .chain(Instruction::map(context, flows))
        .chain([Instruction::call(LOOK_UP), Instruction::set(answer, pass), Instruction::exit()])
        .collect();
        Program::load(kind, &instructions).map(Self)
    }

    /// For [`Many`](crate::many::Many).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Nanoseconds for a run, averaged over `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u64> {
        self.0.time(frame, repeat)
    }
}
