"""Peak memory of one GPU in training and in scoring: the maximum over a few instants, in bytes, without torch.

The formulas add up the tensors that are alive at each instant of a step of `SFTMixModule` in bfloat16 with float32
weights, gradients and moments, while a weight is gathered for an export, and while a batch is scored.
`tests/simulated_gpu` compares them with steps of the program on simulated GPUs. What a GPU holds besides is not
counted: the context of CUDA (about 0.5 GiB), buffers of NCCL, and gaps between allocations.

In the formulas, P is the number of parameters, B that of one block, E that of the embeddings (or the head), L the
number of blocks, T the tokens of a micro-batch, and d the width of a hidden state.
"""

from dataclasses import dataclass

from sftmix.estimate.shape import ModelShape

GIB = 2**30
BLOCK, SCALES_BLOCK = 64, 256  # Of NF4: values that share a scale of one byte, and scales that share a scale of four
CHUNK_BYTES = 2**29  # Logits of a chunk of the fused loss on a GPU


@dataclass(frozen=True)
class TrainingSetup:
    """What the memory of a rank depends on beside the model."""

    strategy: str  # single, ddp or fsdp
    num_ranks: int
    tokens: int  # Tokens of the largest micro-batch of a rank
    has_mask: bool = False  # Whether attention reads a mask over packed sequences: sdpa does, flash attention does not
    checkpoints_activations: bool = False
    has_micro_batches: bool = False  # Whether a step has several micro-batches
    accumulates_whole: bool = True
    response_share: float = 0.5  # Share of the tokens that carry loss
    lora_rank: int | None = None  # Adapters on all linear layers of the blocks
    is_quantized: bool = False  # Whether the weights under the adapters are in NF4


