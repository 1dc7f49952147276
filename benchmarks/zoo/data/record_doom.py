"""Plays ViZDoom's scenarios at random and records them: `python record_doom.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import vizdoom as vzd

SCENARIOS = (
    *("basic", "deadly_corridor", "deathmatch", "defend_the_center", "defend_the_line"),
    *("health_gathering", "my_way_home", "predict_position", "take_cover"),
)
EPISODES, FRAMES, APART = 48, 32, 3


def main() -> None:
    for scenario in SCENARIOS:
        rng = np.random.default_rng(0)
        game = vzd.DoomGame()
        game.load_config(str(Path(vzd.scenarios_path) / f"{scenario}.cfg"))
        game.set_window_visible(False)
        game.set_screen_resolution(vzd.ScreenResolution.RES_160X120)
        game.set_screen_format(vzd.ScreenFormat.RGB24)
        game.set_mode(vzd.Mode.PLAYER)
        game.set_seed(0)
        game.init()
        buttons = game.get_available_buttons_size()
        recorded, goes_on = [], []
        for _ in range(EPISODES):
            game.new_episode()
            frames, same = [], []
            fresh = True
            while len(frames) < FRAMES:
                if game.is_episode_finished():
                    game.new_episode()
                    fresh = True
                screen = game.get_state().screen_buffer[:, 20:140].reshape(60, 2, 60, 2, 3).mean((1, 3))
                frames.append(np.pad(screen, ((2, 2), (2, 2), (0, 0)), mode="edge").round().astype(np.uint8))
                same.append(not fresh)
                fresh = False
                game.make_action((rng.random(buttons) < 0.35).astype(int).tolist(), APART)
            recorded.append(np.stack(frames))
            goes_on.append(np.array(same))
        game.close()
        path = Path(sys.argv[1]) / f"{scenario}.npz"
        np.savez_compressed(path, frames=np.stack(recorded), goes_on=np.stack(goes_on))
        print(f"recorded {scenario}", flush=True)


if __name__ == "__main__":
    main()
