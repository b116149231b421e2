"""What models compute on: the device that a configuration asks for, if this machine has it."""

from __future__ import annotations

import torch

from latentwire.backbone.load import check_four_bits
from latentwire.config.schema import Config
from latentwire.core.errors import ConfigError, one_line


def prepare_device(config: Config) -> str:
    """The device that models are put on, from now on the one whose time and memory are measured; errors of
    `check_devices`. It sets the number of threads as well."""
    if config.system.threads:
        torch.set_num_threads(config.system.threads)
    device = check_devices(config)
    if (index := torch.device(device).index) is not None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(index)
    return device


def check_devices(config: Config) -> str:
    """The device of `system.device`; ConfigError or ModelError where what is asked for is not on this machine."""
    system = config.system
    device = resolve_device(system.device)
    if system.require_cuda and torch.device(device).type != "cuda":
        found = "no CUDA device was found" if system.device == "auto" else f"system.device is {system.device!r}"
        raise ConfigError(f"system.require_cuda: {found}")
    if isinstance(system.device_map, dict):
        for place in dict.fromkeys(system.device_map.values()):
            if place == "disk":
                raise ConfigError("system.device_map: 'disk' is no device, and all weights have to be on one")
            _usable(place, "system.device_map")
    if config.model.load_4bit:
        check_four_bits(device)
    return device


def resolve_device(name: str) -> str:
    """'auto' takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        _usable(name, "system.device")
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _usable(device: str | int, key: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{key}: {device!r} cannot be used: {one_line(error)}") from error
