//! Turning lines over in Arm's registers.

#![allow(unsafe_op_in_unsafe_fn)] // the bodies are loads, stores and intrinsics

use std::arch::aarch64::*;

/// Lines of `steps` groups of four or eight bytes, side by side group by group.
///
/// # Safety
/// `lines` has `columns` lines of `steps` groups, `row_stride` bytes from each other; `out` has room for all. `columns` is a multiple
/// of four.
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn interleave<const GROUP: usize>(
    lines: *const u8,
    row_stride: usize,
    steps: usize,
    columns: usize,
    out: *mut u8,
) {
    const { assert!(GROUP == 4 || GROUP == 8) };
    // groups of a register
    let each = 16 / GROUP;
    let whole = steps / each * each;
    for j in (0..columns).step_by(each) {
        let (lines, out) = (lines.add(j * row_stride), out.add(j * GROUP));
        for step in (0..whole).step_by(each) {
            let (line, out) = (lines.add(step * GROUP), out.add(step * columns * GROUP));
            if GROUP == 4 {
                let x: [_; 4] = std::array::from_fn(|i| vld1q_u32(line.add(i * row_stride).cast()));
                let y: [_; 4] =
                    [vtrn1q_u32(x[0], x[1]), vtrn2q_u32(x[0], x[1]), vtrn1q_u32(x[2], x[3]), vtrn2q_u32(x[2], x[3])];
                let y = y.map(|y| vreinterpretq_u64_u32(y));
                let z =
                    [vzip1q_u64(y[0], y[2]), vzip1q_u64(y[1], y[3]), vzip2q_u64(y[0], y[2]), vzip2q_u64(y[1], y[3])];
                for (i, z) in z.into_iter().enumerate() {
                    vst1q_u8(out.add(i * columns * 4), vreinterpretq_u8_u64(z));
                }
            } else {
                let x = vreinterpretq_u64_u8(vld1q_u8(line));
                let y = vreinterpretq_u64_u8(vld1q_u8(line.add(row_stride)));
                vst1q_u8(out, vreinterpretq_u8_u64(vzip1q_u64(x, y)));
                vst1q_u8(out.add(columns * 8), vreinterpretq_u8_u64(vzip2q_u64(x, y)));
            }
        }
        for step in whole..steps {
            for i in 0..each {
                let from = lines.add(i * row_stride + step * GROUP);
                std::ptr::copy_nonoverlapping(from, out.add((step * columns + i) * GROUP), GROUP);
            }
        }
    }
}
