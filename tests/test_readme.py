"""Every command that the documents name is one that the command line understands."""

import re
import shlex
from pathlib import Path

import pytest

from ray_jobs.cli.main import parse
from ray_jobs.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "ray_jobs" / "README.md"]


def commands() -> list[str]:
    blocks = [block for path in DOCUMENTS for block in re.findall(r"```(?:bash|sh)\n(.*?)```", path.read_text(), re.S)]
    lines = [line.partition("#")[0] for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    found = [line.partition("glsd ")[2].strip() for line in lines if "glsd " in line]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_understood(command):
    parse(shlex.split(command))


def test_the_documents_show_a_command_of_every_verb():
    assert {command.split()[0] for command in commands()} == VERBS.keys()
