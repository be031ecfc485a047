"""Examples of every kind, and encoders of a tokenizer and a template."""

from builders import encode_examples
from sftmix.data.census import Census
from sftmix.data.encoding import Encoder
from sftmix.data.example import Example, Message, content_id
from sftmix.data.templates import set_template, template_source


def example(instruction, response, given="", history=(), system=None):
    content = f"{instruction}\n\n{given}" if given else instruction
    messages = (
        *([Message("system", system)] if system else []),
        *(Message(*turn) for turn in history),
        Message("user", content, instruction, given),
    )
    identity = content_id(messages, response)
    return Example(identity, messages, response, "test", 1, "", identity)


EXAMPLES = [
    example("Say hello.", "Hello there!"),
    example("Translate.", "Ça va très bien, merci 😀", "I am very well"),
    example("List.", "\n- one\n- two\n"),
    example("Continue.", " with a blank in front"),
    example("Punctuate.", "...!"),
    example("Answer.", "42"),
    example("And then?", "Then it ends.", history=[("user", "Tell me."), ("assistant", "It begins.")]),
    example("Hi", "Yes.", system="Be brief."),
    example("Then?", "Yes.", system="Be brief.", history=[("system", "And kind.")]),
    example("Odd \x1b[31m?", "\u202eright to left\u202c, \x07 bell, \x1b[0m and\ttab"),
]


def encoder(tokenizer, template="alpaca", max_seq_len=4096, overlong="drop"):
    set_template(tokenizer, template_source(template))
    return Encoder(tokenizer, max_seq_len, overlong)


def encode(maker, *examples):
    census = Census()
    return encode_examples(maker, examples, census), census


def places(reasons):
    """Return the places of the examples of each reason."""
    return {reason: places.first for reason, places in reasons.items()}


def prompt_ids(tokenizer, case):
    """Return the token ids that transformers gives for generation."""
    turns = [m.as_dict() for m in case.messages]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
