"""`jacobinerf demo`: the whole way once, on a room that this program makes itself."""

from dataclasses import dataclass, field
from pathlib import Path

from jacobinerf_ns.features.choices import AnnotatedExtractorUnion
from jacobinerf_ns.features.surfaces import SurfacesConfig


@dataclass
class Demo:
    """Make a small room, train and shape a field on it, and draw what one click each gets of three things."""

    output_dir: Path = Path("demo_output")
    """Folder for the room, the runs, the contact sheet and the numbers."""
    extractor: AnnotatedExtractorUnion = field(default_factory=SurfacesConfig)
    """Teacher. The default needs no download."""
    views: int = 48
    """Photographs of the room; every sixth is held out."""
    width: int = 96
    """Width of the photographs in pixels; the height is three quarters of it."""
    steps: int | None = None
    """Training steps (default: those of jacobinerf-lite); fewer make a quicker and worse demo."""
    seed: int = 42
    """Seed of the training."""

    def main(self) -> None:
        """Run it all, and say where the pictures are."""
        from jacobinerf_ns.demo.end_to_end import demo_config, make_room, run_demo

        room = make_room(self.output_dir.absolute(), self.views, self.width)
        run_demo(demo_config(self.extractor, self.steps, self.seed), room, self.output_dir.absolute())
