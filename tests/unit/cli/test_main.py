"""``octavo``: which command runs, what its failures print, and the exit codes."""

import os
import subprocess
import sys
import types

import pytest

from octavo import __version__
from octavo.cli import main as program
from octavo.errors import ConfigError, MemoryPlanError


@pytest.fixture
def command(monkeypatch):
    """Makes ``octavo plan`` do what the test says."""

    def install(behaviour):
        module = types.ModuleType("octavo_test_command")
        module.run = behaviour
        monkeypatch.setitem(sys.modules, "octavo_test_command", module)
        monkeypatch.setitem(program.COMMANDS, "plan", ("octavo_test_command", "a test"))

    return install


def raising(error: BaseException):
    def run(argv):
        raise error

    return run


def test_the_command_gets_its_words_and_gives_the_code(command):
    seen = []
    command(lambda argv: seen.append(argv) or 7)
    assert program.main(["plan", "a", "--b"]) == 7
    assert seen == [["a", "--b"]]


def test_a_mistake_in_the_flags_is_one_line_and_code_2(command, capsys):
    command(raising(ConfigError("this is\nwrong")))
    assert program.main(["plan"]) == 2
    assert capsys.readouterr().err == "octavo: error: this is wrong\n"


def test_a_failure_is_one_line_and_code_1(command, capsys):
    command(raising(MemoryPlanError("too large")))
    assert program.main(["plan"]) == 1
    assert capsys.readouterr().err == "octavo: error: too large\n"


def test_ctrl_c_is_code_130_without_a_word(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert program.main(["plan"]) == 130
    assert capsys.readouterr().err == ""


def test_errors_that_nobody_meant_keep_their_traceback(command):
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        program.main(["plan"])


def test_help_of_a_command_is_code_0(capsys):
    assert program.main(["plan", "--help"]) == 0
    assert "--max-model-len" in capsys.readouterr().out


def test_serve_gets_resolved_options(monkeypatch):
    seen = []
    module = types.ModuleType("octavo.cli.serve")
    module.serve = lambda engine, server: seen.append((engine, server)) or 3
    monkeypatch.setitem(sys.modules, "octavo.cli.serve", module)
    assert program.main(["serve", "some/model", "--port", "81"]) == 3
    assert (seen[0][0].model.model, seen[0][1].port) == ("some/model", 81)


def test_a_mistake_in_serves_flags_is_told_before_the_server_is_imported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "octavo.cli.serve", None)  # importing it would fail
    assert program.main(["serve", "--max-num-seq", "4"]) == 2
    assert "--max-num-seqs" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["serv", "--versio"])
def test_an_unknown_command_is_refused(word, capsys):
    assert program.main([word]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and word in message


def test_help_fits_a_screen_and_names_every_command(capsys):
    assert program.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert all(any(line.split()[:1] == [name] for line in lines) for name in program.COMMANDS)


def test_no_command_shows_the_help_as_a_mistake(capsys):
    assert program.main([]) == 2
    assert "usage: octavo" in capsys.readouterr().err


def test_version(capsys):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {__version__}\n"


def run_python(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["serve", "--help"], ["bench", "serve", "--help"], ["chat", "--help"]])
def test_help_and_version_import_nothing_heavy(argv):
    code = (
        f"import sys; from octavo.cli.main import main; assert main({argv!r}) == 0; "
        "print({'torch', 'rich', 'fastapi', 'numpy', 'aiohttp', 'yaml'} & set(sys.modules), file=sys.stderr)"
    )
    assert run_python(code).stderr == "set()\n"


def test_a_reader_that_goes_away_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "octavo", "--help"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""
