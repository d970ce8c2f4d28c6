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
    lora               the whole transformer with LoRAs loaded by diffusers: one in diffusers' form, one in ComfyUI's, one whose
                       alpha stands in diffusers' metadata (`pip install peft==0.21.2`, which diffusers loads them with);
                       `in.<adapter>.*` are the LoRA's own tensors
    rope               rotary tables at the two real widths, at coordinates of a real clip
    vae_090 vae_091 vae_095   the three VAE layouts, narrow, with patch size 1 to keep whole videos small
    vae_tiny           the VAE layout of the embedded model, patch size 4
    vae_tiles          a VAE laid out as 0.9.5, encoding and decoding in three by three overlapping tiles
    schedules          sigmas and timesteps, one Euler step of each kind, guidance
    guidance           a transformer with self-attention left out of some blocks; STG, CFG-star and rescaling (in float64, by
                       the formulas of LTX-Video, which diffusers lacks); steps with fresh noise
    upscaler upscaler_2d upscaler_time   latent upscalers, single files that `--upscaler` opens (weights without `weights.`);
                       the first one also AdaIN, tone mapping, group norm, torch's bilinear resizing, and two-pass runs of the
                       checkpoint in pipeline_095 (`cases` as there)
    pipeline_090 pipeline_091 pipeline_095   tiny checkpoints from prompt to frames: single files that `reel generate
                       --model` opens (the weights without `weights.`, configurations and tokenizer in the metadata);
                       `cases` in the metadata gives each case's prompt and flags, `out.<case>` its frames (f, h, w, 3)

    makers             what the decoder reads after whole runs by Lightricks' recipe, in float64, on the checkpoints of pipeline_*:
                       `cases` gives each case's checkpoint, what to change in its header, its entry's `run` table, its pictures
                       (`picture` says of what values) and its request; `out.<case>` is (1, c, f, h, w)

and as text, for the tests inside `src`
    noise.json         torch.randn, as hex of the bits; long draws as their ends and two sums over every value
    tokenizer.json     ids of transformers' T5Tokenizer, from the tokenizer.json that reel carries

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
    LTXLatentUpsamplePipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from diffusers.pipelines.ltx.pipeline_ltx_condition import (
    LTXVideoCondition,
    calculate_shift,
    linear_quadratic_schedule,
    rescale_noise_cfg,
    retrieve_timesteps,
)
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import ModuleDict
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

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
    prefix: str = "weights."


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


def lora():
    rng = generator(14)
    f, h, w, l = 2, 3, 3, 7
    inputs = {
        "latents": normal(rng, 1, f * h * w, 12),
        "context": normal(rng, 1, l, 20),
        "timestep": torch.tensor([731.25]),
    }
    block = "transformer_blocks."
    sizes = {  # (outputs, inputs)
        f"{block}0.attn1.to_q": (50, 50), f"{block}1.attn2.to_k": (50, 50), f"{block}1.attn1.to_out.0": (50, 50),
        f"{block}0.ff.net.0.proj": (200, 50), f"{block}1.ff.net.2": (50, 200), "proj_in": (50, 12),
        "time_embed.linear": (300, 50), "caption_projection.linear_1": (50, 20),
    }
    adapters = {  # prefix, rank, which layers
        "style": ("transformer.", 3, list(sizes)),
        "motion": ("diffusion_model.", 2, list(sizes)[:5]),  # those whose names are the same in both forms
        "sharp": ("transformer.", 4, list(sizes)[2:4]),
    }
    for name, (prefix, rank, layers) in adapters.items():
        for layer in layers:
            outputs, width = sizes[layer]
            inputs[f"{name}.{prefix}{layer}.lora_A.weight"] = normal(rng, rank, width) / math.sqrt(width)
            inputs[f"{name}.{prefix}{layer}.lora_B.weight"] = 0.7 * normal(rng, outputs, rank)
    sharp = {"r": 4, "lora_alpha": 6, "target_modules": adapters["sharp"][2], "lora_bias": False, "use_rslora": False}

    def build(config):
        model = LTXVideoTransformer3DModel.from_config(config)
        return model, saved_config(model.save_config)

    def run(model, x):
        import peft

        assert peft.__version__ == "0.21.2", peft.__version__
        x = {key: value.clone() for key, value in x.items()}  # where a small matrix lies decides how torch sums it
        for name in adapters:
            state = {key.removeprefix(f"{name}."): x[key] for key in x if key.startswith(f"{name}.")}
            state = LTXPipeline.lora_state_dict(state)
            metadata = {f"transformer.{k}": v for k, v in sharp.items()} if name == "sharp" else None
            LTXPipeline.load_lora_into_transformer(state, model, adapter_name=name, metadata=metadata)

        def velocity(scales):
            model.set_adapters(list(scales), weights=list(scales.values()))
            return model(x["latents"], x["context"], x["timestep"], torch.ones(1, l), num_frames=f, height=h, width=w,
                         rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False)[0]

        out = {"style": velocity({"style": 1.0}), "style_less": velocity({"style": 0.3}),
               "two": velocity({"style": 0.7, "motion": -1.2}), "sharp": velocity({"sharp": 1.0})}
        model.unload_lora()
        out["none"] = model(x["latents"], x["context"], x["timestep"], torch.ones(1, l), num_frames=f, height=h,
                            width=w, rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False)[0]
        return out

    config = dict(num_layers=2, num_attention_heads=5, attention_head_dim=10, cross_attention_dim=50,
                  in_channels=12, out_channels=12, caption_channels=20)
    metadata = {"sharp": json.dumps({f"transformer.{k}": v for k, v in sharp.items()})}
    return Golden("whole transformer with LoRAs: latent grid 2 x 3 x 3, 7 context tokens", config, build, inputs, run,
                  metadata=metadata)


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


