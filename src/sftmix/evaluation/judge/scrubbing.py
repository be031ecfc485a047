"""Remove the secrets of a server (its key, and user, password and query of its address) from texts."""

import base64
import re
from collections.abc import Iterable, Mapping
from html import escape
from urllib.parse import parse_qsl, unquote, urlsplit

REPLACEMENT = "(the key)"
LEAST_CHARACTERS = 8  # of a secret that is removed wherever it occurs
LEAST_MIXED = 4  # of a shorter secret that is removed as a whole word, if it mixes letters with digits or signs
LEAST_FRAGMENT = 4  # characters of a token that is removed if it is a part of a secret
SHORTEST_WORD_KEY = 16  # letters: a shorter key of letters only is an ordinary word
# Keys in documentation of servers that require none. They are not secret, and some are ordinary words.
PLACEHOLDERS = frozenset(
    "anything dummy empty fake key lm-studio local no-key no-key-required none not-needed not-required null ollama "
    "password placeholder required secret sk-no-key-required sk-none test token unused whatever".split()
)


class Scrubber:
    """Replaces secrets in texts.

    Secrets are found literally, in another case, percent-encoded, with JSON or HTML escapes, and in base64. A short key
    such as `x`, or a placeholder such as `EMPTY`, does not count as a secret, since removing it would damage texts.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        given = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._long = [secret for secret in given if _is_long(secret)]
        words = [secret for secret in given if not _is_long(secret) and _is_mixed(secret)]
        patterns = [_spelled(secret) for secret in self._long]
        patterns += [form for secret in self._long for form in _in_base64(secret)]
        patterns += [rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
        self._pattern = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        return text if self._pattern is None else self._pattern.sub(REPLACEMENT, text)

    def tokens(self, logprobs: Mapping[str, float]) -> dict[str, float]:
        """Return log-probabilities by token without tokens that hold secrets or long parts of one.

        If the tokens spell a secret one after the other, every token of more than one character is removed.
        """
        if self._pattern is None:
            return dict(logprobs)
        is_spelled = self._pattern.search("".join(logprobs)) is not None
        found: dict[str, float] = {}
        for token, logprob in logprobs.items():
            word = token.strip()
            is_part = len(word) >= LEAST_FRAGMENT and any(word.lower() in secret.lower() for secret in self._long)
            kept = REPLACEMENT if is_part or (is_spelled and len(word) > 1) else self.text(token)
            found[kept] = max(logprob, found.get(kept, logprob))
        return found


def secrets_of(base_url: str | None, api_key: str | None) -> list[str]:
    """Return the secrets of a server: its key, and the user, password and query values of its address."""
    found = [api_key or ""]
    if base_url is not None:
        parts = urlsplit(base_url)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        pair = f"{unquote(user)}:{unquote(password)}" if password else ""
        found += [unquote(user) if not password else "", unquote(password), pair]
        found += [value for _, value in parse_qsl(parts.query)] + [parts.fragment]
    return found


def _is_long(secret: str) -> bool:
    if secret.lower() in PLACEHOLDERS or (secret.isalpha() and len(secret) < SHORTEST_WORD_KEY):
        return False
    return len(secret) >= LEAST_CHARACTERS


def _is_mixed(secret: str) -> bool:
    is_number = re.fullmatch(r"[\d.,:-]*", secret) is not None
    return len(secret) >= LEAST_MIXED and not (secret.isalpha() or is_number or secret.lower() in PLACEHOLDERS)


def _spelled(secret: str) -> str:
    """Return a pattern of the secret in which each character may be escaped as in a URL, in JSON or in HTML.

    The groups are atomic: no text is tried in several ways, so the time is linear.
    """
    return "".join(_character(run[0], len(run)) for run in re.findall(r"\\+|[^\\]", secret))


def _character(char: str, number: int) -> str:
    """Return a pattern of a character, or of a run of so many backslashes."""
    code = ord(char)
    forms = [rf"%(?:25)?{code:02x}", rf"\\{{1,4}}+u{code:04x}", rf"&#(?:0{{0,5}}{code}|x0{{0,4}}{code:x});"]
    if escape(char) != char:
        forms.append(re.escape(escape(char)))
    if char == "\\":
        return rf"(?>(?:{'|'.join(forms)}){{{number}}}|\\{{{number},{4 * number}}}+)"
    return rf"(?>{'|'.join(forms)}|\\{{0,3}}+{re.escape(char)})"


def _in_base64(secret: str) -> list[str]:
    """Return patterns of the secret in base64, at each of the three offsets within a longer text."""
    patterns = []
    for offset in range(3):
        content = b"\0" * offset + secret.encode()
        # The characters at both ends also depend on the neighbors of the secret.
        core = base64.b64encode(content)[(0, 2, 3)[offset] : len(content) * 8 // 6].decode()
        patterns.append(re.escape(core).replace(r"\+", r"(?:\+|-|%2b)").replace("/", r"(?:/|\\/|_|%2f)"))
    return patterns
