"""One short call on one GPU, by the clock: the autoencoder stage from the packed state to its end, then the transformer as long as time is left.

    python gpu_train.py SECONDS --packed FOLDER [--out FOLDER]

A supervisor (this file) starts the trainer (the same file, --child), packs its state again and again into OUT, restarts it with plainer settings if
it dies or hangs, and ends in time. The states are those of train.py, which goes on from them on a CPU."""
import argparse
import copy
import gc
import glob
import json
import math
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault("TINY_FAST", "0")  # no CPU kernels here
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = os.path.dirname(os.path.abspath(__file__))
T0 = time.time()


# ---------------------------------------------------------------- supervisor


def place(source, out):
    """The parts of a packed state, put into OUT at once."""
    parts = sorted(glob.glob(f"{source}/part_*"))
    for f in parts:
        shutil.copy(f, f"{out}/tmp_{os.path.basename(f)}")
    for f in parts:
        os.replace(f"{out}/tmp_{os.path.basename(f)}", f"{out}/{os.path.basename(f)}")
    for f in glob.glob(f"{out}/part_*"):
        if os.path.basename(f) not in {os.path.basename(p) for p in parts}:
            os.remove(f)


def pack_now(a, why):
    """pack.py in a process of its own; True if OUT was renewed."""
    tmp = f"{a.state}_packed"
    t = time.time()
    try:
        r = subprocess.run([sys.executable, f"{HERE}/pack.py", "save", a.state, tmp, "--part", "15"], capture_output=True, text=True, timeout=60)
        if r.returncode:
            raise RuntimeError(r.stderr[-500:])
        size = sum(map(os.path.getsize, glob.glob(f"{tmp}/part_*")))
        if size > 62e6 or size < 1e5:
            raise RuntimeError(f"{size} bytes")
        place(tmp, a.out)
        print(f"[{time.time() - T0:6.1f}] packed ({why}): {r.stdout.strip()}, {time.time() - t:.1f} s", flush=True)
        return True
    except Exception as e:
        print(f"[{time.time() - T0:6.1f}] packing failed: {e!r}"[:800], flush=True)
        return False


def final(a):
    """OUT/final.tar: the cooled-down transformer and text encoder, half precision."""
    try:
        if os.path.exists(f"{a.state}/final/text_encoder/model.safetensors"):
            subprocess.run(["tar", "cf", f"{a.out}/tmp_final", "-C", a.state, "final"], check=True, timeout=20)
            os.replace(f"{a.out}/tmp_final", f"{a.out}/final.tar")
    except Exception as e:
        print("no final.tar:", e, flush=True)


def supervise(a):
    os.makedirs(a.out, exist_ok=True)
    a.state = a.state or f"{tempfile.mkdtemp(prefix='tiny_gpu_')}/state"
    end = T0 + a.seconds - a.reserve  # the trainer is out by then
    beat, level, seen, packed = f"{a.state}.beat", a.level, 0, time.time()
    stamp = lambda: max([os.path.getmtime(f) for f in (f"{a.state}/vae_state.pt", f"{a.state}/dit.pt", f"{a.state}/vae/config.json") if os.path.exists(f)] or [0])

    def start():
        open(beat, "w").write("start")
        cmd = [sys.executable, "-u", os.path.abspath(__file__), str(a.seconds), "--child", "--packed", a.packed, "--out", a.out, "--state", a.state, "--until", repr(end),
               "--began", repr(T0), "--level", str(level), "--device", a.device, "--vae-until", str(a.vae_until), "--least", str(a.least), "--until-p", str(a.until_p), "--workers", str(a.workers),
               "--pixels", str(a.pixels), "--rate", str(a.rate), "--profile", a.profile, "--save-every", str(a.save_every), "--dit-cool", str(a.dit_cool)]
        return subprocess.Popen(cmd, start_new_session=True)
    child = start()
    first, cooled, slow = None, 0, 0.0
    while True:
        time.sleep(0.5)
        now, code = time.time(), child.poll()
        hung = now - os.path.getmtime(beat) > (150 if level or now - T0 < 240 else 80)  # a cold start may be slow
        if code is None and (now > end + 5 or hung):
            print(f"[{now - T0:6.1f}] stopping the trainer: {'no sign of life' if hung else 'late'}", flush=True)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            code = -9
        if code is not None:
            if code and end - now > 40 and level < 2:
                level += 1
                print(f"[{now - T0:6.1f}] the trainer ended with {code}; again at level {level} (1 no graphs, no Triton; 2 also no cudnn search, small batches)", flush=True)
                child = start()
                continue
            break
        s = stamp()
        if os.path.exists(f"{a.state}/final/text_encoder/model.safetensors") and os.path.getmtime(f"{a.state}/final/text_encoder/model.safetensors") > cooled:
            cooled = time.time()
            final(a)
        if s > seen and now - packed > (20 if first is None else 40) and end - now > max(15, 10 + 2 * slow):  # (the last pack follows below)
            first = first or now
            seen, packed = s, now
            pack_now(a, "so far")
            slow = time.time() - now
    ok = stamp() == 0 or pack_now(a, "final") or pack_now(a, "again")
    final(a)
    for f in glob.glob(f"{a.out}/tmp_*"):
        os.remove(f)
    print(f"[{time.time() - T0:6.1f}] done, exit {code}, {'state in OUT' if ok else 'STATE NOT PACKED, OUT HOLDS THE LAST GOOD ONE'}: "
          + ", ".join(f"{os.path.basename(f)} {os.path.getsize(f)}" for f in sorted(glob.glob(f"{a.out}/*"))), flush=True)


ap = argparse.ArgumentParser()
ap.add_argument("seconds", type=float, help="wall-clock seconds in all, packing included")
ap.add_argument("--packed", default=f"{HERE}/../state", help="packed state to start from (pack.py)")
ap.add_argument("--out", default=os.environ.get("OUT", "out"))
ap.add_argument("--vae-until", type=float, default=300, help="the autoencoder ends that many seconds after the start; the rest is for the transformer (if it is --least seconds)")
ap.add_argument("--least", type=float, default=60, help="no stage is begun or squeezed into less than that")
ap.add_argument("--dit-cool", type=float, default=0.25, help="share of the transformer's time in which its rate is lowered (0: none); the state keeps what was before")
ap.add_argument("--until-p", type=float, default=1.0, help="end the autoencoder's schedule there (0.65: no cool-down in this call, the stage stays open)")
ap.add_argument("--pixels", type=float, default=0, help="pixels per autoencoder step (default: measured)")
ap.add_argument("--rate", type=float, default=1.0, help="factor on the rates of the profile")
ap.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
ap.add_argument("--device", default="cuda")
ap.add_argument("--profile", default="cpu128", help="only for a new state (tests)")
ap.add_argument("--state", default="")
ap.add_argument("--reserve", type=float, default=15, help="seconds kept for the last packing")
ap.add_argument("--save-every", type=float, default=40)
ap.add_argument("--level", type=int, default=0)
ap.add_argument("--child", action="store_true")
ap.add_argument("--until", type=float)
ap.add_argument("--began", type=float)
if __name__ == "__main__":
    ARGS = ap.parse_args()
    if not ARGS.child:
        supervise(ARGS)
        raise SystemExit


