//! Decides which implementation (path) computes a layer, from its input, its weights' type and its size. Layers ask when they run,
//! and memory plans ask before weights are loaded, so that the plan counts what runs.

use super::kernel::blocks::QuantType;
use super::kernel::{self, MatmulType, int8};
use crate::platform::machine::is_gpu_plain;
use candle_core::{DType, Device, Tensor};

/// The device that runs the layers, and which kernels exist for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Cpu,
    /// - `own`: whether reel's CUDA kernels are available. `flash`: whether FlashAttention's are.
    Cuda {
        own: bool,
        flash: bool,
    },
    /// Apple's GPUs, with candle's operations only.
    Metal,
}

impl From<&Device> for Backend {
    fn from(device: &Device) -> Self {
        match device {
            Device::Cpu => Backend::Cpu,
            Device::Cuda(_) => {
                Backend::Cuda { own: cfg!(feature = "cuda") && !is_gpu_plain(), flash: cfg!(feature = "flash-attn") }
            }
            Device::Metal(_) => Backend::Metal,
        }
    }
}

/// The properties of a layer's input that decide its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    pub backend: Backend,
    /// Type of the activations.
    pub dtype: DType,
    /// Whether only candle's operations may run: gradients are wanted, or no kernel takes this case.
    pub plain: bool,
}

/// What computes row operations: norms, activations, epilogues, depth-to-space and space-to-depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPath {
    /// reel's CPU loops, fused into one pass.
    Kernel,
    /// reel's CUDA kernels, fused into one pass.
    Cuda,
    /// Candle's operations, one pass for each.
    Candle,
}

/// What computes a dense layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductPath {
    /// reel's int8 dot products on a CPU: quantised weights, activations rounded to 8 bits.
    Int8,
    /// reel's matrix products on a CPU, in f32 or bf16.
    Kernel,
    /// Candle's matrix product.
    Candle,
}

/// What computes a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPath {
    /// reel's products on a CPU in f32, whatever type the weights have: for few channels (see [`WIDE`]).
    Narrow,
    /// reel's products on a CPU in bf16, two neighbouring pixels at a time: see `kernel::winograd`.
    Paired,
    /// reel's products on a CPU, which read every tap in place.
    Direct,
    /// reel's CUDA kernel.
    Cuda,
    /// Candle's matrix product for each tap, summed over taps.
    Candle,
}

/// What computes attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionPath {
    /// reel's CPU loops, with scores from int8 dot products.
    Int8,
    /// reel's CPU loops, in f32 or bf16.
    Kernel,
    /// FlashAttention's kernels.
    Flash,
    /// Candle's operations, over some heads and queries at a time.
    Candle,
}

/// Number types of a network's matrix products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Type that a CPU multiplies in.
    pub math: MatmulType,
    /// Type that the weights are quantised to, if they are.
    pub blocks: Option<QuantType>,
    /// Whether quantised weights may be multiplied by int8 dot products.
    pub int8: bool,
}

/// A convolution's sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Taps in time, height and width.
    pub kernel: [usize; 3],
    /// Steps in time, height and width.
    pub stride: [usize; 3],
    /// Type that a CPU multiplies in.
    pub math: MatmulType,
}

/// The properties of queries, keys and values that decide attention's path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub batch: usize,
    /// Channels of each head.
    pub head_dim: usize,
    /// Whether a bias is added to the scores.
    pub bias: bool,
    /// Type that a CPU multiplies in.
    pub math: MatmulType,
    /// Whether scores may be int8 dot products on a CPU.
    pub int8: bool,
}

/// Least input and output channels of a convolution in bf16 on a CPU; narrower ones run in f32. A norm over few channels is near
/// zero in some pixel of almost any picture, and dividing by it magnifies rounding errors: hundreds of times for two channels.
/// Narrow convolutions are cheap in f32, and no released VAE has any.
pub const WIDE: usize = 8;

/// Input and output channels for which a bf16 convolution takes [`ConvPath::Paired`]. Its time relative to the direct form, on one
/// core with AVX-512 BF16: 0.98 for 32 channels, 0.9 for 64, 0.78 for 128, 0.70 for 256 and 512, 0.69 for 1024. Below 64 channels
/// the gain is not worth the extra rounding; above 1024 there are few pixels, and a third more weights to read.
const PAIRED: (std::ops::RangeInclusive<usize>, std::ops::RangeFrom<usize>) = (64..=1024, 32..);

/// The most channels of a head that FlashAttention's kernels take: candle-flash-attn 0.11.1, `FlashAttn::cuda_fwd_t`.
const FLASH_HEAD: usize = 512;

/// Returns the type that a CPU multiplies weights of the type `stored` in.
pub fn math(stored: DType) -> MatmulType {
    if stored == DType::BF16 { MatmulType::Bf16 } else { MatmulType::F32 }
}

impl Input {
    /// f32 activations on a CPU, without gradients.
    pub const CPU: Input = Input { backend: Backend::Cpu, dtype: DType::F32, plain: false };

