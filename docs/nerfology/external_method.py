"""The entry for nerfstudio's `nerfstudio/configs/external_methods.py`, ready to be sent.

`OWNER` is a placeholder: the project has no GitHub address yet. Everything between the two markers belongs
into that file, behind the last `external_methods.append(...)`; the import is there so that this file can be run.
"""

from nerfstudio.configs.external_methods import ExternalMethod, external_methods

# --8<-- [start:entry]
# JacobiNeRF
external_methods.append(
    ExternalMethod(
        """[bold yellow]JacobiNeRF[/bold yellow]
For more information visit: https://docs.nerf.studio/nerfology/methods/jacobinerf.html

To enable JacobiNeRF, you must install it first by running:
  [grey]pip install git+https://github.com/OWNER/jacobinerf-ns[/grey]""",
        configurations=[
            ("jacobinerf", "JacobiNeRF on nerfacto: click once, get the whole entity in every view"),
            ("jacobinerf-lite", "JacobiNeRF for CPUs and small GPUs: minutes on two cores"),
            ("jacobinerf-paper", "JacobiNeRF with the paper's schedule and loss"),
        ],
        pip_package="git+https://github.com/OWNER/jacobinerf-ns",
    )
)
# --8<-- [end:entry]
