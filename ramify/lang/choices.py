"""How `select` decides between its choices, given their log-probabilities. Pure.

A method is called with keywords and returns a `ChoicesDecision`. Each choice has a list of
`[log-probability or None, token id, text or None]`, one for each token that is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Triples = list[list[Any]]


@dataclass(frozen=True)
class ChoicesDecision:
    """The choice taken, and what to keep about the decision."""

    decision: str
    meta_info: dict[str, Any] | None = None


class ChoicesSamplingMethod(Protocol):
    """A rule that picks one choice. Methods of your own only need this shape."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """Whether the choices must also be scored on their own, without the text before them."""

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision: ...


def argmax(scores: Sequence[float]) -> int:
    """Index of the largest score; the first one on ties."""
    return max(range(len(scores)), key=scores.__getitem__)


def logprobs_of(triples: Triples) -> list[float]:
    """The log-probabilities that are known. An exact 0.0 is one; None is not."""
    return [triple[0] for triple in triples if triple[0] is not None]


def mean(values: Sequence[float]) -> float:
    """The mean, summed in order."""
    return sum(values) / len(values)


def _meta(normalized: list[float], inputs: list[Triples], outputs: list[Triples]) -> dict[str, Any]:
    return {
        "normalized_prompt_logprobs": normalized,
        "input_token_logprobs": inputs,
        "output_token_logprobs": outputs,
    }


class TokenLengthNormalized:
    """The choice with the highest mean token log-probability."""

    requires_unconditional_logprobs = False

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision:
        """Decide; the scores are in the meta information."""
        best = argmax(normalized_prompt_logprobs)
        meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
        return ChoicesDecision(choices[best], meta)


class GreedyTokenSelection:
    """Token by token, keeps the choices whose token is likeliest there; the first survivor wins.

    A choice that has ended goes on with its own mean, so that it can still lose to a longer one.
    """

    requires_unconditional_logprobs = False

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision:
        """Decide; the padded matrix is in the meta information."""
        rows = [logprobs_of(triples) for triples in input_token_logprobs]
        width = max(len(row) for row in rows)
        matrix = [row + [mean(row)] * (width - len(row)) for row in rows]
        alive = list(range(len(choices)))
        for column in range(width):
            best = max(matrix[row][column] for row in alive)
            alive = [row for row in alive if matrix[row][column] == best]
        meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
        return ChoicesDecision(choices[alive[0]], meta | {"greedy_logprob_matrix": matrix})


class UnconditionalLikelihoodNormalized:
    """The choice that the text before it makes likelier most, per token.

    The score is the mean of (log-probability after the text - log-probability on its own).
    """

    requires_unconditional_logprobs = True

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision:
        """Decide. Raises ValueError when the unconditional log-probabilities are missing."""
        if unconditional_token_logprobs is None:
            raise ValueError("this method needs unconditional_token_logprobs")
        scores = [
            mean([(a[0] or 0.0) - (b[0] or 0.0) for a, b in zip(given, alone, strict=True)])
            for given, alone in zip(input_token_logprobs, unconditional_token_logprobs, strict=True)
        ]
        meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs) | {
            "unconditional_token_logprobs": unconditional_token_logprobs,
            "normalized_unconditional_prompt_logprobs": scores,
        }
        return ChoicesDecision(choices[argmax(scores)], meta)


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()
