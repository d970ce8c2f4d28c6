"""Makes the reference numbers that `tests/goldens.rs` compares each part of reel with.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    python tests/goldens/make_goldens.py            # makes every file beside this script, then checks it
    python tests/goldens/make_goldens.py t5 rope    # only these
    python tests/goldens/make_goldens.py --check    # rebuilds each module from its file; outputs must be bit-equal

Made on the CPU, one thread, in float32, from fixed seeds: two runs on one machine give the same bytes. Another CPU or
another torch may differ in the last bits of the outputs.

A file `<name>.safetensors` holds
    weights.*   random parameters under their diffusers/transformers names: bfloat16, which float32 holds exactly
    in.*        inputs: float32 (ids int64, masks uint8 with 1 = keep)
    out.*       what the float32 module returns for them
and in its metadata `config` (the config.json of the part), `about`, and the three versions.

    t5                 T5 v1.1 encoder: 150 ids, and 23 ids with and without 14 masked pads
    transformer_block  one block: a timestep a token, and one timestep for all; some context tokens masked
    transformer        the whole transformer with text-to-video and with conditioned coordinates and timesteps
    rope               rotary tables at the two real widths, at coordinates of a real clip
    vae_090 vae_091 vae_095   the three VAE layouts, narrow, with patch size 1 to keep whole videos small
    vae_tiny           the VAE layout of the embedded model, patch size 4
    schedules          sigmas and timesteps, one Euler step of each kind, guidance

Sizes are unequal on purpose. So are scales: some activations are small enough for each norm's epsilon to matter.
"""

import json
import math
import struct
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from diffusers.pipelines.ltx.pipeline_ltx_condition import (
    calculate_shift,
    linear_quadratic_schedule,
    rescale_noise_cfg,
    retrieve_timesteps,
)
from safetensors import safe_open
from transformers import T5Config, T5EncoderModel

HERE = Path(__file__).resolve().parent
VERSIONS = {"torch": "2.15.0", "diffusers": "0.42.1", "transformers": "5.23.0"}


@dataclass
class Golden:
    about: str
    config: dict  # the constructor's arguments
    build: Callable  # config -> (module or None, its config.json as text)
    inputs: dict  # name -> tensor
    run: Callable  # (module, inputs) -> {name: tensor}
    metadata: dict = field(default_factory=dict)


# ---- the goldens ----------------------------------------------------------------------------------------------------


def t5():
    rng = generator(1)
    ids = lambda n: torch.cat([torch.randint(2, 61, (1, n - 1), generator=rng), torch.ones(1, 1, dtype=torch.long)], 1)
    real, padded = 23, 37
    inputs = {"ids": ids(150), "ids_unpadded": ids(real)}
    inputs["ids_padded"] = torch.nn.functional.pad(inputs["ids_unpadded"], (0, padded - real))
    inputs["mask"] = (torch.arange(padded) < real)[None].to(torch.uint8)

    def build(config):
        model = T5EncoderModel(T5Config(**config))
        return model, saved_config(model.save_pretrained)

    def run(model, x):
        masked = model(x["ids_padded"], attention_mask=x["mask"].long()).last_hidden_state
        return {
            "hidden": model(x["ids"]).last_hidden_state,  # (1, 150, 24): distances past 128 share a bucket
            "masked": masked,  # (1, 37, 24)
            "masked_real": masked[:, :real],
            "unpadded": model(x["ids_unpadded"]).last_hidden_state,  # masked_real again, but for rounding
        }

    config = dict(d_model=24, d_kv=6, num_heads=5, d_ff=40, num_layers=3, vocab_size=61,
                  relative_attention_num_buckets=32, relative_attention_max_distance=128,
                  feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6)
    return Golden("T5 v1.1 encoder; heads x d_kv is not d_model", config, build, inputs, run)


