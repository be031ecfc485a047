"""Five embedded two-turn questions with prompts of the judge, to try the suite without network or files."""

from sftmix.evaluation.mt_bench.questions import Bench, JudgePrompt, Question

_RATE = (
    "Rate the assistant's last answer with a number from 1 (useless) to 10 (could not be better). Say briefly why, "
    "then end with the number in double brackets, such as [[4]]."
)
_RIGHT = "A right answer is given for comparison; what differs from it in substance is wrong. "

QUESTIONS = (
    Question(1, "writing", ("Write two sentences about a cat in a garden.", "Now let it rain in them."), None),
    Question(2, "reasoning", ("The boat is bigger than the lamp. Which one is small?", "And which one is big?"),
             ("The lamp is the small one.", "The boat is the big one.")),
    Question(3, "math", ("Add 4 and 9.", "Add 5 to that."), ("4 and 9 make 13.", "13 and 5 make 18.")),
    Question(4, "extraction", ("Anna walks to the river. Who walks?", "Where does she walk to?"), None),
    Question(5, "roleplay", ("You are a clock in an old school. Say good morning.", "Say what you saw today."), None),
)  # fmt: skip

_TURN_1 = "Question:\n{question}\n\nThe assistant's answer:\n{answer}\n\n" + _RATE
_TURN_1_RIGHT = (
    "Question:\n{question}\n\nA right answer:\n{ref_answer_1}\n\nThe assistant's answer:\n{answer}\n\n" + _RIGHT + _RATE
)
_TURN_2 = "User:\n{question_1}\n\nAssistant:\n{answer_1}\n\nUser:\n{question_2}\n\nAssistant:\n{answer_2}"
_RIGHT_ONES = "First question:\n{question_1}\n\nA right answer:\n{ref_answer_1}\n\n" + (
    "Second question:\n{question_2}\n\nA right answer:\n{ref_answer_2}"
)
_TURN_2_RIGHT = f"{_RIGHT_ONES}\n\nThe assistant's answers:\n\n1.\n{{answer_1}}\n\n2.\n{{answer_2}}"

_TEMPLATES = (
    JudgePrompt("single-v1", "You judge answers.", _TURN_1),
    JudgePrompt("single-math-v1", "You judge answers.", _TURN_1_RIGHT),
    JudgePrompt("single-v1-multi-turn", f"You judge the end of a conversation. {_RATE}", _TURN_2),
    JudgePrompt("single-math-v1-multi-turn", f"You judge two answers. {_RIGHT}{_RATE}", _TURN_2_RIGHT),
)


def embedded_bench() -> Bench:
    """Return the embedded questions. No published score refers to them."""
    return Bench("demo", QUESTIONS, {template.name: template for template in _TEMPLATES}, {})
