"""What tests share: real files where they are there, a tiny tokenizer and model, small examples."""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported; idle OpenMP threads would slow other processes
if "PYTEST_XDIST_WORKER" in os.environ:  # one core for each process of `make test`, also for the processes of a test
    os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode

from paths import CONF, SHARED

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup; children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("same every time", derandomize=True, deadline=None, database=None, max_examples=150)
settings.load_profile("same every time")


@pytest.fixture(autouse=True)
def no_process_survives(monkeypatch):
    """Kill the Python processes that a test has started and not waited for, also when the test fails."""
    started: list[subprocess.Popen] = []
    init = subprocess.Popen.__init__

    def recorded(self, args, *rest, **more):
        if isinstance(args, (list, tuple)) and args[0] == sys.executable:
            started.append(self)
        init(self, args, *rest, **more)

    monkeypatch.setattr(subprocess.Popen, "__init__", recorded)
    yield
    for process in started:
        if getattr(process, "pid", None) is None:  # it could not be started
            continue
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data, models and tokenizers; tests that need them are skipped where they are absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real files: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def light_programs():
    """Runs programs that import nothing heavy, without the time of their imports."""
    from light import LightPrograms

    programs = LightPrograms()
    yield programs
    programs.close()


@pytest.fixture(scope="session")
def conf() -> Path:
    return CONF


@pytest.fixture
def tiny_tokenizer():
    from builders import new_tiny_tokenizer

    return new_tiny_tokenizer()


@pytest.fixture(scope="session")
def loaded_tokenizers() -> dict:
    """Tokenizers that were read, with their template and pad token: a large one takes seconds."""
    return {}


@pytest.fixture(params=["tiny", "gpt2", "mistral_v1", "stories260K", "smollm2", "gemma3"])
def any_tokenizer(request, loaded_tokenizers):
    """Every tokenizer at hand, as it was loaded, since tests set its template and pad token.

    Those of models that ../shared/models/get_real_model.py makes are found in the folder that SFTMIX_MODELS names.
    """
    if request.param == "tiny":
        return request.getfixturevalue("tiny_tokenizer")
    from sftmix.models.tokenizer import load_tokenizer

    if request.param in ("smollm2", "gemma3"):
        folder = Path(os.environ.get("SFTMIX_MODELS", "")) / request.param
        if not (folder / "tokenizer.json").is_file():
            pytest.skip(f"no {request.param}: SFTMIX_MODELS names no folder with it")
    else:
        root = request.getfixturevalue("shared")
        folder = root / ("models" if request.param == "stories260K" else "tokenizers") / request.param
    if request.param not in loaded_tokenizers:
        tokenizer = load_tokenizer(str(folder), None, None)
        loaded_tokenizers[request.param] = tokenizer, tokenizer.chat_template, tokenizer.pad_token
    tokenizer, tokenizer.chat_template, tokenizer.pad_token = loaded_tokenizers[request.param]
    return tokenizer


@pytest.fixture(scope="module")
def one_thread():
    """Compute with one thread: a second thread slows very small models down."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def compose(conf):
    """A function that composes and checks a configuration from command-line overrides."""
    import hydra

    from sftmix.config.load import from_hydra

    def composed(*overrides: str):
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            return from_hydra(hydra.compose("config", list(overrides)))

    return composed


@pytest.fixture(scope="session")
def compose_eval(conf):
    """A function that composes and checks a configuration of eval.py from command-line overrides."""
    import hydra

    from sftmix.config.load import typed
    from sftmix.evaluation.schema import schema_of

    def composed(*overrides: str):
        suite = next(override.partition("=")[2] for override in overrides if override.startswith("suite="))
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            return typed(hydra.compose("eval", list(overrides)), schema_of(suite))

    return composed


SMALL = (
    "data.demo.num_examples=120",
    "data.epochs=1",
    "data.num_checkpoints=2",
    "recipe.global_batch_size=16",
    "model.init.hidden_size=32",
    "model.init.vocab_size=400",
    "trainer=cpu",
    "trainer.progress_bar=false",
    "trainer.page=null",
    "trainer.curves=null",  # takes as long as a step; tests of the curves set it
)


@pytest.fixture(scope="session")
def small_overrides() -> tuple[str, ...]:
    """A run of seconds: the embedded model and data set, smaller."""
    return SMALL


@pytest.fixture(scope="session")
def small_run(compose, tmp_path_factory):
    """The three stages on a small embedded model, run once: (configuration, plan)."""
    from sftmix.stages.pipeline import run_pipeline

    config = compose(*SMALL, f"root={tmp_path_factory.mktemp('runs')}")
    return config, run_pipeline(config)


@pytest.fixture
def copy_of_run(small_run, tmp_path):
    """A copy of the root of `small_run`, which a test may change: (plan, root)."""
    config, plan = small_run
    shutil.copytree(config.root, tmp_path / "runs")
    return plan, tmp_path / "runs"


class Products(TorchDispatchMode):
    """Counts matrix products and keeps the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "bmm", "linear"):
            self.count += 1
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.untyped_storage().nbytes())
        return out


@pytest.fixture
def products_counter() -> type[Products]:
    """A context that counts matrix products and keeps the size of the largest tensor that is made."""
    return Products


@pytest.fixture
def run(compose, small_overrides, tmp_path, monkeypatch):
    """Run the pipeline in a root of its own, and handle signals as `train.py` does."""
    from sftmix.distributed.stopping import StopRequest
    from sftmix.stages import sample_answers
    from sftmix.stages.pipeline import run_pipeline

    monkeypatch.setattr(sample_answers, "ANSWERS", 1)  # each costs as much as a training step

    def ran(*overrides, root=tmp_path):
        config = compose(*small_overrides, f"root={root}", *overrides)
        with StopRequest(["SIGTERM", config.trainer.stop_signal]).listening():
            return run_pipeline(config)

    return ran
