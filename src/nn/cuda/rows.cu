// What goes between products, one pass over the rows each. In f32 inside, whatever the type outside. Compiled by NVRTC: no headers.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float wide(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ void narrow(float x, float &y) { y = x; }
// To the nearest, ties to even; what is no number stays none.
__device__ __forceinline__ void narrow(float x, bf16 &y) {
    u32 bits = __float_as_uint(x);
    y.bits = x == x ? (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (u16)0x7fff;
}
__device__ __forceinline__ void narrow(float x, f16 &y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

// Neighbours that are read and written at once.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

template <class T, int N> __device__ __forceinline__ void read(const T *from, float *to) {
    Pack<T, N> pack = *reinterpret_cast<const Pack<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = wide(pack.at[i]);
}

template <class T, int N> __device__ __forceinline__ void write(const float *from, T *to) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) narrow(from[i], pack.at[i]);
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

// The row of a table (rows, d) that a token takes: the first where there is no index.
template <class T> __device__ __forceinline__ const T *row_of(const T *table, const u32 *index, u32 token, u32 d) {
    return table + (index ? (u64)index[token] * d : 0);
}

// The sum over the threads of a row: threadIdx.x, a power of two of them. `sums`: 32 a row of the block.
__device__ __forceinline__ float over_row(float x, float *sums) {
    u32 threads = blockDim.x;
    for (u32 step = min(threads, 32u) / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    if (threads <= 32) return x;
    sums += threadIdx.y * 32;
    __syncthreads(); // those of the last sum are read
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (u32 i = 0; i < threads / 32; i++) sum += sums[i];
    return sum;
}

// y = act(turn(norm(x) scale + shift)). A block has blockDim.y rows, each with blockDim.x threads.
template <class T, int N>
__device__ __forceinline__ void norm_act(const T *x, T *y, u32 rows, u32 d, u32 norm, float eps, const T *scale,
                                     const u32 *scale_index, const T *shift, const u32 *shift_index, const float *cosines,
                                     const float *sines, u32 tokens, u32 silu) {
    __shared__ float sums[8 * 32];
    u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    bool there = row < rows;
    u32 parts = there ? d / N : 0;
    x += (u64)(there ? row : 0) * d;
    y += (u64)(there ? row : 0) * d;
    float mean = 0, factor = 1;
    if (norm == 2) {
        float sum = 0;
        for (u32 i = threadIdx.x; i < parts; i += blockDim.x) {
            float v[N];
            read<T, N>(x + i * N, v);
#pragma unroll
            for (int j = 0; j < N; j++) sum += v[j];
        }
        mean = over_row(sum, sums) / d;
    }
    if (norm) {
        float sum = 0;
        for (u32 i = threadIdx.x; i < parts; i += blockDim.x) {
            float v[N];
            read<T, N>(x + i * N, v);
#pragma unroll
            for (int j = 0; j < N; j++) sum += (v[j] - mean) * (v[j] - mean);
        }
        factor = 1 / sqrtf(over_row(sum, sums) / d + eps);
    }
    if (!there) return;
    u32 token = row % tokens;
    if (scale) scale = row_of(scale, scale_index, token, d);
    if (shift) shift = row_of(shift, shift_index, token, d);
    for (u32 i = threadIdx.x; i < parts; i += blockDim.x) {
        float v[N], t[N];
        read<T, N>(x + i * N, v);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] = (v[j] - mean) * factor;
        if (scale) {
            read<T, N>(scale + i * N, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] *= t[j];
        }
        if (shift) {
            read<T, N>(shift + i * N, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] += t[j];
        }
        if (cosines) {
#pragma unroll
            for (int j = 0; j + 1 < N; j += 2) {
                u64 at = (u64)token * (d / 2) + (i * N + j) / 2;
                float c = cosines[at], s = sines[at], even = v[j], odd = v[j + 1];
                v[j] = even * c - odd * s;
                v[j + 1] = even * s + odd * c;
            }
        }
        if (silu) {
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = v[j] / (1 + expf(-v[j]));
        }
        write<T, N>(v, y + i * N);
    }
}

// y = residual + gate factor gelu(x + bias + added), over `parts` times N values in rows of d.
template <class T, int N>
__device__ __forceinline__ void finish(const T *x, T *y, u32 parts, u32 d, const T *bias, const T *added, u32 gelu,
                                       const T *gate, const u32 *gate_index, u32 tokens, const T *factor, const T *residual) {
    u32 width = d / N;
    for (u32 part = blockIdx.x * blockDim.x + threadIdx.x; part < parts; part += gridDim.x * blockDim.x) {
        u32 row = part / width, at = part % width * N;
        u64 place = (u64)part * N;
        float v[N], t[N];
        read<T, N>(x + place, v);
        if (bias) {
            read<T, N>(bias + at, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] += t[j];
        }
        if (added) {
            read<T, N>(added + place, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] += t[j];
        }
        if (gelu) {
#pragma unroll
            for (int j = 0; j < N; j++)
                v[j] = 0.5f * v[j] * (1 + tanhf(0.7978845608028654f * (v[j] + 0.044715f * v[j] * v[j] * v[j])));
        }
        if (gate) {
            read<T, N>(row_of(gate, gate_index, row % tokens, d) + at, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] *= t[j];
        }
        if (factor) {
            read<T, N>(factor + place, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] *= t[j];
        }
        if (residual) {
            read<T, N>(residual + place, t);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] += t[j];
        }
        write<T, N>(v, y + place);
    }
}

#define KERNELS(T, N)                                                                                                            \
    extern "C" __global__ void norm_act_##T##_##N(const T *x, T *y, u32 rows, u32 d, u32 norm, float eps, const T *scale,            \
                                              const u32 *scale_index, const T *shift, const u32 *shift_index,                    \
                                              const float *cosines, const float *sines, u32 tokens, u32 silu) {                  \
        norm_act<T, N>(x, y, rows, d, norm, eps, scale, scale_index, shift, shift_index, cosines, sines, tokens, silu);              \
    }                                                                                                                            \
    extern "C" __global__ void finish_##T##_##N(const T *x, T *y, u32 parts, u32 d, const T *bias, const T *added, u32 gelu,     \
                                                const T *gate, const u32 *gate_index, u32 tokens, const T *factor,               \
                                                const T *residual) {                                                             \
        finish<T, N>(x, y, parts, d, bias, added, gelu, gate, gate_index, tokens, factor, residual);                             \
    }

KERNELS(bf16, 8)
KERNELS(bf16, 2)
KERNELS(bf16, 1)
KERNELS(f16, 8)
KERNELS(f16, 2)
KERNELS(f16, 1)
KERNELS(float, 4)
KERNELS(float, 2)
KERNELS(float, 1)
