"""A whole run: what it returns, and that it leaves no model in memory."""

import gc
import weakref

import pytest

from modules import TOTAL, small_data, small_module, small_settings
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.training.diagnostics import MixupDiagnostics
from sftmix.training.fit import fit


def run(folder):
    """Train to the end; return the result and weak references to the module, a weight and the data."""
    module, data = small_module(), small_data()
    settings = small_settings(folder, every=4, keep=1, log_every=2, callbacks=[MixupDiagnostics(2)])
    result = fit(module, data, settings, lambda _: None, SINGLE, StopRequest())
    return result, [weakref.ref(thing) for thing in (module, next(module.parameters()), data)]


@pytest.mark.parametrize("resumes", [False, True])
def test_a_model_is_freed_when_its_run_ends(tmp_path, resumes):
    """Without waiting for Python to look for reference cycles, for which a large model could wait long."""
    if resumes:
        run(tmp_path)
    gc.collect()
    gc.disable()
    try:
        result, references = run(tmp_path)
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()
    assert result.metrics["steps"] == TOTAL
    assert result.metrics["val_loss"] == pytest.approx(result.held_out.loss())
