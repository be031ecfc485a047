"""Shards of a model over ranks, and whole weights from them."""

import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from forked import run_ranks
from sftmix.distributed.sharding import shard, whole
from sftmix.models.export import whole_weights
from sftmix.models.language_model import SFTMixLM

# Two experts: of the weights of the routers, the third of three ranks holds nothing
CONFIG = {"num_local_experts": 2, "num_hidden_layers": 3, "vocab_size": 48, "hidden_size": 16, "intermediate_size": 16}


def mixtral():
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return AutoModelForCausalLM.from_config(MixtralConfig(**CONFIG, **heads, tie_word_embeddings=True))


def test_weights_of_which_a_rank_holds_nothing_are_gathered_by_all_ranks(tmp_path):
    expected = mixtral().state_dict()

    def gather(ranks):
        causal_lm = mixtral() if ranks.is_first else mixtral().to("meta")
        shard(SFTMixLM(causal_lm), torch.device("cpu"), bfloat16=False)
        gathered = []

        def gathers(tensor):
            gathered.append(tuple(tensor.shape))
            return whole(tensor)

        weights = whole_weights(causal_lm, "float32", gathers)
        equal = {name: torch.equal(weights[name], expected[name]) for name in expected}
        return [gathered, [name for name in expected if not equal[name]], sorted(weights)]

    found = run_ranks(3, gather, tmp_path)
    assert found == [found[0]] * 3
    shapes, wrong, names = found[0]
    assert wrong == []
    assert names == sorted(expected)
    assert len(shapes) == len(expected) - 1, "tied embeddings are gathered once"
