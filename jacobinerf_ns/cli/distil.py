"""`jacobinerf distil`: the teacher's features as a field in space, beside a trained run."""

from dataclasses import dataclass
from pathlib import Path

from jacobinerf_ns.progress import PlainConsole


@dataclass
class Distil:
    """Distil the teacher's features into a feature field on top of a trained run (DFF), for `jacobinerf query`.

    The run itself stays as it is.
    """

    load_config: Path
    """The run's config.yml. The feature field is written beside it, as feature_field.pt."""
    steps: int = 1000
    """Steps of the optimiser."""
    rays: int = 1024
    """Training pixels per step."""
    learning_rate: float = 1e-2
    """Of the optimiser at the start; it falls to a tenth."""
    pool: int = 131_072
    """Training pixels that the steps draw from. More take longer, and average out more of the teacher's noise."""
    max_res: int = 64
    """Cells of the feature field's finest grid along each axis; more for a teacher that sees fine detail."""
    seed: int = 0
    """Of pixels and weights."""
    overwrite: bool = False
    """Make it anew where there is one."""

    def main(self) -> Path:
        """Distils, and prints where the result is.

        Raises:
            UserError: bad input, in one line.
        """
        from jacobinerf_ns.errors import UserError
        from jacobinerf_ns.run.opened import open_run
        from jacobinerf_ns.tasks.feature_field.field import FeatureFieldShape
        from jacobinerf_ns.tasks.feature_field.files import feature_field_path, save_feature_field
        from jacobinerf_ns.tasks.feature_field.training import distil

        numbers = {"steps": self.steps, "rays": self.rays, "pool": self.pool}
        wrong = [name for name, value in numbers.items() if value < 1]
        if wrong:
            raise UserError(f"--{wrong[0]} {numbers[wrong[0]]} given, expected at least 1")
        shape = FeatureFieldShape(max_res=self.max_res)
        if self.max_res < shape.base_res:
            raise UserError(f"--max-res {self.max_res} given, expected at least {shape.base_res}")
        run = open_run(self.load_config, load_photos=True)
        path = feature_field_path(run)
        if path.exists() and not self.overwrite:
            raise UserError(f"{path} is there already: query it, or give --overwrite to make it anew")
        feature_field = distil(run.pipeline, self.steps, self.rays, self.learning_rate, self.pool, self.seed, shape)
        save_feature_field(run, feature_field, self.overwrite)
        console = PlainConsole()
        console.print(f"{feature_field.dims} dimensions distilled: {path}", soft_wrap=True, highlight=False)
        return path
