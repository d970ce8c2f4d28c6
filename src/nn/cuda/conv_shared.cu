// What both convolutions share. Compiled by NVRTC before either: no headers.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

__device__ __forceinline__ float wide(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ u16 narrow(float x) {
    u32 bits = __float_as_uint(x);
    return x == x ? (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (u16)0x7fff;
}

// Copies 16 bytes to shared memory while others compute, or writes zeros.
__device__ __forceinline__ void fetch(u32 to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}

// Where the 16 bytes `part` of a line lie: turned by the line, so that eight lines are read without waiting for each other. It is the
// 128-byte swizzle that Hopper's tensor instructions know.
__device__ __forceinline__ u32 place(u32 line, u32 part) { return line * 128 + ((part ^ (line & 7)) << 4); }
