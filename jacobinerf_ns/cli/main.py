"""The `jacobinerf` command."""

import warnings

import tyro

from jacobinerf_ns.cli.annotate import Annotate
from jacobinerf_ns.cli.check import Check
from jacobinerf_ns.cli.demo import Demo
from jacobinerf_ns.cli.distil import Distil
from jacobinerf_ns.cli.evaluate import Evaluate
from jacobinerf_ns.cli.exchange import ExportSeeds, Import
from jacobinerf_ns.cli.export import Export
from jacobinerf_ns.cli.features import Features
from jacobinerf_ns.cli.propagate import Propagate
from jacobinerf_ns.cli.query import Query
from jacobinerf_ns.cli.transfer import Transfer
from jacobinerf_ns.compat.quick_end import end_quickly
from jacobinerf_ns.errors import one_line_exit

COMMANDS = {
    "demo": Demo,
    "check": Check,
    "features": Features,
    "annotate": Annotate,
    "propagate": Propagate,
    "export": Export,
    "evaluate": Evaluate,
    "distil": Distil,
    "query": Query,
    "transfer": Transfer,
    "import": Import,
    "export-seeds": ExportSeeds,
}


def entrypoint() -> None:
    """Parse the command line and run the command; bad input ends in one line and exit code 2."""
    end_quickly()
    # Deprecations inside libraries are no news to their users, and would bury the progress bars.
    warnings.filterwarnings("ignore", module=r"(nerfstudio|torch|torchmetrics)\.")
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        description="JacobiNeRF: train a radiance field once, click once, get the whole entity in every view.",
    )
    with one_line_exit():
        command.main()
