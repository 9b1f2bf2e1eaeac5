"""``compat/vllm``: installed as a user would, it answers to vLLM's names; beside a real vLLM it refuses to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import octavo

SOURCE = Path(__file__).parents[2] / "compat" / "vllm"


@dataclass
class Environment:
    """A virtual environment that finds this one's packages too."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, symlinks=True)
        (self.site / "development.pth").write_text(
            f"{Path(octavo.__file__).parents[1]}\nimport site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        )

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *command: str, module: bool = True) -> subprocess.CompletedProcess[str]:
        words = [str(self.folder / "bin" / "python"), *(["-m"] if module else []), *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=self.folder)

    def install(self) -> subprocess.CompletedProcess[str]:
        copied = self.folder / "source"
        shutil.copytree(SOURCE, copied, ignore=shutil.ignore_patterns("build", "*.egg-info"), dirs_exist_ok=True)
        return self.run("pip", "--disable-pip-version-check", "install", "--no-deps", "--no-build-isolation", "--no-index", str(copied))

    def pretend_real_vllm(self) -> Path:
        """What pip leaves of an installed vLLM."""
        folder = self.site / "vllm-0.32.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
        return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("compat"))
    done = made.install()
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("module", ["vllm.entrypoints.api_server", "vllm.entrypoints.openai.api_server"])
def test_entry_points_are_octavos_server(installed: Environment, module: str) -> None:
    done = installed.run(module, "--help")
    assert done.returncode == 0 and "--served-model-name" in done.stdout, done.stderr
    wrong = installed.run(module, "--max-num-seq", "3")
    assert wrong.returncode == 2 and "--max-num-seqs" in wrong.stderr


def test_the_command_is_octavos(installed: Environment) -> None:
    script = installed.folder / "bin" / "vllm"
    done = subprocess.run([script, "serve", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "[MODEL]" in done.stdout, done.stderr


def test_names_are_octavos_classes(installed: Environment) -> None:
    program = """
import octavo, vllm
from vllm import LLM, AsyncEngineArgs, AsyncLLMEngine, CompletionOutput, EngineArgs, RequestOutput, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs as SameArgs
from vllm.engine.async_llm_engine import AsyncLLMEngine as SameEngine
from vllm.outputs import RequestOutput as SameOutput
from vllm.sampling_params import SamplingParams as SameParams, StructuredOutputsParams
assert StructuredOutputsParams is octavo.StructuredOutputs
assert (LLM, SamplingParams, RequestOutput, CompletionOutput) == (
    octavo.LLM, octavo.SamplingParams, octavo.RequestOutput, octavo.CompletionOutput)
assert (SameArgs, SameEngine, SameOutput, SameParams) == (AsyncEngineArgs, AsyncLLMEngine, RequestOutput, SamplingParams)
assert vllm.__version__ == octavo.__version__ and SamplingParams(temperature=0.5).temperature == 0.5
assert isinstance(AsyncLLMEngine.from_engine_args(AsyncEngineArgs(max_model_len=64)), octavo.AsyncLLM)
try:
    AsyncLLMEngine.from_engine_args(AsyncEngineArgs(max_model_length=64))
except TypeError as error:
    assert "max_model_len" in str(error)
else:
    raise AssertionError("an unknown option was taken")
for name in vllm.__all__:
    getattr(vllm, name)
try:
    vllm.Teleport
except AttributeError as error:
    print(error)
"""
    done = installed.run("-c", program, module=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Octavo, which stands in for vLLM here, has no 'Teleport'"


def test_importing_is_light(installed: Environment) -> None:
    done = installed.run("-c", "import sys, vllm; print('torch' in sys.modules)", module=False)
    assert done.stdout.strip() == "False", done.stderr


def test_import_beside_a_real_vllm_is_refused(installed: Environment) -> None:
    real = installed.pretend_real_vllm()
    try:
        done = installed.run("-c", "import vllm", module=False)
    finally:
        shutil.rmtree(real)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: octavo-vllm lies over an installed vLLM 0.32.0. Keep one:")


def test_installing_over_a_real_vllm_is_refused(tmp_path: Path) -> None:
    made = Environment(tmp_path)
    made.pretend_real_vllm()
    done = made.install()
    assert done.returncode != 0 and "vLLM 0.32.0 is installed in" in done.stderr, done.stderr
    assert not (made.site / "vllm").exists()


def test_version_is_octavos_and_its_readme_names_every_name() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert project["version"] == octavo.__version__
    readme = (SOURCE / "README.md").read_text()
    exported = re.search(r"__all__ = \[(.*?)\]", (SOURCE / "vllm" / "__init__.py").read_text(), re.DOTALL)
    assert exported is not None
    for name in re.findall(r'"(\w+)"', exported[1]):
        assert re.search(rf"\b{name}\b", readme), name


def test_nothing_of_octavo_takes_the_name() -> None:
    assert "vllm" not in {path.name for path in Path(octavo.__file__).parents[1].iterdir()}
