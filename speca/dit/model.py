"""The DiT network (Peebles and Xie, arXiv 2212.09748) on ComfyUI's layers.

Parameter names are those of the authors' checkpoints, so such a file loads without renaming. Two things differ from the
authors' module: the position table is computed for the size at hand instead of being stored, and a call returns the
predicted noise alone; `DiT.predict` returns the learned variance too.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.ldm.common_dit
import comfy.ops
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention
from einops import rearrange, repeat
from torch import nn

TIMESTEP_FREQUENCIES = 256
"""Width of the sinusoidal timestep embedding; the authors' constant, and the input width of `t_embedder.mlp.0`."""

LAYER_NORM_EPS = 1e-6


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive layer norm's affine part: (B, T, D) with (B, D) shift and scale -> (B, T, D)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def timestep_embedding(timestep: torch.Tensor, width: int, max_period: float = 10000.0) -> torch.Tensor:
    """Sinusoids of the (fractional) timestep, cosines first: (B,) -> (B, width), fp32.

    The frequencies are the authors', `max_period ** (-i / half)`. diffusers divides by `half - 1` instead, also for the
    authors' weights, which never saw those frequencies.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep[:, None].float() * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _sincos_1d(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of each position: (N,) float64 -> (N, width) float64."""
    half = width // 2
    omega = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_embedding(
    width: int, rows: int, columns: int, base: int | None, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """DiT's fixed 2-D sine-cosine table for a grid of `rows` x `columns` tokens: (1, rows * columns, width).

    The first half of the channels encodes the column, the second the row (the order of the authors' code). `base` is
    the side of the grid the model was trained on. Another size is stretched over the trained range, each axis on its
    own, because positions beyond the range were never seen in training; `None` takes the positions as they are.
    """
    if width % 4:
        raise ValueError(f"DiT's position table needs a hidden size divisible by 4, not {width}")

    def axis(count: int) -> torch.Tensor:
        positions = torch.arange(count, dtype=torch.float64) * (1.0 if base is None else base / count)
        # Only rows + columns vectors are distinct, so float64 on the CPU costs next to nothing and is exact everywhere.
        return _sincos_1d(positions, width // 2).to(device=device, dtype=dtype)

    by_column = repeat(axis(columns), "columns half -> 1 (rows columns) half", rows=rows)
    by_row = repeat(axis(rows), "rows half -> 1 (rows columns) half", columns=columns)
    return torch.cat([by_column, by_row], dim=-1)


class PatchEmbed(nn.Module):
    """Image to tokens: (B, C, H, W) -> (B, H / p * W / p, D)."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int, operations: Any, **factory: Any):
        super().__init__()
        self.proj = operations.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rearrange(self.proj(x), "b d rows columns -> b (rows columns) d")


class TimestepEmbedder(nn.Module):
    """Timestep to conditioning vector: (B,) -> (B, D)."""

    def __init__(self, hidden_size: int, operations: Any, **factory: Any):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(TIMESTEP_FREQUENCIES, hidden_size, **factory),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, **factory),
        )

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.mlp(timestep_embedding(timestep, TIMESTEP_FREQUENCIES).to(dtype))


class LabelEmbedder(nn.Module):
    """Class label to conditioning vector: (B,) integers -> (B, D). Row `num_classes` is the null class."""

    def __init__(self, num_classes: int, hidden_size: int, operations: Any, **factory: Any):
        super().__init__()
        self.embedding_table = operations.Embedding(num_classes + 1, hidden_size, **factory)

    def forward(self, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.embedding_table(labels, out_dtype=dtype).to(dtype)


class Attention(nn.Module):
    """Multi-head self-attention over the tokens: (B, T, D) -> (B, T, D)."""

    def __init__(self, hidden_size: int, num_heads: int, operations: Any, **factory: Any):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = operations.Linear(hidden_size, 3 * hidden_size, **factory)
        self.proj = operations.Linear(hidden_size, hidden_size, **factory)

    def forward(self, x: torch.Tensor, transformer_options: dict[str, Any]) -> torch.Tensor:
        heads = rearrange(self.qkv(x), "b t (qkv heads d) -> qkv b heads t d", qkv=3, heads=self.num_heads)
        return self.proj(
            optimized_attention(*heads, self.num_heads, skip_reshape=True, transformer_options=transformer_options)
        )


class Mlp(nn.Module):
    """The feed-forward half of a block: (B, T, D) -> (B, T, D)."""

    def __init__(self, hidden_size: int, inner_size: int, operations: Any, **factory: Any):
        super().__init__()
        self.fc1 = operations.Linear(hidden_size, inner_size, **factory)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = operations.Linear(inner_size, hidden_size, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DiTBlock(nn.Module):
    """A transformer block with adaLN-Zero conditioning: x (B, T, D), c (B, D) -> (B, T, D)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, operations: Any, **factory: Any):
        super().__init__()
        norm = {"elementwise_affine": False, "eps": LAYER_NORM_EPS, **factory}
        self.norm1 = operations.LayerNorm(hidden_size, **norm)
        self.attn = Attention(hidden_size, num_heads, operations, **factory)
        self.norm2 = operations.LayerNorm(hidden_size, **norm)
        self.mlp = Mlp(hidden_size, round(hidden_size * mlp_ratio), operations, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(hidden_size, 6 * hidden_size, **factory))

    def forward(
        self, x: torch.Tensor, c: torch.Tensor, transformer_options: dict[str, Any] | None = None
    ) -> torch.Tensor:
        options = {} if transformer_options is None else transformer_options
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa), options)
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens to patches: x (B, T, D), c (B, D) -> (B, T, p * p * C)."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int, operations: Any, **factory: Any):
        super().__init__()
        self.norm_final = operations.LayerNorm(hidden_size, elementwise_affine=False, eps=LAYER_NORM_EPS, **factory)
        self.linear = operations.Linear(hidden_size, patch_size * patch_size * out_channels, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(hidden_size, 2 * hidden_size, **factory))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """A class-conditional diffusion transformer that predicts the noise, and with `learn_sigma` its variance.

    `input_size` is the side, in latent pixels, of the pictures it was trained on (32 for 256 x 256 through the SD VAE).
    Other sizes work too, see `position_embedding`. Layers of ComfyUI leave their memory uninitialised: load a state
    dict, or call `initialize_weights` to train from scratch.
    """

    def __init__(
        self,
        input_size: int | None = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = None,
        **_: Any,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"a hidden size of {hidden_size} cannot be split into {num_heads} heads")
        operations = comfy.ops.disable_weight_init if operations is None else operations
        factory = {"dtype": dtype, "device": device}
        self.dtype = dtype
        self.input_size = input_size
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.num_classes = num_classes
        self.learn_sigma = learn_sigma

        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size, operations, **factory)
        self.t_embedder = TimestepEmbedder(hidden_size, operations, **factory)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, operations, **factory)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, operations, **factory) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels, operations, **factory)

    @torch.no_grad()
    def initialize_weights(self) -> DiT:
        """Fill every parameter as the authors do: Xavier, and zero where adaLN-Zero asks for it. Returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("y_embedder.embedding_table", "t_embedder.mlp.0", "t_embedder.mlp.2"):
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.02)
        zeroed = [f"blocks.{i}.adaLN_modulation.1" for i in range(len(self.blocks))]
        for name in (*zeroed, "final_layer.adaLN_modulation.1", "final_layer.linear"):
            nn.init.zeros_(self.get_parameter(f"{name}.weight"))
        return self

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - the signature of every ComfyUI network
        **kwargs: Any,
    ) -> torch.Tensor:
        """Predict the noise in `x`: (B, C, H, W), timesteps (B,) in [0, 1000), labels y (B,) -> (B, C, H, W).

        Without labels every sample gets the null class. `context` and `control` are accepted as by every ComfyUI
        network, and have no meaning for a DiT.
        """
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._forward,
            self,
            comfy.patcher_extension.get_all_wrappers(
                comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
            ),
        ).execute(x, timestep, context, y, control, transformer_options, **kwargs)

    def _forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006
        **kwargs: Any,
    ) -> torch.Tensor:
        return self.predict(x, timestep, y, transformer_options)[:, : self.in_channels]

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """The network's whole output, noise first, then with `learn_sigma` the variance: (B, out_channels, H, W)."""
        options = {} if transformer_options is None else transformer_options
        height, width = x.shape[-2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(x, (self.patch_size, self.patch_size))
        rows, columns = (side // self.patch_size for side in x.shape[-2:])
        base = None if self.input_size is None else self.input_size // self.patch_size
        if y is None:
            y = torch.full((x.shape[0],), self.num_classes, dtype=torch.long, device=x.device)

        tokens = self.x_embedder(x)  # (B, T, D)
        tokens = tokens + position_embedding(self.hidden_size, rows, columns, base, tokens.device, tokens.dtype)
        c = self.t_embedder(timestep, tokens.dtype) + self.y_embedder(y.reshape(-1), tokens.dtype)  # (B, D)
        tokens = self._run_blocks(tokens, c, options)
        patches = self.final_layer(tokens, c)
        return self._unpatchify(patches, rows, columns)[..., :height, :width]

    def _run_blocks(self, x: torch.Tensor, c: torch.Tensor, transformer_options: dict[str, Any]) -> torch.Tensor:
        """The blocks in order, each replaceable as in ComfyUI's networks: args "img", "vec" -> {"img": ...}."""
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        transformer_options["total_blocks"] = len(self.blocks)
        transformer_options["block_type"] = "double"
        for i, block in enumerate(self.blocks):
            transformer_options["block_index"] = i
            replacement = replacements.get(("double_block", i))
            if replacement is None:
                x = block(x, c, transformer_options=transformer_options)
                continue

            def original(args: dict[str, Any], block: nn.Module = block) -> dict[str, torch.Tensor]:
                return {"img": block(args["img"], args["vec"], transformer_options=args["transformer_options"])}

            args = {"img": x, "vec": c, "transformer_options": transformer_options}
            x = replacement(args, {"original_block": original})["img"]
        return x

    def _unpatchify(self, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(B, rows * columns, p * p * C) -> (B, C, rows * p, columns * p)."""
        p = self.patch_size
        pattern = "b (rows columns) (p q c) -> b c (rows p) (columns q)"
        return rearrange(patches, pattern, rows=rows, columns=columns, p=p, q=p)
