"""The offline engine of vLLM, by a stand-in with the signatures of vLLM 0.32: vLLM itself needs a GPU."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.generators import vllm as vllm_generator
from sftmix.evaluation.generators.answering import Prompt, answer_all
from sftmix.evaluation.generators.hf import HFGenerator
from sftmix.evaluation.generators.server import ServerGenerator
from sftmix.evaluation.generators.vllm import VLLMGenerator
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.model_pool import ModelPool
from sftmix.models.generation import generate_batch
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LLM_ARGUMENTS = """model runner convert tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code
    allowed_local_media_path allowed_media_domains tensor_parallel_size dtype quantization revision tokenizer_revision
    chat_template seed gpu_memory_utilization cpu_offload_gb offload_group_size offload_num_in_group
    offload_prefetch_step offload_params enforce_eager enable_return_routed_experts return_sampling_mask
    disable_custom_all_reduce hf_token hf_overrides mm_processor_kwargs pooler_config structured_outputs_config
    profiler_config attention_config kv_cache_memory_bytes compilation_config quantization_config logits_processors
    spec_method spec_model spec_tokens""".split()
ENGINE_ARGUMENTS = """max_model_len generation_config disable_log_stats max_num_seqs enable_prefix_caching
    distributed_executor_backend""".split()  # a part of EngineArgs, which LLM takes by **kwargs
SAMPLING_PARAMETERS = """n presence_penalty frequency_penalty repetition_penalty temperature watermarking top_p top_k
    min_p seed stop stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids
    prompt_logprob_start logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output output_kind stream_interval skip_clone structured_outputs logit_bias allowed_token_ids
    extra_args bad_words skip_reading_prefix_cache thinking_token_budget repetition_detection
    routed_experts_prompt_start trace_decode_token_ids""".split()
PROMPT_KEYS = ["prompt_token_ids", "prompt", "token_type_ids", "prompt_token_offsets", "multi_modal_data", "cache_salt"]


class StandIn(ModuleType):
    """The part of vLLM that is used. Greedy answers are those of transformers; unknown keywords are refused."""

    def __init__(self, causal_lm):
        super().__init__("vllm")
        self.causal_lm = causal_lm
        self.engines, self.calls, self.ended = [], [], 0
        self.fails, self.finish = None, None

    def SamplingParams(self, **given):
        assert given.keys() <= set(SAMPLING_PARAMETERS)
        return SimpleNamespace(**given)

    def LLM(self, model, **given):
        assert given.keys() <= {*LLM_ARGUMENTS, *ENGINE_ARGUMENTS}
        if self.fails == "load":
            raise ValueError("Free memory is less than desired GPU memory utilization\nmore")
        self.engines.append({"model": model, **given})
        core = SimpleNamespace(shutdown=self._shut_down)
        return SimpleNamespace(generate=self._generate, llm_engine=SimpleNamespace(engine_core=core))

    def _shut_down(self, timeout=None):
        self.ended += 1

    def _generate(
        self,
        prompts,
        sampling_params=None,
        *,
        use_tqdm=True,
        lora_request=None,
        priority=None,
        tokenization_kwargs=None,
        mm_processor_kwargs=None,
    ):
        assert not use_tqdm
        assert all(prompt.keys() <= set(PROMPT_KEYS) for prompt in prompts)
        if self.fails == "generate" and self.calls:
            raise RuntimeError("EngineCore encountered an issue")
        self.calls.append((prompts, sampling_params))
        return [self._continued(*both) for both in zip(prompts, sampling_params, strict=True)]

    def _continued(self, prompt, parameters):
        settings = {"stop_ids": parameters.stop_token_ids, "max_new_tokens": parameters.max_tokens}
        [(ids, finish)] = generate_batch(self.causal_lm, [prompt["prompt_token_ids"]], **settings)
        ids = [*ids, parameters.stop_token_ids[0]] if finish == "stop" else ids  # vLLM returns the end token too
        output = SimpleNamespace(token_ids=tuple(ids), finish_reason=self.finish or finish, text="")
        return SimpleNamespace(outputs=[output])


@pytest.fixture(scope="module")
def stories(shared):
    folder = str(shared / "models" / "stories260K")
    return load_causal_lm(folder, None).eval(), load_tokenizer(folder, None, None)


@pytest.fixture
def engine(stories, monkeypatch):
    standin = StandIn(stories[0])
    monkeypatch.setitem(sys.modules, "vllm", standin)
    monkeypatch.setattr(vllm_generator, "version", lambda _: "0.32.0")
    monkeypatch.setattr(vllm_generator, "CHUNK", 3)
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    return standin


def generator_of(stories, **changes):
    settings = {"seed": 0, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.8, "max_model_len": None} | changes
    return VLLMGenerator(ModelPool.holding(*stories), identity="stories", template_name="chatml", **settings)


def asked(number, temperature=0.0, text="Once upon a time"):
    turns = [(Message("user", text + " and then" * k),) for k in range(number)]
    return [Prompt(f"question {k}", 1, 1, turn, temperature, 24) for k, turn in enumerate(turns)]


def in_order(found):
    answers = dict(found)
    return [answers[k] for k in range(len(answers))]


def test_prompts_and_greedy_answers_are_those_of_transformers(stories, engine):
    long = Prompt("long", 1, 1, (Message("user", "why " * 600),), 0.0, 24)
    prompts = [*asked(7), long]
    generator = generator_of(stories)
    assert engine.engines == [], "the engine starts with the first prompt"
    whole = HFGenerator(ModelPool.holding(*stories), identity="stories", template_name="chatml", seed=0, batch_size=4)
    [period] = stories[1].encode(".", add_special_tokens=False)[-1:]
    generator.prompts.stop_ids = whole.prompts.stop_ids = [*whole.prompts.stop_ids, period]
    answers = in_order(generator.generate(prompts))
    assert answers == in_order(whole.generate(prompts))
    assert {answer.finish for answer in answers} == {"stop", "length"}
    [arguments] = engine.engines
    assert arguments["max_model_len"] == 512
    assert arguments["generation_config"] == "vllm"
    assert arguments["tensor_parallel_size"] == 2
    assert not arguments.get("trust_remote_code")
    assert [len(prompts) for prompts, _ in engine.calls] == [3, 3, 1], "a prompt without room is not asked"
    assert {p.temperature for _, parameters in engine.calls for p in parameters} == {0.0}


def test_seeds_depend_on_the_prompt_only_and_are_those_sent_to_a_server(stories, engine):
    prompts = asked(4, temperature=0.7)
    list(generator_of(stories).generate(prompts))
    list(generator_of(stories, seed=1).generate(prompts[::-1]))
    parameters = [p for _, parameters in engine.calls for p in parameters]
    server = ServerGenerator(
        Server("", "m", "http://localhost:1/v1", None, concurrency=1, max_retries=0, timeout=1), identity=None, seed=0
    )
    assert [p.seed for p in parameters[:4]] == [server._request(prompt).seed for prompt in prompts]
    assert len({p.seed for p in parameters}) == 8
    assert {p.temperature for p in parameters} == {0.7}


def test_a_kill_keeps_the_chunks_that_are_finished(stories, engine, tmp_path):
    engine.fails = "generate"
    with pytest.raises(InputError, match=r"^generate=vllm: EngineCore .* issue; answers so far are kept$"):
        answer_all(asked(5), generator_of(stories), tmp_path, title="", show_progress=False)
    engine.fails = None
    answers = answer_all(asked(5), generator_of(stories), tmp_path, title="", show_progress=False)
    assert len(answers) == 5
    assert [len(prompts) for prompts, _ in engine.calls] == [3, 2]


def test_settings_differ_by_version_and_limit(stories, engine, monkeypatch):
    first = generator_of(stories).settings
    assert first["vllm"] == "0.32.0"
    assert first == generator_of(stories, gpu_memory_utilization=0.5).settings
    monkeypatch.setattr(vllm_generator, "version", lambda _: "0.33.0")
    assert generator_of(stories).settings != first
    assert generator_of(stories, max_model_len=256).prompts.num_positions == 256
    assert generator_of(stories, max_model_len=4096).prompts.num_positions == 512


def test_what_vllm_cannot_do_is_one_line(stories, engine):
    engine.fails = "load"
    with pytest.raises(InputError, match=r"vLLM cannot load .*\(Free memory is less than .* utilization\)$"):
        list(generator_of(stories).generate(asked(1)))
    engine.fails, engine.finish = None, "abort"
    with pytest.raises(InputError, match="an answer ended by abort, expected stop or length"):
        list(generator_of(stories).generate(asked(1)))


def test_the_engine_ends_before_another_model_is_loaded(stories, engine):
    generator = generator_of(stories)
    generator.close()
    assert engine.ended == 0
    for number in (1, 2):
        list(generator.generate(asked(1)))
        generator.close()
        assert engine.ended == len(engine.engines) == number


def test_only_an_end_token_is_removed_from_an_answer(stories, engine):
    generator = generator_of(stories)
    end = generator.prompts.stop_ids[0]
    assert end not in (5, 6)
    assert generator._without_end([5, end], "stop") == ([5], "stop")
    assert generator._without_end([5, 6], "stop") == ([5, 6], "stop")
    assert generator._without_end([], "stop") == ([], "stop")