def vae_tiles():
    """Tiles of 3 x 4 latents that share 1, over 6 x 8 latents: three by three, the last ones narrower."""
    config = dict(
        latent_channels=6, patch_size=1, timestep_conditioning=True,
        block_out_channels=(4, 8, 8, 8, 16), down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(4, 8, 16), decoder_layers_per_block=(1, 2, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, True), decoder_inject_noise=(False,) * 4,
        upsample_residual=(False, True, True), upsample_factor=(1, 2, 2),
        spatial_compression_ratio=8, temporal_compression_ratio=8)
    golden = vae(9, "VAE in overlapping tiles", config, (1, 6, 2, 6, 8), (1, 3, 9, 48, 64))

    def run(model, x):
        model.enable_tiling(tile_sample_min_height=24, tile_sample_min_width=32,
                            tile_sample_stride_height=16, tile_sample_stride_width=24)
        return {"moments": model.tiled_encode(x["pixels"]),
                "video": model.tiled_decode(x["latents"], x["timestep"], return_dict=False)[0]}

    golden.run = run
    return golden


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


class OwnValues:
    """Attention's output replaced by its values: `attention_values` of LTX-Video."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        return attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))


def guidance():
    rng = generator(9)
    f, h, w, l = 2, 3, 5, 7
    tokens = lambda scale: scale * normal(rng, 1, 11, 6)
    inputs = {
        "latents": normal(rng, 1, f * h * w, 12),
        "context": normal(rng, 1, l, 20),
        "timestep": torch.tensor([812.5]),
        "positive": tokens(1.0) + 0.1,
        "negative": tokens(1.4),
        "weakened": tokens(0.8),
        "sample": tokens(1.0),
        "velocity": tokens(1.0),
        "fresh": tokens(1.0),
        "strengths": torch.tensor([[0.0, 1.0, 0.6, 0.25, 1.0, 0.0, 0.9, 0.0, 0.0, 0.5, 0.0]]),
    }

    def build(config):
        model = LTXVideoTransformer3DModel.from_config(config)
        return model, saved_config(model.save_config)

    def run(model, x):
        out = {}
        for without in ((), (1,), (0, 2)):
            usual = [model.transformer_blocks[i].attn1.processor for i in without]
            for i in without:
                model.transformer_blocks[i].attn1.processor = OwnValues()
            out["without_" + "_".join(map(str, without or ["none"]))] = model(
                x["latents"], x["context"], x["timestep"], torch.ones(1, l), num_frames=f, height=h, width=w,
                rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False)[0]
            for i, processor in zip(without, usual):
                model.transformer_blocks[i].attn1.processor = processor

        # scale, star, stg, rescale -> the velocity to follow
        c, u, p = (x[name].double().numpy() for name in ("positive", "negative", "weakened"))
        for name, (scale, star, stg, rescale) in {
            "star": (6, True, 0, 0), "stg": (1, False, 2.5, 0), "stg_rescaled": (1, False, 2.5, 0.7),
            "both": (3, False, 1, 0.7), "all": (8, True, 4, 0.5),
        }.items():
            negative = (c * u).sum() / ((u**2).sum() + 1e-8) * u if star else u
            v = negative + scale * (c - negative) if scale > 1 else c
            v = v + stg * (c - p)
            if rescale:
                v = v * (rescale * c.std(ddof=1) / v.std(ddof=1) + 1 - rescale)
            out[name] = torch.from_numpy(v).float()

        # Steps 2, 5 and 7 of eight. The scheduler draws itself: it is handed `fresh`.
        from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling
        drawn, scheduling.randn_tensor = scheduling.randn_tensor, lambda *_, **__: x["fresh"]
        for i in (2, 5, 7):
            scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
            for name in ("plain", "per_token"):
                retrieve_timesteps(scheduler, 8, "cpu", linear_quadratic_schedule(8) * 1000)
                t = scheduler.timesteps[i]
                each = torch.min(t.expand(1).unsqueeze(-1).float(), (1 - x["strengths"]) * 1000.0)
                how = dict(per_token_timesteps=each) if name == "per_token" else {}
                moved = scheduler.step(x["velocity"], t, x["sample"], return_dict=False, **how)[0]
                if how:
                    moved = torch.where((t / 1000 - 1e-6 < 1.0 - x["strengths"])[..., None], moved, x["sample"])
                out[f"stochastic_{name}_{i}"] = moved
        scheduling.randn_tensor = drawn
        return out

    config = dict(num_layers=3, num_attention_heads=5, attention_head_dim=6, cross_attention_dim=30,
                  in_channels=12, out_channels=12, caption_channels=20)
    return Golden("latent grid 2 x 3 x 5; `star` to `all` in float64, see their settings in make_goldens.py",
                  config, build, inputs, run)


# ---- whole pipelines ------------------------------------------------------------------------------------------------


def pipeline(about, transformer, vae, text_encoder, scheduler, cases):
    """`cases`: name -> what `reel generate` is told, by flag; `--size` is in pixels as there."""
    config = dict(transformer=transformer, vae=vae, text_encoder=text_encoder, scheduler=scheduler)
    tokenizer = word_tokenizer()

    def build(config):
        model = LTXVideoTransformer3DModel.from_config(config["transformer"])
        vae = AutoencoderKLLTXVideo.from_config(config["vae"])
        text_encoder = T5EncoderModel(T5Config(**config["text_encoder"]))
        saves = dict(transformer=model.save_config, vae=vae.save_config, text_encoder=text_encoder.save_pretrained,
                     scheduler=FlowMatchEulerDiscreteScheduler.from_config(config["scheduler"]).save_config)
        # The names under which a single file holds its parts.
        parts = ModuleDict({"model": ModuleDict({"diffusion_model": model}), "vae": vae, "text_encoder": text_encoder})
        return parts, json.dumps({name: json.loads(saved_config(save)) for name, save in saves.items()})

    def run(parts, _):
        # Wrapped anew: the pipelines want the modules, not their names.
        wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer), pad_token="<pad>",
                                          eos_token="</s>", unk_token="<unk>")
        return {name: frames(parts, wrapped, scheduler, case) for name, case in cases.items()}

    flags = lambda case: [word for name in case if name != "prompt" for word in (f"--{name}", str(case[name]))]
    told = {name: {"prompt": case["prompt"], "flags": flags(case)} for name, case in cases.items()}
    return Golden(about, config, build, {}, run, {"tokenizer": tokenizer, "cases": json.dumps(told)}, prefix="")


def frames(parts, tokenizer, scheduler, case):
    """What diffusers makes of one case: (f, h, w, 3), uint8."""
    kind = LTXPipeline if scheduler["use_dynamic_shifting"] else LTXConditionPipeline
    pipe = kind(scheduler=FlowMatchEulerDiscreteScheduler.from_config(scheduler), vae=parts["vae"], tokenizer=tokenizer,
                text_encoder=parts["text_encoder"], transformer=parts["model"]["diffusion_model"])
    pipe.set_progress_bar_config(disable=True)
    width, height = map(int, case["size"].split("x"))
    options = {"num_inference_steps": case.get("steps")}
    if "sigmas" in case:
        options = {"timesteps": [float(sigma) * 1000 for sigma in case["sigmas"].split(",")]}
    if "decode-timestep" in case:
        options |= dict(decode_timestep=case["decode-timestep"], decode_noise_scale=case["decode-noise"])
    torch.manual_seed(case["seed"])  # the decoder of 0.9.1 draws from the global generator
    video = pipe(prompt=case["prompt"], negative_prompt=case.get("negative"), width=width, height=height,
                 num_frames=case["frames"], frame_rate=case["fps"], guidance_scale=case["guidance"],
                 guidance_rescale=case.get("guidance-rescale", 0.0), generator=generator(case["seed"]),
                 output_type="np", **options).frames[0]
    return torch.from_numpy((video * 255).round().astype("uint8"))


def word_tokenizer():
    """A small tokenizer.json: lower case, single bytes for what is no word, `</s>` at the end."""
    special = ["<pad>", "</s>", "<unk>"]
    words = "a the of in on at and red blue ball boat lamp sea sand night slowly rolls sails blurry dark ly s ,".split()
    pieces = ([(name, 0.0) for name in special] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)] + [("\u2581", -2.0)]
              + [("\u2581" + word, -3.0) for word in words] + [(word, -4.0) for word in words])
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    made.add_special_tokens(special)
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.decoder = decoders.Metaspace()
    return made.to_str()


def tiny_text_encoder():
    return dict(d_model=24, d_kv=6, num_heads=5, d_ff=40, num_layers=2, vocab_size=310, feed_forward_proj="gated-gelu",
                relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6)


def tiny_transformer(layers, channels):
    return dict(num_layers=layers, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
                in_channels=channels, out_channels=channels, caption_channels=24)


BY_TOKENS = dict(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05,
                 base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1)  # 0.9.0 and 0.9.1


def pipeline_090():
    vae = dict(
        latent_channels=10, patch_size=2, timestep_conditioning=False,
        block_out_channels=(4, 6, 8, 8), down_block_types=("LTXVideoDownBlock3D",) * 4,
        layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, True, False),
        downsample_type=("conv",) * 4,
        decoder_block_out_channels=(4, 6, 8, 8), decoder_layers_per_block=(1, 1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, True, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4)
    cases = {"guided": {
        "prompt": "A red boat sails slowly on the sea, dusk", "negative": "blurry, dark", "size": "64x32", "frames": 17,
        "fps": 25, "steps": 5, "guidance": 3, "guidance-rescale": 0.7, "seed": 11}}
    return pipeline("0.9.0 style, LTXPipeline", tiny_transformer(2, 10), vae, tiny_text_encoder(), BY_TOKENS, cases)


def pipeline_091():
    vae = dict(
        latent_channels=9, patch_size=2, timestep_conditioning=True,
        block_out_channels=(4, 6, 8, 8), down_block_types=("LTXVideoDownBlock3D",) * 4,
        layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, True, False),
        downsample_type=("conv",) * 4,
        decoder_block_out_channels=(4, 8, 16), decoder_layers_per_block=(1, 2, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, True), decoder_inject_noise=(True, True, True, False),
        upsample_residual=(False, True, True), upsample_factor=(1, 2, 2))
    cases = {"decode_noise": {
        "prompt": "The blue lamp and the sand", "size": "64x32", "frames": 9, "fps": 24, "steps": 4, "guidance": 3,
        "decode-timestep": 0.05, "decode-noise": 0.025, "seed": 12}}
    return pipeline("0.9.1 style, LTXPipeline", tiny_transformer(1, 9), vae, tiny_text_encoder(), BY_TOKENS, cases)


def pipeline_095():
    vae = dict(
        latent_channels=9, patch_size=2, timestep_conditioning=True,
        block_out_channels=(8, 8, 8, 8), down_block_types=("LTXVideo095DownBlock3D",) * 3,
        layers_per_block=(1, 1, 1, 1), spatio_temporal_scaling=(True,) * 3,
        downsample_type=("spatiotemporal",) * 3,
        decoder_block_out_channels=(4, 8, 16), decoder_layers_per_block=(1, 1, 2, 1),
        decoder_spatio_temporal_scaling=(True, True, True), decoder_inject_noise=(False,) * 4,
        upsample_residual=(False, True, True), upsample_factor=(1, 2, 2),
        spatial_compression_ratio=16, temporal_compression_ratio=8)
    decode = {"decode-timestep": 0.05, "decode-noise": 0.025}
    cases = {
        "sigmas": {"prompt": "a ball rolls", "size": "32x32", "frames": 17, "fps": 24, "guidance": 1,
                   "sigmas": "1,0.9937,0.975,0.725,0.4", "seed": 13, **decode},
        "guided": {"prompt": "A ball rolls slowly in the sand", "negative": "dark", "size": "64x32", "frames": 9,
                   "fps": 30, "steps": 6, "guidance": 4.5, "seed": 14, **decode},
    }
    return pipeline("0.9.5 style, LTXConditionPipeline without conditions", tiny_transformer(2, 9), vae,
                    tiny_text_encoder(), dict(use_dynamic_shifting=False), cases)


# ---- the latent upscaler, and two passes -----------------------------------------------------------------------------


def latent_upscaler(seed, about, latents, more_inputs=None, more_outputs=None, metadata=None, **config):
    """`more_outputs`: (model, inputs) -> outputs besides the network's own."""
    inputs = {"latents": normal(generator(seed), *latents), **(more_inputs or {})}

    def build(config):
        model = LTXLatentUpsamplerModel.from_config(config)
        return model, saved_config(model.save_config)

    def run(model, x):
        own = {"latents": model(x["latents"])}
        return own | more_outputs(model, x) if more_outputs else own

    config = dict(in_channels=9, mid_channels=32, num_blocks_per_stage=1) | config
    return Golden(about, config, build, inputs, run, metadata or {}, prefix="")


