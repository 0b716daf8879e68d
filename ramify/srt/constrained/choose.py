"""Which engine compiles a grammar: one that the operator names, or `auto`.

    auto        llguidance, and xgrammar for structural tags
    a name      that engine for everything; what it cannot do is refused

Nothing falls back: a grammar that its engine refuses is refused.
"""

import importlib.util

from ramify.srt.constrained.base import CompiledGrammar, GrammarBackend, Prepared
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.errors import ConfigError
from ramify.srt.grammar import GrammarSpec, Kind

NAMES = ("auto", "llguidance", "xgrammar", "outlines")


class AutoBackend:
    """One backend per kind; the second is only loaded when it is needed."""

    name = "auto"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._default = load_backend("llguidance", vocabulary)
        self._tags: GrammarBackend | None = None

    def prepare(self, spec: GrammarSpec) -> Prepared:
        return self.of(spec.kind).prepare(spec)

    def build(self, prepared: Prepared) -> CompiledGrammar:
        return self.of(prepared.kind).build(prepared)

    def of(self, kind: Kind) -> GrammarBackend:
        """The backend for grammars of a kind. Raises ConfigError when it is not installed."""
        if engine_of(self.name, kind) == self._default.name:
            return self._default
        if self._tags is None:
            self._tags = load_backend("xgrammar", self._vocabulary)
        return self._tags


def engine_of(name: str, kind: Kind) -> str:
    """The engine that compiles grammars of a kind for an operator who asked for `name`."""
    if name != "auto":
        return name
    return "xgrammar" if kind == "structural_tag" else "llguidance"


def load_backend(name: str, vocabulary: Vocabulary) -> GrammarBackend:
    """A backend by its name. Raises ConfigError for an unknown one, or one that is not installed.

    The engines are imported here: each costs memory and time, xgrammar a copy of torch.
    """
    if name == "auto":
        return AutoBackend(vocabulary)
    if name == "llguidance":
        from ramify.srt.constrained.llguidance_backend import LLGuidanceBackend

        return LLGuidanceBackend(vocabulary)
    if name == "xgrammar":
        _need("xgrammar", "xgrammar")
        from ramify.srt.constrained.xgrammar_backend import XGrammarBackend

        return XGrammarBackend(vocabulary)
    if name == "outlines":
        _need("outlines_core", "outlines")
        from ramify.srt.constrained.outlines_backend import OutlinesBackend

        return OutlinesBackend(vocabulary)
    raise ConfigError(f"grammar_backend {name!r} is none of {', '.join(NAMES)}")


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{package} is not installed: pip install 'ramify[{extra}]'")


def check_installed(name: str) -> None:
    """Raise ConfigError when the engine of a backend is not installed."""
    packages = {"llguidance": "llguidance", "xgrammar": "xgrammar", "outlines": "outlines_core"}
    if name in packages:
        _need(packages[name], name)