def quantized_bytes(count: int) -> float:
    """Return the bytes of a weight of `count` values in NF4 with double quantization: 4.127 bits a value."""
    scales = -(-count // BLOCK)
    return -(-count // 2) + scales + 4.0 * -(-scales // SCALES_BLOCK)


def _num_trained(shape: ModelShape, setup: TrainingSetup) -> int:
    return shape.num_parameters if setup.lora_rank is None else shape.lora_parameters(setup.lora_rank)


def _shards(setup: TrainingSetup) -> int:
    return setup.num_ranks if setup.strategy == "fsdp" else 1


def weight_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """Return the bytes of the weights of a rank, which are all that a rank holds between two batches of scoring."""
    if setup.lora_rank is None:
        whole = 4.0 * shape.num_parameters
    else:  # frozen linear layers of the blocks in bfloat16 or quantized, embeddings and norms in float32
        in_half = shape.layers * shape.linear_parameters
        whole = 2.0 * in_half + 4.0 * (shape.num_parameters - in_half + shape.lora_parameters(setup.lora_rank))
        if setup.is_quantized:
            saved = sum(2.0 * count - quantized_bytes(count) for count in shape.linear_weights)
            whole -= shape.layers * saved
    return whole / _shards(setup)


def state_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """Return the bytes of a rank between two steps: weights and moments, and with DDP the buckets of the gradients."""
    trained = _num_trained(shape, setup)
    return weight_bytes(shape, setup) + 8.0 * trained / _shards(setup) + (4.0 * trained if _is_ddp(setup) else 0.0)


def _is_ddp(setup: TrainingSetup) -> bool:
    return setup.strategy == "ddp"


def peak_bytes(shape: ModelShape, setup: TrainingSetup) -> dict[str, float]:
    """Return the bytes that are alive at each instant of training. The largest is the peak.

    Instants after the backward pass: the optimizer's step, and the gathering of the largest weight for an export, which
    is converted on the GPU before it is copied to the host. Training states are copied to the host shard by shard.
    """
    instants = _sharded(shape, setup) if setup.strategy == "fsdp" else _whole(shape, setup)
    trained = _num_trained(shape, setup)
    after = state_bytes(shape, setup) + (0.0 if _is_ddp(setup) else 4.0 * trained / _shards(setup))
    gathered = 4 if setup.strategy == "fsdp" else 0
    largest = shape.embedding_parameters if setup.lora_rank is None else 0  # adapters are small
    return instants | {"optimizer": after, "export": after + (gathered + 2) * largest}


def scoring_bytes(shape: ModelShape, setup: TrainingSetup) -> dict[str, float]:
    """Return the bytes that are alive at each instant of a batch that is scored. The largest is the peak.

    Args:
        setup: As in training. `tokens` are those of the largest batch.
    """
    d, ff, q, kv, tokens = shape.hidden, shape.feed_forward, shape.query, shape.key, setup.tokens
    rows = int(tokens * setup.response_share)
    chunk = 4 * shape.vocab * -(-rows // _num_chunks(shape, rows))
    mask = tokens * tokens if setup.has_mask else 0
    biased = 4 * mask  # a copy of the mask in bfloat16, while attention reads the mask
    always, ids = weight_bytes(shape, setup), 8 * shape.head_dim + 32
    is_lora = setup.lora_rank is not None
    if setup.strategy == "fsdp":
        root, block = shape.root_parameters, shape.block_parameters
        wide = 8 if is_lora else 6
        body = always + 2 * root + 4 * block  # this block and the next one
        attention = body + tokens * (6 * d + 6 * q + 4 * kv + ids) + biased
        return {
            "gather": body + 2 * root + 2 * tokens * d + mask,
            "feed-forward": body + tokens * (8 * d + wide * ff + ids) + mask,
            "attention": attention if mask else 0.0,
            "loss": always + 2 * root + 2 * block + 2 * rows * d + chunk,
        }
    wide = 18 * d + 8 * ff if is_lora else 16 * d + 6 * ff
    attention = always + tokens * (12 * d + 12 * q + 14 * kv + ids) + biased
    return {
        "feed-forward": always + tokens * (wide + ids) + mask,
        "attention": attention if mask else 0.0,
        "loss": always + 2 * shape.embedding_parameters + 4 * rows * d + chunk,
    }


def _num_chunks(shape: ModelShape, rows: int) -> int:
    return max(1, -(-rows // max(8, CHUNK_BYTES // (4 * shape.vocab))))


def _loss_chunk(shape: ModelShape, setup: TrainingSetup) -> float:
    """Return the bytes of a chunk of logits in float32, and of their gradient in bfloat16."""
    rows = int(setup.tokens * setup.response_share)
    chunk = max(8, CHUNK_BYTES // (4 * shape.vocab))
    return min(rows, chunk + 2) * shape.vocab * 4 + -(-rows // _num_chunks(shape, rows)) * shape.vocab * 2


def _attention_and_feed_forward(shape: ModelShape, setup: TrainingSetup) -> float:
    """Return the bytes of a block beside its norms that a token keeps for the backward pass, in bfloat16."""
    keys = 4 * (shape.query if setup.has_mask else shape.key)  # with a mask, keys and values are repeated for each head
    mask = 2 * setup.tokens if setup.has_mask else 0
    return 4 * shape.query + keys + 8 * shape.feed_forward + 4 * shape.heads + mask


def _sharded(shape: ModelShape, setup: TrainingSetup) -> dict[str, float]:
    """FSDP2: the blocks of all ranks are gathered one after the other, in bfloat16."""
    d, layers, tokens, ranks = shape.hidden, shape.layers, setup.tokens, setup.num_ranks
    block, root = shape.block_parameters, shape.root_parameters
    rows = int(tokens * setup.response_share)
    is_lora = setup.lora_rank is not None
    per_token = (12 * d if is_lora else 16 * d) + _attention_and_feed_forward(shape, setup)
    kept = tokens * (2 * d if setup.checkpoints_activations else per_token)  # of a block
    again = tokens * (per_token + 12 * d) if setup.checkpoints_activations else 0  # computed again in the backward pass
    trained = _num_trained(shape, setup)
    head = 0 if is_lora else shape.embedding_parameters  # what has a gradient in float32
    before, of_block = 0.0, 0.0 if is_lora else 4.0 * block  # gradients of earlier micro-batches, room for a block's
    if setup.has_micro_batches:
        before = 4.0 * trained / (1 if setup.accumulates_whole else ranks)
        of_block = 0.0 if setup.accumulates_whole else of_block
    always = state_bytes(shape, setup) + before
    body = 2 * root + 10 * tokens * d + (tokens * tokens if setup.has_mask else 0)
    gathered = 4 * block  # this block and the next one
    loss = always + layers * kept + body + 4 * head + _loss_chunk(shape, setup) + 8 * rows * d + gathered
    after_loss = always + layers * kept + body + 6 * head + 6 * rows * d + gathered
    tail = always + 2 * root + 2 * head
    temporary = 8 * shape.feed_forward * tokens
    first = tail + layers * kept + again + 2 * block + of_block + temporary
    reduced = 0 if setup.has_micro_batches or is_lora else 4 * block / ranks  # gradient of a block that is finished
    later = max(
        tail
        + (layers - done) * kept
        + done * reduced
        + max(4 * block + of_block + temporary + again, 6 * block + of_block)
        for done in range(1, layers)
    )
    whole = min(before, 4.0 * head) if setup.accumulates_whole else 0.0  # gradients that are not reduced yet
    end = always - before + whole + (0 if is_lora else 4 * layers * block / ranks) + 6 * root
    return {"loss": loss, "head": after_loss, "first block": first, "later blocks": later, "reduce-scatter": end}


def _whole(shape: ModelShape, setup: TrainingSetup) -> dict[str, float]:
    """One process, or DDP: weights in float32, computation under autocast, which keeps the casts of trained weights."""
    d, layers, tokens = shape.hidden, shape.layers, setup.tokens
    embedding, feed_forward = shape.embedding_parameters, shape.feed_forward
    is_lora = setup.lora_rank is not None
    per_token = _attention_and_feed_forward(shape, setup) + (18 * d + 2 * shape.query if is_lora else 26 * d)
    kept = tokens * (4 * d if setup.checkpoints_activations else per_token)
    again = tokens * per_token if setup.checkpoints_activations else 0
    state = state_bytes(shape, setup)
    trained = _num_trained(shape, setup)
    casts = 0.0 if is_lora else 2.0 * layers * shape.block_parameters
    of_head = 2 * embedding if is_lora else 6 * embedding  # the cast of the head, and its gradient
    # under DDP too: without a reduction, gradients are not yet in the buckets, which are there all the time
    before = 4.0 * trained if setup.has_micro_batches else 0.0
    body = 28 * d * tokens
    always = state + before + casts
    loss = always + layers * kept + of_head + body + _loss_chunk(shape, setup)
    first = always + layers * kept + again + 8 * feed_forward * tokens
    if setup.is_quantized:
        first += 2.0 * max(shape.linear_weights)  # the weight that is dequantized
    if _is_ddp(setup) and not is_lora:  # finished gradients are in the buckets
        first += 2 * embedding + body + 4.0 * max(shape.linear_weights)
    elif not is_lora:
        first += of_head + body + (0.0 if before else 4.0 * shape.block_parameters)
    end = state + (0.0 if _is_ddp(setup) else 4.0 * trained) + (0 if setup.checkpoints_activations else casts)
    return {"loss": loss, "first block": first if setup.checkpoints_activations else 0.0, "clip": end}
