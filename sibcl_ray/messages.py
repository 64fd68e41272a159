"""Messages in one line, with advice, and without passwords, tokens and keys: in doubt `redact` takes out too much."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 8  # characters; shorter values of variables are words that occur by chance

SECRET_VARIABLE = re.compile("TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_KEY|ACCESS_KEY", re.IGNORECASE)

# Also inside longer names, such as sslpassword, X-Amz-Signature or AWS_SECRET_ACCESS_KEY.
_NAME = (
    r"(?<![\w.-])[\w.-]*(?:passw(?:or)?d|passphrase|pwd|token|secret|signature|credential"
    r"|(?:api|access|account|private)[_-]?key)[\w.-]*"
)
_VALUE = r"""(?P<value>'[^']*'|"[^"]*"|[^\s&]+)"""

_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # In URLs. A user without a password, or with a very long name, is a token. Some programs understand passwords
        # with unescaped @, : and /, so a password goes on to the last @ there is.
        r"(?P<kept>://)(?P<value>[^\s:/?#@]{20,}|[^\s:/?#@]+(?=:x-oauth-basic@))(?=:\S*@)",
        r"(?P<kept>://[^\s:/?#]*:)(?P<value>\S*)(?=@)",
        r"(?P<kept>://)(?P<value>[^\s:/?#@]+)(?=@)",
        r"(?P<kept>[?&;](?:key|sig|auth|code|pass)=)(?P<value>[^\s&#]+)",
        # Named elsewhere: connection strings, assignments, mappings, headers.
        rf"(?P<kept>{_NAME}[ ]?=[ ]?){_VALUE}",
        rf"""(?P<kept>['"]{_NAME}['"]\s*:\s*){_VALUE}""",
        r"""(?P<kept>\bauthorization['"]?\s*[:=]\s*['"]?(?:(?:basic|bearer|digest|token)\s+)?)(?P<value>[^\s'"]+)""",
        # Known by their form; the last is a JSON web token.
        r"(?P<kept>\bbearer\s+)(?P<value>[\w.~+/=-]{20,})",
        r"(?P<kept>\b)(?P<value>(?:AKIA|ASIA)[A-Z0-9]{16}|dapi[0-9a-f]{32}|gh[a-z]_\w{20,}|github_pat_\w{20,})",
        r"(?P<kept>\b)(?P<value>eyJ[\w-]+\.eyJ[\w-]+\.[\w-]*)",
    )
)


def one_line(text: object, longest: int | None = None) -> str:
    """The text, or that of an error, without line breaks, cut after ``longest`` characters."""
    return " ".join(str(text).split())[:longest]


def _closest(name: str, known: Iterable[str]) -> str | None:
    spelled = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
    return spelled[near[0]] if near else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice on a name that is not among those known."""
    known = list(known)
    if near := _closest(name, known):
        return f"did you mean {near!r}?"
    listed = ", ".join(map(repr, known[:12])) + (", …" if len(known) > 12 else "")
    return f"there is {listed}" if known else "there is nothing"


def choose(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """The value of a name; ValueError, with the names there are, if it is none of them."""
    if name in known:
        return known[name]
    hint = f"; did you mean {near}?" if (near := _closest(name, known)) else ""
    raise ValueError(f"there is no {kind} {name!r}{hint} (known: {', '.join(known)})")


def duration(seconds: float) -> str:
    """Seconds in words, to about two digits."""
    units = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((u for u in units if seconds >= 2 * u[0]), units[-1])
    return f"{seconds / size:.0f} {unit}"


def redact(text: str) -> str:
    """`text` with every recognisable secret replaced by `***`.

    These are: passwords and tokens in URLs; values named password, token, secret, signature and the like in queries,
    connection strings and mappings; Authorization headers; access keys of AWS and well-known tokens, by their form; and
    the values, of at least 8 characters, of this process's environment variables with a secret's name.
    """
    secrets = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST}
    secrets |= {quote(value, safe="") for value in secrets}  # as URLs have them
    for value in sorted(secrets, key=lambda value: (-len(value), value)):  # as one may contain another
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(_hide, text)
    return text


def _hide(match: re.Match[str]) -> str:
    value = match["value"]
    quotation = value[0] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else ""
    return match["kept"] + quotation + HIDDEN + quotation
