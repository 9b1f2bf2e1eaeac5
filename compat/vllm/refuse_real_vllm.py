"""The build backend: setuptools, which first looks whether the environment that pip installs into holds the real vLLM.

pip builds in an isolated environment, but with the target's interpreter: its site-packages are found by ``sysconfig``, not by
``sys.path``.
"""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (a backend is a module with setuptools' hooks)


def refuse() -> None:
    """Stop where the real vLLM is installed.

    Raises:
        SystemExit: saying where, and what to do.
    """
    places = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    for found in importlib.metadata.distributions(path=places):
        if re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower() == "vllm":
            raise SystemExit(
                f"octavo-vllm: vLLM {found.version} is installed in {places[0]}, and octavo-vllm would overwrite its package. "
                "Uninstall vllm first, or install octavo-vllm into another environment."
            )


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """As setuptools', unless the real vLLM is there."""
    refuse()
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """As setuptools', unless the real vLLM is there."""
    refuse()
    return str(build_meta.build_editable(wheel_directory, config_settings, metadata_directory))
