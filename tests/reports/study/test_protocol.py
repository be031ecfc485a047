"""The protocol of a study is read whole, and what is wrong in it is named."""

import pytest
import yaml

from paths import CONF, ROOT
from sftmix.errors import InputError
from sftmix.reports.study.protocol import Contrast, Measure, read_protocol

WRITTEN = {
    "title": "Does it help?",
    "seeds": {"tiny": [0, 1, 2]},
    "margins": {"tiny": 0.1},
    "arms": {"study": {"sftmix": "recipe=sftmix", "ntp": "recipe=ntp"}},
    "claims": [
        {
            "claim": "effect",
            "a": "sftmix",
            "b": "ntp",
            "primary": "held-out loss",
            "others": ["gap, confident", {"a": "ntp", "b": "sftmix", "measure": "lima: Brier"}],
            "void_below": {"arm": "ntp", "gap": 0.05},
            "only_if_lower": "held-out loss, confident",
        }
    ],
}


def read(tmp_path, **changed):
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump({**WRITTEN, **changed}))
    return read_protocol(file)


def test_a_protocol_is_read(tmp_path):
    protocol = read(tmp_path, mu={0: "ntp", 0.2: "sftmix"})
    (claim,) = protocol.claims
    assert claim.primary == Contrast("sftmix", "ntp", Measure("held-out loss"))
    assert claim.others == (
        Contrast("sftmix", "ntp", Measure("gap", "confident")),
        Contrast("ntp", "sftmix", Measure("Brier", set="lima")),
    )
    assert (claim.void_arm, claim.void_below) == ("ntp", 0.05)
    assert claim.only_if_lower == Contrast("sftmix", "ntp", Measure("held-out loss", "confident"))
    assert protocol.arms == {"sftmix": ("study", "recipe=sftmix"), "ntp": ("study", "recipe=ntp")}
    assert protocol.mu == {0.0: "ntp", 0.2: "sftmix"}


def claim(**changed):
    return {"claims": [{**WRITTEN["claims"][0], **changed}]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"margin": 1}, r"no such key margin, expected arms, claims"),
        ({"margins": {"tiny": 0}}, r"margins\.tiny=0: expected a number above 0"),
        ({"margins": {"tiny": True}}, r"margins\.tiny=True: expected a number above 0"),
        ({"margins": {"tiny": "x"}}, r"margins\.tiny=x: expected a number above 0"),
        ({"seeds": {"tiny": 3}}, r"seeds\.tiny=3: expected a list of at least 2 different seeds"),
        ({"seeds": {"tiny": [0, 0]}}, r"seeds\.tiny=\[0, 0\]: expected a list"),
        ({"seeds": {"tiny": [True, 1]}}, r"expected a list of at least 2 different seeds"),
        ({"margins": {"other": 0.1}}, r"margins and seeds name different models"),
        ({"mu": {"x": "ntp"}}, r"mu=x: expected a number of at least 0"),
        ({"mu": {0: "other"}}, r"mu\.0: no arm other, expected one of ntp, sftmix"),
        ({"arms": ["sftmix"]}, r"arms: expected a mapping, received list"),
        ({"claims": {}}, r"claims: expected a list"),
        (claim(a="other"), r"claim 1, a: no arm other"),
        (claim(primary="loss"), r"claim 1: measure loss: expected held-out loss, training loss, gap"),
        (claim(primary="gap, middle"), r"measure gap, middle: expected"),
        (claim(primary="lima: loss"), r"measure lima: loss: expected"),
        (claim(others=[{"measure": "gap", "c": 1}]), r"claim 1, others: no such key c"),
        (claim(void_below={"arm": "ntp"}), r"claim 1, void_below: lacks gap"),
        (claim(primary=None), r"measure None: expected"),
    ],
)
def test_what_is_wrong_in_a_protocol_is_named(changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, **changed)


def test_a_file_that_is_no_protocol_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_protocol(tmp_path / "none.yaml")
    for content, message in (
        ("{", "not a YAML file"),
        ("[1]", "expected a mapping"),
        ("title: x", "lacks arms, claims"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(InputError, match=message):
            read_protocol(tmp_path / "bad.yaml")


def test_the_protocols_of_the_records_can_be_read_and_name_rows_of_ablations():
    files = list((ROOT / "experiments").glob("*/protocol*.yaml"))
    assert files
    for file in files:
        for ablation, overrides in read_protocol(file).arms.values():
            rows = yaml.safe_load((CONF / "ablation" / f"{ablation}.yaml").read_text())["hydra"]["sweeper"]["runs"]
            assert overrides in [" ".join(row) for row in rows]