def transformer_block():
    rng = generator(2)
    b, n, l, d = 2, 11, 9, 70
    mask = torch.ones(b, l, dtype=torch.uint8)
    mask[0, 6:], mask[1, 3] = 0, 0
    coords = torch.rand(b, 3, n, generator=rng) * torch.tensor([5.0, 700.0, 900.0])[None, :, None]
    cos, sin = LTXVideoRotaryPosEmbed(d)(torch.zeros(b), video_coords=coords)
    inputs = {
        # The first tokens are small, so that the norms' 1e-6 matters.
        "hidden": normal(rng, b, n, d) * torch.logspace(-2.5, 0.3, n)[None, :, None],
        "context": normal(rng, b, l, d),
        "mask": mask,
        "temb": 0.5 * normal(rng, b, n, 6 * d),
        "temb_shared": 0.5 * normal(rng, b, 1, 6 * d),
        "rope_cos": cos,
        "rope_sin": sin,
    }

    def build(config):
        model = LTXVideoTransformer3DModel.from_config(config)
        return model.transformer_blocks[0], saved_config(model.save_config)

    def run(block, x):
        bias = (1 - x["mask"].float())[:, None] * -10000.0  # (b, 1, l), as LTXVideoTransformer3DModel.forward
        step = lambda temb: block(x["hidden"], x["context"], temb, (x["rope_cos"], x["rope_sin"]), bias)
        return {"hidden": step(x["temb"]), "hidden_shared": step(x["temb_shared"])}

    config = dict(num_layers=1, num_attention_heads=7, attention_head_dim=10, cross_attention_dim=d,
                  in_channels=12, out_channels=12, caption_channels=20)
    return Golden("transformer_blocks.0, names relative to it; 70 channels, of which rope leaves the first 4 alone",
                  config, build, inputs, run)


def transformer():
    rng = generator(3)
    f, h, w, l, fps = 3, 2, 5, 8, 24
    n = f * h * w
    ids = LTXConditionPipeline._prepare_video_ids(1, f, h, w)
    coords = LTXConditionPipeline._scale_video_ids(ids, 32, 8, 0).float()
    coords[:, 0] = coords[:, 0] * (1.0 / fps)
    inputs = {
        "latents": normal(rng, 1, n, 12),
        "context": normal(rng, 1, l, 20),
        "mask": (torch.arange(l) < 6)[None].to(torch.uint8),
        "timestep_text": torch.tensor([731.25]),
        # Frame 0 clean, frame 1 partly noised, and two such tokens in frame 2.
        "timestep_condition": torch.tensor([0.0] * 10 + [400.0] * 10 + [993.0] * 8 + [400.0, 0.0])[None],
        "video_coords": coords,
        "rope_interpolation_scale": torch.tensor([8 / 25, 32.0, 32.0]),
    }

    def build(config):
        model = LTXVideoTransformer3DModel.from_config(config)
        return model, saved_config(model.save_config)

    def run(model, x):
        text = dict(num_frames=f, height=h, width=w, rope_interpolation_scale=(8 / 25, 32, 32))
        condition = dict(video_coords=x["video_coords"])
        velocity = lambda timestep, where: model(
            x["latents"], x["context"], timestep, x["mask"], **where, return_dict=False)[0]
        out = {
            "text": velocity(x["timestep_text"], text),
            "condition": velocity(x["timestep_condition"], condition),
            "caption": model.caption_projection(x["context"]),
        }
        out["rope_cos_text"], out["rope_sin_text"] = model.rope(x["latents"], **text)
        out["rope_cos_condition"], out["rope_sin_condition"] = model.rope(x["latents"], **condition)
        temb, embedded = model.time_embed(x["timestep_text"], batch_size=1, hidden_dtype=torch.float32)
        out["temb"], out["embedded_timestep"] = temb[:, None], embedded[:, None]  # (1, 1, 300), (1, 1, 50)
        return out

    config = dict(num_layers=2, num_attention_heads=5, attention_head_dim=10, cross_attention_dim=50,
                  in_channels=12, out_channels=12, caption_channels=20)
    return Golden("whole transformer: latent grid 3 x 2 x 5, 8 context tokens of which 6 are real",
                  config, build, inputs, run)


