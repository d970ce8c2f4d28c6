// Each pixel's channels as a box of pixels, and back. In f32 where values are added. Compiled by NVRTC after `rows.cu`.

// Where in a box's channels (t, i, j) of one channel stands.
__device__ __forceinline__ u32 place(u32 t, u32 i, u32 j, u32 sh, u32 sw, u32 columns) {
    return columns ? (t * sw + j) * sh + i : (t * sh + i) * sw + j;
}

// x: (f, h, w, c n) -> y: (st f, sh h, sw w, c), n = st sh sw; plus: (f, h, w, m n), whose channels begin anew where they end.
template <class T>
__device__ __forceinline__ void spread(const T *x, T *y, u32 count, const T *plus, u32 m, u32 h, u32 w, u32 c, u32 st, u32 sh, u32 sw,
                                       u32 columns) {
    u32 n = st * sh * sw;
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += gridDim.x * blockDim.x) {
        u32 channel = at % c, rest = at / c;
        u32 column = rest % (w * sw), line = rest / (w * sw) % (h * sh), frame = rest / (w * sw) / (h * sh);
        u64 pixel = ((u64)(frame / st) * h + line / sh) * w + column / sw;
        u32 box = place(frame % st, line % sh, column % sw, sh, sw, columns);
        float value = wide(x[pixel * c * n + (u64)channel * n + box]);
        if (plus) value += wide(plus[pixel * m * n + (u64)(channel % m) * n + box]);
        narrow(value, y[at]);
    }
}

// x: (st f, sh h, sw w, c) -> y: (f, h, w, c n / mean), each the mean of so many neighbours.
template <class T>
__device__ __forceinline__ void gather(const T *x, T *y, u32 count, u32 mean, u32 h, u32 w, u32 c, u32 st, u32 sh, u32 sw, u32 columns) {
    u32 n = st * sh * sw, outputs = c * n / mean;
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += gridDim.x * blockDim.x) {
        u32 out = at % outputs, rest = at / outputs;
        u32 column = rest % w, line = rest / w % h, frame = rest / w / h;
        float sum = 0;
        for (u32 k = 0; k < mean; k++) {
            u32 channel = (out * mean + k) / n, box = (out * mean + k) % n;
            u32 t = box / (sh * sw), in = box % (sh * sw);
            u32 i = columns ? in % sh : in / sw, j = columns ? in / sh : in % sw;
            u64 pixel = ((u64)(frame * st + t) * (h * sh) + line * sh + i) * (w * sw) + column * sw + j;
            sum += wide(x[pixel * c + channel]);
        }
        narrow(sum / mean, y[at]);
    }
}

#define BOXES(T)                                                                                                                    \
    extern "C" __global__ void spread_##T(const T *x, T *y, u32 count, const T *plus, u32 m, u32 h, u32 w, u32 c, u32 st, u32 sh,   \
                                          u32 sw, u32 columns) {                                                                   \
        spread<T>(x, y, count, plus, m, h, w, c, st, sh, sw, columns);                                                              \
    }                                                                                                                               \
    extern "C" __global__ void gather_##T(const T *x, T *y, u32 count, u32 mean, u32 h, u32 w, u32 c, u32 st, u32 sh, u32 sw,       \
                                          u32 columns) {                                                                           \
        gather<T>(x, y, count, mean, h, w, c, st, sh, sw, columns);                                                                 \
    }

BOXES(bf16)
BOXES(f16)
BOXES(float)
