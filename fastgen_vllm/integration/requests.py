"""Validation of per-request options where vLLM can still answer with a 400."""

import torch
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from fastgen_vllm.request import RequestOptionError, RequestOptions


class RequestValidator(LogitsProcessor):
    """A logits processor that changes no logits.

    vLLM lets a logits processor check a request's parameters in the front end, before the
    engine sees them; that is all it is for.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise VLLMValidationError, a 400 that names the parameter, for bad options."""
        try:
            RequestOptions.parse(sampling_params.extra_args)
        except RequestOptionError as error:
            raise VLLMValidationError(
                str(error), parameter=error.parameter, value=error.value
            ) from error

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Keep nothing."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Keep nothing."""