def upscaler():
    rng = generator(20)
    inputs = {
        "large": 3 * normal(rng, 1, 9, 3, 8, 10) - 1,
        "reference": 0.5 * normal(rng, 1, 9, 3, 4, 5) + 2,
        "group_norm": 2 * normal(rng, 1, 12, 3, 4, 5) + 1,
        "group_norm.weight": normal(rng, 12),
        "group_norm.bias": normal(rng, 12),
        "picture": torch.rand(1, 3, 7, 11, generator=rng),
        "still": (torch.rand(64, 112, 3, generator=rng) * 255).round().to(torch.uint8),
    }
    decode = {"decode-timestep": 0.05, "decode-noise": 0.025}
    two = {"size": "112x64", "guidance": 1, "sigmas": "1,0.9937,0.975,0.725", "second-sigmas": "0.9,0.5", **decode}
    cases = {
        "two_passes": {"prompt": "a ball rolls", "frames": 9, "fps": 24, "seed": 21, **two},
        "two_guided_passes": {"prompt": "a ball rolls", "negative": "dark", "frames": 9, "fps": 30, "seed": 22,
                              **two, "size": "64x112", "guidance": 3, "guidance-rescale": 0.5, "tone-map": 0.6,
                              "adain": 0.4},
        "two_passes_from_a_still": {"prompt": "the ball in the sand", "frames": 9, "fps": 24, "seed": 23,
                                    "keyframe": ["still.png@0", "still.png@8:0.6"], **two},
    }

    def outputs(model, x):
        pipe = LTXLatentUpsamplePipeline
        out = {f"adain_{factor}": pipe.adain_filter_latent(None, x["large"], x["reference"], factor)
               for factor in (0.3, 0.7, 1.0)}
        out |= {f"tone_map_{ratio}": pipe.tone_map_latents(None, x["large"], ratio) for ratio in (0.6, 1.0)}
        out["group_norm"] = torch.nn.functional.group_norm(
            x["group_norm"], 4, x["group_norm.weight"], x["group_norm.bias"], 1e-5)
        for width, height in ((5, 3), (16, 13), (11, 20)):
            out[f"bilinear_{width}x{height}"] = bilinear(x["picture"], width, height)
        return out | {name: two_passes(model, x["still"], case) for name, case in cases.items()}

    flags = lambda case: [word for name, value in case.items() if name != "prompt"
                          for one in (value if isinstance(value, list) else [value]) for word in (f"--{name}", str(one))]
    told = {name: {"prompt": case["prompt"], "flags": flags(case)} for name, case in cases.items()}
    return latent_upscaler(19, "latent upscaler as released, narrow", (1, 9, 3, 4, 5), inputs, outputs,
                           {"cases": json.dumps(told)})


