"""The teachers to choose from on the command line, each a sub-command: `dino`, `clip`, `handcrafted`, ..."""

import tyro

from jacobinerf_ns.features.clip import ClipConfig
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.features.surfaces import SurfacesConfig

ExtractorConfig = DinoConfig | ClipConfig | HandcraftedConfig | PrecomputedConfig | OracleConfig | SurfacesConfig

AnnotatedExtractorUnion = tyro.conf.OmitSubcommandPrefixes[
    tyro.extras.subcommand_type_from_defaults(
        {
            "dino": DinoConfig(),
            "clip": ClipConfig(),
            "handcrafted": HandcraftedConfig(),
            "surfaces": SurfacesConfig(),
            "precomputed": PrecomputedConfig(),
            "oracle": OracleConfig(),
        },
        prefix_names=False,
    )
]
"""Union of the extractor configs for fields of configs; one may follow the method's name, before the dataparser's."""
