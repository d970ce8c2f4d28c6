"""Triton: silu(x / rms over channels) with the edge frames repeated in time, forward and backward, for channels-last clips."""
import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total", "FR", "S"])
def _fwd(x, y, total, FR, S, C: tl.constexpr, CP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, EPS: tl.constexpr, R: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    s = rows % S
    t = rows // S
    fo = t % (FR + A + B)
    n = t // (FR + A + B)
    m = tl.minimum(tl.maximum(fo - A, 0), FR - 1)
    src = (n * FR + m) * S + s
    c = tl.arange(0, CP)
    mask = (rows < total)[:, None] & (c < C)[None, :]
    v = tl.load(x + src[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(v * v, 1) / C + EPS)
    u = v * r[:, None]
    o = u / (1.0 + tl.exp(-u))
    tl.store(y + rows[:, None] * C + c[None, :], o.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["total", "FR", "S"])
def _bwd(g, x, d, total, FR, S, C: tl.constexpr, CP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, EPS: tl.constexpr, R: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    s = rows % S
    t = rows // S
    m = t % FR
    n = t // FR
    c = tl.arange(0, CP)
    live = rows < total
    mask = live[:, None] & (c < C)[None, :]
    v = tl.load(x + rows[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    base = n * (FR + A + B)
    q = tl.load(g + ((base + A + m) * S + s)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    for j in tl.static_range(A):
        q += tl.load(g + ((base + j) * S + s)[:, None] * C + c[None, :], mask=mask & (m == 0)[:, None], other=0.0).to(tl.float32)
    for j in tl.static_range(B):
        q += tl.load(g + ((base + A + FR + j) * S + s)[:, None] * C + c[None, :], mask=mask & (m == FR - 1)[:, None], other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(v * v, 1) / C + EPS)
    u = v * r[:, None]
    e = 1.0 / (1.0 + tl.exp(-u))
    w = q * e * (1.0 + u * (1.0 - e))
    dot = tl.sum(w * u, 1) / C
    o = r[:, None] * (w - u * dot[:, None])
    tl.store(d + rows[:, None] * C + c[None, :], o.to(d.dtype.element_ty), mask=mask)


R = 16


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, eps):
        x = x.contiguous(memory_format=torch.channels_last_3d)
        n, c, f, h, w = x.shape
        y = torch.empty((n, c, f + a + b, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        total = n * (f + a + b) * h * w
        _fwd[(triton.cdiv(total, R),)](x, y, total, f, h * w, c, triton.next_power_of_2(c), a, b, eps, R)
        ctx.save_for_backward(x)
        ctx.abe = a, b, eps
        return y

    @staticmethod
    def backward(ctx, g):
        x, = ctx.saved_tensors
        a, b, eps = ctx.abe
        n, c, f, h, w = x.shape
        g = g.contiguous(memory_format=torch.channels_last_3d)
        d = torch.empty_like(x)
        total = n * f * h * w
        _bwd[(triton.cdiv(total, R),)](g, x, d, total, f, h * w, c, triton.next_power_of_2(c), a, b, eps, R)
        return d, None, None, None


def norm_silu(x, a, b, eps=1e-8):
    return Norm.apply(x, a, b, eps)
