//! The cheapest program of each hook: what the harness itself costs, which every benchmark stands beside.

use std::io;

use crate::{
    bpf::{Kind, Program},
    kernel::Hook,
};

/// A loaded program that only passes.
pub struct Floor(Program);

impl Floor {
    /// Needs root.
    pub fn load(hook: Hook) -> io::Result<Self> {
        const XDP_PASS: i32 = 2;
        const TC_ACT_UNSPEC: i32 = -1;
        match hook {
            Hook::Xdp => Program::answering(Kind::Xdp, XDP_PASS),
            _ => Program::answering(Kind::Classifier, TC_ACT_UNSPEC),
        }
        .map(Self)
    }

    /// Nanoseconds for a run, averaged over `repeat` runs.
    pub fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u64> {
        self.0.time(frame, repeat)
    }
}
