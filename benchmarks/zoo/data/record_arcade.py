"""Plays the 16 games of procgen2 at random and records them: `python record_arcade.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from procgen import ProcgenGym3Env
from procgen.env import ENV_NAMES

PLAYERS, STEPS, APART = 24, 64, 2


def main() -> None:
    for game in ENV_NAMES:
        rng = np.random.default_rng(0)
        env = ProcgenGym3Env(num=PLAYERS, env_name=game, distribution_mode="hard", rand_seed=1)
        frames, goes_on = [], []
        interrupted = np.zeros(PLAYERS, bool)
        action = rng.integers(0, 15, PLAYERS)
        for step in range(20 + STEPS * APART):
            if step % 4 == 0:  # held for a while, as a player would
                action = rng.integers(0, 15, PLAYERS)
            env.act(action.astype(np.int32))
            _, observed, first = env.observe()
            interrupted |= first
            if step >= 20 and (step - 20) % APART == 0:
                frames.append(observed["rgb"].copy())
                goes_on.append(~interrupted)
                interrupted = np.zeros(PLAYERS, bool)
        path = Path(sys.argv[1]) / f"{game}.npz"
        np.savez_compressed(path, frames=np.stack(frames, 1), goes_on=np.stack(goes_on, 1))
        print(f"recorded {game}", flush=True)


if __name__ == "__main__":
    main()
