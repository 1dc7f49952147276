"""Every attention and MLP output of every block, before its gate: what TaylorSeer's and SpeCa's released code cache.

In a forecast call the gates are computed anew from the call's own timestep. FLUX's single blocks have one output for
attention and MLP together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speca.adapters.base import Anatomy, exchanged_forward

from .levels import Features, as_tuple, blocks_of


@dataclass(frozen=True)
class _Modules:
    """The attention and MLP outputs of one kind of block, and how the block adds them up.

    paths: of its modules. two: those among them that return two tensors, picture's and text's.
    add_up: the block, its modules' outputs in order, and what the block is given -> what it returns.
    """

    paths: tuple[str, ...]
    add_up: Callable[..., Any]
    two: tuple[str, ...] = ()

    def names(self, n: int) -> list[str]:
        """Of the outputs in block `n`, in order."""
        return [f"{n}.{i}.{k}" for i, path in enumerate(self.paths) for k in range(2 if path in self.two else 1)]


def _double_stream(block: Any, f: list[Tensor], img: Tensor, txt: Tensor, vec: Any, **kwargs: Any) -> Any:
    from comfy.ldm.flux.layers import apply_mod

    (img1, img2), (txt1, txt2) = (block.img_mod(vec), block.txt_mod(vec)) if block.modulation else vec
    img_dims, txt_dims = kwargs.get("modulation_dims_img"), kwargs.get("modulation_dims_txt")
    img = img + apply_mod(f[0], img1.gate, None, img_dims) + apply_mod(f[1], img2.gate, None, img_dims)
    txt = txt + apply_mod(f[2], txt1.gate, None, txt_dims) + apply_mod(f[3], txt2.gate, None, txt_dims)
    return img, txt


def _single_stream(block: Any, f: list[Tensor], x: Tensor, vec: Any, **kwargs: Any) -> Any:
    from comfy.ldm.flux.layers import apply_mod

    mod = block.modulation(vec)[0] if block.modulation else vec
    return x + apply_mod(f[0], mod.gate, None, kwargs.get("modulation_dims"))


def _dit(block: Any, f: list[Tensor], x: Tensor, c: Tensor, *args: Any, **kwargs: Any) -> Any:
    _, _, gate_msa, _, _, gate_mlp = block.adaLN_modulation(c).chunk(6, dim=1)
    return x + gate_msa.unsqueeze(1) * f[0] + gate_mlp.unsqueeze(1) * f[1]


def _wan(block: Any, f: list[Tensor], x: Tensor, e: Tensor, *args: Any, **kwargs: Any) -> Any:
    from comfy.ldm.wan.model import repeat_e

    modulation = block.modulation.to(x.dtype)
    e = (modulation + e).chunk(6, dim=1) if e.ndim < 4 else (modulation.unsqueeze(0) + e).unbind(2)
    return torch.addcmul(torch.addcmul(x, f[0], repeat_e(e[2], x)) + f[1], f[2], repeat_e(e[5], x))


def _qwen_image(
    block: Any, f: list[Tensor], hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    temb = kwargs["temb"]
    gates = [
        modulation.chunk(3, dim=-1)[2].unsqueeze(1)
        for part in (block.img_mod(temb), block.txt_mod(temb))
        for modulation in part.chunk(2, dim=-1)
    ]
    img = hidden_states + gates[0] * f[0] + gates[1] * f[2]
    txt = encoder_hidden_states + gates[2] * f[1] + gates[3] * f[3]
    return txt, img


def _lumina(
    block: Any, f: list[Tensor], x: Tensor, x_mask: Any, freqs_cis: Any, adaln_input: Any = None, **kwargs: Any
) -> Any:
    attention, feed_forward = block.attention_norm2(f[0]), block.ffn_norm2(f[1])
    if not block.modulation:
        return x + attention + feed_forward
    _, gate_msa, _, gate_mlp = block.adaLN_modulation(adaln_input).chunk(4, dim=1)
    return x + gate_msa.unsqueeze(1).tanh() * attention + gate_mlp.unsqueeze(1).tanh() * feed_forward


def _cosmos(block: Any, f: list[Tensor], x: Tensor, emb: Tensor, *args: Any, **kwargs: Any) -> Any:
    for part, output in zip(block.blocks, f, strict=True):
        modulation = part.adaLN_modulation(emb)
        if part.use_adaln_lora:
            modulation = modulation + kwargs["adaln_lora_B_3D"]
        x = x + modulation.chunk(3, dim=1)[2][None, None, None] * output
    return x


def _pixart(block: Any, f: list[Tensor], x: Tensor, y: Any, t: Tensor, *args: Any, **kwargs: Any) -> Any:
    table = block.scale_shift_table[None].to(x)
    _, _, gate_msa, _, _, gate_mlp = (table + t.reshape(len(x), 6, -1)).chunk(6, dim=1)
    return x + gate_msa * f[0] + f[1] + gate_mlp * f[2]


def _hunyuan_dit(
    block: Any, f: list[Tensor], x: Tensor, c: Any, text: Any, rotary: Any = None, skip: Tensor | None = None
) -> Any:
    if block.skip_linear is not None:
        x = block.skip_linear(block.skip_norm(torch.cat([x, skip], dim=-1)))
    return x + f[0] + f[1] + f[2]


def _aura_double(block: Any, f: list[Tensor], c: Tensor, x: Tensor, global_cond: Tensor, **kwargs: Any) -> Any:
    """What attention gives enters the MLP alone: the block adds nothing but the MLP's output to its input."""
    gates = (modulation(global_cond).chunk(6, dim=1)[5].unsqueeze(1) for modulation in (block.modC, block.modX))
    return tuple(res + gate * out for res, gate, out in zip((c, x), gates, f[2:], strict=True))


