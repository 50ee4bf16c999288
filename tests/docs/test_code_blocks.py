"""Every code block of README.md and docs/ runs as printed, or says what it needs; all commands parse."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from motionmae.commands import app
from motionmae.config import load_config
from motionmae.config.site import load_site
from motionmae.errors import UserError
from tests.docs.code_blocks import NEEDS, PAGES, ROOT, Block, blocks_of, shell_lines
from tests.docs.reader import Reader, new_reader, runnable

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LANGUAGES = {"bash", "console", "python", "yaml", "text", "bibtex"}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_has_a_language_and_a_known_need(block: Block) -> None:
    assert block.language in LANGUAGES
    need, _, test = block.needs.partition(": ")
    assert not need or need in NEEDS
    assert (need == "the file of another test") == bool(test)
    assert (ROOT / test).exists()


@pytest.mark.parametrize("block", [block for block in BLOCKS if list(block.commands())], ids=lambda block: block.place)
def test_commands_parse_and_name_configs_that_exist(block: Block) -> None:
    for words in block.commands():
        _, arguments = app.parse(words)
        config, overrides = getattr(arguments, "config", None), getattr(arguments, "overrides", [])
        if config is not None and not config.endswith(".yaml"):  # a file of the reader's own
            load_config(config, overrides)


@pytest.mark.long
@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if "python -m benchmarks" in b.text and b.needs], ids=lambda b: b.place
)
def test_benchmarks_exist_with_their_options(block: Block) -> None:
    """A block that needs a cluster is at least no fiction: `--help` of its modules has the options."""
    lines = [shlex.split(line, comments=True) for line in shell_lines(block) if line.startswith("python -m")]
    for _, _, module, *words in lines:
        command = [sys.executable, "-m", module, "--help"]
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        own = words[: words.index("--")] if "--" in words else words  # the others belong to `motionmae submit`
        assert [word for word in own if word.startswith("--") and word not in described] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml" and not b.needs], ids=lambda b: b.place)
def test_a_block_of_yaml_is_a_config_or_a_site_file(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    keys = set(yaml.safe_load(block.text))
    load_site(file) if keys <= {"launch", "sbatch", "environment"} else load_config(str(file))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with new_reader(tmp_path_factory.mktemp("reader")) as reader:
        yield reader


@pytest.mark.long
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if runnable(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, reader: Reader) -> None:
    reader.run_page(page)


def test_an_unknown_option_in_a_page_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made_up.md"
    block = Block(page, 1, "bash", "", "motionmae plan --config vitl_k400 --nodez 4\n")
    with pytest.raises(SystemExit):
        test_commands_parse_and_name_configs_that_exist(block)
    with pytest.raises(UserError, match="vitx"):
        test_commands_parse_and_name_configs_that_exist(Block(page, 1, "bash", "", "motionmae plan --config vitx\n"))
