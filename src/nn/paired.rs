//! Convolutions in pairs (see `kernel::winograd`): the transformed weights for whichever kernel this CPU has.

use super::kernel::micro::Kernel;
use super::kernel::pack::Rows;
use super::kernel::product::RowEpilogue;
use super::kernel::rows::RowNormAct;
use super::kernel::winograd::{self, Panels};
use super::kernel::{self, Job, MatmulType};
use super::path::{self, Conv, ConvPath, Input};
use candle_core::{DType, Device};
use std::any::Any;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Bytes that a tensor of weights takes once a layer of `compute` numbers keeps it: as many as it has, but for kernels that
/// [`super::conv3d::Conv3d`] keeps transformed.
pub fn kept_bytes(shape: &[usize], stored: DType, compute: DType) -> usize {
    let bytes = shape.iter().product::<usize>() * stored.size_in_bytes();
    let [outputs, inputs, t, h, w] = *shape else { return bytes };
    let conv = Conv { inputs, outputs, kernel: [t, h, w], stride: [1; 3], math: path::math(stored) };
    // on a GPU activations are what weights are, and nothing is paired
    match Input::new(&Device::Cpu, compute).conv(conv, 1, 1) {
        ConvPath::Paired => bytes / 3 * winograd::POINTS,
        _ => bytes,
    }
}

/// [`Panels`] of this CPU's kernel for bf16.
#[derive(Clone)]
pub struct Paired(Arc<dyn Any + Send + Sync>);

impl Paired {
    /// - `weight`: (outputs, inputs, 3, 3, 3).
    pub fn new(weight: Rows, outputs: usize, inputs: usize) -> Self {
        kernel::dispatch(MatmulType::Bf16, Pack { weight, outputs, inputs })
    }

    /// The weights as they were, as near as can be told from what is left of them: (outputs, 3, 3, 3, inputs).
    pub fn kernel(&self) -> Vec<f32> {
        kernel::dispatch(MatmulType::Bf16, Unpack(self))
    }

    /// See [`winograd::convolve`].
    pub fn convolve<'b>(
        &self,
        x: &[&[f32]],
        size: [usize; 2],
        how: &(impl Fn(usize) -> RowNormAct<'b> + Sync),
        finish: RowEpilogue,
        y: &mut [MaybeUninit<f32>],
    ) {
        kernel::dispatch(MatmulType::Bf16, Convolve { paired: self, x, size, how, finish, y })
    }

    fn panels<K: Kernel>(&self) -> &Panels<K::Elem> {
        self.0.downcast_ref().expect("panels are made and read by the same kernel")
    }
}

struct Pack<'a> {
    weight: Rows<'a>,
    outputs: usize,
    inputs: usize,
}

impl Job for Pack<'_> {
    type Done = Paired;

    fn run<K: Kernel>(self) -> Paired {
        Paired(Arc::new(Panels::<K::Elem>::new::<K>(self.weight, self.outputs, self.inputs)))
    }
}

struct Unpack<'a>(&'a Paired);

impl Job for Unpack<'_> {
    type Done = Vec<f32>;

    fn run<K: Kernel>(self) -> Vec<f32> {
        self.0.panels::<K>().kernel::<K>()
    }
}

struct Convolve<'a, F> {
    paired: &'a Paired,
    x: &'a [&'a [f32]],
    size: [usize; 2],
    how: &'a F,
    finish: RowEpilogue<'a>,
    y: &'a mut [MaybeUninit<f32>],
}

impl<'b, F: Fn(usize) -> RowNormAct<'b> + Sync> Job for Convolve<'_, F> {
    type Done = ();

    fn run<K: Kernel>(self) {
        winograd::convolve::<K>(self.x, self.size, self.how, self.paired.panels::<K>(), self.finish, self.y)
    }
}