def _aura_single(block: Any, f: list[Tensor], cx: Tensor, global_cond: Tensor, **kwargs: Any) -> Any:
    return cx + block.modCX(global_cond).chunk(6, dim=1)[5].unsqueeze(1) * f[1]


def _cosmos_predict2(block: Any, f: list[Tensor], x: Tensor, emb: Tensor, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("extra_per_block_pos_emb") is not None:
        x = x + kwargs["extra_per_block_pos_emb"]
    parts = (block.adaln_modulation_self_attn, block.adaln_modulation_cross_attn, block.adaln_modulation_mlp)
    for modulation, output in zip(parts, f, strict=True):
        modulated = modulation(emb) + kwargs["adaln_lora_B_T_3D"] if block.use_adaln_lora else modulation(emb)
        x = x + modulated.chunk(3, dim=-1)[2][:, :, None, None] * output.view_as(x)
    return x


def _ltxv(block: Any, f: list[Tensor], x: Tensor, **kwargs: Any) -> Any:
    table, timestep = block.scale_shift_table[None, None].to(x), kwargs["timestep"]
    parts = table + timestep.reshape(len(x), timestep.shape[1], len(block.scale_shift_table), -1)
    _, _, gate_msa, _, _, gate_mlp = parts.unbind(dim=2)
    return x + gate_msa * f[0] + f[1] + gate_mlp * f[2]


MODULES: dict[str, _Modules] = {
    "DoubleStreamBlock": _Modules(("img_attn.proj", "img_mlp", "txt_attn.proj", "txt_mlp"), _double_stream),
    "SingleStreamBlock": _Modules(("linear2",), _single_stream),
    "DiTBlock": _Modules(("attn", "mlp"), _dit),
    "WanAttentionBlock": _Modules(("self_attn", "cross_attn", "ffn"), _wan),
    "QwenImageTransformerBlock": _Modules(("attn", "img_mlp", "txt_mlp"), _qwen_image, two=("attn",)),
    "HunYuanDiTBlock": _Modules(("attn1", "attn2", "mlp"), _hunyuan_dit),
    "PixArtMSBlock": _Modules(("attn", "cross_attn", "mlp"), _pixart),
    "JointTransformerBlock": _Modules(("attention", "feed_forward"), _lumina),
    "GeneralDITTransformerBlock": _Modules(("blocks.0.block", "blocks.1.block", "blocks.2.block"), _cosmos),
    "BasicTransformerBlock": _Modules(("attn1", "attn2", "ff"), _ltxv),
    "aura.mmdit.MMDiTBlock": _Modules(("attn", "mlpC", "mlpX"), _aura_double, two=("attn",)),
    "aura.mmdit.DiTBlock": _Modules(("attn", "mlp"), _aura_single),
    "cosmos.predict2.Block": _Modules(("self_attn", "cross_attn", "mlp"), _cosmos_predict2),
}
"""By the class of the block, and its file below `comfy/ldm` where another has such a class. FLUX's blocks are also
HunyuanVideo's."""


def modules_of(block: nn.Module) -> _Modules:
    """Raises KeyError for a kind of block that is not in `MODULES`."""
    kind = type(block)
    in_its_file = f"{kind.__module__.rpartition('comfy.ldm.')[2]}.{kind.__name__}"
    return MODULES[in_its_file if in_its_file in MODULES else kind.__name__]


class ModuleOutputs:
    """The level of `MODULES`. Raises KeyError for a network whose blocks are not among them."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        for n, (_, block) in enumerate(blocks_of(anatomy)):
            for i, path in enumerate(modules_of(block).paths):
                self._keep(block.get_submodule(path), f"{n}.{i}", into, stack)

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        for n, (_, block) in enumerate(blocks_of(anatomy)):
            modules = modules_of(block)

            def answer(block: nn.Module, modules: _Modules, n: int, *args: Any, **kwargs: Any) -> Any:
                return modules.add_up(block, [forecast(name) for name in modules.names(n)], *args, **kwargs)

            stack.enter_context(exchanged_forward(block, functools.partial(answer, block, modules, n)))

    def check(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], errors: list[float], stack: ExitStack) -> None:
        """To be entered after `replay`: the last block also runs for real on its forecast input.

        Adds to `errors` the element-wise |F_hat - F| / (|F| + 1e-10), averaged over the block's last module: the
        released code's metric at its released place.
        """
        stage, block = anatomy.verification_stage, anatomy.verification_block
        paths = modules_of(block).paths
        name = f"{len(blocks_of(anatomy)) - 1}.{len(paths) - 1}"
        replayed = block.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            exact: Features = {}
            own = tuple(t.clone() for t in stage.needed(block, args, kwargs))  # blocks work in place
            new_args, new_kwargs = stage.with_needed(block, args, kwargs, own)
            with ExitStack() as inner:
                self._keep(block.get_submodule(paths[-1]), name, exact, inner)
                type(block).forward(block, *new_args, **new_kwargs)
            (output,) = exact.values()
            errors.append(float(((forecast(f"{name}.0") - output).abs() / (output.abs() + 1e-10)).mean()))
            return replayed(*args, **kwargs)

        stack.enter_context(exchanged_forward(block, run))

    @staticmethod
    def _keep(module: nn.Module, name: str, into: Features, stack: ExitStack) -> None:
        def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            returned = native(*args, **kwargs)
            into.update({f"{name}.{k}": t for k, t in enumerate(as_tuple(returned))})
            return returned

        stack.enter_context(exchanged_forward(module, functools.partial(run, module.forward)))