# ---------------------------------------------------------------- trainer

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import data
import fast
import models as M
import pack
import text
import train
import world
from config import PROFILES
from optim import Muon, orthogonalise

BF = torch.bfloat16
WORDS = 32  # tokens of a caption that the transformer sees; longer captions (there are none, 24 is the longest) are cut


def say(a, **line):
    line = dict(t=round(time.time() - a.began, 1), **line)
    s = json.dumps(line)
    print(s, flush=True)
    try:
        with open(f"{a.out}/log.txt", "a") as f:
            f.write(s + "\n")
        if os.path.isdir(a.state):
            with open(f"{a.state}/log.jsonl", "a") as f:
                f.write(s + "\n")
    except OSError:
        pass


def beat(a):
    os.utime(f"{a.state}.beat")


# ---------------------------------------------------------------- clips


def centres(x, k, rng):
    """k places (frame, y, x) of a clip [3, F, H, W] (bytes): most where it changes to the next frame, the others on edges."""
    g = x.astype(np.int16)
    f, h, w = g.shape[1:]
    out = []
    if f > 1:
        at = np.argwhere(np.abs(g[:, 1:] - g[:, :-1]).sum(0) > 60)
        if len(at):
            out.append(at[rng.integers(0, len(at), k * 3 // 4)])
    fr = rng.integers(0, f, 3) if f > 1 else np.zeros(1, int)
    s = g[:, fr]
    at = np.argwhere((np.abs(s[:, :, 1:, 1:] - s[:, :, :-1, 1:]) + np.abs(s[:, :, 1:, 1:] - s[:, :, 1:, :-1])).sum(0) > 60)
    n = k - sum(map(len, out))
    if len(at):
        at = at[rng.integers(0, len(at), n)]
        at[:, 0] = fr[at[:, 0]]
        out.append(at)
    else:
        out.append(np.stack([rng.integers(0, m, n) for m in (f, h, w)], 1))
    return np.concatenate(out).astype(np.int16)


def shared(shape, dtype):
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(n, 1)), dtype=dtype, count=int(np.prod(shape))).reshape(shape)


class Source:
    """Rendering processes (forked before CUDA starts) that fill small rings in shared memory."""
    RING, TEXT, K = 24, 2048, 64

    def __init__(self, P, full, workers, seed):
        self.shapes, self.shares, self.full, self.seed, self.w = [tuple(b[0]) for b in P["buckets"]], [b[1] for b in P["buckets"]], full, seed, workers
        size = lambda s: (workers, self.RING, 3, s[2], s[1], s[0])
        self.px = [shared(size(s), np.uint8) for s in self.shapes]
        self.mv = [shared((workers, self.RING, self.K, 3), np.int16) for _ in self.shapes]
        self.tx = [shared((workers, self.RING, self.TEXT), np.uint8) for _ in self.shapes]
        self.done, self.taken = (shared((len(self.shapes), workers), np.int64) for _ in "ab")
        self.pids = []
        me = os.getpid()
        for i in range(workers):
            pid = os.fork()
            if not pid:
                try:
                    self.render(i, me)
                finally:
                    os._exit(0)
            self.pids.append(pid)

    def render(self, i, parent):
        torch.set_num_threads(1)
        rng, nr = random.Random(self.seed + i), np.random.default_rng(self.seed + i)
        while os.getppid() == parent:
            b = rng.choices(range(len(self.shapes)), self.shares)[0]
            if self.done[b, i] - self.taken[b, i] >= self.RING:
                time.sleep(0.005)
                continue
            v, s, _ = world.clip(rng, self.shapes[b], "full" if rng.random() < self.full else "simple")
            x = ((v + 1) * 127.5).round().byte().numpy()
            at = int(self.done[b, i] % self.RING)
            self.px[b][i, at], self.mv[b][i, at] = x, centres(x, self.K, nr)
            words = json.dumps([world.caption(s, rng) for _ in range(4)] + [world.caption(s, rng, True)]).encode()[:self.TEXT]
            self.tx[b][i, at, :len(words)] = np.frombuffer(words, np.uint8)
            self.tx[b][i, at, len(words):] = 32
            self.done[b, i] += 1

    def stop(self):
        for p in self.pids:
            try:
                os.kill(p, signal.SIGKILL)
            except OSError:
                pass


class Pool:
    """Clips as bytes on the device, in the order of their arrival; a thread adds what the renderers made, over the limit the oldest are replaced."""

    def __init__(self, source, caps, tok, dev):
        self.s, self.caps, self.tok, self.dev, self.lock, self.over = source, caps, tok, dev, threading.Lock(), False
        z = lambda *s, dtype: torch.zeros(s, dtype=dtype, device=dev)
        self.px = [z(n, 3, s[2], s[1], s[0], dtype=torch.uint8) for s, n in zip(source.shapes, caps)]
        self.mv = [z(n, source.K, 3, dtype=torch.int16) for n in caps]
        self.ids = [z(n, 5, WORDS, dtype=torch.int16) for n in caps]
        self.len = [z(n, 5, dtype=torch.int16) for n in caps]
        self.count, self.total = [torch.zeros((), device=dev) for _ in caps], [0] * len(caps)
        cuda = dev == "cuda"
        self.stream = torch.cuda.Stream() if cuda else None
        self.hold = 12
        pin = lambda *s, dtype: torch.zeros(s, dtype=dtype, pin_memory=cuda)
        self.stage = [[pin(self.hold, *t.shape[1:], dtype=t.dtype) for t in (px, mv, ids, n)] for px, mv, ids, n in zip(self.px, self.mv, self.ids, self.len)]
        self.error = None
        if cuda:
            torch.cuda.synchronize()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self):
        try:
            while not self.over:
                n = 0
                for b in range(len(self.caps)):
                    with self.lock:
                        n += self.add(b)
                    time.sleep(0.0005)  # let others have the lock
                if not n:
                    time.sleep(0.02)
        except Exception as e:
            self.error = repr(e)

    def add(self, b):
        s, st, k = self.s, self.stage[b], 0
        for i in range(s.w):
            new = int(min(s.done[b, i] - s.taken[b, i], self.hold - k))
            for _ in range(max(0, new)):
                at = int(s.taken[b, i] % s.RING)
                st[0][k].copy_(torch.from_numpy(s.px[b][i, at]))
                st[1][k].copy_(torch.from_numpy(s.mv[b][i, at]))
                try:
                    words = json.loads(s.tx[b][i, at].tobytes())
                except ValueError:
                    words = [""] * 5
                for j, e in enumerate(self.tok.tok.encode_batch(words)):
                    t = e.ids if len(e.ids) <= WORDS else e.ids[:WORDS - 1] + [1]
                    st[2][k, j] = 0
                    st[2][k, j, :len(t)] = torch.tensor(t, dtype=torch.int16)
                    st[3][k, j] = len(t)
                s.taken[b, i] += 1
                k += 1
        if not k:
            return 0
        put = lambda: self.put(b, k)
        if self.stream:
            with torch.cuda.stream(self.stream):
                put()
            self.stream.synchronize()
        else:
            put()
        return k

    def put(self, b, k):
        cap, at = self.caps[b], self.total[b] % self.caps[b]
        for have, st in zip((self.px[b], self.mv[b], self.ids[b], self.len[b]), self.stage[b]):
            n = min(k, cap - at)
            have[at:at + n].copy_(st[:n], non_blocking=True)
            if k > n:
                have[:k - n].copy_(st[n:k], non_blocking=True)
        self.total[b] += k
        self.count[b].fill_(float(min(self.total[b], cap)))

    def wait(self, a, least, seconds):
        end = time.time() + seconds
        while min(t for t, s in zip(self.total, self.s.shapes) if s[2] > 1) < least and time.time() < end:
            time.sleep(0.1)
            if self.error:
                raise RuntimeError(self.error)
            beat(a)

    def sample(self, b, n, k, f):
        """n windows [n, 3, f, k, k] of the clips of shape b, most of them around what moves or has edges. Without host synchronisation."""
        dev, (w, h, frames, _) = self.dev, self.s.shapes[b]
        r = torch.rand(8, n, device=dev)
        i = (r[0] * self.count[b]).long().clamp(0, self.caps[b] - 1)
        c = self.mv[b][i, (r[1] * self.s.K).long().clamp(max=self.s.K - 1)].long()
        free = r[2] > 0.85
        cy, cx = torch.where(free, (r[3] * h).long(), c[:, 1]), torch.where(free, (r[4] * w).long(), c[:, 2])
        t = (c[:, 0] - (r[5] * max(1, f - 1)).long()).clamp(0, frames - f)
        reach = k // 3
        y = (cy - k // 2 + ((r[6] * 2 - 1) * reach).long()).clamp(0, h - k)
        x = (cx - k // 2 + ((r[7] * 2 - 1) * reach).long()).clamp(0, w - k)
        flip = torch.rand(n, device=dev) < 0.5
        ar = lambda m: torch.arange(m, device=dev)
        xs = torch.where(flip[:, None], x[:, None] + k - 1 - ar(k), x[:, None] + ar(k))
        plane = h * w
        at = (i * (3 * frames * plane))[:, None] + ar(3) * (frames * plane)                       # [n, 3]
        at = at[:, :, None] + ((t[:, None] + ar(f)) * plane)[:, None]                             # [n, 3, f]
        at = at[..., None] + ((y[:, None] + ar(k)) * w)[:, None, None]                            # [n, 3, f, k]
        at = at[..., None] + xs[:, None, None, None]
        return self.px[b].view(-1)[at].float() / 127.5 - 1


# ---------------------------------------------------------------- networks, GPU paths


class Way:
    conv, norm = "3d", None


def conv(m, x):
    """M.Conv's convolution; number of output channels padded to a multiple of 8; '2d': three frames side by side as channels of a plane convolution."""
    w, b = m.conv.weight, m.conv.bias
    o = w.shape[0]
    p = -o % 8
    if p:
        w, b = F.pad(w, (0, 0) * 4 + (0, p)), F.pad(b, (0, p))
    x = x.to(BF)
    if Way.conv == "3d":
        y = F.conv3d(x, w.to(BF, memory_format=torch.channels_last_3d), b.to(BF), padding=(0, 1, 1))
    else:
        n, f = x.shape[0], x.shape[2] - 2
        v = x.permute(0, 2, 3, 4, 1)
        v = torch.cat([v[:, i:i + f] for i in range(3)], -1).flatten(0, 1).permute(0, 3, 1, 2)
        y = F.conv2d(v, w.permute(0, 2, 1, 3, 4).flatten(1, 2).to(BF, memory_format=torch.channels_last), b.to(BF), padding=1)
        y = y.permute(0, 2, 3, 1).unflatten(0, (n, f)).permute(0, 4, 1, 2, 3)
    return y[:, :o] if p else y


def patch():
    M.Conv.forward = lambda m, x: conv(m, fast.repeat_frames(x.to(BF), *m.pad))
    M.Conv.after_norm = lambda m, x: conv(m, fast.norm_silu(x, *m.pad))


def try_triton(a):
    """Use the Triton kernel if it builds and agrees with the plain expression."""
    plain = fast.norm_silu
    try:
        import gpu_kernels
        for c, ab in ((48, (2, 0)), (96, (1, 1)), (48, (1, 1)), (96, (2, 0))):
            x = torch.randn(3, c, 3, 5, 7, device="cuda", dtype=BF).to(memory_format=torch.channels_last_3d).requires_grad_()
            y, z = gpu_kernels.norm_silu(x, *ab), plain(x.float(), *ab)
            g = torch.randn_like(z)
            d = [float((p.detach().float() - q.detach()).norm() / q.detach().norm()) for p, q in ((y, z), (torch.autograd.grad(y, x, g.to(BF))[0], torch.autograd.grad(z, x, g)[0]))]
            if not max(d) < 0.01:
                raise RuntimeError(f"disagrees: {d}")
        fast.norm_silu = gpu_kernels.norm_silu
        say(a, note="Triton norm in use", far=[round(v, 5) for v in d])
    except Exception as e:
        fast.norm_silu = plain
        say(a, note=f"no Triton norm, plain one used: {e!r}"[:500])


def pixel_loss(x, y, late, soft=0.02):
    """train.vae_loss without the divergence term; late is a tensor."""
    phi = lambda v: F.huber_loss(v, torch.zeros_like(v), delta=soft, reduction="sum") / soft
    e, w = y - x, train.emphasis(x).unsqueeze(1)
    h = e.abs()
    loss = (w * (4.0 * e.pow(2) + (0.3 + late) * torch.where(h < soft, h * h / (2 * soft), h - soft / 2))).sum()
    loss = loss + (0.2 + 0.6 * late) * (phi(e[..., 1:] - e[..., :-1]) + phi(e[..., 1:, :] - e[..., :-1, :]))
    if e.shape[2] > 1:
        loss = loss + (0.1 + 0.4 * late) * phi(e[:, :, 1:] - e[:, :, :-1])
    return loss / e.numel(), e.detach().pow(2).mean()


class Step:
    """Gradient clipping, Muon, Adam and the running average on flat gradients, without host synchronisation: state and numerics of optim.Muon."""

    def __init__(self, opt, model, ema, rates, weight_decay, dev):
        self.opt, self.g = opt, opt.param_groups
        self.mats, self.others = list(self.g[0]["params"]), list(self.g[1]["params"])
        self.params = self.mats + self.others
        for p in self.mats:
            opt.state[p].setdefault("m", torch.zeros_like(p))
        for p in self.others:
            s = opt.state[p]
            if "n" not in s:
                s["n"], s["m"], s["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
        for p in self.params:
            for k in ("m", "v"):
                if k in opt.state[p]:
                    opt.state[p][k] = opt.state[p][k].to(dev, torch.float32).contiguous()
        self.flat = torch.zeros(sum(p.numel() for p in self.params), device=dev)
        self.grads = [v.view_as(p) for v, p in zip(self.flat.split([p.numel() for p in self.params]), self.params)]
        self.n = torch.tensor(float(opt.state[self.others[0]]["n"]), device=dev)
        self.k, self.d, self.bad = torch.zeros((), device=dev), torch.zeros((), device=dev), torch.zeros((), device=dev)
        self.rates, self.wd = rates, weight_decay
        self.live, self.avg = [p.detach() for p in model.parameters()], list(ema.parameters())
        shapes = {}
        for i, p in enumerate(self.mats):
            shapes.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(i)
        self.shapes = shapes

    def keep(self, grads):
        torch.cat([g.reshape(-1).float() for g in grads], out=self.flat)

    @torch.no_grad()
    def run(self):
        norm = self.flat.norm()
        ok = torch.isfinite(norm)
        self.bad += (~ok).float()
        self.flat.nan_to_num_(0.0, 0.0, 0.0).mul_(torch.where(ok, (1.0 / (norm + 1e-6)).clamp(max=1.0), 0.0))
        nm, st = len(self.mats), self.opt.state
        g, ms = self.grads[:nm], [st[p]["m"] for p in self.mats]
        mom = self.g[0]["momentum"]
        torch._foreach_lerp_(ms, g, 1 - mom)
        u = torch._foreach_lerp(g, ms, mom)
        if self.wd:
            torch._foreach_mul_([p.detach() for p in self.mats], 1 - self.k * (self.rates[0] * self.wd))
        ps, ws = [], []
        for (rows, cols), at in self.shapes.items():
            o = orthogonalise(torch.stack([u[i].reshape(rows, cols) for i in at]), self.g[0]["steps"]).float() * (self.k * (self.rates[0] * max(1.0, rows / cols) ** 0.5))
            ps += [self.mats[i].detach() for i in at]
            ws += [w.view_as(self.mats[i]) for i, w in zip(at, o.contiguous())]
        torch._foreach_sub_(ps, ws)
        g, ms, vs, ps = self.grads[nm:], [st[p]["m"] for p in self.others], [st[p]["v"] for p in self.others], [p.detach() for p in self.others]
        b1, b2 = self.g[1]["betas"]
        self.n += 1
        torch._foreach_lerp_(ms, g, 1 - b1)
        torch._foreach_mul_(vs, b2)
        torch._foreach_addcmul_(vs, g, g, 1 - b2)
        d = torch._foreach_mul(vs, 1 / (1 - b2 ** self.n))
        torch._foreach_sqrt_(d)
        torch._foreach_add_(d, 1e-8)
        w = torch._foreach_div(ms, d)
        torch._foreach_mul_(w, self.k * self.rates[1] / (1 - b1 ** self.n))
        torch._foreach_sub_(ps, w)
        torch._foreach_mul_(self.avg, self.d)
        torch._foreach_add_(self.avg, torch._foreach_mul(self.live, 1 - self.d))

    def state_dict(self):
        for p in self.others:
            self.opt.state[p]["n"] = int(self.n.item())
        return cpu(self.opt.state_dict())


def cpu(x):
    if torch.is_tensor(x):
        return x.detach().cpu().contiguous().clone()
    if isinstance(x, dict):
        return {k: cpu(v) for k, v in x.items()}
    return [cpu(v) for v in x] if isinstance(x, (list, tuple)) else x


class Run:
    """fn, replayed as a CUDA graph if that works."""

    memory = None  # shared: nothing allocated by a graph is used after it

    def __init__(self, a, fn, name, graph, pool=None, warm=2):
        self.fn, self.g = fn, None
        if graph:
            try:
                t = time.time()
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(warm):
                        fn()
                torch.cuda.current_stream().wait_stream(side)
                torch.cuda.synchronize()
                g = torch.cuda.CUDAGraph()
                with (pool.lock if pool else threading.Lock()):
                    with torch.cuda.graph(g, pool=Run.memory, capture_error_mode="thread_local"):
                        fn()
                self.g, Run.memory = g, Run.memory or g.pool()
                say(a, note=f"graph {name}", s=round(time.time() - t, 2), GB=round(torch.cuda.memory_reserved() / 1e9, 1))
            except Exception as e:
                say(a, note=f"no graph for {name}, run plainly: {e!r}"[:500])
                torch.cuda.synchronize()
                gc.collect()
                fn()  # if that fails too, the caller does without
        beat(a)

    def __call__(self):
        self.g.replay() if self.g else self.fn()


def timed(run, n=12):
    torch.cuda.synchronize()
    run()
    torch.cuda.synchronize()
    t = time.time()
    for _ in range(n):
        run()
    torch.cuda.synchronize()
    return (time.time() - t) / n


class Throttle:
    """At most a few steps ahead of the device, so that the clock means something."""

    def __init__(self, dev, ahead=6):
        self.ev = [torch.cuda.Event(blocking=True) for _ in range(ahead)] if dev == "cuda" else None
        self.i = 0

    def __call__(self):
        if self.ev:
            e = self.ev[self.i % len(self.ev)]
            if self.i >= len(self.ev):
                e.synchronize()
            e.record()
            self.i += 1


# ---------------------------------------------------------------- autoencoder

# (square, frames): share of the steps. Longer windows than on the CPU, since clips of 17 and 25 frames are what the transformer sees
KINDS = {(64, 9): 0.36, (64, 5): 0.16, (96, 17): 0.18, (128, 9): 0.16, (128, 25): 0.08, (128, 1): 0.06}


def set_benchmark(a, on):
    if a.device == "cuda":
        torch.backends.cudnn.benchmark = bool(on and a.level < 2 and not getattr(a, "quick", False))
        torch.backends.cudnn.benchmark_limit = 5


def scores(a, vae, held):
    set_benchmark(a, False)  # shapes that occur once a minute
    try:
        return train.psnr(vae, held, a.device)
    finally:
        set_benchmark(a, True)


def val_process(a, P, full):
    """The held-out clips of train.py, the same ones, from a process of their own."""
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            if not os.path.exists(f"{a.state}/val.pt"):
                rng = random.Random(987654321)
                data.write(f"{a.state}/val.pt", [data.render_shard(rng, s, P["val"], full) for s, _, _ in P["buckets"][:2]], False)
        finally:
            os._exit(0)
    return pid


def vae_stage(a, P, kept, pool, end):
    dev, path = a.device, f"{a.state}/vae_state.pt"
    torch.manual_seed(0)
    vae = M.load(M.VAE, f"{a.state}/{kept['vae_init']}") if kept.get("vae_init") else M.VAE(P["vae"])
    if not kept.get("vae_init"):
        vae.encoder.conv_out.conv.weight.data[-1].zero_()
        vae.encoder.conv_out.conv.bias.data[-1] = -4.0
    vae.to(dev).train()
    outer = ("encoder.conv_in.", "encoder.conv_out.", "decoder.conv_out.")
    kernels = [q for n, q in vae.named_parameters() if q.dim() == 5 and ("resnets" in n or P.get("vae_wide") and not n.startswith(outer))]
    ids = {id(q) for q in kernels}
    opt = Muon(kernels, [q for q in vae.parameters() if id(q) not in ids], lr=P["vae_muon"], adam_lr=P["vae_lr"], weight_decay=0.0, steps=4)
    ema, step0, warm = copy.deepcopy(vae).eval().requires_grad_(False), 0, 0
    steps, made = kept["vae_steps"], 0
    s = data.read(path) if os.path.exists(path) else None
    if s:
        vae.load_state_dict(s["model"]), ema.load_state_dict(s["ema"])
        step0, warm = s["step"], s["warm"]
        if s["opt"]:
            opt.load_state_dict(s["opt"])
    torch.manual_seed(int(time.time() * 1000) % 2**31)  # also the GPU's
    p0 = min(step0 / steps, 0.9)
    st = Step(opt, vae, ema, (P["vae_muon"] * a.rate, P["vae_lr"] * a.rate), 0.0, dev)
    st.d.fill_(min(P["vae_ema"], (step0 + 1) / (step0 + 20)))
    late, mse, kl = torch.zeros((), device=dev), torch.full((), 0.003, device=dev), P["kl"]
    lo, span = P.get("vae_late", (0.6, 0.15))
    shapes = pool.s.shapes

    def body(kind, budget):
        k, f = kind
        fit = [b for b, x in enumerate(shapes) if x[2] >= f and (x[2] > 1) and min(x[:2]) >= k]
        total = sum(P["buckets"][b][1] for b in fit)
        n = max(1, round(budget / (k * k * f)))
        ns = [max(1, round(n * P["buckets"][b][1] / total)) for b in fit]

        def run():
            x = torch.cat([pool.sample(b, m, k, f) for b, m in zip(fit, ns)])
            with torch.autocast(dev, BF):
                mean, logvar = vae.encode(x)
                y = vae.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp()).float()
            loss, e = pixel_loss(x, y, late)
            loss = loss + kl * 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
            st.keep(torch.autograd.grad(loss, st.params))
            mse.lerp_(e, 0.02)
        run.pixels = sum(ns) * k * k * f
        return run
    kinds = {k: v for k, v in KINDS.items() if any(x[2] >= k[1] and x[2] > 1 and min(x[:2]) >= k[0] for x in shapes)}
    if dev != "cuda":
        kinds = {k: v for k, v in ({(32, 5): 0.7, (32, 9): 0.3} if P["vae_crop"] < 64 else {(64, 5): 1.0}).items()}
    graph, began = dev == "cuda" and a.level == 0, time.time()
    limit = began + max(25.0, 0.3 * (end - began))  # no new kinds of batches after that
    first = next(iter(kinds))
    if dev == "cuda":
        set_benchmark(a, True)
        budget, found = a.pixels or (1.2e6 if a.level < 2 else 6e5), {}
        for way in ("3d", "2d") if a.level == 0 else ("3d",):
            if way == "2d" and time.time() > limit - 0.4 * (limit - began):
                break
            Way.conv = way
            try:
                fn, started = body(first, budget), time.time()
                r = Run(a, fn, f"{first} {way}", graph, pool)
                found[way] = timed(r), r, fn.pixels
                if time.time() - started > 22 and not getattr(a, "quick", False):
                    a.quick = True
                    set_benchmark(a, True)
                    say(a, note="cudnn's search is too slow, its first choice is used from here on")
                say(a, note=f"autoencoder {first}, {fn.pixels / 1e6:.2f} Mpx, convolutions {way}: {found[way][0] * 1000:.2f} ms a gradient")
            except Exception as e:
                say(a, note=f"{way} failed: {e!r}"[:500])
        Way.conv = min(found, key=lambda w: found[w][0])
        t1, run1, px = found[Way.conv]
        for w in list(found):
            if w != Way.conv:
                del found[w]
        runs = {first: run1}
        if not a.pixels and a.level == 0 and time.time() < limit - 10:
            try:  # a larger batch if that is nearly as fast
                fn = body(first, 2 * budget)
                r = Run(a, fn, f"{first} doubled", graph, pool)
                t2 = timed(r)
                say(a, note=f"{fn.pixels / 1e6:.2f} Mpx: {t2 * 1000:.2f} ms; {'taken' if t2 < 1.45 * t1 else 'not taken'}")
                if t2 < 1.45 * t1:
                    budget, runs[first] = 2 * budget, r
                del r
            except Exception as e:
                say(a, note=f"doubling failed: {e!r}"[:300])
        found.clear()
        gc.collect()
        for k in list(kinds)[1:]:
            if time.time() > limit:
                say(a, note=f"no time for batches {k}")
                del kinds[k]
                continue
            try:
                runs[k] = Run(a, body(k, budget), f"{k}", graph, pool)
            except Exception as e:
                say(a, note=f"no batches {k}: {e!r}"[:500])
                del kinds[k]
    else:
        budget = P["vae_pixels"]
        runs = {k: body(k, budget) for k in kinds}
    st.k.fill_(0.02)
    runs[first]()
    st.run()
    update = Run(a, st.run, "optimizer", graph, pool, 1)
    held, names, weights = None, list(kinds), list(kinds.values())
    rng = random.Random(step0)
    t0, said, saved, scored, throttle, last = time.time(), time.time(), time.time(), 0.0, Throttle(dev), 0
    finish_s = 5 if dev == "cuda" else 1.5
    stop_at = end - (finish_s if a.until_p >= 1 else 2)
    p = p0
    if stop_at - t0 < a.least / 3:  # a slow start: time is taken from the transformer
        stop_at = min(a.until - finish_s, t0 + a.least)
    if stop_at - t0 < min(20, a.least / 3):
        say(a, note=f"only {stop_at - t0:.0f} s left: the stage stays open")
        a.until_p, stop_at = p0, t0

    def save():
        if not math.isfinite(float(st.live[0].sum())) or not math.isfinite(float(st.avg[0].sum())):
            raise RuntimeError("weights are not finite")
        data.write(path, dict(model=cpu(vae.state_dict()), ema=cpu(ema.state_dict()), opt=st.state_dict(), step=min(steps - 1, int(p * steps)), warm=warm, rng=None), False)

    def score(now):
        nonlocal held
        if held is None and os.path.exists(f"{a.state}/val.pt"):
            held = [v["x"][:8] for v in data.read(f"{a.state}/val.pt")]
        if held is None:
            return {}
        v = scores(a, ema, held)
        return dict(psnr=v[0], psnr_edges=v[1], psnr_moving=v[2])
    say(a, stage="vae", from_step=step0, of=steps, p=round(p0, 3), seconds=round(stop_at - t0, 1), pixels=budget, conv=Way.conv, graphs=graph)
    while True:
        now = time.time()
        if now >= stop_at:
            break
        if made % 8 == 0:
            p = p0 + (a.until_p - p0) * min(1.0, (now - t0) / (stop_at - t0)) if p0 < a.until_p else a.until_p
            k = min(1.0, (made + 1) / 40) * (1.0 if p < 0.7 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (p - 0.7) / 0.3)))
            st.k.fill_(k)
            late.fill_(min(1.0, max(0.0, (p - lo) / span)))
        runs[rng.choices(names, weights)[0]]()
        update()
        made += 1
        throttle()
        if now - said > 10:
            beat(a)
            line = dict(stage="vae", steps=made, p=round(p, 3), per_s=round((made - last) / (now - said), 1), k=round(k, 3), mse=round(float(mse), 5), clips=sum(pool.total), bad=int(st.bad))
            last, said = made, now
            if now - scored > 55 and stop_at - now > 5:
                line.update(score(now))
                scored = time.time()
            say(a, **line)
            if pool.error:
                say(a, note=f"no more clips: {pool.error}")
                pool.error = None
            if int(st.bad) > 0.2 * made + 50:
                raise RuntimeError("too many gradients that are not finite")
        if now - saved > a.save_every:
            save()
            saved = time.time()
    if dev == "cuda":
        torch.cuda.synchronize()
    p = a.until_p
    save()
    say(a, stage="vae", stopped=made, p=p, s=round(time.time() - t0, 1), mpx=round(made * budget / 1e6), **score(0))
    if a.until_p < 1:
        return False
    set_benchmark(a, False)
    with torch.no_grad(), torch.autocast(dev, BF):
        z = []
        for b, x in enumerate(shapes):
            if x[2] > 1:
                n = min(pool.total[b], pool.caps[b])
                for i in torch.randperm(n)[:max(8, round((640 if dev == "cuda" else 24) * P["buckets"][b][1]))].split(32):
                    z.append(ema.encode(data.pixels(pool.px[b][i.to(pool.px[b].device)], dev))[0].movedim(1, -1).flatten(0, -2))
    z = torch.cat(z)
    ema.latents_mean.copy_(z.mean(0))
    ema.latents_std.copy_(z.std(0).clamp(min=1e-3))
    M.save(ema, f"{a.state}/vae_new")
    train.swap_vae(a.state)
    os.remove(path)
    say(a, stage="vae", done=True, std=[round(float(v), 3) for v in (ema.latents_std.min(), ema.latents_std.max())])
    runs.clear()
    del update
    Run.memory = None
    gc.collect()
    if dev == "cuda":
        torch.cuda.empty_cache()
    return True


