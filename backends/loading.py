"""
A path, a hub id or a loaded model, turned into a LocalBackend that shares weights and engine with its other users in this process.

Knows transformers' configurations and what the engine can honour of them. Refuses by name what it cannot, before the weights are read
where the configuration tells. Pool sizes are bytes, context lengths tokens.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from langchain_pareto.backends import nano
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.checkpoints import check_tokenizer, check_weights, find_folder
from langchain_pareto.backends.engine import Engine, engine_for
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.self_check import SLOTS, check_runner
from langchain_pareto.backends.tokens import HFTokenizer, Tokenizer
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.errors import (
    BackendError,
    CapabilityError,
    CapacityError,
    ModelLoadError,
    ParetoError,
    SettingError,
)
