//! What the program is that agents load.

use std::{
    collections::BTreeMap,
    ffi::c_long,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result};
use peak_userspace::dataplane::loader::{Kernel, LoadOptions};

use crate::report::{Better, Label, Report, Samples};

/// Adds its size and what it takes, without what is there for benchmarks.
pub(super) fn describe(report: &mut Report) -> Result<()> {
    let mut program = Kernel::load(LoadOptions::default())?.program;
    let program = program.xdp("peak")?;
    let info = program.info()?;
    let instructions = info
        .verified_instruction_count()
        .context("the kernel tells no count of verified instructions")?;
    let code = Code::of(program.fd()?.as_fd()).context("cannot read the program back")?;
    let mut add = |name, labels: &[(&'static str, Label)], unit, value: u32| {
        let samples = Samples(vec![value.into()]);
        report.add(name, labels, unit, Better::Lower, "loads", samples);
    };
    add("verified_instructions", &[], "instructions", instructions);
    add(
        "instructions",
        &[],
        "instructions",
        code.instructions.len() as u32,
    );
    add("jited_size", &[], "bytes", info.size_jitted());
    let depths = code.stack_depths();
    for (function, depth) in code.names().into_iter().zip(depths) {
        add(
            "stack_depth",
            &[("function", function.into())],
            "bytes",
            depth,
        );
    }
    Ok(())
}

/// A program as the kernel runs it: after the verifier, before the compiler.
struct Code {
    instructions: Vec<u64>,
    /// At which instruction each function begins.
    functions: Vec<usize>,
    /// Where the compiler has put it.
    addresses: Vec<u64>,
}

/// The first fields of `struct bpf_prog_info`, linux/bpf.h.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind_id_tag: [u64; 2],
    compiled_length: u32,
    length: u32,
    compiled: u64,
    instructions: u64,
    loaded: u64,
    user_maps: u64,
    maps: u64,
    name: [u8; 16],
    interface_licence: u64,
    network: [u64; 2],
    addresses_count: u32,
    lengths_count: u32,
    addresses: u64,
    lengths: u64,
    types: u32,
    function_size: u32,
    functions: u64,
    functions_count: u32,
    lines_count: u32,
}

/// `struct bpf_func_info`, linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Function {
    begins: u32,
    type_id: u32,
}

impl Code {
    fn of(program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut sizes = Info::default();
        info(program, &mut sizes)?;
        let mut instructions = vec![0u64; sizes.length as usize / 8];
        let mut functions = vec![Function::default(); sizes.functions_count as usize];
        let mut addresses = vec![0u64; sizes.addresses_count as usize];
        let mut wanted = Info {
            length: sizes.length,
            instructions: instructions.as_mut_ptr() as u64,
            functions_count: sizes.functions_count,
            function_size: size_of::<Function>() as u32,
            functions: functions.as_mut_ptr() as u64,
            addresses_count: sizes.addresses_count,
            addresses: addresses.as_mut_ptr() as u64,
            ..Info::default()
        };
        info(program, &mut wanted)?;
        let mut functions: Vec<_> = functions
            .iter()
            .map(|function| function.begins as usize)
            .collect();
        if functions.is_empty() {
            functions.push(0);
        }
        Ok(Self {
            instructions,
            functions,
            addresses,
        })
    }

    /// Bytes of the stack that each function takes.
    fn stack_depths(&self) -> Vec<u32> {
        let ends = self.functions.iter().skip(1).copied();
        let ends = ends.chain([self.instructions.len()]);
        let functions = self.functions.iter().zip(ends);
        functions
            .map(|(&begin, end)| stack_depth(&self.instructions[begin..end]))
            .collect()
    }

