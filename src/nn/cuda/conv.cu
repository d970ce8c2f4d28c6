// A 3-D convolution over channels-last frames of bf16, as one product: its rows are pixels, read where they lie tap by tap, its
// columns the channels that come out. Tensor cores multiply, in f32 until the end.
// Compiled after `conv_shared.cu`.

#define ROWS 128  // pixels of a block
#define COLS 128  // channels out of a block
#define DEPTH 64  // channels in of a step, 128 bytes
#define STAGES 3  // steps that are under way at once
#define TILE (ROWS * DEPTH * 2)

__device__ __forceinline__ void load(u32 from, u32 *to) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
}

__device__ __forceinline__ void multiply(float *c, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// x: (f + kt - 1 times, h, w, c), padded in time; w: (o, kt, kh, kw, c); y: (of, oh, ow, o). Space is padded with zeros here.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv(const u16 *x, const u16 *weights, u16 *y, const u16 *bias, const u16 *residual, u32 h, u32 w, u32 c, u32 o, u32 of, u32 oh,
         u32 ow, u32 kt, u32 kh, u32 kw, u32 st, u32 sh, u32 sw) {
    extern __shared__ __align__(128) unsigned char shared[];
    u32 memory = (u32)__cvta_generic_to_shared(shared);
    u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    u32 warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    u32 pixels = of * oh * ow;
    u32 across = (o + COLS - 1) / COLS;  // blocks that read the same pixels are neighbours
    u32 first_row = blockIdx.x / across * ROWS, first_col = blockIdx.x % across * COLS;
    u32 deep = (c + DEPTH - 1) / DEPTH;  // steps of a tap
    u32 taps = kt * kh * kw, steps = taps * deep;
    u32 part = thread % 8, line = thread / 8;  // lines line, line + 32, ...

    const u16 *from[4];
    int at_y[4], at_x[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 pixel = first_row + line + 32 * i;
        bool there = pixel < pixels;
        u32 f = there ? pixel / (oh * ow) : 0, rest = there ? pixel % (oh * ow) : 0;
        at_y[i] = there ? (int)(rest / ow * sh) - (int)(kh / 2) : -1 - (int)kh;
        at_x[i] = (int)(rest % ow * sw) - (int)(kw / 2);
        from[i] = x + ((long long)((u64)f * st * h) * w + (long long)at_y[i] * w + at_x[i]) * c + part * 8;
    }

    u32 step_tap = 0, step_deep = 0;  // of the next fetch
    auto fetch_step = [&](u32 stage) {
        u32 t = step_tap / (kh * kw), i = step_tap / kw % kh, j = step_tap % kw;
        u32 channel = step_deep * DEPTH;
        bool inside = channel + part * 8 < c;
        long long shift = ((long long)(t * h + i) * w + j) * c + channel;
        u32 a = memory + stage * 2 * TILE, b = a + TILE;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            bool there = inside && (u32)(at_y[n] + (int)i) < h && (u32)(at_x[n] + (int)j) < w;
            fetch(a + place(line + 32 * n, part), there ? from[n] + shift : x, there);
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            u32 out = first_col + line + 32 * n;
            bool there = inside && out < o;
            fetch(b + place(line + 32 * n, part), there ? weights + ((u64)out * taps + step_tap) * c + channel + part * 8 : weights, there);
        }
        if (++step_deep == deep) {
            step_deep = 0;
            step_tap++;
        }
    };

    float sums[4][4][4] = {};
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) fetch_step(s);
        asm volatile("cp.async.commit_group;");
    }
    for (u32 step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();  // what came is seen by all, and all have read what is written over next
        if (step + STAGES - 1 < steps) fetch_step((step + STAGES - 1) % STAGES);
        asm volatile("cp.async.commit_group;");
        u32 a = memory + step % STAGES * 2 * TILE, b = a + TILE;
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            u32 left[4][4], right[2][4];
#pragma unroll
            for (u32 m = 0; m < 4; m++) load(a + place(warp_row + m * 16 + lane % 16, k * 2 + lane / 16), left[m]);
#pragma unroll
            for (u32 n = 0; n < 2; n++)
                load(b + place(warp_col + n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2), right[n]);
#pragma unroll
            for (u32 m = 0; m < 4; m++)
#pragma unroll
                for (u32 n = 0; n < 4; n++) multiply(sums[m][n], left[m], right[n / 2] + n % 2 * 2);
        }
    }

#pragma unroll
    for (u32 m = 0; m < 4; m++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 pixel = first_row + warp_row + m * 16 + half * 8 + lane / 4;
            if (pixel >= pixels) continue;
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                u32 out = first_col + warp_col + n * 8 + lane % 4 * 2;
                if (out >= o) continue;
                u64 at = (u64)pixel * o + out;
                float low = sums[m][n][half * 2] + wide(bias[out]), high = sums[m][n][half * 2 + 1] + wide(bias[out + 1]);
                if (residual) {
                    u32 pair = *reinterpret_cast<const u32 *>(residual + at);
                    low += wide((u16)pair);
                    high += wide((u16)(pair >> 16));
                }
                *reinterpret_cast<u32 *>(y + at) = (u32)narrow(low) | (u32)narrow(high) << 16;
            }
        }
}
