"""The benchmark of the day that a GPU is there, at toy size on a CPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PARTS = ["steps, jit", "dino", "training", "click", "labels", "propagation", "steps, torch"]
sys.path.insert(0, str(BENCHMARKS))

import gpu_day  # noqa: E402  # pyright: ignore[reportMissingImports]
import step_worker  # noqa: E402  # pyright: ignore[reportMissingImports]


@pytest.mark.slow
def test_a_day_at_toy_size_measures_every_part_and_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gpu_day.GpuDay(output=tmp_path, toy=True).main()
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    parts = numbers["parts"]
    assert [name for name in parts if name != "steps, tcnn"] == PARTS
    assert not [part["error"] for part in parts.values() if "error" in part]
    assert parts["training"]["steps"] == 12
    assert {"psnr", "mean_click_miou"} <= parts["training"]["shaped"].keys()
    assert parts["steps, jit"]["on_over_off"] > 0
    assert parts["propagation"]["views"] >= 1
    assert (tmp_path / "contact_sheet.png").exists()
    page = (tmp_path / "numbers.md").read_text()
    assert all(f"**{name}**" in page for name in PARTS)

    done: list[str] = []

    def noted(name: str, *_: Any) -> dict[str, Any]:
        done.append(name)
        return {}

    monkeypatch.setattr(gpu_day, "measured", noted)
    numbers["parts"]["click"]["error"] = "broken"
    del numbers["parts"]["labels"]
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    gpu_day.GpuDay(output=tmp_path, toy=True).main()
    assert done == ["click", "labels"]


def test_a_part_that_fails_keeps_its_reason():
    def broken() -> dict[str, Any]:
        raise RuntimeError("out of luck")

    found = gpu_day.measured("broken", broken, "cpu")
    assert found["error"] == "RuntimeError: out of luck"
    assert found["peak_resident_gb"] > 0


@pytest.mark.slow
def test_timed_steps_are_the_trainer_s_own_with_the_lookup_of_features(tmp_path: Path):
    worker = step_worker.Worker("jacobinerf-lite", 1, tmp_path)
    asked, data = [], worker.trainer.pipeline.datamanager
    look_up = data._look_up
    data._look_up = lambda store, pixels: asked.append(len(pixels)) or look_up(store, pixels)
    assert worker.turn(32, shaped=False) > 0
    assert asked == []
    assert worker.turn(32, shaped=True) > 0
    assert asked == [32] * step_worker.STEPS
