"""Policies: rules that say which tokens a head keeps.

A policy is a frozen dataclass; ``|`` is union. A selector picks a policy per head.
To add one: derive a frozen dataclass from :class:`Policy` in a file of its own, and name it in
:mod:`fastgen_vllm.policy.select`. One of the user's own needs no change here: the option ``policy``
takes its import path (:mod:`fastgen_vllm.policy.own`).
"""

from fastgen_vllm.policy.ahakv import AhaKV
from fastgen_vllm.policy.base import Choice, Policy, Selector, Union
from fastgen_vllm.policy.coverage import Coverage
from fastgen_vllm.policy.frequent import Frequent
from fastgen_vllm.policy.full import Full
from fastgen_vllm.policy.important import Important
from fastgen_vllm.policy.ladder import Ladder
from fastgen_vllm.policy.local import Local
from fastgen_vllm.policy.punctuation import Punctuation
from fastgen_vllm.policy.select import selector_for
from fastgen_vllm.policy.special import Special

__all__ = [
    "AhaKV",
    "Choice",
    "Coverage",
    "Frequent",
    "Full",
    "Important",
    "Ladder",
    "Local",
    "Policy",
    "Punctuation",
    "Selector",
    "Special",
    "Union",
    "selector_for",
]
