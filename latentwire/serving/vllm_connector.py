"""Answers from messages in vLLM: a KV connector (V1) that turns a request's message into slots in the paged cache.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "LatentWireConnector",
        "kv_connector_module_path": "latentwire.serving.vllm_connector", "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"checkpoint": FOLDER, "receiver": NAME}}'

The scheduler's half decides which positions of a request are already computed: those of its message. The worker's half
writes their keys and values before the engine computes the question. A request whose message cannot be read fails
alone. `vllm_requests` tells what a request looks like, `vllm_gate` gives a client the reason for a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from latentwire.core.errors import ConfigError, WireError
from latentwire.serving.vllm_requests import Admission, Admitted
from latentwire.serving.vllm_slots import SlotMaker
from latentwire.wire.codecs.base import Array

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is below its own name


@dataclass
class Load:
    """Positions `start` up to `end` of a request that are to be filled from latents, or to be failed without any.

    blocks: the request's blocks of the paged cache, from its first position on.
    """

    request: str
    latents: Array | None
    start: int
    end: int
    blocks: list[int]


@dataclass
class Loads(KVConnectorMetadata):
    """What the worker has to load before one step."""

    loads: list[Load] = field(default_factory=list)


class LatentWireConnector(KVConnectorBase_V1):
    """Both halves; vLLM makes one object of each."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any):
        super().__init__(vllm_config, role, kv_cache_config)
        if vllm_config.parallel_config.world_size > 1:
            raise ConfigError("one worker alone is supported: no tensor or pipeline parallel")
        if vllm_config.speculative_config is not None:  # a draft model has a cache of its own, without the message
            raise ConfigError("speculative decoding is not supported")
        self._block = vllm_config.cache_config.block_size
        if role == KVConnectorRole.SCHEDULER:
            self._admission = Admission.of(vllm_config)
            self._asked: dict[str, Admitted | None] = {}
            """Requests with a message that have not finished; None where it is refused."""
            self._waiting: list[Load] = []
        else:
            given, model = self._kv_transfer_config.kv_connector_extra_config, vllm_config.model_config
            device = vllm_config.device_config.device
            self._maker = SlotMaker(given["checkpoint"], given["receiver"], model.model, model.dtype, device)
            self._failed: set[int] = set()

    # ---- scheduler ------------------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Look at a request's message once."""
        try:
            asked = self._admission.admit(request.kv_transfer_params, request.prompt_token_ids, request.cache_salt)
            if asked is None:
                return
            if request.skip_reading_prefix_cache:  # the scheduler would ignore what is loaded
                raise WireError("prompt_logprobs: there is no prompt in place of a message")
            self._asked[request.request_id] = asked
        except Exception as error:  # whatever it is, the engine must go on
            logger.warning("request %s is refused: %s", request.request_id, error)
            self._asked[request.request_id] = None
            # A request can only fail by what it loads, so that nothing may be found in the prefix cache.
            request.cache_salt = f"refused/{request.request_id}"
            request.skip_reading_prefix_cache = False
            request.block_hashes.clear()
            request.update_block_hashes()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Positions of the message behind those that the prefix cache has; of a refused request, all but the last."""
        if request.request_id not in self._asked:
            return 0, False
        return max(0, self._end(request) - num_computed_tokens), False

    def _end(self, request: Any) -> int:
        asked = self._asked[request.request_id]
        return asked.positions if asked is not None else int(request.num_prompt_tokens) - 1

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note what is to be loaded into a request's blocks; also after a preemption, which lost them."""
        if num_external_tokens:
            asked, end = self._asked[request.request_id], self._end(request)
            latents = None if asked is None else asked.latents
            start = end - num_external_tokens
            self._waiting.append(Load(request.request_id, latents, start, end, list(blocks.get_block_ids()[0])))

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """Hand the worker what it has to load before this step."""
        loads, self._waiting = Loads(self._waiting), []
        return loads

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request, however it ended."""
        self._asked.pop(request.request_id, None)
        return False, None

    # ---- worker ---------------------------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the slots of this step's messages into the paged cache, before anything reads it."""
        loads = self._get_connector_metadata()
        assert isinstance(loads, Loads)
        if not loads.loads:  # as in most steps
            return
        layers = {
            extract_layer_index(name): layer
            for name, layer in forward_context.no_compile_layers.items()
            if hasattr(layer, "kv_cache")
        }
        for load in loads.loads:
            if load.latents is not None:
                try:
                    self._fill(load, load.latents, layers)
                    continue
                except Exception as error:  # whatever it is, other requests of this step must go on
                    logger.error("request %s fails: %s", load.request, error)
            self._failed.update(load.blocks[load.start // self._block : -(-load.end // self._block)])

    def _fill(self, load: Load, latents: Array, layers: dict[int, Any]) -> None:
        """Write positions start to end; the backend's own call knows how its cache is packed."""
        positions = torch.arange(load.start, load.end)
        places = torch.tensor(load.blocks)[positions // self._block] * self._block + positions % self._block
        for index, (keys, values) in enumerate(self._maker.slots(latents)):
            layer = layers[index]
            at = places.to(keys.device)
            keys, values = (t[load.start : load.end].contiguous() for t in (keys, values))
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, at)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that could not be filled; their requests end with an error."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded in the background."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def wait_for_save(self) -> None:
        """Nothing is kept."""
