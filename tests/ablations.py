"""The runs of the file of an ablation, as the sweeper receives them."""

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from paths import CONF
from sftmix.sweep.jobs import expand

ABLATIONS = sorted(file.stem for file in (CONF / "ablation").glob("*.yaml") if file.stem != "none")


def runs_of(name, *arguments):
    """What Hydra would hand to the sweeper, expanded."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [f"ablation={name}", *arguments], return_hydra_config=True)
    sweeper = OmegaConf.to_container(cfg.hydra.sweeper)
    assert (cfg.hydra.mode.name, sweeper["_target_"]) == ("MULTIRUN", "hydra_plugins.sftmix_sweeper.SFTMixSweeper")
    parse = OverridesParser.create().parse_overrides
    return expand([f"ablation={name}", *arguments], sweeper["params"] or {}, sweeper["runs"] or [], parse)
