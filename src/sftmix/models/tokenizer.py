"""Load a tokenizer and choose its pad token."""

from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.hub import looks_local
from sftmix.models.loading import from_pretrained, num_embeddings

PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


def load_tokenizer(path: str, revision: str | None, pad_token: str | None) -> Any:
    """Return the tokenizer of a folder or hub id, with a pad token that has an embedding.

    Raises:
        InputError: If the tokenizer cannot be read or has no end token, or if `set_pad_token` refuses the pad token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = from_pretrained(AutoTokenizer, path, revision)
    except InputError as error:
        if not looks_local(path) or (Path(path).expanduser() / "tokenizer.json").is_file():
            raise
        raise InputError(
            f"{error}; there is no tokenizer.json in it: load the tokenizer with the package that made it and save it "
            f"again (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        ) from None
    if tokenizer.eos_token is None:
        raise InputError(f"model {path}: its tokenizer has no end token (eos_token)")
    set_pad_token(tokenizer, pad_token, num_embeddings(path, revision))
    tokenizer.padding_side = "right"
    return tokenizer


def set_pad_token(tokenizer: Any, pad_token: str | None, num_embeddings: int | None = None) -> None:
    """Give the tokenizer a pad token without growing its vocabulary.

    The first of these that has an embedding is used: the requested token, the tokenizer's own, one of the usual names,
    the unknown token, the end token. No loss is masked by token id, so the pad token may equal the end token. Padding
    passes through the model's embeddings, so a pad token that was added without resizing the model cannot be used.

    Raises:
        InputError: If the requested pad token is not in the vocabulary or has no embedding.
    """
    vocabulary = tokenizer.get_vocab()
    if pad_token is not None and pad_token not in vocabulary:
        raise InputError(f"model.pad_token={pad_token}: not in the tokenizer's vocabulary")
    if num_embeddings is not None:
        vocabulary = {token: i for token, i in vocabulary.items() if i < num_embeddings}
    if pad_token is not None and pad_token not in vocabulary:
        raise InputError(
            f"model.pad_token={pad_token}: its id is {tokenizer.convert_tokens_to_ids(pad_token)} and the model has "
            f"{num_embeddings:,} embeddings, expected a token with an embedding"
        )
    candidates = (pad_token, tokenizer.pad_token, *PAD_TOKENS, tokenizer.unk_token)
    tokenizer.pad_token = next((token for token in candidates if token in vocabulary), tokenizer.eos_token)
