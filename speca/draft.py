"""What a call's streams forecast for it, before any of the network is run: features and output. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .call import Call, ForecastImpossibleError, Latent, Tensors
from .config import SpeCaConfig
from .forecast import Forecast, forecast_weights, reuse
from .history import History
from .stream import Stream

# Where the sampler adds noise, anchors differ by more than time: a forecast may amplify them less. Chosen on the emoji
# FLUX and DiT. What 1 and no such limit cost on other models: benchmarks/results/ablation-euler_ancestral.md.
RENOISED_NOISE_GAIN_LIMIT = 2.0

ANCHORS_TO_FORECAST = 2


@dataclass(frozen=True)
class Draft:
    """What anchors say of some rows of a call, (R, ...) per tensor.

    features: for the last block; of rows `on_embedded`, to be put on the call's own embedded input.
    direct: the output, forecast from past outputs.
    other: another guess at the output, to tell how far the forecast reaches. It repeats the newest output, or where the
        sampler adds noise the picture shown by it; where the forecast itself can do no more than that, with one anchor,
        it follows from the latent. Where a lone anchor is repeated on the embedded input, the two change places.
    guessed: whether nothing tells which way a row's output moves: it has but one anchor.
    """

    features: Tensors
    on_embedded: Sequence[bool]
    direct: Tensors
    other: Tensors
    guessed: Sequence[bool]


def can_forecast(call: Call, stream: Stream) -> bool:
    """Whether the stream's anchors are enough to forecast from and to check with.

    An anchor at the call's own time needs a latent to be of use, and so does a lone one: a repeated output would
    have nothing but itself to be held against.
    """
    history = stream.history
    if call.latent is None:
        return sum(t != call.time for t in history.times) >= ANCHORS_TO_FORECAST
    if history.lone is not None:
        return history.has_latents and not call.renoised and history.lone.time != call.time
    return len(history) >= ANCHORS_TO_FORECAST


def forecast(
    config: SpeCaConfig, call: Call, streams: Sequence[Stream], rows: Sequence[int], device: torch.device
) -> Draft:
    """The draft of `rows`, on `device`; `streams` has one for each row of the call. Every one of `rows` `can_forecast`.

    Raises `ForecastImpossibleError` where the rows' features have different shapes.
    """
    features, direct, other = zip(
        *(_forecast_row(config, call, row, streams[row], device) for row in rows), strict=True
    )
    if len({tuple(t.shape for t in row) for row in features}) > 1:
        raise ForecastImpossibleError("shape_changed")
    on_embedded = [streams[row].relative or streams[row].repeats_added for row in rows]
    guessed = [streams[row].history.lone is not None for row in rows]
    return Draft(_cat(features), on_embedded, _cat(direct), _cat(other), guessed)


def forecast_output(
    config: SpeCaConfig, call: Call, streams: Sequence[Stream], rows: Sequence[int], device: torch.device
) -> Tensors:
    """The output alone, for `rows` that are not to be checked: the direct forecast, and what the last answer that was
    checked had `Stream.beside` it."""
    outputs = []
    for row in rows:
        stream, latent = streams[row], _latent_of(call, row)
        assert stream.beside is not None
        if stream.repeats_added:
            direct = _repeated(call, stream.history, latent, device)
        else:
            direct = _continued(config, call, stream.history, latent, _weigh(config, call, stream.history), device)
        outputs.append(tuple(d + b.to(device) for d, b in zip(direct, stream.beside, strict=True)))
    return _cat(outputs)


def _forecast_row(
    config: SpeCaConfig, call: Call, row: int, stream: Stream, device: torch.device
) -> tuple[Tensors, Tensors, Tensors]:
    """(features, direct, other) of one row, see `Draft`."""
    history, latent = stream.history, _latent_of(call, row)
    weighed = _weigh(config, call, history)
    continued = _continued(config, call, history, latent, weighed, device)
    repeated = _repeated(call, history, latent, device)
    if stream.repeats_added:
        return history.repeat_added(device), repeated, continued
    return history.forecast_features(weighed.weights, device), continued, repeated


def _latent_of(call: Call, row: int) -> Latent | None:
    return call.latent and call.latent.row(row)


def _weigh(config: SpeCaConfig, call: Call, history: History) -> Forecast:
    limit = config.noise_gain_limit
    tighter = min(limit, RENOISED_NOISE_GAIN_LIMIT) if call.renoised else limit
    return forecast_weights(config.forecaster, history.times, call.time, config.order, tighter)


def _continued(
    config: SpeCaConfig, call: Call, history: History, latent: Latent | None, weighed: Forecast, device: torch.device
) -> Tensors:
    """The output, forecast from past outputs.

    Where the features repeat an anchor, the output must not: the last block on repeated features would find
    little but its own repeated output, and see no error. At order 0 the output is forecast in a straight line; in
    a second call at an anchor's own time (heun), from the latent that has changed since.
    """
    without = _no_repetition(config, call, history, weighed)
    return _output(call, history, latent, weighed.weights, without, device)


def _repeated(call: Call, history: History, latent: Latent | None, device: torch.device) -> Tensors:
    """The newest output again; with one anchor, what follows from the latent; with fresh noise, the newest picture.

    Both forecasts hold some of the noise that is gone, and agree in it; the picture holds none.
    """
    picture = history.repeat_picture(latent, device) if call.renoised else None
    if picture is not None:
        return picture
    newest = reuse(history.times, call.time, 0)
    from_latent = history.forecast_output_from(latent, newest, device) if history.lone else None
    return from_latent or _output(call, history, latent, newest, newest, device)


def _output(
    call: Call,
    history: History,
    latent: Latent | None,
    weights: Sequence[float],
    without: Sequence[float],
    device: torch.device,
) -> Tensors:
    """From the latent by `weights`, where it holds what no anchor knows; else by `without`, from outputs alone."""
    holds_news = call.renoised or call.time in history.times
    from_latent = history.forecast_output_from(latent, weights, device) if holds_news else None
    return from_latent or history.forecast_output(without, device)


def _no_repetition(config: SpeCaConfig, call: Call, history: History, weighed: Forecast) -> Sequence[float]:
    """Weights of an output forecast that is no mere repetition of an anchor."""
    times = history.times
    others = [t for t in times if t != call.time]
    if weighed.order > 0 and len(others) == len(times):
        return weighed.weights
    line = iter(forecast_weights("newton", others, call.time, 1, config.noise_gain_limit).weights)
    return [0.0 if t == call.time else next(line) for t in times]


def _cat(rows: Sequence[Tensors]) -> Tensors:
    return tuple(torch.cat(tensors) if len(tensors) > 1 else tensors[0] for tensors in zip(*rows, strict=True))
