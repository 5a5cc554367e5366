"""Every command that the documents name is one that the command line understands."""

import re
import shlex
from pathlib import Path

import pytest

from ray_jobs.cli import parse

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "ray_jobs" / "README.md"]


def commands() -> list[str]:
    blocks = [block for path in DOCUMENTS for block in re.findall(r"```(?:bash|sh)\n(.*?)```", path.read_text(), re.S)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.partition("#")[0].partition("glsd ")[2] for line in lines if re.search(r"(^|-- )glsd ", line)]
    return sorted({command.strip() for command in found})


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_understood(command):
    parse(shlex.split(command))


def test_the_documents_name_commands_for_every_verb_that_needs_explaining():
    verbs = {command.split()[0] for command in commands()}
    assert {"pretrain", "config"} <= verbs