def rope():
    second = 1.0 / 24
    inputs = {
        # Latent indices (f, h, w) of the tokens kept, in a clip of 5 x 34 x 60 latents at 24 frames a second.
        "grid_text": torch.tensor([[0, 0, 0], [4, 33, 59], [3, 17, 1]]),
        "rope_interpolation_scale": torch.tensor([8 / 24, 32.0, 32.0]),
        # (1, 3, n): seconds, y, x.
        "video_coords": torch.tensor([
            [0.0, 1 * second, 32 * second, 249 * second],
            [0.0, 32.0, 1056.0, 672.0],
            [0.0, 64.0, 1888.0, 1184.0],
        ])[None],
    }

    def run(_, x):
        out = {}
        f, h, w = x["grid_text"].T
        for dim, tokens in ((2048, slice(None)), (4096, slice(2, 4))):
            table = LTXVideoRotaryPosEmbed(dim)
            out[f"{dim}.condition.cos"], out[f"{dim}.condition.sin"] = table(
                torch.zeros(1), video_coords=x["video_coords"][:, :, tokens])
        cos, sin = LTXVideoRotaryPosEmbed(2048)(torch.zeros(1), 5, 34, 60, (8 / 24, 32, 32))
        keep = (f * 34 + h) * 60 + w
        out["2048.text.cos"], out["2048.text.sin"] = cos[:, keep], sin[:, keep]
        return out

    config = dict(dims=[2048, 4096], base_num_frames=20, base_height=2048, base_width=2048, theta=10000.0)
    return Golden("LTXVideoRotaryPosEmbed of the 2B and 13B models; 4096.* holds video_coords tokens 2 and 3 only",
                  config, lambda config: (None, json.dumps(config)), inputs, run)


def vae(seed, about, config, latents, pixels, noise_seed=None):
    """`latents` and `pixels`: shapes. `noise_seed`: torch's global generator starts there, right before decode."""
    rng = generator(seed)
    inputs = {"latents": normal(rng, *latents), "pixels": torch.rand(*pixels, generator=rng) * 2 - 1}
    if config["timestep_conditioning"]:
        inputs["timestep"] = torch.tensor([0.05])

    def build(config):
        model = AutoencoderKLLTXVideo.from_config(config)
        return model, saved_config(model.save_config)

    def run(model, x):
        decode = lambda: model.decode(x["latents"], x.get("timestep"), return_dict=False)[0]
        # Mean and log variance, before the posterior is sampled.
        out = {"moments": model.encode(x["pixels"]).latent_dist.parameters}
        if noise_seed is not None:
            torch.manual_seed(noise_seed)
        out["video"] = decode()
        if noise_seed is not None:
            for resnet in model.decoder.modules():
                if hasattr(resnet, "per_channel_scale1"):
                    resnet.per_channel_scale1 = resnet.per_channel_scale2 = None
            out["video_noinject"] = decode()
        return out

    metadata = {} if noise_seed is None else {"in.seed": str(noise_seed)}
    return Golden(about, config, build, inputs, run, metadata)