    /// Describes activations of `dtype`, without gradients.
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { backend: Backend::from(device), dtype, plain: false }
    }

    /// Describes the activations `x`; plain if gradients are tracked for `x` or any of `others`.
    pub fn of<'a>(x: &Tensor, others: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let plain = x.track_op() || others.into_iter().any(Tensor::track_op);
        Self { plain, ..Self::new(x.device(), x.dtype()) }
    }

    /// Returns the same input, limited to candle's operations if `plain`.
    pub fn or_plain(self, plain: bool) -> Self {
        Self { plain: self.plain || plain, ..self }
    }

    pub fn is_cpu(self) -> bool {
        self.backend == Backend::Cpu
    }

    /// Returns the path of row operations.
    /// - `values`: elements of the activations.
    pub fn rows(self, values: usize) -> RowPath {
        match (self.backend, self.dtype) {
            (Backend::Cpu, DType::F32) if !self.plain => RowPath::Kernel,
            (Backend::Cuda { own: true, .. }, DType::F32 | DType::BF16 | DType::F16)
                if !self.plain && (1..=u32::MAX as usize).contains(&values) =>
            // reel's CUDA kernels index with 32 bits
            {
                RowPath::Cuda
            }
            _ => RowPath::Candle,
        }
    }

    /// Returns the path of a dense layer.
    /// - `inputs`: values in a row of the weights.
    pub fn product(self, product: Product, inputs: usize) -> ProductPath {
        let int8 = product.int8 && product.math == MatmulType::Bf16;
        match (self.backend, self.dtype) {
            (Backend::Cpu, DType::F32 | DType::BF16) if !self.plain => match product.blocks {
                Some(kind) if int8 && int8::fits(kind, inputs) => ProductPath::Int8,
                _ => ProductPath::Kernel,
            },
            _ => ProductPath::Candle,
        }
    }

    /// Returns the path of a convolution.
    /// - `batch`: clips. `values`: elements of the activations.
    pub fn conv(self, conv: Conv, batch: usize, values: usize) -> ConvPath {
        let Conv { inputs, outputs, kernel, stride, math } = conv;
        match self.rows(values) {
            RowPath::Kernel => {
                let pairs = PAIRED.0.contains(&inputs) && PAIRED.1.contains(&outputs);
                if inputs.min(outputs) < WIDE {
                    ConvPath::Narrow
                } else if kernel::is_half(math) && (kernel, stride) == ([3; 3], [1; 3]) && pairs {
                    ConvPath::Paired
                } else {
                    ConvPath::Direct
                }
            }
            RowPath::Cuda if self.dtype == DType::BF16 && math == MatmulType::Bf16 && batch == 1 => {
                // the kernel reads 16 bytes at a time and writes 4
                if inputs.is_multiple_of(8) && outputs.is_multiple_of(2) { ConvPath::Cuda } else { ConvPath::Candle }
            }
            RowPath::Cuda | RowPath::Candle => ConvPath::Candle,
        }
    }

    /// Returns the path of attention.
    pub fn attention(self, heads: Heads) -> AttentionPath {
        let Heads { batch, head_dim, bias, math, int8 } = heads;
        match (self.backend, self.dtype) {
            _ if self.plain => AttentionPath::Candle,
            (Backend::Cpu, DType::F32) if batch == 1 => {
                let int8 = int8 && kernel::is_half(math) && int8::scores_fit(head_dim);
                if int8 { AttentionPath::Int8 } else { AttentionPath::Kernel }
            }
            // f32 stays on candle: FlashAttention has half precision only
            (Backend::Cuda { flash: true, .. }, DType::BF16 | DType::F16)
                if !bias && head_dim.is_multiple_of(8) && (1..=FLASH_HEAD).contains(&head_dim) =>
            {
                AttentionPath::Flash
            }
            _ => AttentionPath::Candle,
        }
    }
}

impl Product {
    /// Describes products whose weights are not quantised.
    pub fn plain(math: MatmulType) -> Self {
        Self { math, blocks: None, int8: false }
    }

    /// Returns the path of layers whose weight rows are whole quantised blocks, as in most.
    pub fn path(self, input: Input) -> ProductPath {
        input.product(self, self.blocks.map_or(1, QuantType::values))
    }

