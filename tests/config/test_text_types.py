"""Texts of configs of strangers: inert, one line each, and one sentence for what is not possible."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motionmae.config import load_config
from motionmae.config.site import load_site
from motionmae.config.text_types import node_path, one_line, sbatch_text
from motionmae.errors import UserError
from motionmae.text import excerpt

ALIASES = "".join(f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n" for before, after in pairwise("abcdefgh"))
CONTROL = ("\n", "\r", "\t", "\0", "\x1b", "\x85", "\u2028", "\u202e", "\ud800")


def refused(path: Path, text: str) -> str:
    """Return the sentence for a config file with the content ``text``."""
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    sentence = str(caught.value)
    assert sentence == excerpt(sentence[:200]) + sentence[200:]
    assert "\n" not in sentence
    assert len(sentence) < 1500
    return sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('base: "a\\0b"', "holds the control character"),
        (f"base: {'a' * 300}", "a name in a path has at most 255 bytes"),
        (f"base: {'/a' * 3000}", "write at most 4000"),
        ("base: ~no-such-user-here/x", "no user ~no-such-user-here"),
        ("name: .hidden", "do not start with '-' or '.'"),
        ("name: -x", "do not start with '-' or '.'"),
        ("name: a/b", "use letters, digits, '-', '_' and '.'"),
        (f"name: {'n' * 300}", "use at most 150 bytes; a letter such as ä takes two"),
        (f"output_dir: {'n' * 300}", "a name in a path has at most 255 bytes"),
        ('output_dir: "a\\0b"', "output_dir=a\\x00b is not possible: it holds the control character"),
        ("output_dir: ~no-such-user-here/x", "no user ~no-such-user-here"),
        ("output_dir: $HOME/runs", "no variable is expanded here"),
        (f"name: {'[' * 5000}", "nested more than 20 levels deep"),
        (f"name: {'[' * 30}{']' * 30}", "nested more than 20 levels deep"),
        ("a: &a [x]\n" + ALIASES, "more than 10000 values"),
        ("a: &a {b: *a}", "is not readable YAML"),
        ("? [a]\n: b", "a key that is no name"),
        ("null: 3", "a key that is no name"),
        (f"seed: {'9' * 6000}", "it must be a whole number"),
        ("#" * 1_000_001, "more than 1000000 bytes"),
        ('"a\\x1b[31m": 1', "unknown key a\\x1b[31m"),
        ("launch: {comment: |\n  two\n  lines}", "is not readable YAML"),
        ("launch:\n  comment: |\n    a block\n", "launch.comment=a block\\n is not possible: it holds a line break"),
        ("launch: {comment: 'a\\'}", "launch.comment=a\\ is not possible: it holds a backslash"),
        ("launch: {exclude: 'n1 --uid=0'}", "launch.exclude=n1 --uid=0 is not possible: write names of nodes"),
        ("launch: {exclude: /etc/passwd}", "write names of nodes"),
        ("launch: {exclude: '-w n1'}", "write names of nodes"),
        ("data: {shards: 'http://127.0.0.1:1/${oc.env:HF_TOKEN,none}'}", "data.shards=http://127.0.0.1:1/${oc.env:HF"),
        (
            "data: {shards: 'https://me:key@h/k400'}",
            "data.shards=https://***@h/k400 is not possible: its URL holds a user",
        ),
        ("test: {shards: 's3://ID:key@b/k400'}", "test.shards=s3://***@b/k400 is not possible: its URL holds a user"),
        ("finetune: {init: 'http://me:key@h/x'}", "finetune.init=http://***@h/x is not possible"),
        ("launch: {comment: 'see http://me:key@h/x'}", "launch.comment=see http://***@h/x is not possible"),
        ("data: {shards: 'https://h/k400?token=key'}", "data.shards=https://h/k400?*** is not possible: its URL has a"),
        ("test: {shards: 'https://h/k400#key'}", "test.shards=https://h/k400#*** is not possible: its URL has a query"),
        ("data: {cache: '/tmp/$HF_TOKEN'}", "data.cache=/tmp/$HF_TOKEN is not possible: $HF_TOKEN is not expanded"),
        ("data: {cache: '/tmp/${AWS_SECRET_ACCESS_KEY}'}", "is not expanded"),
        ("data: {beton: '$SLURM_JWT.beton'}", "is not expanded"),
        ("data: {beton: '$TMPDIR/$SLURM_JWT'}", "$SLURM_JWT is not expanded"),
        ("data: {beton: '${TMPDIR:-x}/a.beton'}", "is not expanded"),
    ],
)
def test_an_odd_config_is_refused_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in refused(tmp_path / "x.yaml", text)


def test_a_password_on_the_command_line_is_not_shown() -> None:
    with pytest.raises(UserError, match="its URL holds a user name") as caught:
        load_config("tiny_toy", ["data.shards=https://me:key@h/k400"])
    assert "me:key" not in str(caught.value)


@pytest.mark.parametrize("control", CONTROL)
@pytest.mark.parametrize(
    "key", ["launch.partition", "launch.qos", "launch.exclude", "data.shards", "log.wandb_project"]
)
def test_no_text_of_a_config_holds_control_characters(key: str, control: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=a.* is not possible: ") as caught:
        load_config("tiny_toy").updated({key: f"a{control}b"})
    assert control not in str(caught.value)


@pytest.mark.parametrize("section", ["sbatch: {mem: %s}", "environment: {A: %s}", "launch: {comment: %s}"])
def test_no_text_of_a_site_file_holds_control_characters(section: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(section % '"a\\ntouch INJECTED"')
    with pytest.raises(UserError, match="it holds a line break; write one line of plain text") as caught:
        load_config("tiny_toy", site=load_site(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [30, 3000])
def test_an_override_of_a_deep_key_is_refused(depth: int) -> None:
    with pytest.raises(UserError, match="more than 20 sections"):
        load_config("tiny_toy", [f"{'a.' * depth}b=1"])


@pytest.mark.parametrize("name", ["a" * 300, f"{'a' * 300}.yaml", "a\0.yaml", "~no-such-user-here/a.yaml"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^--config .* is not possible"):
        load_config(name)


def test_a_long_chain_of_bases_is_refused(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}\n")
    with pytest.raises(UserError, match="has more than 20 bases"):
        load_config(str(tmp_path / "0.yaml"))


def test_honest_texts_are_taken(tmp_path: Path) -> None:
    launch = {
        "comment": "it's \"Bob's\" run: 100 % {true} 🙂 $HOME",
        "constraint": "[a100*2&v100*2]|x",
        "exclude": "node[01-04,7]-ib,x,r[1-2]n[3-4].site.org",
    }
    config = load_config("tiny_toy").updated({"launch": load_config("tiny_toy").launch.model_dump() | launch})
    assert config.launch.model_dump().items() >= launch.items()
    for cache in ("$TMPDIR/x", "${SLURM_TMPDIR}", "/local/$USER/$SLURM_JOB_ID", "$LOCAL_SCRATCH/x", "$NODE_DISK/x"):
        assert config.updated({"data.cache": cache}).data.cache == cache
    (tmp_path / "x.yaml").write_text("base: tiny_toy\nmask: &a {ratio: 0.5}\nname: über-1\n")
    assert load_config(str(tmp_path / "x.yaml")).mask.ratio == 0.5


def test_only_variables_of_folders_user_and_job_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/7")
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert node_path("${TMPDIR}/$USER/a") == Path("/scratch/7/me/a")
    assert node_path("$NODE_DISK/a") == tmp_path / "a"
    for path in ("/x/$HF_TOKEN", "/x/${HF_TOKEN}", "$HF_TOKEN/x", "$SLURM_TMPDIR/x", "x/$NODE_DISK", "${NODE_DISK}x"):
        with pytest.raises(UserError, match="which is no folder on this node") as caught:
            node_path(path)
        assert "hf_secret" not in str(caught.value)


@given(st.text())
def test_a_text_for_sbatch_is_printable_and_has_no_escape(text: str) -> None:
    if "\\" in text or excerpt(text) != text[:200] + "..." * (len(text) > 200):
        with pytest.raises(ValueError, match=r"^it holds"):
            sbatch_text(text)
    else:
        assert sbatch_text(text) == text
        assert len(text.splitlines()) <= 1


@given(st.text())
def test_a_shown_text_is_one_line(text: str) -> None:
    assert one_line(excerpt(text)) == excerpt(text)
