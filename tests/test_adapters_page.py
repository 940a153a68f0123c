"""The blocks of docs/adapters.md run as they are written, and print what they say."""

import os
import re
from pathlib import Path

import pytest
from repository import ROOT

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before any test imports it
PAGE = (ROOT / "docs" / "adapters.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
NEEDS = {
    "scikit-learn": "sklearn",
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index.core",
    "Haystack": "haystack",
    "spaCy": "spacy",
    "pandas": "pandas",
    "Polars": "polars",
}


def test_every_framework_has_its_section_and_block() -> None:
    assert list(SECTIONS) == list(NEEDS)
    assert all(section.count("```python") == 1 for section in SECTIONS.values())


@pytest.mark.parametrize("name", NEEDS)
def test_a_block_prints_what_it_says(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(NEEDS[name])
    if name == "spaCy":
        pytest.importorskip("nopad.adapters.spacy")  # what the entry point of an installed nopad does
    (block,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.DOTALL)
    for folder, case in (("embeddings", "modernbert-embed-mean-unit"), ("reranker", "modernbert-rerank")):
        if f'"{folder}/"' in block:
            (tmp_path / folder).symlink_to(request.getfixturevalue("bundle")(case))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(block, "docs/adapters.md", "exec"), {})
    said = re.findall(r"^ *print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
    assert said and [line.rstrip() for line in capsys.readouterr().out.splitlines()] == said
