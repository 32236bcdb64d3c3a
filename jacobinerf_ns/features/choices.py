"""The teachers to choose from on the command line: sub-commands `dino`, `handcrafted`, `surfaces`, …"""

import tyro

from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.handcrafted import HandcraftedConfig
from jacobinerf_ns.features.oracle import OracleConfig
from jacobinerf_ns.features.precomputed import PrecomputedConfig
from jacobinerf_ns.features.surfaces import SurfacesConfig

ExtractorConfig = DinoConfig | HandcraftedConfig | PrecomputedConfig | OracleConfig | SurfacesConfig

AnnotatedExtractorUnion = tyro.conf.OmitSubcommandPrefixes[
    tyro.extras.subcommand_type_from_defaults(
        {
            "dino": DinoConfig(),
            "handcrafted": HandcraftedConfig(),
            "surfaces": SurfacesConfig(),
            "precomputed": PrecomputedConfig(),
            "oracle": OracleConfig(),
        },
        prefix_names=False,
    )
]
"""Union of the extractor configs for fields of configs; one may follow the method's name, before the dataparser's."""