def vae_090():
    config = dict(
        latent_channels=10, patch_size=1, timestep_conditioning=False,
        block_out_channels=(4, 6, 10, 10), down_block_types=("LTXVideoDownBlock3D",) * 4,
        layers_per_block=(1, 2, 1, 2, 1), spatio_temporal_scaling=(True, True, True, False),
        downsample_type=("conv",) * 4,
        decoder_block_out_channels=(6, 8, 12, 12), decoder_layers_per_block=(1, 3, 2, 1, 2),
        decoder_spatio_temporal_scaling=(True, True, True, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4)
    return vae(4, "VAE laid out as 0.9.0", config, (1, 10, 4, 2, 3), (1, 3, 17, 16, 24))


def vae_091():
    config = dict(
        latent_channels=10, patch_size=1, timestep_conditioning=True,
        block_out_channels=(4, 6, 8, 8), down_block_types=("LTXVideoDownBlock3D",) * 4,
        layers_per_block=(2, 1, 1, 2, 1), spatio_temporal_scaling=(True, True, True, False),
        downsample_type=("conv",) * 4,
        # 0.9.1 has residuals and factor 2 in all three; unequal lists show which end they are read from.
        decoder_block_out_channels=(4, 8, 16), decoder_layers_per_block=(3, 1, 2, 1),
        decoder_spatio_temporal_scaling=(True, True, True), decoder_inject_noise=(True, True, True, False),
        upsample_residual=(False, True, True), upsample_factor=(1, 2, 2))
    return vae(5, "VAE laid out as 0.9.1: timestep conditioning, decoder noise", config,
               (1, 10, 4, 2, 3), (1, 3, 9, 16, 24), noise_seed=7)


def vae_095():
    config = dict(
        latent_channels=10, patch_size=1, timestep_conditioning=True,
        block_out_channels=(4, 8, 16, 8, 16), down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(2, 3, 1, 2, 1), spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(4, 8, 16), decoder_layers_per_block=(2, 4, 1, 2),
        decoder_spatio_temporal_scaling=(True, True, True), decoder_inject_noise=(False,) * 4,
        upsample_residual=(False, True, True), upsample_factor=(1, 2, 2),
        spatial_compression_ratio=8, temporal_compression_ratio=8)
    return vae(6, "VAE laid out as 0.9.5 to 0.9.8: timestep conditioning", config,
               (1, 10, 4, 2, 3), (1, 3, 17, 16, 24))


def vae_tiny():
    config = dict(
        latent_channels=9, patch_size=4, timestep_conditioning=False,
        block_out_channels=(6, 16, 8), down_block_types=("LTXVideo095DownBlock3D",) * 2,
        layers_per_block=(2, 1, 1), spatio_temporal_scaling=(True, True),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(8, 16), decoder_layers_per_block=(2, 1, 1),
        decoder_spatio_temporal_scaling=(True, True), decoder_inject_noise=(False,) * 3,
        upsample_residual=(True, True), upsample_factor=(2, 2),
        spatial_compression_ratio=16, temporal_compression_ratio=4)
    return vae(7, "VAE laid out as the embedded model's: strides 4 x 16 x 16", config,
               (1, 9, 4, 2, 3), (1, 3, 13, 48, 16))


def schedules():
    rng = generator(8)
    tokens = lambda: normal(rng, 1, 7, 5)
    inputs = {
        "plain.latents": tokens(),
        "plain.velocity": tokens(),
        "per_token.latents": tokens(),
        "per_token.init": tokens(),  # the latents before the first step, with the conditions in them
        "per_token.velocity": tokens(),
        "per_token.mask": torch.tensor([[0.0, 1.0, 0.6, 0.25, 1.0, 0.0, 0.9]]),  # strength a token
        "uncond": tokens(),
        "cond": tokens(),
        "timesteps": torch.tensor([1000, 993, 987, 981, 975, 909, 725, 0.03]),
    }

    def build(config):
        load = FlowMatchEulerDiscreteScheduler.from_config
        made = {name: load(kind) for name, kind in config.items()}
        return made, json.dumps({name: json.loads(saved_config(s.save_config)) for name, s in made.items()})

    def ramp(scheduler, count, n):
        """As LTXPipeline: an even ramp, shifted by the number of latent tokens if the scheduler wants that."""
        c = scheduler.config
        mu = calculate_shift(count, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
        retrieve_timesteps(scheduler, n, "cpu", None, sigmas=np.linspace(1.0, 1 / n, n), mu=mu)
        return mu

    def linear_quadratic(scheduler, n):
        """As LTXConditionPipeline."""
        retrieve_timesteps(scheduler, n, "cpu", linear_quadratic_schedule(n) * 1000)

    def run(made, x):
        out = {}

        def keep(name, scheduler):
            out[f"{name}.sigmas"], out[f"{name}.timesteps"] = scheduler.sigmas, scheduler.timesteps

        for count, n in ((18, 6), (384, 6), (8064, 8), (7392, 50)):
            out[f"dynamic_{count}_{n}.mu"] = torch.tensor([ramp(made["dynamic"], count, n)], dtype=torch.float64)
            keep(f"dynamic_{count}_{n}", made["dynamic"])
        for name in ("plain", "shift3"):
            ramp(made[name], 384, 5)
            keep(f"{name}_5", made[name])
        retrieve_timesteps(made["plain"], 8, "cpu", [1000, 993, 987, 981, 975, 909, 725, 0.03])
        keep("explicit", made["plain"])
        for n in (1, 2, 3, 4, 5, 8, 30, 40):
            linear_quadratic(made["plain"], n)
            keep(f"linear_quadratic_{n}", made["plain"])

        # LTXPipeline, step i of dynamic_18_6.
        for i in (0, 2, 5):
            ramp(made["dynamic"], 18, 6)
            out[f"plain.step_{i}"] = made["dynamic"].step(
                x["plain.velocity"], made["dynamic"].timesteps[i], x["plain.latents"], return_dict=False)[0]

        # LTXConditionPipeline, step i of linear_quadratic_8: noise on clean tokens, own timestep a token, keep rule.
        latents, mask = x["per_token.latents"], x["per_token.mask"]
        for i in (3, 6, 7):
            linear_quadratic(made["plain"], 8)
            t = made["plain"].timesteps[i]
            out[f"per_token.noised_{i}"] = LTXConditionPipeline.add_noise_to_image_conditioning_latents(
                t / 1000.0, x["per_token.init"], latents, 0.15, mask, generator(5))
            timestep = torch.min(t.expand(1).unsqueeze(-1).float(), (1 - mask) * 1000.0)
            moved = made["plain"].step(
                -x["per_token.velocity"], t, latents, per_token_timesteps=timestep, return_dict=False)[0]
            out[f"per_token.timestep_{i}"] = timestep
            out[f"per_token.moved_{i}"] = moved  # every token, before the keep rule
            out[f"per_token.step_{i}"] = torch.where((t / 1000 - 1e-6 < 1.0 - mask)[..., None], moved, latents)
        out["per_token.noise"] = torch.randn(latents.shape, generator=generator(5))  # what noised_* drew

        guided = x["uncond"] + 3.5 * (x["cond"] - x["uncond"])
        out["guided_plain"] = guided
        out["guided"] = rescale_noise_cfg(guided, x["cond"], guidance_rescale=0.7)
        return out

    config = {
        "dynamic": dict(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05,
                        base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1),  # 0.9.0 and 0.9.1
        "plain": dict(),  # 0.9.5 and later
        "shift3": dict(shift=3.0),
    }
    return Golden("sigmas and timesteps by schedule, Euler steps, guidance 3.5 with rescale 0.7; "
                  "config holds three scheduler_config.json by name", config, build, inputs, run)


GOLDENS = [t5, transformer_block, transformer, rope, vae_090, vae_091, vae_095, vae_tiny, schedules]


# ---- random numbers -------------------------------------------------------------------------------------------------


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def normal(rng, *shape):
    return torch.randn(shape, generator=rng)


def random_weight(name, old, rng):
    """Outputs of order 1; no bias, table or norm weight is trivial; small where an epsilon should show."""
    z = normal(rng, *old.shape)
    if name.endswith("timestep_scale_multiplier"):
        return old
    if name == "latents_std":
        return 0.5 + z.abs()
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.3 * z
    if name == "shared.weight":  # rows from 1/300 to 1
        return z * torch.logspace(-2.5, 0, len(z))[:, None]
    if name.endswith("relative_attention_bias.weight"):
        return z
    if name.endswith(("scale_shift_table", "latents_mean")):
        return 0.5 * z
    small = 1.0
    if ".to_q." in name or ".to_k." in name:  # before norm_q and norm_k, epsilon 1e-5
        small = 0.02
    if ".conv1." in name or "per_channel_scale1" in name:  # before norm2 of a VAE resnet, epsilon 1e-8
        small = 0.002
    if name.endswith("bias") or "per_channel_scale" in name:
        return 0.3 * small * z
    return small * z / math.sqrt(math.prod(old.shape[1:]))


def randomise(module, seed):
    rng = generator(seed)
    state = module.state_dict()
    # T5 lists its one embedding twice; only `shared` is saved.
    names = sorted(name for name in state if name != "encoder.embed_tokens.weight")
    return {name: random_weight(name, state[name], rng).bfloat16().contiguous() for name in names}


# ---- making, writing, checking --------------------------------------------------------------------------------------


def saved_config(save):
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return next(Path(folder).glob("*config.json")).read_text()


def load(module, weights):
    missing, unexpected = module.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, unexpected)
    return module.eval()


def make(make_golden):
    golden = make_golden()
    module, config = golden.build(golden.config)
    weights = {}
    if isinstance(module, torch.nn.Module):
        weights = randomise(module, 1000 + GOLDENS.index(make_golden))
        load(module, weights)
    outputs = golden.run(module, golden.inputs)
    tensors = {f"weights.{k}": v for k, v in weights.items()}
    tensors |= {f"in.{k}": v for k, v in golden.inputs.items()} | {f"out.{k}": v for k, v in outputs.items()}
    for name, tensor in tensors.items():
        assert tensor.isfinite().all(), name
    write(HERE / f"{make_golden.__name__}.safetensors", tensors,
          {"about": golden.about, "config": config, **golden.metadata, **VERSIONS})


def write(path, tensors, metadata):
    """safetensors.torch.save_file orders its metadata at random; this writes the same format in one fixed order."""
    kinds = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    header, blobs, at = {"__metadata__": metadata}, [], 0
    for name in names:
        blob = tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": kinds[tensors[name].dtype], "shape": shape, "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def check(make_golden):
    """Rebuilds the module from the file alone; everything it returns must be bit-equal to the file."""
    path = HERE / f"{make_golden.__name__}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        part = lambda p: {k.removeprefix(p): file.get_tensor(k) for k in file.keys() if k.startswith(p)}
        weights, inputs, wanted = part("weights."), part("in."), part("out.")
    golden = make_golden()
    module, config = golden.build(json.loads(metadata["config"]))
    assert json.loads(config) == json.loads(metadata["config"]), "the config does not survive a round trip"
    if weights:
        load(module, weights)
    outputs = golden.run(module, inputs)
    assert outputs.keys() == wanted.keys(), outputs.keys() ^ wanted.keys()
    for name, tensor in outputs.items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), f"{path.name}: out.{name}"
    print(f"{path.name:32} {path.stat().st_size:8,} bytes  {len(weights):3} weights  outputs bit-equal")


@torch.no_grad()
def main(arguments):
    for module in (torch, diffusers, transformers):
        name, wanted, found = module.__name__, VERSIONS[module.__name__], module.__version__.split("+")[0]
        assert found == wanted, f"{name} is {found}; these goldens are made with {wanted}"
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = [a for a in arguments if a != "--check"]
    chosen = [g for g in GOLDENS if not names or g.__name__ in names]
    if "--check" not in arguments:
        for golden in chosen:
            make(golden)
    for golden in chosen:
        check(golden)


if __name__ == "__main__":
    main(sys.argv[1:])
