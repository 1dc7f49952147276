"""ComfyUI's own caches, EasyCache and LazyCache: its nodes, executed as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from measure.quality import Cost
from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from .base import Calls, Method, Run, Setting

THRESHOLDS = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9, 1.4)
SHORT_THRESHOLDS = (0.1, 0.2, 0.4, 0.9)


@dataclass(frozen=True)
class CoreCache:
    """ComfyUI's own EasyCache or LazyCache node, executed as it is, at its default start and end."""

    node: str
    threshold: float
    one_by_one: bool = True

    @property
    def family(self) -> str:
        return self.node

    @property
    def label(self) -> str:
        return f"{self.threshold:g}"

    def fits(self, case: Case) -> bool:
        return True

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        import comfy_extras.nodes_easycache as core
        from comfy.patcher_extension import WrappersMP

        calls = Calls(subject.patcher, case, batch)
        # EasyCache adds in place to the network's input. In half precision that is a copy, in fp32 the sampler's own
        # latent: give it the copy that it has in real use.
        calls.patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "benchmark_copy", _on_a_copy)
        node = {"EasyCache": core.EasyCacheNode, "LazyCache": core.LazyCacheNode}[self.node]
        patched = node.execute(calls.patcher, self.threshold, 0.15, 0.95, False).result[0]
        result = sample(calls.count_inside(patched), subject, case, batch)
        cost = Cost(native, calls.computed, forecast=calls.asked - calls.computed)
        latent_bytes = result.latents[0].numel() * 4 * (2 if case.cfg != 1 else 1)
        return Run(result.latents, [cost] * len(batch), result.seconds, latent_bytes)


def _on_a_copy(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return executor(x.clone(), *args, **kwargs)


def settings(node: str, short: bool) -> list[Setting]:
    return [CoreCache(node, threshold) for threshold in (SHORT_THRESHOLDS if short else THRESHOLDS)]


METHODS = (
    Method("easycache", "EasyCache", lambda short: settings("EasyCache", short)),
    Method("lazycache", "LazyCache", lambda short: settings("LazyCache", short)),
)