    /// What the functions are called: as the kernel's table of symbols has it, or by their number.
    fn names(&self) -> Vec<String> {
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let symbols: BTreeMap<u64, &str> = symbols
            .lines()
            .filter(|line| line.ends_with("[bpf]"))
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                // bpf_prog_TAG_NAME
                let name = words.nth(1)?.splitn(4, '_').nth(3)?;
                Some((address, name))
            })
            .collect();
        (0..self.functions.len())
            .map(|i| {
                let name = self.addresses.get(i).and_then(|at| symbols.get(at));
                name.map_or_else(|| i.to_string(), |name| (*name).to_owned())
            })
            .collect()
    }
}

/// Fills in `struct bpf_prog_info`, and the arrays that it points to.
fn info(program: BorrowedFd<'_>, info: &mut Info) -> io::Result<()> {
    const BPF_OBJ_GET_INFO_BY_FD: c_long = 15;
    /// The fields of `union bpf_attr` for this command.
    #[repr(C)]
    struct GetInfo {
        program: u32,
        length: u32,
        info: u64,
    }
    let attributes = GetInfo {
        program: program.as_raw_fd().cast_unsigned(),
        length: size_of::<Info>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the command reads the attributes, and writes at most as much as `info` takes, and into arrays that are as long as
    // `info` says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const attributes,
            size_of::<GetInfo>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How far below the frame pointer a function's instructions reach, in bytes: what the verifier counts, too.
fn stack_depth(instructions: &[u64]) -> u32 {
    /// Classes and operations of instructions (the kernel's "BPF Instruction Set Architecture").
    const LDX: u8 = 1;
    const ST: u8 = 2;
    const STX: u8 = 3;
    const MOVE: u8 = 0xbf;
    const ADD_CONSTANT: u8 = 0x07;
    const FRAME_POINTER: usize = 10;

    let mut lowest = 0;
    // Whether a register is a copy of the frame pointer.
    let mut copies = [false; 16];
    copies[FRAME_POINTER] = true;
    for instruction in instructions {
        let [operation, registers, ..] = instruction.to_le_bytes();
        let (to, from) = (usize::from(registers & 15), usize::from(registers >> 4));
        let offset = i32::from((instruction >> 16) as i16);
        let constant = (instruction >> 32) as i32;
        match operation & 7 {
            LDX => {
                if copies[from] {
                    lowest = lowest.min(offset);
                }
                copies[to] = false;
            }
            ST | STX if copies[to] => lowest = lowest.min(offset),
            ST | STX => {}
            _ if operation == MOVE => copies[to] = copies[from],
            _ if operation == ADD_CONSTANT && copies[to] && to != FRAME_POINTER => {
                lowest = lowest.min(constant);
                // Offsets from here on are within what was just reached.
                copies[to] = false;
            }
            // Other arithmetic, and loads of constants; not jumps and calls, of which calls change registers 0 to 5.
            0 | 4 | 7 => copies[to] = to == FRAME_POINTER,
            _ if operation == 0x85 => copies[..=5].fill(false),
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_as_deep_as_it_is_reached_into() {
        let instruction = |operation: u8, to: u8, from: u8, offset: i16, constant: i32| {
            let [o0, o1] = offset.to_le_bytes();
            let [c0, c1, c2, c3] = constant.to_le_bytes();
            u64::from_le_bytes([operation, from << 4 | to, o0, o1, c0, c1, c2, c3])
        };
        let store = instruction(0x7b, 10, 1, -16, 0);
        let load = instruction(0x79, 2, 10, -24, 0);
        let elsewhere = instruction(0x7b, 1, 2, -64, 0);
        let copy = instruction(0xbf, 3, 10, 0, 0);
        let address = instruction(0x07, 3, 0, 0, -40);
        assert_eq!(stack_depth(&[]), 0);
        assert_eq!(stack_depth(&[store, elsewhere]), 16);
        assert_eq!(stack_depth(&[store, load]), 24);
        assert_eq!(stack_depth(&[copy, address, store]), 40);
        let other = instruction(0xbf, 3, 4, 0, 0);
        assert_eq!(stack_depth(&[copy, other, address]), 0);
    }
}