    /// Returns the bytes of an activation as products read it.
    pub fn operand(self, input: Input) -> u64 {
        match input.backend {
            Backend::Cpu if kernel::is_half(self.math) => 2,
            Backend::Cpu => 4,
            _ => input.dtype.size_in_bytes() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Backend = Backend::Cuda { own: true, flash: false };

    fn conv(inputs: usize, outputs: usize, math: MatmulType) -> Conv {
        Conv { inputs, outputs, kernel: [3; 3], stride: [1; 3], math }
    }

    #[test]
    fn a_cpu_takes_its_own_loops_unless_gradients_are_wanted() {
        let (cpu, plain) = (Input::CPU, Input::CPU.or_plain(true));
        assert_eq!((cpu.rows(9), plain.rows(9)), (RowPath::Kernel, RowPath::Candle));
        let product = Product::plain(MatmulType::F32);
        assert_eq!((product.path(cpu), product.path(plain)), (ProductPath::Kernel, ProductPath::Candle));
        let half = Input { dtype: DType::BF16, ..cpu }; // passed from one product to the next
        assert_eq!((product.path(half), half.rows(9)), (ProductPath::Kernel, RowPath::Candle));
        let heads = Heads { batch: 1, head_dim: 64, bias: true, math: MatmulType::F32, int8: true };
        assert_eq!((cpu.attention(heads), plain.attention(heads)), (AttentionPath::Kernel, AttentionPath::Candle));
        assert_eq!(cpu.attention(Heads { batch: 2, ..heads }), AttentionPath::Candle);
    }

    #[test]
    fn convolutions_on_a_cpu_go_by_channels_strides_and_types() {
        let half = kernel::is_half(MatmulType::Bf16);
        let paired = if half { ConvPath::Paired } else { ConvPath::Direct };
        let path = |conv| Input::CPU.conv(conv, 1, 9);
        for (inputs, outputs, want) in [
            (WIDE - 1, 64, ConvPath::Narrow),
            (64, WIDE - 1, ConvPath::Narrow),
            (WIDE, WIDE, ConvPath::Direct),
            (63, 32, ConvPath::Direct),
            (64, 31, ConvPath::Direct),
            (64, 32, paired),
            (1024, 4096, paired),
            (1025, 32, ConvPath::Direct),
        ] {
            assert_eq!(path(conv(inputs, outputs, MatmulType::Bf16)), want, "{inputs} to {outputs}");
            let f32 = if want == ConvPath::Narrow { want } else { ConvPath::Direct };
            assert_eq!(path(conv(inputs, outputs, MatmulType::F32)), f32, "{inputs} to {outputs}");
        }
        let conv = conv(64, 64, MatmulType::Bf16);
        assert_eq!(path(Conv { stride: [1, 2, 2], ..conv }), ConvPath::Direct);
        assert_eq!(path(Conv { kernel: [1, 3, 3], ..conv }), ConvPath::Direct);
    }

    #[test]
    fn int8_takes_blocks_that_may_be_rounded_and_fit() {
        let product = Product { math: MatmulType::Bf16, blocks: Some(QuantType::Q8_0), int8: true };
        let int8 = |product: Product, inputs| Input::CPU.product(product, inputs) == ProductPath::Int8;
        assert_eq!(int8(product, 64), int8::fits(QuantType::Q8_0, 64));
        for other in [
            Product { int8: false, ..product },
            Product { math: MatmulType::F32, ..product },
            Product { blocks: Some(QuantType::Q6K), ..product },
            Product { blocks: None, ..product },
        ] {
            assert!(!int8(other, 256), "{other:?}");
        }
        assert!(!int8(product, 65));
    }

    #[test]
    fn cuda_kernels_take_what_they_were_written_for() {
        let input = Input { backend: OWN, dtype: DType::BF16, plain: false };
        assert_eq!(input.rows(9), RowPath::Cuda);
        for (other, values) in [
            (Input { backend: Backend::Metal, ..input }, 9),
            (Input { backend: Backend::Cuda { own: false, flash: true }, ..input }, 9),
            (Input { dtype: DType::F64, ..input }, 9),
            (input.or_plain(true), 9),
            (input, 0),
            (input, 1 << 32),
        ] {
            assert_eq!(other.rows(values), RowPath::Candle, "{other:?}, {values}");
        }
        let own = |input: Input, conv, batch| input.conv(conv, batch, 9) == ConvPath::Cuda;
        let wide = conv(16, 6, MatmulType::Bf16);
        assert!(own(input, wide, 1) && own(input, Conv { stride: [2; 3], ..wide }, 1));
        assert!(
            !own(input, wide, 2) && !own(input, conv(12, 6, wide.math), 1) && !own(input, conv(16, 7, wide.math), 1)
        );
        assert!(!own(Input { dtype: DType::F16, ..input }, wide, 1) && !own(input, conv(16, 6, MatmulType::F32), 1));
    }

    #[test]
    fn flash_attention_takes_whole_heads_of_half_precision() {
        let flash = Input { backend: Backend::Cuda { own: false, flash: true }, dtype: DType::BF16, plain: false };
        let heads = Heads { batch: 2, head_dim: 64, bias: false, math: MatmulType::Bf16, int8: false };
        assert_eq!(flash.attention(heads), AttentionPath::Flash);
        for (input, heads) in [
            (flash.or_plain(true), heads),
            (Input { dtype: DType::F32, ..flash }, heads),
            (Input { backend: OWN, ..flash }, heads),
            (flash, Heads { bias: true, ..heads }),
            (flash, Heads { head_dim: 60, ..heads }),
            (flash, Heads { head_dim: 520, ..heads }),
        ] {
            assert_eq!(input.attention(heads), AttentionPath::Candle, "{input:?}, {heads:?}");
        }
    }
}