# ---------------------------------------------------------------- transformer


class Latents:
    """Latents and captions on the device, encoded from the pool as it grows."""

    def __init__(self, a, pool, vae, caps):
        self.pool, self.vae, self.dev, self.caps = pool, vae, a.device, caps
        c = vae.config["latent_channels"]
        self.z, self.last, self.ids, self.len = [], [], [], []
        for (w, h, f, _), n in zip(pool.s.shapes, caps):
            e = lambda *s, dtype: torch.zeros(s, dtype=dtype, device=self.dev)
            self.z.append(e(n, c, (f - 1) // 4 + 1, h // 16, w // 16, dtype=torch.half))
            self.last.append(e(n, c, 1, h // 16, w // 16, dtype=torch.half) if f > 1 else self.z[-1])
            self.ids.append(e(n, 5, WORDS, dtype=torch.int16))
            self.len.append(e(n, 5, dtype=torch.int16))
        self.total, self.next = [0] * len(caps), [max(0, t - n) for t, n in zip(pool.total, pool.caps)]
        self.count = [torch.zeros((), device=self.dev) for _ in caps]
        self.chunk = 64 if a.device == "cuda" else 4

    @torch.no_grad()
    def add(self, b):
        """Encode one chunk of shape b; 0 if there isn't one."""
        pool, m = self.pool, self.chunk
        cap = pool.caps[b]
        self.next[b] = max(self.next[b], pool.total[b] - cap + min(600, cap // 8))  # well away from where the pool is being replaced
        if pool.total[b] - self.next[b] < m:
            return 0
        at = torch.arange(self.next[b], self.next[b] + m, device=self.dev) % cap
        x, ids, n = pool.px[b][at], pool.ids[b][at], pool.len[b][at]
        self.next[b] += m
        to = torch.arange(self.total[b], self.total[b] + m, device=self.dev) % self.caps[b]
        with torch.autocast(self.dev, BF):
            self.z[b][to] = self.vae.latents(data.pixels(x, self.dev)).half()
            if x.shape[2] > 1:
                self.last[b][to] = self.vae.latents(data.pixels(x[:, :, -1:], self.dev)).half()
        self.ids[b][to], self.len[b][to] = ids, n
        self.total[b] += m
        self.count[b].fill_(float(min(self.total[b], self.caps[b])))
        return m


def attend(m, x, y, cs, bias):
    d = x.shape[-1]
    q, k, v = F.rms_norm(m.to_q(x).float(), (d,), m.norm_q.weight, 1e-5), F.rms_norm(m.to_k(y).float(), (d,), m.norm_k.weight, 1e-5), m.to_v(y)
    if cs is not None:
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * cs).flatten(-2) for t in (q, k))
    q, k, v = (t.to(BF).unflatten(2, (m.heads, -1)).transpose(1, 2) for t in (q, k, v))
    if bias is None:
        o = F.scaled_dot_product_attention(q, k, v)
    else:  # few keys: written out
        o = torch.softmax(((q * q.shape[-1] ** -0.5) @ k.mT).float() + bias, -1).to(BF) @ v
    return m.to_out[0](o.transpose(1, 2).flatten(2))


def rows(table, ids):
    """table[ids] as a product, so that the backward pass needs no sorting and no host."""
    with torch.autocast(ids.device.type, enabled=False):
        return (ids[..., None] == torch.arange(len(table), device=ids.device)).float() @ table


def t5_forward(t5, ids):
    """models.T5.forward"""
    w, h = ids.shape[1], t5.config["num_heads"]
    x = rows(t5.shared.weight, ids)
    pos = torch.arange(w, device=ids.device)
    bias = rows(t5.encoder["block"][0]["layer"][0]["SelfAttention"]["relative_attention_bias"].weight, t5._bucket(pos[None] - pos[:, None])).permute(2, 0, 1)[None]
    for b in t5.encoder["block"]:
        a, f = b["layer"]
        y, m = a["layer_norm"](x), a["SelfAttention"]
        q, k, v = (m[i](y).unflatten(2, (h, -1)).transpose(1, 2) for i in "qkv")
        s = torch.softmax((q @ k.mT).float() + bias, -1).to(v.dtype)
        x = x + m["o"]((s @ v).transpose(1, 2).flatten(2))
        y, m = f["layer_norm"](x), f["DenseReluDense"]
        x = x + m["wo"](F.gelu(m["wi_0"](y), approximate="tanh") * m["wi_1"](y))
    return t5.encoder["final_layer_norm"](x)


def dit_forward(dit, x, e, t, given, mask, cs):
    """models.DiT.quick in plain PyTorch: t [n] in 0..1, given [tokens] (those have step 0) or None."""
    n, d = len(x), dit.width
    steps = (t * 1000)[:, None]
    if given is not None:
        steps = torch.cat([steps, torch.zeros_like(steps)], 1)
    bias = ((1 - mask.float()) * -10000.0)[:, None, None, :]
    x = dit.proj_in(x).float()
    m = dit.time_embed["emb"]["timestep_embedder"]
    emb = m["linear_2"](F.silu(m["linear_1"](M.sinusoid(steps.flatten()))))
    temb = dit.time_embed["linear"](F.silu(emb)).float().view(n, -1, 6, d)
    c = dit.caption_projection
    e = c["linear_2"](F.gelu(c["linear_1"](e), approximate="tanh"))
    pick = (lambda v: v[:, :1]) if given is None else (lambda v: torch.where(given[None, :, None], v[:, 1:2], v[:, :1]))
    for b in dit.transformer_blocks:
        s1, k1, g1, s2, k2, g2 = (pick(v) for v in (b.scale_shift_table + temb).unbind(2))
        x = torch.addcmul(x, attend(b.attn1, *[torch.addcmul(s1, F.rms_norm(x, (d,), None, 1e-6), 1 + k1).to(BF)] * 2, cs, None), g1)
        x = x + attend(b.attn2, x.to(BF), e, None, bias)
        h = torch.addcmul(s2, F.rms_norm(x, (d,), None, 1e-6), 1 + k2).to(BF)
        net = b.ff["net"]
        x = torch.addcmul(x, net[2](F.gelu(net[0]["proj"](h), approximate="tanh")), g2)
    shift, scale = (pick(v) for v in (dit.scale_shift_table + emb.float().view(n, -1, 1, d)).unbind(2))
    return dit.proj_out(torch.addcmul(shift, F.layer_norm(x, (d,), eps=1e-6), 1 + scale))


def turns(xyz, d):
    """Rotary factors [tokens, d / 2] as complex numbers."""
    c, s = M.rotary(xyz[None], d)
    return torch.complex(c[0, :, ::2].contiguous(), s[0, :, ::2].contiguous())


def dit_stage(a, P, kept, pool, end):
    dev, path = a.device, f"{a.state}/dit.pt"
    set_benchmark(a, False)
    tok = pool.tok
    torch.manual_seed(0)
    begin = kept["start"] and f"{a.state}/{kept['start']}"
    dit = M.load(M.DiT, f"{begin}/transformer", True) if begin else M.DiT(P["dit"])
    t5 = M.load(M.T5, f"{begin}/text_encoder", True) if begin else M.T5(dict(P["t5"], vocab_size=tok.size))
    both = nn.ModuleList([dit, t5]).to(dev).train()
    matrices = [p for n, p in both.named_parameters() if p.dim() == 2 and ("transformer_blocks" in n and "table" not in n or "block." in n and "bias" not in n)]
    ids = {id(p) for p in matrices}
    opt = Muon(matrices, [p for p in both.parameters() if id(p) not in ids], lr=P["muon"], adam_lr=P["lr"], steps=4)
    ema, step, samples, warm, avg = copy.deepcopy(both).eval().requires_grad_(False), 0, 0, 0, {}
    s = data.read(path) if os.path.exists(path) else None
    if s:
        both.load_state_dict(s["model"]), ema.load_state_dict(s["ema"])
        step, samples, warm, avg = s["step"], s["samples"], s["warm"], s["avg"]
        if s["opt"]:
            opt.load_state_dict(s["opt"])
    torch.manual_seed(int(time.time() * 1000) % 2**31)
    vae = M.load(M.VAE, f"{a.state}/vae").to(dev).eval().requires_grad_(False)
    held = []
    set_benchmark(a, False)
    if os.path.exists(f"{a.state}/val.pt"):
        for v in data.read(f"{a.state}/val.pt"):
            held.append((tuple(v["shape"]), *data.encode(vae, v["x"], dev), [w[4] for w in v["captions"]]))
    shapes = pool.s.shapes
    cuda = dev == "cuda"
    lat = Latents(a, pool, vae, [(40000, 14000, 26000, 10000, 6000)[min(i, 4)] if cuda else 64 for i in range(len(shapes))])
    t = time.time()
    while time.time() < min(end - 5, t + 6):  # at first a few thousand clips
        if not sum(lat.add(b) for b in range(len(shapes))) and all(n >= lat.chunk for n in lat.total):
            break
        beat(a)
    say(a, stage="cache", clips=sum(lat.total), s=round(time.time() - t, 1))
    boost = 1.25 if cuda else 1.0  # larger batches than on the CPU
    st = Step(opt, both, ema, (P["muon"] * boost * a.rate, P["lr"] * boost * a.rate), 0.01, dev)
    st.d.fill_(min(P["ema"], (step + 1) / (step + 20)))
    empty = tok([""])[0][0]
    blank = torch.zeros(WORDS, dtype=torch.int16)
    blank[:len(empty)] = empty.to(torch.int16)
    blank, blank_n = blank.to(dev), len(empty)
    losses = {k: torch.tensor(float(avg.get(k, 1.0)), device=dev) for k in ("text", "first", "last", "both", "still")}

    def body(b, n, mode):
        shape = shapes[b]
        c, f, h, w = lat.z[b].shape[1:]
        area, width = h * w, dit.width
        near = lambda causal: turns(M.coordinates(f, h, w, shape[3], causal), width).to(dev)
        plain, causal = near(False), near(True)
        ahead = turns(M.coordinates(1, h, w, shape[3], True, shape[2] - 1), width).to(dev)
        frame = torch.arange(f, device=dev).repeat_interleave(area)
        always = torch.ones(area, dtype=torch.bool, device=dev)
        place = torch.arange(WORDS, device=dev)
        key = mode if shape[2] > 1 else "still"

        def run():
            rand = lambda *s: torch.rand(s, device=dev)
            i = (rand(n) * lat.count[b]).long().clamp(0, lat.caps[b] - 1)
            j = (rand(n) * 6).long().clamp(max=4)
            drop = rand(n) < P["dropout"]
            word = torch.where(drop[:, None], blank, lat.ids[b][i, j]).long()
            many = torch.where(drop, blank_n, lat.len[b][i, j].long())
            mask = place < many[:, None]
            x0, q = M.pack(lat.z[b][i].float()), M.pack(lat.last[b][i].float())
            t = torch.sigmoid(0.6 + 1.1 * torch.randn(n, device=dev))
            t = torch.where(rand(n) < 0.25, rand(n).sqrt(), t).clamp(0.001, 1.0)
            noise, tt = torch.randn_like(x0), t[:, None, None]
            xt, target = (1 - tt) * x0 + tt * noise, noise - x0
            given, weight, lead = None, None, 0
            cs = torch.where(rand(1, 1) < 0.5, causal, plain) if mode == "text" else causal
            if mode != "text":
                k = torch.ones((), device=dev, dtype=torch.long)
                if mode == "first" and f >= 4:
                    k = torch.where(rand() < 0.7, k, 2 + (rand() * (f - 3)).long().clamp(max=f - 4))
                given = frame < (k if mode in ("first", "both") else 0)
                weight = (~given).float()
                blur = 0.15 * tt.pow(2) * (rand(n, 1, 1) < 0.5)
                xt = torch.where(given[None, :, None], x0 + blur * torch.randn_like(x0), xt)
                if mode in ("last", "both"):
                    lead = area
                    xt, cs, given = torch.cat([q + blur * torch.randn_like(q), xt], 1), torch.cat([ahead, cs]), torch.cat([always, given])
            with torch.autocast(dev, BF):
                e = t5_forward(t5, F.pad(word, (0, 128 - WORDS)))[:, :WORDS]
                v = dit_forward(dit, xt, e, t, given, mask, cs)
            err = (v.float()[:, lead:] - target).pow(2).mean(-1)
            loss = (err.mean(1) if weight is None else (err * weight).sum(1) / weight.sum()).mean()
            st.keep(torch.autograd.grad(loss, st.params))
            losses[key].lerp_(loss.detach(), 0.02)
        run.n, run.body = n, (b, mode)
        return run
    sizes = (64, 44, 144, 256, 192) if cuda else [x[2] for x in P["buckets"]]
    modes = [("text", 0.62), ("first", 0.22), ("last", 0.08), ("both", 0.08)]
    jobs = []  # (share of the steps, run)
    graph, began = cuda and a.level == 0, time.time()
    for b, (shape, share, _) in enumerate(P["buckets"]):
        if not lat.total[b]:
            continue
        n = sizes[b] if a.level < 2 else max(8, sizes[b] // 3)
        for mode, part in modes if shape[2] > 1 else [("text", 1.0)]:
            if time.time() - began > 0.2 * (end - began) and jobs:
                continue
            fn = body(b, n, mode)
            try:
                r = Run(a, fn, f"{shape[:3]} {mode}", graph, pool, 1)
            except Exception as e:
                say(a, note=f"no {shape[:3]} {mode}: {e!r}"[:500])
                continue
            r.n = n
            jobs.append((share / n * part, r))
    if graph and jobs:
        say(a, note=f"transformer, {jobs[0][1].n} clips of {shapes[0][:3]}, text: {timed(jobs[0][1], 6) * 1000:.1f} ms a gradient")
    jobs[0][1]()
    st.run()  # (rate 0)
    update = Run(a, st.run, "optimizer", graph, pool, 1)
    weights, rng, throttle = [j[0] for j in jobs], random.Random(step), Throttle(dev)
    t0 = said = saved = time.time()
    scored, made, last, seen = time.time(), 0, 0, samples
    stop_at = end - (8 if cuda else 2)  # the sheet and the last save
    cool_at, cooling = stop_at - a.dit_cool * (stop_at - t0), False

    def save():
        if not math.isfinite(float(st.live[0].sum())):
            raise RuntimeError("weights are not finite")
        data.write(path, dict(model=cpu(both.state_dict()), ema=cpu(ema.state_dict()), opt=st.state_dict(), step=step, samples=samples, warm=warm,
                              avg={k: float(v) for k, v in losses.items()}, rng=None), False)
        M.save(ema[0], f"{a.state}/dit/transformer")
        M.save(ema[1], f"{a.state}/dit/text_encoder")

    def keep_final():  # as train.py --finish leaves it
        M.save(ema[0], f"{a.state}/final/transformer", torch.half)
        M.save(ema[1], f"{a.state}/final/text_encoder", torch.half)
    while time.time() < stop_at:
        now = time.time()
        if now >= cool_at and not cooling:  # dit.pt stays as it is now, so that training may go on from before the cool-down
            cooling = True
            save()
            say(a, stage="dit", cooling=True, step=step, samples=samples)
        if step % 4 == 0 or step - warm < P["warmup"]:
            k = min(1.0, (step - warm + 1) / P["warmup"])
            st.k.fill_(k * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (now - cool_at) / (stop_at - cool_at))))) if cooling else k)
            st.d.fill_(min(0.998 if cooling else P["ema"], (step + 1) / (step + 20)))
        if made % 12 == 0:
            b = rng.choices(range(len(shapes)), pool.s.shares)[0] if made % 24 else 0
            lat.add(b)
        r = rng.choices(jobs, weights)[0][1]
        r()
        update()
        step, made, samples = step + 1, made + 1, samples + r.n
        throttle()
        if now - said > 10:
            beat(a)
            line = dict(stage="dit", step=step, samples=samples, per_s=round((made - last) / (now - said), 1), clips_per_s=round((samples - seen) / (now - said)), encoded=sum(lat.total),
                        rendered=sum(pool.total), loss={k: round(float(v), 4) for k, v in losses.items()}, bad=int(st.bad))
            last, seen, said = made, samples, now
            if now - scored > 55 and stop_at - now > 6 and held:
                line["held_out"] = train.validate(ema[0], ema[1], tok, held, dev)
                scored = time.time()
            say(a, **line)
            if int(st.bad) > 0.2 * made + 50:
                raise RuntimeError("too many gradients that are not finite")
        if now - saved > a.save_every:
            keep_final() if cooling else save()
            saved = time.time()
    if cooling:
        keep_final()
    else:
        save()
    say(a, stage="dit", stopped=step, samples=samples, s=round(time.time() - t0, 1), held_out=train.validate(ema[0], ema[1], tok, held, dev) if held and cuda else None)
    if time.time() < end - 2 and cuda:
        sheet(a, ema, tok, vae, held, shapes)


@torch.no_grad()
def sheet(a, ema, tok, vae, held, shapes):
    """OUT/sheet.png: generated clips, seven frames each."""
    try:
        from PIL import Image
        t, prompts = time.time(), ["a red ball bounces on green grass", "a blue car drives to the left in the desert", "a big yellow star moves to the right at night",
                                   "a small pink heart moves in a circle on a white background", "a white rocket rises in space", "an orange fish swims to the right in the sea"]
        tf = torch.backends.cuda.matmul.allow_tf32
        v = M.sample(ema[0], ema[1], tok, vae, prompts, (128, 128, 25, 12), steps=16, cfg=3.0, seed=1)
        torch.backends.cuda.matmul.allow_tf32 = tf
        rows_ = [((x[:, ::4] + 1) * 127.5).byte().permute(2, 1, 3, 0).flatten(1, 2) for x in v]
        Image.fromarray(torch.cat(rows_).numpy()).save(f"{a.out}/sheet.png")
        say(a, note=f"sheet.png, {time.time() - t:.1f} s", prompts=prompts)
    except Exception as e:
        say(a, note=f"no sheet: {e!r}"[:300])


# ---------------------------------------------------------------- child


def child(a):
    if not os.path.exists(f"{a.state}/settings.json"):
        if os.path.isdir(a.packed):
            pack.load_state(a.packed, a.state)
        else:
            os.makedirs(a.state, exist_ok=True)
            text.build(f"{a.state}/tokenizer")
            json.dump(dict(profile=a.profile, start="", vae_init="", full=PROFILES[a.profile]["full"], vae_steps=PROFILES[a.profile]["vae_steps"]), open(f"{a.state}/settings.json", "w"))
    train.swap_vae(a.state)
    data.tidy(a.state)
    kept = json.load(open(f"{a.state}/settings.json"))
    P = dict(PROFILES[kept["profile"]])
    source = Source(P, kept["full"], a.workers, int(time.time() * 1000) % 10**9)
    val_process(a, P, kept["full"])
    torch.set_num_threads(1)
    try:
        say(a, note=f"level {a.level}, {a.workers} renderers, device {a.device}, torch {torch.__version__}")
        cuda = a.device == "cuda"
        patch()
        caps = [64] * len(source.shapes)
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            free = torch.cuda.mem_get_info()[0]
            say(a, note=f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} GB free, cudnn {torch.backends.cudnn.version()}")
            beat(a)
            each = [3 * s[0] * s[1] * s[2] for s in source.shapes]
            want = [(16000, 5000, 10000, 6000, 3000)[min(i, 4)] for i in range(len(each))]
            k = min(1.0, 0.45 * free / sum(x * y for x, y in zip(each, want)))
            caps = [int(k * n) for n in want]
            if a.level == 0:
                try_triton(a)
                beat(a)
        pool = Pool(source, caps, text.Words(f"{a.state}/tokenizer"), a.device)
        pool.wait(a, 24 if cuda else 2, 20)
        say(a, note=f"pool {caps}, clips so far {pool.total}")
        due = not os.path.exists(f"{a.state}/vae/config.json")
        done = True
        if due:
            end = min(a.until, max(a.began + a.vae_until, time.time() + a.least)) if a.until_p >= 1 else a.until
            if a.until - end < a.least:  # too short for the transformer
                end = a.until
            done = vae_stage(a, P, kept, pool, end)
        if done and a.until - time.time() > (20 if cuda else 4):
            dit_stage(a, P, kept, pool, a.until)
        pool.over = True
    finally:
        source.stop()
    say(a, note="trainer ends")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    try:
        child(ARGS)
    except BaseException:
        import traceback
        traceback.print_exc()
        try:
            open(f"{ARGS.out}/error.txt", "a").write(f"level {ARGS.level}\n" + traceback.format_exc()[-20000:])
        except OSError:
            pass
        sys.stderr.flush()
        os._exit(1)
