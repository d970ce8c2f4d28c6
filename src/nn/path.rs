//! Which path a layer takes: decided here alone, from what it is given, what its weights are kept in and how large it is. Layers
//! ask when they run, and plans before anything is loaded, so that what is counted is what runs.

use super::kernel::blocks::QuantType;
use super::kernel::{self, MatmulType, int8};
use crate::platform::machine::is_gpu_plain;
use candle_core::{DType, Device, Tensor};

/// What runs the layers, and which kernels there are for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Cpu,
    /// - `own`: whether there are CUDA kernels of our own. `flash`: whether there are FlashAttention's.
    Cuda {
        own: bool,
        flash: bool,
    },
    /// A GPU for which there are candle's operations alone.
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

/// What a layer is given, as far as it decides the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    pub backend: Backend,
    /// Of activations.
    pub dtype: DType,
    /// Whether candle's operations alone will do: gradients are wanted, or no kernel reads the weights' type.
    pub plain: bool,
}

/// How rows between products are made: norms, activations, what follows a product, and channels into space and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPath {
    /// The CPU's own loops, in one pass.
    Kernel,
    /// A CUDA kernel of our own, in one pass.
    Cuda,
    /// Candle's operations, a pass each.
    Candle,
}

/// How a dense layer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductPath {
    /// The CPU's int8 dot products, by quantised weights, of activations that are rounded to eight bits.
    Int8,
    /// The CPU's own products, in f32 or bf16.
    Kernel,
    /// Candle's product.
    Candle,
}

/// How a convolution is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPath {
    /// The CPU's own products in f32, whatever the kernel is kept in: it has few channels.
    Narrow,
    /// The CPU's own products in bf16, two neighbouring pixels at a time: see `kernel::winograd`.
    Paired,
    /// The CPU's own products, which read every tap where it is.
    Direct,
    /// A CUDA kernel of our own.
    Cuda,
    /// Candle's product for each tap, added up.
    Candle,
}

/// How attention is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionPath {
    /// The CPU's own loops, whose scores are int8 dot products.
    Int8,
    /// The CPU's own loops, in f32 or bf16.
    Kernel,
    /// FlashAttention's kernels.
    Flash,
    /// Candle's operations, some heads and queries at a time.
    Candle,
}

/// How a network's products are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// In what a CPU multiplies.
    pub math: MatmulType,
    /// What the weights are quantised to.
    pub blocks: Option<QuantType>,
    /// Whether quantised weights may be multiplied as 8-bit integers.
    pub int8: bool,
}

/// A convolution's sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    /// Channels.
    pub inputs: usize,
    pub outputs: usize,
    /// In time, height and width.
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    /// In what a CPU multiplies.
    pub math: MatmulType,
}

/// What queries, keys and values have to do with the path on which they meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub batch: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Whether something is added to the scores.
    pub bias: bool,
    /// In what a CPU multiplies.
    pub math: MatmulType,
    /// Whether it may make scores by int8 dot products.
    pub int8: bool,
}

/// Channels in and out from which a convolution is multiplied in bf16 on a CPU. A norm over fewer comes near zero in some pixel of
/// almost any picture, which magnifies what was rounded before: over two channels hundreds of times. In f32 they cost next to
/// nothing, and no released VAE has any.
pub const WIDE: usize = 8;

/// Channels in and out for which a convolution of bf16 numbers is made in pairs. Its time beside the direct form, on one core with
/// AVX-512 BF16: 0.98 for 32 channels, 0.9 for 64, 0.78 for 128, 0.70 for 256 and 512, 0.69 for 1024. Below 64 it would round
/// more for little; above 1024 there are few pixels, and a third more weights.
const PAIRED: (std::ops::RangeInclusive<usize>, std::ops::RangeFrom<usize>) = (64..=1024, 32..);

/// The most channels of a head that FlashAttention's kernels take: candle-flash-attn 0.11.1, `FlashAttn::cuda_fwd_t`.
const FLASH_HEAD: usize = 512;

/// In what numbers that are stored so are multiplied on a CPU.
pub fn math(stored: DType) -> MatmulType {
    if stored == DType::BF16 { MatmulType::Bf16 } else { MatmulType::F32 }
}

impl Input {
    /// On a CPU, where nothing is being differentiated.
    pub const CPU: Input = Input { backend: Backend::Cpu, dtype: DType::F32, plain: false };

    /// - `dtype`: of activations, of which no gradients are wanted.
    pub fn new(device: &Device, dtype: DType) -> Self {
        Self { backend: Backend::from(device), dtype, plain: false }
    }

    /// Of activations, with all `others` that gradients may be wanted of.
    pub fn of<'a>(x: &Tensor, others: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let plain = x.track_op() || others.into_iter().any(Tensor::track_op);
        Self { plain, ..Self::new(x.device(), x.dtype()) }
    }

    /// The same, if `plain` with candle's operations alone.
    pub fn or_plain(self, plain: bool) -> Self {
        Self { plain: self.plain || plain, ..self }
    }

    pub fn is_cpu(self) -> bool {
        self.backend == Backend::Cpu
    }

    /// - `values`: elements of the activations.
    pub fn rows(self, values: usize) -> RowPath {
        match (self.backend, self.dtype) {
            (Backend::Cpu, DType::F32) if !self.plain => RowPath::Kernel,
            (Backend::Cuda { own: true, .. }, DType::F32 | DType::BF16 | DType::F16)
                if !self.plain && (1..=u32::MAX as usize).contains(&values) =>
            // they count in 32 bits
            {
                RowPath::Cuda
            }
            _ => RowPath::Candle,
        }
    }

    /// - `inputs`: values of a row of the weights.
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
                // they read 16 bytes at once and write 4
                if inputs.is_multiple_of(8) && outputs.is_multiple_of(2) { ConvPath::Cuda } else { ConvPath::Candle }
            }
            RowPath::Cuda | RowPath::Candle => ConvPath::Candle,
        }
    }

    pub fn attention(self, heads: Heads) -> AttentionPath {
        let Heads { batch, head_dim, bias, math, int8 } = heads;
        match (self.backend, self.dtype) {
            _ if self.plain => AttentionPath::Candle,
            (Backend::Cpu, DType::F32) if batch == 1 => {
                let int8 = int8 && kernel::is_half(math) && int8::scores_fit(head_dim);
                if int8 { AttentionPath::Int8 } else { AttentionPath::Kernel }
            }
            // in f32 exactness was asked for
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
    /// By weights that are not quantised.
    pub fn plain(math: MatmulType) -> Self {
        Self { math, blocks: None, int8: false }
    }

    /// The path of most layers, whose rows are whole blocks.
    pub fn path(self, input: Input) -> ProductPath {
        input.product(self, self.blocks.map_or(1, QuantType::values))
    }

    /// Bytes of a number that products read.
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
        let half = Input { dtype: DType::BF16, ..cpu }; // what products hand to each other
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
