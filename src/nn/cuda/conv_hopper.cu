// The convolution of `conv.cu` on Hopper's own tensor instructions, which read both sides from shared memory: a block of 256 pixels
// and 128 channels, half of the pixels a warp group. Compiled for sm_90a
// after `conv_shared.cu`.

#define ROWS 256   // pixels of a block
#define COLS 128   // channels out of a block
#define DEPTH 64   // channels in of a step, 128 bytes
#define STAGES 4   // steps that have room at once
#define AHEAD 2    // steps that are fetched ahead
#define LEFT (ROWS * 128)
#define STAGE (LEFT + COLS * 128)

// A matrix in shared memory, of lines of 128 swizzled bytes; eight lines are 1024 bytes.
__device__ __forceinline__ u64 matrix(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;
}

// d += a b: 64 x 16 pixels times 16 x 128 channels.
__device__ __forceinline__ void multiply(float (&d)[64], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
                 "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
                 "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
                 "%59, %60, %61, %62, %63 "
                 "}, %64, %65, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                   "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
                   "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
                   "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
                   "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
                   "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
                   "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
                   "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
                   "+f"(d[63])
                 : "l"(a), "l"(b));
}

// As `conv` of `conv.cu`.
extern "C" __global__ void __launch_bounds__(256, 1)
    conv_hopper(const u16 *x, const u16 *weights, u16 *y, const u16 *bias, const u16 *residual, u32 h, u32 w, u32 c, u32 o, u32 of, u32 oh,
                u32 ow, u32 kt, u32 kh, u32 kw, u32 st, u32 sh, u32 sw) {
    extern __shared__ __align__(1024) unsigned char shared[];
    u32 memory = ((u32)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
    u32 thread = threadIdx.x, lane = thread % 32, group = thread / 128;
    u32 pixels = of * oh * ow;
    u32 across = (o + COLS - 1) / COLS;  // blocks that read the same pixels are neighbours
    u32 first_row = blockIdx.x / across * ROWS, first_col = blockIdx.x % across * COLS;
    u32 deep = (c + DEPTH - 1) / DEPTH;  // steps of a tap
    u32 taps = kt * kh * kw, steps = taps * deep;
    u32 part = thread % 8, line = thread / 8;  // lines line, line + 32, ...

    const u16 *from[ROWS / 32];
    u32 inside[ROWS / 32];  // a bit for each tap of a picture
#pragma unroll
    for (u32 n = 0; n < ROWS / 32; n++) {
        u32 pixel = first_row + line + 32 * n;
        bool there = pixel < pixels;
        u32 f = there ? pixel / (oh * ow) : 0, rest = there ? pixel % (oh * ow) : 0;
        int at_y = (int)(rest / ow * sh) - (int)(kh / 2), at_x = (int)(rest % ow * sw) - (int)(kw / 2);
        inside[n] = 0;
        for (u32 i = 0; i < kh; i++)
            for (u32 j = 0; j < kw; j++)
                if (there && (u32)(at_y + (int)i) < h && (u32)(at_x + (int)j) < w) inside[n] |= 1u << (i * kw + j);
        from[n] = x + ((long long)((u64)f * st * h) * w + (long long)at_y * w + at_x) * c + part * 8;
    }
    const u16 *columns[COLS / 32];
#pragma unroll
    for (u32 n = 0; n < COLS / 32; n++) {
        u32 out = first_col + line + 32 * n;
        columns[n] = out < o ? weights + (u64)out * taps * c + part * 8 : nullptr;
    }

    u32 tap_t = 0, tap_i = 0, tap_j = 0, channel = 0, fetched = 0;  // of the next fetch
    auto fetch_step = [&]() {
        u32 a = memory + fetched % STAGES * STAGE, b = a + LEFT;
        bool deep_enough = channel + part * 8 < c;
        long long shift = ((long long)(tap_t * h + tap_i) * w + tap_j) * c + channel;
        u32 bit = tap_i * kw + tap_j;
        u64 column = (u64)((tap_t * kh + tap_i) * kw + tap_j) * c + channel;
#pragma unroll
        for (u32 n = 0; n < ROWS / 32; n++) {
            bool there = deep_enough && (inside[n] >> bit & 1);
            fetch(a + place(line + 32 * n, part), there ? from[n] + shift : x, there);
        }
#pragma unroll
        for (u32 n = 0; n < COLS / 32; n++) {
            bool there = deep_enough && columns[n];
            fetch(b + place(line + 32 * n, part), there ? columns[n] + column : weights, there);
        }
        fetched++;
        // columns first: they read the same lines of pixels again
        if (++tap_j < kw) return;
        tap_j = 0;
        channel += DEPTH;
        if (channel < c) return;
        channel = 0;
        if (++tap_i < kh) return;
        tap_i = 0;
        tap_t++;
    };

    float low[64], high[64];  // of 64 pixels each
#pragma unroll
    for (u32 i = 0; i < 64; i++) low[i] = high[i] = 0;
#pragma unroll
    for (u32 s = 0; s < AHEAD; s++) {
        if (s < steps) fetch_step();
        asm volatile("cp.async.commit_group;");
    }
    for (u32 step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1));
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();  // what came is seen by all, and all have waited for the products of two steps before
        u32 a = memory + step % STAGES * STAGE + group * 128 * 128, b = memory + step % STAGES * STAGE + LEFT;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; k++) {
            u64 right = matrix(b) + k * 2;  // 32 bytes on
            multiply(low, matrix(a) + k * 2, right);
            multiply(high, matrix(a + 64 * 128) + k * 2, right);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (step + AHEAD < steps) fetch_step();
        asm volatile("cp.async.commit_group;");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");

    auto show = [&](const float (&sums)[64], u32 first) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 pixel = first_row + group * 128 + first + thread % 128 / 32 * 16 + half * 8 + lane / 4;
            if (pixel >= pixels) continue;
#pragma unroll
            for (u32 n = 0; n < 16; n++) {
                u32 out = first_col + n * 8 + lane % 4 * 2;
                if (out >= o) continue;
                u64 at = (u64)pixel * o + out;
                float even = sums[n * 4 + half * 2] + wide(bias[out]), odd = sums[n * 4 + half * 2 + 1] + wide(bias[out + 1]);
                if (residual) {
                    u32 pair = *reinterpret_cast<const u32 *>(residual + at);
                    even += wide((u16)pair);
                    odd += wide((u16)(pair >> 16));
                }
                *reinterpret_cast<u32 *>(y + at) = (u32)narrow(even) | (u32)narrow(odd) << 16;
            }
        }
    };
    show(low, 0);
    show(high, 64);
}
