"""A network that can be computed by hand, and runs of a session over it.

Its output and its features are the same number, a function of time, in every element. With a noise gain of at most 1
every forecast repeats the last computed value, so the error of a call can be worked out on paper. The first two calls
are always computed.
"""

from dataclasses import dataclass, field, replace

import torch

from speca.call import Call, Exact, ForecastImpossibleError, Latent
from speca.config import SpeCaConfig
from speca.events import RunHeader
from speca.schedule import NoiseLevel
from speca.session import Session

CPU = torch.device("cpu")


@dataclass
class FakeNetwork:
    """Row r is `value(time, r)`. On forecast features the last block returns `exact`, the true value, so the direct
    output forecast is what is found wrong."""

    time: float
    n_rows: int
    value: callable = lambda time, row: 1.0 + time
    splittable: bool = True
    device: torch.device = CPU
    full_rows: list = field(default_factory=list)
    speculated_rows: list = field(default_factory=list)
    refuse: str | None = None
    embedded: float | None = 0.0
    given: tuple | None = None

    def _values(self, rows):
        rows = range(self.n_rows) if rows is None else rows
        return torch.tensor([[self.value(self.time, row)] * 4 for row in rows])

    def full(self, rows, keep_features, keep_embedded=False):
        self.full_rows.append(rows)
        values = self._values(rows)
        embedded = None
        if keep_embedded and self.embedded is not None:
            embedded = (torch.full_like(values, self.embedded),)
        return Exact((values.clone(),) if keep_features else None, (values,), embedded)

    def speculate(self, features, rows, on_embedded=()):
        if self.refuse:
            raise ForecastImpossibleError(self.refuse)
        self.given = (features, on_embedded)
        self.speculated_rows.append(rows)
        return (self._values(rows),)


class Renoised(FakeNetwork):
    """Output 0.5 x + 2 rest; the last block knows it all."""

    def __init__(self, time, x, rest):
        super().__init__(time, 1, lambda t, row: float(0.5 * x + 2 * rest))
        self.asked_relative = []

    def full(self, rows, keep_features, keep_embedded=False):
        self.asked_relative.append(keep_embedded)
        return super().full(rows, keep_features, keep_embedded)

    def speculate(self, features, rows, on_embedded=()):
        self.asked_relative.append(on_embedded == [True])
        return super().speculate(features, rows, on_embedded)


HEADER = RunHeader(
    settings={},
    model="Fake",
    architecture="fake",
    experimental=False,
    n_blocks=4,
    steps=10,
    sampler="euler",
    n_samples=1,
)

REUSE = SpeCaConfig(
    threshold=0.25,
    order=1,
    noise_gain_limit=1.0,
    threshold_end_factor=1.0,
    accumulate_error=False,
    warmup_steps=2,
    check_every=1,
)

ONCE = replace(REUSE, warmup_steps=1)


def run(config, times, n_samples=1, n_conds=1, listener=None, **network):
    """Outcomes per call and sample, the networks used, and the session."""
    session = Session(config, HEADER, listener)
    streams = tuple((cond, sample) for cond in range(n_conds) for sample in range(n_samples))
    networks = []
    for i, time in enumerate(times):
        bound = FakeNetwork(time, len(streams), **network)
        networks.append(bound)
        call = Call(time, time, i, i / len(times), n_samples, streams, tuple(range(n_conds)), kind="all")
        (output,) = session.evaluate(call, bound)
        made = session.tally.record().calls[-1].rows
        computed = [r for r in range(len(streams)) if not made[r % n_samples].skipped]
        assert torch.equal(output[computed], bound._values(None)[computed])
    record = session.tally.record()
    return [[row.outcome for row in call.rows] for call in record.calls], networks, session


def errors(session):
    return [call.rows[0].error for call in session.tally.record().calls]


def latent_of(x, follows, spread):
    """Of pure noise: of x, whatever pictures are like, the share `follows` shows in the output."""
    return Latent(x, NoiseLevel(1.0, signal=0.0, noise=1.0, latent_gain=-follows / spread, output_gain=1 / spread))


def call_at(time, step, x=None, spread=1.0, renoised=False):
    latent = None if x is None else latent_of(torch.full((1, 4), x), 0.5, spread)
    return Call(time, time, step, 0.0, 1, ("s",), latent=latent, renoised=renoised)


def two_full_calls(config, latents, carry=0.5):
    """A session after full calls at times 1 and 2, both with the output 4 and with `latents`."""
    session = Session(config, HEADER)
    for i, (time, x) in enumerate(zip((1.0, 2.0), latents, strict=True)):
        latent = None if x is None else latent_of(torch.full((1, 4), x), carry, 1.0)
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",), latent=latent), FakeNetwork(time, 1, lambda t, r: 4.0))
    return session
