"""A study in plain values: what options and a study.toml say of it."""

import json
import platform
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sibcl_ray.learning.networks import Architecture, Encoder, InvariantEncoder, PerceptronEncoder, ReferenceEncoder
from sibcl_ray.messages import choose, nearest, one_line
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.problem import Problem, feature_shape
from sibcl_ray.problems.tabulated.problem import Tabulated
from sibcl_ray.recipes import SCALES
from sibcl_ray.search.methods import METHODS
from sibcl_ray.study.study import Study
from sibcl_ray.user_module.loading import TABULATED, find

FILE = "study.toml"  # in the folder of each study that settings describe
VERSIONS = "versions"  # its table of what has made it, which is no setting
PACKAGES = ("sibcl-ray", "torch", "ray", "optuna")
RENAMED = {"seed": "data_seed", "seeds": "repeats"}  # settings by their names of before
ENCODERS: dict[str, type[Encoder]] = {
    "reference": ReferenceEncoder,
    "invariant": InvariantEncoder,
    "perceptron": PerceptronEncoder,
}
CHANNELS = {"smoke": 4, "quick": 16, "standard": 48, "paper": 48}  # of an invariant encoder where the scale has none
FIELDS = {"target": "pool", "repeats": "seeds"}  # of a study, by setting; other settings are called like them
SETTINGS = RENAMED | {field: name for name, field in FIELDS.items()}  # by a study's fields
COUNTS = ("target", "surrogate", "unlabelled", "test", "trials", "folds", "repeats")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A study in plain values; None is what the scale says.

    Args:
        problem: a name of `PROBLEMS`, ``FILE.py:CLASS`` or ``tabulated``, for which ``data`` is the folder.
        scale: a name of `SCALES`.
        methods: names of `METHODS`.
        encoders: names of `ENCODERS`, or ``invariant:1-2-4`` with its dilations.
        target: target labels that may be computed at most; the largest budget where no budgets are given.
        repeats: of every cell of the matrix.
        data_seed: another one draws other data.
    """

    problem: str
    data: str | None = None
    name: str | None = None
    scale: str = "quick"
    methods: tuple[str, ...] | None = None
    budgets: tuple[int, ...] | None = None
    searched: tuple[int, ...] | None = None
    encoders: tuple[str, ...] | None = None
    temperatures: tuple[float, ...] | None = None
    target: int | None = None
    surrogate: int | None = None
    unlabelled: int | None = None
    test: int | None = None
    trials: int | None = None
    folds: int | None = None
    repeats: int | None = None
    data_seed: int = 0

    def __post_init__(self) -> None:
        choose("scale", self.scale, SCALES)  # before data are read, which may take long

    def study(self) -> Study:
        """The study; ValueError, in one line, where there is none like this."""
        return self._study(find(self.problem, self.data))

    def _study(self, problem: Problem) -> Study:
        study = choose("scale", self.scale, SCALES)(problem, self.data_seed)
        changes: dict[str, Any] = {FIELDS.get(name, name): getattr(self, name) for name in COUNTS}
        if self.methods is not None:
            changes["methods"] = tuple(choose("method", name, METHODS) for name in dict.fromkeys(self.methods))
        for name in ("budgets", "searched"):
            if (values := getattr(self, name)) is not None:
                changes[name] = tuple(sorted(set(values)))
        if self.target is not None and self.budgets is None:
            changes["budgets"] = (*(b for b in study.budgets if b < self.target), self.target)
        space = study.space
        if self.encoders is not None:
            named = [a for name in self.encoders for a in _architectures(name, study, self.scale)]
            space = replace(space, architectures=tuple(dict.fromkeys(named)))
        if self.temperatures is not None:
            space = replace(space, temperatures=self.temperatures)
        if self.name is not None and not re.fullmatch(r"\w[\w.+ -]{0,99}", self.name):
            raise ValueError(f"name is {self.name!r}; give letters, digits, blanks and any of _ - . +, at most 100")
        changes |= {"name": self.name, "space": space}
        return replace(study, **{field: value for field, value in changes.items() if value is not None})

    def toml(self, versions: Mapping[str, str]) -> str:
        """A file that says the same, with the versions of what has made it."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        lines = [f"# This study again: sibcl-ray sweep --config {FILE}", *_assigned(said), "", f"[{VERSIONS}]"]
        return "\n".join([*lines, *_assigned(versions), ""])