def upscaler_2d():
    return latent_upscaler(24, "latent upscaler that looks at each frame by itself", (1, 9, 2, 3, 5), dims=2)


def upscaler_time():
    return latent_upscaler(25, "latent upscaler of time alone", (1, 9, 3, 5, 4), spatial_upsample=False,
                           temporal_upsample=True)


def bilinear(pictures, width, height):
    return torch.nn.functional.interpolate(pictures, size=(height, width), mode="bilinear", align_corners=False)


def two_passes(model, still, case):
    """Diffusers' pipelines put together as LTX-Video's script does it; the tones are compressed last, as there."""
    with safe_open(HERE / "pipeline_095.safetensors", "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    source = pipeline_095()
    parts, _ = source.build(source.config)
    load(parts, {name: tensor for name, tensor in weights.items() if not name.startswith("out.")})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(metadata["tokenizer"]), pad_token="<pad>",
                                        eos_token="</s>", unk_token="<unk>")
    vae = parts["vae"]
    pipe = LTXConditionPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, tokenizer=tokenizer,
                                text_encoder=parts["text_encoder"], transformer=parts["model"]["diffusion_model"])
    upsample = LTXLatentUpsamplePipeline(vae=vae, latent_upsampler=model)
    for made in (pipe, upsample):
        made.set_progress_bar_config(disable=True)
    width, height = map(int, case["size"].split("x"))
    first = [int(side * 0.6666666) // vae.spatial_compression_ratio * vae.spatial_compression_ratio
             for side in (width, height)]
    levels = [[float(sigma) * 1000 for sigma in case[name].split(",")] for name in ("sigmas", "second-sigmas")]
    rng = generator(case["seed"])

    def made(size, **more):
        conditions = []
        for told in case.get("keyframe", []):
            frame, _, strength = told.partition("@")[2].partition(":")
            small = bilinear(still.permute(2, 0, 1)[None] / 255, *size)
            conditions.append(LTXVideoCondition(image=small, frame_index=int(frame), strength=float(strength or 1)))
        return pipe(conditions=conditions or None, prompt=case["prompt"], negative_prompt=case.get("negative"),
                    width=size[0], height=size[1], num_frames=case["frames"], frame_rate=case["fps"],
                    guidance_scale=case["guidance"], guidance_rescale=case.get("guidance-rescale", 0.0),
                    image_cond_noise_scale=0.15, generator=rng, output_type="latent", **more).frames

    latents = made(first, timesteps=levels[0])
    latents = upsample(latents=latents, adain_factor=case.get("adain", 1.0), output_type="latent", height=32, width=32).frames
    # The first of the levels is left out again: `denoise_strength` has to be below 1 for the latents to be read.
    count = len(levels[1])
    latents = made([2 * side for side in first], latents=latents, timesteps=[1000.0, *levels[1]],
                   denoise_strength=(count + 0.5) / (count + 1))
    statistics = (vae.latents_mean, vae.latents_std)
    latents = pipe._denormalize_latents(latents, *statistics)
    scale = case["decode-noise"]
    latents = (1 - scale) * latents + scale * torch.randn(latents.shape, generator=rng)
    if "tone-map" in case:
        latents = upsample.tone_map_latents(pipe._normalize_latents(latents, *statistics), case["tone-map"])
        latents = pipe._denormalize_latents(latents, *statistics)
    video = vae.decode(latents, torch.tensor([case["decode-timestep"]]), return_dict=False)[0]
    pictures = (video[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)  # (f, 3, h, w)
    return (bilinear(pictures, width, height).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


# ---- the makers' recipe -----------------------------------------------------------------------------------------------


def picture(width, height, frame=0):
    """(height, width, 3), uint8, as `tests/makers.rs` makes it."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    wave = np.sin(0.11 * x + 0.4 * c + 0.3 * frame) + np.cos(0.17 * y - 0.2 * c)
    return torch.from_numpy((127.5 + 60 * wave).round().astype("uint8"))


def levels(n, sampler, shifted, tokens):
    """The scheduler of LTX-Video: even or linear-quadratic levels, then the shift by tokens, stretched to end at 0.1."""
    sigmas = np.linspace(1, 1 / n, n)
    if sampler == "LinearQuadratic":
        half, rest = n // 2, n - n // 2
        over = half - 0.025 * n
        bend, slope = over / (half * rest**2), 0.025 / half - 2 * over / rest**2
        fall = [0.025 * i / half if i < half else bend * i * i + slope * i + bend * half**2 for i in range(n)]
        sigmas = 1 - np.array(fall)
    if shifted:
        power = math.exp((tokens - 1024) * (2.05 - 0.95) / (4096 - 1024) + 0.95)
        sigmas = power / (power + 1 / sigmas - 1)
        sigmas = 1 - (1 - sigmas) * (1 - 0.1) / (1 - sigmas[-1])
    return sigmas.astype("float32").astype("float64")


def makers_run(case):
    """One run as `inference.py` of LTX-Video makes it, in float64; noise is drawn as reel draws it."""
    with safe_open(HERE / f"{case['model']}.safetensors", "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    source = globals()[case["model"]]()
    parts, _ = source.build(source.config)
    load(parts, {name: tensor for name, tensor in weights.items() if not name.startswith("out.")})
    model, vae, t5 = (parts[name].double() for name in ("model", "vae", "text_encoder"))
    model = model["diffusion_model"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(metadata["tokenizer"]), pad_token="<pad>",
                                        eos_token="</s>", unk_token="<unk>")
    run, rng = case["run"], generator(case["seed"])
    text_only = case["model"] != "pipeline_095"
    (w, h), f = (side // 16 for side in case["size"]), (case["frames"] - 1) // 8 + 1
    channels = vae.config.latent_channels
    mean, std = (x.double().view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    draw = lambda *shape: torch.randn(*shape, generator=rng).double()
    packed = lambda x: x.flatten(2).transpose(1, 2)  # (1, c, f, h, w) -> (1, tokens, c)

    def encoded(words):
        """256 tokens with their mask: T5 and the transformer attend to those of the prompt alone."""
        made = tokenizer(words, padding="max_length", max_length=256, truncation=True, return_tensors="pt")
        return t5(made.input_ids, attention_mask=made.attention_mask)[0], made.attention_mask

    def places(frames, frame=None):
        """Seconds, rows and columns of each token. The first latent frame of newer models stands for one frame."""
        time = np.arange(frames, dtype="float32") * 8
        if not text_only:
            time = np.maximum(time - 7, 0) + (frame or 0)
        seconds = time * np.float32(1 / case["fps"])  # in float32, as there: rotary angles magnify the last bit
        at = np.stack(np.meshgrid(seconds, np.arange(h) * 16.0, np.arange(w) * 16.0, indexing="ij"))
        return torch.from_numpy(at.reshape(1, 3, -1)).float()

    def clean(held):
        """Pictures of whatever size: cropped to the aspect, then brought to the size, never rounded; normalised latents."""
        width, height = case["size"]
        pictures = torch.stack([picture(*held["size"], i) for i in range(held["frames"])])
        _, have_h, have_w, _ = pictures.shape
        keep_w, keep_h = min(have_w, have_h * width // height), min(have_h, have_w * height // width)
        left, top = (have_w - keep_w) // 2, (have_h - keep_h) // 2
        pictures = pictures[:, top : top + keep_h, left : left + keep_w].permute(0, 3, 1, 2).double() / 127.5 - 1
        pictures = bilinear(pictures, width, height).transpose(0, 1)[None]  # (1, 3, f, h, w)
        latents = vae.encode(pictures).latent_dist
        return (latents.mean + latents.std * draw(*latents.mean.shape) - mean) / std

    held = case.get("held", [])
    stills = [clean(one) for one in held] if text_only else []  # drawn before the video's noise there
    video = draw(1, channels, f, h, w)
    kept, beside = torch.zeros(1, f, h, w), []
    for i, one in enumerate(held):
        latents, frame, strength = stills[i] if text_only else clean(one), one["frame"], one["strength"]
        if frame == 0:
            count = latents.shape[2]
            video[:, :, :count], kept[:, :count] = torch.lerp(video[:, :, :count], latents, strength), strength
            continue
        prefix, rest = latents[:, :, :2], latents[:, :, 2:]
        at, count = frame // 8 + 2, rest.shape[2]
        if count:
            video[:, :, at : at + count] = torch.lerp(video[:, :, at : at + count], rest, strength)
            kept[:, at : at + count] = strength
        prefix = torch.lerp(draw(*prefix.shape), prefix, strength)
        beside.append((packed(prefix), places(prefix.shape[2], frame), strength))
    latents = torch.cat([x for x, _, _ in beside] + [packed(video)], 1)
    coordinates = torch.cat([x for _, x, _ in beside] + [places(f)], 2)
    strengths = torch.cat([torch.full((1, x.shape[1]), s) for x, _, s in beside] + [kept.flatten(1)], 1).double()
    start, extra = latents.clone(), latents.shape[1] - f * h * w

    header = case.get("header", {}).get("scheduler", {})
    sampler = header.get("sampler", "Uniform" if text_only else "LinearQuadratic")
    sigmas = levels(run["steps"], sampler, "shifting" in header or text_only, f * h * w)
    listed = lambda name, otherwise: run.get(name, otherwise)
    (prompt, mask), (negative, negative_mask) = encoded(case["prompt"]), encoded(run.get("negative", ""))

    def velocity(x, words, words_mask, time, without=()):
        usual = [model.transformer_blocks[i].attn1.processor for i in without]
        for i in without:
            model.transformer_blocks[i].attn1.processor = OwnValues()
        made = model(x, words, time * 1000, words_mask, num_frames=f, height=h, width=w, video_coords=coordinates,
                     return_dict=False)[0]
        for i, processor in zip(without, usual):
            model.transformer_blocks[i].attn1.processor = processor
        return made

    for i, sigma in enumerate(sigmas):
        place = next((j for j, level in enumerate(listed("guidance_timesteps", [])) if level <= sigma), -1)
        at = lambda name, otherwise: listed(name, otherwise)[place] if isinstance(listed(name, otherwise), list) else listed(name, otherwise)
        scale, stg, rescale = at("guidance", 1), at("stg", 0), at("guidance_rescale", 0)
        if held and run.get("image_noise", 0):
            noised = start + run["image_noise"] * sigma**2 * draw(*latents.shape)
            latents = torch.where((strengths > 1 - 1e-6)[..., None], noised, latents)
        time = torch.minimum(torch.tensor(sigma), 1 - strengths)
        c = velocity(latents, prompt, mask, time)
        v = c
        if scale > 1:
            u = velocity(latents, negative, negative_mask, time)
            u = u * ((c * u).sum() / ((u**2).sum() + 1e-8)) if run.get("cfg_star") else u
            v = u + scale * (c - u)
        if stg > 0:
            v = v + stg * (c - velocity(latents, prompt, mask, time, run["stg_blocks"]))
            if rescale:  # waits for spatio-temporal guidance
                v = v * (rescale * c.std() / v.std() + 1 - rescale)
        below = torch.tensor([0.0, *sigmas])
        after = torch.where(below[:, None] < time[0] - 1e-6, below[:, None], 0.0).max(0).values[None, :, None]
        now = time[..., None]
        if run.get("stochastic"):
            moved = (1 - after) * (latents - now * v) + after * draw(*latents.shape)
        else:
            moved = latents - (now - after) * v
        latents = torch.where((sigma - 1e-6 < 1 - strengths)[..., None], moved, latents)
    latents = latents[:, extra:].transpose(1, 2).reshape(1, channels, f, h, w)
    if vae.config.timestep_conditioning:  # the noise goes into normalised latents, and tones come last
        share = run["decode_noise"]
        latents = (1 - share) * latents + share * draw(*latents.shape)
    strength = 0.75 * run.get("tone_map", 0)
    latents = latents * (1 - 0.8 * strength * torch.sigmoid(4 * strength * (latents.abs() - 1)))
    return (latents * std + mean).float()


def makers():
    decode = {"decode_timestep": 0.05, "decode_noise": 0.1}
    still = lambda size, frame, strength=1.0, frames=1: dict(size=size, frame=frame, strength=strength, frames=frames)
    usual = dict(size=(64, 32), frames=17, fps=25)
    cases = {
        # padding masked, noise on the still, no rescale without STG
        "text_from_a_still": dict(
            model="pipeline_090", prompt="A red boat sails slowly on the sea", seed=31, held=[still((64, 32), 0)],
            run=dict(steps=5, guidance=3, guidance_rescale=0.7, image_noise=0.15, negative="blurry, dark"), **usual),
        # decode noise in normalised latents, rescale with STG
        "text_decoded": dict(
            model="pipeline_091", prompt="The blue lamp and the sand", seed=32,
            run=dict(steps=4, guidance=3, guidance_rescale=0.7, stg=1, stg_blocks=[0], negative="dark", **decode), **usual),
        # exact levels, though the header lists rounded ones; tones after the noise
        "exact_levels": dict(
            model="pipeline_095", prompt="a ball rolls", seed=33,
            header={"allowed_inference_steps": [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219]},
            run=dict(steps=8, guidance=1, stochastic=True, tone_map=0.6, **decode), **usual),
        # the header's sampler and shift; lists by level, where rescale waits for STG
        "header_sampler": dict(
            model="pipeline_095", prompt="a ball rolls slowly", seed=34,
            header={"scheduler": dict(_class_name="RectifiedFlowScheduler", num_train_timesteps=1000, sampler="Uniform",
                                      shifting="SD3", target_shift_terminal=0.1)},
            run=dict(steps=5, guidance_timesteps=[1.0, 0.9, 0.5], guidance=[1, 4, 3], guidance_rescale=[0.5, 0.7, 0.6],
                     stg=[0, 0, 2], stg_blocks=[1], cfg_star=True, negative="dark", **decode), **usual),
        # stills of other sizes, which are brought to the clip's after all else
        "larger_stills": dict(
            model="pipeline_095", prompt="the ball in the sand", seed=35,
            held=[still((150, 61), 0), still((70, 90), 11, 0.6)], run=dict(steps=4, guidance=1, image_noise=0.15, **decode),
            **usual),
        # a clip that is put at frame 12 is held from 8 on
        "clip_moved": dict(
            model="pipeline_095", prompt="the ball in the sand", seed=36, held=[still((64, 32), 8, frames=25)], put=[12],
            run=dict(steps=4, guidance=1, image_noise=0.15, **decode), **(usual | dict(frames=33))),
    }

    def run(_, x):
        return {name: makers_run(case) for name, case in cases.items()}

    return Golden("Lightricks' recipe in float64: what the decoder reads", {}, lambda config: (None, json.dumps(config)), {},
                  run, {"cases": json.dumps(cases)})


GOLDENS = [t5, transformer_block, transformer, rope, vae_090, vae_091, vae_095, vae_tiny, schedules,
           pipeline_090, pipeline_091, pipeline_095, lora, guidance, upscaler, upscaler_2d, upscaler_time, vae_tiles, makers]


# ---- text for the tests inside src ----------------------------------------------------------------------------------


def noise():
    bits = lambda values: values.numpy().view(np.uint32)
    text = lambda words: " ".join(f"{word:08x}" for word in words)

    def long_draw(values):
        words, mix = bits(values), 0
        for word in words.tolist():
            mix = (((mix << 5) | (mix >> 27)) & 0xFFFFFFFF) ^ word
        total = int(words.sum(dtype=np.uint64)) & 0xFFFFFFFF
        n, shown = len(words), len(words) if len(words) <= 32 else 16
        return dict(n=n, first=text(words[:shown]), last=text(words[n - shown:] if n > 32 else []),
                    sum_mix=text([total, mix]))

    def sequence(seed, sizes):
        rng = generator(seed)
        return dict(seed=seed, draws=[long_draw(normal(rng, n)) for n in sizes])

    many = [1, 2, 3, 5, 15, 16, 17, 24, 31, 32, 33, 100, 128, 1000, 7, 2304, 9, 40]
    made = {
        "note": "torch 2.15.0 CPU randn in float32, as hex of the bits. sum: wrapping sum; mix: rotate left 5, xor.",
        "mt19937_seed0": text(np.random.RandomState(0).randint(0, 1 << 32, 8, dtype=np.uint32)),
        "draws": [dict(seed=seed, n=n, bits=text(bits(normal(generator(seed), n))))
                  for seed in (0, 42, 171198) for n in (1, 5, 15, 16, 17, 32, 100)],
        # A wrong last bit in one constant shows in 1 of 5,000 values: short draws alone do not see it.
        "sequences": [sequence(*s) for s in [
            (0, many), (42, many), (1234567, many), (7, [5, 16, 3, 20, 1]),
            (0, [1_000_000]), (42, [9, 250_007, 16, 3]), ((7 << 32) + 99, [300_000])]],
    }
    return json.dumps(made, indent=1) + "\n"


LONG = ("A young woman with auburn hair walks along a rain-soaked street at night, neon signs reflecting in the "
        "puddles; the camera tracks her from behind, handheld, shallow depth of field. ")
TEXTS = [
    "",
    "A cat.",
    "A woman with long brown hair smiles; the camera pans left, 4K, f/2.8.",
    " leading  double   space\n new\tline ",
    "\ufb01ne \uff21\uff22\uff23 \xbd caf\xe9 na\xefve \u6771\u4eac\u30bf\u30ef\u30fc \U0001f3ac\U0001f30a \u2014 "
    "\u201cquotes\u201d\u2026",
    "zero\u200bwidth\xa0nbsp e\u0301 combining",
    "a </s> b <pad> <extra_id_3> x",
    "\u2581under\u2581score",
    "word\u3000ideographic space",
    "A woman with long brown hair smiles at the camera.",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
    "  hello   world ",
    "line1\nline2\ttab",
    "8K HDR caf\xe9 na\xefve \u2014 \u201cquotes\u201d \u2026 \u6771\u4eac",
    "worst quality",
    "   \t\n ",
    "\ufeffA cat",
    "\uff21  \ufb01lm\u2026",
    "</s>",
    "a </s>",
    "The camera pans slowly; 24 fps, f/1.4, ISO 800.",
    "e\u0301 vs \xe9",
    "x" * 40,
    "\U0001f3ac",
    "Ein Hund l\xe4uft \xfcber die Br\xfccke, w\xe4hrend es regnet.",
    "Le chat s'est assis \xe0 c\xf4t\xe9 d'une fen\xeatre.",
    "Un c\xe2ine alearg\u0103 pe plaj\u0103.",
    " Log\U0001f3a2\U0001f3f1\U0001f74b\U0001f762\U0001f39e \U0001fa22\U0001fa75\U0001f5a3\U0001f76d\U0001f9f6 gagn"
    "\xe9ADD\x03\x0d\n\u0e41\u0363\u036c\u2581\u0e62\u0e7b\u0e61\u0e56\x0f\x06\x0d\t\u2028\u0654\u065e\u20e8\u214b"
    "\u20f6\u20c1",
    "\u200d\u0e6d\u3000EPS \u2581\ufeb3\ufe9e \u2581\u3334\u33a1\u330f\u33a8\u3382\u1e4d\u1f28\u1f01\u1e1f Ram Tier"
    "\U0001d5ec\U0001d422\U0001d663\U0001d780",
    "\u200b\uc360\ub1c9\ubfea\ub831\uce5f spiritual\xeb\u01b8\u01ba\u010a\u018b pendantmodifying\u3000 Brussels"
    "\ud219\ubfbd\u2186\u0117\xf9\u01f9\xee prior annuel\u2581\u2581\u206e\u200b\u2047\u206c\x0b\x1d\x06\x0f\t fois"
    "rub\x19\x12\x1b\x12\x05\u990f\u6d63\u5b99\u9a74IA",
    "\u2057\uff86\uff23\uffed pub\ufb7d\u0e45\u0e50\u0e12\u0e40\u0e1c\uca2b\ud758\uc08c\uc536\uc3aa gown\u3000 "
    "\ufeff\u2170\u2183 winter\u33a6\u339f\U0001d4f9\U0001d7d4\U0001d492\u2492\u2027\u2054\u2031\u202b\u201aauthore"
    "d\u2581\u2581HA closet\x0d\n\u1fbf\u1eb5\u1f75",
    " economies Angle\ufefa\U0001f5c2\U0001f4fb\u30d8\u3012\u3098\u30f4\u3056\u2581\u2581 temporaireenergia erlebt"
    "\u5aed\u809b\u80ad\u7fbd\u8485 schneller\u036d\u036e\u032f\u033d\u034b\u1e73 gew\xe4hrleisten LLC",
    " happens Kunden\ufd70\u0525\u03f4\u2180\u218a\u2187\u2169\u06a1\u3372\u3324\u337f\u33ae\u20d3\u20c6\u20a2"
    "\u211f\u20b8\u30acVac error\u2581 functions Sapphire\ufb65\ufc34\ufbd4\ufcc3\u30f1\u30d2\u30a7\u0e27\x0d\nBAN "
    "east\u2581\u2581 empty 1925",
    "shiny histories cunoaste prze Because instantly externalin\u021b\u0103lox",
    "Biserica simti",
    "scaffold",
    "activitate Porter1.5 gek mint Mono Myanmar deeperAustraliaschlafintuit",
    "blame",
    "Kingston",
]


def tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        source = HERE.parent.parent / "src/models/text/t5-tokenizer.json"
        (Path(folder) / "tokenizer.json").write_bytes(source.read_bytes())
        (Path(folder) / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
        made = AutoTokenizer.from_pretrained(folder)
    cases = [dict(text=text, ids=made(text).input_ids) for text in TEXTS]
    limits = [(5 * LONG, 128), (8 * LONG, 256), (LONG, 8), (LONG, 1), ("A cat.", 3), ("A cat.", 4), ("", 1)]
    cut = [dict(text=text, max_tokens=n, ids=made(text, truncation=True, max_length=n).input_ids) for text, n in limits]
    lines = lambda entries: "[\n  " + ",\n  ".join(map(json.dumps, entries)) + "\n ]"
    note = "ids of transformers 5.23 T5Tokenizer (google/t5-v1_1-xxl); cut: with truncation to max_tokens"
    return f'{{\n "note": "{note}",\n "cases": {lines(cases)},\n "cut": {lines(cut)}\n}}\n'


TEXT_GOLDENS = [noise, tokenizer]


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
    if name.endswith("latents_std"):
        return 0.5 + z.abs()
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.3 * z
    if name.endswith("shared.weight"):  # rows from 1/300 to 1
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
    names = sorted(name for name in state if not name.endswith("encoder.embed_tokens.weight"))
    return {name: random_weight(name, state[name], rng).bfloat16().contiguous() for name in names}


# ---- making, writing, checking --------------------------------------------------------------------------------------


def saved_config(save):
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return next(Path(folder).glob("*config.json")).read_text()


def load(module, weights):
    missing, unexpected = module.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    missing = [name for name in missing if not name.endswith("encoder.embed_tokens.weight")]
    assert not unexpected and not missing, (missing, unexpected)
    return module.eval()


def make(make_golden):
    golden = make_golden()
    module, config = golden.build(golden.config)
    weights = {}
    if isinstance(module, torch.nn.Module):
        weights = randomise(module, 1000 + GOLDENS.index(make_golden))
        load(module, weights)
    outputs = golden.run(module, golden.inputs)
    tensors = {f"{golden.prefix}{k}": v for k, v in weights.items()}
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
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    part = lambda p: {k.removeprefix(p): tensors.pop(k) for k in list(tensors) if k.startswith(p)}
    golden = make_golden()
    inputs, wanted, weights = part("in."), part("out."), part(golden.prefix)
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
    chosen = lambda all_of_them: [g for g in all_of_them if not names or g.__name__ in names]
    if "--check" not in arguments:
        for golden in chosen(GOLDENS):
            make(golden)
        for golden in chosen(TEXT_GOLDENS):
            (HERE / f"{golden.__name__}.json").write_text(golden())
    for golden in chosen(GOLDENS):
        check(golden)
    for golden in chosen(TEXT_GOLDENS):
        path = HERE / f"{golden.__name__}.json"
        assert path.read_text() == golden(), f"{path.name}: not what the script makes"
        print(f"{path.name:32} {path.stat().st_size:8,} bytes  equal")


if __name__ == "__main__":
    main(sys.argv[1:])
