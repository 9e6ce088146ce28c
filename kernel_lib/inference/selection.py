"""The way in which an ensemble's masks are chosen, on the held-out images of its members."""

from __future__ import annotations

from kernel_lib.inference.ensemble_maps import one_hot
from kernel_lib.inference.out_of_fold import OutOfFold
from kernel_lib.inference.recipes import Recipe
from kernel_lib.postprocess.search import SearchOptions
from kernel_lib.postprocess.strategies import Greedy, MemberVote, OneRule, Strategy


def strategy_of(held: OutOfFold, recipe: Recipe, *, single: bool = False) -> Strategy:
    """What a recipe leaves to be chosen on labels: a rule, members and weights, or rules and k.

    `single` holds top == bottom in every rule.
    """
    ensemble = held.ensemble
    options = SearchOptions(single=single, label=ensemble.gate != "none")
    n_members = len(ensemble.members)
    if ensemble.by_members:
        members = [held.gated(one_hot(n_members, at)) for at in range(n_members)]
        return MemberVote(members, held.vote_counts, recipe.at_least, options)
    if recipe.choose == "greedy":
        return Greedy(held.gated, n_members, options)
    return OneRule(held.gated(ensemble.weights), options)