def _assigned(values: Mapping[str, Any]) -> list[str]:
    # Texts, numbers and lists of them are written in TOML as in JSON.
    return [f"{name.replace('_', '-')} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def settings_of(study: Study) -> Settings | None:
    """The settings that give a study, each one said; None if none does, as for a space of one's own."""
    if (named := _reference(study.problem)) is None:
        return None
    said: dict[str, Any] = {name: getattr(study, FIELDS.get(name, name)) for name in COUNTS}
    said |= {"problem": named[0], "data": named[1], "name": study.name, "data_seed": study.seed}
    said |= {"methods": tuple(m.name for m in study.methods), "budgets": study.budgets, "searched": study.searched}
    said |= {"temperatures": study.space.temperatures}
    encoders = tuple(dict.fromkeys(_encoder_name(a.encoder) for a in study.space.architectures))
    for scale in SCALES:
        for names in (None, encoders):
            settings = Settings(**said, scale=scale, encoders=names)
            try:
                if settings._study(study.problem) == study:
                    return settings
            except ValueError:
                continue
    return None


def _reference(problem: Problem) -> tuple[str, str | None] | None:
    """A problem's name and data, as `find` takes them; None where its fields are not those that it would give."""
    if PROBLEMS.get(problem.name) == problem:
        return problem.name, None
    if isinstance(problem, Tabulated):
        return (TABULATED, str(problem.folder)) if problem.folder else None
    source: Any = getattr(problem, "source", None)
    if source is None:
        return None
    kind: Any = type(problem)
    file = Path(source.origin, source.files[0][0])
    with suppress(TypeError):  # of a class whose fields have no values by default
        return (f"{file}:{kind.__qualname__}", None) if repr(problem) == repr(kind()) else None
    return None


def _encoder_name(encoder: Encoder) -> str:
    name = next((name for name, kind in ENCODERS.items() if isinstance(encoder, kind)), "one's own")
    return f"{name}:{'-'.join(map(str, encoder.dilations))}" if isinstance(encoder, InvariantEncoder) else name


def _architectures(name: str, study: Study, scale: str) -> list[Architecture]:
    """The architectures of a name, in the sizes of those that the scale offers."""
    offered, (_, *grid) = study.space.architectures, feature_shape(study.problem)
    kind, _, listed = name.partition(":")
    wanted = choose("encoder", kind, ENCODERS)
    if listed and wanted is not InvariantEncoder:
        raise ValueError(f"encoders has {name!r}; {kind} has no dilations")
    same = [a for a in offered if isinstance(a.encoder, wanted)]
    if not same and wanted is ReferenceEncoder:
        raise ValueError(f"encoders has {name!r}, which cannot pool inputs of this size; give invariant or perceptron")
    if not same:
        latent = offered[0].encoder.latent
        made: dict[type[Encoder], Encoder] = {
            InvariantEncoder: InvariantEncoder(channels=CHANNELS[scale], latent=latent).fitted(min(grid)),
            PerceptronEncoder: PerceptronEncoder(hidden=(latent, latent), latent=latent),
        }
        same = [replace(offered[0], encoder=made[wanted])]
    if not listed:
        return same
    try:
        dilations: Any = {"dilations": tuple(int(part) for part in listed.split("-"))}
    except ValueError:
        raise ValueError(f"encoders has {name!r}; give dilations as in invariant:1-2-4") from None
    encoder: Any = same[0].encoder
    return [replace(same[0], encoder=replace(encoder, **dilations))]


def versions_now() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # as on clusters to which the library comes with the job
            found[package] = version(package)
    return found


def parsed(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file of settings says, by names of today with underscores, and its versions; ValueError: it is no TOML."""
    said = tomllib.loads(text)
    versions = said.pop(VERSIONS, {})
    names = {key: RENAMED.get(key, key.replace("-", "_")) for key in said}
    return {names[key]: value for key, value in said.items()}, versions if isinstance(versions, dict) else {}


def read_config(path: Path, known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options in a TOML file, by their names with underscores, and the versions that it was made with.

    ``known`` has the types of options by name.

    Raises:
        ValueError: it cannot be read, or has other keys; in one line.
    """
    try:
        said, versions = parsed(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a file such as a study's {FILE}") from None
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{path} is not TOML ({one_line(error, 200)}); mend it") from None
    options = {}
    for name, value in said.items():
        key = name.replace("_", "-")
        if name not in known:
            advice = nearest(key, [option.replace("_", "-") for option in known])
            raise ValueError(f"{path} has {key!r}, which is no option; {advice}")
        if isinstance(value, dict):
            raise ValueError(f"{path}: {key} is a table; give {key} = …")
        if isinstance(value, bool) and known[name] is not bool:
            raise ValueError(f"{path}: {key} is {str(value).lower()}; give its value")
        options[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    for name in ("data", "problem"):  # what lies beside the file is meant, wherever the command is given
        value = str(options.get(name, ""))
        if value and (path.parent / (value.rpartition(":")[0] if ".py:" in value else value)).exists():
            options[name] = str(path.parent / value)
    return options, versions
